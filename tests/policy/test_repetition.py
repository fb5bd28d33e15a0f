"""Endless repetition is noticed; long texts that repeat themselves for a reason are not taken for it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.policy.repetition import RepetitionGuard

LEAST = 6_000
WITHIN = 8_000
LONGEST_PERIOD = 200


def fires_at(pieces: Sequence[str]) -> int | None:
    """How many characters had been fed when the guard fired; None if it never did."""
    guard = RepetitionGuard()
    fed = 0
    for piece in pieces:
        fed += len(piece)
        if guard.add(piece):
            return fed
    return None


def in_pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def random_pieces(text: str, rng: random.Random, longest: int) -> list[str]:
    pieces: list[str] = []
    at = 0
    while at < len(text):
        size = rng.randint(0, longest)
        pieces.append(text[at : at + size])
        at += size
    return pieces


def prose(rng: random.Random, chars: int) -> str:
    words = [
        "the",
        "a",
        "model",
        "server",
        "tool",
        "result",
        "reads",
        "writes",
        "then",
        "of",
        "in",
        "to",
        "and",
        "run",
        "call",
        "text",
        "stream",
        "bound",
        "token",
    ]
    out: list[str] = []
    length = 0
    while length < chars:
        out.append(rng.choice(words) + rng.choice([" ", " ", " ", ", ", ". ", "\n"]))
        length += len(out[-1])
    return "".join(out)[:chars]


class TestStuck:
    @pytest.mark.parametrize("period", range(1, LONGEST_PERIOD + 1))
    def test_every_period_up_to_200(self, period: int) -> None:
        rng = random.Random(period)
        unit = "x" + prose(rng, period)[1:]
        before = prose(rng, rng.randint(0, 3000))
        text = before + unit * (WITHIN // period + 2)
        for pieces in (in_pieces(text, 4), in_pieces(text, 997), random_pieces(text, rng, 60)):
            fired = fires_at(pieces)
            assert fired is not None
            assert fired <= len(before) + WITHIN

    @settings(max_examples=50)
    @given(st.text(min_size=1, max_size=LONGEST_PERIOD).filter(lambda unit: not unit.isspace()), st.integers(1, 1000))
    def test_any_unit_in_any_script(self, unit: str, size: int) -> None:
        fired = fires_at(in_pieces(unit * (WITHIN // len(unit) + 2), size))
        assert fired is not None
        assert fired <= WITHIN

    def test_one_read_that_brings_it_all(self) -> None:
        assert fires_at(["again and again " * 1000]) == 16_000

    @given(st.integers(0, LEAST - 1), st.integers(1, 2000))
    def test_never_before_6000_characters(self, chars: int, size: int) -> None:
        assert fires_at(in_pieces("x" * chars, size)) is None

    def test_text_before_it_got_stuck_does_not_count(self) -> None:
        fired = fires_at(in_pieces(prose(random.Random(1), 50_000) + "stuck " * 2000, 10))
        assert fired is not None
        assert 50_000 + LEAST - LONGEST_PERIOD <= fired <= 50_000 + WITHIN

    def test_a_longer_period_is_left_to_the_token_bound(self) -> None:
        unit = prose(random.Random(2), 201)
        assert fires_at(in_pieces(unit * 100, 50)) is None

    @pytest.mark.parametrize("blanks", [" ", "\n", "\t \n"])
    def test_blanks_alone_are_left_to_the_token_bound(self, blanks: str) -> None:
        assert fires_at(in_pieces(blanks * 10_000, 50)) is None

    def test_what_looks_stuck_is_stopped_even_if_it_was_meant(self) -> None:
        """The price, said openly: 6,000 characters of one short piece are cut, whatever they stand for."""
        assert fires_at(in_pieces("-" * 10_000, 50)) is not None
        assert fires_at(in_pieces("[" + "0, " * 3000, 50)) is not None
        assert fires_at(in_pieces("| 0 | 0 | 0 |\n" * 700, 50)) is not None


def honest() -> dict[str, str]:
    """Long texts that repeat themselves for a reason, by name; each is at least 20,000 characters."""
    rng = random.Random(7)
    refrain = "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream.\n\n"
    verses = [f"Verse {n}: {prose(rng, 90)}\n" for n in range(150)]
    stanza = "And the mill went round, and the mill went round,\nround by the water, round.\n"
    return {
        "table of counts": "".join(f"| {n} | {n * n} | ok |\n" for n in range(2500)),
        "table whose rows differ only in their number": "".join(f"| row {n:05d} | yes | yes | yes |\n" for n in range(1500)),
        "table with rules between its rows": "".join(f"+------+------+\n| {n:04d} | same |\n" for n in range(1000)),
        "numbers": json.dumps([n % 97 for n in range(8000)]),
        "numbers that rarely change": json.dumps([int(math.isqrt(n) ** 2 == n) for n in range(9000)]),
        "random bits": " ".join(rng.choice("01") for _ in range(12_000)),
        "identity matrix": "\n".join(" ".join("1" if row == col else "0" for col in range(100)) for row in range(110)),
        "objects": json.dumps([{"id": n, "name": "item", "tags": [], "active": True} for n in range(500)], indent=2),
        "counting": "\n".join(str(n) for n in range(6000)),
        "code": "".join(f"def test_case_{n}() -> None:\n    assert run({n}) == {n}\n\n\n" for n in range(600)),
        "switch": "".join(f"        case {n}:\n            return handler_{n}(event);\n" for n in range(600)),
        "imports and closing tags": "".join(f'<li class="item"><a href="/{n}">Item</a></li>\n' for n in range(700)),
        "log": "".join(
            f"2026-01-01T00:{n // 60 % 60:02d}:{n % 60:02d} INFO worker: heartbeat ok queue=0 errors=0\n" for n in range(500)
        ),
        "log with counters": "".join(f"[{n}/9000] downloading chunk, 0 errors\n" for n in range(900)),
        "poem with a refrain": "".join(verse + refrain for verse in verses),
        "song that repeats a stanza 60 times, then goes on": (stanza * 60 + prose(rng, 800)) * 5,
        "sections under rules": "".join(f"## Part {n}\n\n{prose(rng, 200)}\n\n-----\n\n" for n in range(120)),
        "a rule of 5,000 dashes": (prose(rng, 500) + "\n" + "-" * 5000 + "\n") * 5,
        "ascii art": "".join(" " * abs(n % 120 - 60) + "*" * (121 - 2 * abs(n % 120 - 60)) + "\n" for n in range(300)),
        "base64": "".join(rng.choice("ABCDEFGHabcdefgh0123456789+/") for _ in range(24_000)),
        "hex dump of zeros": "".join(f"{n * 16:08x}  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00\n" for n in range(500)),
        "csv": "".join(f"{n},0.0,0.0,0.0,N/A,N/A\n" for n in range(1200)),
        "diff": "".join(f"-    value_{n} = old\n+    value_{n} = new\n" for n in range(600)),
        "prose": prose(rng, 30_000),
        "chinese": "".join(f"第{n}章　山高水長。\n" for n in range(2500)),
        "yes and no": "".join(rng.choice(["yes\n", "no\n"]) for _ in range(7000)),
    }


HONEST = honest()


@pytest.mark.parametrize("name", HONEST)
def test_honest_texts_pass(name: str) -> None:
    text = HONEST[name]
    assert len(text) >= 20_000
    rng = random.Random(3)
    for pieces in (in_pieces(text, 4), in_pieces(text, 1000), random_pieces(text, rng, 300), [text]):
        assert fires_at(pieces) is None


def test_the_false_positives_of_the_corpus_are_counted() -> None:
    fired = [name for name, text in HONEST.items() if fires_at(in_pieces(text, 20)) is not None]
    chars = sum(map(len, HONEST.values()))
    print(f"repetition: {len(HONEST)} honest texts, {chars:,} characters, {len(fired)} false positives {fired}")
    assert fired == []
    assert len(HONEST) >= 25


def test_work_is_linear_in_the_characters_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard looks once per 1,000 characters, at no more than 6,000: counted, not timed."""
    looks: list[int] = []
    look = RepetitionGuard._is_periodic

    def counted(self: RepetitionGuard) -> bool:
        looks.append(len(self._tail))
        return look(self)

    monkeypatch.setattr(RepetitionGuard, "_is_periodic", counted)
    text = HONEST["prose"]
    for size in (1, 7, 999, 1000, 30_000):
        looks.clear()
        guard = RepetitionGuard()
        for piece in in_pieces(text, size):
            guard.add(piece)
            assert len(guard._tail) <= LEAST + 1000 + size
        assert len(looks) <= len(text) / 1000
        assert max(looks, default=0) <= LEAST
