"""Running a blocking function off the event loop, in a thread that can be left behind.

A thread cannot be stopped from outside. One that is no longer waited for is abandoned: it is daemon, so it never
delays exit; it is listed; and what it returns or raises goes nowhere.

The whole process runs at most `MAX_RUNNING` calls at a time; the others queue. Abandoned threads take no place among them, so that a tool
that hangs cannot stop the others, but beyond `MAX_ABANDONED` of them no further call is started.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast

from treadle.errors import ToolError

__all__ = ["MAX_ABANDONED", "MAX_RUNNING", "abandoned", "run_in_thread", "running_count"]

T = TypeVar("T")

MAX_RUNNING = 64
MAX_ABANDONED = 256

_running: dict[threading.Thread, asyncio.AbstractEventLoop] = {}
_abandoned: set[threading.Thread] = set()
_numbers = itertools.count(1)

# Raised out of an await, each of these would mean something else to asyncio, or end the program.
_MISREAD = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration, StopAsyncIteration)


def abandoned() -> tuple[str, ...]:
    """Names of threads that nobody waits for any more and that still run."""
    return tuple(sorted(thread.name for thread in tuple(_abandoned) if thread.is_alive()))


class _Places:
    """Places for calls that run, first come, first served, shared by all event loops of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._queue: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    async def take(self) -> None:
        with self._lock:
            if self._taken < MAX_RUNNING:
                self._taken += 1
                return
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[None] = loop.create_future()
            self._queue.append((loop, turn))
        try:
            await turn
        except BaseException:  # cancelled, or the coroutine was closed
            if turn.done() and not turn.cancelled():
                self.give_back()  # it was ours already
            turn.cancel()
            raise

    def give_back(self) -> None:
        with self._lock:
            self._taken -= 1
            while self._queue:
                loop, turn = self._queue.popleft()
                if turn.cancelled():
                    continue
                try:
                    loop.call_soon_threadsafe(self._hand_over, turn)
                except RuntimeError:  # that loop is closed
                    continue
                self._taken += 1
                return

    def _hand_over(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self.give_back()  # cancelled meanwhile
        else:
            turn.set_result(None)


_places = _Places()


def running_count() -> int:
    """Calls that were started and whose result has not reached the waiting task, abandoned ones left out.

    A virtual clock must not move while this is above 0. Calls of a closed event loop do not count.
    """
    for thread, loop in tuple(_running.items()):
        if loop.is_closed():
            _running.pop(thread, None)
    return len(_running)


async def run_in_thread(fn: Callable[[], T]) -> T:
    """What `fn` returns, called in a daemon thread of its own with a copy of the caller's context variables.

    Cancelling the waiting task abandons the thread. Waits while `MAX_RUNNING` other calls run.

    Raises:
        ToolError: `MAX_ABANDONED` threads were left behind and still run; no further one is started.
        RuntimeError: `fn` raised what would stop a program, a task or a generator (`SystemExit`, `KeyboardInterrupt`,
            `CancelledError`, `StopIteration`, ...); that is its cause. Or no thread could be started.
        BaseException: Any other exception of `fn`, as it is.
    """
    _abandoned.difference_update([t for t in tuple(_abandoned) if not t.is_alive()])
    if len(_abandoned) >= MAX_ABANDONED:
        raise ToolError(f"{len(_abandoned)} earlier calls never returned, so no further one is started in this process.")
    await _places.take()
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    outcome: list[tuple[T | None, BaseException | None]] = []
    context = contextvars.copy_context()

    def deliver() -> None:
        _running.pop(thread, None)
        if not waiter.done():
            waiter.set_result(None)

    def work() -> None:
        try:
            outcome.append((context.run(fn), None))
        except BaseException as error:
            outcome.append((None, error))
        try:
            loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            _running.pop(thread, None)

    called = getattr(getattr(fn, "func", fn), "__name__", "call")
    thread = threading.Thread(target=work, name=f"treadle-{called}-{next(_numbers)}", daemon=True)
    try:
        thread.start()
        _running[thread] = loop
        await waiter
    finally:
        _places.give_back()
        if _running.pop(thread, None) is not None:  # cancelled, or the coroutine was closed
            _abandoned.add(thread)
    result, error = outcome.pop()
    try:
        if isinstance(error, _MISREAD):
            raise RuntimeError(f"a function in a thread raised {type(error).__name__}: {error}") from error
        if error is not None:
            raise error
        return cast("T", result)
    finally:
        del error  # its traceback holds this frame
