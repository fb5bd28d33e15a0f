"""The request that a run would send, printed: the same that a server then receives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec import structs

from tests.harness import ByteServer, json_reply, reply, run_virtual, sse
from treadle import (
    Agent,
    Cooldown,
    Driver,
    HttpDriver,
    HttpRequest,
    Message,
    ModelError,
    Options,
    ScriptedDriver,
    UsageError,
    tool,
)
from treadle.drivers.catalog import PRESETS, driver_for
from treadle.policy.compaction import Room, Summary
from treadle.policy.context import ContextPolicy
from treadle.values.messages import AssistantMessage, Text, UserMessage
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec

CODECS = [ChatCodec(), ResponsesCodec(), AnthropicCodec(), GeminiCodec("m"), OllamaCodec()]
OPTIONS = Options(temperature=0.5, max_tokens=100, reasoning="low", extra_headers={"X-Team": "CANARY-team"})
LISTED = {"object": "list", "data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 2048}]}


@tool
async def weather(city: str) -> str:
    """Current weather."""
    return f"Snow in {city}"


def agent_of(driver: Driver, **settings: Any) -> Agent:
    return Agent(driver, tools=[weather], instructions="Be brief. Äöü.", options=OPTIONS, **settings)


async def run(agent: Agent, **settings: Any) -> None:
    """To the request's arrival; the server answers it with an error."""
    with pytest.raises(ModelError):
        await agent.run("What's it like in Oslo?", **settings)


def refusal() -> Any:
    return json_reply({"error": {"message": "no"}}, status=400)


def assert_same(said: HttpRequest, server: ByteServer, keys: tuple[str, ...]) -> None:
    (sent,) = server.posts
    assert said.body == sent.body
    assert said.method == sent.method
    parts = urlsplit(said.url)
    assert (parts.netloc, parts.path, parts.query) == (f"127.0.0.1:{server.port}", sent.path, sent.query)
    ours = {name.lower(): value for name, value in said.headers.items()}
    assert ours.keys() == sent.headers.keys() - {"host", "content-length"}
    hidden = {name for name, value in ours.items() if value == "***"}
    assert hidden == {"x-team", *keys}
    assert {name: sent.headers[name] for name in ours.keys() - hidden} == {n: ours[n] for n in ours.keys() - hidden}
    for text in (str(said), repr(said), said.curl):
        assert "CANARY" not in text


KEYS = {"AnthropicCodec": ("x-api-key",), "GeminiCodec": ("x-goog-api-key",)}


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_it_is_what_the_server_receives(codec: Codec) -> None:
    async def main() -> None:
        async with ByteServer([refusal()]) as server:
            agent = agent_of(HttpDriver(codec, server.url, "m", api_key="CANARY-key"))
            said = await agent.next_request("What's it like in Oslo?")
            assert server.requests == []
            await run(agent)
            assert_same(said, server, KEYS.get(type(codec).__name__, ("authorization",)))

    run_virtual(main())


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_a_conversation_goes_on_in_it(codec: Codec) -> None:
    async def history() -> tuple[Message, ...]:
        answers = [sse(*reply(calls=[("weather", {"city": "Oslo"})])), sse(*reply("It snows."))]
        async with ByteServer(answers) as server:
            return (await agent_of(HttpDriver(ChatCodec(), server.url, "m")).run("Oslo?")).messages

    async def main() -> None:
        messages = await history()
        async with ByteServer([refusal()]) as server:
            agent = agent_of(HttpDriver(codec, server.url, "m"))
            said = await agent.next_request("What's it like in Oslo?", history=messages, options=OPTIONS)
            await run(agent, history=messages)
            assert_same(said, server, ())
            assert b"Snow in Oslo" in said.body

    run_virtual(main())


def test_a_run_that_broke_off_says_how_it_would_go_on() -> None:
    async def main() -> None:
        answers = [sse(*reply(calls=[("weather", {"city": "Oslo"})])), refusal(), refusal()]
        async with ByteServer(answers) as server:
            agent = agent_of(HttpDriver(ChatCodec(), server.url, "m"))
            with pytest.raises(ModelError) as caught:
                await agent.run("Oslo?")
            result = caught.value.result
            assert result is not None
            said = await agent.next_request(result)
            with pytest.raises(ModelError):
                await agent.resume(result)
            assert said.body == server.posts[-1].body
            with pytest.raises(UsageError, match="history"):
                await agent.next_request(result, history=result.messages)

    run_virtual(main())


def test_a_fallback_has_its_own() -> None:
    async def main() -> None:
        async with ByteServer([refusal()]) as first, ByteServer([refusal()], routes={"/v1/models": json_reply(LISTED)}) as second:
            fallback = Cooldown(HttpDriver(AnthropicCodec(), second.url, "m2", api_key="CANARY"))
            agent = agent_of(HttpDriver(ChatCodec(), first.url, "m1"), fallback=[fallback])
            said = await agent.next_request("What's it like in Oslo?", driver=agent.fallback[0])
            await run(agent_of(fallback))
            assert_same(said, second, ("x-api-key",))
            assert json.loads((await agent.next_request("Hi")).body)["model"] == "m1"
            assert first.requests == []
            with pytest.raises(UsageError, match="no driver of this agent"):
                await agent.next_request("Hi", driver=HttpDriver(ChatCodec(), first.url, "m1"))
            first.check = False

    run_virtual(main())


@pytest.mark.parametrize("format", ["", "anthropic+"])
def test_a_server_is_looked_for_and_not_asked_to_answer(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ByteServer([refusal()], routes={"/v1/models": json_reply(LISTED)}) as server:
            monkeypatch.setitem(PRESETS, "vllm", structs.replace(PRESETS["vllm"], base_url=server.url))
            agent = agent_of(driver_for(f"{format}vllm", api_key="CANARY"))
            said = await agent.next_request("What's it like in Oslo?")
            assert [request.path for request in server.requests] == ["/v1/models"]
            await run(agent)
            assert_same(said, server, ("x-api-key", "authorization") if format else ("authorization",))
            assert json.loads(said.body)["model"] == "tiny"

    run_virtual(main())


async def by_a_model(dropped: Sequence[Message], room: Room) -> Summary | None:
    raise AssertionError("a model was asked")


LONG = tuple(message for n in range(8) for message in (UserMessage(f"{n} " + "word " * 400), AssistantMessage((Text("Yes."),))))


def test_a_long_conversation_is_shortened_in_it_as_it_would_be() -> None:
    async def main() -> None:
        async with ByteServer([refusal()]) as server:
            driver = HttpDriver(ChatCodec(), server.url, "m")
            agent = agent_of(driver, context=ContextPolicy(window_tokens=2_000))
            said = await agent.next_request("What's it like in Oslo?", history=LONG)
            assert server.requests == []
            await run(agent, history=LONG)
            assert_same(said, server, ())
            assert b"messages were left out" in said.body

    run_virtual(main())


def test_no_model_is_asked_to_shorten_it() -> None:
    async def main() -> None:
        driver = HttpDriver(ChatCodec(), "http://127.0.0.1:9/v1", "m")
        agent = agent_of(driver, context=ContextPolicy(window_tokens=2_000, compaction=by_a_model))
        assert b"Oslo" in (await agent.next_request("Oslo?")).body
        with pytest.raises(UsageError, match="may ask a model"):
            await agent.next_request("Oslo?", history=LONG)

    run_virtual(main())


def test_a_driver_that_cannot_say_so_says_that() -> None:
    async def main() -> None:
        for driver in (ScriptedDriver(["Hi"]), Cooldown(ScriptedDriver(["Hi"]))):
            with pytest.raises(UsageError, match="does not say what it sends"):
                await Agent(driver).next_request("Hi")

    run_virtual(main())


def test_a_waiting_run_calls_tools_first() -> None:
    async def main() -> None:
        async with ByteServer([sse(*reply(calls=[("weather", {"city": "Oslo"})]))]) as server:
            agent = agent_of(HttpDriver(ChatCodec(), server.url, "m"), approvals="always")
            result = await agent.run("Oslo?")
            assert result.stop_reason == "waiting_approval"
            with pytest.raises(UsageError, match="no model call"):
                await agent.next_request(result)

    run_virtual(main())


def test_as_text_it_is_an_http_message() -> None:
    async def main() -> str:
        driver = HttpDriver(ChatCodec(), "http://host:8080/v1", "m", api_key="CANARY", headers={"X-Own": "CANARY"})
        return str(await Agent(driver).next_request("Hä?"))

    assert run_virtual(main()) == (
        "POST /v1/chat/completions HTTP/1.1\n"
        "Host: host:8080\n"
        "Content-Type: application/json\n"
        "Accept: text/event-stream\n"
        "Accept-Encoding: identity\n"
        "User-Agent: treadle/0.1\n"
        "X-Own: ***\n"
        "Authorization: ***\n"
        "\n"
        "{\n"
        '  "model": "m",\n'
        '  "stream": true,\n'
        '  "stream_options": {\n'
        '    "include_usage": true\n'
        "  },\n"
        '  "messages": [\n'
        "    {\n"
        '      "role": "user",\n'
        '      "content": "Hä?"\n'
        "    }\n"
        "  ]\n"
        "}"
    )


@pytest.mark.parametrize("name", ["Accept", "accept", "User-Agent", "X-Key"])
def test_the_key_is_hidden_in_whatever_header_it_is_sent(name: str) -> None:
    async def main() -> HttpRequest:
        driver = HttpDriver(ChatCodec(), "http://h/v1", "m", api_key="CANARY", key_header=name)
        return await Agent(driver).next_request("Hi")

    said = run_virtual(main())
    assert said.headers[name] == "***"
    for text in (str(said), repr(said), said.curl):
        assert "CANARY" not in text


def test_the_command_is_quoted_for_a_shell() -> None:
    request = HttpRequest(method="POST", url="http://h/v1", headers={"A": "***"}, body=b'{"text":"it\'s"}')
    assert request.curl == ("""curl --no-buffer -X POST http://h/v1 -H 'A: ***' --data-binary '{"text":"it'"'"'s"}'""")
