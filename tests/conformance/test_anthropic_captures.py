"""Recorded bytes of real servers that speak the Anthropic format decode to recorded events, whole, byte by byte and at random cuts.

`python -m tests.conformance.test_anthropic_captures` rewrites anthropic_expected.json from today's decoder: read the difference
before committing it, since each line is a promise.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conformance.chat_captures import CAPTURES, REQUEST, body, is_stream, merged, status
from treadle.errors import ModelError
from treadle.values.events import Delta
from treadle.values.messages import Thinking
from treadle.values.request import ModelRequest
from treadle.wire.anthropic import AnthropicCodec

EXPECTED = Path(__file__).with_name("anthropic_expected.json")


def cases() -> list[str]:
    metas = sorted(CAPTURES.glob("*.meta.json"))
    paths = {path: json.loads(path.read_bytes())["request"]["path"] for path in metas}
    return [path.name.removesuffix(".meta.json") for path, asked in paths.items() if asked.endswith("/messages")]


def outcome(case: str, chunks: Iterable[bytes]) -> dict[str, Any]:
    """What the decoder makes of a body cut into these chunks: merged deltas and reply, or the error."""
    codec = AnthropicCodec()
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


EXPECTATIONS: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}


def test_every_capture_has_an_expectation_and_every_expectation_a_capture() -> None:
    assert sorted(EXPECTATIONS) == sorted(cases())
    assert sum(map(is_stream, cases())) == 12


@pytest.mark.parametrize("case", cases())
def test_whole(case: str) -> None:
    assert outcome(case, [body(case)]) == EXPECTATIONS[case]


@pytest.mark.parametrize("case", cases())
def test_byte_by_byte(case: str) -> None:
    data = body(case)
    assert outcome(case, [data[i : i + 1] for i in range(len(data))]) == EXPECTATIONS[case]


@pytest.mark.parametrize("case", cases())
def test_at_random_cuts(case: str) -> None:
    data = body(case)
    for seed in range(5):
        rng = random.Random(f"{case} {seed}")
        cuts = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 200)))})
        pieces = [data[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        assert outcome(case, pieces) == EXPECTATIONS[case], f"seed {seed}"


@pytest.mark.parametrize("case", [case for case in cases() if status(case) == 200])
def test_no_capture_that_is_cut_short_is_a_success(case: str) -> None:
    data = body(case)
    end = data.index(b"}\n", data.rindex(b'"stop_reason":')) if is_stream(case) else len(data) - 1
    for length in range(end):
        decoder = AnthropicCodec().decoder(REQUEST)
        decoder.feed(data[:length])
        decoder.close()
        assert decoder.error is not None, f"cut at {length}"
        assert decoder.reply.finish is None


@pytest.mark.parametrize("case", [case for case in cases() if "nonstream" in case or "tool-any" in case or "tool-result" in case])
def test_what_a_server_sent_goes_back_as_it_came(case: str) -> None:
    codec = AnthropicCodec()
    decoder = codec.decoder(REQUEST)
    decoder.feed(body(case))
    decoder.close()
    message = decoder.reply.message
    sent = json.loads(codec.encoder("m").encode(ModelRequest(messages=(message,))))
    assert sent["messages"] == [{"role": "assistant", "content": json.loads(body(case))["content"]}]
    assert all(part.source == "block" for part in message.content if isinstance(part, Thinking))


if __name__ == "__main__":
    expected = {case: outcome(case, [body(case)]) for case in cases()}
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
