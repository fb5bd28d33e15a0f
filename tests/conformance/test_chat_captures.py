"""Recorded bytes of real servers decode to recorded events, whole, byte by byte and at random cuts."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.conformance.chat_captures import EXPECTED, body, cases, is_stream, outcome

EXPECTATIONS: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))


def test_every_capture_has_an_expectation_and_every_expectation_a_capture() -> None:
    assert sorted(EXPECTATIONS) == sorted(cases())
    assert sum(map(is_stream, cases())) == 39


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


@pytest.mark.parametrize("case", [case for case in cases() if "killed" in case])
def test_a_server_killed_while_streaming_is_never_a_success(case: str) -> None:
    assert EXPECTATIONS[case]["error"] in ("StreamTruncated", "ServerError")
    assert EXPECTATIONS[case]["deltas"], "what had arrived was shown"
