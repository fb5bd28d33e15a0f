"""A run's time: it ends at the deadline, and a person's time counts in none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["Deadline"]


class Deadline:
    """The rest of `limits.deadline_s`, from now on. Made inside the event loop that it counts in.

    Attributes:
        timeout: Enter it around the run.
    """

    def __init__(self, left_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._left_s = left_s
        self.timeout = asyncio.timeout(left_s)

    @property
    def elapsed_s(self) -> float:
        return self._loop.time() - self._began

    @property
    def at(self) -> float:
        """The loop's time at which the run ends."""
        return self._began + self._left_s

    @property
    def is_over(self) -> bool:
        return self._loop.time() >= self.at

    @contextmanager
    def paused(self) -> Generator[None]:
        """While a person is asked. Nothing else of the run goes on meanwhile."""
        began = self._loop.time()
        self.timeout.reschedule(None)
        try:
            yield
        finally:
            self._began += self._loop.time() - began
            self.timeout.reschedule(self.at)
