"""Recorded bytes of real servers' Responses decode to recorded events, whole, byte by byte and at random cuts."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.conformance.chat_captures import body, is_stream, status
from tests.conformance.responses_captures import EXPECTED, cases, outcome
from treadle.values.request import ModelRequest
from treadle.wire.responses import ResponsesCodec

EXPECTATIONS: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))


def test_every_capture_has_an_expectation_and_every_expectation_a_capture() -> None:
    assert sorted(EXPECTATIONS) == sorted(cases())
    assert (len(cases()), sum(map(is_stream, cases()))) == (18, 9)


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
def test_a_stream_cut_anywhere_before_its_last_event_is_never_a_success(case: str) -> None:
    data = body(case)
    last = data.rindex(b'"type":"response.completed"') if is_stream(case) else len(data) - 2
    # every byte near the end and every seventh before: a frame counts only with its line end
    whole = data.index(b"\n", last) if is_stream(case) else len(data)
    for end in (*range(0, last, 7), *range(last, whole)):
        decoder = ResponsesCodec().decoder(ModelRequest(messages=()))
        decoder.feed(data[:end])
        decoder.close()
        assert not decoder.finished and decoder.error is not None, end
