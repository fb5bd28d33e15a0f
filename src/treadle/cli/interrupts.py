"""Ctrl-C: the first asks the run to end, the second ends the program, whatever it is doing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import Literal, TypeAlias

__all__ = ["on_interrupt"]

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_PATIENCE_S = 1.5
_UNWINDING_S = 1.0
_CANCELLED = 130

_STUCK = b"\nStill stopping: something holds the program up. Ctrl-C again ends it at once.\n"

_Word: TypeAlias = Literal["first", "second", "over"]


@contextlib.contextmanager
def on_interrupt(loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> Generator[None]:
    """Call `stop` in the loop on the first Ctrl-C, SIGTERM or hang-up. The second raises KeyboardInterrupt wherever the program is; if
    it has not ended a second later, it is ended without more ado, and so it is by a third.

    These are handlers of Python's and not the loop's, because a tool that blocks the loop would keep it from its own. A signal that was
    ignored (`nohup`, a background job) stays ignored. On Windows, where a wait cannot be interrupted, the loop wakes up on its own.
    """
    words: queue.SimpleQueue[_Word] = (
        queue.SimpleQueue()
    )  # its `put` may be called in a signal handler: it takes no lock of Python's

    def first(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, second)
        words.put("first")
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
            loop.call_soon_threadsafe(stop)  # which also wakes it

    def second(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, _end)
        words.put("second")
        raise KeyboardInterrupt

    found = {number: signal.getsignal(number) for name in _SIGNALS if (number := getattr(signal, name, None)) is not None}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, first)
    except ValueError:  # not the main thread: signals are not ours to handle
        before = {}
    threading.Thread(target=_watch, args=(words,), daemon=True, name="treadle-interrupts").start()
    try:
        yield
    finally:
        words.put("over")
        for number, handler in before.items():
            if signal.getsignal(number) is first:  # after a first Ctrl-C, a second goes on meaning what it means
                signal.signal(number, handler)


def _watch(words: queue.SimpleQueue[_Word]) -> None:
    """What has to happen while the main thread may be unable to do anything."""
    if words.get() == "over":
        return
    try:
        word = words.get(timeout=_PATIENCE_S)
    except queue.Empty:
        with contextlib.suppress(OSError):
            os.write(2, _STUCK)
        word = words.get()
    if word == "second":
        time.sleep(_UNWINDING_S)
        _end()


def _end(*_: object) -> None:
    """End the program without unwinding. Whatever drew on the terminal may have hidden its cursor."""
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        with contextlib.suppress(OSError):
            os.write(sys.__stdout__.fileno(), b"\x1b[?25h\n")
    os._exit(_CANCELLED)
