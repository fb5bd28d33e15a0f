"""Exact token counts: what is asked of whom, and what is made of the answers. tests/servers has the real servers."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.harness import ByteServer, json_reply, run_virtual
from treadle import (
    AssistantMessage,
    HttpDriver,
    MissingExtra,
    ModelRequest,
    Options,
    Text,
    ToolCall,
    ToolMessage,
    UsageError,
    UserMessage,
)
from treadle.drivers.counting import count_by_endpoint, count_by_llamacpp, count_by_vllm, counter_for, tiktoken_counter
from treadle.values.request import ToolSpec
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.responses import ResponsesCodec

CONVERSATION = ModelRequest(
    messages=(
        UserMessage("What is the weather?"),
        AssistantMessage((Text("Let me look."), ToolCall("call_1", "look", '{"at": "the sky"}'))),
        ToolMessage("call_1", "look", "blue"),
    ),
    instructions="Be brief.",
    tools=(ToolSpec(name="look", description="Look at something", parameters={"type": "object", "properties": {}}),),
    options=Options(temperature=0.5, max_tokens=100, stop=("x",)),
)


def asked(codec: Any, counter: Any, answers: Sequence[Any]) -> tuple[int | None, list[Any]]:
    """What the counter makes of these answers, and the bodies it sent."""

    async def main() -> tuple[int | None, list[Any]]:
        async with ByteServer(list(answers)) as server:
            driver = HttpDriver(codec, server.url, "m", api_key="k", counter=counter)
            counted = await driver.count(CONVERSATION)
            return counted, [(request.path, request.json) for request in server.requests]

    return run_virtual(main())


class TestWhatIsAsked:
    def test_anthropic_is_sent_what_it_counts_and_nothing_else(self) -> None:
        counted, [(path, body)] = asked(AnthropicCodec(), count_by_endpoint, [json_reply({"input_tokens": 77})])
        assert (counted, path) == (77, "/v1/messages/count_tokens")
        assert set(body) <= {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control"}
        assert body["model"] == "m" and len(body["messages"]) == 3 and body["tools"]

    def test_responses(self) -> None:
        answer = {"object": "response.input_tokens", "input_tokens": 12}
        counted, [(path, body)] = asked(ResponsesCodec(), count_by_endpoint, [json_reply(answer)])
        assert (counted, path) == (12, "/v1/responses/input_tokens")
        assert not set(body) & {"stream", "store", "max_output_tokens", "include", "temperature"}
        assert body["input"] and body["tools"]

    def test_vllm(self) -> None:
        answer = {"count": 3, "max_model_len": 2048, "tokens": [1, 2, 3], "token_strs": None}
        counted, [(path, body)] = asked(ChatCodec(), count_by_vllm, [json_reply(answer)])
        assert (counted, path) == (3, "/tokenize")
        assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "tool"] and body["tools"]

    @pytest.mark.parametrize(
        "answer",
        [
            json_reply({"error": "not found"}, status=404),
            json_reply({"detail": "busy"}, status=529),
            json_reply({"input_tokens": None}),
            json_reply({"input_tokens": "12"}),
            json_reply({"input_tokens": True}),
            json_reply({"input_tokens": -1}),
            json_reply([12]),
        ],
    )
    def test_what_is_no_count_is_none(self, answer: Any) -> None:
        assert asked(AnthropicCodec(), count_by_endpoint, [answer])[0] is None


def test_a_plain_compatible_server_is_not_asked() -> None:
    assert counter_for(ChatCodec(), None) is None
    assert counter_for(ChatCodec(), "openai-compatible") is None
    assert asyncio.run(HttpDriver(ChatCodec(), "http://127.0.0.1:9/v1", "m").count(CONVERSATION)) is None


def test_a_server_that_is_gone_is_none() -> None:
    driver = HttpDriver(AnthropicCodec(), "http://127.0.0.1:9/v1", "m", counter=count_by_endpoint)
    assert asyncio.run(driver.count(CONVERSATION)) is None


def test_a_llamacpp_that_has_neither_way_is_none() -> None:
    unknown = json_reply({"error": "not found"}, status=404)
    assert asked(ChatCodec(), count_by_llamacpp, [unknown, unknown])[0] is None
    assert asked(ChatCodec(), count_by_llamacpp, [unknown, json_reply({"prompt": "Hi"}), unknown])[0] is None


class TestTiktoken:
    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tiktoken", None)
        with pytest.raises(MissingExtra) as caught:
            tiktoken_counter()
        assert "[tiktoken]" in caught.value.hint

    def test_an_encoding_that_does_not_exist(self) -> None:
        pytest.importorskip("tiktoken")
        with pytest.raises(UsageError) as caught:
            tiktoken_counter("no_such_encoding")
        assert "no_such_encoding" in caught.value.message

    @pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="no files of encodings, and tests download nothing")
    def test_texts_are_counted_exactly(self) -> None:
        tiktoken = pytest.importorskip("tiktoken")
        driver = HttpDriver(ChatCodec(), "http://127.0.0.1:9/v1", "m", counter=tiktoken_counter("o200k_base"))

        def count(text: str) -> int:
            counted = asyncio.run(driver.count(ModelRequest(messages=(UserMessage(text),))))
            assert counted is not None
            return counted

        encoding = tiktoken.get_encoding("o200k_base")
        for text in ("", "Hello, world", "漢字かな 한국어", "<|endoftext|>", "x" * 1000):
            assert count(text) - count("") == len(encoding.encode_ordinary(text))
        counted = asyncio.run(driver.count(CONVERSATION))
        assert counted is not None and counted > 30
