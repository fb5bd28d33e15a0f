"""The state of a run: what its facts come to. `treadle.core.state.apply` is the only code that makes a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal

import msgspec
from msgspec import Struct

from treadle.errors import HistoryError, UsageError
from treadle.values.events import SCHEMA_VERSION, ErrorRecord, StopReason
from treadle.values.history import check_history
from treadle.values.messages import AssistantMessage, Message, ToolCall, ToolMessage
from treadle.values.request import Finish
from treadle.values.toolcalls import Decision, Edit, PendingCall
from treadle.values.usage import CacheUse, Usage

__all__ = ["OpenCall", "Progress", "RunResult", "State", "Streak", "run_from_json", "run_to_json"]


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    OutputT_co = TypeVar("OutputT_co", covariant=True, default=Any)
    """What `output=` asked for."""
else:
    from typing import TypeVar  # of 3.13 on it knows defaults

    OutputT_co = TypeVar("OutputT_co", covariant=True)


class OpenCall(Struct, frozen=True, gc=False, omit_defaults=True):
    """A call of the last turn. It is named for ever by (run, turn, position).

    Attributes:
        pending: What a person was asked about it; None if nobody was.
        decision: What they said; None while they have not.
        decided_by: Who said it.
        stale: They were asked in an earlier segment of the run, and have to be asked again.
    """

    call: ToolCall
    started: bool = False
    changes: bool = True
    result: ToolMessage | None = None
    pending: PendingCall | None = None
    decision: Decision | None = None
    decided_by: Literal["person", "policy"] = "person"
    stale: bool = False

    @property
    def to_run(self) -> ToolCall:
        """The call with the arguments that it is to run with: the model's, or those that were put in their place."""
        if isinstance(self.decision, Edit):
            return ToolCall(self.call.id, self.call.name, self.decision.arguments)
        return self.call

    @property
    def waits(self) -> bool:
        """A person has been asked, and has not decided."""
        return self.pending is not None and self.decision is None and self.result is None


class Streak(Struct, frozen=True, gc=False):
    """How often something happened in a row, in different turns; and the last of them."""

    count: int = 0
    turn: int = 0
    result: str = ""


class Progress(Struct, frozen=True, kw_only=True):
    """What `treadle.policy.guard` knows of a run.

    Attributes:
        failures: Turns in a row with failures of any tools.
        failing: The same by tool.
        seen: By call, how often it gave one result; calls and results as fingerprints.
        repeats: The count of the call that finished last.
    """

    failures: Streak = Streak()
    failing: dict[str, Streak] = {}
    seen: dict[str, Streak] = {}
    repeats: int = 0


class State(Struct, frozen=True, kw_only=True):
    """A run between two facts. JSON in and out (`msgspec.json`), versioned by `schema`.

    Attributes:
        closed: The conversation up to the last turn whose calls all have results.
        open_calls: Calls of the last assistant message of `closed`, until the last of them has its result.
        turn: Model turns finished.
        text, called, finish: The last turn's text, whether it had calls, and why it stopped.
        cache: What the run had from its servers' caches.
        cut: The bound at which we cut it.
        prompted: The run has asked for the answer after a reasoning cut; it does so once.
        output_asks: How often it has asked for the answer in the form of `output=`, in this segment.
        schema_refused: The present model's server refused a request for its schema.
        originals: Messages that compaction took out of the conversation, in order.
        revision: Grows when something of `closed` is taken out or changed; else it only gets longer.
        last_usage: Of the last reply, from the present model; None if the conversation was changed since. `counted_messages`: how
            many messages of `closed` that request and reply were.
        is_cold: The server's cache is likely to have nothing of the conversation.
        overflowed: The request of the turn under way was refused as too long, and shortened for that.
        attempt: Attempts at the turn under way that failed; `attempts_on_driver` those on the present model.
        shown_as: The attempt whose deltas the next one's extend, when it goes on from a partial answer; else 0.
        retries: Further attempts made in the whole run.
        wait_s, driver, continues: How the next attempt is made, as `Retried` said.
        output_tokens, reasoning_tokens: Of all turns, as counted here.
        progress: Failing and repeating calls.
        elapsed_s: How long the run took until it waited for a person, all such stretches together, without those waits.
        partial: What had arrived of a turn that was cut short by the run's ending.
        stop_reason, error: Set by the run's ending.
    """

    run_id: str
    model: str
    closed: tuple[Message, ...]
    open_calls: tuple[OpenCall, ...] = ()
    turn: int = 0
    text: str = ""
    called: bool = False
    finish: Finish | None = None
    usage: Usage | None = None
    cache: CacheUse = CacheUse()
    cut: StopReason | None = None
    prompted: bool = False
    originals: tuple[Message, ...] = ()
    revision: int = 0
    last_usage: Usage | None = None
    counted_messages: int = 0
    is_cold: bool = False
    overflowed: bool = False
    output_asks: int = 0
    schema_refused: bool = False
    attempt: int = 0
    attempts_on_driver: int = 0
    shown_as: int = 0
    retries: int = 0
    wait_s: float = 0.0
    driver: int = 0
    continues: AssistantMessage | None = None
    output_tokens: float = 0.0
    reasoning_tokens: float = 0.0
    progress: Progress = Progress()
    elapsed_s: float = 0.0
    partial: AssistantMessage | None = None
    stop_reason: StopReason | None = None
    error: ErrorRecord | None = None
    schema: int = SCHEMA_VERSION

    @property
    def ended(self) -> bool:
        return self.stop_reason is not None or self.error is not None

    @property
    def resumable(self) -> bool:
        """There is something left to do: it waits for a person, or broke off."""
        return not self.ended or self.error is not None or self.stop_reason in ("waiting_approval", "cancelled", "deadline")

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, valid at every moment: a call without a result has one that says so."""
        messages = self.closed + tuple(_result(call) for call in self.open_calls)
        if self.partial is not None and self.partial.text:
            return (*messages, self.partial)
        return messages


def _result(open_call: OpenCall) -> ToolMessage:
    if open_call.result is not None:
        return open_call.result
    said = "Not run: the run ended before this call was started."
    if open_call.started:
        said = "Interrupted. The call had started; whether it took effect is unknown."
    elif open_call.waits:
        said = "Not run: the call waits for a person."
    return ToolMessage(open_call.call.id, open_call.call.name, said, is_error=True)


class RunResult(Struct, Generic[OutputT_co], frozen=True, kw_only=True):
    """How a run came out.

    Attributes:
        text: The last turn's text; of a turn that was cut short, what had arrived.
        stop_reason: Why the run ended; None if it failed, and then `error` says how.
        error: The failure as data; None if there was none.
        usage: Tokens of all turns together; a count that some turn did not report is None.
        turns: Model turns that were finished.
        messages: What the next request would send, instructions left out: valid as `history=` of another run
            however this one ended.
        run_id: Names the run.
        state: All of it, as versioned data: what `resume` takes.
        output: The answer as the type that was asked for with `output=`; None if none was, or the run ended for another reason than
            `end`.
    """

    text: str
    stop_reason: StopReason | None
    error: ErrorRecord | None
    usage: Usage
    turns: int
    messages: tuple[Message, ...]
    run_id: str
    state: State
    output: OutputT_co | None = None

    @property
    def cache(self) -> CacheUse:
        """What the run had from its servers' caches: the hit rate, and what broke it."""
        return self.state.cache

    @property
    def pending(self) -> tuple[PendingCall, ...]:
        """The calls that wait for a person, also of a run that was cancelled before they had decided."""
        return tuple(call.pending for call in self.state.open_calls if call.pending is not None and call.waits)

    @classmethod
    def of(cls, state: State, output: Any = None) -> RunResult:
        """The result that a state amounts to."""
        return cls(
            text=state.partial.text if state.partial is not None else state.text,
            stop_reason=state.stop_reason,
            error=state.error,
            usage=state.usage or Usage(),
            turns=state.turn,
            messages=state.messages,
            run_id=state.run_id,
            state=state,
            output=output,
        )


def run_to_json(run: RunResult) -> bytes:
    """The run as one JSON object, to be resumed in another process or another week."""
    return msgspec.json.encode(run.state)


def run_from_json(data: bytes | str) -> RunResult:
    """The run that `run_to_json` wrote.

    Raises:
        UsageError: It is none, was written by a newer version, or its conversation is one that no server would accept.
    """
    try:
        state = msgspec.json.decode(data, type=State)
        check_history(state.messages)
        _check_open_calls(state)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, HistoryError) as error:
        said = error.message if isinstance(error, HistoryError) else error
        raise UsageError(f"not a run: {said}", hint="Pass what `run_to_json` wrote.") from None
    if state.schema > SCHEMA_VERSION:
        raise UsageError(
            f"the run has schema {state.schema}, and this version knows up to {SCHEMA_VERSION}", hint="Update treadle."
        )
    return RunResult.of(state)


def _check_open_calls(state: State) -> None:
    """The open calls are those of the last assistant message, and what was asked about them is about them.

    Raises:
        HistoryError: They are not. Somebody would approve one thing and get another.
    """
    if not state.open_calls:
        return
    last = state.closed[-1] if state.closed else None
    calls = last.calls if isinstance(last, AssistantMessage) else ()
    if calls != tuple(each.call for each in state.open_calls):
        raise HistoryError("its open calls are not those of its last assistant message")
    for each in state.open_calls:
        asked, call = each.pending, each.call
        if asked is not None and (asked.call_id, asked.name, asked.arguments) != (call.id, call.name, call.arguments):
            raise HistoryError(f"what was asked about the call {each.call.id!r} is about another one")
