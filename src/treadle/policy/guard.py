"""Runs that get nowhere: tools that keep failing, and the same call with the same result over and over.

Pure: `after` folds a finished call into the state, `refusal` and `note` read it. What the model is told says what to do
instead. For a tool or a call that is stuck the order is: told, refused, stopped by name.

- **Failures.** The third failure in a row of one tool is noted in its result; the next call of that tool is refused, the one after
  may try again. Six failures in a row of any tools, refusals included, stop the run: `tool_failures`.
- **Loops.** A call repeats when the same tool with the same arguments gives the same result while nothing changed in between. The
  third is noted, the fourth and fifth are refused, the sixth stops the run: `loop_detected`.
- **Something changed** when a call that is not read-only succeeded, or when a call gave another result than it gave before. Then
  repeats of other calls count anew, and so do failures after a call that is not read-only. So edit-test-edit cycles pass, and polling
  as long as its value changes, with a tool that waits in between.
- **One turn counts once.** Copies of a call within a turn, or several failures in it, are haste and not a loop: the model has not seen
  any of their results yet.
"""

from __future__ import annotations

import functools
import zlib
from typing import Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from treadle.values.events import StopReason
from treadle.values.limits import GuardLimits
from treadle.values.messages import ToolCall, ToolMessage
from treadle.values.state import Progress, Streak

__all__ = ["after", "fingerprint", "note", "refusal", "stopped"]

Refused: TypeAlias = Literal["failures", "repeats", "denied"]

_REMEMBERED = 64  # different calls, and tools; a loop with more legs than that is left to the turn limit


def after(
    progress: Progress, call: ToolCall, result: ToolMessage, *, turn: int, changes: bool, refused: Refused | None
) -> Progress:
    """The state after one more finished call.

    Args:
        changes: It ran and its tool is not read-only.
        refused: The guard refused it, for this reason; or it was denied, which is no fault of its tool and no result of it.
    """
    seen, failing, repeats = progress.seen, progress.failing, 0
    changed = changes and not result.is_error
    if refused not in ("failures", "denied"):
        key, said = fingerprint(call), _digest(result.full or result.content)
        before = seen.get(key)
        now = Streak(1, turn, said)
        if before is not None and (refused or before.result == said):
            now = Streak(before.count + (turn != before.turn), turn, before.result)
        elif before is not None:
            changed = True
        seen = {k: Streak(0, v.turn, v.result) if changed else v for k, v in seen.items() if k != key}
        seen[key] = now
        while len(seen) > _REMEMBERED:
            del seen[next(iter(seen))]
        repeats = now.count
    if refused not in ("repeats", "denied"):
        failing = {} if changes and not result.is_error else dict(failing)
        failing.pop(call.name, None)
        if result.is_error:
            failing[call.name] = _more(progress.failing.get(call.name), turn, by=-1 if refused else 1)
        while len(failing) > _REMEMBERED:
            del failing[next(iter(failing))]
    failures = _more(progress.failures, turn) if result.is_error else Streak()
    return Progress(failures=failures, failing=failing, seen=seen, repeats=repeats)


def not_run(progress: Progress, *, turn: int) -> Progress:
    """The state after a turn whose calls were not run, because the server gave no reason we know: a failure, but no tool's."""
    return replace(progress, failures=_more(progress.failures, turn))


def stopped(progress: Progress, limits: GuardLimits) -> StopReason | None:
    """The ending that is due, if one is."""
    if progress.repeats >= limits.repeats_stop:
        return "loop_detected"
    return "tool_failures" if progress.failures.count >= limits.run_failures else None


def refusal(progress: Progress, call: ToolCall, limits: GuardLimits, *, turn: int) -> tuple[Refused, str] | None:
    """Why the call is refused, and what the model is told; None if it may run."""
    if _before(progress.seen.get(fingerprint(call)), turn) >= limits.repeats_noted:
        said = f"this exact call has given the same result {limits.repeats_noted} times and nothing has changed since"
        return "repeats", f"refused: {said}. Use the result you have, call something else, or answer."
    failing = progress.failing.get(call.name)
    if failing is not None and failing.turn != turn and failing.count >= limits.tool_failures:
        said = f"{call.name} has failed {failing.count} times in a row"
        return "failures", f"refused: {said}. Do something else first: another tool, or tell the user what does not work."
    return None


def note(progress: Progress, call: ToolCall, result: ToolMessage, limits: GuardLimits, *, turn: int) -> ToolMessage:
    """The result, with a remark for the model if this is where the guard speaks up."""
    if result.is_error:
        failures = _more(progress.failing.get(call.name), turn).count
        if failures < limits.tool_failures:
            return result
        said = f"{call.name} has now failed {failures} times in a row. Try another way, or say what does not work."
        return _noted(result, said)
    streak = progress.seen.get(fingerprint(call))
    if streak is None or streak.turn == turn or streak.result != _digest(result.full or result.content):
        return result
    if streak.count + 1 < limits.repeats_noted:
        return result
    said = f"This call has now given the same result {streak.count + 1} times. Calling it again will change nothing."
    return _noted(result, said)


def _noted(result: ToolMessage, said: str) -> ToolMessage:
    return replace(result, note=f"{result.note} {said}" if result.note else said)


def _more(streak: Streak | None, turn: int, *, by: int = 1) -> Streak:
    """One turn more; a refusal takes one back, so that the call after it may try again."""
    if streak is None:
        return Streak(1, turn)
    return Streak(streak.count + (by if streak.turn != turn else 0), turn)


def _before(streak: Streak | None, turn: int) -> int:
    """The count as it was before this turn."""
    return 0 if streak is None else streak.count - (streak.turn == turn)


def fingerprint(call: ToolCall) -> str:
    """The same for calls that ask for the same: blanks and the order of keys do not matter."""
    return _remembered(call) if len(call.arguments) < 1_000 else _fingerprint(call)


def _fingerprint(call: ToolCall) -> str:
    try:
        arguments = msgspec.json.encode(msgspec.json.decode(call.arguments), order="sorted").decode()
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        arguments = call.arguments
    return _digest(f"{call.name}\0{arguments}")


_remembered = functools.lru_cache(256)(_fingerprint)  # it is asked for three times in the life of a call


def _digest(text: str) -> str:
    """Short, and the same in every process. No secret and no attacker is involved, so a checksum and the length do."""
    data = text.encode("utf-8", "surrogatepass")
    return f"{len(data):x}-{zlib.crc32(data):08x}"
