"""The grammar of a run's events: what may follow what, and what they must come to.

The rules are the laws 1, 3, 5 and 6 of docs/laws.md, and what `treadle.values.events` says of each event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from treadle.core.state import apply, begin
from treadle.errors import HistoryError
from treadle.testing.errors import BrokenEvents
from treadle.values.events import (
    ApprovalAnswered,
    ApprovalRequested,
    Asked,
    Delta,
    Discarded,
    Ended,
    Event,
    Fact,
    Failed,
    Omitted,
    Prompted,
    Repaired,
    Replied,
    Resumed,
    Retried,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolFinished,
    ToolProgress,
    ToolRetried,
    ToolStarted,
)
from treadle.values.history import check_history
from treadle.values.messages import ToolCall
from treadle.values.state import State
from treadle.values.toolcalls import Edit

__all__ = ["check_events"]

_NOT_RUN = ("length", "refused", "unknown")
"""Reasons to stop after which a turn's calls do not run (law 2)."""

_RESUMABLE = ("waiting_approval", "cancelled", "deadline")


def check_events(events: Iterable[Event], *, whole: bool = True, journal: bool = False) -> None:
    """Pass if a run's events keep their grammar.

        async with agent.stream("Hi") as run:
            events = [event async for event in run]
        check_events(events)

    Events may be those of one stream, or of several segments of one run in a row. Those of a resumed stream begin with `Resumed`.

    Args:
        whole: They must end with an ending. False for a reader who left early.
        journal: They are facts alone, as a journal has them or as `run` commits them: no deltas are expected, and a segment may have
            broken off without an ending.

    Raises:
        BrokenEvents: With the index of the event at which it shows, and the rule. An `AssertionError`.
    """
    checker = _Checker(journal=journal)
    count = 0
    for event in events:
        checker.add(event)
        count += 1
    if not count:
        raise BrokenEvents(0, "a run has at least one event", None)
    if whole and not checker.ended:
        raise BrokenEvents(count, "the last event is `Ended` or `Failed`", None)


class _Call:
    """A call of the turn under way, as far as it has come. What is not known of it is None: its turn was before these events."""

    def __init__(self, call: ToolCall | None) -> None:
        self.call = call
        self.arguments = call.arguments if call is not None else None
        self.started = False
        self.broken_off = False  # it had started when a segment ended, and whether it took effect is unknown
        self.finished = False
        self.waits = False
        self.asked_before = False  # in an earlier segment, and not answered


class _Checker:
    def __init__(self, *, journal: bool) -> None:
        self._journal = journal
        self._index = 0
        self._event: Event | None = None
        self._began = False
        self.ended = False
        self._ending: Event | None = None
        self._state: State | None = None  # what the facts come to; None where they do not begin with `Asked`
        self._turn: int | None = None  # turns replied; None until it is known
        self._calls: dict[int, _Call] = {}
        self._knows_calls = True  # False in a resumed stream, until its first reply
        self._attempt = 0  # the highest attempt seen of the turn under way
        self._over: set[int] = set()  # attempts of it that failed, and are not gone on from
        self._void: set[int] = set()  # attempts of it that were discarded
        self._said: dict[int, str] = {}  # text shown of it, by attempt
        self._shown: set[int] = set()  # attempts that showed anything
        self._arguments: dict[tuple[int, int], str] = {}  # of calls shown, by attempt and position

    def add(self, event: Event) -> None:
        self._event = event
        if self.ended and not isinstance(event, Resumed):
            self._broken("nothing follows an ending but `Resumed`")
        if not self._began and not isinstance(event, Asked | Resumed):
            self._broken("a run begins with `Asked`, a resumed one with `Resumed`")
        match event:
            case TextDelta() | ThinkingDelta() | ToolCallDelta():
                self._delta(event)
            case Asked() | Repaired() | Resumed():
                self._beginning(event)
            case Replied():
                self._replied(event)
            case Retried() | Discarded() | Omitted() | Prompted():
                self._between(event)
            case ApprovalRequested() | ApprovalAnswered():
                self._approval(event)
            case ToolStarted() | ToolProgress() | ToolRetried() | ToolFinished():
                self._tool(event)
            case Ended() | Failed():
                self._end(event)
            case _:
                pass  # an event that a newer version has
        if isinstance(event, Fact):
            self._fold(event)
        self._began = True
        self._index += 1

    def _broken(self, rule: str) -> NoReturn:
        raise BrokenEvents(self._index, rule, self._event)

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            self._broken(rule)

    def _beginning(self, event: Asked | Repaired | Resumed) -> None:
        if isinstance(event, Asked):
            self._require(not self._began, "`Asked` comes first and once")
            self._turn = 0
            self._state = begin(event)
            self._check_history()
        elif isinstance(event, Repaired):
            self._require(self._turn == 0 and not self._attempt and not self._calls, "`Repaired` comes right after `Asked`")
        else:
            self._resumed()

    def _resumed(self) -> None:
        if not self._began:
            self._knows_calls = False
        elif not self.ended:
            self._require(self._journal, "`Resumed` comes first or after an ending")
        elif isinstance(self._ending, Ended):
            self._require(self._ending.stop_reason in _RESUMABLE, f"a run that ended as `{self._ending.stop_reason}` is over")
        self.ended = False
        self._void |= self._shown  # what was shown of a turn that broke off belongs to the segment before
        for call in self._calls.values():
            call.broken_off = call.broken_off or (call.started and not call.finished)
            call.started = False
            call.asked_before, call.waits = call.waits or call.asked_before, False

    def _delta(self, event: Delta) -> None:
        self._require(not self._journal, "a journal holds no deltas")
        self._next_turn(event.turn)
        self._attempted(event.attempt)
        self._shown.add(event.attempt)
        if isinstance(event, TextDelta):
            self._said[event.attempt] = self._said.get(event.attempt, "") + event.text
        elif isinstance(event, ToolCallDelta):
            key = (event.attempt, event.position)
            self._arguments[key] = self._arguments.get(key, "") + event.arguments
            in_order = event.position == 0 or (event.attempt, event.position - 1) in self._arguments
            self._require(in_order, "calls are shown in the order of their positions")

    def _next_turn(self, turn: int) -> None:
        """Something of the turn under way: the last one has been replied, and all its calls have results."""
        if self._turn is None:
            self._turn = turn - 1
        self._require(turn == self._turn + 1, f"turns are counted from 1 and follow each other: this is turn {self._turn + 1}")
        for position, call in self._calls.items():
            self._require(call.finished, f"the model is asked again when every call has its result, and call {position} has none")

    def _attempted(self, attempt: int) -> None:
        self._require(attempt not in self._over, f"attempt {attempt} has failed, and nothing of it comes any more")
        self._require(attempt not in self._void, f"attempt {attempt} is void, and nothing of it comes any more")
        self._require(attempt >= max(1, self._attempt), "attempts are counted from 1 and do not go back")
        for other in sorted(self._shown - self._void - {attempt}):
            self._broken(f"attempt {other} was shown, so it is discarded before another begins")
        self._attempt = attempt

    def _replied(self, event: Replied) -> None:
        self._next_turn(event.turn)
        self._attempted(event.attempt)
        if not self._journal:
            shown = self._said.get(event.attempt, "")
            self._require(
                shown == event.message.text, f"the text deltas of a turn come to its text: {_both(shown, event.message.text)}"
            )
            self._check_arguments(event)
        runs = event.finish not in _NOT_RUN
        self._calls = {position: _Call(call) for position, call in enumerate(event.message.calls)} if runs else {}
        self._knows_calls = True
        self._turn = event.turn
        self._forget_attempts()

    def _check_arguments(self, event: Replied) -> None:
        """The calls that were shown are those of the reply, if the reply is whole."""
        if event.finish in _NOT_RUN:
            return
        shown = {position: text for (attempt, position), text in self._arguments.items() if attempt == event.attempt}
        for position in shown:
            self._require(position < len(event.message.calls), f"call {position} was shown, and the reply has no such call")
        for position, call in enumerate(event.message.calls):
            text = shown.get(position)
            self._require(text is not None, f"call {position} of the reply was not shown")
            self._require(
                text == call.arguments,
                f"the deltas of call {position} come to its arguments: {_both(text or '', call.arguments)}",
            )

    def _forget_attempts(self) -> None:
        self._attempt = 0
        for each in (self._over, self._void, self._shown):
            each.clear()
        self._said.clear()
        self._arguments.clear()

    def _between(self, event: Retried | Discarded | Omitted | Prompted) -> None:
        if isinstance(event, Prompted):
            turn = None if self._turn is None else self._turn + 1
            self._require(turn != 1, "`Prompted` comes after a reply")
        else:
            turn = event.turn
        if turn is not None:
            self._next_turn(turn)
        if isinstance(event, Retried):
            self._require(event.attempt not in self._over, f"attempt {event.attempt} has failed already")
            self._require(event.attempt >= max(1, self._attempt), "attempts are counted from 1 and do not go back")
            self._require(event.wait_s >= 0, "a wait is not negative")
            self._attempt = event.attempt
            if event.continues is None:
                self._over.add(event.attempt)
        elif isinstance(event, Discarded):
            self._require(event.attempt not in self._void, f"attempt {event.attempt} is void already")
            if not self._journal:
                self._require(event.attempt in self._shown, f"nothing of attempt {event.attempt} was shown")
            self._void.add(event.attempt)

    def _of_this_turn(self, turn: int, position: int) -> _Call:
        """The call that an event is about."""
        if not self._knows_calls:
            if self._turn is None:
                self._turn = turn
            self._calls.setdefault(position, _Call(None))
        self._require(turn == self._turn, f"calls are those of the turn replied last, {self._turn}")
        call = self._calls.get(position)
        if call is None:
            self._broken(f"the reply has no call {position} that may run")
        return call

    def _approval(self, event: ApprovalRequested | ApprovalAnswered) -> None:
        call = self._of_this_turn(event.turn, event.position)
        self._require(not call.finished, f"call {event.position} has its result already")
        self._require(not call.started, f"call {event.position} has started already")
        if isinstance(event, ApprovalRequested):
            pending = event.pending
            self._require(not call.waits, f"call {event.position} waits already")
            if call.call is not None:
                same = (pending.call_id, pending.name, pending.arguments) == (call.call.id, call.call.name, call.call.arguments)
                self._require(same, "what a person is asked about is the call as the model wrote it")
            call.waits = True
            return
        known = call.waits or call.asked_before or not self._knows_calls
        self._require(known, f"nobody was asked about call {event.position}")
        if call.call is not None:
            self._require(event.call_id == call.call.id, "an answer names the call that waits")
        call.waits = call.asked_before = False
        call.arguments = event.decision.arguments if isinstance(event.decision, Edit) else call.arguments

    def _tool(self, event: ToolStarted | ToolProgress | ToolRetried | ToolFinished) -> None:
        call = self._of_this_turn(event.turn, event.position)
        self._require(not call.finished, f"call {event.position} has its result already")
        if isinstance(event, ToolStarted):
            self._require(not call.started, f"call {event.position} has started already")
            for position, other in self._calls.items():
                self._require(not (other.waits or other.asked_before), f"no call of a turn starts while call {position} waits")
            if call.call is not None:
                self._require((event.call_id, event.name) == (call.call.id, call.call.name), "it names another call")
                self._require(event.arguments == call.arguments, "a call runs with the model's arguments, or with a person's")
            call.started = True
        elif isinstance(event, ToolFinished):
            if event.refused is not None:
                self._require(not call.started, f"call {event.position} has started, so it cannot be refused")
            if call.call is not None:
                same = (event.result.call_id, event.result.name) == (call.call.id, call.call.name)
                self._require(same, "it is the result of another call")
            self._require(not call.waits, f"call {event.position} waits for a person")
            call.finished = True
        else:
            self._require(call.started, f"call {event.position} has not started")

    def _end(self, event: Ended | Failed) -> None:
        waiting = [position for position, call in self._calls.items() if call.waits]
        unfinished = [position for position, call in self._calls.items() if not call.finished]
        if isinstance(event, Ended):
            if event.stop_reason == "waiting_approval":
                asked = bool(waiting) or not self._knows_calls
                self._require(asked, "`ApprovalRequested` comes before `Ended(waiting_approval)`")
            elif event.stop_reason not in _RESUMABLE:
                self._require(not unfinished, f"a run ends as `{event.stop_reason}` when every call has its result: {unfinished}")
                if self._shown - self._void:
                    self._broken("what was shown of a turn comes to a reply, or the run ends as something else")
                if event.stop_reason == "end":
                    self._require(self._turn != 0, "a run that ended as `end` has a reply")
                    self._require(event.partial is None, "a run that ended as `end` has no partial turn")
        if event.partial is not None and not self._journal:
            shown = "".join(self._said.get(attempt, "") for attempt in sorted(self._shown - self._void))
            same = shown == event.partial.text
            self._require(same, f"the text that was shown of a turn that broke off is kept: {_both(shown, event.partial.text)}")
        self.ended = True
        self._ending = event

    def _fold(self, fact: Fact) -> None:
        if self._state is None or isinstance(fact, Asked):
            return
        self._state = apply(self._state, fact)
        self._check_history()

    def _check_history(self) -> None:
        assert self._state is not None
        try:
            check_history(self._state.messages)
        except HistoryError as error:
            self._broken(f"the conversation is valid after every fact: {error.message}")


def _both(shown: str, said: str) -> str:
    same = next((n for n, (a, b) in enumerate(zip(shown, said, strict=False)) if a != b), min(len(shown), len(said)))
    start = max(0, same - 20)
    return f"{shown[start : same + 40]!r} was shown, and it is {said[start : same + 40]!r} (from character {start})"
