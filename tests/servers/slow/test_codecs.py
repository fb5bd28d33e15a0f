"""Three codecs through the whole agent loop, on LiteLLM's proxy (two ways) and on vLLM, with the tiny model."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness import data_line, text_chunk
from tests.servers.slow.processes import get
from tests.servers.slow.served import LiteLLM, Served
from treadle import (
    Agent,
    AssistantMessage,
    AuthenticationFailed,
    ContextOverflow,
    HttpDriver,
    LlamaServer,
    ModelNotFound,
    ModelRequest,
    Options,
    Replied,
    TextDelta,
    ToolError,
    ToolFinished,
    ToolMessage,
    ToolStarted,
    UserMessage,
    tool,
)
from treadle.drivers.catalog import driver_for
from treadle.drivers.formats import codec_in
from treadle.values.history import check_history
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.responses import ResponsesCodec

EXACT = Options(temperature=0.0, max_tokens=200)
TWO_TOOLS = "What's the weather in Paris and what is 12*7?"
ENDLESS = f"What is {'+'.join('1' * 24)}?"  # the model says "1+1+1+..." until it is stopped
LONG = Options(temperature=0.0, max_tokens=1900)
CODECS = {
    "anthropic": lambda: codec_in("anthropic", ""),  # as in `anthropic+http://...`
    "chat": ChatCodec,
    "responses": ResponsesCodec,
}


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Get the weather for a city"""
    if city == "Atlantis":
        raise ToolError("no such city")
    return "18 C, sunny"


@tool(concurrency="read_only")
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    assert expression == "12*7"
    return "84"


TOOLS = [get_weather, calculator]


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]()


def driver(server: Served, codec: Codec, **changed: Any) -> HttpDriver:
    return HttpDriver(codec, server.base_url, **{"model": server.model, "api_key": server.api_key, **changed})


def agent(server: Served, codec: Codec, **more: Any) -> Agent:
    return Agent(driver(server, codec), **{"options": EXACT, **more})


def connections(port: int) -> int:
    """Connections to a server of this machine that are open at the client's end."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)  # 01: established


def test_text(server: Served, codec: Codec) -> None:
    result = agent(server, codec).run_sync("hello")
    assert (result.text, result.stop_reason) == ("Hello! How can I help you?", "end")
    assert (result.usage.input_tokens, result.usage.output_tokens) == (10, 15)


def test_text_streams(server: Served, codec: Codec) -> None:
    async def main() -> None:
        async with agent(server, codec, options=Options(temperature=0.0, max_tokens=400)).stream(ENDLESS) as run:
            events = [event async for event in run]
        shown = [event.text for event in events if isinstance(event, TextDelta)]
        assert "".join(shown) == run.result.text
        assert len(shown) > 1  # how many depends on how busy the machine is: vLLM joins what it could not send at once

    asyncio.run(main())


def test_one_tool_and_an_answer(server: Served, codec: Codec) -> None:
    result = agent(server, codec, tools=[get_weather]).run_sync("What's the weather in Oslo?")
    assert (result.stop_reason, "18 C, sunny" in result.text) == ("end", True)
    (call,) = [call for m in result.messages if isinstance(m, AssistantMessage) for call in m.calls]
    assert (call.name, re.sub(r"\s", "", call.arguments)) == ("get_weather", '{"city":"Oslo"}')
    check_history(result.messages)


def test_two_tools_in_parallel_and_an_answer(server: Served, codec: Codec) -> None:
    async def main() -> None:
        async with agent(server, codec, tools=TOOLS).stream(TWO_TOOLS) as run:
            events = [event async for event in run]
        assert [event.name for event in events if isinstance(event, ToolStarted)] == ["get_weather", "calculator"]
        assert sum(isinstance(event, ToolFinished) for event in events) == 2
        assert [event.finish for event in events if isinstance(event, Replied)] == ["tool_use", "end"]
        assert run.result.stop_reason == "end"
        assert "18 C, sunny" in run.result.text and "84" in run.result.text
        assert "".join(e.text for e in events if isinstance(e, TextDelta) and e.turn == 2) == run.result.text
        replies = [event for event in events if isinstance(event, Replied)]
        assert all(reply.usage.input_tokens and reply.usage.output_tokens for reply in replies)
        check_history(run.result.messages)

    asyncio.run(main())


def test_a_failing_tool_is_told_to_the_model(server: Served, codec: Codec) -> None:
    result = agent(server, codec, tools=[get_weather]).run_sync("What's the weather in Atlantis?")
    (told,) = [m for m in result.messages if isinstance(m, ToolMessage)]
    assert (told.content, told.is_error) == ("no such city", True)
    assert result.stop_reason == "end"


def test_instructions_are_read(server: Served, codec: Codec) -> None:
    """They are part of the prompt: it is longer by more than their one line of framing."""
    plain = agent(server, codec).run_sync("hello")
    brief = agent(server, codec, instructions="You are a careful assistant. Be brief.").run_sync("hello")
    assert brief.stop_reason == "end"
    assert brief.usage.input_tokens >= plain.usage.input_tokens + 8


def test_text_cut_by_length(server: Served, codec: Codec) -> None:
    result = agent(server, codec, options=Options(temperature=0.0, max_tokens=20)).run_sync(ENDLESS)
    assert (result.stop_reason, result.usage.output_tokens) == ("output_limit", 20)
    assert result.text.endswith("1+1+1+")


def test_a_turn_cut_by_length_does_not_run_its_calls(server: Served, codec: Codec) -> None:
    """The first call is whole when the second is cut: neither runs."""
    result = agent(server, codec, tools=TOOLS, options=Options(temperature=0.0, max_tokens=20)).run_sync(TWO_TOOLS)
    assert result.stop_reason == "output_limit"
    told = [m for m in result.messages if isinstance(m, ToolMessage)]
    assert told and all(m.is_error and m.content.startswith("Not run") for m in told)
    check_history(result.messages)


@pytest.mark.parametrize("before", sorted(CODECS))
def test_a_conversation_moves_to_this_format(server: Served, codec: Codec, before: str) -> None:
    """What one format kept of a turn with a call, its result and an answer is accepted in another, and read by the model."""
    question = "What's the weather in Rome?"
    first = agent(server, CODECS[before](), tools=TOOLS).run_sync(question)
    second = agent(server, codec, tools=TOOLS).run_sync("What is 12*7?", history=first.messages)
    assert second.stop_reason == "end" and "84" in second.text
    assert second.messages[: len(first.messages)] == first.messages
    check_history(second.messages)


def test_a_prompt_that_does_not_fit(server: Served, codec: Codec) -> None:
    async def main() -> None:
        request = ModelRequest(messages=(UserMessage("weather " * 4000),), options=EXACT)
        async with driver(server, codec).connect() as connection:
            with pytest.raises(ContextOverflow) as caught:
                async with connection.open(request):
                    pass
        assert (caught.value.status, caught.value.window_tokens) == (400, 2048)
        assert (caught.value.prompt_tokens or 0) > 2048

    asyncio.run(main())
    with pytest.raises(ContextOverflow):
        agent(server, codec).run_sync("weather " * 4000)


def test_an_unknown_model(server: Served, codec: Codec) -> None:
    with pytest.raises(ModelNotFound):
        Agent(driver(server, codec, model="nope")).run_sync("hello")


def test_a_wrong_key(server: Served, codec: Codec) -> None:
    with pytest.raises(AuthenticationFailed):
        Agent(driver(server, codec, api_key="sk-wrong")).run_sync("hello")


@pytest.mark.parametrize("format", sorted(CODECS))
def test_the_key_by_the_servers_address(server: Served, format: str) -> None:
    """As a user names it: whichever header the server reads, the key is there."""
    named = driver_for(f"{format}+{server.base_url}#{server.model}", api_key=server.api_key)
    assert Agent(named, options=EXACT).run_sync("hello").stop_reason == "end"


def test_leaving_early_closes_the_connection(server: Served, codec: Codec) -> None:
    async def main() -> None:
        async with agent(server, codec, options=LONG).stream(ENDLESS) as run:
            async for event in run:
                if isinstance(event, TextDelta):
                    assert connections(server.port) == 1
                    break
        assert run.result.stop_reason == "cancelled"
        assert connections(server.port) == 0

    asyncio.run(main())


def test_many_runs_at_once(server: Served, codec: Codec) -> None:
    async def main() -> None:
        asked = agent(server, codec, tools=[get_weather])
        results = await asyncio.gather(*(asked.run("What's the weather in Lima?") for _ in range(6)))
        assert {result.text for result in results} == {results[0].text}
        assert "18 C, sunny" in results[0].text

    asyncio.run(main())


def test_leaving_early_ends_the_work_of_vllm(vllm: Served, codec: Codec) -> None:
    def computed() -> tuple[bool, float]:
        """Whether an answer is computed now, and how many tokens there have been since the start."""
        lines = [line.replace("{", " ", 1).split() for line in get(vllm.port, "/metrics")[1].decode().splitlines()]
        numbers = {line[0]: float(line[-1]) for line in lines if line[0].startswith("vllm:")}
        return numbers["vllm:num_requests_running"] > 0, numbers["vllm:generation_tokens_total"]

    async def main() -> None:
        before = (await asyncio.to_thread(computed))[1]
        async with agent(vllm, codec, options=LONG).stream(ENDLESS) as run:
            async for event in run:
                if isinstance(event, TextDelta):
                    break
        while (now := await asyncio.to_thread(computed))[0]:
            pass
        assert now[1] - before < 1000, "it went on to the end, for nobody"

    asyncio.run(main())


@pytest.mark.parametrize("codec", [AnthropicCodec(), ChatCodec()])
def test_leaving_early_ends_the_request_that_litellm_made(litellm: LiteLLM, codec: Codec) -> None:
    """What is behind it has to be slow: llama.cpp with the tiny model is done before LiteLLM has passed on what it wrote."""

    async def main() -> None:
        over = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hung_up = asyncio.ensure_future(reader.read())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            while not hung_up.done():
                writer.write(data_line(text_chunk("and ")))
                await asyncio.wait([hung_up], timeout=0.02)
            with suppress(ConnectionError):
                await hung_up
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            over.set()

        async with await asyncio.start_server(answer, "127.0.0.1", litellm.paced_port):
            async with agent(litellm.paced, codec).stream("hello") as run:
                async for event in run:
                    if isinstance(event, TextDelta):
                        break
            assert run.result.stop_reason == "cancelled"
            await asyncio.wait_for(over.wait(), 2.0)

    asyncio.run(main())


def test_vllm_serves_the_same_model(vllm: Served, llamacpp: LlamaServer) -> None:
    """Made from the GGUF file by unquantized.py: it must split text as llama.cpp does."""
    texts = (
        TWO_TOOLS,
        "H\u00e9llo\u2026 \u4f60\u597d\u3002 a  b\n\n  c",
        '<tool_call>\n{"name": "x", "arguments": {"a": "b"}}\n</tool_call>',
    )
    for text in texts:
        theirs = post(f"{llamacpp.base_url.removesuffix('/v1')}/tokenize", {"content": text})["tokens"]
        body = {"model": vllm.model, "prompt": text, "add_special_tokens": False}
        assert post(f"http://127.0.0.1:{vllm.port}/tokenize", body)["tokens"] == theirs


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
