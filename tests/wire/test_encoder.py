"""What a request leaves out is said once, by what and why; options of every format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from treadle.errors import UsageError
from treadle.values.messages import (
    AssistantMessage,
    Message,
    Opaque,
    SystemMessage,
    Text,
    Thinking,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Omission, Options, OutputSchema, ToolSpec
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import ANTHROPIC_API, AnthropicDialect
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.dialects import DEEPSEEK, LLAMACPP, VLLM, Dialect
from treadle.wire.encoder import REASONING
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import LLAMACPP_RESPONSES, ResponsesCodec, ResponsesDialect

TOOL = ToolSpec(name="get_weather", description="Weather.", parameters={"type": "object", "properties": {}})
OUTPUT = OutputSchema(name="weather", schema={"type": "object", "properties": {"city": {"type": "string"}}})
CODECS: dict[str, Codec] = {
    "chat": ChatCodec(),
    "llamacpp": ChatCodec(LLAMACPP),
    "vllm": ChatCodec(VLLM),
    "deepseek": ChatCodec(DEEPSEEK),
    "no effort": ChatCodec(Dialect(reasoning={})),
    "anthropic": AnthropicCodec(ANTHROPIC_API),
    "opus": AnthropicCodec(AnthropicDialect(thinking="adaptive", sampling=False)),
    "elsewhere": AnthropicCodec(),
    "responses": ResponsesCodec(),
    "o3": ResponsesCodec(ResponsesDialect(sampling="never")),
    "gpt-5.2": ResponsesCodec(ResponsesDialect(sampling="without_reasoning")),
    "llamacpp responses": ResponsesCodec(LLAMACPP_RESPONSES),
    "gemini": GeminiCodec("gemini-2.5-flash"),
    "gemini-2.5-pro": GeminiCodec("gemini-2.5-pro"),
    "gemini-3-pro": GeminiCodec("gemini-3-pro"),
    "gemini-3-flash": GeminiCodec("gemini-3-flash"),
    "ollama": OllamaCodec(),
    "gpt-oss": OllamaCodec(),
}


def sent(name: str, *, tools: bool = True, output: OutputSchema | None = None, **options: Any) -> tuple[Any, dict[str, str]]:
    """The body, and what was left out of it."""
    model = {"gemini": "gemini-2.5-flash"}.get(name, name)
    encoder = CODECS[name].encoder(model)
    request = ModelRequest(
        messages=(UserMessage("x"),), tools=(TOOL,) if tools else (), options=Options(**options), output=output
    )
    body = json.loads(encoder.encode(request))
    omitted = {each.what: each.why for each in encoder.omitted}
    assert len(omitted) == len(encoder.omitted)
    encoder.encode(request)
    assert encoder.omitted == (), "said once"
    return body, omitted


@pytest.mark.parametrize(
    ("name", "options", "left_out"),
    [
        *((name, {}, set[str]()) for name in CODECS),
        ("chat", {"temperature": 0.5, "top_p": 0.5, "stop": ("x",), "seed": 1, "reasoning": "low"}, set[str]()),
        ("llamacpp", {"reasoning": "off"}, set[str]()),
        ("llamacpp", {"reasoning": "low"}, {"reasoning"}),
        ("vllm", {"reasoning": "high"}, {"reasoning"}),
        ("no effort", {"reasoning": "off"}, {"reasoning"}),
        ("elsewhere", {"stop": ("x",), "temperature": 0.5, "top_p": 0.5}, set[str]()),
        ("elsewhere", {"seed": 1}, {"seed"}),
        ("elsewhere", {"reasoning": "low", "temperature": 0.5, "top_p": 0.96}, {"temperature"}),
        ("anthropic", {"reasoning": "low", "temperature": 0.5, "top_p": 0.5}, {"temperature", "top_p"}),
        ("anthropic", {"reasoning": "low", "tool_choice": "required", "temperature": 0.5}, {"reasoning"}),
        ("anthropic", {"reasoning": "off", "tool_choice": "required"}, set[str]()),
        ("elsewhere", {"reasoning": "high", "max_tokens": 1000}, {"reasoning"}),
        ("opus", {"temperature": 0.5, "top_p": 0.99}, {"temperature", "top_p"}),
        ("responses", {"stop": ("x",), "seed": 1, "temperature": 0.5, "reasoning": "low"}, {"stop", "seed"}),
        ("llamacpp responses", {"stop": ("x",), "seed": 1}, set[str]()),
        ("o3", {"temperature": 0.5, "top_p": 0.5}, {"temperature", "top_p"}),
        ("gpt-5.2", {"temperature": 0.5, "reasoning": "off"}, set[str]()),
        ("gpt-5.2", {"temperature": 0.5, "reasoning": "low"}, {"temperature"}),
        ("gemini", {"temperature": 0.5, "top_p": 0.5, "stop": ("x",), "seed": 1, "reasoning": "off"}, set[str]()),
        ("gemini-2.5-pro", {"reasoning": "off"}, {"reasoning"}),
        ("gemini-3-flash", {"reasoning": "off"}, {"reasoning"}),
        ("gemini-3-flash", {"reasoning": "medium"}, set[str]()),
        ("gemini-3-pro", {"reasoning": "medium"}, {"reasoning"}),
        ("ollama", {"reasoning": "off", "temperature": 0.5, "top_p": 0.5, "stop": ("x",), "seed": 1}, set[str]()),
        ("ollama", {"reasoning": "low"}, {"reasoning"}),
        ("gpt-oss", {"reasoning": "low"}, set[str]()),
        ("gpt-oss", {"reasoning": "off"}, {"reasoning"}),
        ("ollama", {"tool_choice": "none"}, set[str]()),
        ("ollama", {"tool_choice": "required"}, {"tool_choice"}),
        ("ollama", {"tool_choice": "get_weather"}, {"tool_choice"}),
    ],
)
def test_options_that_a_format_or_a_model_does_not_take_are_left_out_and_said(
    name: str, options: dict[str, Any], left_out: set[str]
) -> None:
    body, omitted = sent(name, **options)
    assert omitted.keys() == left_out
    for option in left_out - {"reasoning"}:
        assert option not in body


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("choice", ["auto", "none", "required", "get_weather"])
def test_without_tools_there_is_no_choice_of_one(name: str, choice: str) -> None:
    """Servers refuse it. A run that asks for its answer in a form may offer no tools in its last turn."""
    body, omitted = sent(name, tools=False, tool_choice=choice)
    assert not {"tool_choice", "toolConfig", "tools"} & body.keys()
    assert omitted.keys() == ({"tool_choice"} if choice in ("required", "get_weather") else set())


@pytest.mark.parametrize("name", CODECS)
def test_a_schema_goes_to_the_servers_that_take_one_and_is_said_to_be_left_out_elsewhere(name: str) -> None:
    supported = CODECS[name].schema_support != "none"
    body, omitted = sent(name, tools=False, output=OUTPUT)
    assert ('"city"' in json.dumps(body)) is supported
    assert ("output" in omitted) is not supported


@pytest.mark.parametrize(
    ("name", "support"),
    [
        ("chat", "alone"), ("llamacpp", "alone"), ("vllm", "alone"), ("deepseek", "none"), ("anthropic", "with_tools"),
        ("elsewhere", "none"), ("responses", "alone"), ("llamacpp responses", "none"), ("gemini", "alone"),
        ("gemini-3-flash", "with_tools"), ("ollama", "alone"),
    ],
)  # fmt: skip
def test_where_a_schema_may_be_sent(name: str, support: str) -> None:
    assert CODECS[name].schema_support == support


def test_two_things_of_one_kind_are_said_apart() -> None:
    encoder = ChatCodec(LLAMACPP).encoder("m")
    foreign = (Thinking("a", "block"), Thinking("b", "block"), Text("c"))
    messages: tuple[Message, ...] = (UserMessage("x"), AssistantMessage(foreign))
    encoder.encode(ModelRequest(messages=messages, options=Options(reasoning="low")))
    assert encoder.omitted == (
        Omission(what="reasoning", why=REASONING, count=2),
        Omission(what="reasoning", why="This server knows only on and off: every level is on."),
    )


def test_reasoning_of_a_partial_answer_is_not_gone_on_from() -> None:
    encoder = ChatCodec(LLAMACPP).encoder("m")
    partial = AssistantMessage((Thinking("hm"), Text("So")))
    encoder.encode(ModelRequest(messages=(UserMessage("x"),), continues=partial))
    assert [(each.what, each.count) for each in encoder.omitted] == [("reasoning", 1)]


def test_a_turn_that_only_reasoned() -> None:
    """Strict servers refuse an assistant message without content or calls; Ollama's own format takes it."""
    request = ModelRequest(messages=(UserMessage("x"), AssistantMessage((Thinking("a"), Thinking("b"))), UserMessage("y")))
    encoder, ollama = ChatCodec().encoder("m"), OllamaCodec().encoder("m")
    assert len(json.loads(encoder.encode(request))["messages"]) == 2
    assert [(each.what, each.count) for each in encoder.omitted] == [("reasoning", 2)]
    assert len(json.loads(ollama.encode(request))["messages"]) == 3
    assert ollama.omitted == ()


def test_a_server_that_refuses_reasoning() -> None:
    encoder = ChatCodec(Dialect(send_reasoning=False)).encoder("m")
    encoder.encode(ModelRequest(messages=(AssistantMessage((Thinking("hm"), Text("So"))),)))
    assert [each.what for each in encoder.omitted] == ["reasoning"]


def test_reasoning_that_responses_cannot_send_back() -> None:
    kept = Opaque("responses", '{"type":"reasoning","id":"rs_1","encrypted_content":"x","summary":[]}')
    empty = Opaque("responses", '{"type":"reasoning","id":"rs_2","summary":[]}')
    encoder = ResponsesCodec().encoder("m")
    encoder.encode(ModelRequest(messages=(AssistantMessage((Thinking("shown", "block"), kept, Text("a"))),)))
    assert encoder.omitted == ()
    encoder.encode(ModelRequest(messages=(AssistantMessage((empty, Text("a"), kept)),)))
    assert [(each.what, each.count) for each in encoder.omitted] == [("reasoning", 2)]


@pytest.mark.parametrize("name", CODECS)
def test_a_request_that_cannot_be_written_leaves_nothing_behind(name: str) -> None:
    """What failed was not sent: the next request is written whole, and says what it leaves out."""
    model = {"gemini": "gemini-2.5-flash"}.get(name, name)
    good: tuple[Message, ...] = (UserMessage("a"), AssistantMessage((Thinking("b", "block"), Text("c"))), UserMessage("d"))
    bad: tuple[Message, ...] = (*good, UserMessage("half a pair: \ud83d"))
    encoder, other = CODECS[name].encoder(model), CODECS[name].encoder(model)
    encoder.encode(ModelRequest(messages=good[:1]))
    with pytest.raises(UsageError, match="surrogate"):
        encoder.encode(ModelRequest(messages=bad))
    assert encoder.omitted == ()
    request = ModelRequest(messages=(*good, ToolMessage("x", "f", "y")))
    assert encoder.encode(request) == other.encode(request)
    assert encoder.omitted == other.omitted != ()


@pytest.mark.parametrize("name", CODECS)
def test_a_turn_costs_what_is_new_in_it(name: str) -> None:
    """Omissions too: a message that was looked at is not looked at again."""
    looked_at: list[int] = []

    class Counted(AssistantMessage):
        def __getattribute__(self, name: str) -> Any:
            if name == "content":
                looked_at.append(1)
            return object.__getattribute__(self, name)

    model = {"gemini": "gemini-2.5-flash"}.get(name, name)
    encoder = CODECS[name].encoder(model)
    messages: tuple[Message, ...] = ()
    costs: list[int] = []
    for turn in range(12):
        messages = (*messages, UserMessage(str(turn)), Counted((Thinking("a", "block"), Text("b"))))
        looked_at.clear()
        encoder.encode(ModelRequest(messages=messages))
        costs.append(len(looked_at))
    assert len(set(costs)) == 1 and costs[0] >= 1


Q, SUMMARY = UserMessage("q"), UserMessage("what was", origin="summary")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("revision", [None, 0])
@pytest.mark.parametrize("instructions", [None, "Be brief."])
@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        ((Q, SUMMARY), (Q, SUMMARY, UserMessage("n")), True),
        ((Q,), (Q, SUMMARY), True),
        ((), (SystemMessage("Rules."), Q), False),
        ((), (Q,), False),
        ((SystemMessage("Rules."),), (SystemMessage("Rules."), Q), False),
        ((Q,), (Q, UserMessage("n")), False),
    ],
)
def test_an_item_that_holds_more_now_is_written_anew(
    name: str,
    revision: int | None,
    instructions: str | None,
    before: tuple[Message, ...],
    after: tuple[Message, ...],
    moves: bool,
) -> None:
    """Some formats join what stands side by side: then the bytes are those of an encoder without a past, and the move is told."""
    model = {"gemini": "gemini-2.5-flash"}.get(name, name)
    encoder, fresh = CODECS[name].encoder(model), CODECS[name].encoder(model)
    first, second = (ModelRequest(messages=each, instructions=instructions, revision=revision) for each in (before, after))
    was = encoder.encode(first)
    now = encoder.encode(second)
    assert now == fresh.encode(second)
    if isinstance(CODECS[name], ChatCodec) and moves:
        assert encoder.moved is not None and encoder.moved.component.endswith("the user's text")
    if isinstance(CODECS[name], ChatCodec) and after[:1] != before[:1] and isinstance(after[0], SystemMessage) and instructions:
        assert encoder.moved is not None and encoder.moved.component == "the system text"
        assert was != now


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("run_ids", [("a", "b"), ("a", "a")])
def test_two_runs_that_share_an_encoder_are_told_apart(name: str, run_ids: tuple[str, str]) -> None:
    """A revision counts within a run. Without ids of runs the last message that was written says that it is another one."""
    model = {"gemini": "gemini-2.5-flash"}.get(name, name)
    encoder = CODECS[name].encoder(model)
    last = UserMessage("last")
    other = last if run_ids[0] != run_ids[1] else UserMessage("last")
    said = AssistantMessage((Text("x"),))
    for run_id, first, end in zip(run_ids, ("one", "two"), (last, other), strict=True):
        request = ModelRequest(messages=(UserMessage(first), said, end), run_id=run_id, revision=0)
        body = encoder.encode(request)
        assert body == CODECS[name].encoder(model).encode(request)
