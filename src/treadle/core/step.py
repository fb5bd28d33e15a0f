"""`next_step`: the whole policy of the loop, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from treadle.errors import OutputInvalid
from treadle.policy.guard import stopped
from treadle.policy.meter import ask_for_the_answer
from treadle.values.events import Ended, Prompted
from treadle.values.limits import Limits
from treadle.values.state import OpenCall, State

__all__ = ["CallModel", "CallTools", "Step", "next_step"]


class CallModel(Struct, frozen=True):
    """Ask a model for the turn, after a wait if the attempt before it failed.

    Attributes:
        attempt: The number that its deltas carry.
        driver: 0 is the agent's own model, then the fallbacks.
    """

    turn: int
    attempt: int = 1
    driver: int = 0
    wait_s: float = 0.0


class CallTools(Struct, frozen=True):
    """Get the results that are missing. Calls that have a result already are among them, so that positions hold."""

    turn: int
    calls: tuple[OpenCall, ...]


Step: TypeAlias = CallModel | CallTools | Prompted | Ended | OutputInvalid


def next_step(
    state: State, limits: Limits, after_answer: Callable[[State], Prompted | OutputInvalid | None] | None = None
) -> Step | None:
    """The next step; a fact to record; an error to end with; or None when the run is over.

    Args:
        after_answer: What follows an answer that has not the wanted form.
    """
    if state.ended:
        return None
    if any(call.waits and not call.stale for call in state.open_calls):
        return Ended(stop_reason="waiting_approval")
    if state.open_calls:
        return CallTools(state.turn, state.open_calls)
    if reason := stopped(state.progress, limits.guard):
        return Ended(stop_reason=reason)
    if state.cut == "reasoning_limit" and limits.on_reasoning_limit == "answer" and not state.prompted:
        return Prompted(message=ask_for_the_answer(state), why="reasoning_limit")
    if state.cut is not None:
        return Ended(stop_reason=state.cut)
    match state.finish:
        case "end":
            return _answered(state, after_answer)
        case "refused":
            return Ended(stop_reason="refused")
        case "length":
            return Ended(stop_reason="output_limit")
        case "unknown" if not state.called:
            return _answered(state, after_answer)
        case _:  # nothing yet, tools have answered, a pause, or calls that were not run and the model should know
            pass
    if state.turn >= limits.max_turns:
        return Ended(stop_reason="max_turns")
    return CallModel(state.turn + 1, state.shown_as or state.attempt + 1, state.driver, state.wait_s)


def _answered(state: State, after_answer: Callable[[State], Prompted | OutputInvalid | None] | None) -> Step:
    return (after_answer(state) if after_answer is not None else None) or Ended(stop_reason="end")
