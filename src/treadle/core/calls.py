"""A turn's calls: gates, guard, approval, then running those that may, and a result for every one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from itertools import count

from msgspec.structs import replace

from treadle.core.deadline import Deadline
from treadle.core.plan import Plan
from treadle.core.step import CallTools
from treadle.policy import guard
from treadle.policy.approval import changed_since, edited_note, gate, result_of_decision
from treadle.policy.recovery import retry_tool
from treadle.values.events import Fact, ToolFinished, ToolProgress, ToolStarted
from treadle.values.messages import ToolMessage
from treadle.values.ports import CallContext, Job, PreparedCall
from treadle.values.state import OpenCall, State
from treadle.values.toolcalls import Deny, Outcome

__all__ = ["Calls"]


class Calls:
    """Gets results for the calls of one turn, or asks a person about them.

    Args:
        state: The run as it is now.
        commit: Journals, applies and shows a fact.
    """

    def __init__(
        self,
        step: CallTools,
        plan: Plan,
        state: Callable[[], State],
        commit: Callable[[Fact], Awaitable[None]],
        deadline: Deadline,
    ) -> None:
        self._step = step
        self._plan = plan
        self._state = state
        self._commit = commit
        self._deadline = deadline
        self._retries_under_way = 0

    async def get_results(self) -> None:
        """Commit a result for every call; or, while one of them has to wait for a person, what they are asked, and start none."""
        jobs: list[Job] = []
        asked: list[Fact] = []
        for position, open_call in enumerate(self._step.calls):
            if open_call.result is not None:
                continue
            prepared, refused = self._prepare(open_call)
            if isinstance(prepared, ToolMessage):
                await self._finish(position, open_call, Outcome(result=prepared), refused=refused)
                continue
            asked += await gate(open_call, prepared, self._plan.approvals, turn=self._step.turn, position=position)
            jobs.append(Job(prepared.concurrency, prepared.group, partial(self._run, position, open_call, prepared)))
        for fact in asked:
            await self._commit(fact)
        if jobs and not asked:
            await self._plan.toolbox.run_in_turn(jobs)

    def _prepare(self, open_call: OpenCall) -> tuple[PreparedCall | ToolMessage, guard.Refused | None]:
        """What to run, or the result that says why nothing runs; and who refused it, if somebody did."""
        call, limits = open_call.to_run, self._plan.limits
        if (result := result_of_decision(open_call, max_chars=limits.tool_result_chars)) is not None:
            return result, "denied" if isinstance(open_call.decision, Deny) else None
        prepared = self._plan.toolbox.prepare(call)
        if open_call.started and (isinstance(prepared, ToolMessage) or not prepared.repeatable):
            # Carried on from a journal that ends here: it may have happened, so it is not done again.
            said = "Outcome unknown: the call had started when the run was interrupted. Find out before repeating it."
            return ToolMessage(call.id, call.name, said, is_error=True), None
        refused = guard.refusal(self._state().progress, call, limits.guard, turn=self._step.turn)
        if refused is not None and open_call.decision is None:  # what was decided on is not for the guard to refuse
            return ToolMessage(call.id, call.name, refused[1], is_error=True), refused[0]
        return prepared, None

    async def _run(self, position: int, open_call: OpenCall, prepared: PreparedCall) -> None:
        turn, call = self._step.turn, open_call.to_run
        # Here and not before: an earlier call of this turn may have changed what was shown.
        if (changed := await changed_since(open_call, prepared)) is not None:
            await self._finish(position, open_call, Outcome(result=changed))
            return
        changes = prepared.concurrency != "read_only"
        await self._commit(
            ToolStarted(turn=turn, position=position, call_id=call.id, name=call.name, arguments=call.arguments, changes=changes)
        )
        with_person = prepared.concurrency == "interactive"
        context = CallContext(
            run_id=self._state().run_id,
            turn=turn,
            position=position,
            deadline=math.inf if with_person else self._deadline.at,
            messages=lambda: (*self._state().originals, *self._state().messages),
            report=partial(self._report, position),
        )
        with self._deadline.paused() if with_person else nullcontext():
            outcome = await self._outcome(position, prepared, context)
        outcome = replace(outcome, result=edited_note(open_call, outcome.result))
        await self._finish(position, open_call, outcome)

    async def _outcome(self, position: int, prepared: PreparedCall, context: CallContext) -> Outcome:
        """How the call came out in the end, called again as often as its tool and the run's budget allow."""
        for attempt in count(1):
            outcome = await prepared.run(context)
            again = retry_tool(
                outcome,
                prepared,
                self._plan.recovery,
                retries=self._state().retries + self._retries_under_way,
                turn=self._step.turn,
                position=position,
                attempt=attempt,
            )
            if again is None:
                return outcome
            self._retries_under_way += 1  # a journal may take its time, and other calls of the turn ask meanwhile
            try:
                await self._commit(again)
            finally:
                self._retries_under_way -= 1
            await asyncio.sleep(again.wait_s)
        raise AssertionError("a count has no end")

    async def _report(self, position: int, text: str, fraction: float | None) -> None:
        await self._commit(ToolProgress(turn=self._step.turn, position=position, text=text, fraction=fraction))

    async def _finish(
        self, position: int, open_call: OpenCall, outcome: Outcome, *, refused: guard.Refused | None = None
    ) -> None:
        turn, result = self._step.turn, outcome.result
        if not refused:
            result = guard.note(self._state().progress, open_call.to_run, result, self._plan.limits.guard, turn=turn)
        await self._commit(
            ToolFinished(
                turn=turn,
                position=position,
                result=result,
                refused=refused,
                details=outcome.details,
                warning=outcome.warning,
            )
        )
