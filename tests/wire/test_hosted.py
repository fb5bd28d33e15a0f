"""What hosted providers want in Chat Completions. From documentation and reports (docs/protocols/chat.md), not from captures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from treadle.values.messages import AssistantMessage, Message, Text, Thinking, ToolCall, ToolMessage, UserMessage
from treadle.values.request import ModelRequest, Options
from treadle.wire.chat_requests import ChatEncoder
from treadle.wire.dialects import Dialect
from treadle.wire.hosted import DEEPSEEK, OPENAI_CHAT, groq, mistral, openrouter, together, xai

THOUGHT: tuple[Message, ...] = (
    UserMessage("Oslo?"),
    AssistantMessage((Thinking("Hm.", source="reasoning"), ToolCall("call_1", "weather", '{"city":"Oslo"}'))),
    ToolMessage("call_1", "weather", "snow"),
    AssistantMessage((Text("Snow."),)),
    UserMessage("And Lima?"),
)


def sent(dialect: Dialect, messages: tuple[Message, ...] = THOUGHT, **options: Any) -> dict[str, Any]:
    return json.loads(ChatEncoder("m", dialect).encode(ModelRequest(messages=messages, options=Options(**options))))


def added(dialect: Dialect, level: Any) -> dict[str, Any] | None:
    """What is sent for an effort; None if it is said to be left out."""
    encoder = ChatEncoder("m", dialect)
    plain = json.loads(encoder.encode(ModelRequest(messages=(UserMessage("Hi"),))))
    body = json.loads(encoder.encode(ModelRequest(messages=(UserMessage("Hi"),), options=Options(reasoning=level))))
    extra = {name: value for name, value in body.items() if name not in plain}
    unsaid = [each for each in encoder.omitted if "by itself" in each.why]
    assert bool(unsaid) == (not extra)
    return extra or None


def test_openai_bounds_the_answer_under_its_newer_name_and_takes_no_reasoning_back() -> None:
    body = sent(OPENAI_CHAT, max_tokens=100)
    assert body["max_completion_tokens"] == 100
    assert "max_tokens" not in body
    assert body["messages"][1].keys() == {"role", "content", "tool_calls"}


def test_deepseek_gets_its_reasoning_back_with_every_turn_that_has_calls() -> None:
    unthought = (UserMessage("?"), AssistantMessage((ToolCall("c", "f", "{}"),)), ToolMessage("c", "f", "r"))
    assert sent(DEEPSEEK)["messages"][1]["reasoning_content"] == "Hm."  # whatever field it came in
    assert "reasoning" not in sent(DEEPSEEK)["messages"][1]
    assert sent(DEEPSEEK, unthought)["messages"][1]["reasoning_content"] == ""
    assert "reasoning_content" not in sent(DEEPSEEK)["messages"][3]


@pytest.mark.parametrize(
    ("level", "fields"),
    [
        ("off", {"thinking": {"type": "disabled"}}),
        ("low", {"thinking": {"type": "enabled"}, "reasoning_effort": "low"}),
        ("high", {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}),
    ],
)
def test_deepseek_has_a_switch_and_an_effort(level: str, fields: dict[str, Any]) -> None:
    assert added(DEEPSEEK, level) == fields


def test_groq_takes_no_reasoning_back() -> None:
    assert sent(groq("openai/gpt-oss-20b"))["messages"][1].keys() == {"role", "content", "tool_calls"}


@pytest.mark.parametrize(
    ("dialect", "level", "fields"),
    [
        (groq("openai/gpt-oss-20b"), "medium", {"reasoning_effort": "medium"}),
        (groq("openai/gpt-oss-20b"), "off", None),
        (groq("qwen/qwen3-32b"), "off", {"reasoning_effort": "none"}),
        (groq("qwen/qwen3-32b"), "high", {"reasoning_effort": "default"}),
        (groq("llama-3.3-70b-versatile"), "high", None),
        (together("openai/gpt-oss-120b"), "low", {"reasoning_effort": "low"}),
        (together("moonshotai/Kimi-K2.6"), "low", {"reasoning": {"enabled": True}}),
        (together("moonshotai/Kimi-K2.6"), "off", {"reasoning": {"enabled": False}}),
        (mistral("mistral-small-latest"), "off", {"reasoning_effort": "none"}),
        (mistral("mistral-small-latest"), "low", {"reasoning_effort": "high"}),
        (mistral("magistral-medium-latest"), "high", None),
        (xai("grok-4.3"), "off", {"reasoning_effort": "none"}),
        (xai("grok-4.5"), "medium", {"reasoning_effort": "medium"}),
        (xai("grok-4.5"), "off", None),
        (xai("grok-4.20-0309-reasoning"), "low", None),
        (xai("grok-4"), "high", None),
        (xai("grok-3-mini"), "high", {"reasoning_effort": "high"}),
        (xai("grok-3-mini"), "medium", None),
        (openrouter("anthropic/claude-x"), "off", {"reasoning_effort": "none"}),
    ],
)
def test_an_effort_is_asked_for_as_the_model_knows_it_or_said_to_be_left_out(
    dialect: Dialect, level: str, fields: dict[str, Any] | None
) -> None:
    assert added(dialect, level) == fields


def test_mistral_is_sent_its_own_fields_only() -> None:
    body = sent(mistral("mistral-large-latest"), seed=7, max_tokens=9)
    assert "stream_options" not in body
    assert "seed" not in body
    assert (body["random_seed"], body["max_tokens"]) == (7, 9)
    assert body["messages"][1].keys() == {"role", "content", "tool_calls"}


@pytest.mark.parametrize("dialect", [mistral("mistral-large-latest"), openrouter("mistralai/mistral-small")])
def test_mistral_has_ids_of_nine_letters_and_digits(dialect: Dialect) -> None:
    calls = (ToolCall("call_1", "f", "{}"), ToolCall("call_2", "f", "{}"), ToolCall("aB3xK9mP2", "f", "{}"))
    results = [ToolMessage(call.id, "f", "r") for call in calls]
    messages = sent(dialect, (UserMessage("?"), AssistantMessage(calls), *results))["messages"]
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert all(len(id) == 9 and id.isalnum() and id.isascii() for id in ids)
    assert len(set(ids)) == 3
    assert ids[2] == "aB3xK9mP2"
    assert [message["tool_call_id"] for message in messages[2:]] == ids


def test_others_keep_their_ids() -> None:
    assert sent(openrouter("meta/llama-4"))["messages"][1]["tool_calls"][0]["id"] == "call_1"
