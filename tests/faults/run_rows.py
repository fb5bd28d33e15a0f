"""Rows about models and tools that do not stop, and about the bounds of a run."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

from tests.faults.net_rows import HELLO
from tests.faults.row import Row, World
from tests.harness import (
    Hang,
    Send,
    Wait,
    call_chunk,
    data_line,
    finish_chunk,
    json_reply,
    reply,
    sse,
    text_chunk,
    thinking_chunk,
)
from treadle import FunctionTool, Limits, ToolError, tool

HEAD = sse(done=False)[0]
PIECE = 1_200  # characters a write


def story(pieces: int) -> str:
    """Text that does not repeat."""
    return "".join(_piece(n) for n in range(pieces))


def _piece(n: int) -> str:
    return " ".join(str(n * 1000 + i * i) for i in range(PIECE))[:PIECE]


def endless(chunk: Any, piece: Any = _piece) -> list[Any]:
    """A stream without end: `chunk` of one piece after another."""

    def steps(_: Any) -> Iterator[Any]:
        for n in itertools.count():
            data = data_line(chunk(piece(n)))
            yield Send(b"%x\r\n%b\r\n" % (len(data), data))

    return [HEAD, steps]


def calling(name: str, **arguments: Any) -> list[Any]:
    """A turn that calls this tool."""
    return sse(*reply(calls=[(name, arguments)]))


class Boom(BaseException):
    """What no tool should raise, and some library will."""


def odd(world: World) -> list[FunctionTool[..., Any]]:
    """Tools that are no good."""

    @tool(concurrency="read_only")
    async def look() -> str:
        """Look, and see the same."""
        world.ran += 1
        return "nothing"

    @tool
    async def fail(n: int = 0) -> str:
        """Fail."""
        world.ran += 1
        raise ToolError(f"no {n}")

    @tool
    async def hang() -> None:
        """Never return."""
        world.ran += 1
        await world.released.wait()

    @tool
    async def stubborn() -> None:
        """Never return, whoever asks."""
        world.ran += 1
        while not world.released.is_set():
            try:
                await world.released.wait()
            except asyncio.CancelledError:
                pass

    @tool
    def thread() -> None:
        """Never return, in a thread."""
        world.ran += 1
        world.thread_released.wait(20)

    @tool
    async def step(n: int) -> str:
        """Something new every time."""
        world.ran += 1
        return f"step {n}"

    @tool(concurrency="read_only")
    async def raising(kind: str) -> None:
        """Raise what is no Exception."""
        world.ran += 1
        raise {"SystemExit": SystemExit, "CancelledError": asyncio.CancelledError, "GeneratorExit": GeneratorExit}.get(kind, Boom)

    @tool
    def raising_thread() -> None:
        """Raise what is no Exception, in a thread."""
        world.ran += 1
        raise Boom

    @tool
    async def large() -> str:
        """A result of 20 MB."""
        world.ran += 1
        return "x" * 20_000_000

    @tool
    async def unwritable() -> object:
        """A result that is no JSON."""
        world.ran += 1
        return object()

    return [look, fail, hang, stubborn, thread, step, raising, raising_thread, large, unwritable]


def _endless() -> list[Row]:
    think = endless(thinking_chunk)
    answer = Limits(on_reasoning_limit="answer")
    arguments = endless(lambda text: call_chunk(0, arguments=text))
    opening = data_line(call_chunk(0, id="a", name="get_weather", arguments='{"city": "'))
    long_call = [arguments[0], Send(b"%x\r\n%b\r\n" % (len(opening), opening)), *arguments[1:]]
    many = endless(lambda n: call_chunk(int(n), id=n, name="get_weather", arguments='{"city": "Paris"}'), str)
    phrase = "the same again and "
    return [
        Row("text without end", [endless(text_chunk)], answer=None, partial=story(120), real=True),
        Row("text without end, 100 tokens allowed", [endless(text_chunk)], answer=None, partial=story(2), limits=Limits(output_tokens_per_turn=100)),
        Row("reasoning without end", [think], answer=None),
        Row("reasoning without end, `on_reasoning_limit=\"answer\"`", [think], limits=answer),
        Row("reasoning without end, twice, `on_reasoning_limit=\"answer\"`", [], then=think, answer=None, limits=answer),
        Row("tagged reasoning without end", [endless(lambda t: text_chunk("<think>" * (t == story(1)) + t))], answer=None),
        Row("one phrase for ever", [endless(text_chunk, lambda n: phrase * 50)], answer=None, partial=phrase * 5000),
        Row("one phrase for ever, as reasoning", [endless(thinking_chunk, lambda n: phrase * 50)], answer=None),
        Row("arguments without end", [long_call], answer=None),
        Row("calls without end", [many], answer=None),
    ]  # fmt: skip


def _loops() -> list[Row]:
    steps = [calling("step", n=n) for n in range(50)]
    fails = [calling("fail", n=n) for n in range(20)]
    alternating = [calling("look"), calling("fail"), *[calling("look"), calling("fail", n=1)] * 10]
    return [
        Row("the same call for ever", [], then=calling("look"), tools=odd, answer=None, ran=3),
        Row("the same failing call for ever", [], then=calling("fail"), tools=odd, answer=None, ran=3),
        Row("failing calls for ever", fails, tools=odd, answer=None, ran=4),
        Row("a call that never changes and one that fails", alternating, tools=odd, answer=None, ran=7),
        Row("a tool that does not exist, for ever", [], then=calling("nothing"), tools=odd, answer=None),
        Row("new calls for ever", steps, then=calling("step", n=99), tools=odd, answer=None, ran=50),
        Row("`max_turns=1`", [calling("step", n=0)], tools=odd, answer=None, ran=1, limits=Limits(max_turns=1)),
        Row("a thousand calls in a turn", [sse(*reply(calls=[("step", {"n": n}) for n in range(1000)]))], tools=odd, ran=1000),
    ]


def _tools() -> list[Row]:
    both = sse(*reply(calls=[("stubborn", {}), ("step", {"n": 1})]))
    kinds = ("SystemExit", "CancelledError", "GeneratorExit", "BaseException")
    rows = [Row(f"a tool raises {kind}", [calling("raising", kind=kind)], tools=odd, ran=1) for kind in kinds]
    pair = sse(*reply(calls=[("raising", {"kind": "BaseException"}), ("look", {})]))
    return [
        *rows,
        Row("one of two parallel tools raises BaseException", [pair], tools=odd, ran=2),
        Row("a tool raises BaseException in its thread", [calling("raising_thread")], tools=odd, ran=1),
        Row("a tool never returns", [calling("hang")], tools=odd, ran=1, within_s=125),
        Row("a tool never returns and ignores its cancellation", [calling("stubborn")], tools=odd, ran=1, within_s=125),
        Row("the same, and another call waits for its turn", [both], tools=odd, ran=2, within_s=125),
        Row("a tool never returns, in a thread", [calling("thread")], tools=odd, ran=1, threads=True, within_s=125),
        Row("a tool returns 20 MB", [calling("large")], tools=odd, ran=1),
        Row("a tool returns what is no JSON", [calling("unwritable")], tools=odd, ran=1),
    ]


def _bounds() -> list[Row]:
    minute = Limits(deadline_s=60)
    slow = sse(*(step for n in range(20) for step in (text_chunk(f"{n} "), Wait(10))), finish_chunk())
    text = "".join(f"{n} " for n in range(20))
    waits = json_reply({}, status=429, headers={"Retry-After": "50"})
    cheap = Limits(output_tokens_per_run=20)
    words = "A text of more than twenty tokens in two turns."
    long = sse(*reply(words, calls=[("step", {"n": 1})], usage=None))
    common: dict[str, Any] = {"answer": None, "limits": minute, "tools": odd, "within_s": 62}
    return [
        Row("deadline 60 s, text every 10 s", [slow], partial=text, **common),
        Row("deadline 60 s, no answer", [[Hang()]], **common),
        Row("deadline 60 s, 429s that ask for 50 s", [], then=waits, **common),
        Row("deadline 60 s, a tool that never returns", [calling("hang")], ran=1, **common),
        Row("deadline 60 s, a tool that ignores its cancellation", [calling("stubborn")], ran=1, **common),
        Row("deadline 60 s, a tool in a thread", [calling("thread")], ran=1, threads=True, **common),
        Row("20 tokens a run, in two turns", [long, long], tools=odd, answer=None, partial=words, limits=cheap, ran=1),
        Row("a stall, then a call, then a cut", [sse(HELLO, Wait(100), *reply(calls=[("step", {"n": 1})])), sse(HELLO, done=False)], tools=odd, partial="Hello", ran=1, within_s=110),
    ]  # fmt: skip


SECTIONS = {
    "Replies without end": _endless(),
    "Runs that get nowhere": _loops(),
    "Tools": _tools(),
    "Bounds": _bounds(),
}
