"""The whole way through, on the real llama.cpp server with the tiny model. Not skipped anywhere."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import pytest

from treadle import (
    Agent,
    AssistantMessage,
    ContextFloorExceedsWindow,
    ContextOverflow,
    ContextPolicy,
    Ended,
    LlamaServer,
    ModelRequest,
    Options,
    Replied,
    Text,
    TextDelta,
    ToolError,
    ToolFinished,
    ToolMessage,
    ToolStarted,
    UserMessage,
    driver_for,
    tool,
)
from treadle.values.history import check_history

EXACT = Options(temperature=0.0, max_tokens=200)


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Get the weather for a city"""
    if city == "Atlantis":
        raise ToolError("no such city")
    await asyncio.sleep(0.05)
    return "18 C, sunny"


@tool(concurrency="read_only")
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    assert expression == "12*7"
    return "84"


def slots(server: LlamaServer) -> list[dict[str, Any]]:
    with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/slots") as answer:
        return json.load(answer)


def test_two_tools_in_parallel_and_an_answer(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        agent = Agent(llamacpp.driver, tools=[get_weather, calculator], options=EXACT)
        async with agent.stream("What's the weather in Paris and what is 12*7?") as run:
            events = [event async for event in run]
        started = [e.name for e in events if isinstance(e, ToolStarted)]
        assert started == ["get_weather", "calculator"]
        first_finished = next(i for i, e in enumerate(events) if isinstance(e, ToolFinished))
        assert sum(isinstance(e, ToolStarted) for e in events[:first_finished]) == 2
        result = run.result
        assert result.stop_reason == "end"
        assert "18 C, sunny" in result.text and "84" in result.text
        shown = "".join(e.text for e in events if isinstance(e, TextDelta) and e.turn == 2)
        assert shown == result.text
        text_at = next(i for i, e in enumerate(events) if isinstance(e, TextDelta))
        assert text_at < max(i for i, e in enumerate(events) if isinstance(e, Replied)), "it was shown before it was whole"
        replies = [e for e in events if isinstance(e, Replied)]
        assert result.usage.input_tokens == sum(e.usage.input_tokens or 0 for e in replies) > 0
        assert result.usage.cached_input_tokens, "the second request extended the first, so its prefix was cached"
        check_history(result.messages)
        assert isinstance(events[-1], Ended)

    asyncio.run(main())


def test_a_conversation(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        agent = Agent(llamacpp.driver, tools=[get_weather, calculator], options=EXACT)
        first = await agent.run("What's the weather in Rome?")
        second = await agent.run("What is 12*7?", history=first.messages)
        assert "84" in second.text
        assert second.messages[: len(first.messages)] == first.messages

    asyncio.run(main())


def test_run_sync(llamacpp: LlamaServer) -> None:
    result = Agent(llamacpp.driver, tools=[get_weather], options=EXACT).run_sync("What's the weather in Oslo?")
    assert "18 C, sunny" in result.text


def test_a_failing_tool_is_told_to_the_model(llamacpp: LlamaServer) -> None:
    result = Agent(llamacpp.driver, tools=[get_weather], options=EXACT).run_sync("What's the weather in Atlantis?")
    (told,) = [m for m in result.messages if isinstance(m, ToolMessage)]
    assert (told.content, told.is_error) == ("no such city", True)
    assert result.stop_reason == "end"


def test_a_turn_cut_by_length_does_not_run_its_call(llamacpp: LlamaServer) -> None:
    agent = Agent(llamacpp.driver, tools=[get_weather], options=Options(temperature=0.0, max_tokens=9))
    result = agent.run_sync("What's the weather in Paris?")
    assert result.stop_reason == "output_limit"
    (refused,) = [m for m in result.messages if isinstance(m, ToolMessage)]
    assert refused.is_error and "cut" in refused.content
    check_history(result.messages)


def test_a_prompt_that_does_not_fit(llamacpp: LlamaServer) -> None:
    with pytest.raises(ContextFloorExceedsWindow, match="the user's first request") as caught:
        Agent(llamacpp.driver).run_sync("weather " * 4000)
    assert caught.value.window_tokens == 2048
    sent = ContextPolicy(window_tokens=100_000)  # the server is asked, and says it
    with pytest.raises(ContextOverflow) as caught:
        Agent(llamacpp.driver, context=sent).run_sync("weather " * 4000)
    assert caught.value.window_tokens == 2048


def test_leaving_frees_the_slot(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        agent = Agent(llamacpp.driver, options=Options(temperature=1.0, seed=3, max_tokens=1900, extra_body={"ignore_eos": True}))
        async with agent.stream("hello") as run:
            async for event in run:
                if isinstance(event, TextDelta):
                    break
        assert run.result.stop_reason == "cancelled"
        for _ in range(200):  # about 17 ms are usual; generating on would take longer than this
            if not any(slot["is_processing"] for slot in await asyncio.to_thread(slots, llamacpp)):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the server is still generating")

    asyncio.run(main())


def test_it_goes_on_from_a_partial_answer_and_repeats_nothing(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        messages = (UserMessage("hello"),)
        whole, rest = "", ""
        async with llamacpp.driver.connect() as connection:
            async with connection.open(ModelRequest(messages=messages, options=EXACT)) as stream:
                async for deltas in stream:
                    whole += "".join(d.text for d in deltas if isinstance(d, TextDelta))
            partial = AssistantMessage((Text(whole[:10]),))
            async with connection.open(ModelRequest(messages=messages, options=EXACT, continues=partial)) as stream:
                async for deltas in stream:
                    rest += "".join(d.text for d in deltas if isinstance(d, TextDelta))
        assert whole[:10] + rest == whole == "Hello! How can I help you?"

    assert llamacpp.driver.continuable
    asyncio.run(main())


def test_reading_a_long_prompt_is_seen_to_advance(llamacpp: LlamaServer) -> None:
    request = ModelRequest(messages=(UserMessage("weather " * 600),), options=Options(max_tokens=1))
    body = llamacpp.driver.codec.encoder("m").encode(request)
    asked = urllib.request.Request(f"{llamacpp.base_url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        assert b'"prompt_progress":{"total":' in answer.read()


def test_many_runs_at_once_share_two_slots(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        agent = Agent(llamacpp.driver, tools=[get_weather], options=EXACT)
        results = await asyncio.gather(*(agent.run("What's the weather in Lima?") for _ in range(8)))
        assert {r.text for r in results} == {results[0].text}
        assert len({r.run_id for r in results}) == 8

    asyncio.run(main())


@pytest.mark.parametrize("spelling", ["{root}", "{root}/v1", "{root}/v1#whatever"])
def test_by_its_address(llamacpp: LlamaServer, spelling: str) -> None:
    driver = driver_for(spelling.format(root=llamacpp.base_url.removesuffix("/v1")))
    result = Agent(driver, tools=[get_weather], options=EXACT).run_sync("What's the weather in Oslo?")
    assert "18 C, sunny" in result.text


def test_what_it_says_of_itself(llamacpp: LlamaServer) -> None:
    info = asyncio.run(driver_for(llamacpp.base_url).info())
    assert (info.server, info.window_tokens) == ("llamacpp", 2048)
