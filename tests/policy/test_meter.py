"""Counting a reply while it streams, delta by delta."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.state import apply
from treadle.policy.meter import Meter, ask_for_the_answer
from treadle.values.events import Delta, Replied, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.limits import Limits
from treadle.values.messages import AssistantMessage, Text, Thinking, ToolCall, UserMessage
from treadle.values.request import Reply
from treadle.values.state import State
from treadle.values.tokens import Calibration
from treadle.values.usage import Usage

SMALL = Limits(output_tokens_per_turn=100, output_tokens_per_run=250, reasoning_tokens_per_turn=50, reasoning_tokens_per_run=120)


def state(**fields: Any) -> State:
    return State(run_id="r", model="m", closed=(UserMessage("Hi"),), **fields)


def meter(limits: Limits = SMALL, *, calibration: Calibration | None = None, **fields: Any) -> Meter:
    return Meter(limits, state(**fields), calibration or Calibration())


def text(tokens: int) -> TextDelta:
    return TextDelta(turn=1, text="word" * tokens)


def thinking(tokens: int) -> ThinkingDelta:
    return ThinkingDelta(turn=1, text="hmmm" * tokens)


def arguments(tokens: int) -> ToolCallDelta:
    return ToolCallDelta(turn=1, position=0, name="write", arguments='{"' * tokens)


def replied(meter: Meter, *, finish: Any = "end", output_tokens: int | None = None) -> Replied:
    message = AssistantMessage((Text("x"),))
    reply = Reply(message=message, finish=finish, finish_said="stop", usage=Usage(output_tokens=output_tokens), model="m")
    return meter.replied(reply, turn=1, attempt=1, continues=None)


class TestBounds:
    @pytest.mark.parametrize(
        ("deltas", "cut"),
        [
            ([text(100)], None),
            ([text(101)], "output_limit"),
            ([text(60), text(41)], "output_limit"),
            ([arguments(101)], "output_limit"),
            ([text(60), arguments(41)], "output_limit"),
            ([thinking(50)], None),
            ([thinking(51)], "reasoning_limit"),
            ([thinking(50), text(100)], None),
            ([thinking(51), text(101)], "output_limit"),
            ([], None),
        ],
    )
    def test_the_bound_of_a_turn(self, deltas: list[Delta], cut: str | None) -> None:
        m = meter()
        assert m.add(deltas) == cut == m.cut

    @pytest.mark.parametrize(("before", "fits"), [(0.0, 100), (100.0, 100), (200.0, 50), (250.0, 0), (300.0, 0)])
    def test_output_is_bounded_by_what_the_run_has_left(self, before: float, fits: int) -> None:
        m = meter(output_tokens=before)
        if before <= 250 and fits:
            assert m.add([text(fits)]) is None
        assert m.add([text(1)]) == "output_limit"

    @pytest.mark.parametrize(("before", "fits"), [(0.0, 50), (70.0, 50), (100.0, 20), (120.0, 0)])
    def test_reasoning_is_bounded_by_what_the_run_has_left(self, before: float, fits: int) -> None:
        m = meter(reasoning_tokens=before)
        if fits:
            assert m.add([thinking(fits)]) is None
        assert m.add([thinking(1)]) == "reasoning_limit"

    def test_text_without_end(self) -> None:
        m = meter(Limits())
        assert m.add([TextDelta(turn=1, text="again and again " * 400)]) == "loop_detected"

    def test_reasoning_without_end(self) -> None:
        m = meter(Limits())
        assert m.add([ThinkingDelta(turn=1, text="Wait, no. " * 700)]) == "loop_detected"

    def test_text_and_reasoning_are_looked_at_apart(self) -> None:
        m = meter(Limits())
        for _ in range(60):
            assert m.add([TextDelta(turn=1, text="tick " * 10), ThinkingDelta(turn=1, text="tock " * 10)]) is None
        for _ in range(110):
            m.add([TextDelta(turn=1, text="tick " * 10), ThinkingDelta(turn=1, text="tock " * 10)])
        assert m.cut == "loop_detected"

    @given(st.lists(st.integers(0, 30), max_size=30))
    def test_it_is_past_its_bound_by_at_most_one_read(self, reads: list[int]) -> None:
        m = meter()
        for tokens in reads:
            if m.add([text(tokens)]):
                assert 100 < m.output_tokens <= 100 + tokens
                break
        else:
            assert m.output_tokens == sum(reads) <= 100


class TestCalibration:
    def test_counts_are_corrected_by_the_factor(self) -> None:
        calibration = Calibration()
        calibration.learn(10_000, 20_000)
        m = meter(calibration=calibration)
        assert m.add([text(50)]) is None
        assert (m.output_tokens, m.add([text(1)])) == (100, "output_limit")

    def test_a_whole_turn_teaches(self) -> None:
        calibration = Calibration()
        m = meter(Limits(), calibration=calibration)
        m.add([text(600), thinking(400)])
        fact = replied(m, output_tokens=1500)
        assert calibration.factor == pytest.approx(1.5)
        assert (fact.output_tokens, fact.reasoning_tokens, fact.cut, fact.finish) == (600, 400, None, "end")

    def test_what_was_learnt_is_not_applied_twice(self) -> None:
        calibration = Calibration()
        for _ in range(20):
            m = meter(Limits(), calibration=calibration)
            m.add([text(1000)])
            replied(m, output_tokens=2000)
        assert calibration.factor == pytest.approx(2)

    def test_a_cut_turn_does_not_teach(self) -> None:
        calibration = Calibration()
        m = meter(calibration=calibration)
        m.add([text(1000)])
        fact = replied(m, finish=None, output_tokens=9000)
        assert calibration.factor == 1
        assert (fact.cut, fact.finish, fact.output_tokens) == ("output_limit", "length", 1000)

    def test_reasoning_that_the_server_counts_and_does_not_show_is_no_lesson_about_text(self) -> None:
        """Hosted reasoning models report hidden tokens as output; visible text must not become dearer for it."""
        calibration = Calibration()
        m = meter(Limits(), calibration=calibration)
        m.add([text(1000)])
        usage = Usage(output_tokens=4000, reasoning_tokens=3000)
        reply = Reply(message=AssistantMessage((Text("x"),)), finish="end", usage=usage)
        m.replied(reply, turn=1, attempt=1, continues=None)
        assert calibration.factor == pytest.approx(1)


def test_a_continued_turn_is_one_message() -> None:
    reply = Reply(message=AssistantMessage((Text("lo"),)), finish="end")
    fact = meter().replied(reply, turn=1, attempt=2, continues=AssistantMessage((Text("Hel"),)))
    assert fact.message == AssistantMessage((Text("Hello"),))


class TestAskingForTheAnswer:
    def test_it_quotes_the_end_of_what_was_thought(self) -> None:
        thought = "first " + "x" * 10_000 + " last"
        asked = ask_for_the_answer(State(run_id="r", model="m", closed=(AssistantMessage((Thinking(thought),)),)))
        assert asked.content.endswith("x last")
        assert "first" not in asked.content
        assert len(asked.content) < 8_500

    def test_calls_of_the_turn_do_not_hide_what_was_thought(self) -> None:
        """Reasoning that goes on after a call: the call's result is the last message, not the reasoning."""
        message = AssistantMessage((ToolCall("a", "look", "{}"), Thinking("because of this")))
        after = apply(state(), Replied(turn=1, message=message, finish="length", cut="reasoning_limit"))
        assert "because of this" in ask_for_the_answer(after).content
