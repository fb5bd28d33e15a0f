from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.agent.mailbox import Mailbox
from treadle.errors import UsageError
from treadle.values.events import Ended, Event, TextDelta, ThinkingDelta, ToolCallDelta

events: st.SearchStrategy[list[Event]] = st.lists(
    st.builds(TextDelta, turn=st.integers(1, 2), attempt=st.integers(1, 2), text=st.text(max_size=3))
    | st.builds(ThinkingDelta, turn=st.integers(1, 2), text=st.text(max_size=3))
    | st.builds(ToolCallDelta, turn=st.just(1), position=st.integers(0, 1), name=st.just("f"), arguments=st.text(max_size=3))
)


def merged(events: list[Event]) -> list[list[Any]]:
    out: list[list[Any]] = []
    for event in events:
        kind = [type(event), getattr(event, "turn", 0), getattr(event, "attempt", 0), getattr(event, "position", 0)]
        text = getattr(event, "text", None) if not isinstance(event, ToolCallDelta) else event.arguments
        if out and out[-1][:4] == kind:
            out[-1][4] += text
        else:
            out.append([*kind, text])
    return out


@given(st.lists(st.tuples(events, st.integers(0, 3))))
def test_nothing_is_lost_however_slowly_it_is_read(puts: list[tuple[list[Event], int]]) -> None:
    async def main() -> None:
        box, got, sent = Mailbox(), [], []
        for batch, reads in puts:
            box.put(batch)
            sent += batch
            for _ in range(reads):
                if box._events:
                    got.append(await box.get())
        box.put([Ended(stop_reason="end")])
        while not isinstance(got and got[-1], Ended):
            got.append(await box.get())
        assert merged(got[:-1]) == merged(sent)

    asyncio.run(main())


def test_a_slow_reader_gets_one_delta_for_many() -> None:
    async def main() -> None:
        box = Mailbox()
        for _ in range(1000):
            box.put([TextDelta(turn=1, text="a")])
        box.put([TextDelta(turn=2, text="b")])
        assert await box.get() == TextDelta(turn=1, text="a" * 1000)
        assert await box.get() == TextDelta(turn=2, text="b")

    asyncio.run(main())


def test_two_readers_are_told_apart() -> None:
    async def main() -> None:
        box = Mailbox()
        reader = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="two tasks"):
            await box.get()
        box.put([TextDelta(turn=1, text="a")])
        assert await reader == TextDelta(turn=1, text="a")

    asyncio.run(main())


def test_arguments_of_one_call_are_merged_and_of_two_are_not() -> None:
    async def main() -> None:
        box = Mailbox()
        for position in (0, 0, 1, 0):
            box.put([ToolCallDelta(turn=1, position=position, name="f", arguments="x")])
        got = [await box.get() for _ in range(3)]
        assert [(e.position, e.arguments) for e in got if isinstance(e, ToolCallDelta)] == [(0, "xx"), (1, "x"), (0, "x")]

    asyncio.run(main())


def test_a_waiting_reader_is_woken() -> None:
    async def main() -> None:
        box = Mailbox()
        reader = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        box.put([TextDelta(turn=1, text="a")])
        assert await reader == TextDelta(turn=1, text="a")

    asyncio.run(main())
