"""How a command ended, as exit codes: one table, shown by `treadle run --help` and in the README."""

from __future__ import annotations

from treadle.errors import UsageError
from treadle.values.events import StopReason

__all__ = ["CANCELLED", "EXITS", "FAILED", "USAGE", "WAITING", "of_error", "of_stop_reason"]

USAGE, FAILED, LIMIT, REFUSED, WAITING, CANCELLED = 2, 3, 4, 5, 6, 130

EXITS = {
    0: "the model ended its answer (end)",
    USAGE: "the command or its settings cannot work",
    FAILED: "a model call failed; the error is on standard error",
    LIMIT: "a bound stopped the run (max_turns, output_limit, reasoning_limit, deadline, loop_detected, tool_failures)",
    REFUSED: "the model or its server refused (refused)",
    WAITING: "the run waits for a person, or you left it waiting (waiting_approval)",
    CANCELLED: "you stopped it with Ctrl-C or a signal (cancelled)",
}

_STOPS: dict[StopReason, int] = {"end": 0, "refused": REFUSED, "waiting_approval": WAITING, "cancelled": CANCELLED}


def of_stop_reason(stop_reason: StopReason) -> int:
    return _STOPS.get(stop_reason, LIMIT)


def of_error(error: Exception) -> int:
    return USAGE if isinstance(error, UsageError) else FAILED
