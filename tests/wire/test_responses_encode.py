"""Responses requests: frozen bytes (written from documentation, accepted by the real llama.cpp), and laws 5 and 9."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_responses_decode import COMPLETED, MESSAGE, OPENAI, REASONING, added, arguments, decode, done, text
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
from treadle.wire.responses import LLAMACPP_RESPONSES, ResponsesCodec, ResponsesDialect
from treadle.wire.schemas import is_strict

CAT = Image(b"\x89PNG", "image/png")
CONVERSATION: tuple[Message, ...] = (
    UserMessage("Weather in Oslo? 日本"),
    AssistantMessage(
        (
            Thinking("look it up", "block"),
            Opaque("responses", json.dumps(REASONING)),
            Opaque("responses", '{"id":"msg_1","type":"message","status":"completed","phase":"commentary"}'),
            Text("I look."),
            Opaque("responses", '{"id":"fc_1","type":"function_call","status":"completed"}'),
            ToolCall("a", "get_weather", '{"city" :"Oslo"}'),
            ToolCall("b", "f", "{broken"),
        )
    ),
    ToolMessage("a", "get_weather", "4 C", note="twice now"),
    ToolMessage("b", "f", "invalid arguments", is_error=True),
    AssistantMessage((Thinking("t", "content", "<think>t</think>"), Opaque("anthropic", '{"type":"x"}'), Text("Cold."))),
    SystemMessage("Be kind."),
    UserMessage("Thanks"),
)
TOOL = ToolSpec(name="get_weather", description="Weather.", parameters={"type": "object", "properties": {}})


def encode(request: ModelRequest, dialect: ResponsesDialect | None = None) -> bytes:
    return ResponsesCodec(dialect).encoder("m").encode(request)


def items(*messages: Message) -> list[Any]:
    return json.loads(encode(ModelRequest(messages=messages)))["input"]


def test_golden_bytes() -> None:
    request = ModelRequest(
        messages=CONVERSATION, instructions="Be brief.", tools=(TOOL,), options=Options(temperature=0.0, top_p=0.5, max_tokens=99, stop=("\n",), seed=1, tool_choice="get_weather", reasoning="low", extra_body={"service_tier": "flex"})
    )  # fmt: skip
    assert encode(request).decode() == (
        '{"model":"m","stream":true,"store":false,"include":["reasoning.encrypted_content"],"max_output_tokens":99,"temperature":0.0,'
        '"top_p":0.5,"reasoning":{"effort":"low"},"tool_choice":{"type":"function","name":"get_weather"},"service_tier":"flex",'
        '"instructions":"Be brief.",'
        '"tools":[{"type":"function","name":"get_weather","description":"Weather.","parameters":{"type":"object","properties":{}},"strict":false}],'
        '"input":[{"role":"user","content":"Weather in Oslo? 日本"},'
        f"{json.dumps(REASONING)},"
        '{"type":"message","id":"msg_1","status":"completed","phase":"commentary","role":"assistant",'
        '"content":[{"type":"output_text","text":"I look.","annotations":[]}]},'
        '{"id":"fc_1","type":"function_call","status":"completed","call_id":"a","name":"get_weather","arguments":"{\\"city\\" :\\"Oslo\\"}"},'
        '{"type":"function_call","call_id":"b","name":"f","arguments":"{}"},'
        '{"type":"function_call_output","call_id":"a","output":"4 C\\n[twice now]"},'
        '{"type":"function_call_output","call_id":"b","output":"Error: invalid arguments"},'
        '{"type":"message","id":"msg_4_0","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Cold.","annotations":[]}]},'
        '{"role":"system","content":"Be kind."},'
        '{"role":"user","content":"Thanks"}]}'
    )


def test_what_is_not_set_is_not_sent() -> None:
    assert encode(ModelRequest(messages=(UserMessage("x"),)), LLAMACPP_RESPONSES) == (
        b'{"model":"m","stream":true,"store":false,"input":[{"role":"user","content":"x"}]}'
    )


def test_stop_and_seed_go_only_where_they_are_known() -> None:
    request = ModelRequest(messages=(), options=Options(stop=("\n",), seed=1, reasoning="off"))
    assert json.loads(encode(request)).keys() == {"model", "stream", "store", "include", "reasoning", "input"}
    sent = json.loads(encode(request, LLAMACPP_RESPONSES))
    assert (sent["stop"], sent["seed"], sent["reasoning"]) == (["\n"], 1, {"effort": "none"})


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_tool_choice(choice: str) -> None:
    request = ModelRequest(messages=(), tools=(TOOL,), options=Options(tool_choice=choice))
    assert json.loads(encode(request))["tool_choice"] == choice


@pytest.mark.parametrize(
    "field", ["input", "messages", "stream", "model", "tools", "instructions", "store", "previous_response_id"]
)
def test_extra_body_cannot_take_over_the_request(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        encode(ModelRequest(messages=(), options=Options(extra_body={field: 1})))


def test_extra_body_can_ask_for_summaries_and_leave_out_the_encrypted_reasoning() -> None:
    extra: dict[str, Any] = {"reasoning": {"effort": "high", "summary": "auto"}, "include": []}
    sent = json.loads(encode(ModelRequest(messages=(), options=Options(reasoning="low", extra_body=extra))))
    assert {"reasoning": sent["reasoning"], "include": sent["include"]} == extra


def test_a_system_message_at_the_start_joins_the_instructions() -> None:
    request = ModelRequest(messages=(SystemMessage("B"), UserMessage("x")), instructions="A")
    sent = json.loads(encode(request))
    assert (sent["instructions"], sent["input"]) == ("A\n\nB", [{"role": "user", "content": "x"}])
    assert items(SystemMessage("B"))[0] == {"role": "system", "content": "B"}


class TestPrefix:
    @given(st.integers(0, len(CONVERSATION)), st.integers(0, len(CONVERSATION)), st.booleans())
    def test_an_encoder_with_a_past_writes_what_a_new_one_writes(self, first: int, second: int, instructed: bool) -> None:
        encoder = ResponsesCodec().encoder("m")
        encoder.encode(ModelRequest(messages=CONVERSATION[:first], instructions="Be brief."))
        request = ModelRequest(messages=CONVERSATION[:second], instructions="Be brief." if instructed else None)
        assert encoder.encode(request) == encode(request)

    @given(st.integers(0, 2), st.integers(0, 2), st.booleans(), st.booleans())
    def test_also_where_a_system_message_came_first(self, first: int, second: int, then: bool, now: bool) -> None:
        messages = (SystemMessage("B"), UserMessage("x"))
        encoder = ResponsesCodec().encoder("m")
        encoder.encode(ModelRequest(messages=messages[:first], instructions="A" if then else None))
        request = ModelRequest(messages=messages[:second], instructions="A" if now else None)
        assert encoder.encode(request) == encode(request)

    @given(st.integers(0, len(CONVERSATION) - 1))
    def test_a_longer_conversation_extends_the_bytes_of_a_shorter_one(self, length: int) -> None:
        encoder = ResponsesCodec().encoder("m")
        shorter = encoder.encode(ModelRequest(messages=CONVERSATION[:length], tools=(TOOL,)))
        longer = encoder.encode(ModelRequest(messages=CONVERSATION, tools=(TOOL,)))
        assert longer.startswith(shorter.removesuffix(b"]}"))


class TestBackAsItCame:
    def test_a_turn_with_encrypted_reasoning(self) -> None:
        """Item by item what the server sent; its `annotations` are empty there."""
        sent = [
            json.loads(line[6:])["item"]
            for line in OPENAI.splitlines()
            if line.startswith(b'data: {"type": "response.output_item.done"')
        ]
        assert items(decode(OPENAI)[1].message) == sent
        assert json.dumps(REASONING).encode() in encode(ModelRequest(messages=(decode(OPENAI)[1].message,)))  # byte for byte

    def test_a_refusal_and_an_item_of_an_unknown_type(self) -> None:
        refusal = {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "refusal", "refusal": "No."}],
        }
        search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
        body = done(0, **search) + done(1, **refusal) + COMPLETED
        assert items(decode(body)[1].message) == [search, refusal]

    def test_plain_reasoning_of_local_servers(self) -> None:
        item = {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "encrypted_content": "",
        }
        body = done(0, **item) + MESSAGE + text("Hi") + COMPLETED
        assert items(decode(body)[1].message)[0] == item

    def test_reasoning_that_led_to_nothing_or_that_nobody_can_read_stays_out(self) -> None:
        kept = Opaque("responses", json.dumps(REASONING))
        empty = Opaque("responses", '{"type":"reasoning","id":"rs_2","summary":[]}')
        assert items(AssistantMessage((kept,))) == items(AssistantMessage((Text(""), kept))) == []
        assert [item["type"] for item in items(AssistantMessage((empty, kept, Text("a"), kept)))] == ["reasoning", "message"]

    @pytest.mark.parametrize("data", ["", "nonsense", "[]", "{}", '{"type":7}', '{"type":"message"}', "\ud800"])
    def test_what_is_no_item_stays_out(self, data: str) -> None:
        (item,) = items(AssistantMessage((Opaque("responses", data), Text("a"))))
        assert item["content"] == [{"type": "output_text", "text": "a", "annotations": []}]

    def test_calls_of_a_cut_turn_keep_their_arguments_as_far_as_they_are_json(self) -> None:
        body = added(0, type="function_call", id="fc_1", call_id="c", name="f") + arguments('{"a"') + COMPLETED
        assert items(decode(body)[1].message) == [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]


class TestFromElsewhere:
    @pytest.mark.parametrize("name", ["", "a b", "functions.get", "é", "x" * 100])
    def test_a_name_that_strict_servers_refuse_is_mended_in_the_history(self, name: str) -> None:
        (item,) = items(AssistantMessage((ToolCall("a", name, "{}"),)))
        assert 1 <= len(item["name"]) <= 64 and item["name"].replace("_", "a").isalnum() and item["name"].isascii()

    def test_a_long_id_is_shortened_alike_in_call_and_result(self) -> None:
        long = "toolu_" + "x" * 100
        call, result, other = items(
            AssistantMessage((ToolCall(long, "f", "{}"),)), ToolMessage(long, "f", "1"), ToolMessage(long + "y", "f", "1")
        )
        assert call["call_id"] == result["call_id"] != other["call_id"]
        assert len(call["call_id"]) <= 64

    def test_half_a_surrogate_pair_is_the_callers_error(self) -> None:
        with pytest.raises(UsageError):
            items(UserMessage("\ud800"))


class TestImages:
    def test_a_result_carries_its_own(self) -> None:
        (item,) = items(ToolMessage("a", "photo", "a cat", images=(CAT,)))
        assert item["output"] == [
            {"type": "input_text", "text": "a cat"},
            {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,iVBORw=="},
        ]

    def test_what_a_user_attaches_goes_before_the_text(self) -> None:
        (item,) = items(UserMessage("What is this?", (CAT, Document(b"%PDF", "application/pdf", "a.pdf"))))
        assert item["content"] == [
            {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,iVBORw=="},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
            {"type": "input_text", "text": "What is this?"},
        ]


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (closed(), True),
        (closed(city={"type": "string", "description": "A city."}), True),
        (closed(n={"type": ["integer", "null"], "minimum": 1}, kind={"enum": ["a", "b"]}), True),
        (
            closed(inner=closed(x={"type": "array", "items": {"$ref": "#/$defs/P"}}))
            | {"$defs": {"P": closed(a={"type": "number"})}},
            True,
        ),
        (closed(a={"anyOf": [{"type": "string"}, {"type": "null"}]}), True),
        ({"type": "object", "properties": {}}, False),  # open
        (closed(a={"type": "string"}) | {"required": []}, False),  # optional
        (closed(a={"type": "string", "default": "x"}), False),
        (closed(a={"type": "string", "minLength": 1}), False),
        (closed(a={"$ref": "#/$defs/P", "description": "x"}) | {"$defs": {"P": closed()}}, False),  # $ref stands alone
        (closed(a={"type": "string", "format": "path"}), False),
        (closed(a={"type": "object", "additionalProperties": {"type": "string"}}), False),
        (closed(a={}), False),
        (closed(a={"type": "array"}), False),
        (closed(a={"oneOf": [{"type": "string"}]}), False),
        ({**closed(), "anyOf": []}, False),
        ({}, False),
    ],
)
def test_strict_only_where_the_schema_surely_allows_it(schema: dict[str, Any], strict: bool) -> None:
    assert is_strict(schema) is strict
    tool = ToolSpec(name="f", description="", parameters=schema)
    assert json.loads(encode(ModelRequest(messages=(), tools=(tool,))))["tools"][0]["strict"] is strict


class TestSchemas:
    def test_golden_bytes(self) -> None:
        output = OutputSchema(name="weather", schema=closed(a={"type": "string"}))
        request = ModelRequest(messages=(), output=output, options=Options(extra_body={"text": {"verbosity": "low"}}))
        assert encode(request).decode() == (
            '{"model":"m","stream":true,"store":false,"include":["reasoning.encrypted_content"],'
            '"text":{"format":{"type":"json_schema","name":"weather","schema":{"type":"object","properties":{"a":{"type":"string"}},'
            '"required":["a"],"additionalProperties":false},"strict":true},"verbosity":"low"},"input":[]}'
        )

    def test_not_to_llamacpp_which_ignores_it(self) -> None:
        output = OutputSchema(name="weather", schema=closed())
        assert "text" not in json.loads(encode(ModelRequest(messages=(), output=output), LLAMACPP_RESPONSES))


class TestOfficialSdk:
    """The official SDK as a second opinion; skipped where it is not installed."""

    def test_its_types_accept_our_request(self) -> None:
        types = pytest.importorskip("openai.types.responses.response_create_params")
        pydantic = pytest.importorskip("pydantic")
        shown = (UserMessage("Look", (CAT, Document(b"%PDF", "application/pdf"))), AssistantMessage((ToolCall("c", "f", "{}"),)),
                 ToolMessage("c", "f", "a cat", images=(CAT,)))  # fmt: skip
        options = Options(temperature=0.0, max_tokens=99, tool_choice="get_weather", reasoning="off")
        output = OutputSchema(name="weather", schema=closed(a={"type": "string"}))
        request = ModelRequest(
            messages=(*CONVERSATION, *shown), instructions="Be brief.", tools=(TOOL,), options=options, output=output
        )
        sent = json.loads(encode(request))
        assert sent.keys() <= {"stream", *types.ResponseCreateParamsBase.__annotations__}
        pydantic.TypeAdapter(types.ResponseCreateParamsStreaming).validate_python(sent)
        for item in sent["input"]:
            pydantic.TypeAdapter(types.ResponseInputParam).validate_python([item])

    def test_its_request_for_the_same_conversation_is_ours(self) -> None:
        openai = pytest.importorskip("openai")
        httpx = pytest.importorskip("httpx2")  # its client
        bodies: list[Any] = []

        def answer(request: Any) -> Any:
            bodies.append(json.loads(request.content))
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=WITH_OUTPUT)

        client = openai.OpenAI(
            api_key="k", base_url="http://h/v1", http_client=httpx.Client(transport=httpx.MockTransport(answer))
        )
        common: dict[str, Any] = {"model": "m", "store": False, "include": ["reasoning.encrypted_content"], "instructions": "Be brief.",
                  "tools": [{"type": "function", "name": "f", "description": "F.", "parameters": closed(), "strict": True}],
                  "text": {"format": {"type": "json_schema", "name": "weather", "schema": closed(), "strict": True}}}  # fmt: skip
        asked: list[Any] = [{"role": "user", "content": "Hi"}]
        *_, last = client.responses.create(input=asked, stream=True, **common)
        results = [{"type": "function_call_output", "call_id": f"call_{n}", "output": "1"} for n in (1, 2)]
        list(client.responses.create(input=[*asked, *last.response.output, *results], stream=True, **common))

        tool = ToolSpec(name="f", description="F.", parameters=closed())
        output = OutputSchema(name="weather", schema=closed())
        encoder = ResponsesCodec().encoder("m")
        messages: tuple[Message, ...] = (UserMessage("Hi"),)
        turns = [messages, (*messages, decode(WITH_OUTPUT)[1].message, *(ToolMessage(f"call_{n}", "f", "1") for n in (1, 2)))]
        ours = [
            json.loads(encoder.encode(ModelRequest(messages=turn, instructions="Be brief.", tools=(tool,), output=output)))
            for turn in turns
        ]
        assert bodies == ours


_DONE = [
    json.loads(line[6:])["item"] for line in OPENAI.splitlines() if line.startswith(b'data: {"type": "response.output_item.done"')
]
WITH_OUTPUT = OPENAI[: OPENAI.index(b"event: response.completed")] + b"event: response.completed\ndata: %s\n\n" % json.dumps(
    {"type": "response.completed", "sequence_number": 99, "response": {
        "id": "resp_1", "object": "response", "created_at": 0, "status": "completed", "model": "gpt-x", "output": _DONE,
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}}
).encode()  # fmt: skip
