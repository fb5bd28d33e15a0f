"""What writing a request costs at 50, 200 and 1,000 turns of one run, and beside it what copying and sending the bytes cost.

uv run python -m benchmarks.run encoding
"""

from __future__ import annotations

import gc
import socket
import statistics
import threading
import time
from collections.abc import Callable

import msgspec

from treadle.core.state import apply, begin
from treadle.values.events import Asked, Replied, ToolFinished
from treadle.values.messages import AssistantMessage, Message, Text, ToolCall, ToolMessage, UserMessage
from treadle.values.request import ModelRequest, Options, ToolSpec
from treadle.values.state import State
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import AnthropicDialect
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.encoder import RunEncoder
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec

LENGTHS = (50, 200, 1_000)
TURNS = 40  # measured at each length
ROUNDS = 15

CODECS: dict[str, Codec] = {
    "chat": ChatCodec(),
    "anthropic": AnthropicCodec(AnthropicDialect(cache=True)),
    "responses": ResponsesCodec(),
    "gemini": GeminiCodec("m"),
    "ollama": OllamaCodec(),
}
TOOLS = tuple(
    ToolSpec(name=f"look_{n}", description="Look at something. " * 10, parameters={"type": "object", "properties": {"what": {"type": "string"}}})
    for n in range(8)
)  # fmt: skip


def turn(n: int) -> tuple[AssistantMessage, ToolMessage]:
    call = ToolCall(f"call_{n}", "look_0", f'{{"what": "wave {n}"}}')
    return AssistantMessage((Text(f"I look at wave {n}."), call)), ToolMessage(
        call.id, call.name, f"saw wave {n}, " + "as calm as ever " * 40
    )


def conversations(length: int) -> list[tuple[Message, ...]]:
    """That of each turn to be measured, each extending the one before."""
    messages: list[Message] = [UserMessage("What is there?")]
    for n in range(length):
        messages += turn(n)
    made = [tuple(messages)]
    for n in range(length, length + TURNS):
        messages += turn(n)
        made.append(tuple(messages))
    return made


def request(messages: tuple[Message, ...]) -> ModelRequest:
    return ModelRequest(messages=messages, instructions="Be brief.", tools=TOOLS, options=OPTIONS, run_id="r", revision=0)


OPTIONS = Options(temperature=0.0)


def encoding(codec: Codec, length: int) -> tuple[float, float, float, float]:
    """Seconds of CPU a turn: writing, alone; copying and sending, which turn the processor's caches over."""
    first, *rest = (request(messages) for messages in conversations(length))
    encoder = codec.encoder("m")
    assert isinstance(encoder, RunEncoder)
    encoder.encode(first)
    at = time.thread_time()
    for each in rest:
        encoder.write(each)
    alone = (time.thread_time() - at) / TURNS
    encoder = codec.encoder("m")
    assert isinstance(encoder, RunEncoder)
    encoder.encode(first)
    written, copied, sent = 0.0, 0.0, 0.0
    with Sink() as send:
        for each in rest:
            at = time.thread_time()
            pieces = encoder.write(each)
            written += time.thread_time() - at
            at = time.thread_time()
            body = b"".join(pieces)
            copied += time.thread_time() - at
            del pieces
            at = time.thread_time()
            send(body)
            sent += time.thread_time() - at
    return alone, written / TURNS, copied / TURNS, sent / TURNS


class Sink:
    """Something that takes bytes over a socket, in a thread of its own."""

    def __enter__(self) -> Callable[[bytes], None]:
        self.ours, self.theirs = socket.socketpair()
        self.thread = threading.Thread(target=self.drain)
        self.thread.start()
        return self.ours.sendall

    def drain(self) -> None:
        while self.theirs.recv(2**20):
            pass

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.thread.join()
        self.theirs.close()


def state_at(length: int) -> State:
    state = begin(Asked(run_id="r", model="m", messages=(UserMessage("What is there?"),)))
    for n in range(length):
        state = grown(state, n)
    return state


def grown(state: State, n: int) -> State:
    message, result = turn(n)
    state = apply(state, Replied(turn=n + 1, message=message, finish="tool_use"))
    return apply(state, ToolFinished(turn=n + 1, position=0, result=result))


def folding(length: int) -> float:
    """Seconds of CPU a turn: its facts folded into the state, and the next request made of it. What grows is a copy of the tuple."""
    state = state_at(length)
    at = time.thread_time()
    for n in range(length, length + TURNS):
        state = grown(state, n)
        request(state.messages)
    return (time.thread_time() - at) / TURNS


def medians(work: Callable[[int], tuple[float, ...]]) -> dict[int, list[float]]:
    """By length; rounds of all lengths in turns, after one that warms up."""
    rounds: dict[int, list[tuple[float, ...]]] = {length: [] for length in LENGTHS}
    for n in range(ROUNDS + 1):
        for length in LENGTHS:
            gc.collect()
            gc.disable()
            took = work(length)
            gc.enable()
            if n:
                rounds[length].append(took)
    return {length: [statistics.median(column) for column in zip(*took, strict=True)] for length, took in rounds.items()}


def main() -> None:
    print(
        f"\n| CPU a turn, us | {' | '.join(f'{n:,} turns' for n in LENGTHS)} | 200 / 50 | 1,000 / 50 | |\n|---|---|---|---|---|---|---|"
    )

    def row(name: str, times: list[float], note: str = "") -> None:
        cells = " | ".join(f"{each * 1e6:.1f}" for each in times)
        print(f"| {name} | {cells} | **{times[1] / times[0]:.2f}** | **{times[2] / times[0]:.2f}** | {note} |", flush=True)

    for name, codec in CODECS.items():
        took = medians(lambda length, codec=codec: encoding(codec, length))
        row(f"{name}: encoding", [took[n][0] for n in LENGTHS], "aim: at most 1.3")
        row(f"{name}: the same, with copying and sending between", [took[n][1] for n in LENGTHS], "cold caches")
        row(f"{name}: copying the body", [took[n][2] for n in LENGTHS])
        row(f"{name}: sending it to a socket", [took[n][3] for n in LENGTHS])
    took = medians(lambda length: (folding(length),))
    row("folding the turn, making the request", [took[n][0] for n in LENGTHS], "copies the tuple of messages")
    sizes = [len(ChatCodec().encoder("m").encode(request(conversations(n)[0]))) for n in LENGTHS]
    print(f"\nBodies (chat): {', '.join(f'{size / 1000:,.0f} kB' for size in sizes)}. msgspec {msgspec.__version__}.")


if __name__ == "__main__":
    main()
