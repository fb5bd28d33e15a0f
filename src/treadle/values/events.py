"""What happens in a run.

A `Fact` happened: it is journaled, folded into the run's state, and never taken back. A `Delta` is provisional news
for whoever watches: its text becomes true when the `Replied` fact of its turn arrives, and only facts decide anything.
The last item of a run's events is `Ended` or `Failed`.

As JSON each event is an object whose `type` is the class name in snake case (`text_delta`, `tool_finished`).
"""

from __future__ import annotations

import functools
import re
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from treadle.errors import TreadleError, UsageError
from treadle.values.messages import AssistantMessage, Message, ToolMessage, UserMessage
from treadle.values.request import Finish
from treadle.values.toolcalls import Decision, PendingCall
from treadle.values.usage import Usage

__all__ = [
    "SCHEMA_VERSION",
    "ApprovalAnswered",
    "ApprovalRequested",
    "Asked",
    "Compacted",
    "ContextPlanned",
    "Delta",
    "Discarded",
    "Ended",
    "ErrorRecord",
    "Event",
    "Fact",
    "Failed",
    "Omitted",
    "PrefixMoved",
    "Prompted",
    "Pruned",
    "Repaired",
    "Replied",
    "Resumed",
    "Retried",
    "StopReason",
    "TextDelta",
    "ThinkingDelta",
    "ToolCallDelta",
    "ToolFinished",
    "ToolProgress",
    "ToolRetried",
    "ToolStarted",
    "event_from_json",
    "event_to_json",
]

SCHEMA_VERSION = 1
"""Version of the events' JSON. It grows when a field changes its meaning or goes; new fields and events may come."""

StopReason: TypeAlias = Literal[
    "end",
    "max_turns",
    "output_limit",
    "reasoning_limit",
    "deadline",
    "cancelled",
    "refused",
    "loop_detected",
    "tool_failures",
    "waiting_approval",
]
"""How a healthy run may end."""


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Fact(Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag=_snake, omit_defaults=True):
    """Something that happened."""


class Delta(Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag=_snake, omit_defaults=True):
    """A piece of a reply that is still being written.

    Attributes:
        turn: The model turn, from 1.
        attempt: The attempt at that turn, from 1.
    """

    turn: int
    attempt: int = 1


class TextDelta(Delta, frozen=True, kw_only=True, gc=False):
    """More text of the answer."""

    text: str


class ThinkingDelta(Delta, frozen=True, kw_only=True, gc=False):
    """More reasoning."""

    text: str


class ToolCallDelta(Delta, frozen=True, kw_only=True, gc=False):
    """More of a call that the model is writing. For display: never execute from it.

    Attributes:
        position: The call's place in its turn, from 0. The first delta of a position begins that call.
        name: The tool's name, as far as known.
        arguments: The next characters of the arguments' JSON.
    """

    position: int
    name: str
    arguments: str


class Asked(Fact, frozen=True, kw_only=True, gc=False, omit_defaults=False):
    """A run began with these messages: the history, then the prompt."""

    run_id: str
    model: str
    messages: tuple[Message, ...]
    schema: int = SCHEMA_VERSION


class ErrorRecord(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """An error as data: the exception's class name, message and hint. Holds no server's words and no secrets."""

    kind: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        if isinstance(error, TreadleError):
            return cls(kind=type(error).__name__, message=error.message, hint=error.hint)
        # Its text may hold anything, a prompt or a key included; the exception itself is raised to the caller.
        kind = type(error).__name__
        hint = "The exception that `run` or the iterator raises has the details."
        return cls(kind=kind, message=f"the run failed with {kind}", hint=hint)


class Repaired(Fact, frozen=True, kw_only=True, gc=False):
    """The history that the run was given broke a rule of strict servers, and was mended before anything was sent.

    Attributes:
        index: The message's place in the history as it was given.
    """

    index: int
    what: str


class Prompted(Fact, frozen=True, kw_only=True, gc=False):
    """The run itself said something to the model, in the user's place."""

    message: UserMessage
    why: Literal["reasoning_limit", "output"]


class Omitted(Fact, frozen=True, kw_only=True, gc=False):
    """A request of this turn left something out, because the model's wire format or server has no place for it.

    Said once for each model and thing. Nothing is left out without being said that the run asked for, or that its history holds.

    Attributes:
        model: The model that was not sent it.
        what: The option's name, or a kind of part: `reasoning`, `signature`, `part`, `images`.
        why: One sentence.
        count: How many parts.
    """

    turn: int
    model: str
    what: str
    why: str
    count: int = 1


class PrefixMoved(Fact, frozen=True, kw_only=True, gc=False):
    """A request of this turn does not begin as the one before it did, so the server reads again what it had in its cache.

    The one before it is the run's own, or the last of the conversation that this run goes on with. After `Pruned` and `Compacted` it
    says what they cost. Else something that should stand still did not: a time in the system text, tools in another order.

    Attributes:
        component: What moved first: `the system text`, ``the tool `look`, which changed``,
            ``messages[3]: the arguments of the call `c1` of `look` ``, with the message's place in the request.
        byte: The first byte that differs, counted from 0 through the tools, the system text and the messages of the request.
        lost_tokens: What was sent before and has to be read again, estimated.
    """

    turn: int
    model: str
    component: str
    byte: int
    lost_tokens: int


class ContextPlanned(Fact, frozen=True, kw_only=True, gc=False):
    """The context window that requests to this model are planned for. Said once a run and model, and only when a conversation grows.

    Attributes:
        source: Where the number is from: `GET /props default_generation_settings.n_ctx`, `catalog`, `setting`, `default`.
        warning: When nobody could say it: what was assumed, and how to set it.
    """

    turn: int
    model: str
    window_tokens: int
    source: str
    warning: str | None = None


class Pruned(Fact, frozen=True, kw_only=True, gc=False):
    """Old tool results were cut to head and tail. `read_result` still reads them whole.

    Attributes:
        results: Their places in the conversation.
        to_chars: How long they are now, at most.
        readable: The model has `read_result`, and is told so.
        tokens_before, tokens_after: Of the whole request, estimated.
        rewritten_tokens: What follows the first of them, and has to be read again by a server that had it in its cache.
    """

    turn: int
    results: tuple[int, ...]
    to_chars: int
    readable: bool = False
    tokens_before: int
    tokens_after: int
    rewritten_tokens: int


class Compacted(Fact, frozen=True, kw_only=True, gc=False):
    """Part of the conversation was replaced by a summary, because it would not fit the window. `result.state.originals` has it.

    Attributes:
        dropped: Places of the messages in the conversation, in order. A call and its results go together.
        summary: What stands for them, at the place of the first; None if nothing does.
        how: The name of the compaction.
        emergency: The server had refused the request as too long.
        problem: Why the compaction that was asked for could not make the summary, if `local_summary` stood in for it.
        tokens_before, tokens_after: Of the whole request, estimated.
        usage: Of the model that wrote the summary.
        output_tokens, reasoning_tokens: Of that model, as counted here; they count for the run's bounds.
    """

    turn: int
    dropped: tuple[int, ...]
    summary: UserMessage | None
    how: str
    emergency: bool = False
    problem: str | None = None
    tokens_before: int
    tokens_after: int
    usage: Usage | None = None
    output_tokens: float = 0.0
    reasoning_tokens: float = 0.0


class Retried(Fact, frozen=True, kw_only=True, gc=False):
    """An attempt at a turn failed, and another will be made.

    Attributes:
        attempt: The attempt that failed, from 1.
        error: Why.
        wait_s: Seconds until the next attempt.
        driver: Which of the agent's models makes it: 0 is the first, then the fallbacks in order.
        model: That model's name.
        continues: The partial answer that the next attempt goes on from; None if it begins anew.
        schema_refused: The server refused the request with its schema for the answer: from now on the model is asked in words.
        output_tokens, reasoning_tokens: Of the failed attempt, as counted here; they count for the run's bounds.
    """

    turn: int
    attempt: int
    error: ErrorRecord
    wait_s: float
    driver: int = 0
    model: str | None = None
    continues: AssistantMessage | None = None
    schema_refused: bool = False
    output_tokens: float = 0.0
    reasoning_tokens: float = 0.0


class Discarded(Fact, frozen=True, kw_only=True, gc=False):
    """The deltas of this attempt are void: what was shown of it is not part of the answer."""

    turn: int
    attempt: int


class Replied(Fact, frozen=True, kw_only=True, gc=False):
    """The model finished a turn and said why, or was cut.

    Attributes:
        cut: The bound at which we cut the stream; `message` is then what had arrived, and `finish` is `length`.
        output_tokens, reasoning_tokens: As counted here, estimated.
    """

    turn: int
    message: AssistantMessage
    finish: Finish
    finish_said: str | None = None
    usage: Usage = Usage()
    model: str | None = None
    attempt: int = 1
    cut: StopReason | None = None
    output_tokens: float = 0.0
    reasoning_tokens: float = 0.0


class ApprovalRequested(Fact, frozen=True, kw_only=True, gc=False):
    """A call waits for a person, and so does its turn: `Ended("waiting_approval")` follows the last of these."""

    turn: int
    position: int
    pending: PendingCall


class Resumed(Fact, frozen=True, kw_only=True, gc=False):
    """The next segment of the run began."""


class ApprovalAnswered(Fact, frozen=True, kw_only=True, gc=False):
    """It was decided about a call that waited.

    Attributes:
        by: Who decided: a person, or the run's approval rules in their place.
    """

    turn: int
    position: int
    call_id: str
    decision: Decision
    by: Literal["person", "policy"] = "person"


class ToolStarted(Fact, frozen=True, kw_only=True, gc=False):
    """A call passed validation and approval, and its tool was started. (run, turn, position) names the call for ever.

    Attributes:
        arguments: What it runs with: the model's arguments, or those a person put in their place.
        changes: The tool is not read-only.
    """

    turn: int
    position: int
    call_id: str
    name: str
    arguments: str
    changes: bool = True


class ToolProgress(Fact, frozen=True, kw_only=True, gc=False):
    """A running tool said how far it is. At most ten a second of each call; what comes faster is left out.

    Attributes:
        text: At most 1,000 characters.
        fraction: From 0 to 1, if the tool knows.
    """

    turn: int
    position: int
    text: str
    fraction: float | None = None


class ToolRetried(Fact, frozen=True, kw_only=True, gc=False):
    """A tool that is declared repeatable failed in a way that may pass, and will be called again.

    Attributes:
        attempt: The attempt that failed, from 1.
        wait_s: Seconds until the next one.
    """

    turn: int
    position: int
    attempt: int
    error: ErrorRecord
    wait_s: float


class ToolFinished(Fact, frozen=True, kw_only=True, gc=False):
    """A call has its result. Without a `ToolStarted` before it, nothing ran.

    Attributes:
        refused: The run refused the call, because its tool had failed or it had been repeated too often; or a person or an
            approval rule `denied` it.
        details: For debugging, if the tool gave any; as large as `Limits.tool_result_chars` allows.
        warning: For the person: what the tool did wrong without failing.
    """

    turn: int
    position: int
    result: ToolMessage
    refused: Literal["failures", "repeats", "denied"] | None = None
    details: Any = None
    warning: str | None = None


class Ended(Fact, frozen=True, kw_only=True, gc=False):
    """The run (or this segment of it) ended in a way that has a name.

    Attributes:
        partial: What the model had written of a turn that was cut short; None if the last turn is whole.
        elapsed_s: When the run waits for a person: how long this segment of it took.
    """

    stop_reason: StopReason
    partial: AssistantMessage | None = None
    elapsed_s: float = 0.0


class Failed(Fact, frozen=True, kw_only=True, gc=False):
    """The run ended with an error, which the iterator and `run` raise after this.

    Attributes:
        partial: What the model had written of the turn that failed; None if it had written nothing.
    """

    error: ErrorRecord
    partial: AssistantMessage | None = None


Event: TypeAlias = Fact | Delta

_ANY = (
    Asked
    | Repaired
    | Replied
    | Prompted
    | Omitted
    | PrefixMoved
    | ContextPlanned
    | Pruned
    | Compacted
    | Retried
    | Discarded
    | ApprovalRequested
    | Resumed
    | ApprovalAnswered
    | ToolStarted
    | ToolProgress
    | ToolRetried
    | ToolFinished
    | Ended
    | Failed
    | TextDelta
    | ThinkingDelta
    | ToolCallDelta
)


@functools.cache
def _decoder() -> msgspec.json.Decoder[Event]:
    return msgspec.json.Decoder(_ANY)  # 2 ms, so not before it is needed


def event_to_json(event: Event) -> bytes:
    """The event as one JSON object, without a line end."""
    return msgspec.json.encode(event)


def event_from_json(line: bytes | str) -> Event:
    """The event that `event_to_json`, a journal or `treadle run --json` wrote.

    Raises:
        UsageError: It is none that this version knows.
    """
    try:
        return _decoder().decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UsageError(f"not an event: {error}", hint="Was it written by a newer version of treadle?") from None
