"""What named providers and models are asked with: whether a schema may be sent, and what is left out for whom."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.drivers.catalog import driver_for
from treadle.drivers.http import HttpDriver
from treadle.values.messages import UserMessage
from treadle.values.request import ModelRequest, Options


@pytest.mark.parametrize(
    ("model", "support"),
    [
        ("openai/gpt-5", "with_tools"),
        ("chat+openai/gpt-4o", "with_tools"),
        ("https://api.openai.com/v1#gpt-4o", "with_tools"),
        ("anthropic/claude-opus-4-8", "with_tools"),
        ("anthropic/claude-sonnet-4-6", "with_tools"),
        ("anthropic/claude-haiku-4-5-20251001", "with_tools"),
        ("anthropic/claude-opus-4-1-20250805", "none"),
        ("anthropic/claude-3-5-sonnet-latest", "none"),
        ("gemini/gemini-3-flash-preview", "with_tools"),
        ("gemini/gemini-2.5-pro", "alone"),
        ("deepseek/deepseek-chat", "none"),
        ("ollama/qwen3:8b", "alone"),
        ("ollama+ollama/qwen3:8b", "alone"),
        ("lmstudio/qwen3", "alone"),
        ("vllm/qwen3", "alone"),
        ("responses+http://127.0.0.1:8080/v1#m", "none"),  # llama.cpp
        ("responses+http://127.0.0.1:4444/v1#m", "alone"),
        ("anthropic+http://127.0.0.1:4444/v1#m", "none"),
        ("http://127.0.0.1:4444/v1#m", "alone"),
    ],
)
def test_where_a_schema_may_be_sent(model: str, support: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_HOST", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert driver_for(model).schema_support == support


@pytest.mark.parametrize(
    ("model", "reasoning", "left_out"),
    [
        ("openai/o3", None, ["temperature"]),
        ("openai/gpt-5-mini", None, ["temperature"]),
        ("openai/gpt-5.6", None, ["temperature"]),
        ("openai/gpt-5.1", None, []),
        ("openai/gpt-5.2", "off", []),
        ("openai/gpt-5.2", "low", ["temperature"]),
        ("openai/gpt-5-chat-latest", None, []),
        ("openai/gpt-4o", None, []),
        ("anthropic/claude-opus-4-7", None, ["temperature"]),
        ("anthropic/claude-opus-5", None, ["temperature"]),
        ("anthropic/claude-opus-4-6", None, []),
        ("anthropic/claude-sonnet-4-6", None, []),
    ],
)
def test_models_that_refuse_a_temperature_get_none(model: str, reasoning: Any, left_out: list[str]) -> None:
    driver = driver_for(model)
    assert isinstance(driver, HttpDriver)
    encoder = driver.codec.encoder(driver.served_model)
    body = encoder.encode(ModelRequest(messages=(UserMessage("x"),), options=Options(temperature=0.5, reasoning=reasoning)))
    assert [each.what for each in encoder.omitted] == left_out
    assert (b"temperature" in body) is not bool(left_out)
