"""`next_step`: the whole policy of the loop, as one pure function."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from treadle.values.events import Ended
from treadle.values.limits import Limits
from treadle.values.state import OpenCall, State

__all__ = ["CallModel", "CallTools", "Step", "next_step"]


class CallModel(Struct, frozen=True):
    """Ask the model for the next turn."""

    turn: int


class CallTools(Struct, frozen=True):
    """Get the results that are missing. Calls that have a result already are among them, so that positions hold."""

    turn: int
    calls: tuple[OpenCall, ...]


Step: TypeAlias = CallModel | CallTools | Ended


def next_step(state: State, limits: Limits) -> Step | None:
    """The next step; an ending to record; or None when the run is over."""
    if state.ended:
        return None
    if state.open_calls:
        return CallTools(state.turn, state.open_calls)
    match state.finish:
        case "end":
            return Ended(stop_reason="end")
        case "refused":
            return Ended(stop_reason="refused")
        case "length":
            return Ended(stop_reason="output_limit")
        case "unknown" if not _answers_calls(state):
            return Ended(stop_reason="end")
        case _:  # nothing yet, tools have answered, a pause, or calls that were not run and the model should know
            pass
    if state.turn >= limits.max_turns:
        return Ended(stop_reason="max_turns")
    return CallModel(state.turn + 1)


def _answers_calls(state: State) -> bool:
    return bool(state.closed) and state.closed[-1].__struct_config__.tag == "tool"
