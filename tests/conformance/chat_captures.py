"""The Chat Completions captures, and what each of them comes to.

`python -m tests.conformance.chat_captures` rewrites expected.json from today's decoder: read the difference before
committing it, since each line is a promise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from treadle.errors import ModelError
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.request import ModelRequest
from treadle.wire.chat import ChatCodec

CAPTURES = Path(__file__).parent.parent / "captures"
EXPECTED = Path(__file__).with_name("expected.json")
REQUEST = ModelRequest(messages=(), run_id="0123456789abcdef", turn=1)


def cases() -> list[str]:
    metas = (path for path in sorted(CAPTURES.glob("*.meta.json")))
    return [p.name.removesuffix(".meta.json") for p in metas if _meta(p)["request"]["path"].endswith("/chat/completions")]


def _meta(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


def body(case: str) -> bytes:
    """The response's body; for connections that were killed, what arrived of it."""
    bodies = list(CAPTURES.glob(f"{case}.body.*"))
    return bodies[0].read_bytes() if bodies else _dechunked((CAPTURES / f"{case}.raw").read_bytes())


def _dechunked(raw: bytes) -> bytes:
    _, _, rest = raw.partition(b"\r\n\r\n")
    pieces: list[bytes] = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(pieces)


def status(case: str) -> int:
    return int(_meta(CAPTURES / f"{case}.meta.json")["status_line"].split()[1])


def is_stream(case: str) -> bool:
    asked = _meta(CAPTURES / f"{case}.meta.json")["request"]["body"]
    return isinstance(asked, dict) and bool(asked.get("stream"))


def outcome(case: str, chunks: Iterable[bytes]) -> dict[str, Any]:
    """What the decoder makes of a body cut into these chunks: merged deltas and reply, or the error."""
    codec = ChatCodec()
    deltas: list[Delta] = []
    decoder = codec.decoder(REQUEST)
    result: dict[str, Any] = {}
    try:
        if status(case) != 200:
            raise codec.error(status(case), {}, b"".join(chunks), address="http://server/v1")
        for chunk in chunks:
            deltas += decoder.feed(chunk)
        deltas += decoder.close()
        if decoder.error:
            raise decoder.error
    except ModelError as error:
        result["error"] = type(error).__name__
    result["deltas"] = merged(deltas)
    result["reply"] = msgspec.json.decode(msgspec.json.encode(decoder.reply))
    return result


def merged(deltas: Iterable[Delta]) -> list[list[Any]]:
    """Deltas with neighbours of one kind joined: what does not depend on where chunks were cut."""
    out: list[list[Any]] = []
    for delta in deltas:
        match delta:
            case TextDelta(text=text):
                item = ["text", text]
            case ThinkingDelta(text=text):
                item = ["thinking", text]
            case ToolCallDelta(position=position, name=name, arguments=arguments):
                item = [f"call {position} {name}", arguments]
            case _:
                raise AssertionError(delta)
        if out and out[-1][0] == item[0]:
            out[-1][1] += item[1]
        else:
            out.append(item)
    return out


if __name__ == "__main__":
    expected = {case: outcome(case, [body(case)]) for case in cases()}
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
