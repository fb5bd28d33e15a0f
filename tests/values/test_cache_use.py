"""`RunResult.cache`: what a run had from its servers' caches, and what broke it."""

from __future__ import annotations

import pytest

from treadle import Agent, CacheBreak, CacheUse, Reply, ScriptedDriver, Usage
from treadle.core.state import apply, begin
from treadle.values.events import Asked, PrefixMoved
from treadle.values.messages import AssistantMessage, Text, ToolCall, UserMessage


def reply(*, calls: bool = False, **usage: int | None) -> Reply:
    part = ToolCall("c1", "look", "{}") if calls else Text("A sea.")
    return Reply(message=AssistantMessage((part,)), finish="tool_use" if calls else "end", usage=Usage(**usage))


def look() -> str:
    """Look."""
    return "a sea"


def test_the_hit_rate_is_of_the_turns_whose_server_said() -> None:
    turns = [
        reply(calls=True, input_tokens=100, output_tokens=5, cached_input_tokens=0, cache_creation_tokens=100),
        reply(calls=True, input_tokens=150, output_tokens=5),
        reply(input_tokens=300, output_tokens=5, cached_input_tokens=100, cache_creation_tokens=50),
    ]
    result = Agent(ScriptedDriver(turns), tools=[look]).run_sync("What is there?")
    assert result.cache == CacheUse(turns=2, input_tokens=400, cached_input_tokens=100, cache_creation_tokens=150)
    assert result.cache.hit_rate == pytest.approx(0.25)
    assert result.usage.cached_input_tokens is None, "a total is known only if every turn's count is"


def test_without_counts_there_is_no_rate() -> None:
    result = Agent(ScriptedDriver([reply(input_tokens=100, output_tokens=5)])).run_sync("What is there?")
    assert result.cache == CacheUse()
    assert result.cache.hit_rate is None
    cold = CacheUse().after(Usage(input_tokens=100, cached_input_tokens=0))
    assert (cold.hit_rate, cold.cache_creation_tokens) == (0.0, None)


def test_what_moved_is_listed_once_with_what_it_cost_in_all() -> None:
    state = begin(Asked(run_id="r", model="m", messages=(UserMessage("x"),)))
    for turn, (component, lost) in enumerate(
        [("the system text", 10), ("the tool `look`, which changed", 5), ("the system text", 20)]
    ):
        state = apply(state, PrefixMoved(turn=turn + 1, model="m", component=component, byte=3, lost_tokens=lost))
    assert state.cache.breaks == (
        CacheBreak(component="the system text", count=2, lost_tokens=30),
        CacheBreak(component="the tool `look`, which changed", count=1, lost_tokens=5),
    )
    assert state.cache.lost_tokens == 35
