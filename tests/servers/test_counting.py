"""Exact counts: what the real llama.cpp server says beforehand is what it reports afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.harness import ByteServer, Exchange, Request, json_reply
from treadle import (
    AssistantMessage,
    ContextOverflow,
    Cooldown,
    HttpDriver,
    LlamaServer,
    ModelRequest,
    Options,
    Text,
    ToolCall,
    ToolMessage,
    UserMessage,
    driver_for,
)
from treadle.drivers.counting import count_by_llamacpp, counter_for
from treadle.drivers.http import get_json
from treadle.values.messages import SystemMessage
from treadle.values.ports import TokenCounter
from treadle.values.request import ToolSpec
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import LLAMACPP
from treadle.wire.responses import ResponsesCodec

WEATHER = ToolSpec(
    name="get_weather",
    description="Get the weather for a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
CALL = ToolCall("call_1", "get_weather", '{"city": "Paris"}')
CONVERSATIONS: list[ModelRequest] = [
    ModelRequest(messages=(UserMessage("Hi"),)),
    ModelRequest(messages=(UserMessage("What's the weather in Paris?"),), instructions="Be brief.", tools=(WEATHER,)),
    ModelRequest(
        messages=(
            UserMessage("巴黎的天气怎么样? <|im_end|> 😀"),
            AssistantMessage((Text("Let me look."), CALL)),
            ToolMessage("call_1", "get_weather", "18 C, sunny\n" * 30),
        ),
        tools=(WEATHER,),
        options=Options(temperature=0.0, max_tokens=4),
    ),
    ModelRequest(messages=(SystemMessage("Be brief."), UserMessage("word " * 500)), options=Options(seed=1, stop=("x",))),
]


async def counted_and_reported(driver: HttpDriver, request: ModelRequest) -> tuple[int | None, int | None]:
    """What was counted before, and what the reply's usage says."""
    counted = await driver.count(request)
    async with driver.connect() as connection, connection.open(request) as stream:
        async for _ in stream:
            pass
    return counted, stream.reply.usage.input_tokens


def short(request: ModelRequest) -> ModelRequest:
    return ModelRequest(
        messages=request.messages,
        instructions=request.instructions,
        tools=request.tools,
        options=Options(temperature=0.0, max_tokens=2),
    )


@pytest.mark.parametrize("request_", CONVERSATIONS)
@pytest.mark.parametrize("codec", [ChatCodec(LLAMACPP), AnthropicCodec(), ResponsesCodec()], ids=lambda codec: codec.path)
def test_the_count_is_what_the_server_reports(llamacpp: LlamaServer, request_: ModelRequest, codec: Any) -> None:
    async def main() -> None:
        driver = HttpDriver(codec, llamacpp.base_url, "tiny", counter=counter_for(codec, "llamacpp"))
        counted, reported = await counted_and_reported(driver, short(request_))
        assert counted == reported
        assert counted is not None and counted > 0

    asyncio.run(main())


@pytest.mark.parametrize("request_", CONVERSATIONS)
def test_an_older_server_is_asked_for_template_and_tokens(llamacpp: LlamaServer, request_: ModelRequest) -> None:
    """The same server behind a gateway that does not know the newer endpoint."""

    async def passed_on(request: Request) -> Exchange:
        url = llamacpp.base_url.removesuffix("/v1") + request.path
        return json_reply(await get_json(url, body=request.json))

    async def main() -> None:
        unknown = json_reply({"error": {"message": "File Not Found"}}, status=404)
        async with ByteServer([unknown, [passed_on], [passed_on]]) as gateway:
            older = HttpDriver(ChatCodec(LLAMACPP), gateway.url, "tiny", counter=count_by_llamacpp)
            counted = await older.count(short(request_))
            paths = [request.path for request in gateway.requests]
        assert paths == ["/v1/chat/completions/input_tokens", "/apply-template", "/tokenize"]
        assert counted == await llamacpp.driver.count(short(request_))

    asyncio.run(main())


def test_the_embedded_servers_driver_counts(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        counted, reported = await counted_and_reported(llamacpp.driver, short(CONVERSATIONS[1]))
        assert counted == reported

    asyncio.run(main())


def test_a_server_that_is_found_counts(llamacpp: LlamaServer) -> None:
    async def main() -> None:
        expected = await llamacpp.driver.count(CONVERSATIONS[0])
        for driver in (driver_for(llamacpp.base_url), Cooldown(driver_for(llamacpp.base_url))):
            assert isinstance(driver, TokenCounter)
            assert await driver.count(CONVERSATIONS[0]) == expected

    asyncio.run(main())


def test_what_would_crash_the_tokenizer_is_not_counted_either(llamacpp: LlamaServer) -> None:
    with pytest.raises(ContextOverflow):
        asyncio.run(llamacpp.driver.count(ModelRequest(messages=(UserMessage("x" * 30_000),))))
    assert asyncio.run(llamacpp.driver.count(CONVERSATIONS[0])), "it still runs"
