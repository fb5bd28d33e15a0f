"""A conversation begun in one format goes on in another: what only its own server can read stays behind, the rest travels."""

from __future__ import annotations

import itertools
import json

import pytest

from treadle.values.messages import AssistantMessage, Image, Message, Opaque, Text, Thinking, ToolCall, ToolMessage, UserMessage
from treadle.values.request import ModelRequest
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import ANTHROPIC_API
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec

MODEL = "m"
CODECS: dict[str, Codec] = {
    "chat": ChatCodec(),
    "anthropic": AnthropicCodec(ANTHROPIC_API),
    "anthropic elsewhere": AnthropicCodec(),
    "responses": ResponsesCodec(),
    "gemini": GeminiCodec(MODEL),
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
    written = CODECS[goes_to].encoder(MODEL).encode(ModelRequest(messages=history(made_by))).decode()
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
    own = made_by == goes_to or (made_by, goes_to) == ("anthropic", "anthropic elsewhere")
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
    codec = CODECS[goes_to]
    encoder = codec.encoder(MODEL)
    for length in (1, 4, 6):
        request = ModelRequest(messages=messages[:length])
        assert encoder.encode(request) == codec.encoder(MODEL).encode(request)
