"""A second opinion: the official `openai` SDK sends the same Chat Completions request for the same conversation.

Runs where the SDK is installed (`pip install openai`); it is no dependency. Responses: `tests/wire/test_responses_encode.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from treadle.values.messages import AssistantMessage, Document, Image, Text, ToolCall, ToolMessage, UserMessage
from treadle.values.request import ModelRequest, Options, OutputSchema, ToolSpec
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import OPENAI

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx2")  # its client

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
STREAM = b'data: {"id":"x","object":"chat.completion.chunk","created":0,"model":"m","choices":[{"index":0,"delta":{"content":"{}"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def test_the_same_conversation_is_the_same_request() -> None:
    bodies: list[Any] = []

    def answer(request: Any) -> Any:
        bodies.append((request.url.path, json.loads(request.content)))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=STREAM)

    client = openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=httpx.Client(transport=httpx.MockTransport(answer)))
    asked: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGOA=="}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
                {"type": "text", "text": "Weather?"},
            ],
        },
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}},
                {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Lima"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "4 C"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no such city"},
    ]
    declared = {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA, "strict": True}
    list(
        client.chat.completions.create(
            model="m",
            messages=asked,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0.5,
            top_p=0.5,
            seed=1,
            stop=["x"],
            max_completion_tokens=9,
            reasoning_effort="low",
            tools=[{"type": "function", "function": declared}],
            tool_choice="auto",
            response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}},
        )
    )
    request = ModelRequest(
        instructions="Be brief.",
        messages=(
            UserMessage("Weather?", (Image(b"GIF8", "image/gif"), Document(b"%PDF", "application/pdf", "a.pdf"))),
            AssistantMessage(
                (
                    Text("I look."),
                    ToolCall("a", "get_weather", '{"city":"Oslo"}'),
                    ToolCall("b", "get_weather", '{"city":"Lima"}'),
                )
            ),
            ToolMessage("a", "get_weather", "4 C"),
            ToolMessage("b", "get_weather", "no such city", is_error=True),
        ),
        tools=(ToolSpec(name="get_weather", description="Weather.", parameters=SCHEMA),),
        output=OutputSchema(name="weather", schema=SCHEMA),
        options=Options(temperature=0.5, top_p=0.5, seed=1, stop=("x",), max_tokens=9, reasoning="low", tool_choice="auto"),
    )
    codec = ChatCodec(OPENAI)
    assert bodies == [("/v1" + codec.path, json.loads(codec.encoder("m").encode(request)))]
