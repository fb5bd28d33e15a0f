"""An event loop of our own, whose end waits for nobody.

`asyncio.run` waits at its end until every task that was cancelled has ended, so a tool that ignores its cancellation would keep a run
from returning for ever, although the run has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["own_event_loop", "run_in_own_event_loop"]

T = TypeVar("T")

_GRACE_S = 1.0


def run_in_own_event_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. Ctrl-C cancels it, as with `asyncio.run`."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)  # never closed: that would wait
    loop = runner.get_loop()
    try:
        return runner.run(coroutine)
    finally:
        _close(loop)


@contextmanager
def own_event_loop() -> Generator[asyncio.AbstractEventLoop]:
    """A loop to run several things in, one after another."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left, give it a moment, and close the loop whatever came of that."""
    try:
        loop.run_until_complete(_cancel_others())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.set_exception_handler(_say_nothing)
        loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_GRACE_S)


def _say_nothing(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Of a tool that was left behind asyncio says at the end that it was; `left_behind` has it."""
