"""Token estimates, and what a server's counts teach them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from treadle.values.tokens import Calibration, estimate_tokens

text = st.text(max_size=300) | st.text(st.sampled_from("aé漢한あЖ😀\ud800 \n"), max_size=300)


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ("", 0),
        ("word", 1),
        ("abcdefgh" * 100, 200),
        ("漢字", 2),
        ("ひらがな", 4),
        ("한국어", 3),
        ("ｆｕｌｌ", 4),
        ("𠀋", 1),
        ("Привет", 3),
        ("café", 1.25),
        ("日本 word", 3.25),
        ("\ud800\udfff", 1),
    ],
)
def test_what_a_text_is_taken_for(said: str, tokens: float) -> None:
    assert estimate_tokens(said) == tokens


@given(text)
def test_no_character_is_free_and_none_costs_more_than_a_token(said: str) -> None:
    assert len(said) / 4 <= estimate_tokens(said) <= len(said)


@given(text, cut_points)
def test_pieces_come_to_the_whole_wherever_it_is_cut(said: str, points: list[int]) -> None:
    assert sum(map(estimate_tokens, cut(said, points))) == estimate_tokens(said)


@given(text, text)
def test_more_text_is_never_fewer_tokens(said: str, more: str) -> None:
    assert estimate_tokens(said + more) >= estimate_tokens(said)


class TestCalibration:
    @given(st.floats(0.3, 3.5), st.lists(st.integers(200, 20_000), min_size=1, max_size=60))
    def test_a_constant_ratio_is_found(self, ratio: float, turns: list[int]) -> None:
        calibration = Calibration()
        for estimated in turns:
            calibration.learn(estimated, max(1, round(estimated * ratio)))
        assert calibration.factor == pytest.approx(ratio, rel=0.01, abs=0.01)

    def test_short_turns_get_there_too(self) -> None:
        calibration = Calibration()
        seen = [calibration.factor]
        for _ in range(100):
            calibration.learn(30, 60)
            seen.append(calibration.factor)
        assert seen == sorted(seen)
        assert seen[1] < 1.2
        assert seen[-1] == pytest.approx(2)

    @given(st.lists(st.tuples(st.floats(0, 1e9), st.none() | st.integers(-10, 10**9)), max_size=50))
    def test_no_server_can_talk_the_bound_away(self, turns: list[tuple[float, int | None]]) -> None:
        calibration = Calibration()
        for estimated, reported in turns:
            calibration.learn(estimated, reported)
            assert 0.25 <= calibration.factor <= 4
            assert math.isfinite(calibration.factor)

    @pytest.mark.parametrize(("estimated", "reported"), [(100, None), (100, 0), (100, -5), (0, 100)])
    def test_what_says_nothing_teaches_nothing(self, estimated: float, reported: int | None) -> None:
        calibration = Calibration()
        calibration.learn(estimated, reported)
        assert calibration.factor == 1

    def test_one_short_turn_moves_little(self) -> None:
        calibration = Calibration()
        calibration.learn(2, 20)
        assert calibration.factor < 1.1

    def test_another_model_behind_the_name_is_followed(self) -> None:
        calibration = Calibration()
        for _ in range(50):
            calibration.learn(1000, 500)
        for _ in range(50):
            calibration.learn(1000, 2000)
        assert calibration.factor == pytest.approx(2, rel=0.02)
