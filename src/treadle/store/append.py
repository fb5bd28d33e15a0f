"""Writing a fact so that a cancel cannot part the journal from the state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from treadle.values.events import Fact
from treadle.values.ports import Journal

__all__ = ["GRACE_S", "append"]

GRACE_S = 0.3
"""How long a cancelled run waits for its journal: once for a fact under way, twice for the ending; under a second in all."""


async def append(journal: Journal, run_id: str, fact: Fact, accept: Callable[[Fact], None]) -> None:
    """Append a fact, then accept it. Cancelled meanwhile, it gives the append a moment, and accepts the fact if it landed."""
    writing = asyncio.ensure_future(journal.append(run_id, fact))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing], timeout=GRACE_S)
        writing.cancel()
        if writing.done() and not writing.cancelled() and writing.exception() is None:
            accept(fact)
        raise
    accept(fact)
