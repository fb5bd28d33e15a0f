from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from treadle.core.mailbox import Mailbox
from treadle.values.events import Ended, Event, TextDelta, ThinkingDelta, ToolCallDelta

events: st.SearchStrategy[list[Event]] = st.lists(
    st.builds(TextDelta, turn=st.integers(1, 2), attempt=st.integers(1, 2), text=st.text(max_size=3))
    | st.builds(ThinkingDelta, turn=st.integers(1, 2), text=st.text(max_size=3))
    | st.builds(ToolCallDelta, turn=st.just(1), position=st.integers(0, 1), name=st.just("f"), arguments=st.text(max_size=3))
)


def merged(events: list[Event]) -> list[list[Any]]:
    out: list[list[Any]] = []
    for event in events:
        kind = [type(event), getattr(event, "turn", 0), getattr(event, "attempt", 0)]
        if isinstance(event, TextDelta | ThinkingDelta):
            if out and out[-1][:3] == kind:
                out[-1][3] += event.text
            else:
                out.append([*kind, event.text])
        else:
            out.append([*kind, event])
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


def test_a_waiting_reader_is_woken() -> None:
    async def main() -> None:
        box = Mailbox()
        reader = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        box.put([TextDelta(turn=1, text="a")])
        assert await reader == TextDelta(turn=1, text="a")

    asyncio.run(main())
