"""The Anthropic format on the real llama.cpp server with the tiny model. Not skipped anywhere."""

from __future__ import annotations

import asyncio

import pytest

from treadle import (
    Agent,
    ContextFloorExceedsWindow,
    ContextOverflow,
    ContextPolicy,
    LlamaServer,
    Options,
    Replied,
    TextDelta,
    ToolFinished,
    ToolStarted,
    tool,
)
from treadle.drivers.http import HttpDriver
from treadle.values.history import check_history
from treadle.wire.anthropic import AnthropicCodec

EXACT = Options(temperature=0.0, max_tokens=200)


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Get the weather for a city"""
    return "18 C, sunny"


@tool(concurrency="read_only")
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    assert expression == "12*7"
    return "84"


def driver(server: LlamaServer) -> HttpDriver:
    return HttpDriver(AnthropicCodec(), server.base_url, "tiny")


def test_text_streams(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        async with Agent(driver(llamacpp), options=EXACT).stream("hello") as run:
            events = [event async for event in run]
        shown = [event.text for event in events if isinstance(event, TextDelta)]
        assert "".join(shown) == run.result.text == "Hello! How can I help you?"
        assert len(shown) > 1
        assert run.result.stop_reason == "end"
        assert run.result.usage.input_tokens
        assert run.result.usage.output_tokens

    asyncio.run(main())


def test_two_tools_and_an_answer(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        agent = Agent(driver(llamacpp), tools=[get_weather, calculator], options=EXACT)
        async with agent.stream("What's the weather in Paris and what is 12*7?") as run:
            events = [event async for event in run]
        assert [event.name for event in events if isinstance(event, ToolStarted)] == ["get_weather", "calculator"]
        assert sum(isinstance(event, ToolFinished) for event in events) == 2
        assert [event.finish for event in events if isinstance(event, Replied)] == ["tool_use", "end"]
        assert run.result.stop_reason == "end"
        assert "18 C, sunny" in run.result.text and "84" in run.result.text
        assert run.result.usage.cached_input_tokens, "the second request extended the first, so its prefix was cached"
        check_history(run.result.messages)

    asyncio.run(main())


def test_instructions_and_a_conversation(llamacpp: LlamaServer) -> None:
    agent = Agent(driver(llamacpp), tools=[get_weather, calculator], options=EXACT)
    first = agent.run_sync("What's the weather in Rome?")
    second = agent.run_sync("What is 12*7?", history=first.messages)
    assert "84" in second.text
    assert Agent(driver(llamacpp), instructions="Be brief.", options=EXACT).run_sync("hello").stop_reason == "end"


def test_a_turn_cut_by_length_does_not_run_its_call(llamacpp: LlamaServer) -> None:
    agent = Agent(driver(llamacpp), tools=[get_weather], options=Options(temperature=0.0, max_tokens=9))
    result = agent.run_sync("What's the weather in Paris?")
    assert result.stop_reason == "output_limit"
    check_history(result.messages)


def test_a_prompt_that_does_not_fit(llamacpp: LlamaServer) -> None:
    with pytest.raises(ContextFloorExceedsWindow, match="the user's first request") as caught:
        Agent(driver(llamacpp)).run_sync("weather " * 4000)
    assert caught.value.window_tokens == 2048
    sent = ContextPolicy(window_tokens=100_000)  # the server is asked, and says it
    with pytest.raises(ContextOverflow) as caught:
        Agent(driver(llamacpp), context=sent).run_sync("weather " * 4000)
    assert caught.value.window_tokens == 2048
