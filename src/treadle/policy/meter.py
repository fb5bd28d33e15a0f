"""Counting a reply while it streams, so that bounds hold against servers that ignore `max_tokens` or report usage last."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from treadle.policy.repetition import RepetitionGuard
from treadle.values.events import Delta, Replied, Retried, StopReason, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.limits import Limits
from treadle.values.messages import AssistantMessage, UserMessage, joined
from treadle.values.request import Reply
from treadle.values.state import State
from treadle.values.tokens import Calibration, estimate_tokens
from treadle.values.usage import Usage

__all__ = ["Meter", "ask_for_the_answer"]

_THOUGHT_CHARS = 8_000


class Meter:
    """One turn's count. It looks once a socket read, so a stream passes its bound by at most one read.

    Attributes:
        output_tokens: Text and tool arguments so far, estimated and calibrated.
        reasoning_tokens: Reasoning so far.
        cut: The bound that was reached.
    """

    def __init__(self, limits: Limits, state: State, calibration: Calibration) -> None:
        # An attempt that goes on from a partial answer is the same turn, so that answer counts.
        begun = state.continues.text if state.continues is not None else ""
        self.output_tokens = estimate_tokens(begun) * calibration.factor
        thought = state.continues.thinking if state.continues is not None else ""
        self.reasoning_tokens = estimate_tokens(thought) * calibration.factor
        self._begun = (self.output_tokens, self.reasoning_tokens)
        self.cut: StopReason | None = None
        self._calibration = calibration
        self._factor = calibration.factor
        self._max_output = min(limits.output_tokens_per_turn, limits.output_tokens_per_run - state.output_tokens)
        self._max_reasoning = min(limits.reasoning_tokens_per_turn, limits.reasoning_tokens_per_run - state.reasoning_tokens)
        self._text = RepetitionGuard()
        self._thinking = RepetitionGuard()

    def add(self, deltas: Sequence[Delta]) -> StopReason | None:
        """Count what one read brought; the bound that is reached now, if one is."""
        endless = False
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self.output_tokens += estimate_tokens(delta.text) * self._factor
                endless = endless or self._text.add(delta.text)
            elif isinstance(delta, ThinkingDelta):
                self.reasoning_tokens += estimate_tokens(delta.text) * self._factor
                endless = endless or self._thinking.add(delta.text)
            elif isinstance(delta, ToolCallDelta):
                self.output_tokens += estimate_tokens(delta.arguments) * self._factor
        if self.output_tokens > self._max_output:
            self.cut = "output_limit"
        elif self.reasoning_tokens > self._max_reasoning:
            self.cut = "reasoning_limit"
        elif endless:
            self.cut = "loop_detected"
        return self.cut

    def replied(self, reply: Reply, *, turn: int, attempt: int, continues: AssistantMessage | None) -> Replied:
        """The fact that the finished or cut reply amounts to. An uncut one teaches the calibration."""
        if self.cut is None:
            self._learn(reply.usage)
        assert self.cut or reply.finish, "a reply that is not finished is not a reply"
        return Replied(
            turn=turn,
            message=joined(continues, reply.message),
            finish="length" if self.cut else reply.finish or "unknown",
            finish_said=reply.finish_said,
            usage=reply.usage,
            model=reply.model,
            attempt=attempt,
            cut=self.cut,
            output_tokens=self.output_tokens,
            reasoning_tokens=self.reasoning_tokens,
        )

    def spent(self, retried: Retried) -> Retried:
        """What the failed attempt cost; what the next one goes on from is counted with that."""
        if retried.continues is not None:
            return retried
        return replace(retried, output_tokens=self.output_tokens, reasoning_tokens=self.reasoning_tokens)

    def _learn(self, usage: Usage) -> None:
        """Compare like with like: reasoning that the server counts apart may not have been shown at all."""
        begun_output, begun_reasoning = self._begun
        estimated, reported = self.output_tokens - begun_output, usage.output_tokens
        if reported is not None and usage.reasoning_tokens is not None:
            reported -= usage.reasoning_tokens
        else:
            estimated += self.reasoning_tokens - begun_reasoning
        self._calibration.learn(estimated / self._factor, reported)


def ask_for_the_answer(state: State) -> UserMessage:
    """What the run says after reasoning was cut. In words, because no server reads back reasoning of an unfinished turn."""
    last = next((m for m in reversed(state.closed) if isinstance(m, AssistantMessage)), None)
    thought = last.thinking[-_THOUGHT_CHARS:] if last is not None else ""
    return UserMessage(
        "Your reasoning has reached its limit. Do not reason any further: give your answer now, from what you have "
        f"reasoned so far. Its end was:\n\n{thought}",
        origin="run",
    )
