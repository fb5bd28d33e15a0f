"""An event loop whose time costs nothing, for runs that wait: retries, `Retry-After`, deadlines, slow tools."""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from treadle.testing.guard import is_lifted

__all__ = ["run_virtual"]

T = TypeVar("T")

_TICK_S = 0.001  # real; how often threads are looked after


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns, run on an event loop of its own in which waiting takes no time.

        result = run_virtual(agent.run("Weather in Oslo?"))

    When nothing can happen before the next timer, the loop's clock jumps to it. Time stands still while a tool runs in a thread. For
    recorded answers and scripts; what really has to be waited for, as a server or a subprocess, comes too late on this clock. So while
    a cassette is being recorded, waiting takes the time that it takes.
    """
    if is_lifted():
        return asyncio.run(coroutine)
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(coroutine)


class _Selector(selectors.DefaultSelector):
    """Waits for no timer: it tells the loop that the time has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: Callable[[float], None] = lambda seconds: None
        self.is_held: Callable[[], bool] = lambda: False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if events := super().select(_TICK_S if self.is_held() else 0):
            return events
        if not self.is_held():
            self.passed(timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now_s = 0.0
        self._in_executor = 0
        selector = _Selector()
        selector.passed = self._pass
        selector.is_held = self._threads_are_at_work
        super().__init__(selector)

    def time(self) -> float:
        return self._now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._in_executor += 1
        future.add_done_callback(self._back_from_executor)
        return future

    async def shutdown_default_executor(self, *args: Any, **settings: Any) -> None:
        """Its threads are joined in real time, against a time limit of 3.12 and newer that must not pass meanwhile."""
        self._in_executor += 1
        try:
            await super().shutdown_default_executor(*args, **settings)
        finally:
            self._in_executor -= 1

    def _pass(self, seconds: float) -> None:
        self._now_s += seconds

    def _back_from_executor(self, _: object) -> None:
        self._in_executor -= 1

    def _threads_are_at_work(self) -> bool:
        threads = sys.modules.get("treadle.tools.threads")  # not imported: then none were started
        return self._in_executor > 0 or (threads is not None and threads.running_count() > 0)
