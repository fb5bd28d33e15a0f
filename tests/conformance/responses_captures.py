"""The Responses captures, and what each of them comes to.

`python -m tests.conformance.responses_captures` rewrites expected_responses.json from today's decoder: read the difference
before committing it, since each line is a promise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tests.conformance.chat_captures import CAPTURES, body, merged, status
from treadle.errors import ModelError
from treadle.values.events import Delta
from treadle.values.request import ModelRequest, Options
from treadle.wire.responses import ResponsesCodec

EXPECTED = Path(__file__).with_name("expected_responses.json")


def _asked(case: str) -> dict[str, Any]:
    return json.loads((CAPTURES / f"{case}.meta.json").read_bytes())["request"]


def cases() -> list[str]:
    names = sorted(path.name.removesuffix(".meta.json") for path in CAPTURES.glob("*.meta.json"))
    return [name for name in names if _asked(name)["path"].endswith("/responses")]


def outcome(case: str, chunks: Iterable[bytes]) -> dict[str, Any]:
    """What the decoder makes of a body cut into these chunks: merged deltas and reply, or the error."""
    codec = ResponsesCodec()
    options = Options(max_tokens=_asked(case)["body"].get("max_output_tokens"))
    decoder = codec.decoder(ModelRequest(messages=(), run_id="0123456789abcdef", turn=1, options=options))
    deltas: list[Delta] = []
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


if __name__ == "__main__":
    expected = {case: outcome(case, [body(case)]) for case in cases()}
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
