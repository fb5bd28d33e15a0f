"""Responses on the real llama.cpp server with the tiny model: what is sent is accepted, what comes is understood.

Not shown here, because llama.cpp has none of it: encrypted reasoning, refusals, `incomplete`, documents. The tiny model does
not reason and sees no images.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import (
    Agent,
    ContextOverflow,
    LlamaServer,
    Options,
    Replied,
    TextDelta,
    ToolMessage,
    ToolStarted,
    tool,
)
from treadle.drivers.http import HttpDriver
from treadle.errors import Unsupported
from treadle.values.history import check_history
from treadle.values.messages import AssistantMessage, Image, Opaque, Text, Thinking, ToolCall, UserMessage
from treadle.wire.responses import LLAMACPP_RESPONSES, ResponsesCodec

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


def agent(server: LlamaServer, *, codec: ResponsesCodec | None = None, **more: Any) -> Agent:
    driver = HttpDriver(codec or ResponsesCodec(), server.base_url, "tiny")
    return Agent(driver, **{"tools": [get_weather, calculator], "options": EXACT, **more})


@pytest.mark.parametrize("codec", [ResponsesCodec(), ResponsesCodec(LLAMACPP_RESPONSES)])
def test_two_tools_in_parallel_and_an_answer(llamacpp: LlamaServer, codec: ResponsesCodec) -> None:
    async def main() -> None:
        async with agent(llamacpp, codec=codec).stream("What's the weather in Paris and what is 12*7?") as run:
            events = [event async for event in run]
        assert [e.name for e in events if isinstance(e, ToolStarted)] == ["get_weather", "calculator"]
        result = run.result
        assert result.stop_reason == "end"
        assert "18 C, sunny" in result.text and "84" in result.text
        assert "".join(e.text for e in events if isinstance(e, TextDelta) and e.turn == 2) == result.text
        first_text = next(i for i, e in enumerate(events) if isinstance(e, TextDelta))
        assert first_text < max(i for i, e in enumerate(events) if isinstance(e, Replied)), "it was shown before it was whole"
        assert result.usage.input_tokens and result.usage.output_tokens
        assert result.usage.cached_input_tokens, "the second request extended the first, so its prefix was cached"
        check_history(result.messages)

    asyncio.run(main())


def test_a_conversation_with_text_of_the_assistant(llamacpp: LlamaServer) -> None:
    first = agent(llamacpp).run_sync("What's the weather in Rome?")
    second = agent(llamacpp).run_sync("What is 12*7?", history=first.messages)
    assert "84" in second.text
    assert second.messages[: len(first.messages)] == first.messages


def test_the_bound_on_tokens_cuts_text_and_calls(llamacpp: LlamaServer) -> None:
    """llama.cpp says `completed` here: only the count tells."""
    cut = agent(llamacpp, options=Options(temperature=0.0, max_tokens=5), tools=[]).run_sync("Hello")
    assert (cut.stop_reason, cut.usage.output_tokens) == ("output_limit", 5)
    cut = agent(llamacpp, options=Options(temperature=0.0, max_tokens=9)).run_sync("What's the weather in Paris?")
    assert cut.stop_reason == "output_limit"
    (refused,) = [m for m in cut.messages if isinstance(m, ToolMessage)]
    assert refused.is_error and "cut" in refused.content


def test_stop(llamacpp: LlamaServer) -> None:
    options = Options(temperature=0.0, max_tokens=40, stop=("can",), seed=1)
    codec = ResponsesCodec(LLAMACPP_RESPONSES)
    assert agent(llamacpp, codec=codec, options=options, tools=[]).run_sync("Hello").text == "Hello! How "


def test_a_prompt_that_does_not_fit(llamacpp: LlamaServer) -> None:
    with pytest.raises(ContextOverflow):
        agent(llamacpp, tools=[]).run_sync("weather " * 4000)


def test_an_image_for_a_model_without_eyes(llamacpp: LlamaServer) -> None:
    history = (UserMessage("Look", (Image(b"\x89PNG", "image/png"),)), AssistantMessage((Text("Nice."),)))
    with pytest.raises(Unsupported):
        agent(llamacpp, tools=[]).run_sync("What is it?", history=history)


def test_what_a_turn_kept_is_accepted_back(llamacpp: LlamaServer) -> None:
    """Reasoning, a head of a message, a call and its failed result, and options."""
    reasoning = (
        '{"id":"rs_1","summary":[],"type":"reasoning","content":[{"text":"hm","type":"reasoning_text"}],"encrypted_content":""}'
    )
    head = '{"type":"message","id":"msg_1","role":"assistant","status":"completed","phase":"commentary"}'
    history = (
        UserMessage("Hi"),
        AssistantMessage(
            (
                Thinking("hm", "block"),
                Opaque("responses", reasoning),
                Opaque("responses", head),
                Text("I look."),
                ToolCall("a", "get_weather", '{"city" :"Oslo"}'),
                ToolCall("b", "calculator", "{broken"),
            )
        ),
        ToolMessage("a", "get_weather", "4 C"),
        ToolMessage("b", "calculator", "invalid arguments", is_error=True),
    )
    options = Options(temperature=0.0, max_tokens=200, reasoning="off", tool_choice="auto", seed=1, stop=("\n\n",), top_p=0.9)
    sender = agent(llamacpp, codec=ResponsesCodec(LLAMACPP_RESPONSES), options=options, instructions="Be brief.")
    assert sender.run_sync("What is 12*7?", history=history).stop_reason == "end"
