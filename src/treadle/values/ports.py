"""The protocols the core is written against. Drivers, tools and journals know nothing of each other; they meet in core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from treadle.values.events import Delta, Fact
from treadle.values.messages import Message, ToolCall, ToolMessage
from treadle.values.request import ModelInfo, ModelRequest, Omission, OutputSchema, PrefixMove, Reply, SchemaSupport
from treadle.values.tokens import Calibration
from treadle.values.toolcalls import Concurrency, Outcome

__all__ = [
    "AnswerType",
    "CallContext",
    "Connection",
    "Driver",
    "Job",
    "Journal",
    "PreparedCall",
    "ReplyStream",
    "TokenCounter",
    "Toolbox",
]


class ReplyStream(Protocol):
    """A reply as it arrives: iterate once to the end, then read `reply`.

    Each item is what one read of the socket brought, in order; it may be empty. Leaving early is safe at any await:
    the block that opened the stream closes the server's connection.
    """

    def __aiter__(self) -> AsyncIterator[Sequence[Delta]]: ...

    @property
    def reply(self) -> Reply:
        """The reply so far. `finish` is set once the iteration has ended without an error."""
        ...

    @property
    def omitted(self) -> Sequence[Omission]:
        """What the request left out and no earlier one of the same connection did."""
        ...

    @property
    def moved(self) -> PrefixMove | None:
        """What a cache has in vain, because the request does not begin as one before it; None if it does, or nobody knows."""
        ...


class Connection(Protocol):
    """One run's way to a server. Calls are made one after another."""

    def open(self, request: ModelRequest) -> AbstractAsyncContextManager[ReplyStream]:
        """Send a request. Leaving the block closes the exchange with the server within 100 ms.

        Raises:
            ModelError: From entering, or from iterating; see `treadle.errors`.
        """
        ...


@runtime_checkable
class Driver(Protocol):
    """One model on one server. Immutable from outside and safe to share between runs and tasks; does no I/O when made."""

    @property
    def model(self) -> str:
        """The model as events and reports name it, such as `ollama/qwen3:8b`."""
        ...

    @property
    def calibration(self) -> Calibration:
        """What the server's token counts have taught us; shared by all runs."""
        ...

    @property
    def continuable(self) -> bool:
        """The server can go on from a partial answer (`ModelRequest.continues`)."""
        ...

    @property
    def schema_support(self) -> SchemaSupport:
        """When `ModelRequest.output` may be set."""
        ...

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """What a run holds while it lasts: sockets, pools. Opening it sends nothing to a model."""
        ...

    async def info(self) -> ModelInfo:
        """What the server says of the model.

        Raises:
            ModelError: The server could not be asked.
        """
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """What a driver is besides, if it can count a request's tokens exactly. Where it is not, or the answer is None, estimate."""

    async def count(self, request: ModelRequest) -> int | None:
        """How many tokens the server would read for this request, template and tools included; None if it does not say.

        Costs a question to the server, so it is for requests that are near a bound.

        Raises:
            UsageError, ContextOverflow: The request could not be sent either.
            ModelError: No server was found to ask.
        """
        ...


class CallContext(Struct, frozen=True, kw_only=True):
    """What a run lends to one of its calls.

    Attributes:
        deadline: The event loop's time at which the run ends; infinite for a call that waits for a person.
        messages: The conversation so far.
        report: Commits a `ToolProgress`.
    """

    run_id: str
    turn: int
    position: int
    deadline: float
    messages: Callable[[], tuple[Message, ...]]
    report: Callable[[str, float | None], Awaitable[None]]


class PreparedCall(Protocol):
    """A call that may run: its tool exists and its arguments passed every gate."""

    @property
    def concurrency(self) -> Concurrency: ...

    @property
    def group(self) -> str | None:
        """The lock it takes; None for an exclusive call that conflicts with everything."""
        ...

    @property
    def repeatable(self) -> bool:
        """Running it twice does no more than running it once."""
        ...

    @property
    def needs_approval(self) -> bool:
        """A person is asked before it runs, unless the run's policy says otherwise."""
        ...

    @property
    def is_question(self) -> bool:
        """It runs nowhere: it asks the person, and what they say is its result."""
        ...

    def subjects(self) -> Mapping[str, str | None]:
        """What approval rules hold their patterns against, by argument name; None where it cannot be said."""
        ...

    async def preview(self) -> str | None:
        """What it would do, for the person who decides; the same text as long as it would do the same."""
        ...

    async def run(self, context: CallContext) -> Outcome:
        """The outcome. Every failure of the tool is one too; raises only when cancelled from outside."""
        ...


class Job(Struct, frozen=True, gc=False):
    """One call of a turn, to be run when the calls before it that it conflicts with have ended."""

    concurrency: Concurrency
    group: str | None
    start: Callable[[], Awaitable[None]]


class Toolbox(Protocol):
    """The tools of a run, and the rules for running them."""

    def prepare(self, call: ToolCall) -> PreparedCall | ToolMessage:
        """What to run, or the result that says why nothing runs."""
        ...

    async def run_in_turn(self, jobs: Sequence[Job]) -> None:
        """Run one turn's jobs, given in call order, as their concurrency allows. Cancelled, it cancels them."""
        ...

    async def settle(self) -> None:
        """Wait a moment for tools that were cancelled; returns at once if none was."""
        ...


class AnswerType(Protocol):
    """What the answer of a run has to be."""

    @property
    def schema(self) -> OutputSchema: ...

    def decode(self, text: str) -> Any:
        """The value that an answer says.

        Raises:
            OutputInvalid: It says none of this form.
        """
        ...


class Journal(Protocol):
    """Where facts are kept. A fact is shown to nobody before `append` has returned."""

    def append(self, run_id: str, fact: Fact) -> Awaitable[None]: ...
