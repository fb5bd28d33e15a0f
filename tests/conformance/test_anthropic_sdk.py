"""A second opinion: the official `anthropic` SDK sends the same request for the same conversation, and reads our streams alike.

Runs where the SDK is installed (`pip install anthropic`); it is no dependency.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from msgspec import structs

from tests.conformance.chat_captures import body, is_stream, status
from tests.conformance.test_anthropic_captures import cases
from tests.wire.test_anthropic_decode import FULL
from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Opaque,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Options, OutputSchema, ToolSpec
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import ANTHROPIC_API, AnthropicDialect
from treadle.wire.schemas import closed

anthropic = pytest.importorskip("anthropic")

CACHE = {"type": "ephemeral"}


class Recorder:
    """A server that keeps what it is sent, and answers with the same bytes each time."""

    def __init__(self) -> None:
        self.answer = b""
        self.requests: list[tuple[str, Any]] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                recorder.requests.append((self.path, json.loads(sent)))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", str(len(recorder.answer)))
                self.end_headers()
                self.wfile.write(recorder.answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture
def client(recorder: Recorder) -> Iterator[Any]:
    with anthropic.Anthropic(api_key="none", base_url=recorder.url, max_retries=0) as client:
        yield client


def final_message(client: Any, **request: Any) -> Any:
    with client.messages.stream(**request) as stream:
        return stream.get_final_message()


def test_the_same_conversation_is_the_same_request(recorder: Recorder, client: Any) -> None:
    recorder.answer = FULL
    request = ModelRequest(
        instructions="Be brief.",
        messages=(
            UserMessage("Weather?", (Image(b"GIF8", "image/gif"), Document(b"%PDF", "application/pdf", "a.pdf"))),
            AssistantMessage(
                (
                    Thinking("hm", "block", None, "EqQB=="),
                    Opaque("anthropic", '{"type":"redacted_thinking","data":"x"}'),
                    Text("I look."),
                    ToolCall("toolu_1", "get_weather", '{"city":"Oslo"}'),
                    ToolCall("toolu_2", "get_weather", '{"city":"Lima"}'),
                )
            ),
            ToolMessage("toolu_1", "get_weather", "4 C"),
            ToolMessage("toolu_2", "get_weather", "no such city", is_error=True),
            UserMessage("Quick!"),
        ),
        tools=(ToolSpec(name="get_weather", description="Weather.", parameters={"type": "object", "properties": {}}),),
        options=Options(max_tokens=4000, reasoning="low", tool_choice="auto", stop=("END",)),
    )
    final_message(
        client,
        model="m",
        max_tokens=4000,
        system=[{"type": "text", "text": "Be brief.", "cache_control": CACHE}],
        thinking={"type": "enabled", "budget_tokens": 2048},
        tool_choice={"type": "auto"},
        stop_sequences=["END"],
        tools=[
            {
                "name": "get_weather",
                "description": "Weather.",
                "input_schema": {"type": "object", "properties": {}},
                "cache_control": CACHE,
            }
        ],
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lGOA=="}},
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
                        "title": "a.pdf",
                    },
                    {"type": "text", "text": "Weather?"},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "EqQB=="},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
                    {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {"city": "Lima"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "4 C"},
                    {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such city", "is_error": True},
                    {"type": "text", "text": "Quick!", "cache_control": CACHE},
                ],
            },
        ],
    )
    codec = AnthropicCodec(AnthropicDialect(cache=True))
    assert recorder.requests == [("/v1" + codec.path, json.loads(codec.encoder("m").encode(request)))]


def test_the_same_form_of_an_answer_is_the_same_request(recorder: Recorder, client: Any) -> None:
    recorder.answer = FULL
    schema: dict[str, Any] = {"type": "object", "properties": {"t": {"type": "integer"}}, "required": ["t"]}
    final_message(
        client,
        model="m",
        max_tokens=8192,
        thinking={"type": "adaptive"},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}},
        messages=[{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": CACHE}]}],
    )
    codec = AnthropicCodec(structs.replace(ANTHROPIC_API, cache=True))
    request = ModelRequest(
        messages=(UserMessage("x"),), output=OutputSchema(name="weather", schema=schema), options=Options(reasoning="low")
    )
    assert recorder.requests == [("/v1" + codec.path, json.loads(codec.encoder("m").encode(request)))]


def test_a_schema_is_closed_as_the_sdk_closes_it() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "title": "Weather",
        "$defs": {"Wind": {"type": "object", "properties": {"from": {"enum": ["N", "S"]}}, "required": ["from"]}},
        "properties": {
            "place": {"type": "string", "description": "Where.", "title": "Place"},
            "day": {"type": "string", "format": "date"},
            "wind": {"$ref": "#/$defs/Wind", "description": "Left out beside a reference."},
            "hours": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "null"}]}, "minItems": 1},
            "kind": {"oneOf": [{"const": "a"}, {"type": "boolean"}]},
        },
        "required": ["place"],
    }
    assert closed(schema) == anthropic.transform_schema(schema)


@pytest.mark.parametrize("case", ["everything", *(case for case in cases() if is_stream(case) and status(case) == 200)])
def test_the_same_bytes_mean_the_same(recorder: Recorder, client: Any, case: str) -> None:
    recorder.answer = FULL if case == "everything" else body(case)
    theirs = final_message(client, model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
    codec = AnthropicCodec()
    decoder = codec.decoder(ModelRequest(messages=()))
    decoder.feed(recorder.answer)
    decoder.close()
    reply = decoder.reply
    (written,) = json.loads(codec.encoder("m").encode(ModelRequest(messages=(reply.message,))))["messages"]
    blocks = [_plain(block.to_dict()) for block in theirs.content]
    assert written["content"] == [block for block in blocks if block.get("text") != ""]
    assert (reply.finish_said, reply.model) == (theirs.stop_reason, theirs.model)
    usage = theirs.usage
    parts = [usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens]
    assert reply.usage.input_tokens == sum(part or 0 for part in parts)
    assert reply.usage.output_tokens == usage.output_tokens
    assert (reply.usage.cached_input_tokens or 0) == (usage.cache_read_input_tokens or 0)


def _plain(block: dict[str, Any]) -> dict[str, Any]:
    """Without the fields the SDK adds to what came."""
    return {key: value for key, value in block.items() if value is not None and key not in ("parsed_output", "citations")}
