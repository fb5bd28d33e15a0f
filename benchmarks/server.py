"""A server that plays ready-made Chat Completions bytes, in a process of its own.

`POST /burst/N` streams N tokens as fast as the socket takes them; `/drip/N` one token per write, 200 us apart; `/loop/N` answers
with a tool call until the request holds N tool results, then with text; `/parallel/N` the same with N calls in one turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import socket
from collections.abc import Iterator

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BASE = {
    "id": "chatcmpl-8RzgGHR1ZifFfKPLbQi2FyyTSe57PmCR",
    "object": "chat.completion.chunk",
    "created": 1795289434,
    "model": "bench",
}


def frame(delta: dict[str, object], finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({**BASE, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Words that vary as a text does: one that repeats itself for ever would be cut, as it should be.
TOKENS = [frame({"content": f" {word}{n * 7919 % 1009}"}) for n, word in enumerate(["token", "wire", "loop", "sea"] * 250)]
END = frame({}, "stop") + b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9}}\n\n' + b"data: [DONE]\n\n"


def tokens(start: int, n: int) -> list[bytes]:
    return [TOKENS[i % len(TOKENS)] for i in range(start, start + n)]


def calls(n: int, turn: int) -> bytes:
    out = b""
    for index in range(n):
        call = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": "look", "arguments": ""}}
        out += frame({"tool_calls": [call]})
        for piece in ('{"what": ', f'"wave {turn}.{index}', '"}'):
            out += frame({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    return out + frame({}, "tool_calls") + END.split(b"\n\n", 1)[1]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            _, kind, count, *_ = head.split(b" ", 2)[1].split(b"/")
            n = int(count)
            writer.write(HEAD)
            if kind == b"burst":
                for start in range(0, n, 200):
                    writer.write(b"".join(map(chunk, tokens(start, min(200, n - start)))))
                    await writer.drain()
                writer.write(chunk(END))
            elif kind == b"drip":
                for token in tokens(0, n):
                    writer.write(chunk(token))
                    await asyncio.sleep(0.0002)
                writer.write(chunk(END))
            elif (answered := body.count(b'"role":"tool"')) < n:
                writer.write(chunk(calls(n if kind == b"parallel" else 1, answered)))
            else:
                writer.write(chunk(TOKENS[0] + END))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    writer.close()


def _main(pipe: multiprocessing.connection.Connection) -> None:
    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**26, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The server's address, while the block lasts."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_main, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()
