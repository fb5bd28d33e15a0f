"""An event loop whose clock is virtual: waiting costs nothing, and loopback sockets work as they are.

Time stands still while anything can happen; when nothing can, it jumps to the next timer. "Anything" is: a callback is
ready, bytes are on their way over loopback, `run_in_executor` work is awaited, or a `quiescent` hook says that threads
are at work. Subprocesses and sockets to other processes do not hold time: a test with those adds a hook of its own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import socket
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Deadlock", "TimeLimit", "VirtualClockLoop", "run_virtual", "settled"]

T = TypeVar("T")

# One round brings everything sent before it. The kernel may answer on its own (a handshake, an opened window) before
# a socket of ours becomes ready, and each of its answers takes a round.
_ROUNDS = 3
_TICK_S = 0.001  # real; the least that epoll can wait


class Deadlock(AssertionError):
    """Nothing was scheduled and nothing happened for `stuck_after_s` real seconds. The message names who waits."""


class TimeLimit(AssertionError):
    """The next timer is beyond the virtual time the loop may use. The message names who waits."""


class _Selector(selectors.DefaultSelector):
    """Asks the loop what a wait means."""

    loop: VirtualClockLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        return self.loop._wait(super().select, timeout)


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A selector loop on virtual time, which begins at 0.

    Attributes:
        quiescent: Hooks that return True while no thread of theirs may still call the loop. Until all do, time stands
            still; a thread must post its result before its hook turns True. A test about a thread that never ends
            clears this list.
        limit_s: Virtual time at which the loop raises `TimeLimit`.
        stuck_after_s: Real seconds without any event after which it raises `Deadlock`.
    """

    def __init__(self, limit_s: float = 7200.0) -> None:
        self.limit_s = limit_s
        self.stuck_after_s = 20.0
        self.quiescent: list[Callable[[], bool]] = [_tool_threads_are_done]
        self._now = 0.0
        self._executor_work: set[object] = set()
        self._settling: deque[asyncio.Future[None]] = deque()
        # Loopback is first in, first out: when a datagram to ourselves is here, so is all that was sent before it.
        self._probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._probe.bind(("127.0.0.1", 0))
        self._probe.connect(self._probe.getsockname())
        self._probe.settimeout(1.0)
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._own_fds = set(selector.get_map())

    def time(self) -> float:
        return self._now

    async def settled(self) -> None:
        """Return when nothing more can happen before time passes. No time passes."""
        waiter = self.create_future()
        self._settling.append(waiter)
        await waiter

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """As always, and time stands still until the returned future is done (which a cancelled one is at once)."""
        future = super().run_in_executor(executor, func, *args)
        self._executor_work.add(future)
        future.add_done_callback(self._executor_work.discard)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        hold = object()
        self._executor_work.add(hold)
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._executor_work.discard(hold)

    def close(self) -> None:
        super().close()
        self._probe.close()

    def open_transports(self) -> list[asyncio.Transport]:
        """Socket transports not closed yet, those that are closing or do not read included."""
        return [t for t in self._transports.values() if t.get_extra_info("socket").fileno() != -1]

    def left_open(self) -> list[str]:
        """What is unfinished besides the current task: tasks, sockets and other file descriptors, one line each."""
        current = asyncio.current_task(self)
        found = [f"task {_describe(task)}" for task in asyncio.all_tasks(self) if task is not current]
        transports = self.open_transports()
        found += [f"{type(t).__name__} of {t.get_extra_info('socket')!r}" for t in transports]
        known = self._own_fds | {t.get_extra_info("socket").fileno() for t in transports}
        files = self._selector.get_map().items()
        return found + [f"file {fd} watched by {key.data!r}" for fd, key in files if fd not in known]

    def _wait(self, select: Callable[[float], list[Any]], timeout: float | None) -> list[Any]:
        """The selector's wait with nothing ready: events, or none once time has moved by `timeout`."""
        began = time.monotonic()
        while True:
            # Asked before the sockets are: what a thread posted before its hook turned True is then seen.
            held = bool(self._executor_work) or not all([quiet() for quiet in self.quiescent])
            for _ in range(_ROUNDS):
                self._probe.send(b".")
                self._probe.recv(1)
                if events := select(0):
                    return events
            if not held:
                while self._settling:
                    waiter = self._settling.popleft()
                    if not waiter.done():
                        waiter.set_result(None)
                        return []
                if timeout is not None:
                    self._advance(timeout)
                    return []
            if events := select(_TICK_S):
                return events
            if time.monotonic() - began > self.stuck_after_s:
                why = "threads are still at work" if held else "nothing is scheduled"
                raise Deadlock(f"no event in {self.stuck_after_s:g} real seconds, and {why}{self._who_waits()}")

    def _advance(self, by_s: float) -> None:
        if self._now + by_s > self.limit_s:
            limit_s, self.limit_s = self.limit_s, self.limit_s * 2  # cleaning up may take time too
            raise TimeLimit(f"the next timer is at {self._now + by_s:g} s, past {limit_s:g} s{self._who_waits()}")
        self._now += by_s

    def _who_waits(self) -> str:
        return "".join(f"\n  {_describe(task)}" for task in asyncio.all_tasks(self))


async def settled() -> None:
    """Return when nothing more can happen before time passes; on another loop, after three turns of it."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualClockLoop):
        await loop.settled()
    else:
        for _ in range(3):
            await asyncio.sleep(0)


def run_virtual(coro: Coroutine[Any, Any, T], *, limit_s: float = 7200.0) -> T:
    """Run `coro` on a new `VirtualClockLoop` and return its result, as `asyncio.run` would.

    On return nothing may be left: tasks, sockets or transports that are still open once all that can happen without
    time passing has happened; exceptions that nobody retrieved; coroutines never awaited; unclosed resources. When
    `coro` raises, its exception is raised and carries such findings as a note.

    Garbage is collected when `coro` has ended and not before, so finalizers run at the same point every time.

    Raises:
        AssertionError: Something was left; the message lists it.
        Deadlock, TimeLimit: See there.
    """
    found: list[str] = []
    loop = VirtualClockLoop(limit_s)
    loop.set_exception_handler(lambda _, context: found.append(_reported(context)))

    async def main() -> T:
        try:
            return await coro
        finally:
            await loop.settled()
            found.extend(f"left open: {item}" for item in loop.left_open())
            for transport in loop.open_transports():
                transport.abort()
            await loop.settled()

    collecting = gc.isenabled()
    gc.disable()
    failure: BaseException | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        warnings.filterwarnings("always", "coroutine .* was never awaited", RuntimeWarning)
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                result = runner.run(main())
        except BaseException as error:
            failure = error
        finally:
            gc.collect(0)  # all that this run made is young, and a whole collection takes longer than the run
            if collecting:
                gc.enable()
    for warning in caught:
        if issubclass(warning.category, ResourceWarning) or "never awaited" in str(warning.message):
            found.append(f"{warning.category.__name__}: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    report = "".join(f"\n  {item}" for item in found)
    if failure is not None:
        if found:
            failure.add_note(f"and the run left something behind:{report}")
        raise failure
    if found:
        raise AssertionError(f"the run left something behind:{report}")
    return result


def _tool_threads_are_done() -> bool:
    threads = sys.modules.get("treadle.tools.threads")  # not imported: none were started
    return threads is None or threads.running_count() == 0


def _reported(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"reported to the loop: {context['message']}" + (f": {error!r}" if error is not None else "")


def _describe(task: asyncio.Task[Any]) -> str:
    """Name, function, and the innermost line it waits at."""
    coroutine: Any = task.get_coro()
    name, frame = getattr(coroutine, "__qualname__", repr(coroutine)), None
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None) or frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    if frame is None:
        return f"{task.get_name()}: {name}"
    code = frame.f_code
    return f"{task.get_name()}: {name} waits at {os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}"
