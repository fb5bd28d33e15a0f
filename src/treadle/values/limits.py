"""Bounds and deadlines: finite by default, each with the name of what happens when it is reached."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from treadle.errors import UsageError

__all__ = ["GuardLimits", "Limits", "Timeouts"]


def _check(limits: Struct, *, above_zero: tuple[str, ...]) -> None:
    """A bound that cannot work is refused where it is written, not found out in the middle of a run."""
    for name in limits.__struct_fields__:
        value = getattr(limits, name)
        if isinstance(value, Struct) or name == "on_reasoning_limit":
            continue
        if type(value) not in (int, float) or value != value or value < 0 or (value == 0 and name in above_zero):
            least = "above 0" if name in above_zero else "0 or more"
            raise UsageError(f"{type(limits).__name__}({name}={value!r}) cannot work", hint=f"{name} is a number, {least}.")


class Timeouts(Struct, frozen=True, kw_only=True, gc=False):
    """How long one model call may take, phase by phase, in seconds. Reaching one raises `ModelTimeout`.

    Attributes:
        connect_s: Name look-up, TCP and TLS together.
        first_token_s: From the request being sent to the first event that means something.
        first_token_ms_per_prompt_token: Added to `first_token_s` for each estimated prompt token, since a local
            server reads the prompt before it writes anything.
        silence_s: Between two events that mean something. Keep-alive comments and empty deltas mean nothing.
        after_finish_s: How long to wait for usage and the end of the stream once the server has said why it
            stopped. Reaching it is no error: the reply is whole.
    """

    connect_s: float = 10.0
    first_token_s: float = 300.0
    first_token_ms_per_prompt_token: float = 10.0
    silence_s: float = 120.0
    after_finish_s: float = 2.0

    def __post_init__(self) -> None:
        _check(self, above_zero=("connect_s", "first_token_s", "silence_s", "after_finish_s"))


class GuardLimits(Struct, frozen=True, kw_only=True, gc=False):
    """Where a run that gets nowhere is told, refused and stopped; `treadle.policy.guard` has the rules.

    Attributes:
        tool_failures: Failures in a row of one tool, after which its next call is refused.
        run_failures: Failures in a row of any tools, refusals included; at the bound the run ends with `tool_failures`.
        repeats_noted: Same call, same result, nothing changed: the model is told at this count, then refused.
        repeats_stop: At this count the run ends with `loop_detected`.
    """

    tool_failures: int = 3
    run_failures: int = 6
    repeats_noted: int = 3
    repeats_stop: int = 6

    def __post_init__(self) -> None:
        _check(self, above_zero=self.__struct_fields__)


class Limits(Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of one run. Tokens are counted here, while they stream, so the bounds hold whatever a server does.

    Attributes:
        max_turns: Model turns; at the bound the run ends with `max_turns`.
        output_tokens_per_turn, output_tokens_per_run: Text and tool arguments; at the bound the stream is cut and the
            run ends with `output_limit`, the partial text kept.
        reasoning_tokens_per_turn, reasoning_tokens_per_run: Reasoning; at the bound the stream is cut, and then see
            `on_reasoning_limit`.
        on_reasoning_limit: `stop` ends the run with `reasoning_limit`; `answer` asks once for the answer, from what was
            thought.
        deadline_s: Seconds for the whole run, waits for retries included; at the bound it ends with `deadline`.
        parallel_tools: Read-only calls of one turn that run at the same time; the rest queue.
        tool_timeout_s: Seconds a tool may take unless it has its own `timeout_s`; the model is told.
        tool_result_chars: Characters of a tool result that the model reads, head and tail; the rest is kept.
        tool_result_kept_chars: Characters of a tool result kept in the run for reading later.
        timeouts: Deadlines of each model call.
        guard: Where failing and repeating calls are told, refused and stopped.
    """

    max_turns: int = 50
    output_tokens_per_turn: int = 32_768
    output_tokens_per_run: int = 262_144
    reasoning_tokens_per_turn: int = 32_768
    reasoning_tokens_per_run: int = 262_144
    on_reasoning_limit: Literal["stop", "answer"] = "stop"
    deadline_s: float = 3_600.0
    parallel_tools: int = 8
    tool_timeout_s: float = 120.0
    tool_result_chars: int = 16_000
    tool_result_kept_chars: int = 10_000_000
    timeouts: Timeouts = Timeouts()
    guard: GuardLimits = GuardLimits()

    def __post_init__(self) -> None:
        _check(self, above_zero=("max_turns", "deadline_s", "parallel_tools", "tool_timeout_s", "tool_result_chars"))
