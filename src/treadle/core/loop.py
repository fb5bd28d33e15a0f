"""The loop. `next_step` decides, `apply` changes the state, this file acts.

One commit is: journal, then apply, then show. What a watcher saw is already safe on disk, and a run can be carried on from
any journal. Every way out of `drive` has committed exactly one ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from treadle.core.state import apply, replied
from treadle.core.step import CallModel, CallTools, next_step
from treadle.errors import TreadleError
from treadle.values.events import Asked, Ended, ErrorRecord, Event, Fact, Failed, ToolFinished, ToolStarted
from treadle.values.limits import Limits
from treadle.values.messages import AssistantMessage, ToolCall, ToolMessage
from treadle.values.ports import Concurrency, Connection, Driver, Journal, ReplyStream
from treadle.values.request import ModelRequest
from treadle.values.state import RunResult, State

__all__ = ["Loop", "PreparedCall", "Toolbox"]


class PreparedCall(Protocol):
    """A call that may run: its tool exists and its arguments passed every gate."""

    @property
    def concurrency(self) -> Concurrency: ...

    async def run(self) -> ToolMessage:
        """The result. Every failure of the tool is a result too; raises only when cancelled from outside."""
        ...


class Toolbox(Protocol):
    """The tools of a run, and the rules for running them."""

    def prepare(self, call: ToolCall) -> PreparedCall | ToolMessage:
        """What to run, or the result that says why nothing runs."""
        ...

    async def run_in_turn(self, jobs: Sequence[tuple[Concurrency, Callable[[], Awaitable[None]]]]) -> None:
        """Run one turn's jobs, given in call order, as their concurrency allows. None is left running on the way out."""
        ...


class Loop:
    """Carries a run from any state to its ending.

    Args:
        asked: The fact that begins the run; None to carry on a run that has begun.

    Attributes:
        state: The run, as far as it came.
    """

    def __init__(
        self,
        asked: Asked | None,
        state: State,
        *,
        driver: Driver,
        toolbox: Toolbox,
        limits: Limits,
        request: Callable[[State, int], ModelRequest],
        journal: Journal | None = None,
        watch: Callable[[Sequence[Event]], None] | None = None,
    ) -> None:
        self.state = state
        self._asked = asked
        self._driver = driver
        self._toolbox = toolbox
        self._limits = limits
        self._request = request
        self._journal = journal
        self._watch = watch
        self._order = asyncio.Lock()  # parallel tools commit one at a time: journal, state and watchers agree
        self._receiving: ReplyStream | None = None

    async def drive(self) -> None:
        """Take steps until the run has ended.

        Raises:
            TreadleError: The run failed; `error.result` has what came of it. `Failed` is committed.
            asyncio.CancelledError: The task was cancelled. `Ended("cancelled")` is committed.
        """
        try:
            if self._asked is not None:
                await self.commit(self._asked)
            async with self._driver.connect() as connection:
                while step := next_step(self.state, self._limits):
                    match step:
                        case CallModel(turn=turn):
                            await self._call_model(connection, turn)
                        case CallTools(turn=turn):
                            await self._call_tools(step)
                        case Ended():
                            await self.commit(step)
        except asyncio.CancelledError:
            await self._end(Ended(stop_reason="cancelled", partial=self._partial()))
            raise
        except Exception as error:
            await self._end(Failed(error=_record(error), partial=self._partial()))
            if isinstance(error, TreadleError):
                error.result = RunResult.of(self.state)
            raise

    async def commit(self, fact: Fact) -> None:
        """Journal a fact, apply it, show it."""
        if self._journal is None or self.state.ended:
            self._accept(fact)
            return
        async with self._order:
            await self._journal.append(self.state.run_id, fact)
            self._accept(fact)

    def abandon(self) -> None:
        """End the run as cancelled here and now, for a task that will not do it: nothing it does later is accepted."""
        self._accept(Ended(stop_reason="cancelled", partial=self._partial()))

    def _accept(self, fact: Fact) -> None:
        if self.state.ended:
            return
        self.state = apply(self.state, fact)
        if self._watch is not None:
            self._watch((fact,))

    async def _call_model(self, connection: Connection, turn: int) -> None:
        request = self._request(self.state, turn)
        watch = self._watch
        async with connection.open(request) as stream:
            self._receiving = stream
            async for deltas in stream:
                if deltas and watch is not None:
                    watch(deltas)
        await self.commit(replied(stream.reply, turn=turn, attempt=request.attempt))
        self._receiving = None

    async def _call_tools(self, step: CallTools) -> None:
        jobs: list[tuple[Concurrency, Callable[[], Awaitable[None]]]] = []
        for position, open_call in enumerate(step.calls):
            if open_call.result is not None:
                continue
            call = open_call.call
            if open_call.started:
                # Carried on from a journal that ends here: it may have happened, so it is not done again.
                said = "Outcome unknown: the call had started when the run was interrupted. Find out before repeating it."
                prepared = ToolMessage(call.id, call.name, said, is_error=True)
            else:
                prepared = self._toolbox.prepare(call)
            if isinstance(prepared, ToolMessage):
                await self.commit(ToolFinished(turn=step.turn, position=position, result=prepared))
            else:
                jobs.append((prepared.concurrency, self._job(step.turn, position, call, prepared)))
        await self._toolbox.run_in_turn(jobs)

    def _job(self, turn: int, position: int, call: ToolCall, prepared: PreparedCall) -> Callable[[], Awaitable[None]]:
        async def job() -> None:
            await self.commit(
                ToolStarted(turn=turn, position=position, call_id=call.id, name=call.name, arguments=call.arguments)
            )
            result = await prepared.run()
            await self.commit(ToolFinished(turn=turn, position=position, result=result))

        return job

    async def _end(self, ending: Ended | Failed) -> None:
        """Commit an ending unless there is one. It is shown even where the journal cannot take it."""
        if self.state.ended:
            return
        try:
            await self.commit(ending)
        except Exception:  # the first error is the one to tell; a full disk would fail here again
            self._accept(ending)

    def _partial(self) -> AssistantMessage | None:
        """What has arrived of a turn that will not be finished. Its calls were never whole, so they are left out."""
        if self._receiving is None:
            return None
        content = tuple(p for p in self._receiving.reply.message.content if not isinstance(p, ToolCall))
        return AssistantMessage(content) if content else None


def _record(error: Exception) -> ErrorRecord:
    if isinstance(error, TreadleError):
        return ErrorRecord(kind=type(error).__name__, message=error.message, hint=error.hint)
    # Its text may hold anything, a prompt or a key included; the exception itself is raised to the caller.
    return ErrorRecord(
        kind=type(error).__name__,
        message=f"the run failed with {type(error).__name__}",
        hint="The exception that `run` or the iterator raises has the details.",
    )
