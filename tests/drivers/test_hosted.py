"""The window of a hosted model: what its provider says, else the table.

The answers are written from the providers' documentation (docs/protocols/chat.md, "Hosted providers"; 2026-11) and were not captured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from tests.harness import ByteServer, Exchange, Hang, json_reply, run_virtual
from treadle import ModelInfo
from treadle.drivers.catalog import PRESETS, driver_for
from treadle.drivers.windows import WINDOWS, window_of

ANTHROPIC = {
    "type": "model",
    "id": "claude-opus-4-6",
    "display_name": "Claude Opus 4.6",
    "created_at": "2026-02-04T00:00:00Z",
    "max_input_tokens": 1_000_000,
    "max_tokens": 128_000,
}
GEMINI = {"name": "models/gemini-2.5-flash", "version": "001", "inputTokenLimit": 1_048_576, "outputTokenLimit": 65_536}
OPENROUTER = {
    "data": [
        {"id": "meta/llama-4", "context_length": 131_072, "top_provider": {"context_length": 65_536}},
        {"id": "meta/llama-4:free", "context_length": 32_768},
    ]
}
GROQ = {"object": "list", "data": [{"id": "openai/gpt-oss-20b", "owned_by": "OpenAI", "active": True, "context_window": 131_072}]}
TOGETHER = [{"id": "moonshotai/Kimi-K2.6", "object": "model", "type": "chat", "context_length": 262_144}]
MISTRAL = {"id": "mistral-small-2603", "object": "model", "max_context_length": 262_144, "aliases": ["mistral-small-latest"]}

SAID: list[tuple[str, str, Any, int, str, dict[str, str]]] = [
    (
        "anthropic/claude-opus-4-6",
        "/v1/models/claude-opus-4-6",
        ANTHROPIC,
        1_000_000,
        "GET /models/{model} max_input_tokens",
        {"x-api-key": "k", "anthropic-version": "2023-06-01"},
    ),
    (
        "gemini/gemini-2.5-flash",
        "/v1/models/gemini-2.5-flash",
        GEMINI,
        1_048_576,
        "GET /models/{model} inputTokenLimit",
        {"x-goog-api-key": "k"},
    ),
    (
        "gemini/models/gemini-2.5-flash",
        "/v1/models/gemini-2.5-flash",
        GEMINI,
        1_048_576,
        "GET /models/{model} inputTokenLimit",
        {"x-goog-api-key": "k"},
    ),
    ("openrouter/meta/llama-4", "/v1/models", OPENROUTER, 131_072, "GET /models context_length", {"authorization": "Bearer k"}),
    (
        "openrouter/meta/llama-4:free",
        "/v1/models",
        OPENROUTER,
        32_768,
        "GET /models context_length",
        {"authorization": "Bearer k"},
    ),
    (
        "openrouter/meta/llama-4:nitro",
        "/v1/models",
        OPENROUTER,
        131_072,
        "GET /models context_length",
        {"authorization": "Bearer k"},
    ),
    ("groq/openai/gpt-oss-20b", "/v1/models", GROQ, 131_072, "GET /models context_window", {"authorization": "Bearer k"}),
    (
        "together/moonshotai/Kimi-K2.6",
        "/v1/models",
        TOGETHER,
        262_144,
        "GET /models context_length",
        {"authorization": "Bearer k"},
    ),
    (
        "mistral/mistral-small-latest",
        "/v1/models/mistral-small-latest",
        MISTRAL,
        262_144,
        "GET /models/{model} max_context_length",
        {"authorization": "Bearer k"},
    ),
]
KEY_HEADERS = {"authorization", "api-key", "x-api-key", "x-goog-api-key"}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for preset in PRESETS.values():
        for name in (*preset.address_env, preset.key_env):
            if name:
                monkeypatch.delenv(name, raising=False)
    yield


def info_of(
    model: str, routes: dict[str, Exchange], monkeypatch: pytest.MonkeyPatch, *, key: str | None = "k"
) -> tuple[ModelInfo, ByteServer]:
    """What the driver says of the model, its provider being played by a server that answers these paths."""

    async def main() -> tuple[ModelInfo, ByteServer]:
        async with ByteServer(routes=routes) as server:
            provider = model.partition("/")[0].rpartition("+")[2]
            monkeypatch.setitem(PRESETS, provider, structs.replace(PRESETS[provider], base_url=server.url))
            return await driver_for(model, api_key=key).info(), server

    return run_virtual(main())


@pytest.mark.parametrize(("model", "path", "answer", "tokens", "source", "headers"), SAID)
def test_a_provider_that_says_is_asked(
    model: str, path: str, answer: Any, tokens: int, source: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info, server = info_of(model, {path: json_reply(answer)}, monkeypatch)
    provider, _, name = model.partition("/")
    assert info == ModelInfo(model=name, server=provider, window_tokens=tokens, window_source=source)
    (asked,) = server.requests
    assert (asked.method, asked.path) == ("GET", path)
    assert {n: v for n, v in asked.headers.items() if n in KEY_HEADERS | headers.keys()} == headers


def test_the_format_of_the_answers_is_another_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    info, server = info_of("chat+anthropic/claude-opus-4-6", {"/v1/models/claude-opus-4-6": json_reply(ANTHROPIC)}, monkeypatch)
    assert info.window_tokens == 1_000_000
    assert server.requests[0].headers["x-api-key"] == "k"


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("openai/gpt-5.2", 272_000), ("openai/gpt-4o", 128_000), ("deepseek/deepseek-v4-pro", 1_000_000), ("xai/grok-4.5", 500_000)],
)
def test_for_a_provider_that_does_not_say_the_table_does_and_nobody_is_asked(
    model: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, server = info_of(model, {}, monkeypatch)
    assert info.window_tokens == tokens
    assert info.window_source is not None
    assert re.fullmatch(r"treadle's table: .+, 2026-\d\d", info.window_source)
    assert server.requests == []


@pytest.mark.parametrize(
    "model", ["openai/gpt-99", "azure/my-deployment", "azure/gpt-4o", "azure/o3", "openai/gpt-5.5-mini", "xai/grok-4.7"]
)
def test_a_model_that_nobody_knows_has_no_window(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, _, name = model.partition("/")
    assert info_of(model, {}, monkeypatch)[0] == ModelInfo(model=name, server=provider)


@pytest.mark.parametrize(
    "answer",
    [
        json_reply({"error": {"message": "no key"}}, status=401),
        json_reply([]),
        json_reply({"max_input_tokens": "1000000"}),
        json_reply({"max_input_tokens": 0}),
        json_reply({"max_input_tokens": True}),
        json_reply({"max_input_tokens": -5}),
        json_reply(b"<html>"),
        [Hang()],
    ],
)
def test_an_answer_that_is_none_is_as_if_nothing_was_said(answer: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    info, _ = info_of("anthropic/claude-x", {"/v1/models/claude-x": answer}, monkeypatch)
    assert info == ModelInfo(model="claude-x", server="anthropic")


@pytest.mark.parametrize("answer", [{"data": None}, {"data": [None, {"id": []}, {"id": "other"}]}, "text", {"data": {}}])
def test_a_list_without_the_model_says_nothing(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    info, _ = info_of("groq/llama", {"/v1/models": json_reply(answer)}, monkeypatch)
    assert info == ModelInfo(model="llama", server="groq")


def test_a_key_follows_no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ByteServer(check=False) as elsewhere:
            moved = json_reply({}, status=302, headers={"location": f"{elsewhere.url}/models"})
            async with ByteServer(routes={"/v1/models": moved}) as server:
                monkeypatch.setitem(PRESETS, "groq", structs.replace(PRESETS["groq"], base_url=server.url))
                assert (await driver_for("groq/llama", api_key="CANARY").info()).window_tokens is None
                assert len(server.requests) == 1
            assert elsewhere.requests == []

    run_virtual(main())


def test_a_key_that_cannot_be_sent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="HTTP cannot carry") as caught:
        info_of("groq/llama", {}, monkeypatch, key="CANARY\nx")
    assert "CANARY" not in str(caught.value)


def test_every_row_of_the_table_says_where_it_is_from() -> None:
    for row in WINDOWS:
        assert row.tokens > 1_000
        assert "." in row.source
        assert re.fullmatch(r"20\d\d-\d\d", row.read)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-5", 272_000),  # of 400,000, the rest of which is the answer's
        ("gpt-5-mini-2025-08-07", 272_000),
        ("gpt-5.1-codex", 272_000),
        ("gpt-5-pro", 128_000),
        ("gpt-5.4", 922_000),
        ("gpt-5.5-2026-04-23", 922_000),
        ("gpt-5-chat-latest", 128_000),
        ("gpt-5.2-chat", 128_000),
        ("gpt-4.1-nano", 1_047_576),
        ("gpt-4o-2024-08-06", 128_000),
        ("o3", 200_000),
        ("grok-4", 256_000),
        ("grok-4.20-0309-reasoning", 1_000_000),
        ("openai/gpt-5", None),  # another provider's name for it, with another provider's window
        ("my-gpt-5", None),
        ("gpt-5-turbo", None),
    ],
)
def test_a_row_is_for_whole_names(model: str, tokens: int | None) -> None:
    row = window_of(model)
    assert (row.tokens if row else None) == tokens
