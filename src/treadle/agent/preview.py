"""The request that a run would send next, without sending it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from treadle.core.plan import Plan
from treadle.core.state import apply
from treadle.core.step import CallModel, next_step
from treadle.errors import UsageError
from treadle.policy.compaction import Room, Summary, local_summary, sliding_window
from treadle.policy.context import ContextPolicy
from treadle.values.messages import Message
from treadle.values.outgoing import HttpRequest, said_by
from treadle.values.ports import Driver
from treadle.values.state import State

__all__ = ["next_request", "without_models"]


async def next_request(plan: Plan, state: State, driver: Driver | None) -> HttpRequest:
    """What the loop would send from this state. The way there is the loop's own, up to the sending.

    Args:
        driver: One of the plan's; by default the one whose turn it is.

    Raises:
        UsageError: The run would not call a model next, or the driver cannot say what it sends.
        ModelError: The driver looks for its server, and there is none; or the conversation does not fit.
    """
    step = _step(plan, state, driver)
    chosen = plan.drivers[step.driver]
    try:
        async with chosen.connect() as connection:
            while True:
                request = plan.request(state, step)
                facts = await plan.context.before(state, request, step.driver)
                if not facts:
                    return said_by(connection, request, model=chosen.model)
                for fact in facts:
                    state = apply(state, fact)
                step = _step(plan, state, driver)
    except _WouldAsk:
        raise UsageError(
            f"this conversation is too long for {chosen.model}, and would first be summed up in a way that may ask a model",
            hint="Only then is the next request known; with compaction=local_summary it can be told.",
        ) from None


def _step(plan: Plan, state: State, driver: Driver | None) -> CallModel:
    step = next_step(state, plan.limits, plan.after_answer)
    if not isinstance(step, CallModel):
        raise UsageError(
            "the next step of this run is no model call",
            hint="Tool calls come first, or the run has ended: resume it, or ask anew.",
        )
    if driver is None:
        return step
    places = [place for place, each in enumerate(plan.drivers) if each is driver]
    if not places:
        raise UsageError(f"{driver.model} is no driver of this agent", hint="Give agent.driver or one of agent.fallback.")
    return replace(step, driver=places[0])


def without_models(context: ContextPolicy) -> ContextPolicy:
    """The same policy, except that it refuses where it might ask a model for a summary."""
    return context if context.compaction in (local_summary, sliding_window) else replace(context, compaction=_refused)


class _WouldAsk(BaseException):
    """Not an `Exception`: those are a compaction's own failures, for which `local_summary` stands in."""


async def _refused(dropped: Sequence[Message], room: Room) -> Summary | None:
    raise _WouldAsk
