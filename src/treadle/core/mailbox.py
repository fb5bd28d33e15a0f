"""From the loop to one watcher: never blocks the loop, never loses an event, merges text for a watcher that is slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from treadle.values.events import Event, TextDelta, ThinkingDelta

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
        """The next event; waits for one if there is none."""
        events = self._events
        while not events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = events.popleft()
        if events and type(event) in (TextDelta, ThinkingDelta) and _alike(event, events[0]):
            return self._merged(event)
        return event

    def _merged(self, first: Event) -> Event:
        assert isinstance(first, TextDelta | ThinkingDelta)
        texts = [first.text]
        while self._events and _alike(first, self._events[0]):
            following = self._events.popleft()
            assert isinstance(following, TextDelta | ThinkingDelta)
            texts.append(following.text)
        return type(first)(turn=first.turn, attempt=first.attempt, text="".join(texts))


def _alike(a: Event, b: Event) -> bool:
    return (
        type(a) is type(b)
        and isinstance(a, TextDelta | ThinkingDelta)
        and isinstance(b, TextDelta | ThinkingDelta)
        and a.turn == b.turn
        and a.attempt == b.attempt
    )
