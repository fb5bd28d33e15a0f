"""Writing a run's facts so that a cancel cannot part the journal from the state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from treadle.values.events import Ended, Fact, Failed
from treadle.values.ports import Journal

__all__ = ["GRACE_S", "PATIENCE_S", "Writer"]

GRACE_S = 0.3
"""How long a cancelled run waits for its journal: once for a fact under way, twice for the ending; under a second in all."""

PATIENCE_S = 10.0
"""How long a run that failed or ran out of time waits for its journal to take the ending."""


class Writer:
    """A run's way to its journal, or straight to its state if it has none: append, then accept, one fact at a time."""

    def __init__(self, journal: Journal | None, run_id: str, accept: Callable[[Fact], None]) -> None:
        self._journal = journal
        self._run_id = run_id
        self._accept = accept
        self._order = asyncio.Lock()  # parallel tools write one at a time: journal, state and watchers agree
        self._open: tuple[asyncio.Future[None], Fact] | None = None
        self._closed = False
        self._began = False

    async def append(self, fact: Fact) -> None:
        """Append a fact, then accept it. Cancelled meanwhile, it leaves that to `settle`."""
        if self._closed:
            return
        if self._journal is None:
            self._take(fact)
            return
        async with self._order:
            if self._closed:
                return
            writing = asyncio.ensure_future(self._journal.append(self._run_id, fact))
            self._open = (writing, fact)
            await asyncio.shield(writing)
            self._open = None
            self._take(fact)

    async def settle(self) -> None:
        """Give a fact that was under way a moment; accept it if it landed, and see to it that it does not land later."""
        if self._open is None:
            return
        (writing, fact), self._open = self._open, None
        try:
            await asyncio.wait([writing], timeout=GRACE_S)
        finally:
            if writing.done() and not writing.cancelled() and writing.exception() is None:
                self._take(fact)
            else:
                writing.cancel()

    async def end(self, ending: Ended | Failed) -> None:
        """Append an ending, if there is none, and accept it; accept it too where the journal cannot take it, or not in time."""
        if self._closed:
            return
        if not self._began:  # a journal that did not take the first fact is not given the last
            await self.settle()
        if not self._began:
            self.close(ending)
            return
        is_cancel = isinstance(ending, Ended) and ending.stop_reason == "cancelled"
        try:
            with contextlib.suppress(Exception):  # the first error is the one to tell; a full disk would fail here again
                async with asyncio.timeout(GRACE_S if is_cancel else PATIENCE_S):
                    await self.append(ending)
        finally:
            await self.settle()
            self.close(ending)

    def close(self, ending: Ended | Failed) -> None:
        """Accept an ending here and now, if there is none. Nothing goes to the journal any more."""
        if not self._closed:
            self._take(ending)

    def _take(self, fact: Fact) -> None:
        self._began = True
        self._closed = isinstance(fact, Ended | Failed)
        self._accept(fact)
