"""Counting exactly: near a bound, and nowhere else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import Agent, Compacted, ContextFloorExceedsWindow, Limits, ModelInfo, ScriptedDriver, calls, tool
from treadle.policy.prompt_tokens import message_tokens, tools_tokens
from treadle.values.request import ModelRequest


def estimated(request: ModelRequest) -> float:
    return sum(map(message_tokens, request.messages)) + tools_tokens(request.tools)


class Counting(ScriptedDriver):
    """A script on a server that counts: each request has `share` of what is estimated."""

    def __init__(self, turns: list[Any], share: float | None, window: int = 4_000) -> None:
        super().__init__(turns)
        self.share, self.window, self.asked = share, window, 0

    async def info(self) -> ModelInfo:
        return ModelInfo(model="m", server="x", window_tokens=self.window, window_source="s")

    async def count(self, request: ModelRequest) -> int | None:
        self.asked += 1
        return None if self.share is None else round(estimated(request) * self.share)


@tool(concurrency="read_only", repeatable=True)
async def look(what: int) -> str:
    """Look at something."""
    return f"{what}: " + "some words of a result that is long\n" * 10


def run(driver: Counting, prompt: str, turns: int = 0) -> list[Any]:
    async def main() -> list[Any]:
        events: list[Any] = []
        async with Agent(driver, tools=[look], limits=Limits(max_turns=60)).stream(prompt) as running:
            async for event in running:
                events.append(event)
        return events

    return asyncio.run(main())


def words(tokens: int) -> str:
    return "some words of a question that is long\n" * (tokens // 10)


def test_far_from_the_bound_nobody_is_asked() -> None:
    driver = Counting(["Done."], 1.0, window=64_000)
    run(driver, words(2_000))
    assert driver.asked == 0


def test_a_prompt_that_only_the_estimate_finds_too_long_is_sent() -> None:
    driver = Counting(["Done."], 0.6)
    assert run(driver, words(5_200))[-1].stop_reason == "end"
    assert driver.asked == 1
    assert run(Counting(["Done."], None), words(5_200))[-1].stop_reason == "end", "by a rough estimate no run is ended"
    with pytest.raises(ContextFloorExceedsWindow):
        run(Counting(["Done."], 1.1), words(5_200))


def test_a_conversation_that_the_server_counts_higher_is_shortened_in_time() -> None:
    steps = [calls(("look", {"what": n})) for n in range(14)]
    high, low = Counting([*steps, "Done."], 1.3), Counting([*steps, "Done."], 0.5)
    shortened = [sum(isinstance(e, Compacted) for e in run(each, words(1_600))) for each in (high, low)]
    assert shortened[0] > shortened[1]


def test_a_server_that_does_not_count_is_asked_once() -> None:
    steps = [calls(("look", {"what": n})) for n in range(20)]
    driver = Counting([*steps, "Done."], None)
    run(driver, words(1_600))
    assert driver.asked == 1
