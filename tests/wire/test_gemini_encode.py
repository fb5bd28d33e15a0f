"""Gemini requests: frozen bytes, and laws 5 and 9. Goldens are from documentation (docs/protocols/gemini.md), not from a server.

Where the package `google-genai` is installed, its requests for the same conversation must be JSON-equal to ours.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from tests.wire.test_gemini_decode import WHOLE, decode
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
from treadle.wire.gemini import GeminiCodec

PNG = Image(b"\x89PNG", "image/png")
CONVERSATION: tuple[Message, ...] = (
    UserMessage("Weather in Oslo? 日本", (PNG, Document(b"%PDF", "application/pdf", "a.pdf"))),
    AssistantMessage(
        (
            Thinking("look it up", "block", None, "gemini:"),
            Text("I look."),
            ToolCall("fc1", "get_weather", '{"city" :"Oslo"}', "gemini:c2ln"),
            ToolCall("call_01234567_1_1", "f", "{broken"),
        )
    ),
    ToolMessage("fc1", "get_weather", "4 C", note="this is slow"),
    ToolMessage("call_01234567_1_1", "f", "invalid arguments", is_error=True),
    AssistantMessage((Text("Cold."), Text(" Bye."), Opaque("gemini", '{"text":" Bye.", "thoughtSignature":"Uw=="}'))),
    SystemMessage("Be kind."),
    UserMessage("Thanks"),
)
TURNS = [0, 1, 2, 4, 5, 6, 7]  # results of a turn come all at once
TOOL = ToolSpec(name="get_weather", description="Weather.", parameters={"type": "object", "properties": {}})


def encode(request: ModelRequest, model: str = "gemini-2.5-flash") -> bytes:
    return GeminiCodec(model).encoder(model).encode(request)


def contents(*messages: Message, model: str = "gemini-2.5-flash") -> Any:
    return json.loads(encode(ModelRequest(messages=messages), model))["contents"]


def test_golden_bytes() -> None:
    request = ModelRequest(
        messages=CONVERSATION, instructions="Be brief.", tools=(TOOL,), options=Options(temperature=0.0, top_p=0.5, max_tokens=9, stop=("\n",), tool_choice="get_weather", seed=1, reasoning="low", extra_body={"generationConfig": {"topK": 5}, "cachedContent": "c"})
    )  # fmt: skip
    assert encode(request).decode() == (
        '{"generationConfig":{"maxOutputTokens":9,"temperature":0.0,"topP":0.5,"seed":1,"stopSequences":["\\n"],'
        '"thinkingConfig":{"thinkingBudget":1024,"includeThoughts":true},"topK":5},'
        '"toolConfig":{"functionCallingConfig":{"mode":"ANY","allowedFunctionNames":["get_weather"]}},"cachedContent":"c",'
        '"tools":[{"functionDeclarations":[{"name":"get_weather","description":"Weather.",'
        '"parametersJsonSchema":{"type":"object","properties":{}}}]}],'
        '"systemInstruction":{"parts":[{"text":"Be brief."}]},'
        '"contents":[{"role":"user","parts":[{"inlineData":{"mimeType":"image/png","data":"iVBORw=="}},'
        '{"inlineData":{"mimeType":"application/pdf","data":"JVBERg=="}},{"text":"Weather in Oslo? 日本"}]},'
        '{"role":"model","parts":[{"text":"look it up","thought":true},{"text":"I look."},'
        '{"functionCall":{"id":"fc1","name":"get_weather","args":{"city" :"Oslo"}},"thoughtSignature":"c2ln"},'
        '{"functionCall":{"name":"f","args":{}}}]},'
        '{"role":"user","parts":['
        '{"functionResponse":{"id":"fc1","name":"get_weather","response":{"output":"4 C\\n[this is slow]"}}},'
        '{"functionResponse":{"name":"f","response":{"error":"invalid arguments"}}}]},'
        '{"role":"model","parts":[{"text":"Cold."},{"text":" Bye.", "thoughtSignature":"Uw=="}]},'
        '{"role":"user","parts":[{"text":"Be kind."}]},'
        '{"role":"user","parts":[{"text":"Thanks"}]}]}'
    )


def test_a_schema_for_the_answer() -> None:
    output = OutputSchema(name="weather", schema=TOOL.parameters)
    request = ModelRequest(messages=(UserMessage("x"),), output=output, options=Options(temperature=0.0))
    assert encode(request) == (
        b'{"generationConfig":{"temperature":0.0,"responseMimeType":"application/json",'
        b'"responseJsonSchema":{"type":"object","properties":{}}},"contents":[{"role":"user","parts":[{"text":"x"}]}]}'
    )


def test_what_is_not_set_is_not_sent() -> None:
    assert encode(ModelRequest(messages=(UserMessage("x"),), options=Options(tool_choice="none"))) == (
        b'{"contents":[{"role":"user","parts":[{"text":"x"}]}]}'
    )


def test_the_path_names_the_model() -> None:
    codec: Codec = GeminiCodec("gemini-2.5-flash")
    assert codec.path == "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert GeminiCodec("tunedModels/a b?c").path == "/tunedModels/a%20b%3Fc:streamGenerateContent?alt=sse"
    assert not codec.continuable
    with pytest.raises(UsageError, match="another"):
        codec.encoder("another")


def test_a_decoded_reply_goes_back_as_it_came() -> None:
    """Parts, their order, signatures, ids and arguments; unsigned pieces of text may come together."""
    (sent,) = contents(decode(WHOLE)[1].message)
    assert sent["parts"] == [
        {"text": "Hm.", "thought": True},
        {"text": "I look."},
        {"functionCall": {"name": "get_weather", "args": {"city": "Oslo"}, "id": "fc1"}, "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "get_weather", "args": {"city": "Lima"}}},
        {"text": "", "thoughtSignature": "ZW5k"},
    ]


_PARTS = st.lists(
    st.one_of(
        st.builds(lambda t, s: {"text": t, "thoughtSignature": s}, st.text(max_size=5), st.sampled_from(["QQ==", "Qg=="])),
        st.builds(
            lambda t, s: {"text": t, "thought": True, "thoughtSignature": s}, st.text(max_size=5), st.sampled_from(["QQ=="])
        ),
        st.builds(
            lambda n, a, s: {"functionCall": {"id": n, "name": "f", "args": a}, "thoughtSignature": s},
            st.uuids().map(str),
            st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3),
            st.sampled_from(["QQ==", "Qg=="]),
        ),
        st.just({"executableCode": {"language": "PYTHON", "code": "1"}}),
    ),
    min_size=1,
    max_size=6,
)


@given(_PARTS, cut_points, st.sampled_from(["gemini-2.5-pro", "gemini-3-flash"]))
def test_signed_parts_go_back_one_by_one(parts: list[Any], points: list[int], model: str) -> None:
    chunks = [{"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]} for part in parts]
    body = b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in chunks)
    assert contents(decode(*cut(body, points))[1].message, model=model)[0]["parts"] == parts


class TestWhatDoesNotTravel:
    def test_other_providers_parts_are_left_out(self) -> None:
        message = AssistantMessage(
            (
                Thinking("a", "block", None, "c2lnbmVkIGVsc2V3aGVyZQ=="),
                Thinking("b", "reasoning_content"),
                Thinking("c", "content", "<think>c</think>"),
                Opaque("anthropic", '{"type":"redacted_thinking","data":"x"}'),
                Text("Hi."),
                ToolCall("toolu_1", "f", "{}", "elsewhere"),
            )
        )
        assert contents(message)[0]["parts"] == [{"text": "Hi."}, {"functionCall": {"id": "toolu_1", "name": "f", "args": {}}}]

    def test_to_gemini_3_the_first_unsigned_call_of_a_step_carries_the_documented_stand_in(self) -> None:
        message = AssistantMessage((ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}")))
        first, second = contents(message, model="gemini-3.1-pro-preview")[0]["parts"]
        assert first["thoughtSignature"] == "skip_thought_signature_validator"
        assert "thoughtSignature" not in second

    @pytest.mark.parametrize("data", ["", "[]", "{", '{"text":"other","thoughtSignature":"Uw=="}'])
    def test_a_kept_part_that_fits_no_longer_is_left_out(self, data: str) -> None:
        assert contents(AssistantMessage((Text("a"), Opaque("gemini", data))))[0]["parts"] == [{"text": "a"}]

    def test_a_message_with_nothing_left_is_left_out(self) -> None:
        assert contents(UserMessage("x"), AssistantMessage((Thinking("a"),))) == [{"role": "user", "parts": [{"text": "x"}]}]


class TestImagesOfResults:
    TURN: tuple[Message, ...] = (
        UserMessage("Look"),
        AssistantMessage((ToolCall("a", "photo", "{}"), ToolCall("b", "photo", "{}"))),
        ToolMessage("a", "photo", "a cat", images=(PNG,)),
        ToolMessage("b", "photo", "a dog"),
    )
    INLINE = {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}}  # noqa: RUF012

    def test_to_gemini_3_they_are_parts_of_the_result(self) -> None:
        sent = contents(*self.TURN, model="gemini-3-flash-preview")
        assert len(sent) == 3
        assert sent[2]["parts"][0]["functionResponse"]["parts"] == [self.INLINE]

    def test_to_older_models_they_follow_as_the_users(self) -> None:
        sent = contents(*self.TURN)
        assert [list(part) for part in sent[2]["parts"]] == [["functionResponse"]] * 2
        assert sent[3] == {"role": "user", "parts": [{"text": "[Images of the result of photo, a]"}, self.INLINE]}


class TestReasoning:
    @pytest.mark.parametrize(
        ("model", "effort", "config"),
        [
            ("gemini-2.5-flash", None, None),
            ("gemini-2.5-flash", "off", {"thinkingBudget": 0}),
            ("gemini-2.5-pro", "off", {"thinkingBudget": 128}),
            ("gemini-2.5-pro", "medium", {"thinkingBudget": 8192, "includeThoughts": True}),
            ("gemini-2.5-flash", "high", {"thinkingBudget": 24576, "includeThoughts": True}),
            ("gemini-3-flash-preview", "off", {"thinkingLevel": "minimal"}),
            ("gemini-3.1-pro-preview", "off", {"thinkingLevel": "low"}),
            ("models/gemini-3.1-pro-preview", "medium", {"thinkingLevel": "medium", "includeThoughts": True}),
            ("gemini-3-pro-preview", "medium", {"thinkingLevel": "high", "includeThoughts": True}),
            ("gemini-flash-latest", "low", {"thinkingLevel": "low", "includeThoughts": True}),
        ],
    )
    def test_levels(self, model: str, effort: Any, config: Any) -> None:
        sent = json.loads(encode(ModelRequest(messages=(), options=Options(reasoning=effort)), model))
        assert sent.get("generationConfig", {}).get("thinkingConfig") == config


@pytest.mark.parametrize(
    ("choice", "config"),
    [("auto", {"mode": "AUTO"}), ("none", {"mode": "NONE"}), ("required", {"mode": "ANY"}), ("f", {"mode": "ANY", "allowedFunctionNames": ["f"]})],
)  # fmt: skip
def test_tool_choice(choice: str, config: Any) -> None:
    sent = json.loads(encode(ModelRequest(messages=(), tools=(TOOL,), options=Options(tool_choice=choice))))
    assert sent["toolConfig"] == {"functionCallingConfig": config}


@pytest.mark.parametrize("field", ["contents", "model", "tools", "systemInstruction", "stream"])
def test_extra_body_cannot_take_over_the_request(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        encode(ModelRequest(messages=(), options=Options(extra_body={field: 1})))


def test_half_a_surrogate_pair_is_a_typed_error() -> None:
    for request in (ModelRequest(messages=(UserMessage("\ud83d"),)), ModelRequest(messages=(), instructions="\ud83d")):
        with pytest.raises(UsageError, match="surrogate"):
            encode(request)


@pytest.mark.parametrize("name", ["", "a b", "é", "9x", "x" * 100])
def test_a_name_that_the_server_refuses_is_mended_in_the_history(name: str) -> None:
    call, result = contents(AssistantMessage((ToolCall("a", name, "{}"),)), ToolMessage("a", name, "no such tool", is_error=True))
    written = call["parts"][0]["functionCall"]["name"]
    assert 1 <= len(written) <= 64 and written.isascii() and not written[0].isdigit()
    assert result["parts"][0]["functionResponse"]["name"] == written


def test_a_leading_system_message_joins_the_instructions() -> None:
    request = ModelRequest(messages=(SystemMessage("Be kind."), UserMessage("x")), instructions="Be brief.")
    sent = json.loads(encode(request))
    assert sent["systemInstruction"]["parts"] == [{"text": "Be brief.\n\nBe kind."}]
    assert len(sent["contents"]) == 1


@given(st.integers(0, len(CONVERSATION)), st.integers(0, len(CONVERSATION)), st.booleans())
def test_an_encoder_with_a_past_writes_what_a_new_one_writes(first: int, second: int, instructed: bool) -> None:
    encoder = GeminiCodec("gemini-2.5-flash").encoder("gemini-2.5-flash")
    encoder.encode(ModelRequest(messages=CONVERSATION[:first], instructions="Be brief."))
    request = ModelRequest(messages=CONVERSATION[:second], instructions="Be brief." if instructed else None)
    assert encoder.encode(request) == encode(request)


@pytest.mark.parametrize(
    "messages", [CONVERSATION, (*TestImagesOfResults.TURN, AssistantMessage((Text("."),)), UserMessage("x"))]
)
@given(st.sampled_from(TURNS[:-1]))
def test_a_longer_conversation_extends_the_bytes_of_a_shorter_one(messages: tuple[Message, ...], length: int) -> None:
    encoder = GeminiCodec("m").encoder("m")
    shorter = encoder.encode(ModelRequest(messages=messages[:length], tools=(TOOL,)))
    longer = encoder.encode(ModelRequest(messages=messages, tools=(TOOL,)))
    assert longer.startswith(shorter.removesuffix(b"]}"))


def _camel(value: Any) -> Any:
    """The SDK writes some names with underscores, which protobuf's JSON takes for the same."""
    if isinstance(value, list):
        return [_camel(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {re.sub(r"_([a-z])", lambda m: m[1].upper(), key): _camel(each) for key, each in value.items()}


class TestOfficialSdk:
    """A second opinion, offline: the SDK's client on a transport that keeps the request and answers with our golden stream."""

    def ask(self, model: str, messages: Any, config: Any) -> tuple[Any, str, list[Any]]:
        genai = pytest.importorskip("google.genai")
        httpx = pytest.importorskip("httpx")
        seen: list[Any] = []

        def answer(request: Any) -> Any:
            seen.append(request)
            return httpx.Response(200, content=WHOLE, headers={"Content-Type": "text/event-stream"})

        client = genai.Client(
            api_key="none",
            vertexai=False,
            http_options=genai.types.HttpOptions(httpx_client=httpx.Client(transport=httpx.MockTransport(answer))),
        )
        chunks = list(client.models.generate_content_stream(model=model, contents=messages, config=config))
        return json.loads(seen[0].content), str(seen[0].url), chunks

    def test_the_same_request(self) -> None:
        types = pytest.importorskip("google.genai").types
        call = types.FunctionCall(id="fc1", name="get_weather", args={"city": "Oslo"})
        answered = types.FunctionResponse(id="fc1", name="get_weather", response={"output": "4 C"})
        history = [
            types.Content(role="user", parts=[types.Part.from_bytes(data=b"\x89PNG", mime_type="image/png"), types.Part(text="Weather?")]),
            types.Content(role="model", parts=[types.Part(text="I look."), types.Part(function_call=call, thought_signature=b"sig")]),
            types.Content(role="user", parts=[types.Part(function_response=answered)]),
        ]  # fmt: skip
        declared = types.FunctionDeclaration(name="get_weather", description="Weather.", parameters_json_schema=TOOL.parameters)
        config = types.GenerateContentConfig(
            system_instruction=types.Content(parts=[types.Part(text="Be brief.")]), temperature=0.5, top_p=0.5, max_output_tokens=9, stop_sequences=["x"], seed=1,
            thinking_config=types.ThinkingConfig(thinking_budget=1024, include_thoughts=True),
            tools=[types.Tool(function_declarations=[declared])],
            tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY", allowed_function_names=["get_weather"])),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            response_mime_type="application/json", response_json_schema=TOOL.parameters,
        )  # fmt: skip
        theirs, url, _ = self.ask("gemini-2.5-flash", history, config)
        request = ModelRequest(
            messages=(
                UserMessage("Weather?", (PNG,)),
                AssistantMessage((Text("I look."), ToolCall("fc1", "get_weather", '{"city": "Oslo"}', "gemini:c2ln"))),
                ToolMessage("fc1", "get_weather", "4 C"),
            ),
            instructions="Be brief.",
            tools=(TOOL,),
            output=OutputSchema(name="weather", schema=TOOL.parameters),
            options=Options(
                temperature=0.5, top_p=0.5, max_tokens=9, stop=("x",), seed=1, reasoning="low", tool_choice="get_weather"
            ),
        )
        assert json.loads(encode(request)) == _camel(theirs)
        assert url.endswith(GeminiCodec("gemini-2.5-flash").path)

    def test_the_same_answer(self) -> None:
        _, _, chunks = self.ask("gemini-2.5-flash", "hi", None)
        parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts]
        reply = decode(WHOLE)[1]
        assert "".join(part.text or "" for part in parts if not part.thought) == reply.message.text
        assert [(c.function_call.name, c.function_call.args) for c in parts if c.function_call] == [
            (call.name, json.loads(call.arguments)) for call in reply.message.calls
        ]
        usage = chunks[-1].usage_metadata
        assert (usage.prompt_token_count, usage.thoughts_token_count) == (reply.usage.input_tokens, reply.usage.reasoning_tokens)
        assert chunks[-1].candidates[0].finish_reason == reply.finish_said
