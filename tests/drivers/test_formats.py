"""A server asked in the format that the user names: the real llama.cpp in three, the others played."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs

from tests.harness import ByteServer, Send, json_reply, run_virtual
from treadle import Agent, HttpDriver, LlamaServer, ModelInfo, ModelNotFound, ModelRequest, Options
from treadle.drivers.catalog import PRESETS, driver_for
from treadle.drivers.discovery import DiscoveredDriver

# Documented, not captured (docs.ollama.com/api; 2026-11).
LISTED = {"object": "list", "data": [{"id": "qwen3:8b", "object": "model", "owned_by": "library"}]}
OLLAMA: dict[str, Any] = {
    "/v1/models": json_reply(LISTED),
    "/api/version": json_reply({"version": "0.12.6"}),
    "/api/ps": json_reply({"models": [{"model": "qwen3:8b", "context_length": 8192}]}),
    "/api/show": json_reply({"capabilities": ["completion", "tools"]}),
}
LINE = json.dumps({"model": "qwen3:8b", "message": {"role": "assistant", "content": "Hi"}, "done": True, "done_reason": "stop"})
ANSWER = [Send(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n" + LINE.encode() + b"\n")]


@pytest.mark.parametrize("format", ["chat", "responses", "anthropic"])
def test_llamacpp_answers_in_each(format: str, llamacpp: LlamaServer) -> None:
    agent = Agent(f"{format}+{llamacpp.base_url}", options=Options(max_tokens=64, temperature=0.0))
    result = agent.run_sync("What's the weather in Oslo?")
    assert result.text
    assert isinstance(agent.driver, DiscoveredDriver)
    info = asyncio.run(agent.driver.info())
    assert (info.server, info.window_tokens) == ("llamacpp", 2048)


@pytest.mark.parametrize(
    "text",
    ["ollama/qwen3:8b", "ollama", "ollama+ollama/qwen3:8b", "ollama+ollama", "ollama+local", "ollama+URL#qwen3:8b", "ollama+URL"],
)
def test_ollama_is_asked_natively_however_it_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ByteServer([[*ANSWER]], routes=OLLAMA) as server:
            monkeypatch.setitem(PRESETS, "ollama", structs.replace(PRESETS["ollama"], base_url=server.url))
            monkeypatch.delenv("OLLAMA_HOST", raising=False)
            driver = driver_for(text.replace("URL", server.url))
            result = await Agent(driver, options=Options(extra_body={"options": {"num_ctx": 8192}})).run("Hi")
            assert result.text == "Hi"
            sent = next(post for post in server.posts if post.path == "/api/chat")
            assert (sent.json["model"], sent.json["options"]) == ("qwen3:8b", {"num_ctx": 8192})
            assert await driver.info() == ModelInfo(
                model="qwen3:8b",
                server="ollama",
                window_tokens=8192,
                window_source="GET /api/ps context_length",
                window_on_request=True,
                abilities=frozenset({"tools"}),
                loaded=True,
            )

    run_virtual(main())


def test_a_server_that_does_not_speak_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        listed = json_reply({"object": "list", "data": [{"id": "m", "owned_by": "vllm", "max_model_len": 64}]})
        missing = json_reply({"detail": "Not Found"}, status=404)
        async with ByteServer([missing], routes={"/v1/models": listed}) as server:
            with pytest.raises(ModelNotFound) as caught:
                await Agent(f"anthropic+{server.url}#m").run("Hi")
            assert "vLLM has that model, and nothing where `anthropic` is spoken: leave `anthropic+` out" in caught.value.hint

    run_virtual(main())


def test_a_wrong_name_is_answered_with_the_right_one_in_any_format() -> None:
    async def main() -> None:
        missing = json_reply({"error": "model 'qwen3:9b' not found"}, status=404)
        async with ByteServer([missing], routes=OLLAMA) as server:
            root = server.url.removesuffix("/v1")
            with pytest.raises(ModelNotFound) as caught:
                await Agent(f"ollama+{root}#qwen3:9b").run("Hi")
            assert "Did you mean qwen3:8b?" in caught.value.hint

    run_virtual(main())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("anthropic+http://127.0.0.1:9/v1#m", {"Authorization", "x-api-key"}),
        ("anthropic+vllm/m", {"Authorization", "x-api-key"}),  # vLLM reads no other than `Authorization` (seen)
        ("anthropic+https://api.anthropic.com/v1#claude-opus-4-6", {"x-api-key"}),  # which refuses a key as a bearer's (reported)
        ("anthropic/claude-haiku-4-5", {"x-api-key"}),
        ("vllm/m", {"Authorization"}),
    ],
)
def test_the_key_is_in_the_headers_that_the_server_reads(text: str, names: set[str]) -> None:
    async def main() -> dict[str, str]:
        driver = driver_for(text, api_key="CANARY")
        if isinstance(driver, DiscoveredDriver):
            driver = await driver.resolve()
        assert isinstance(driver, HttpDriver)
        return driver.headers(ModelRequest(messages=()))

    sent = run_virtual(main())
    assert {name for name, value in sent.items() if "CANARY" in value} == names
