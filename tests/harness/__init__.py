"""What tests of faults and schedules stand on: a loop with a virtual clock, and a scripted server inside it.

    async def main():
        async with ByteServer([sse(text_chunk("Hi"), Wait(100), finish_chunk("stop"))]) as server:
            ...  # a client of `server.url`

    run_virtual(main())

takes no real time, and fails if anything is left open.
"""

from .chat import call_chunk, completion, finish_chunk, reply, text_chunk, thinking_chunk, usage_chunk
from .clock import Deadlock, TimeLimit, VirtualClockLoop, run_virtual, settled
from .history import check_chat_history, check_prefix
from .server import (
    ByteServer,
    Close,
    Connection,
    Exchange,
    Hang,
    Request,
    Reset,
    Send,
    Step,
    Wait,
    cut,
    data_line,
    json_reply,
    size,
    split,
    sse,
)

__all__ = [
    "ByteServer",
    "Close",
    "Connection",
    "Deadlock",
    "Exchange",
    "Hang",
    "Request",
    "Reset",
    "Send",
    "Step",
    "TimeLimit",
    "VirtualClockLoop",
    "Wait",
    "call_chunk",
    "check_chat_history",
    "check_prefix",
    "completion",
    "cut",
    "data_line",
    "finish_chunk",
    "json_reply",
    "reply",
    "run_virtual",
    "settled",
    "size",
    "split",
    "sse",
    "text_chunk",
    "thinking_chunk",
    "usage_chunk",
]
