"""Waiting that takes no time, for users' tests."""

from __future__ import annotations

import asyncio
import time

from treadle import Agent, Overloaded, RateLimited, ScriptedDriver, calls, tool
from treadle.testing import run_virtual


async def nap(seconds: float) -> float:
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(seconds)
    return asyncio.get_running_loop().time() - began


def test_a_day_takes_no_time() -> None:
    began = time.monotonic()
    assert run_virtual(nap(86_400)) == 86_400
    assert time.monotonic() - began < 5


def test_time_limits_hold() -> None:
    async def main() -> str:
        try:
            async with asyncio.timeout(10):
                await asyncio.sleep(20)
        except TimeoutError:
            return f"after {asyncio.get_running_loop().time():g} s"
        return "slept"

    assert run_virtual(main()) == "after 10 s"


def test_a_run_that_is_told_to_wait() -> None:
    driver = ScriptedDriver([RateLimited("slow down", retry_after_s=50), Overloaded("busy"), "At last."])
    began = time.monotonic()
    assert run_virtual(Agent(driver).run("Hi")).text == "At last."
    assert time.monotonic() - began < 5


def test_a_tool_in_a_thread_holds_time() -> None:
    @tool
    def work() -> str:
        """Take real time."""
        time.sleep(0.05)
        return "done"

    async def main() -> tuple[str, float]:
        result = await Agent(ScriptedDriver([calls(("work", {})), "Fine."]), tools=[work]).run("Hi")
        in_thread = await asyncio.to_thread(lambda: "from a thread")
        return f"{result.messages[2].content} {in_thread}", asyncio.get_running_loop().time()

    said, passed_s = run_virtual(main())
    assert said == "done from a thread"
    assert passed_s < 1  # not the 120 s of the tool's time limit
