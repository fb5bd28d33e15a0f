"""Runs that get nowhere: tools that keep failing, and the same call with the same result over and over.

Pure: `after` folds a finished call into the state, `refusal` and `note` read it. What the model is told says what to do
instead. The order of events is always: told, refused, stopped by name.

- **Failures.** The third failure in a row of one tool is noted in its result; the next call of that tool is refused, the one after
  may try again. Six failures in a row of any tools, refusals included, stop the run: `tool_failures`.
- **Loops.** A call repeats when the same tool with the same arguments gives the same result while nothing changed in between. The
  third is noted, the fourth and fifth are refused, the sixth stops the run: `loop_detected`. Something changed when another
  call that was not read-only succeeded, so edit-test-edit cycles pass; so does polling, as long as its value changes.
  Copies of a call within one turn count once: that is haste, not a loop.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec.structs import replace

from treadle.values.events import StopReason
from treadle.values.limits import GuardLimits
from treadle.values.messages import ToolCall, ToolMessage
from treadle.values.state import Progress, Repeat

__all__ = ["after", "fingerprint", "note", "refusal", "stopped"]

_REMEMBERED = 64  # different calls; a loop with more legs than that is left to the turn limit


def after(progress: Progress, call: ToolCall, result: ToolMessage, *, turn: int, changes: bool, refused: bool) -> Progress:
    """The state after one more finished call.

    Args:
        changes: It ran and its tool is not read-only.
        refused: The guard refused it.
    """
    failing = dict(progress.failing)
    if not result.is_error:
        failing.pop(call.name, None)
    else:  # a refusal uses up one failure, so that the call after it may try again
        failing[call.name] = failing.get(call.name, 0) + (-1 if refused else 1)
    key, said = fingerprint(call), _digest(result.full or result.content)
    before = progress.seen.get(key)
    repeat = Repeat(said, 1, turn)
    if before is not None and (refused or before.result == said):
        repeat = Repeat(before.result, before.count + (turn != before.turn), turn)
    seen = {} if changes and not result.is_error else {k: v for k, v in progress.seen.items() if k != key}
    seen[key] = repeat
    while len(seen) > _REMEMBERED:
        del seen[next(iter(seen))]
    in_row = progress.failures_in_row + 1 if result.is_error else 0
    return replace(progress, failures_in_row=in_row, failing=failing, seen=seen)


def stopped(progress: Progress, limits: GuardLimits) -> StopReason | None:
    """The ending that is due, if one is."""
    if any(repeat.count >= limits.repeats_stop for repeat in progress.seen.values()):
        return "loop_detected"
    return "tool_failures" if progress.failures_in_row >= limits.run_failures else None


def refusal(progress: Progress, call: ToolCall, limits: GuardLimits, *, turn: int) -> str | None:
    """What the model is told instead of running the call; None if it may run."""
    repeat = progress.seen.get(fingerprint(call))
    if repeat is not None and repeat.count >= limits.repeats_noted and repeat.turn != turn:
        return (
            f"refused: this exact call has given the same result {limits.repeats_noted} times and nothing has changed since. "
            "Use the result you have, call something else, or answer."
        )
    failures = progress.failing.get(call.name, 0)
    if failures >= limits.tool_failures:
        return (
            f"refused: {call.name} has failed {failures} times in a row. Do something else first: "
            "another tool, or tell the user what does not work."
        )
    return None


def note(progress: Progress, call: ToolCall, result: ToolMessage, limits: GuardLimits, *, turn: int) -> ToolMessage:
    """The result, with a remark for the model if this is where the guard speaks up."""
    failures = progress.failing.get(call.name, 0) + 1
    if result.is_error:
        if failures < limits.tool_failures:
            return result
        said = f"{call.name} has now failed {failures} times in a row. Try another way, or say what does not work."
        return replace(result, note=said)
    repeat = progress.seen.get(fingerprint(call))
    if repeat is None or repeat.turn == turn or repeat.result != _digest(result.full or result.content):
        return result
    if repeat.count + 1 < limits.repeats_noted:
        return result
    said = f"This call has now given the same result {repeat.count + 1} times. Calling it again will change nothing."
    return replace(result, note=said)


def fingerprint(call: ToolCall) -> str:
    """The same for calls that ask for the same: blanks and the order of keys do not matter."""
    try:
        arguments = msgspec.json.encode(msgspec.json.decode(call.arguments), order="sorted").decode()
    except (msgspec.MsgspecError, RecursionError):
        arguments = call.arguments
    return _digest(f"{call.name}\0{arguments}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
