"""Bounds and deadlines: finite by default, each with the name of what happens when it is reached."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Limits", "Timeouts"]


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


class Limits(Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of one run.

    Attributes:
        max_turns: Model turns; at the bound the run ends with `max_turns`.
        parallel_tools: Read-only calls of one turn that run at the same time; the rest queue.
        tool_timeout_s: Seconds a tool may take unless it has its own `timeout_s`; the model is told.
        tool_result_chars: Characters of a tool result that the model reads, head and tail; the rest is kept.
        tool_result_kept_chars: Characters of a tool result kept in the run for reading later.
        timeouts: Deadlines of each model call.
    """

    max_turns: int = 50
    parallel_tools: int = 8
    tool_timeout_s: float = 120.0
    tool_result_chars: int = 16_000
    tool_result_kept_chars: int = 10_000_000
    timeouts: Timeouts = Timeouts()
