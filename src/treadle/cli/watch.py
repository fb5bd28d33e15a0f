"""A run at the command line, from its beginning to an exit code: shown, interrupted, waiting for a person, gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

from treadle.agent.agent import Agent
from treadle.agent.eventloop import own_event_loop
from treadle.agent.run import Run
from treadle.cli.exits import CANCELLED, WAITING, of_error, of_stop_reason
from treadle.cli.interrupts import on_interrupt
from treadle.cli.person import Person, Quit
from treadle.cli.render import Renderer
from treadle.cli.saved import SavedRun
from treadle.cli.text import boxed, exact, pretty_json
from treadle.errors import TreadleError
from treadle.values.events import Ended
from treadle.values.state import RunResult
from treadle.values.toolcalls import Decision, PendingCall

__all__ = ["watch"]

_PREVIEW_ROWS = 30


def watch(
    agent: Agent,
    begin: Callable[[], Run],
    renderer: Renderer,
    *,
    person: Person | None = None,
    saved: SavedRun | None = None,
    same_options: str = "",
) -> int:
    """Run to the end, showing every event and asking the person; the exit code.

    Ctrl-C ends the run; a second one ends the program. What a tool prints goes to standard error, so that it cannot end up in the
    answer or between lines of JSON.

    Args:
        begin: Starts the run, or carries one on.
        person: Who is asked about calls that wait. If nobody is there, the run stops at them.
        saved: Where the run is kept.
        same_options: For the command that carries it on.
    """
    with contextlib.closing(renderer), own_event_loop() as loop:
        while True:
            segment = _Segment(begin, renderer, holds_waiting=person is not None)
            try:
                with contextlib.redirect_stdout(sys.stderr), on_interrupt(loop, segment.stop):
                    result = loop.run_until_complete(segment.watched())
            except TreadleError as error:
                if error.result is None:  # it failed before there was a run to show it
                    raise
                if saved is not None:
                    saved.put(error.result)
                    _note(_how_to_go_on(saved, same_options))
                return of_error(error)
            except KeyboardInterrupt:
                if saved is not None:
                    _note(_how_to_go_on(saved, same_options))
                raise
            if saved is not None:
                saved.put(result)
            assert result.stop_reason is not None  # a failed run raised
            if result.stop_reason != "waiting_approval" or person is None or segment.is_stopped:
                return _ended(result, segment, saved, same_options)
            try:
                decisions = person.decide(result.pending, functools.partial(_check, agent, result))
            except (Quit, KeyboardInterrupt) as left:
                segment.is_stopped = isinstance(left, KeyboardInterrupt)
                return _ended(result, segment, saved, same_options)
            begin = functools.partial(agent.resume_stream, result, decisions)


class _Segment:
    """One stretch of a run: until it has ended, or waits.

    Args:
        holds_waiting: Do not show that it waits: a person is about to be asked.

    Attributes:
        is_stopped: The person wants it to end.
        held: The ending that was not shown.
    """

    def __init__(self, begin: Callable[[], Run], renderer: Renderer, *, holds_waiting: bool) -> None:
        self.is_stopped = False
        self.held: Ended | None = None
        self.renderer = renderer
        self._begin = begin
        self._holds_waiting = holds_waiting
        self._run: Run | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def watched(self) -> RunResult:
        if self.is_stopped:  # before it began
            raise KeyboardInterrupt
        self._run = self._begin()
        async with self._run:
            async for event in self._run:
                if self._holds_waiting and isinstance(event, Ended) and event.stop_reason == "waiting_approval":
                    self.held = event
                else:
                    self.renderer.show(event)
        return self._run.result

    def stop(self) -> None:
        self.is_stopped = True
        if self._run is not None:
            self._stopping = asyncio.ensure_future(self._run.cancel())


def _ended(result: RunResult, segment: _Segment, saved: SavedRun | None, same_options: str) -> int:
    """Say what there is to say after the last event; the exit code."""
    assert result.stop_reason is not None
    if result.stop_reason == "waiting_approval":
        if segment.held is not None:
            segment.renderer.show(segment.held)
        else:  # nobody was asked, so nobody has seen what waits
            _show_pending(result.pending)
        _note(_how_to_go_on(saved, same_options, result.pending if segment.held is None else ()))
        return CANCELLED if segment.is_stopped else WAITING
    if result.state.resumable and saved is not None:
        _note(_how_to_go_on(saved, same_options))
    return of_stop_reason(result.stop_reason)


def _check(agent: Agent, result: RunResult, decisions: Mapping[str, Decision]) -> None:
    agent.resume_stream(result, decisions)  # it is never begun; answers that cannot be are refused right away


def _show_pending(calls: tuple[PendingCall, ...]) -> None:
    one = len(calls) == 1
    _note(f"{len(calls)} call{' waits' if one else 's wait'} for a person. Nothing of {'its' if one else 'their'} turn has run.")
    for call in calls:
        _note(f"\n{exact(call.call_id)}  {exact(call.name)}{'  (a question)' if call.asks == 'question' else ''}")
        for row in boxed(pretty_json(call.arguments) if call.preview is None else call.preview, 110, max_rows=_PREVIEW_ROWS)[0]:
            _note(row.plain)


def _how_to_go_on(saved: SavedRun | None, same_options: str, pending: Sequence[PendingCall] = ()) -> str:
    """The command that carries the run on.

    Args:
        pending: Calls whose answers it has to bring.
    """
    if saved is None:
        return "\nThe run was not saved, so it cannot go on. Next time add --save FILE, or say beforehand who decides: --approve."
    command = f"treadle resume {shlex.quote(str(saved.path))}{same_options}"
    answers = [
        f" --say-call {shlex.quote(call.call_id + '=...')}"
        if call.asks == "question"
        else f" --approve-call {shlex.quote(call.call_id)}"
        for call in pending
    ]
    said = f"\nTo go on:\n\n  {exact(command + ''.join(answers))}\n"
    if any(call.asks == "approval" for call in pending):
        said += "\nIn place of --approve-call: --deny-call ID=REASON or --edit-call ID=JSON; --yes approves all."
    return said


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
