"""Token estimates, and what a server's counts teach them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from treadle.values.tokens import Calibration, estimate_tokens

text = st.text(max_size=300) | st.text(st.sampled_from("aQ7é漢한あЖ😀\ud800 \n{"), max_size=300)


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("", 0, 0),
        ("word", 1, 1),
        ("abcdefgh" * 100, 200, 200),
        ("The quick brown fox jumps over the lazy dog.", 9, 12),
        ("    " * 10 + "x", 1, 4),
        ('{"name": "read", "arguments": {"path": "a.py"}}', 13, 18),
        ("3.14159265358979", 6, 16),
        ("漢字", 1.5, 2),
        ("ひらがな", 2, 4),
        ("한국어", 2, 3),
        ("ｆｕｌｌ", 2, 4),
        ("𠀋", 1, 3),
        ("Привет", 2, 3),
        ("café", 1.5, 3),
        ("日本 word", 2.5, 3.5),
        ("👍", 1, 3),
        ("\ud800\udfff", 1, 4),
    ],
)
def test_what_a_text_is_taken_for(said: str, least: float, most: float) -> None:
    assert least <= estimate_tokens(said) <= most


@given(text)
def test_no_character_is_free_and_none_is_dear(said: str) -> None:
    assert len(said) * 2 / 64 <= estimate_tokens(said) <= len(said) * 100 / 64


@given(text, cut_points)
def test_pieces_come_to_the_whole_wherever_it_is_cut(said: str, points: list[int]) -> None:
    """Exactly: what is counted while a text streams does not depend on how the server cut it."""
    assert sum(map(estimate_tokens, cut(said, points))) == estimate_tokens(said)


@given(text, text)
def test_more_text_is_more_tokens(said: str, more: str) -> None:
    assert estimate_tokens(said + more) - estimate_tokens(said) == estimate_tokens(more) >= 0


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
            calibration.learn_prompt(estimated, reported)
            assert 0.25 <= calibration.factor <= 4
            assert 0.25 <= calibration.prompt_factor <= 4
            assert math.isfinite(calibration.error + calibration.prompt_error)

    @pytest.mark.parametrize(("estimated", "reported"), [(100, None), (100, 0), (100, -5), (0, 100)])
    def test_what_says_nothing_teaches_nothing(self, estimated: float, reported: int | None) -> None:
        calibration = Calibration()
        calibration.learn(estimated, reported)
        calibration.learn_prompt(estimated, reported)
        assert calibration.factor == calibration.prompt_factor == 1
        assert calibration.error == calibration.prompt_error == 0.5

    def test_one_short_turn_moves_little(self) -> None:
        calibration = Calibration()
        calibration.learn(2, 20)
        assert calibration.factor < 1.1

    @given(st.lists(st.floats(0.8, 1.25), min_size=3, max_size=40), st.integers(1, 10**9), st.integers(0, 40))
    def test_a_single_outlier_does_not_decide(self, ratios: list[float], reported: int, position: int) -> None:
        calibration = Calibration()
        turns = [(1000, round(1000 * ratio)) for ratio in ratios]
        turns.insert(position % len(turns), (1000, reported))
        for estimated, said in turns:
            calibration.learn(estimated, said)
        # Of three honest turns and one that is not, the outlier is the quarter that is cut off; the prior moves that border a bit.
        assert 0.7 < calibration.factor < 1.25 + 16 * 0.05

    def test_another_model_behind_the_name_is_followed(self) -> None:
        calibration = Calibration()
        for _ in range(50):
            calibration.learn(1000, 500)
        for _ in range(50):
            calibration.learn(1000, 2000)
        assert calibration.factor == pytest.approx(2, rel=0.02)


class TestError:
    def test_it_is_half_until_enough_was_seen(self) -> None:
        calibration = Calibration()
        for turn in range(8):
            assert (calibration.error == 0.5) == (turn < 5)
            calibration.learn(1000, 1300)
        assert calibration.error == pytest.approx(0, abs=1e-3)

    @given(st.floats(0.5, 2), st.floats(0, 0.4), st.randoms(use_true_random=False))
    def test_most_turns_are_within_it(self, ratio: float, spread: float, rng: random.Random) -> None:
        calibration = Calibration()
        turns = [(rng.uniform(200, 5000), rng.uniform(1 - spread, 1 + spread)) for _ in range(32)]
        said = [(estimated, max(1, round(estimated * ratio * off))) for estimated, off in turns]
        for estimated, reported in said:
            calibration.learn(estimated, reported)
        within = [abs(r - e * calibration.factor) <= e * calibration.factor * (calibration.error + 1e-9) for e, r in said]
        assert sum(within) >= 28
        assert calibration.error <= 2 * spread / (1 - spread) + 0.01

    def test_a_server_whose_counts_mean_nothing_has_a_large_one(self) -> None:
        calibration = Calibration()
        for turn in range(32):
            calibration.learn(1000, 100 if turn % 2 else 5000)
        assert calibration.error > 0.5


sizes = st.floats(1.01, 1.8)
noise = st.floats(0.9, 1.1)


class TestPromptCalibration:
    @given(st.floats(0.7, 1.6), st.lists(st.tuples(sizes, noise), min_size=8, max_size=40))
    def test_an_honest_server_teaches_its_ratio(self, ratio: float, growth: list[tuple[float, float]]) -> None:
        calibration, estimated = Calibration(), 300.0
        for grown, off in growth:
            calibration.learn_prompt(estimated, round(estimated * ratio * off))
            estimated = estimated * grown if estimated < 1e6 else 300.0
        assert calibration.prompt_factor == pytest.approx(ratio, rel=0.15)

    @given(
        st.floats(0.7, 1.6),
        st.integers(4_000, 30_000),
        st.lists(st.tuples(st.floats(1.005, 1.3), noise), min_size=1, max_size=80),
        st.floats(0.4, 1),
        st.randoms(use_true_random=False),
    )
    def test_a_server_that_cuts_prompts_does_not_make_text_cheap(
        self, ratio: float, window: int, growth: list[tuple[float, float]], least: float, rng: random.Random
    ) -> None:
        """It cuts to its window, or drops whole messages until the rest fits; the estimate grows to a hundred windows."""
        calibration, estimated = Calibration(), 300.0
        while estimated * ratio < 0.7 * window:
            calibration.learn_prompt(estimated, round(estimated * ratio))
            estimated *= 1.2
        for grown, off in growth * 3:
            true = estimated * ratio * off
            calibration.learn_prompt(estimated, round(true if true <= window else window * rng.uniform(least, 1)))
            assert calibration.prompt_factor >= 0.7 * ratio
            if estimated * ratio > 2 * window:
                assert calibration.falls_short(estimated, window), "the alarm still rings"
            estimated = estimated * grown if estimated < 100 * window else 300.0

    def test_a_server_that_cuts_the_first_prompt_already(self) -> None:
        calibration = Calibration()
        for estimated in (9_000, 9_500, 12_000, 20_000, 40_000):
            assert calibration.falls_short(estimated, 4_096)
            calibration.learn_prompt(estimated, 4_096)
        assert calibration.prompt_factor == 1

    def test_a_server_that_counts_only_what_was_not_cached(self) -> None:
        calibration = Calibration()
        for turn in range(1, 40):
            calibration.learn_prompt(1_000 * turn, 1_000 if turn == 1 else 1_000 + turn % 7)
        assert calibration.prompt_factor == pytest.approx(1)

    def test_a_tokenizer_that_needs_far_fewer_is_believed_when_its_counts_rise(self) -> None:
        calibration = Calibration()
        for estimated in (5_000, 6_000, 11_000, 19_000):
            calibration.learn_prompt(estimated, round(estimated * 0.4))
            assert calibration.prompt_factor == 1
        calibration.learn_prompt(20_000, 8_000)
        assert calibration.prompt_factor == pytest.approx(0.4)
        assert not calibration.falls_short(21_000, 8_400)

    def test_another_model_behind_the_name_is_followed(self) -> None:
        calibration = Calibration()
        for ratio in (1.4, 0.6):
            for estimated in (1_000, 2_000, 4_000, 8_000, 16_000, 32_000) * 6:
                calibration.learn_prompt(estimated, round(estimated * ratio))
            assert calibration.prompt_factor == pytest.approx(ratio) or ratio == 0.6
        # The new model's counts are believed above the highest of the old one's.
        for estimated in (40_000, 80_000, 90_000, 1_000, 2_000):
            calibration.learn_prompt(estimated, round(estimated * 0.6))
        assert calibration.prompt_factor == pytest.approx(0.6)

    def test_a_model_never_asked_has_its_outputs_factor(self) -> None:
        calibration = Calibration()
        calibration.learn(1_000, 1_500)
        assert (calibration.prompt_factor, calibration.prompt_error) == (pytest.approx(1.5), 0.5)
        calibration.learn_prompt(10, 40)  # mostly what the template puts around it
        assert calibration.prompt_factor == pytest.approx(1.5)
        calibration.learn_prompt(1_000, 1_400)
        assert (calibration.factor, calibration.prompt_factor) == (pytest.approx(1.5), pytest.approx(1.4))


@given(st.text(), st.integers(1, 400))
def test_long_texts_are_the_sum_of_their_characters(text: str, times: int) -> None:
    """A faster way is taken for them."""
    assert estimate_tokens(text * times) == sum(map(estimate_tokens, text)) * times


@pytest.mark.parametrize("character", ["\u2014", "a", "\n"])
def test_many_of_the_heaviest_character(character: str) -> None:
    assert estimate_tokens(character * 100_000) == estimate_tokens(character) * 100_000
