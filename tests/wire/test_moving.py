"""A conversation begun in one format goes on in another: what only its own server can read stays behind, and that is said; the
rest travels."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

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
from treadle.values.request import ModelRequest, Omission
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import ANTHROPIC_API
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec

MODEL, GEMINI_3 = "m", "gemini-3-flash"
CODECS: dict[str, Codec] = {
    "chat": ChatCodec(),
    "anthropic": AnthropicCodec(ANTHROPIC_API),
    "anthropic elsewhere": AnthropicCodec(),
    "responses": ResponsesCodec(),
    "gemini": GeminiCodec(MODEL),
    "gemini 3": GeminiCodec(GEMINI_3),
    "ollama": OllamaCodec(),
}

# What each format's replies leave in a history, with a canary in every part that is its server's alone.
TURNS: dict[str, tuple[Thinking | Opaque, ...]] = {
    "chat": (Thinking("I wonder", "reasoning_content"),),
    "anthropic": (
        Thinking("I wonder", "block", signature="CANARY-anthropic-signed"),
        Opaque("anthropic", '{"type":"redacted_thinking","data":"CANARY-anthropic-redacted"}'),
    ),
    "responses": (
        Thinking("I wonder", "block"),
        Opaque("responses", '{"type":"reasoning","id":"rs_1","encrypted_content":"CANARY-responses-reasoning","summary":[]}'),
    ),
    "gemini": (Thinking("I wonder", "block", signature="gemini:CANARY-gemini-thought"),),
    "ollama": (Thinking("I wonder", "reasoning"),),
}
SIGNED_CALL = {"gemini": "gemini:CANARY-gemini-call"}

# What stays behind when such a history goes elsewhere, and where else it is at home.
STAYS: dict[str, dict[str, int]] = {
    "chat": {"reasoning": 1},
    "anthropic": {"reasoning": 1, "part": 1},
    "responses": {"reasoning": 1, "part": 1},
    "gemini": {"reasoning": 1, "signature": 1},
    "ollama": {"reasoning": 1},
}
AT_HOME = {
    *(("chat", to) for to in ("chat", "ollama")),
    *(("ollama", to) for to in ("chat", "ollama")),
    *(("anthropic", to) for to in ("anthropic", "anthropic elsewhere")),
    *(("gemini", to) for to in ("gemini", "gemini 3")),
    ("responses", "responses"),
}


def encoder_of(name: str) -> Any:
    return CODECS[name].encoder(GEMINI_3 if name == "gemini 3" else MODEL)


def left_out(omitted: Any) -> dict[str, int]:
    assert all(type(each) is Omission and each.why for each in omitted)
    assert len({each.what for each in omitted}) == len(omitted)
    return {each.what: each.count for each in omitted}


def history(made_by: str) -> tuple[Message, ...]:
    call = ToolCall("call_1", "get_weather", '{"city":"Oslo"}', SIGNED_CALL.get(made_by))
    other = ToolCall("call_2", "get_weather", '{"city":"Lima"}')
    return (
        UserMessage("Weather in Oslo and Lima?", (Image(b"GIF8", "image/gif"),)),
        AssistantMessage((*TURNS[made_by], Text("I look."), call, other)),
        ToolMessage("call_1", "get_weather", "4 C, snow"),
        ToolMessage("call_2", "get_weather", "no such city", is_error=True),
        AssistantMessage((Text("Cold in Oslo."),)),
        UserMessage("And Rome?"),
    )


@pytest.mark.parametrize(("made_by", "goes_to"), list(itertools.product(TURNS, CODECS)))
def test_what_travels_and_what_stays(made_by: str, goes_to: str) -> None:
    written = encoder_of(goes_to).encode(ModelRequest(messages=history(made_by))).decode()
    body = json.loads(written)
    for said in (
        "Weather in Oslo and Lima?",
        "I look.",
        "get_weather",
        "Lima",
        "4 C, snow",
        "no such city",
        "Cold in Oslo.",
        "And Rome?",
    ):
        assert said in written, said
    own = (made_by, goes_to) in AT_HOME
    canaries = [part for part in ("signed", "redacted", "reasoning", "thought", "call") if f"CANARY-{made_by}-{part}" in written]
    if own and made_by not in ("chat", "ollama"):
        assert canaries, "what it sent goes back to it"
    else:
        assert "CANARY" not in written
    assert "gemini:" not in written
    assert body


@pytest.mark.parametrize(("made_by", "goes_to"), list(itertools.product(TURNS, CODECS)))
def test_it_grows_without_moving(made_by: str, goes_to: str) -> None:
    """Law 9 holds for moved conversations too: the next request extends what was sent."""
    messages = history(made_by)
    encoder = encoder_of(goes_to)
    for length in (1, 4, 6):
        request = ModelRequest(messages=messages[:length])
        assert encoder.encode(request) == encoder_of(goes_to).encode(request)


@pytest.mark.parametrize(("made_by", "goes_to"), list(itertools.product(TURNS, CODECS)))
def test_what_stays_is_said_once(made_by: str, goes_to: str) -> None:
    expected = {} if (made_by, goes_to) in AT_HOME else STAYS[made_by]
    messages = history(made_by)
    encoder = encoder_of(goes_to)
    said: list[dict[str, int]] = []
    for length in (1, 4, 6, 6, 1, 6):  # the last two are written anew
        encoder.encode(ModelRequest(messages=messages[:length]))
        said.append(left_out(encoder.omitted))
    assert said == [{}, expected, {}, {}, {}, {}]


@pytest.mark.parametrize(("made_by", "goes_to"), list(itertools.product(TURNS, CODECS)))
def test_it_is_counted_over_the_whole_history(made_by: str, goes_to: str) -> None:
    expected = {} if (made_by, goes_to) in AT_HOME else {what: 2 * count for what, count in STAYS[made_by].items()}
    encoder = encoder_of(goes_to)
    again = tuple(
        AssistantMessage(
            tuple(ToolCall(f"{p.id}b", p.name, p.arguments, p.signature) if type(p) is ToolCall else p for p in m.content)
        )
        if type(m) is AssistantMessage
        else m
        for m in history(made_by)
    )
    encoder.encode(ModelRequest(messages=(*history(made_by), *again)))
    assert left_out(encoder.omitted) == expected


# What has another place elsewhere, by the format it goes to.
LONG = "x" * 65
FOLDED: tuple[Message, ...] = (
    UserMessage("Read", (Document(b"a,b", "text/csv", "a.csv"),)),
    AssistantMessage((ToolCall("functions.look:0", "look", "{}"), ToolCall(LONG, "look", "{}"))),
    ToolMessage("functions.look:0", "look", "a cat", images=(Image(b"GIF8", "image/gif"), Image(b"GIF8", "image/gif"))),
    ToolMessage(LONG, "look", "a dog", images=(Image(b"GIF8", "image/gif"),)),
    SystemMessage("Be kind."),
    AssistantMessage((ToolCall("functions.look:0", "look", "{}"),)),
    ToolMessage("functions.look:0", "look", "a cow"),
)


@pytest.mark.parametrize(
    ("goes_to", "expected"),
    [
        ("chat", {"images": 3}),
        ("ollama", {"documents": 1, "images": 3}),
        ("responses", {"id": 1}),
        ("gemini", {"documents": 1, "images": 3, "system": 1}),
        ("gemini 3", {"documents": 1, "system": 1}),
        ("anthropic", {"id": 2, "system": 1}),
        ("anthropic elsewhere", {"id": 2, "system": 1}),
    ],
)
def test_what_is_folded_into_another_place_is_said(goes_to: str, expected: dict[str, int]) -> None:
    encoder = encoder_of(goes_to)
    encoder.encode(ModelRequest(messages=FOLDED))
    assert left_out(encoder.omitted) == expected
    encoder.encode(ModelRequest(messages=FOLDED[2:]))
    encoder.encode(ModelRequest(messages=FOLDED))
    assert encoder.omitted == ()
