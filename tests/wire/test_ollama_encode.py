"""Requests to Ollama's own chat: frozen bytes, and laws 5 and 9. Goldens are from documentation, not from a server.

Where the package `ollama` is installed, its requests for the same conversation must be JSON-equal to ours.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.wire.test_ollama_decode import WHOLE, decode
from treadle.errors import UsageError
from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Message,
    Opaque,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Options, OutputSchema, ToolSpec
from treadle.wire.codec import Codec
from treadle.wire.ollama import OllamaCodec

PNG = Image(b"\x89PNG", "image/png")
CONVERSATION: tuple[Message, ...] = (
    UserMessage("Weather in Oslo? 日本", (PNG, Document(b"a,b", "text/csv", "a.csv"))),
    AssistantMessage(
        (
            Thinking("look it up", "reasoning"),
            Text("I look."),
            ToolCall("call_x1", "get_weather", '{"city" :"Oslo"}'),
            ToolCall("call_01234567_1_1", "f", "{broken"),
        )
    ),
    ToolMessage("call_x1", "get_weather", "4 C", note="this is slow", images=(PNG,)),
    ToolMessage("call_01234567_1_1", "f", "invalid arguments", is_error=True),
    AssistantMessage((Thinking("t", "content", "<think>t</think>\n"), Text("Cold."))),
    SystemMessage("Be kind."),
    UserMessage("Thanks"),
)
TURNS = [0, 1, 2, 4, 5, 6]  # results of a turn come all at once
TOOL = ToolSpec(name="get_weather", description="Weather.", parameters={"type": "object", "properties": {}})


def encode(request: ModelRequest, model: str = "qwen3", num_ctx: int | None = None) -> bytes:
    return OllamaCodec(num_ctx=num_ctx).encoder(model).encode(request)


def test_golden_bytes() -> None:
    request = ModelRequest(
        messages=CONVERSATION, instructions="Be brief.", tools=(TOOL,), options=Options(temperature=0.0, top_p=0.5, max_tokens=9, stop=("\n",), seed=1, reasoning="low", extra_body={"keep_alive": "1m", "options": {"num_ctx": 8192, "top_k": 5}})
    )  # fmt: skip
    assert encode(request, num_ctx=4096).decode() == (
        '{"model":"qwen3","stream":true,"truncate":false,"shift":false,"think":true,'
        '"options":{"num_ctx":8192,"num_predict":9,"temperature":0.0,"top_p":0.5,"seed":1,"stop":["\\n"],"top_k":5},"keep_alive":"1m",'
        '"tools":[{"type":"function","function":{"name":"get_weather","description":"Weather.","parameters":{"type":"object","properties":{}}}}],'
        '"messages":[{"role":"system","content":"Be brief."},'
        '{"role":"user","content":"[a.csv]\\na,b\\n\\nWeather in Oslo? 日本","images":["iVBORw=="]},'
        '{"role":"assistant","content":"I look.","thinking":"look it up","tool_calls":['
        '{"id":"call_x1","function":{"name":"get_weather","arguments":{"city" :"Oslo"}}},'
        '{"function":{"name":"f","arguments":{}}}]},'
        '{"role":"tool","content":"4 C\\n[this is slow]","tool_name":"get_weather","tool_call_id":"call_x1"},'
        '{"role":"tool","content":"Error: invalid arguments","tool_name":"f"},'
        '{"role":"user","content":"[Images of the result of get_weather, call_x1]","images":["iVBORw=="]},'
        '{"role":"assistant","content":"<think>t</think>\\nCold."},'
        '{"role":"system","content":"Be kind."},'
        '{"role":"user","content":"Thanks"}]}'
    )


def test_what_is_not_set_is_not_sent() -> None:
    assert encode(ModelRequest(messages=(UserMessage("x"),))) == (
        b'{"model":"qwen3","stream":true,"truncate":false,"shift":false,"messages":[{"role":"user","content":"x"}]}'
    )


def test_a_schema_for_the_answer() -> None:
    output = OutputSchema(name="weather", schema=TOOL.parameters)
    assert encode(ModelRequest(messages=(), output=output)) == (
        b'{"model":"qwen3","stream":true,"truncate":false,"shift":false,"format":{"type":"object","properties":{}},"messages":[]}'
    )


def test_the_codec() -> None:
    codec: Codec = OllamaCodec()
    assert (codec.path, codec.continuable) == ("/api/chat", False)


def test_num_ctx_is_what_the_run_plans_with_else_the_codecs() -> None:
    assert json.loads(encode(ModelRequest(messages=()), num_ctx=32768))["options"] == {"num_ctx": 32768}
    planned = ModelRequest(messages=(), window_tokens=16384)
    assert json.loads(encode(planned, num_ctx=32768))["options"] == {"num_ctx": 16384}
    own = structs.replace(planned, options=Options(extra_body={"options": {"num_ctx": 8192}}))
    assert json.loads(encode(own))["options"] == {"num_ctx": 8192}


def test_a_prompt_that_does_not_fit_is_to_be_refused_and_not_cut_unless_the_caller_wants_it() -> None:
    sent = json.loads(encode(ModelRequest(messages=())))
    assert (sent["truncate"], sent["shift"]) == (False, False)
    cutting = ModelRequest(messages=(), options=Options(extra_body={"truncate": True, "shift": True}))
    sent = json.loads(encode(cutting))
    assert (sent["truncate"], sent["shift"]) == (True, True)


def test_a_decoded_reply_goes_back_as_it_came() -> None:
    (sent,) = json.loads(encode(ModelRequest(messages=(decode(WHOLE)[1].message,))))["messages"]
    assert sent == {
        "role": "assistant",
        "content": "I look.",
        "thinking": "Hm.",
        "tool_calls": [
            {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}},
            {"id": "call_x1", "function": {"name": "get_weather", "arguments": {"city": "Lima"}}},
        ],
    }


def test_other_providers_parts_are_left_out() -> None:
    message = AssistantMessage((Thinking("a", "block", None, "signed"), Opaque("anthropic", "{}"), Text("Hi.")))
    gone = AssistantMessage((Thinking("a", "block", None, "signed"),))
    sent = json.loads(encode(ModelRequest(messages=(UserMessage("x"), message, UserMessage("y"), gone))))["messages"]
    assert sent[1:] == [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "y"}]


@pytest.mark.parametrize(
    ("model", "effort", "think"),
    [
        ("qwen3", None, None),
        ("qwen3", "off", False),
        ("qwen3", "high", True),
        ("gpt-oss:20b", "high", "high"),
        ("gpt-oss:20b", "off", False),
    ],
)
def test_reasoning(model: str, effort: Any, think: Any) -> None:
    assert json.loads(encode(ModelRequest(messages=(), options=Options(reasoning=effort)), model)).get("think") == think


@pytest.mark.parametrize(("choice", "offered"), [(None, True), ("auto", True), ("required", True), ("f", True), ("none", False)])
def test_the_format_has_no_tool_choice(choice: Any, offered: bool) -> None:
    sent = json.loads(encode(ModelRequest(messages=(), tools=(TOOL,), options=Options(tool_choice=choice))))
    assert ("tools" in sent) is offered and "tool_choice" not in sent


def test_a_document_that_is_no_text_is_a_typed_error() -> None:
    with pytest.raises(UsageError, match="application/pdf"):
        encode(ModelRequest(messages=(UserMessage("x", (Document(b"%PDF", "application/pdf"),)),)))


@pytest.mark.parametrize("field", ["messages", "model", "tools", "stream"])
def test_extra_body_cannot_take_over_the_request(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        encode(ModelRequest(messages=(), options=Options(extra_body={field: 1})))


def test_half_a_surrogate_pair_is_a_typed_error() -> None:
    with pytest.raises(UsageError, match="surrogate"):
        encode(ModelRequest(messages=(UserMessage("\ud83d"),)))


def test_a_leading_system_message_joins_the_instructions() -> None:
    request = ModelRequest(messages=(SystemMessage("Be kind."), UserMessage("x")), instructions="Be brief.")
    assert json.loads(encode(request))["messages"][0] == {"role": "system", "content": "Be brief.\n\nBe kind."}


@given(st.integers(0, len(CONVERSATION)), st.integers(0, len(CONVERSATION)), st.booleans())
def test_an_encoder_with_a_past_writes_what_a_new_one_writes(first: int, second: int, instructed: bool) -> None:
    encoder = OllamaCodec().encoder("qwen3")
    encoder.encode(ModelRequest(messages=CONVERSATION[:first], instructions="Be brief."))
    request = ModelRequest(messages=CONVERSATION[:second], instructions="Be brief." if instructed else None)
    assert encoder.encode(request) == encode(request)


@given(st.sampled_from(TURNS))
def test_a_longer_conversation_extends_the_bytes_of_a_shorter_one(length: int) -> None:
    encoder = OllamaCodec().encoder("m")
    shorter = encoder.encode(ModelRequest(messages=CONVERSATION[:length], tools=(TOOL,)))
    longer = encoder.encode(ModelRequest(messages=CONVERSATION, tools=(TOOL,)))
    assert longer.startswith(shorter.removesuffix(b"]}"))


class TestOfficialSdk:
    """A second opinion, offline: the SDK's client on a transport that keeps the request and answers with our golden stream."""

    def ask(self, **request: Any) -> tuple[Any, str, list[Any]]:
        ollama = pytest.importorskip("ollama")
        httpx = pytest.importorskip("httpx")
        seen: list[Any] = []

        def answer(request: Any) -> Any:
            seen.append(request)
            return httpx.Response(200, content=WHOLE, headers={"Content-Type": "application/x-ndjson"})

        client = ollama.Client("http://127.0.0.1:1", transport=httpx.MockTransport(answer))
        lines = list(client.chat(stream=True, **request))
        return json.loads(seen[0].content), seen[0].url.path, lines

    def test_the_same_request(self) -> None:
        theirs, path, _ = self.ask(
            model="qwen3",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Weather?", "images": [b"\x89PNG"]},
                {
                    "role": "assistant",
                    "content": "I look.",
                    "thinking": "hm",
                    "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}],
                },
                {"role": "tool", "content": "4 C", "tool_name": "get_weather"},
            ],
            tools=[
                {
                    "type": "function",
                    "function": {"name": "get_weather", "description": "Weather.", "parameters": TOOL.parameters},
                }
            ],
            think=True,
            format=TOOL.parameters,
            options={"num_ctx": 8192, "num_predict": 9, "temperature": 0.5, "top_p": 0.5, "seed": 1, "stop": ["x"]},
        )
        request = ModelRequest(
            messages=(
                UserMessage("Weather?", (PNG,)),
                AssistantMessage(
                    (Thinking("hm", "reasoning"), Text("I look."), ToolCall("call_r_1_0", "get_weather", '{"city": "Oslo"}'))
                ),
                ToolMessage("call_r_1_0", "get_weather", "4 C"),
            ),
            instructions="Be brief.",
            tools=(TOOL,),
            output=OutputSchema(name="weather", schema=TOOL.parameters),
            options=Options(temperature=0.5, top_p=0.5, max_tokens=9, stop=("x",), seed=1, reasoning="medium"),
        )
        # The package has no fields for these two.
        assert json.loads(encode(request, num_ctx=8192)) == theirs | {"truncate": False, "shift": False}
        assert path == OllamaCodec.path

    def test_the_same_answer(self) -> None:
        _, _, lines = self.ask(model="qwen3", messages=[])
        reply = decode(WHOLE)[1]
        assert "".join(each.message.content or "" for each in lines) == reply.message.text
        assert "".join(each.message.thinking or "" for each in lines) == reply.message.thinking
        calls = [call.function for each in lines for call in each.message.tool_calls or ()]
        assert [(c.name, c.arguments) for c in calls] == [(c.name, json.loads(c.arguments)) for c in reply.message.calls]
        assert (lines[-1].done_reason, lines[-1].eval_count) == (reply.finish_said, reply.usage.output_tokens)
