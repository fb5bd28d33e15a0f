"""Requests: frozen bytes, and laws 5 and 9."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import DEEPSEEK, LLAMACPP, OPENAI, VLLM, Dialect

CONVERSATION: tuple[Message, ...] = (
    UserMessage("Weather in Oslo? 日本"),
    AssistantMessage(
        (Thinking("look it up"), Text("I look."), ToolCall("a", "get_weather", '{"city" :"Oslo"}'), ToolCall("b", "f", "{broken"))
    ),
    ToolMessage("a", "get_weather", "4 C"),
    ToolMessage("b", "f", "invalid arguments", is_error=True),
    AssistantMessage((Thinking("t", "content", "<think>t</think>\n"), Text("Cold."))),
    SystemMessage("Be kind."),
    UserMessage("Thanks"),
)
TOOL = ToolSpec(name="get_weather", description="Weather.", parameters={"type": "object", "properties": {}})


def encode(request: ModelRequest, dialect: Dialect | None = None) -> bytes:
    return ChatCodec(dialect).encoder("m").encode(request)


def test_golden_bytes() -> None:
    request = ModelRequest(
        messages=CONVERSATION, instructions="Be brief.", tools=(TOOL,), options=Options(temperature=0.0, max_tokens=9, stop=("\n",), tool_choice="get_weather", seed=1, extra_body={"top_k": 5})
    )  # fmt: skip
    assert encode(request).decode() == (
        '{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":9,"temperature":0.0,"seed":1,"stop":["\\n"],'
        '"tool_choice":{"type":"function","function":{"name":"get_weather"}},"top_k":5,'
        '"tools":[{"type":"function","function":{"name":"get_weather","description":"Weather.","parameters":{"type":"object","properties":{}}}}],'
        '"messages":[{"role":"system","content":"Be brief."},'
        '{"role":"user","content":"Weather in Oslo? 日本"},'
        '{"role":"assistant","content":"I look.","reasoning_content":"look it up","tool_calls":['
        '{"id":"a","type":"function","function":{"name":"get_weather","arguments":"{\\"city\\" :\\"Oslo\\"}"}},'
        '{"id":"b","type":"function","function":{"name":"f","arguments":"{}"}}]},'
        '{"role":"tool","tool_call_id":"a","content":"4 C"},'
        '{"role":"tool","tool_call_id":"b","content":"Error: invalid arguments"},'
        '{"role":"assistant","content":"<think>t</think>\\nCold."},'
        '{"role":"system","content":"Be kind."},'
        '{"role":"user","content":"Thanks"}]}'
    )


def test_what_is_not_set_is_not_sent() -> None:
    assert encode(ModelRequest(messages=(UserMessage("x"),)), Dialect(ask_usage=False)) == (
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    )


def test_a_server_that_refuses_reasoning_gets_none() -> None:
    sent = json.loads(encode(ModelRequest(messages=CONVERSATION), Dialect(send_reasoning=False)))
    assert all("reasoning_content" not in message for message in sent["messages"])


@pytest.mark.parametrize("name", ["", "a b", "functions.get", "é", "x" * 100])
def test_a_name_that_strict_servers_refuse_is_mended_in_the_history(name: str) -> None:
    message = AssistantMessage((ToolCall("a", name, "{}"),))
    sent = json.loads(encode(ModelRequest(messages=(message, ToolMessage("a", name, "no such tool", is_error=True)))))
    written = sent["messages"][0]["tool_calls"][0]["function"]["name"]
    assert 1 <= len(written) <= 64 and written.replace("_", "a").isalnum() and written.isascii()


def test_parts_of_other_formats_are_left_out() -> None:
    parts = (Thinking("hm", "block", signature="s"), Opaque("anthropic", "{}"), Text("Hi"))
    (sent,) = json.loads(encode(ModelRequest(messages=(AssistantMessage(parts),))))["messages"]
    assert sent == {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize("field", ["messages", "stream", "model", "tools", "n"])
def test_extra_body_cannot_take_over_the_request(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        encode(ModelRequest(messages=(), options=Options(extra_body={field: 1})))


@given(st.integers(0, len(CONVERSATION)), st.integers(0, len(CONVERSATION)), st.booleans())
def test_an_encoder_with_a_past_writes_what_a_new_one_writes(first: int, second: int, instructed: bool) -> None:
    encoder = ChatCodec().encoder("m")
    encoder.encode(ModelRequest(messages=CONVERSATION[:first], instructions="Be brief."))
    request = ModelRequest(messages=CONVERSATION[:second], instructions="Be brief." if instructed else None)
    assert encoder.encode(request) == encode(request)


@given(st.integers(0, len(CONVERSATION) - 1))
def test_a_longer_conversation_extends_the_bytes_of_a_shorter_one(length: int) -> None:
    encoder = ChatCodec().encoder("m")
    shorter = encoder.encode(ModelRequest(messages=CONVERSATION[:length], tools=(TOOL,)))
    longer = encoder.encode(ModelRequest(messages=CONVERSATION, tools=(TOOL,)))
    assert longer.startswith(shorter.removesuffix(b"]}"))


@pytest.mark.parametrize(
    ("level", "dialect", "added"),
    [
        (None, Dialect(), {}),
        ("off", Dialect(), {"reasoning_effort": "none"}),
        ("high", Dialect(), {"reasoning_effort": "high"}),
        ("off", LLAMACPP, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("low", VLLM, {"chat_template_kwargs": {"enable_thinking": True}}),
    ],
)
def test_how_hard_to_think(level: Any, dialect: Dialect, added: dict[str, Any]) -> None:
    sent = json.loads(encode(ModelRequest(messages=(UserMessage("Hi"),), options=Options(reasoning=level)), dialect))
    assert {key: sent[key] for key in sent if "reasoning" in key or "template" in key} == added


class TestImages:
    """A result's images follow the turn's results, as the user's: the format has no other place for them."""

    SHOWN: tuple[Message, ...] = (
        UserMessage("Look"),
        AssistantMessage((ToolCall("a", "photo", "{}"), ToolCall("b", "photo", "{}"))),
        ToolMessage("a", "photo", "a cat", images=(Image(b"\x89PNG", "image/png"), Image(b"GIF8", "image/gif"))),
        ToolMessage("b", "photo", "a dog"),
        AssistantMessage((Text("Nice."),)),
        UserMessage("Thanks"),
    )

    def test_bytes(self) -> None:
        messages = json.loads(encode(ModelRequest(messages=self.SHOWN)))["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "user", "assistant", "user"]
        assert messages[4]["content"] == [
            {"type": "text", "text": "[Images of the result of photo, a]"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
            {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGOA=="}},
        ]

    def test_what_a_user_attaches_goes_before_the_text(self) -> None:
        message = UserMessage("What is this?", (Image(b"GIF8", "image/gif"), Document(b"%PDF", "application/pdf", "a.pdf")))
        (sent,) = json.loads(encode(ModelRequest(messages=(message,))))["messages"]
        assert sent["content"] == [
            {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGOA=="}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
            {"type": "text", "text": "What is this?"},
        ]

    def test_they_do_not_move_when_the_conversation_grows(self) -> None:
        encoder = ChatCodec(None).encoder("m")
        for length in (1, 4, 6):
            request = ModelRequest(messages=self.SHOWN[:length])
            written = encoder.encode(request)
            assert written == encode(request)
            assert encode(ModelRequest(messages=self.SHOWN)).startswith(written[:-2])


class TestSchemas:
    STRICT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}  # noqa: RUF012

    def test_golden_bytes(self) -> None:
        output = OutputSchema(name="weather", schema=self.STRICT)
        assert encode(ModelRequest(messages=(UserMessage("x"),), output=output)).decode() == (
            '{"model":"m","stream":true,"stream_options":{"include_usage":true},'
            '"response_format":{"type":"json_schema","json_schema":{"name":"weather","schema":{"type":"object","properties":'
            '{"a":{"type":"string"}},"required":["a"],"additionalProperties":false},"strict":true}},'
            '"messages":[{"role":"user","content":"x"}]}'
        )

    def test_strict_only_where_the_schema_allows_it(self) -> None:
        output = OutputSchema(name="weather", schema={**self.STRICT, "required": []})
        sent = json.loads(encode(ModelRequest(messages=(), output=output)))
        assert sent["response_format"]["json_schema"]["strict"] is False

    def test_not_to_a_server_that_knows_none(self) -> None:
        output = OutputSchema(name="weather", schema=self.STRICT)
        assert "response_format" not in json.loads(encode(ModelRequest(messages=(), output=output), DEEPSEEK))

    def test_extra_body_has_the_last_word(self) -> None:
        options = Options(extra_body={"response_format": {"type": "json_object"}})
        output = OutputSchema(name="weather", schema=self.STRICT)
        sent = json.loads(encode(ModelRequest(messages=(), output=output, options=options)))
        assert sent["response_format"] == {"type": "json_object"}

    def test_tools_are_strict_at_openai_only(self) -> None:
        tools = (TOOL, ToolSpec(name="f", description="", parameters=self.STRICT))
        request = ModelRequest(messages=(), tools=tools, options=Options(max_tokens=9))
        sent = json.loads(encode(request, OPENAI))
        assert [tool["function"]["strict"] for tool in sent["tools"]] == [False, True]
        assert sent["max_completion_tokens"] == 9 and "max_tokens" not in sent
        assert all("strict" not in tool["function"] for tool in json.loads(encode(request))["tools"])


class TestSummaries:
    """Templates such as Gemma's and Mistral's refuse two messages of the user in a row (llama.cpp and vLLM then answer 400 or 500)."""

    SUMMARY = UserMessage("[left out]", origin="summary")
    TURN: tuple[Message, ...] = (AssistantMessage((Text("I look."), ToolCall("a", "f", "{}"))), ToolMessage("a", "f", "r"))

    def roles(self, *messages: Message) -> list[str]:
        return [item["role"] for item in json.loads(encode(ModelRequest(messages=messages)))["messages"]]

    def test_they_join_the_users_messages_next_to_them(self) -> None:
        first, last = UserMessage("Do it.", (Image(b"x", "image/png"),)), UserMessage("And then?")
        assert self.roles(first, self.SUMMARY, *self.TURN) == ["user", "assistant", "tool"]
        assert self.roles(first, self.SUMMARY, last, *self.TURN) == ["user", "assistant", "tool"]
        [item, *_] = json.loads(encode(ModelRequest(messages=(first, self.SUMMARY, last))))["messages"]
        assert [part["type"] for part in item["content"]] == ["image_url", "text"]
        assert item["content"][1]["text"] == "Do it.\n\n[left out]\n\nAnd then?"

    def test_what_a_person_said_in_two_messages_stays_two(self) -> None:
        assert self.roles(UserMessage("a"), UserMessage("b"), *self.TURN, UserMessage("c")) == [
            "user",
            "user",
            "assistant",
            "tool",
            "user",
        ]

    def test_a_conversation_that_goes_on_extends_it(self) -> None:
        messages: tuple[Message, ...] = (UserMessage("Do it."), self.SUMMARY, *self.TURN)
        encoder = ChatCodec().encoder("m")
        first = encoder.encode(ModelRequest(messages=messages))
        longer = ModelRequest(messages=(*messages, UserMessage("And?"), *self.TURN))
        assert encoder.encode(longer).startswith(first[:-2])
        assert encoder.encode(longer) == encode(longer)
