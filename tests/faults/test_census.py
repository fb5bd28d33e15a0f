"""Nothing is left behind: after 200 runs that were left in every way, the process has what it had after one."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from pathlib import Path

from treadle import Agent, LlamaServer, Options, TextDelta, ToolStarted, tool

RUNS = 200
SETTLING_S = 10.0
RAN: Counter[str] = Counter()
PROMPT = "What's the weather in Paris and what is 12*7?"


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Get the weather for a city"""
    RAN["async"] += 1
    await asyncio.sleep(0.05)
    return "18 C, sunny"


@tool(concurrency="read_only")
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    RAN["sync"] += 1
    time.sleep(0.05)
    return "84"


def census() -> Counter[str]:
    """Tasks of the running loop, threads, sockets and other files of the process, and its children."""
    found = Counter(tasks=len(asyncio.all_tasks()), threads=threading.active_count())
    found["native threads"] = len(os.listdir("/proc/self/task"))
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue  # the directory that is being listed
        found["sockets" if target.startswith("socket:") else "files"] += 1
    for task in Path("/proc/self/task").iterdir():
        try:
            found["children"] += len((task / "children").read_text().split())
        except FileNotFoundError:
            continue  # a thread that has just ended
    return found


async def settled_to(before: Counter[str]) -> Counter[str]:
    """The census once it is no more than `before`, or after `SETTLING_S`."""
    deadline = time.monotonic() + SETTLING_S
    while (now := census()) - before and time.monotonic() < deadline:
        gc.collect()
        await asyncio.sleep(0.02)
    return now


async def leave(agent: Agent, number: int) -> str:
    """Begin a run and leave it, in one of seven ways; the name of the way."""
    moment_s = 0.003 * (number % 31)
    match number % 7:
        case 0:
            async with agent.stream(PROMPT) as run:
                async for event in run:
                    if isinstance(event, ToolStarted):
                        break
            return "left when a tool had started"
        case 1:
            async with agent.stream("Tell me a story") as run:
                async for event in run:
                    if isinstance(event, TextDelta):
                        break
            return "left in the middle of text"
        case 2:
            async with agent.stream(PROMPT) as run:
                await asyncio.sleep(moment_s)
                await run.cancel()
            return "cancelled the run"
        case 3:
            task = asyncio.create_task(agent.run(PROMPT))
            await asyncio.sleep(moment_s)
            task.cancel()
            await asyncio.wait([task])
            return "cancelled the task"
        case 4:
            try:
                async with asyncio.timeout(moment_s):
                    await agent.run(PROMPT)
            except TimeoutError:
                pass
            return "timed out"
        case 5:
            run = agent.stream(PROMPT)
            async for event in run:
                if isinstance(event, TextDelta | ToolStarted):
                    break
            del run
            return "dropped the stream"
        case _:
            async with agent.stream(PROMPT):
                pass
            return "never read"


def test_after_two_hundred_runs_that_were_left_the_process_is_as_it_was(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        options = Options(temperature=0.0, max_tokens=60)
        agent = Agent(llamacpp.driver, tools=[get_weather, calculator], options=options)
        assert (await agent.run(PROMPT)).stop_reason == "end"
        await asyncio.sleep(0)
        before = await settled_to(census())
        ways = Counter([await leave(agent, number) for number in range(RUNS)])
        assert len(ways) == 7
        assert min(RAN["async"], RAN["sync"]) > 20, "the tools were hardly used"
        after = await settled_to(before)
        assert not after - before, f"more than before: {after - before}"
        assert (await agent.run(PROMPT)).stop_reason == "end"

    asyncio.run(main())
