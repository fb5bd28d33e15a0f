"""Rows about the network and HTTP: broken connections, stalls, statuses, and bytes that are no model's answer."""

from __future__ import annotations

import gzip
import itertools
import random
import zlib
from collections.abc import Iterator
from typing import Any

from tests.faults.row import FINE, Row
from tests.faults.wire_rows import HEAD, PARIS
from tests.harness import (
    Close,
    Exchange,
    Hang,
    Reset,
    Send,
    Wait,
    call_chunk,
    completion,
    data_line,
    finish_chunk,
    json_reply,
    reply,
    sse,
    text_chunk,
)

HELLO = text_chunk("Hello")
HALF = call_chunk(0, id="a", name="get_weather", arguments=PARIS[:6])
MIB = 2**20


def bare(*steps: Any) -> list[Any]:
    """The head of a stream that only the end of the connection ends, then these steps."""
    return [Send(HEAD), *(Send(step) if isinstance(step, bytes) else step for step in steps)]


def endless(data: bytes, every_s: float = 0.0) -> Any:
    """A step that sends the same bytes for ever."""

    def steps(_: Any) -> Iterator[Any]:
        for _ in itertools.count():
            yield Send(data)
            if every_s:
                yield Wait(every_s)

    return steps


def body(data: bytes, headers: bytes, status: bytes = b"200 OK") -> Exchange:
    """These bytes as an answer with these header lines, then the end of the connection."""
    return [Send(b"HTTP/1.1 " + status + b"\r\n" + headers + b"\r\n\r\n"), Send(data), Close()]


def _connections() -> list[Row]:
    stream = sse(text_chunk("Hel"), text_chunk("lo"), finish_chunk(), done=False)
    rows = [
        Row("connection refused", [], answer=None, refused=True),
        Row("reset before the headers, once", [[Reset()]], real=True),
        Row("reset before the headers, always", [], then=[Reset()], answer=None),
        Row("closed before the headers, once", [[Close()]]),
        Row("closed before the headers, always", [], then=[Close()], answer=None),
        Row("reset in the middle of the headers", [[Send(HEAD[:30]), Reset()]]),
        Row("reset after the headers", [bare(Reset())]),
        Row("closed after the headers", [bare(Close())]),
    ]
    for name, end in (("closed", Close()), ("reset", Reset())):
        rows += [
            Row(f"{name} in the middle of the text", [sse(text_chunk("Hel"), end)], partial="Hel"),
            Row(f"{name} in the middle of the text, always", [], then=sse(text_chunk("Hel"), end), answer=None, partial="Hel"),
            Row(f"{name} in the middle of a call's arguments", [sse(HALF, end)]),
            Row(f"{name} between the reason and `[DONE]`", [[*stream[:4], end]], answer="Hello"),
            Row(f"{name} in the middle of the reason", [[*stream[:3], Send(stream[3].data[:-20]), end]], partial="Hello"),
        ]
    return rows


def _stalls() -> list[Row]:
    rows = [
        Row("a stall before the headers", [[Hang()]], within_s=310),
        Row("a stall before the headers, always", [], then=[Hang()], answer=None, within_s=1300),
    ]
    phases: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "after the headers": ([], {"within_s": 310.0}),
        "after some text": ([HELLO], {"partial": "Hello", "within_s": 130.0}),
        "in the middle of a call's arguments": ([HALF], {"within_s": 130.0}),
        "after the reason to stop": ([HELLO, finish_chunk()], {"answer": "Hello"}),
        "after `[DONE]`": ([HELLO, finish_chunk(), b"data: [DONE]\n\n"], {"answer": "Hello"}),
    }
    for phase, (pieces, truth) in phases.items():
        sent = b"".join(piece if isinstance(piece, bytes) else data_line(piece) for piece in pieces)
        rows += [
            Row(f"a stall {phase}", [bare(sent, Hang())], real=phase == "after some text", **truth),
            Row(f"a stall {phase}, with keep-alive comments for ever", [bare(sent, endless(b": ping\n\n", 10))], **truth),
        ]
    empty = data_line({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]})
    burst = sse(*reply("Hello"), b"data: [DONE]\n\n", endless(b"3\r\n:x\n\r\n", 0.05))
    slow = sse(*(step for piece in ("He", "l", "lo") for step in (Wait(100), text_chunk(piece))), finish_chunk())
    return [
        *rows,
        Row("empty deltas for ever", [bare(endless(empty, 10))], within_s=310),
        Row("keep-alive comments for ever after `[DONE]`, every 50 ms", [burst], answer="Hello"),
        Row("a token every 100 s", [slow], answer="Hello", within_s=310),
        Row("headers that never end", [[Send(b"HTTP/1.1 200 OK\r\n"), endless(b"x: y\r\n", 10)]], within_s=310),
    ]


def _statuses() -> list[Row]:
    date = {"Date": "Sat, 21 Nov 2026 10:00:00 GMT", "Retry-After": "Sat, 21 Nov 2026 10:00:20 GMT"}
    asked = {
        "": {},
        ", Retry-After 7 s": {"Retry-After": "7"},
        ", Retry-After a date 20 s away": date,
        ", Retry-After-Ms 2500": {"Retry-After-Ms": "2500"},
        ", Retry-After that is no time": {"Retry-After": "soon"},
    }
    rows = [
        Row(f"{status}{name}", [json_reply({"error": {"message": "no"}}, status=status, headers=headers)], real=(status, name) == (429, ", Retry-After-Ms 2500"))
        for status in (429, 500, 502, 503, 529)
        for name, headers in asked.items()
    ]  # fmt: skip
    too_long = json_reply({}, status=429, headers={"Retry-After": "3600"})
    rows.append(Row("429, Retry-After 3600 s", [too_long], answer=None))
    rows += [Row(f"{status}, always", [], then=json_reply({}, status=status), answer=None) for status in (429, 500, 503)]
    rows += [
        Row(f"{status}", [json_reply({"error": {"message": "no"}}, status=status)], answer=None)
        for status in (400, 401, 402, 403, 404, 405, 413, 415, 422, 501)
    ]
    said = {
        "400 with llama.cpp's words for an overflow": (400, {"type": "exceed_context_size_error", "message": "too long"}),
        "429 `insufficient_quota`": (429, {"code": "insufficient_quota"}),
        "400 `content_policy_violation`": (400, {"code": "content_policy_violation"}),
        "400 does not support tools": (400, {"message": "m does not support tools"}),
    }
    rows += [Row(name, [json_reply({"error": e}, status=status)], answer=None) for name, (status, e) in said.items()]
    rows += [
        Row(f"a redirect ({status})", [json_reply({}, status=status, headers={"Location": "http://127.0.0.1:1/v1"})], answer=None)
        for status in (301, 302, 307, 308)
    ]
    html = b"<html><body>502 Bad Gateway</body></html>"
    cut = [Send(b"HTTP/1.1 503 No\r\ncontent-length: 5000\r\n\r\n{"), Reset()]
    forever = [Send(b"HTTP/1.1 500 No\r\n\r\n"), endless(b"x" * 4096)]
    drip = [Send(b"HTTP/1.1 500 No\r\n\r\n"), endless(b"x", 2)]
    return [
        *rows,
        Row("502 with HTML", [json_reply(html, status=502, headers={"content-type": "text/html"})]),
        Row("503 whose body is cut", [cut]),
        Row("500 whose body never ends", [forever]),
        Row("500 whose body drips for ever", [drip]),
        Row("204 and nothing", [body(b"", b"x: y", b"204 No Content")], answer=None),
    ]


def _bytes() -> list[Row]:
    hello = b"".join([*reply("Hello"), b"data: [DONE]\n\n"])
    zipped, chunked = b"content-encoding: gzip", b"transfer-encoding: chunked"
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    spaces = bomb.compress(b"data: ") + b"".join(bomb.compress(b" " * MIB) for _ in range(300)) + bomb.flush()
    noise = random.Random(7).randbytes(4096)
    invalid = data_line(text_chunk("Hello")).replace(b"Hello", b"Hel\xff\xfelo")
    line = bare(b"data: ", *[b"x" * MIB] * 100, Close())
    long_json = [Send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"), *[Send(b" " * MIB)] * 100, Close()]
    error = {"error": {"message": "no such model", "code": 404}}
    failed = {"error": {"message": "died", "code": 500}}
    page = b"<!DOCTYPE html><html><body>Welcome</body></html>"
    whole = [bytes([*b"%x\r\n" % len(hello), *hello, *b"\r\n0\r\n\r\n"])]
    return [
        Row("HTML with 200", [body(page, b"content-type: text/html")], answer=None),
        Row("200 with an error body (404)", [json_reply(error)], answer=None),
        Row("200 with an error body (500)", [json_reply(failed)]),
        Row("200 with an empty body", [body(b"", b"content-length: 0")]),
        Row("200 with plain text", [body(b"Ollama is running", b"content-type: text/plain")], answer=None),
        Row("a stream said to be `text/plain`", [body(hello, b"content-type: text/plain")], answer="Hello"),
        Row("a stream said to be `application/json`", [body(hello, b"content-type: application/json")], answer="Hello"),
        Row("a stream of HTTP/1.0", [[Send(HEAD.replace(b"1.1", b"1.0") + hello), Close()]], answer="Hello"),
        Row("a gzip body", [body(gzip.compress(hello), zipped)], answer="Hello"),
        Row("a body said to be gzip that is none", [body(hello, zipped)]),
        Row("a gzip body cut in the middle", [body(gzip.compress(hello)[:60], zipped)], partial="Hello"),
        Row("a gzip bomb (300 MB in 300 kB)", [body(spaces, zipped)], answer=None),
        Row("a line of 100 MB", [line], answer=None),
        Row("a JSON body of 100 MB", [long_json], answer=None),
        Row("a header of 1 MB", [body(hello, b"x: " + b"y" * MIB)], answer=None),
        Row("garbage instead of HTTP", [[Send(noise), Close()]], answer=None),
        Row("another protocol's greeting", [[Send(b"SSH-2.0-OpenSSH_9.6\r\n"), Close()]], answer=None),
        Row("garbage in the body", [bare(noise, Close())], answer=None),
        Row("garbage after some text", [bare(data_line(HELLO), b"data: " + noise.replace(b"\n", b"") + b"\n\n", Close())], answer=None, partial="Hello"),
        Row("invalid UTF-8 in the text", [bare(invalid, data_line(finish_chunk()), Close())], answer="Hel��lo"),
        Row("broken JSON in a frame", [sse(HELLO, b'data: {"choices": [{\n\n', finish_chunk())], answer=None, partial="Hello"),
        Row("a frame that is a list", [sse(HELLO, b"data: [1]\n\n", finish_chunk())], answer=None, partial="Hello"),
        Row("JSON nested 100,000 deep", [sse(HELLO, b"data: " + b"[" * 100_000 + b"\n\n")], answer=None, partial="Hello"),
        Row("a chunk size that is no number", [body(b"zz\r\n" + hello, chunked)]),
        Row("a chunk shorter than its size", [body(b"%x\r\n" % 99999 + data_line(HELLO), chunked)], partial="Hello"),
        Row("a negative chunk size", [body(b"-5\r\n" + hello, chunked)]),
        Row("a chunked body without its last chunk", [body(whole[0][:-5], chunked)], answer="Hello"),
        Row("content-length too long", [body(hello, b"content-length: 99999")], answer="Hello", real=True),
        Row("content-length too long, text cut", [body(data_line(HELLO), b"content-length: 99999")], partial="Hello"),
        Row("content-length too short", [body(hello, b"content-length: 200")], partial="Hello"),
        Row("content-length that is no number", [body(hello, b"content-length: many")], answer=None),
        Row("content-length and chunks at once", [body(whole[0], chunked + b"\r\ncontent-length: 5")], answer=None),
        Row("a plain completion with `stream` headers", [body(completion_bytes(), b"content-type: text/event-stream")], answer="Hello"),
        Row("more bytes after the end of the answer", [[Send(HEAD.replace(b"connection: close", b"content-length: %d" % len(hello)) + hello + noise)], FINE], answer="Hello"),
    ]  # fmt: skip


def completion_bytes() -> bytes:
    """A whole answer as JSON, without a head."""
    step = json_reply(completion("Hello"))[0]
    assert isinstance(step, Send)
    return step.data.partition(b"\r\n\r\n")[2]


SECTIONS = {
    "Connections": _connections(),
    "Stalls": _stalls(),
    "Statuses": _statuses(),
    "Bytes that are no answer": _bytes(),
}
