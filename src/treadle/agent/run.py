"""A watched run: iterate its events, leave its block to cancel it."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, Self

from treadle.agent.mailbox import Mailbox
from treadle.core.loop import Loop
from treadle.errors import UsageError
from treadle.values.events import Ended, Event, Failed, TextDelta
from treadle.values.state import OutputT_co, RunResult

__all__ = ["Run"]

GRACE_S = 1.0
"""After a cancel: how long the run may take to end before it is left behind."""


class Run(Generic[OutputT_co]):
    """One run, as it happens.

        async with agent.stream("...") as run:
            async for event in run:
                ...
        run.result

    The last event is `Ended` or `Failed`; after `Failed` the iterator raises the error. Leaving the block early closes
    the server's connection and cancels the tools within 100 ms, and `result.stop_reason` is then `cancelled`. A run that
    is dropped without leaving its block is cancelled when it is collected. A run has one reader.
    """

    def __init__(self, start: Callable[[Callable[[Sequence[Event]], None]], Loop]) -> None:
        self._mailbox = Mailbox()
        self._start = start
        self._loop: Loop | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._failed = False

    @property
    def result(self) -> RunResult[OutputT_co]:
        """How the run came out.

        Raises:
            UsageError: The run has not ended yet.
        """
        if self._loop is None or not self._loop.ended:
            raise UsageError("the run has not ended yet", hint="Read `result` after the loop over its events.")
        return self._loop.result

    async def cancel(self) -> None:
        """End the run now, with the stop reason `cancelled`. Returns when it has ended, at most about a second later.

        A tool that ignores its cancellation is left behind and cannot write to the run any more.
        """
        if self._task is None:
            if self._loop is None:
                self._loop = self._start(self._mailbox.put)
                self._loop.abandon()
        elif not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=GRACE_S)
            if self._loop is not None:
                self._loop.abandon()

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()
        self._over = True

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        self._begin()
        if self._over:
            raise StopAsyncIteration
        if self._failed:
            self._over = True
            assert self._task is not None
            await asyncio.wait([self._task])
            if self._loop is not None and self._loop.failure is not None:
                raise self._loop.failure
            raise StopAsyncIteration
        event = await self._mailbox.get()
        if isinstance(event, Ended):
            self._over = True
        elif isinstance(event, Failed):
            self._failed = True
        return event

    async def text_deltas(self) -> AsyncIterator[str]:
        """The answer's text alone, as it is written, of all turns.

        For readers that cannot take text back: with `on_interrupted="restart"` read the events, where `Discarded` says what is void.

        Raises:
            TreadleError: The run failed, after what was given.
        """
        async for event in self:
            if isinstance(event, TextDelta):
                yield event.text

    def _begin(self) -> None:
        if self._loop is not None or self._over:
            return
        self._loop = self._start(self._mailbox.put)
        self._task = asyncio.get_running_loop().create_task(self._loop.drive())
        self._task.add_done_callback(functools.partial(_settle, self._loop))
        # The task must not keep this object alive, or dropping it could not be noticed.
        weakref.finalize(self, _cancel_task, self._task, asyncio.get_running_loop()).atexit = False


def _cancel_task(task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
    if not task.done() and not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


def _settle(loop: Loop, task: asyncio.Task[None]) -> None:
    """A task that was cancelled before its first step committed no ending; its error was shown as `Failed`."""
    loop.abandon()
    if not task.cancelled():
        task.exception()
