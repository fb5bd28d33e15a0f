"""Histories as OpenAI-style dicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import ByteServer, reply, run_virtual, sse
from treadle import Agent, HistoryError, HttpDriver
from treadle.values.history import check_history, repaired
from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest
from treadle.wire.chat import ChatCodec

DICTS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGOA=="}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
            {"type": "text", "text": "Weather here?"},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Oslo, it seems",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
            {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Lima"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "4 C"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "19 C"}]},
    {"role": "assistant", "content": "Cold."},
]
MESSAGES = (
    SystemMessage("Be brief."),
    UserMessage("Weather here?", (Image(b"GIF8", "image/gif"), Document(b"%PDF", "application/pdf", "a.pdf"))),
    AssistantMessage(
        (
            Thinking("Oslo, it seems"),
            ToolCall("a", "get_weather", '{"city": "Oslo"}'),
            ToolCall("b", "get_weather", '{"city": "Lima"}'),
        )
    ),
    ToolMessage("a", "get_weather", "4 C"),
    ToolMessage("b", "get_weather", "19 C"),
    AssistantMessage((Text("Cold."),)),
)


def test_each_role_and_part() -> None:
    assert repaired(DICTS) == (MESSAGES, [])


def test_what_we_send_can_be_read_back() -> None:
    """Chat Completions written by us, taken as a history, is the conversation it was."""
    body = json.loads(ChatCodec().encoder("m").encode(ModelRequest(messages=MESSAGES)))
    assert repaired(body["messages"])[0] == MESSAGES


def test_a_run_takes_them_also_mixed() -> None:
    async def main() -> list[Any]:
        async with ByteServer([sse(*reply("Hm"))]) as server:
            history = [*DICTS[:3], *MESSAGES[3:]]
            result = await Agent(HttpDriver(ChatCodec(), server.url, "m")).run("Sure?", history=history)
            assert result.messages[:6] == MESSAGES
            return server.posts[0].json["messages"]

    assert [m["role"] for m in run_virtual(main())] == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({}, "its role is None"),
        ({"role": "robot"}, "its role is 'robot'"),
        ({"role": "user"}, "`content` is no list"),
        ({"role": "user", "content": 3}, "`content` is no list"),
        ({"role": "user", "content": [{"type": "audio"}]}, "a part of type 'audio'"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]},
            "only linked to",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%"}}]}, "no base64"),
        ({"role": "tool", "content": "x"}, "has no 'tool_call_id'"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "has no 'function'"),
        ({"role": "assistant", "tool_calls": [{"id": "a", "function": {}}]}, "has no 'name'"),
        ({"role": "assistant", "tool_calls": "x"}, "`tool_calls` is no list"),
        ({"role": "system", "content": [3]}, "`content` is no list"),
    ],
)
def test_what_is_none_is_refused_with_its_place(item: Any, said: str) -> None:
    with pytest.raises(HistoryError, match="item 1 of the history") as caught:
        repaired([UserMessage("Hi"), item])
    assert said in caught.value.message
    assert "role" in caught.value.hint


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=8)
        | st.sampled_from(["user", "assistant", "tool", "data:,"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "role",
                        "content",
                        "tool_calls",
                        "function",
                        "name",
                        "id",
                        "type",
                        "text",
                        "image_url",
                        "url",
                        "tool_call_id",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_anything_else_is_a_message_or_a_typed_error(value: Any) -> None:
    item = value if isinstance(value, dict) else {"role": "user", "content": value}
    try:
        messages, _ = repaired([item])
    except HistoryError:
        return
    check_history(messages)
