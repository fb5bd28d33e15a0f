"""One row of the fault matrix: what the server plays, and what an honest run may make of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from tests.harness import ByteServer, Exchange, VirtualClockLoop, reply, run_virtual, settled, sse
from treadle import (
    Agent,
    Discarded,
    Ended,
    Event,
    Fact,
    Failed,
    FunctionTool,
    HttpDriver,
    Limits,
    Replied,
    RetryPolicy,
    RunResult,
    TextDelta,
    ToolFinished,
    ToolStarted,
    tool,
)
from treadle.core.state import fold
from treadle.testing import BrokenEvents, check_events
from treadle.values.history import check_history
from treadle.wire.chat import ChatCodec

Surface: TypeAlias = Literal["run", "stream"]

FINE = sse(*reply("Fine", usage=(10, 2)))
BEYOND = 60  # exchanges after the script; more than any row can ask for


class SameWaits(RetryPolicy, frozen=True):
    """The default, with waits that are half of the longest instead of random, so that the table stays the same."""

    def wait_s(self, *, attempt: int, retry_after_s: float | None, jitter: float) -> float | None:
        return super().wait_s(attempt=attempt, retry_after_s=retry_after_s, jitter=0.5)


class World:
    """The tools of a run, how often they really ran, and its journal."""

    def __init__(self) -> None:
        self.ran = 0
        self.facts: list[Fact] = []
        self.released = asyncio.Event()  # lets go what would hold on for ever, once the row is over
        self.thread_released = threading.Event()

    async def append(self, run_id: str, fact: Fact) -> None:
        await asyncio.sleep(0)
        self.facts.append(fact)


def standard(world: World) -> list[FunctionTool[..., Any]]:
    """The tools of the recorded streams."""

    @tool(concurrency="read_only")
    async def get_weather(city: str) -> str:
        """Get the weather for a city"""
        world.ran += 1
        await asyncio.sleep(0.1)
        return f"sunny in {city}"

    @tool
    async def calculator(expression: str) -> str:
        """Evaluate an arithmetic expression"""
        world.ran += 1
        return f"{expression} is 84"

    return [get_weather, calculator]


@dataclass(frozen=True, eq=False)
class Row:
    """A fault.

    Attributes:
        script: The server's first answers.
        then: Its answer to everything after them.
        answer: The only text that a run which ends well may show: what the server said together with a reason to stop.
            None if no success is honest.
        partial: What any other ending may show: a beginning of this.
        ran: Tool executions that are right, with `run` and with `stream`.
        refused: Nobody listens at the address.
        usage: Output tokens to be reported; None for unknown, -1 for any.
        within_s: Loop time that is enough: more than this is as good as hanging.
        threads: A tool's thread may outlast the run, so time does not wait for threads.
        real: It is one of the sample that is run again on real time.
    """

    fault: str
    script: Sequence[Exchange]
    then: Exchange = tuple(FINE)
    answer: str | None = "Fine"
    partial: str = ""
    ran: int | tuple[int, int] = 0
    tools: Callable[[World], list[FunctionTool[..., Any]]] = standard
    limits: Limits = Limits()
    refused: bool = False
    usage: int | None = -1
    within_s: float = 30.0
    threads: bool = False
    real: bool = False

    def exchanges(self) -> list[Exchange]:
        return [*self.script, *[self.then] * BEYOND]


@dataclass(frozen=True)
class Seen:
    """What came of a row: for the table, `ended` is a stop reason or an error's class."""

    ended: str
    text: str
    requests: int
    ran: int
    took_s: float
    problems: tuple[str, ...]


def seen(row: Row, surface: Surface) -> Seen:
    """The row on the virtual clock."""

    async def main() -> Seen:
        loop = asyncio.get_running_loop()
        if row.threads and isinstance(loop, VirtualClockLoop):
            loop.quiescent.clear()
        async with ByteServer(row.exchanges(), check=False) as server:
            with socket.socket() as nobody:  # bound, so that nobody else gets the port; not listening
                nobody.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1" if row.refused else server.url
                found = await play(row, surface, url)
            return replace(found, requests=len(server.posts))

    return run_virtual(main())


async def play(row: Row, surface: Surface, url: str, limits: Limits | None = None) -> Seen:
    """One run of the row against the server at `url`. The requests are left for the caller to count."""
    loop = asyncio.get_running_loop()
    world = World()
    agent = Agent(
        HttpDriver(ChatCodec(), url, "m"), tools=row.tools(world), limits=limits or row.limits, journal=world, retry=SameWaits()
    )
    events: list[Event] = []
    result: RunResult | None = None
    began = loop.time()
    try:
        if surface == "run":
            result = await agent.run("Hi")
        else:
            async with agent.stream("Hi") as run:
                async for event in run:
                    events.append(event)
                result = run.result
        ended = str(result.stop_reason)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a tool's may come through; that is for the verdict to say
        ended = type(error).__name__
        result = getattr(error, "result", None)
    took_s = loop.time() - began
    problems = verdict(row, surface, world, events, result, ended)
    if took_s > row.within_s:
        problems.append(f"took {took_s:.1f} s, and {row.within_s:g} s are enough")
    world.released.set()
    world.thread_released.set()
    await settled()
    return Seen(ended, result.text if result else "", 0, world.ran, took_s, tuple(problems))


def verdict(row: Row, surface: Surface, world: World, events: list[Event], result: RunResult | None, ended: str) -> list[str]:
    """Every way in which the outcome is a lie, a repetition or a broken promise."""
    if result is None:
        return [f"{ended} was raised and carries no result"]
    found: list[str] = []
    right = row.ran if isinstance(row.ran, int) else row.ran[surface == "stream"]
    if world.ran != right:
        found.append(f"{world.ran} tool executions instead of {right}")
    if result.stop_reason == "end" and result.text != row.answer:
        found.append(f"success with {result.text[:80]!r}, and the server finished {row.answer!r}")
    if result.stop_reason != "end" and not row.partial.startswith(result.text):
        found.append(f"{result.text[:80]!r} was shown, and the server sent {row.partial[:80]!r}")
    if row.usage != -1 and result.usage.output_tokens != row.usage:
        found.append(f"{result.usage.output_tokens} output tokens reported instead of {row.usage}")
    try:
        check_history(result.messages)
    except Exception as error:
        found.append(f"history: {error}")
    return found + of_facts(world.facts, world.ran, result) + of_events(events) + of_grammar(world.facts, events)


def of_grammar(facts: list[Fact], events: list[Event], *, whole: bool = True) -> list[str]:
    """What `check_events` says of the journal, and of the events if the run was watched.

    Args:
        whole: The reader stayed to the end.
    """
    found: list[str] = []
    for seen, settings in ((facts, {"journal": True}), (events, {"whole": whole})):
        try:
            if seen:
                check_events(seen, **settings)
        except BrokenEvents as error:
            found.append(f"grammar: {error}")
    return found


def of_facts(facts: list[Fact], ran: int, result: RunResult) -> list[str]:
    """What is wrong with a journal of a run that has ended."""
    found: list[str] = []
    endings = [fact for fact in facts if isinstance(fact, Ended | Failed)]
    if len(endings) != 1 or facts[-1] is not endings[0]:
        found.append(f"the journal has {len(endings)} endings, and its last fact is {type(facts[-1]).__name__}")
    for kind in (ToolStarted, ToolFinished):
        calls = [(fact.turn, fact.position) for fact in facts if isinstance(fact, kind)]
        found += [f"{kind.__name__} twice for {call}" for call in sorted(set(calls)) if calls.count(call) > 1]
        if kind is ToolStarted and len(calls) < ran:
            found.append(f"{ran} executions of {len(calls)} calls")
    if fold(facts) != result.state:
        found.append("the journal does not fold to the state")
    return found


def of_events(events: list[Event]) -> list[str]:
    """What is wrong with the events of a watched run that has ended."""
    if not events:
        return []
    one = sum(isinstance(event, Ended | Failed) for event in events) == 1 and isinstance(events[-1], Ended | Failed)
    return of_deltas(events) if one else ["not exactly one ending as the last event", *of_deltas(events)]


def shown(events: list[Event]) -> dict[int, str]:
    """The text of each turn as its reader has it: deltas that were not discarded."""
    void = {(event.turn, event.attempt) for event in events if isinstance(event, Discarded)}
    texts: dict[int, str] = {}
    for event in events:
        if isinstance(event, TextDelta) and (event.turn, event.attempt) not in void:
            texts[event.turn] = texts.get(event.turn, "") + event.text
    return texts


def of_deltas(events: list[Event]) -> list[str]:
    """Turns whose deltas do not come to their text."""
    texts = shown(events)
    said = {event.turn: event.message.text for event in events if isinstance(event, Replied)}
    return [
        f"turn {turn} showed {texts.get(turn, '')[:80]!r} and is {text[:80]!r}"
        for turn, text in said.items()
        if texts.get(turn, "") != text
    ]
