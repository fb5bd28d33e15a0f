"""From the loop to one watcher: never blocks the loop, never loses an event, merges text for a watcher that is slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from msgspec.structs import replace

from treadle.errors import UsageError
from treadle.values.events import Event, TextDelta, ThinkingDelta, ToolCallDelta

__all__ = ["Mailbox"]


class Mailbox:
    """A queue with one reader. Waiting deltas of one kind, turn and attempt come out as one."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, events: Sequence[Event]) -> None:
        """Add what one step of the loop brought. Never waits."""
        self._events.extend(events)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Event:
        """The next event; waits for one if there is none.

        Raises:
            UsageError: Somebody else is waiting already.
        """
        events = self._events
        while not events:
            if self._waiter is not None:
                raise UsageError("two tasks read one run", hint="A run has one reader: start another run, or share its events.")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = events.popleft()
        if events and _alike(event, events[0]):
            return self._merged(event)
        return event

    def _merged(self, first: Event) -> Event:
        following = [first]
        while self._events and _alike(first, self._events[0]):
            following.append(self._events.popleft())
        field = "arguments" if isinstance(first, ToolCallDelta) else "text"
        return replace(first, **{field: "".join(getattr(each, field) for each in following)})


def _alike(a: Event, b: Event) -> bool:
    """They are pieces of one text."""
    if type(a) is not type(b) or not isinstance(a, TextDelta | ThinkingDelta | ToolCallDelta):
        return False
    assert isinstance(b, TextDelta | ThinkingDelta | ToolCallDelta)
    same = (a.turn, a.attempt) == (b.turn, b.attempt)
    return same and (not isinstance(a, ToolCallDelta) or (isinstance(b, ToolCallDelta) and a.position == b.position))
