"""A conversation that outgrows the real llama.cpp server's window of 2,048 tokens. Not skipped anywhere."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import (
    Agent,
    Compacted,
    ContextPlanned,
    ContextPolicy,
    Event,
    HttpDriver,
    LlamaServer,
    Message,
    ModelSummary,
    Options,
    Retried,
    RunResult,
    ToolFinished,
    UserMessage,
    tool,
)
from treadle.policy.prompt_tokens import message_tokens
from treadle.values.history import check_history
from treadle.values.messages import AssistantMessage, Text, ToolCall, ToolMessage
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.responses import ResponsesCodec

EXACT = Options(temperature=0.0, max_tokens=100)
QUESTION = "What's the weather in Paris and what is 12*7?"


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Get the weather for a city"""
    return "18 C, sunny"


@tool(concurrency="read_only")
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    return "84"


def asked_often(times: int) -> list[Message]:
    """The conversation of somebody who asks for the weather again and again."""
    messages: list[Message] = []
    for n in range(times):
        call = ToolCall(f"c{n}", "get_weather", '{"city": "Oslo"}')
        result = ToolMessage(f"c{n}", "get_weather", f"{n} C, snow. " + "The wind blows from the north. " * 3)
        messages += [UserMessage("What's the weather in Oslo?"), AssistantMessage((call,)), result]
        messages.append(AssistantMessage((Text(f"The weather in Oslo is {n} C, snow."),)))
    return messages


def run(server: LlamaServer, codec: Codec, context: ContextPolicy, times: int = 40) -> tuple[RunResult, list[Event]]:
    driver = HttpDriver(codec, server.base_url, "tiny", info=server.driver.info)
    agent = Agent(driver, tools=[get_weather, calculator], options=EXACT, context=context)

    async def main() -> tuple[RunResult, list[Event]]:
        async with agent.stream(QUESTION, history=asked_often(times)) as running:
            events = [event async for event in running]
        return running.result, events

    return asyncio.run(main())


def of(events: list[Event], kind: Any) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("codec", [ChatCodec(), AnthropicCodec(), ResponsesCodec()], ids=["chat", "anthropic", "responses"])
def test_a_refusal_is_recognised_and_recovered_from(llamacpp: LlamaServer, codec: Codec) -> None:
    """We plan for a window that the server does not have; it says so once, and the run finishes."""
    result, events = run(llamacpp, codec, ContextPolicy(window_tokens=100_000))
    [retried] = of(events, Retried)
    assert retried.error.kind == "ContextOverflow"
    planned = of(events, ContextPlanned)
    assert [(p.window_tokens, p.source) for p in planned] == [(100_000, "setting"), (2_048, "the server's refusal")]
    assert all(fact.emergency for fact in of(events, Compacted))
    assert result.stop_reason == "end"
    assert {event.result.name for event in of(events, ToolFinished)} <= {"get_weather", "calculator"}
    check_history(result.messages)


def test_the_window_is_asked_for_and_kept(llamacpp: LlamaServer) -> None:
    """With the server's own word for its window nothing is refused: the conversation is shortened before it is sent."""
    result, events = run(llamacpp, ChatCodec(), ContextPolicy())
    assert of(events, Retried) == []
    [planned] = of(events, ContextPlanned)
    assert planned.window_tokens == 2_048
    assert planned.source.startswith("GET /props")
    assert of(events, Compacted)
    assert result.stop_reason == "end"
    assert sum(message_tokens(m) for m in result.messages) < 2_048
    assert result.usage.input_tokens is not None


def test_the_model_writes_its_own_summary_or_is_stood_in_for(llamacpp: LlamaServer) -> None:
    result, events = run(llamacpp, ChatCodec(), ContextPolicy(compaction=ModelSummary()))
    assert result.stop_reason == "end"
    assert {fact.how for fact in of(events, Compacted)} <= {"model_summary", "local_summary"}


def test_the_servers_count_is_close_to_what_was_planned_with(llamacpp: LlamaServer) -> None:
    result, _ = run(llamacpp, ChatCodec(), ContextPolicy(), times=8)
    read = result.state.last_usage
    assert read is not None and read.input_tokens is not None
    assert result.stop_reason == "end"
