"""The checker of events: it passes what real runs say, and finds every rule broken on purpose."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.harness import run_virtual
from treadle import (
    Agent,
    ApprovalAnswered,
    ApprovalRequested,
    Asked,
    AssistantMessage,
    Discarded,
    Ended,
    ErrorRecord,
    Event,
    Fact,
    Failed,
    Omitted,
    Overloaded,
    Prompted,
    Repaired,
    Replied,
    Resumed,
    Retried,
    ScriptedDriver,
    Text,
    TextDelta,
    ToolCallDelta,
    ToolFinished,
    ToolMessage,
    ToolProgress,
    ToolRetried,
    ToolStarted,
    UserMessage,
    approve,
    calls,
    edit,
    tool,
)
from treadle.testing import BrokenEvents, check_events, grammar


@tool(concurrency="read_only")
async def look(what: str) -> str:
    """Look."""
    return f"saw {what}"


@tool(needs_approval=True)
async def write(text: str) -> str:
    """Write."""
    return f"wrote {text}"


ERROR = ErrorRecord(kind="Overloaded", message="busy", hint="Wait.")


def story() -> list[Event]:
    """A run in three segments: calls, a failed attempt, two approvals, one of them edited."""

    async def main() -> list[Event]:
        events: list[Event] = []
        driver = ScriptedDriver(
            [
                calls(("look", {"what": "a"}), ("look", {"what": "b"}), text="I look at both."),
                Overloaded("busy"),
                calls(("write", {"text": "1"}), ("look", {"what": "c"}), ("write", {"text": "2"})),
                "All is done.",
            ]
        )
        agent = Agent(driver, tools=[look, write])
        async with agent.stream("Begin") as run:
            events += [event async for event in run]
        for decisions in ({"call_0": approve}, {"call_2": edit({"text": "3"})}):
            async with agent.resume_stream(run.result, decisions) as run:
                events += [event async for event in run]
        assert run.result.stop_reason == "end"
        return [piece for event in events for piece in in_pieces(event)]

    return run_virtual(main())


def in_pieces(event: Event) -> list[Event]:
    """A fast reader's view: the text that this one got in one delta, word by word."""
    if not isinstance(event, TextDelta):
        return [event]
    return [replace(event, text=word) for word in re.findall(r"\S+\s*", event.text)]


STORY = story()
FACTS: list[Event] = [event for event in STORY if isinstance(event, Fact)]


def first(kind: type[Event], n: int = 0) -> int:
    return [index for index, event in enumerate(STORY) if isinstance(event, kind)][n]


def test_a_real_run_passes_whole_and_in_parts() -> None:
    check_events(STORY)
    check_events(FACTS, journal=True)
    for length in range(1, len(STORY)):
        check_events(STORY[:length], whole=False)
    for index, event in enumerate(STORY):
        if isinstance(event, Resumed):
            check_events(STORY[index:])


def test_a_journal_that_broke_off_anywhere_goes_on_after_resumed() -> None:
    for length in range(1, len(FACTS)):
        check_events([*FACTS[:length], Resumed()], whole=False, journal=True) if may_resume(FACTS[length - 1]) else None


def may_resume(last: Event) -> bool:
    return not (isinstance(last, Ended) and last.stop_reason == "end")


def dropped(index: int) -> list[Event]:
    return [*STORY[:index], *STORY[index + 1 :]]


def put(index: int, *events: Event) -> list[Event]:
    return [*STORY[:index], *events, *STORY[index:]]


def changed(index: int, **fields: Any) -> list[Event]:
    return [*STORY[:index], replace(STORY[index], **fields), *STORY[index + 1 :]]


START, DONE, REPLY = first(ToolStarted), first(ToolFinished), first(Replied)
ASK, ANSWER, WAIT = first(ApprovalRequested), first(ApprovalAnswered), first(Ended)
RETRY, LAST_REPLY, END = first(Retried), first(Replied, 2), len(STORY) - 1
DELTA, CALL_DELTA = first(TextDelta), first(ToolCallDelta)


def of(index: int) -> Any:
    return STORY[index]


# What is broken: the events, and a part of the rule that is to be named.
MUTATIONS: dict[str, tuple[Callable[[], list[Event]], str]] = {
    "the last reply lost": (lambda: dropped(LAST_REPLY), "comes to a reply"),
    "a partial turn that was not shown": (
        lambda: [*STORY[:REPLY], Failed(error=ERROR, partial=AssistantMessage((Text("x"),)))],
        "that was shown of a turn that broke off",
    ),
    "no event": (list, "at least one event"),
    "no Asked": (lambda: dropped(0), "a run begins with `Asked`"),
    "Asked twice": (lambda: put(1, of(0)), "`Asked` comes first and once"),
    "Asked late": (lambda: put(END, of(0)), "`Asked` comes first and once"),
    "Repaired late": (lambda: put(REPLY + 1, Repaired(index=0, what="x")), "right after `Asked`"),
    "no ending": (lambda: STORY[:-1], "the last event is `Ended` or `Failed`"),
    "two endings": (lambda: [*STORY, STORY[-1]], "nothing follows an ending"),
    "Failed after Ended": (lambda: [*STORY, Failed(error=ERROR)], "nothing follows an ending"),
    "a delta after the ending": (lambda: [*STORY, TextDelta(turn=4, text="x")], "nothing follows an ending"),
    "an ending in the middle": (lambda: put(DONE, Ended(stop_reason="cancelled")), "nothing follows an ending"),
    "resumed after the end": (lambda: [*STORY, Resumed()], "is over"),
    "resumed in the middle": (lambda: put(DONE, Resumed()), "`Resumed` comes first or after an ending"),
    "Resumed left out": (lambda: dropped(first(Resumed)), "nothing follows an ending"),
    "a delta lost": (lambda: dropped(DELTA), "text deltas of a turn come to its text"),
    "a delta twice": (lambda: put(DELTA, of(DELTA)), "text deltas of a turn come to its text"),
    "deltas in another order": (
        lambda: [*STORY[:DELTA], of(DELTA + 1), of(DELTA), *STORY[DELTA + 2 :]],
        "text deltas of a turn come to its text",
    ),
    "a delta of another turn": (lambda: changed(DELTA, turn=2), "turns are counted from 1"),
    "a delta of a turn that is over": (lambda: put(REPLY + 1, TextDelta(turn=1, text="x")), "turns are counted from 1"),
    "a delta of attempt 0": (lambda: changed(DELTA, attempt=0), "attempts are counted from 1"),
    "a delta of a failed attempt": (lambda: put(RETRY + 1, TextDelta(turn=2, text="x")), "attempt 1 has failed"),
    "an attempt shown and not discarded": (lambda: put(RETRY, TextDelta(turn=2, text="x")), "discarded before another begins"),
    "a call shown and not in the reply": (
        lambda: put(REPLY, ToolCallDelta(turn=1, position=2, name="look", arguments="{}")),
        "the reply has no such call",
    ),
    "a call in the reply and not shown": (lambda: dropped(CALL_DELTA + 1), "was not shown"),
    "a call shown with other arguments": (lambda: changed(CALL_DELTA, arguments="{}"), "come to its arguments"),
    "calls shown out of order": (lambda: dropped(CALL_DELTA), "in the order of their positions"),
    "a reply lost": (lambda: dropped(REPLY), "has no call 0 that may run|turn"),
    "a reply twice": (lambda: put(REPLY + 1, of(REPLY)), "turns are counted from 1"),
    "a reply of another turn": (lambda: changed(REPLY, turn=2), "turns are counted from 1"),
    "a reply of another attempt": (lambda: changed(REPLY, attempt=2), "discarded before another begins"),
    "a reply with another text": (
        lambda: changed(REPLY, message=AssistantMessage((Text("No."), *of(REPLY).message.calls))),
        "text deltas of a turn come to its text",
    ),
    "an attempt that failed twice": (lambda: put(RETRY, of(RETRY)), "has failed already"),
    "a retry of another turn": (lambda: changed(RETRY, turn=3), "turns are counted from 1"),
    "a retry that waits backwards": (lambda: changed(RETRY, wait_s=-1.0), "a wait is not negative"),
    "discarding what was not shown": (lambda: put(RETRY + 1, Discarded(turn=2, attempt=1)), "nothing of attempt 1 was shown"),
    "discarding twice": (
        lambda: put(RETRY, TextDelta(turn=2, text="x"), Discarded(turn=2, attempt=1), Discarded(turn=2, attempt=1)),
        "is void already",
    ),
    "going on with what is void": (
        lambda: put(RETRY, TextDelta(turn=2, text="x"), Discarded(turn=2, attempt=1), TextDelta(turn=2, text="y")),
        "attempt 1 is void",
    ),
    "prompted before a reply": (lambda: put(1, Prompted(message=UserMessage("x"), why="reasoning_limit")), "comes after a reply"),
    "omitted in another turn": (lambda: put(1, Omitted(turn=3, model="m", what="x", why="y")), "turns are counted from 1"),
    "a call started before its reply": (lambda: put(1, of(START)), "turn replied last|has no call"),
    "a call started twice": (lambda: put(START + 1, of(START)), "call 0 has started already"),
    "a call started after it finished": (lambda: put(DONE + 1, of(START)), "call 0 has its result already"),
    "a call that nobody made": (lambda: changed(START, position=7), "has no call 7"),
    "a call of another turn": (lambda: changed(START, turn=2), "those of the turn replied last"),
    "a call by another id": (lambda: changed(START, call_id="other"), "it names another call"),
    "a call of another tool": (lambda: changed(START, name="write"), "it names another call"),
    "a call with other arguments": (lambda: changed(START, arguments='{"what": "z"}'), "runs with the model's arguments"),
    "a result lost": (lambda: dropped(DONE), "call 0 has none|every call has its result"),
    "a result twice": (lambda: put(DONE + 1, of(DONE)), "call 0 has its result already"),
    "a result of another call": (lambda: changed(DONE, position=1), "the result of another call"),
    "a refusal of what ran": (lambda: changed(DONE, refused="failures"), "so it cannot be refused"),
    "progress before the start": (lambda: put(START, ToolProgress(turn=1, position=0, text="x")), "has not started"),
    "progress after the result": (lambda: put(DONE + 1, ToolProgress(turn=1, position=0, text="x")), "has its result already"),
    "a retry of a tool that did not start": (
        lambda: put(START, ToolRetried(turn=1, position=0, attempt=1, error=ERROR, wait_s=0.0)),
        "has not started",
    ),
    "waiting for nobody": (lambda: [*STORY[:DONE], Ended(stop_reason="waiting_approval")], "`ApprovalRequested` comes before"),
    "asked twice": (lambda: put(ASK, of(ASK)), "waits already"),
    "asked about another call": (lambda: changed(ASK, position=1), "as the model wrote it"),
    "asked about what ran": (
        lambda: put(DONE, ApprovalRequested(turn=1, position=0, pending=of(ASK).pending)),
        "has its result already|has started already",
    ),
    "asked about what has a result": (
        lambda: put(DONE + 1, ApprovalRequested(turn=1, position=0, pending=of(ASK).pending)),
        "call 0 has its result already",
    ),
    "an answer to nothing": (lambda: changed(ANSWER, position=1), "nobody was asked"),
    "an answer for another call": (lambda: changed(ANSWER, call_id="other"), "an answer names the call that waits"),
    "started while another waits": (
        lambda: put(WAIT, ToolStarted(turn=2, position=1, call_id="call_1", name="look", arguments=json.dumps({"what": "c"}))),
        "no call of a turn starts while call 0 waits",
    ),
    "started before it was answered": (
        lambda: dropped(first(ApprovalAnswered, 1)),
        "no call of a turn starts while call 2 waits",
    ),
    "ended with a call open": (lambda: [*STORY[:DONE], Ended(stop_reason="end")], "when every call has its result"),
    "stopped with a call open": (lambda: [*STORY[:DONE], Ended(stop_reason="max_turns")], "when every call has its result"),
    "an end without a reply": (lambda: [STORY[0], Ended(stop_reason="end")], "has a reply"),
    "an end with half a turn": (
        lambda: [*STORY[:-1], Ended(stop_reason="end", partial=AssistantMessage((Text("x"),)))],
        "no partial turn",
    ),
    "a result of what waits": (
        lambda: put(WAIT, ToolFinished(turn=2, position=0, result=ToolMessage("call_0", "write", "wrote 1"))),
        "call 0 waits for a person",
    ),
    "a retry of an attempt before": (lambda: changed(RETRY, attempt=0), "attempts are counted from 1"),
    "a reply of nothing but an empty message": (
        lambda: changed(0, messages=(*of(0).messages, AssistantMessage(()))),
        "valid after",
    ),
    "the model asked before the results": (
        lambda: put(DONE, TextDelta(turn=2, text="x")),
        "the model is asked again when every call has its result",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_it_finds_what_is_broken(name: str) -> None:
    made, rule = MUTATIONS[name]
    with pytest.raises(BrokenEvents, match=rule) as raised:
        check_events(made())
    assert raised.value.rule in str(raised.value)
    assert 0 <= raised.value.index <= len(STORY) + 1


def test_every_rule_of_the_checker_is_broken_by_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that no mutation breaks might as well not be there."""
    source = Path(grammar.__file__).read_text(encoding="utf-8")
    checker = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "_Checker")
    rules = {
        (node.lineno, node.end_lineno or node.lineno)
        for method in checker.body
        if isinstance(method, ast.FunctionDef) and method.name != "_require"
        for node in ast.walk(method)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("_require", "_broken")
    }
    broken: set[int] = set()
    raising = grammar._Checker._broken

    def noted(self: Any, rule: str) -> Any:
        frame = sys._getframe(1)
        broken.add((frame.f_back if frame.f_code.co_name == "_require" and frame.f_back else frame).f_lineno)
        raising(self, rule)

    monkeypatch.setattr(grammar._Checker, "_broken", noted)
    for made, _ in MUTATIONS.values():
        with pytest.raises(BrokenEvents):
            check_events(made())
    with pytest.raises(BrokenEvents):
        check_events(STORY, journal=True)
    lines = source.splitlines()
    unbroken = [first for first, last in sorted(rules) if not any(first <= line <= last for line in broken)]
    assert not [lines[n - 1].strip() for n in unbroken]


def test_it_names_the_index() -> None:
    with pytest.raises(BrokenEvents) as raised:
        check_events(put(DONE + 1, of(DONE)))
    assert (raised.value.index, str(raised.value)) == (
        DONE + 1,
        f"event {DONE + 1} (ToolFinished): call 0 has its result already",
    )


def test_calls_of_a_turn_that_was_cut_do_not_run() -> None:
    cut = [*STORY[:REPLY], replace(STORY[REPLY], finish="length"), *STORY[REPLY + 1 :]]
    with pytest.raises(BrokenEvents, match="no call 0 that may run"):
        check_events(cut)


def test_a_journal_holds_no_deltas() -> None:
    with pytest.raises(BrokenEvents, match="a journal holds no deltas"):
        check_events(STORY, journal=True)


def test_every_single_event_left_out_or_doubled_is_noticed() -> None:
    """But for those whose absence says nothing: a retry in silence, a start of what was then refused, a question asked later."""
    for index, event in enumerate(STORY):
        if isinstance(event, Retried | ToolStarted) or index == first(ApprovalRequested, 1):
            continue
        with pytest.raises(BrokenEvents):
            check_events(dropped(index))
    for index, event in enumerate(STORY):
        with pytest.raises(BrokenEvents):
            check_events(put(index, event))


def test_a_run_that_only_asks() -> None:
    assert isinstance(STORY[0], Asked)
    check_events([STORY[0], Ended(stop_reason="cancelled")])
    check_events([STORY[0], Failed(error=ERROR)])
    assert isinstance(of(DONE), ToolFinished)
