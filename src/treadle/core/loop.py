"""The loop. `next_step` decides, `apply` changes the state, this file acts.

One commit is: journal, then apply, then show. What a watcher saw is already safe on disk, and a run can be carried on from
any journal. Every way out of `drive` has committed exactly one ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from msgspec.structs import replace

from treadle.core.calls import Calls
from treadle.core.deadline import Deadline
from treadle.core.plan import Plan
from treadle.core.state import apply
from treadle.core.step import CallModel, CallTools, next_step
from treadle.errors import ContextOverflow, ModelError, OutputInvalid, TreadleError
from treadle.policy.meter import Meter
from treadle.policy.prefix import told
from treadle.policy.recovery import decide
from treadle.store.append import Writer
from treadle.values.events import (
    Discarded,
    Ended,
    ErrorRecord,
    Event,
    Fact,
    Failed,
    Replied,
    Retried,
)
from treadle.values.messages import AssistantMessage, ToolCall, joined
from treadle.values.ports import Connection, ReplyStream
from treadle.values.request import ModelRequest
from treadle.values.state import RunResult, State

__all__ = ["Loop"]


class Loop:
    """Carries a run from any state to its ending.

    Args:
        first: Facts that begin the run; none to carry on a run that has begun.

    Attributes:
        state: The run, as far as it came.
        ended: This segment of the run has its ending. (The state of a run that is resumed has the one before, at first.)
        failure: What it failed with, once it has.
    """

    ended = False
    failure: BaseException | None = None

    def __init__(
        self, state: State, plan: Plan, first: Sequence[Fact] = (), watch: Callable[[Sequence[Event]], None] | None = None
    ) -> None:
        self.state = state
        self._plan = plan
        self._first = first
        self._watch = watch
        self._writer = Writer(plan.journal, state.run_id, self._accept)
        self._connections: dict[int, Connection] = {}
        self._receiving: ReplyStream | None = None
        self._result: RunResult | None = None

    async def drive(self) -> None:
        """Take steps until the run has ended.

        Raises:
            TreadleError: The run failed; `error.result` has what came of it. `Failed` is committed.
            asyncio.CancelledError: The task was cancelled. `Ended("cancelled")` is committed.
        """
        deadline = Deadline(self._plan.limits.deadline_s - self.state.elapsed_s)
        try:
            async with deadline.timeout, AsyncExitStack() as held:
                held.push_async_callback(self._plan.toolbox.settle)  # last out: connections are closed by then
                held.push_async_callback(self._writer.settle)
                for fact in self._first:
                    await self._writer.append(fact)
                while step := next_step(self.state, self._plan.limits, self._plan.after_answer):
                    if deadline.is_over and not isinstance(step, Ended):
                        step = Ended(stop_reason="deadline")
                    if isinstance(step, CallModel):
                        await self._call_model(step, held)
                    elif isinstance(step, CallTools):
                        await Calls(step, self._plan, lambda: self.state, self._writer.append, deadline).get_results()
                    elif isinstance(step, OutputInvalid):
                        raise step
                    elif isinstance(step, Ended) and step.stop_reason == "waiting_approval":
                        await self._writer.append(replace(step, elapsed_s=deadline.elapsed_s))
                    else:
                        await self._writer.append(step)
        except asyncio.CancelledError:
            await self._writer.end(Ended(stop_reason="cancelled", partial=self._partial()))
            raise
        except BaseException as error:
            if isinstance(error, TimeoutError) and deadline.timeout.expired():
                await self._writer.end(Ended(stop_reason="deadline", partial=self._partial()))
                return
            self.failure = error
            try:
                await self._writer.end(Failed(error=ErrorRecord.of(error), partial=self._partial()))
            finally:
                if isinstance(error, TreadleError):
                    error.result = self.result
            raise

    @property
    def result(self) -> RunResult:
        """What has come of the run so far. The same object as long as nothing happens."""
        if self._result is None or self._result.state is not self.state:
            self._result = RunResult.of(self.state, self._plan.value_of(self.state))
        return self._result

    def abandon(self) -> None:
        """End the run as cancelled at once, for a task that will not do it: nothing it does later is accepted."""
        self._writer.close(Ended(stop_reason="cancelled", partial=self._partial()))

    def _accept(self, fact: Fact) -> None:
        if self.ended:
            return
        self.ended = isinstance(fact, Ended | Failed)
        self.state = apply(self.state, fact)
        if isinstance(fact, Replied | Retried | Discarded):
            self._receiving = None  # it is a fact now, or void
        if self._watch is not None:
            self._watch((fact,))

    async def _call_model(self, step: CallModel, held: AsyncExitStack) -> None:
        driver = self._plan.drivers[step.driver]
        meter = Meter(self._plan.limits, self.state, driver.calibration)
        request = None
        try:
            if step.driver not in self._connections:
                self._connections[step.driver] = await held.enter_async_context(driver.connect())
            request = self._plan.request(self.state, step)  # a driver that had to look for its server has found it by now
            if facts := await self._plan.context.before(self.state, request, step.driver):
                for fact in facts:
                    await self._writer.append(fact)
                return
            if step.wait_s:
                await asyncio.sleep(step.wait_s)
            async with self._connections[step.driver].open(request) as stream:
                self._receiving = stream
                for fact in told(stream, request, driver):
                    await self._writer.append(fact)
                async for deltas in stream:
                    if deltas and self._watch is not None:
                        self._watch(deltas)
                    if deltas and meter.add(deltas):
                        break
            self._plan.context.after_reply(stream.reply.usage, self.state, request, step.driver)
        except ModelError as error:
            await self._recover(error, step, meter, request)
            return
        await self._writer.append(
            meter.replied(stream.reply, turn=step.turn, attempt=step.attempt, continues=self.state.continues)
        )

    async def _recover(self, error: ModelError, step: CallModel, meter: Meter, request: ModelRequest | None) -> None:
        """Do what the policy says about a failed call; raise its error if that is to end the run."""
        planned = None
        if isinstance(error, ContextOverflow) and request is not None:
            planned = self._plan.context.after_overflow(error, self.state, request, step.driver)
        facts = decide(
            error,
            self.state,
            self._plan.recovery,
            attempt=step.attempt,
            shown=self._shown(),
            drivers=self._plan.drivers,
            planned=planned,
            schema=request is not None and request.output is not None,
        )
        if not facts:
            if self.state.attempt:
                error.message += f" (after {self.state.attempt + 1} attempts)"
            raise error
        for fact in facts:
            await self._writer.append(meter.spent(fact) if isinstance(fact, Retried) else fact)

    def _shown(self) -> AssistantMessage | None:
        """What was shown of the turn under way, an earlier attempt that this one extends included."""
        if self._receiving is None:
            return self.state.continues
        message = joined(self.state.continues, self._receiving.reply.message)
        return message if message.content else None

    def _partial(self) -> AssistantMessage | None:
        """What has arrived of a turn that will not be finished. Its calls were never whole, so they are left out."""
        shown = self._shown()
        content = tuple(p for p in shown.content if not isinstance(p, ToolCall)) if shown else ()
        return AssistantMessage(content) if content else None
