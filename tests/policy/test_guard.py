"""The guard on labelled traces, and its rules one by one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.guard_traces import (
    DOC,
    HONEST,
    LEFT,
    PRICE,
    STUCK,
    TRACES,
    Step,
    Trace,
    alone,
    do,
    document,
    fail,
    false_positives,
    is_false_positive,
    look,
    nothing_ran,
    play,
)
from treadle.policy import guard
from treadle.values.limits import GuardLimits
from treadle.values.messages import ToolCall, ToolMessage
from treadle.values.state import Progress

LIMITS = GuardLimits()


def named(traces: list[Trace]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trace", traces, ids=lambda trace: trace.name)


@named(HONEST)
def test_honest_runs_go_on(trace: Trace) -> None:
    outcome = play(trace)
    assert not is_false_positive(trace, outcome), outcome


@named(STUCK)
def test_stuck_runs_are_told_refused_and_stopped(trace: Trace) -> None:
    outcome = play(trace)
    told = outcome.told[0] if outcome.told else None
    refused = outcome.refused[0] if outcome.refused else None
    assert (told, refused, outcome.calls, outcome.stopped) == trace.expected


@named(PRICE)
def test_what_looks_stuck_is_refused_even_if_it_was_honest(trace: Trace) -> None:
    outcome = play(trace)
    assert (outcome.refused, outcome.stopped) == (trace.expected, None)


@named(LEFT)
def test_what_the_guard_does_not_see(trace: Trace) -> None:
    outcome = play(trace)
    assert (outcome.told, outcome.refused, outcome.stopped) == ((), (), None)


def test_false_positives_are_counted() -> None:
    wrong = false_positives()
    print(f"guard: {len(TRACES)} traces, {len(HONEST)} honest, {len(STUCK)} stuck, {len(wrong)} false positives {wrong}")
    assert len(HONEST) >= 15
    assert len(STUCK) >= 12
    assert len({trace.name for trace in TRACES}) == len(TRACES)
    assert wrong == []


def test_the_page_says_what_the_guard_does() -> None:
    assert DOC.read_text(encoding="utf-8") == document(), "run `python -m tests.policy.guard_traces`"


class TestRules:
    def test_every_copy_of_a_refused_call_is_refused(self) -> None:
        """A model that asks for the same thing twice in a turn must not get one of the two."""
        again = look("read_file", "text", path="a.txt")
        outcome = play(Trace("stuck", "", [[again, again]] * 5))
        assert outcome.refused == (7, 8, 9, 10)

    def test_a_refused_repeat_does_not_buy_failures(self) -> None:
        """A refusal uses up a failure only where there was one: three failures are three failures."""
        again = look("fetch", "page", url="x")
        steps = [again] * 5 + [do("edit", "ok")] + [fail("fetch", "HTTP 404", url=str(n)) for n in range(4)]
        outcome = play(Trace("stuck", "", alone(*steps)))
        assert outcome.told == (3, 9)
        assert outcome.refused == (4, 5, 10)

    def test_a_call_that_never_ran_has_no_result_to_repeat(self) -> None:
        """Refused because its tool keeps failing, then refused again: it has given no result, so it cannot repeat one."""
        steps: list[Step] = [fail("fetch", "HTTP 404", url=str(n)) for n in range(3)]
        for n in range(8):
            steps += [
                look("fetch", "page", url="the one"),
                look("list", f"files {n}"),
                fail("fetch", "HTTP 404", url=f"other {n}"),
            ]
            steps += [look("list", f"more files {n}")]
        progress = Progress()
        for turn, step in enumerate(steps, 1):
            call = ToolCall("c", step.tool, step.arguments)
            said = guard.refusal(progress, call, LIMITS, turn=turn)
            assert said is None or said[0] != "repeats"
            result = ToolMessage("c", step.tool, said[1] if said else step.result, is_error=said is not None or step.fails)
            progress = guard.after(progress, call, result, turn=turn, changes=False, refused=said[0] if said else None)

    def test_the_result_of_a_cut_output_is_compared_whole(self) -> None:
        """Two long results may share head and tail and differ in the part that the model does not read."""
        progress = Progress()
        call = ToolCall("c", "read_file", "{}")
        for turn in range(1, 8):
            result = ToolMessage("c", "read_file", "head ... tail", full=f"head {turn} tail")
            assert guard.refusal(progress, call, LIMITS, turn=turn) is None
            assert guard.note(progress, call, result, LIMITS, turn=turn) is result
            progress = guard.after(progress, call, result, turn=turn, changes=False, refused=None)

    def test_a_success_ends_the_row(self) -> None:
        steps: list[Step] = []
        for n in range(10):
            steps += [fail("fetch", "HTTP 404", try_=n), fail("fetch", "HTTP 410", again=n), look("fetch", "page", url=n)]
        outcome = play(Trace("honest", "", alone(*steps)))
        assert (outcome.told, outcome.refused, outcome.stopped) == ((), (), None)

    def test_a_change_that_failed_changes_nothing(self) -> None:
        steps = [look("read_file", "text"), fail("edit", "no match", changes=True)] * 3
        assert 5 in play(Trace("stuck", "", alone(*steps))).told

    def test_a_call_that_did_not_run_changes_nothing(self) -> None:
        steps = [look("read_file", "text"), nothing_ran("edit", "invalid arguments", "{")] * 3
        assert 5 in play(Trace("stuck", "", alone(*steps))).told

    @pytest.mark.parametrize(
        ("limits", "outcome"),
        [
            (GuardLimits(repeats_noted=2, repeats_stop=3), ((2,), (3,), "loop_detected", 3)),
            (GuardLimits(repeats_noted=99, repeats_stop=99), ((), (), None, 12)),
        ],
    )
    def test_its_numbers_are_settings(self, limits: GuardLimits, outcome: tuple[object, ...]) -> None:
        seen = play(Trace("stuck", "", alone(*[look("read_file", "text")] * 12)), limits)
        assert (seen.told, seen.refused, seen.stopped, seen.calls) == outcome


class TestFingerprint:
    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
            ('{"a": "\\u00e9"}', '{"a": "é"}', True),
            ('{"a": {"c": 1, "b": [1, 2]}}', '{ "a" : {"b": [1,2], "c": 1} }', True),
            ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
            ('{"a": 1}', '{"a": "1"}', False),
            ('{"a": 1}', '{"a": 2}', False),
            ('{"a": null}', "{}", False),
            ("{not json", "{not  json", False),
            ('{"a": 100000000000000000000000000001}', '{"a": 100000000000000000000000000002}', False),
            ("[" * 100_000, "[" * 100_001, False),
            ('{"a": "\ud800"}', '{"a": "\udfff"}', False),
            ("\ud800", "\ud800", True),
        ],
    )
    def test_what_counts_as_the_same(self, one: str, other: str, same: bool) -> None:
        assert (guard.fingerprint(ToolCall("1", "t", one)) == guard.fingerprint(ToolCall("2", "t", other))) is same

    def test_the_tool_is_part_of_it(self) -> None:
        assert guard.fingerprint(ToolCall("1", "a", "{}")) != guard.fingerprint(ToolCall("1", "b", "{}"))

    @given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps))
    def test_any_arguments_have_one(self, arguments: str) -> None:
        call = ToolCall("1", "t", arguments)
        assert guard.fingerprint(call) == guard.fingerprint(call)


_steps = st.builds(
    Step,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["{}", '{"n": 1}', "{"]),
    st.sampled_from(["x", "y"]),
    fails=st.booleans(),
    changes=st.booleans(),
)
_turns = st.lists(st.lists(_steps, min_size=1, max_size=4), max_size=25)


class TestProperties:
    @given(_turns)
    def test_the_counts_stay_in_range(self, turns: list[list[Step]]) -> None:
        progress = Progress()
        for turn, steps in enumerate(turns, 1):
            for step in steps:
                call = ToolCall("c", step.tool, step.arguments)
                said = guard.refusal(progress, call, LIMITS, turn=turn)
                result = ToolMessage("c", step.tool, said[1] if said else step.result, is_error=said is not None or step.fails)
                progress = guard.after(progress, call, result, turn=turn, changes=step.changes, refused=said[0] if said else None)
                assert progress.failures.count >= 0
                assert all(streak.count >= 0 for streak in progress.failing.values())
                assert all(repeat.count >= 0 for repeat in progress.seen.values())
                assert len(progress.seen) <= 64

    @given(_turns)
    def test_nothing_is_stopped_before_six_failures_or_six_rounds(self, turns: list[list[Step]]) -> None:
        outcome = play(Trace("stuck", "", turns))
        if outcome.stopped == "loop_detected":
            assert outcome.refused
            assert outcome.told
        elif outcome.stopped:
            failed = [step for steps in turns for step in steps if step.fails]
            assert len(failed) + len(outcome.refused) >= 6

    @given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=60))
    def test_calls_whose_results_are_all_new_are_left_alone(self, tools: list[str]) -> None:
        outcome = play(Trace("honest", "", alone(*[look(tool, f"result {n}") for n, tool in enumerate(tools)])))
        assert (outcome.told, outcome.refused, outcome.stopped) == ((), (), None)

    @given(st.lists(st.lists(_steps.filter(lambda step: not step.fails), min_size=1, max_size=4), max_size=4))
    def test_a_short_run_without_failures_is_never_refused(self, turns: list[list[Step]]) -> None:
        assert play(Trace("honest", "", turns[:3])).refused == ()
