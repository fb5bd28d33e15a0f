"""What a tool may ask of the run that calls it, without a parameter that the model sees."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Annotated, TypeVar

from treadle.values.messages import Message
from treadle.values.ports import CallContext
from treadle.values.text import plain_text

__all__ = ["FromRun", "Injected", "Progress", "ToolContext"]

T = TypeVar("T")

_PROGRESS_CHARS = 1_000


class FromRun:
    """Marks a parameter that the run fills: `Annotated[Database, FromRun()]`, which `Injected[Database]` is short for."""


if TYPE_CHECKING:
    Injected = Annotated[T, "filled by the run"]
else:

    class Injected:
        """A parameter that the run fills with what it was given: `def find(name: str, db: Injected[Database])`.

        The run takes the first of its `resources`, then of the agent's, that is an instance of the type. The model never sees
        the parameter. A run that has no such resource does not begin: `UsageError`.
        """

        def __class_getitem__(cls, kind):
            return Annotated[kind, FromRun()]


class Progress:
    """The latest word of a running tool. Any thread may write; the loop that it was made in reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest: deque[tuple[str, float | None]] = deque(maxlen=1)
        self._told = asyncio.Event()
        self._is_waking = False

    def put(self, text: str, fraction: float | None) -> None:
        self._latest.append((text, fraction))
        if not self._is_waking:  # a million words are one wake-up
            self._is_waking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over, and this thread was left behind
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        self._told.set()

    def take(self) -> tuple[str, float | None] | None:
        """The latest word, if it has not been read."""
        try:
            return self._latest.popleft()
        except IndexError:
            return None

    async def get(self) -> tuple[str, float | None]:
        """The latest word, when there is one that has not been read."""
        while (word := self.take()) is None:
            self._told.clear()
            await self._told.wait()
        return word


class ToolContext:
    """The call that is running. A parameter of this type is filled by the run, and the model does not see it.

        @tool
        async def index(path: str, ctx: ToolContext) -> str:
            ctx.progress("reading", 0.1)

    Attributes:
        run_id: Names the run.
        turn: The model turn, from 1; with `position`, the call's place in it from 0, it names the call for ever. A tool that must
            not act twice can hand (run_id, turn, position) to its service as an idempotency key.
        call_id: The id that the model's server gave the call.
    """

    def __init__(self, context: CallContext, call_id: str, deadline: float, progress: Progress) -> None:
        self.run_id = context.run_id
        self.turn = context.turn
        self.position = context.position
        self.call_id = call_id
        self._messages = context.messages
        self._deadline = deadline
        self._progress = progress
        self._loop = asyncio.get_running_loop()

    @property
    def time_left_s(self) -> float:
        """Seconds until the call's or the run's time is up, whichever comes first. Infinite for an interactive tool."""
        return max(0.0, self._deadline - self._loop.time())

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        return self._messages()

    def progress(self, text: str, fraction: float | None = None) -> None:
        """Tell whoever watches how far the call is: a `ToolProgress` event. Never waits; may be called from any thread.

        Words that come faster than ten a second are left out, the latest wins.

        Args:
            text: One line; what is over 1,000 characters is left out.
            fraction: From 0 to 1, if known.
        """
        if fraction is not None:
            fraction = min(1.0, max(0.0, float(fraction)))
        self._progress.put(plain_text(text)[:_PROGRESS_CHARS], fraction)
