"""The Anthropic format, written: frozen bytes, the rules of the API, the prefix, cache markers.

The golden bytes are written from the documentation; that a real server takes them is shown by tests/servers/test_llamacpp_anthropic.py,
and that they are what the official SDK sends by tests/conformance/test_anthropic_sdk.py.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

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
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import ANTHROPIC_API, AnthropicDialect

MARK = ',"cache_control":{"type":"ephemeral"}'
REDACTED = '{"type": "redacted_thinking", "data": "EmwK+/=="}'
CONVERSATION: tuple[Message, ...] = (
    SystemMessage("Be kind."),
    UserMessage("Weather in Oslo? 日本"),
    AssistantMessage(
        (
            Thinking("look it up", "block", None, "EqQB=="),
            Opaque("anthropic", REDACTED),
            Text("I look."),
            ToolCall("toolu_1", "get_weather", '{"city" :"Oslo"}'),
            ToolCall("toolu_2", "f", "{broken"),
        )
    ),
    ToolMessage("toolu_1", "get_weather", "4 C"),
    ToolMessage("toolu_2", "f", "invalid arguments", is_error=True, note="third time"),
    UserMessage("Quick!"),
    AssistantMessage((Text("Cold."),)),
    UserMessage("Thanks"),
)
TOOL = ToolSpec(name="get_weather", description="Weather.", parameters={"type": "object", "properties": {}})
PLAIN = AnthropicDialect(cache=False)


MARKED = AnthropicDialect(cache=True)


def encode(request: ModelRequest, dialect: AnthropicDialect = MARKED) -> bytes:
    return AnthropicCodec(dialect).encoder("m").encode(request)


def sent(*messages: Message, dialect: AnthropicDialect = PLAIN, **more: Any) -> dict[str, Any]:
    return json.loads(encode(ModelRequest(messages=messages, **more), dialect))


def options(tools: tuple[ToolSpec, ...] = (TOOL,), dialect: AnthropicDialect = PLAIN, **set: Any) -> dict[str, Any]:
    body = sent(UserMessage("x"), dialect=dialect, tools=tools, options=Options(**set))
    return {key: value for key, value in body.items() if key not in ("model", "stream", "messages", "tools")}


def test_golden_bytes() -> None:
    request = ModelRequest(
        messages=CONVERSATION, instructions="Be brief.", tools=(TOOL,),
        options=Options(temperature=0.0, top_p=0.9, max_tokens=9, stop=("\n",), tool_choice="get_weather", seed=1, extra_body={"top_k": 5}),
    )  # fmt: skip
    assert encode(request).decode() == (
        '{"model":"m","stream":true,"max_tokens":9,"temperature":0.0,"top_p":0.9,"stop_sequences":["\\n"],'
        '"tool_choice":{"type":"tool","name":"get_weather"},"top_k":5,'
        '"tools":[{"name":"get_weather","description":"Weather.","input_schema":{"type":"object","properties":{}}' + MARK + "}],"
        '"system":[{"type":"text","text":"Be brief."},{"type":"text","text":"Be kind."' + MARK + "}],"
        '"messages":[{"role":"user","content":[{"type":"text","text":"Weather in Oslo? 日本"}]},'
        '{"role":"assistant","content":[{"type":"thinking","thinking":"look it up","signature":"EqQB=="},'
        '{"type": "redacted_thinking", "data": "EmwK+/=="},{"type":"text","text":"I look."},'
        '{"type":"tool_use","id":"toolu_1","name":"get_weather","input":{"city" :"Oslo"}},'
        '{"type":"tool_use","id":"toolu_2","name":"f","input":{}}]},'
        '{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","content":"4 C"},'
        '{"type":"tool_result","tool_use_id":"toolu_2","content":"invalid arguments\\n[third time]","is_error":true},'
        '{"type":"text","text":"Quick!"}]},'
        '{"role":"assistant","content":[{"type":"text","text":"Cold."}]},'
        '{"role":"user","content":[{"type":"text","text":"Thanks"' + MARK + "}]}]}"
    )


def test_what_is_not_set_is_not_sent() -> None:
    assert encode(ModelRequest(messages=(UserMessage("x"),)), PLAIN) == (
        b'{"model":"m","stream":true,"max_tokens":8192,"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}'
    )
    assert encode(ModelRequest(messages=()), PLAIN) == b'{"model":"m","stream":true,"max_tokens":8192,"messages":[]}'


class TestOptions:
    @pytest.mark.parametrize(
        ("choice", "written"),
        [
            ("auto", {"type": "auto"}),
            ("none", {"type": "none"}),
            ("required", {"type": "any"}),
            ("get_weather", {"type": "tool", "name": "get_weather"}),
        ],
    )
    def test_tool_choice(self, choice: str, written: Any) -> None:
        assert options(tool_choice=choice) == {"max_tokens": 8192, "tool_choice": written}
        assert options(tools=(), tool_choice=choice) == {"max_tokens": 8192}

    @pytest.mark.parametrize(
        ("reasoning", "max_tokens", "sent_max", "thinking"),
        [
            (None, None, 8192, None),
            ("off", None, 8192, {"type": "disabled"}),
            ("low", None, 10240, {"type": "enabled", "budget_tokens": 2048}),
            ("medium", None, 16384, {"type": "enabled", "budget_tokens": 8192}),
            ("high", None, 32768, {"type": "enabled", "budget_tokens": 24576}),
            ("high", 64000, 64000, {"type": "enabled", "budget_tokens": 24576}),
            ("high", 4000, 4000, {"type": "enabled", "budget_tokens": 3000}),
            ("low", 1366, 1366, {"type": "enabled", "budget_tokens": 1024}),
            ("low", 1365, 1365, None),
        ],
    )
    def test_reasoning_as_a_budget(self, reasoning: Any, max_tokens: Any, sent_max: int, thinking: Any) -> None:
        wanted = {"max_tokens": sent_max} | ({"thinking": thinking} if thinking else {})
        assert options(reasoning=reasoning, max_tokens=max_tokens) == wanted
        assert thinking is None or thinking.get("budget_tokens", 0) < sent_max

    @pytest.mark.parametrize("reasoning", ["low", "medium", "high"])
    def test_reasoning_as_an_effort(self, reasoning: Any) -> None:
        written = options(dialect=ANTHROPIC_API, reasoning=reasoning, max_tokens=100)
        assert written == {"max_tokens": 100, "thinking": {"type": "adaptive"}, "output_config": {"effort": reasoning}}

    @pytest.mark.parametrize("dialect", [PLAIN, ANTHROPIC_API])
    def test_reasoning_takes_the_place_of_sampling(self, dialect: AnthropicDialect) -> None:
        written = options(dialect=dialect, reasoning="low", temperature=0.0, top_p=0.5)
        assert not {"temperature", "top_p"} & written.keys()
        assert options(dialect=dialect, reasoning="low", top_p=0.95)["top_p"] == 0.95
        assert options(dialect=dialect, reasoning="off", temperature=0.0)["temperature"] == 0.0

    @pytest.mark.parametrize("dialect", [PLAIN, ANTHROPIC_API])
    @pytest.mark.parametrize("choice", ["required", "get_weather"])
    def test_a_forced_call_takes_the_place_of_reasoning(self, choice: str, dialect: AnthropicDialect) -> None:
        written = options(dialect=dialect, reasoning="high", tool_choice=choice, temperature=0.0)
        assert not {"thinking", "output_config"} & written.keys()
        assert written["temperature"] == 0.0
        assert options(dialect=dialect, reasoning="high", tool_choice="none")["thinking"]

    @pytest.mark.parametrize("field", ["messages", "stream", "model", "tools", "system"])
    def test_extra_body_cannot_take_over_the_request(self, field: str) -> None:
        encoder = AnthropicCodec(MARKED).encoder("m")
        with pytest.raises(UsageError, match=field):
            encoder.encode(ModelRequest(messages=CONVERSATION, options=Options(extra_body={field: 1})))
        assert encoder.encode(ModelRequest(messages=CONVERSATION)) == encode(ModelRequest(messages=CONVERSATION))


class TestMessages:
    def test_neighbours_of_one_role_are_one_message(self) -> None:
        paused = AssistantMessage((Text("so"), Opaque("anthropic", '{"type":"server_tool_use"}')))
        body = sent(UserMessage("a"), UserMessage("b"), paused, AssistantMessage((Text("far"),)), UserMessage("c"))
        assert [(m["role"], len(m["content"])) for m in body["messages"]] == [("user", 2), ("assistant", 3), ("user", 1)]

    def test_what_belongs_to_others_is_left_out(self) -> None:
        message = AssistantMessage(
            (
                Thinking("a"),
                Thinking("b", "reasoning"),
                Thinking("c", "content", "<think>c</think>"),
                Thinking("d", "block"),
                Opaque("responses", '{"type":"reasoning"}'),
                Opaque("anthropic", "[1]"),
                Opaque("anthropic", "{broken"),
                Text(" \n"),
                Text("kept"),
                ToolCall("a", "f", "{}", "a signature of Gemini's"),
            )
        )
        (written,) = sent(message)["messages"]
        assert written["content"] == [{"type": "text", "text": "kept"}, {"type": "tool_use", "id": "a", "name": "f", "input": {}}]

    def test_a_message_that_says_nothing_is_left_out(self) -> None:
        body = sent(UserMessage("a"), AssistantMessage((Thinking("x"), Text(""))), UserMessage("b"))
        assert [m["role"] for m in body["messages"]] == ["user"]
        assert sent(AssistantMessage((Text(""),)))["messages"] == []

    def test_reasoning_without_a_signature_goes_to_those_who_sent_it_so(self) -> None:
        message = AssistantMessage((Thinking("hm", "block", None, ""), Text("a")))
        assert sent(message)["messages"][0]["content"][0] == {"type": "thinking", "thinking": "hm", "signature": ""}
        assert sent(message, dialect=ANTHROPIC_API)["messages"][0]["content"][0]["type"] == "text"

    @pytest.mark.parametrize("arguments", ["", "{broken", "[]", '"x"', "null", "NaN", "[" * 100_000])
    def test_arguments_that_are_no_object(self, arguments: str) -> None:
        body = sent(AssistantMessage((ToolCall("a", "f", arguments),)), ToolMessage("a", "f", "refused", is_error=True))
        assert body["messages"][0]["content"][0]["input"] == {}

    @pytest.mark.parametrize("name", ["", "a b", "functions.get", "é", "x" * 100])
    def test_a_name_that_the_api_refuses_is_mended(self, name: str) -> None:
        written = sent(AssistantMessage((ToolCall("a", name, "{}"),)))["messages"][0]["content"][0]["name"]
        assert 1 <= len(written) <= 64 and written.replace("_", "a").isalnum() and written.isascii()

    def test_ids_that_the_api_refuses_are_mended_and_stay_apart(self) -> None:
        ids = ["functions.get:0", "functions.get.0", "call_0", "é"]
        turn = (AssistantMessage(tuple(ToolCall(id, "f", "{}") for id in ids)), *(ToolMessage(id, "f", "x") for id in ids))
        messages = sent(UserMessage("a"), *turn, *turn)["messages"]
        calls = [[block["id"] for block in message["content"]] for message in messages if message["role"] == "assistant"]
        results = [[block["tool_use_id"] for block in message["content"]] for message in messages[2::2]]
        assert calls == results
        flat = [id for turn_ids in calls for id in turn_ids]
        assert len(set(flat)) == 8
        assert calls[0][2] == "call_0"
        assert all(id.isascii() and id.replace("_", "a").replace("-", "a").isalnum() for id in flat)

    def test_half_a_surrogate_pair_is_the_callers_error(self) -> None:
        encoder = AnthropicCodec(MARKED).encoder("m")
        with pytest.raises(UsageError, match="surrogate"):
            encoder.encode(ModelRequest(messages=(UserMessage("a"), UserMessage("\ud83d"))))
        assert encoder.encode(ModelRequest(messages=CONVERSATION)) == encode(ModelRequest(messages=CONVERSATION))


class TestAttachments:
    def test_before_the_text(self) -> None:
        attached = (
            Image(b"GIF8", "image/gif"),
            Document(b"%PDF", "application/pdf", "a.pdf"),
            Document("né".encode(), "text/markdown"),
            Document(b"\xff", "text/plain"),
        )
        (written,) = sent(UserMessage("What is this?", attached))["messages"]
        assert written["content"] == [
            {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lGOA=="}},
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
                "title": "a.pdf",
            },
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "né"}},
            {"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": "/w=="}},
            {"type": "text", "text": "What is this?"},
        ]
        assert len(sent(UserMessage("", attached))["messages"][0]["content"]) == 4

    def test_in_a_result(self) -> None:
        results = (
            ToolMessage("a", "photo", "a cat", images=(Image(b"GIF8", "image/gif"),), note="old"),
            ToolMessage("b", "photo", "", images=(Image(b"GIF8", "image/gif"),)),
            ToolMessage("c", "photo", "", is_error=True),
            ToolMessage("d", "photo", ""),
        )
        calls = AssistantMessage(tuple(ToolCall(result.call_id, "photo", "{}") for result in results))
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lGOA=="}}
        assert sent(calls, *results)["messages"][1]["content"] == [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "a cat\n[old]"}, image]},
            {"type": "tool_result", "tool_use_id": "b", "content": [image]},
            {"type": "tool_result", "tool_use_id": "c", "content": "The call failed.", "is_error": True},
            {"type": "tool_result", "tool_use_id": "d", "content": ""},
        ]


def items(body: bytes) -> bytes:
    """The messages as they are written, cache markers removed, without what closes the last one."""
    _, _, messages = body.partition(b'"messages":')
    return messages.replace(MARK.encode(), b"").removesuffix(b"]}]}" if messages != b"[]}" else b"]}")


def marked(value: Any) -> list[Any]:
    """Every block with a marker."""
    if isinstance(value, dict):
        here = [value] if "cache_control" in value else []
        return here + [found for inner in value.values() for found in marked(inner)]
    return [found for inner in value for found in marked(inner)] if isinstance(value, list) else []


ATTACHED: tuple[Message, ...] = (
    *CONVERSATION,
    AssistantMessage((Thinking("foreign"),)),
    UserMessage("And this?", (Image(b"GIF8", "image/gif"),)),
    AssistantMessage((ToolCall("toolu_1", "f", "{}"), ToolCall("x.y", "f", "{}"))),
    ToolMessage("toolu_1", "f", "a", images=(Image(b"GIF8", "image/gif"),)),
    ToolMessage("x.y", "f", "b"),
    AssistantMessage((Text("Done."),)),
)
lengths = st.integers(0, len(ATTACHED))


@given(lengths, lengths, st.booleans(), st.sampled_from([PLAIN, MARKED, ANTHROPIC_API]))
def test_an_encoder_with_a_past_writes_what_a_new_one_writes(
    first: int, second: int, instructed: bool, dialect: AnthropicDialect
) -> None:
    encoder = AnthropicCodec(dialect).encoder("m")
    encoder.encode(ModelRequest(messages=ATTACHED[:first], instructions="Be brief."))
    request = ModelRequest(messages=ATTACHED[:second], instructions="Be brief." if instructed else None, tools=(TOOL,))
    assert encoder.encode(request) == encode(request, dialect)


@given(st.integers(0, len(ATTACHED) - 1), lengths)
def test_a_longer_conversation_extends_the_items_of_a_shorter_one(length: int, longer: int) -> None:
    encoder = AnthropicCodec(MARKED).encoder("m")
    shorter = encoder.encode(ModelRequest(messages=ATTACHED[: min(length, longer)], tools=(TOOL,)))
    assert items(encoder.encode(ModelRequest(messages=ATTACHED[:longer], tools=(TOOL,)))).startswith(items(shorter))


@given(lengths, st.booleans(), st.booleans())
def test_cache_markers(length: int, instructed: bool, tools: bool) -> None:
    body = json.loads(
        encode(
            ModelRequest(
                messages=ATTACHED[:length], instructions="Be brief." if instructed else None, tools=(TOOL,) * 2 if tools else ()
            )
        )
    )
    assert len(marked(body)) <= 4
    assert marked(body.get("tools", [])) == body.get("tools", [])[-1:]
    assert marked(body.get("system", [])) == body.get("system", [])[-1:]
    users = [message for message in body["messages"] if message["role"] == "user"]
    places = marked(body["messages"])
    assert places[-1:] == [message["content"][-1] for message in users[-1:]]
    assert all(place in [message["content"][-1] for message in users] for place in places)


TURNS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=12)
"""Blocks of the model's message, and of the user's after it."""


def turned(turns: list[tuple[int, int]]) -> tuple[Message, ...]:
    messages: list[Message] = [UserMessage("begin")]
    for n, (blocks, results) in enumerate(turns):
        texts = [Text(f"{n} {i}") for i in range(blocks - 1)]
        call = ToolCall(f"c{n}", "get_weather", "{}")
        messages += [AssistantMessage((*texts, call)), ToolMessage(f"c{n}", "get_weather", "x")]
        messages += [UserMessage(f"{n} {i}") for i in range(results - 1)]
    return tuple(messages)


def numbered(body: dict[str, Any]) -> list[int]:
    """Which blocks of the messages have a marker."""
    blocks = [block for message in body["messages"] for block in message["content"]]
    return [number for number, block in enumerate(blocks) if "cache_control" in block]


@given(TURNS, st.booleans(), st.booleans())
def test_what_the_request_before_cached_is_found_however_many_blocks_a_turn_has(
    turns: list[tuple[int, int]], instructed: bool, tools: bool
) -> None:
    """The server looks at 20 blocks for each marker, its own block among them (docs/protocols/anthropic.md)."""
    more: dict[str, Any] = {"instructions": "Be brief." if instructed else None, "tools": (TOOL,) if tools else ()}
    cached: int | None = None
    for length in range(len(turns) + 1):
        body = json.loads(encode(ModelRequest(messages=turned(turns[:length]), **more)))
        places = numbered(body)
        assert len(marked(body)) <= 4
        assert places and len(places) <= 4 - instructed - tools
        assert cached is None or any(place - 19 <= cached <= place for place in places)
        cached = places[-1]


@given(st.integers(0, 17))
def test_short_turns_that_were_missed_are_found_too(missed: int) -> None:
    """As when another model answered them: two markers reach at least 34 blocks back, if turns are short."""
    short = [(1, 1)] * 30
    before = json.loads(encode(ModelRequest(messages=turned(short), tools=(TOOL,), instructions="x")))
    after = json.loads(encode(ModelRequest(messages=turned([*short, *[(1, 1)] * missed]), tools=(TOOL,), instructions="x")))
    cached = numbered(before)[-1]
    assert any(place - 19 <= cached <= place for place in numbered(after))


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("claude-opus-5-5", True),
        ("claude-3-haiku-20240307", True),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("anthropic/claude-haiku-4.5", True),
        ("claude-2.1", False),
        ("claude-instant-1.2", False),
        ("anthropic.claude-v2:1", False),
        ("qwen3-8b", False),
        ("glm-5", False),
    ],
)
def test_markers_go_to_models_that_take_them(model: str, takes: bool) -> None:
    request = ModelRequest(messages=(UserMessage("x"),), instructions="y", tools=(TOOL,))
    for dialect in (AnthropicDialect(), ANTHROPIC_API):
        assert (b"cache_control" in AnthropicCodec(dialect).encoder(model).encode(request)) is takes
    assert b"cache_control" not in AnthropicCodec(PLAIN).encoder(model).encode(request)
    assert b"cache_control" in AnthropicCodec(MARKED).encoder(model).encode(request)


def test_where_the_api_is_asked_to_place_markers_there_are_none_of_ours() -> None:
    set_ = Options(extra_body={"cache_control": {"type": "ephemeral"}})
    body = json.loads(encode(ModelRequest(messages=ATTACHED, instructions="y", tools=(TOOL,), options=set_)))
    assert body.pop("cache_control") and not marked(body)


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_how_long_a_cache_lasts_is_said_of_every_marker(ttl: Any) -> None:
    """The API refuses an hour behind five minutes."""
    request = ModelRequest(messages=ATTACHED, instructions="y", tools=(TOOL,), options=Options(cache_ttl=ttl))
    markers = [block["cache_control"] for block in marked(json.loads(encode(request)))]
    assert len(markers) == 4
    assert all(marker == {"type": "ephemeral", "ttl": ttl} for marker in markers)
    encoder = AnthropicCodec(PLAIN).encoder("m")
    assert b"cache_control" not in encoder.encode(request)
    assert [each.what for each in encoder.omitted if each.what == "cache_ttl"] == ["cache_ttl"]


def test_a_turn_costs_what_is_new_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = AnthropicCodec().encoder("m")
    messages: tuple[Message, ...] = ()
    written: list[int] = []
    for turn in range(20):
        messages = (*messages, UserMessage(f"{turn}"), AssistantMessage((Text("a"),)))
        seen: list[object] = []
        add = type(encoder)._write_message
        with monkeypatch.context() as patch:
            patch.setattr(
                type(encoder),
                "_write_message",
                lambda self, message, add=add, seen=seen: (seen.append(message), add(self, message)),
            )
            encoder.encode(ModelRequest(messages=messages))
        written.append(len(seen))
    assert set(written) == {2}


def test_a_request_is_json_that_decodes_strictly() -> None:
    msgspec.json.decode(encode(ModelRequest(messages=ATTACHED, instructions="x", tools=(TOOL,))))


class TestSchemas:
    OUTPUT = OutputSchema(
        name="weather", schema={"type": "object", "properties": {"t": {"type": "integer", "minimum": 0}}, "required": ["t"]}
    )

    def test_golden_bytes(self) -> None:
        assert encode(
            ModelRequest(messages=(UserMessage("x"),), output=self.OUTPUT), replace(ANTHROPIC_API, cache=True)
        ).decode() == (
            '{"model":"m","stream":true,"max_tokens":8192,"output_config":{"format":{"type":"json_schema","schema":{"type":"object",'
            '"properties":{"t":{"type":"integer","description":"(minimum: 0)"}},"required":["t"],"additionalProperties":false}}},'
            '"messages":[{"role":"user","content":[{"type":"text","text":"x"' + MARK + "}]}]}"
        )

    def test_beside_an_effort_and_what_extra_body_sets(self) -> None:
        set_ = Options(reasoning="low", extra_body={"output_config": {"effort": "max"}})
        written = sent(UserMessage("x"), dialect=ANTHROPIC_API, output=self.OUTPUT, options=set_)
        assert written["output_config"].keys() == {"effort", "format"}
        assert written["output_config"]["effort"] == "max"

    def test_not_to_servers_that_are_not_known_to_take_one(self) -> None:
        assert "output_config" not in sent(UserMessage("x"), output=self.OUTPUT)
