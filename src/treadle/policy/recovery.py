"""What happens when a model call fails: retry, switch to another model, answer in its place, or end the run.

A strategy looks at the failure and decides; `decide` holds it to the rules that no strategy may break. This is the only place
from which a call is made again, and every further attempt draws from one budget of the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from treadle.errors import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    PromptSilentlyTruncated,
    QuotaExceeded,
    ToolError,
    Unsupported,
    UsageError,
)
from treadle.values.events import ContextPlanned, Discarded, ErrorRecord, Fact, Replied, Retried, ToolRetried
from treadle.values.messages import AssistantMessage, Message, Text, ToolCall
from treadle.values.ports import Driver, PreparedCall
from treadle.values.state import State
from treadle.values.toolcalls import Outcome

__all__ = [
    "Abort",
    "Answer",
    "Decision",
    "Failure",
    "OnInterrupted",
    "Recovery",
    "Retry",
    "RetryPolicy",
    "Strategy",
    "Switch",
    "decide",
    "retry_then_switch",
    "retry_tool",
]

OnInterrupted: TypeAlias = Literal["fail", "restart", "continue"]
"""What to do when a call fails after some of its answer was shown.

`fail` ends the run with the error and the partial text; `restart` announces `Discarded` and begins the turn again;
`continue` asks the server to go on from the partial text where that is possible, and otherwise restarts.
"""


class RetryPolicy(Struct, frozen=True, kw_only=True, gc=False):
    """How often a call is made again, and how long is waited.

    The wait after attempt n is random between 0 and min(max_wait_s, first_wait_s * 2**(n-1)): full jitter, so that many
    clients do not come back together. A server's Retry-After is a lower bound; one longer than `retry_after_cap_s`
    ends the run with its error instead.

    Attributes:
        attempts: Attempts at one model turn on one model, the first included.
        run_budget: Further attempts in a whole run, on whatever model; going on to the next fallback needs none.
    """

    attempts: int = 4
    run_budget: int = 10
    first_wait_s: float = 0.5
    max_wait_s: float = 30.0
    retry_after_cap_s: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.run_budget, self.first_wait_s, self.max_wait_s, self.retry_after_cap_s) < 0:
            raise UsageError(f"{self!r} cannot work", hint="There is at least one attempt, and no number is below 0.")

    def wait_s(self, *, attempt: int, retry_after_s: float | None, jitter: float) -> float | None:
        """Seconds to wait after `attempt` failed, given a random number from 0 to 1; None if the server asks for too long."""
        if retry_after_s is not None and retry_after_s > self.retry_after_cap_s:
            return None
        backoff_s = min(self.max_wait_s, self.first_wait_s * 2 ** min(attempt - 1, 30)) * jitter
        return max(backoff_s, retry_after_s or 0.0)


class Failure(Struct, frozen=True, kw_only=True):
    """A model call that failed, as a strategy sees it.

    Attributes:
        attempt: Attempts made at this turn on this model, this one included.
        conversation: What was sent.
        driver: Which model failed: 0 is the agent's own, then the fallbacks in order.
        drivers: How many there are.
        may_wait: The retry policy still allows another attempt on the same model.
    """

    error: ModelError
    attempt: int
    turn: int
    conversation: tuple[Message, ...]
    driver: int
    drivers: int
    may_wait: bool


class Retry(Struct, frozen=True):
    """Make the call again on the same model, after the policy's wait."""


class Switch(Struct, frozen=True):
    """Go on with another model of the list, at once, for the rest of the run."""

    driver: int


class Answer(Struct, frozen=True):
    """Take this text for the model's answer."""

    text: str


class Abort(Struct, frozen=True):
    """End the run with the error."""


Decision: TypeAlias = Retry | Switch | Answer | Abort


class Strategy(Protocol):
    """Decides what follows a failure. It must not block; it may be asked for any `ModelError`."""

    def __call__(self, failure: Failure) -> Decision: ...


_PATIENCE_S = 5.0

# Another model, or the same one elsewhere, may do what this one cannot; the request itself is sound.
_ANOTHER_MAY = (AuthenticationFailed, ContextOverflow, ModelNotFound, PromptSilentlyTruncated, QuotaExceeded)


def retry_then_switch(failure: Failure) -> Decision:
    """The default: retry what may pass; when that is used up, or cannot help, the next model; else end.

    A server that asks for more than 5 s is not waited for while there is another model.
    """
    error = failure.error
    another = failure.driver + 1 < failure.drivers and (error.retryable or isinstance(error, _ANOTHER_MAY))
    if error.retryable and failure.may_wait and not (another and (error.retry_after_s or 0.0) > _PATIENCE_S):
        return Retry()
    return Switch(failure.driver + 1) if another else Abort()


class Recovery(Struct, frozen=True, kw_only=True):
    """The rules of a run for calls that fail.

    Attributes:
        jitter: Gives random numbers from 0 to 1.
    """

    strategy: Strategy = retry_then_switch
    policy: RetryPolicy = RetryPolicy()
    on_interrupted: OnInterrupted = "restart"
    jitter: Callable[[], float] = lambda: int.from_bytes(os.urandom(4)) / 2**32


def decide(
    error: ModelError,
    state: State,
    rules: Recovery,
    *,
    attempt: int,
    shown: AssistantMessage | None,
    drivers: Sequence[Driver],
    planned: ContextPlanned | None = None,
    schema: bool = False,
) -> list[Fact]:
    """The facts that say what is done about a failed attempt; none if the run is to end with its error.

    Args:
        attempt: The number that the failed attempt's deltas carried.
        shown: What was shown of it; None if nothing was.
        planned: The window that the refusal of a prompt as too long has shown, when that can help.
        schema: The request held the answer to a schema.
    """
    if shown is not None and rules.on_interrupted == "fail":
        return []
    policy = rules.policy
    turn = state.turn + 1
    budget_left = state.retries < policy.run_budget
    made = state.attempts_on_driver + 1
    wait_s = policy.wait_s(attempt=made, retry_after_s=error.retry_after_s, jitter=rules.jitter())
    may_wait = made < policy.attempts and wait_s is not None and budget_left
    refused_to_go_on = state.continues is not None and isinstance(error, InvalidRequest | Unsupported)
    if refused_to_go_on and budget_left:  # then the turn is begun anew, as was promised
        return [
            Discarded(turn=turn, attempt=attempt),
            Retried(turn=turn, attempt=attempt, error=ErrorRecord.of(error), wait_s=0.0, driver=state.driver),
        ]
    void: list[Fact] = [Discarded(turn=turn, attempt=attempt)] if shown is not None else []
    if planned is not None and budget_left:
        record = ErrorRecord.of(error)
        return [*void, planned, Retried(turn=turn, attempt=attempt, error=record, wait_s=0.0, driver=state.driver)]
    if schema and shown is None and budget_left and isinstance(error, InvalidRequest | Unsupported):
        # Perhaps for the schema: a server says so in too many ways. Without it the same error ends the run.
        record = ErrorRecord.of(error)
        return [Retried(turn=turn, attempt=attempt, error=record, wait_s=0.0, driver=state.driver, schema_refused=True)]
    decision = rules.strategy(
        Failure(
            error=error,
            attempt=made,
            turn=turn,
            conversation=state.messages,
            driver=state.driver,
            drivers=len(drivers),
            may_wait=may_wait,
        )
    )
    match decision:
        case Answer(text=text):
            message = AssistantMessage((Text(text),))
            return [*void, Replied(turn=turn, message=message, finish="end", attempt=state.attempt + 2)]
        case Switch(driver=driver) if 0 <= driver < len(drivers) and (budget_left or driver > state.driver):
            wait_s, continues = 0.0, None  # going forward through the list is finite by itself, so it needs no budget
        case Retry() if may_wait and wait_s is not None:
            driver = state.driver
            goes_on = rules.on_interrupted == "continue" and drivers[driver].continuable and _is_text(shown)
            continues = shown if goes_on else None
        case _:
            return []
    retried = Retried(
        turn=turn,
        attempt=attempt,
        error=ErrorRecord.of(error),
        wait_s=wait_s,
        driver=driver,
        model=drivers[driver].model,
        continues=continues,
    )
    return [retried] if continues is not None else [*void, retried]


_MAY_PASS = ("timeout", "network", "rate_limited")


def retry_tool(
    outcome: Outcome,
    prepared: PreparedCall,
    rules: Recovery,
    *,
    retries: int,
    turn: int,
    position: int,
    attempt: int,
) -> ToolRetried | None:
    """The fact that a failed tool is called again, from the same budget as model calls; None if it is not.

    Only a tool that is declared repeatable is, and only after a failure that may pass.

    Args:
        retries: Of the whole run so far, those under way included.
    """
    result, policy = outcome.result, rules.policy
    if not prepared.repeatable or result.error_kind not in _MAY_PASS:
        return None
    if attempt >= policy.attempts or retries >= policy.run_budget:
        return None
    wait_s = policy.wait_s(attempt=attempt, retry_after_s=outcome.retry_after_s, jitter=rules.jitter())
    if wait_s is None:
        return None
    error = ErrorRecord(kind=result.error_kind, message=f"{result.name} failed: {result.error_kind}", hint=ToolError.default_hint)
    return ToolRetried(turn=turn, position=position, attempt=attempt, error=error, wait_s=wait_s)


def _is_text(partial: AssistantMessage | None) -> bool:
    return partial is not None and bool(partial.text) and not any(isinstance(part, ToolCall) for part in partial.content)
