"""llama.cpp whose conversations share one context, and fill it: every one is broken off, though each would fit by itself.

The bytes are those of the real server (seen 2026-11-22: xllamacpp 2026.10.11549, `kv_unified`, two long answers at once).
"""

from __future__ import annotations

import json

import pytest

from treadle.errors import ContextOverflow, ModelError, Overloaded
from treadle.values.request import ModelRequest
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.responses import ResponsesCodec

SAID = {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}
FRAMES: dict[str, tuple[Codec, bytes]] = {
    "chat": (ChatCodec(), b"data: %s\n\n" % json.dumps({"error": SAID}).encode()),
    "responses": (ResponsesCodec(), b"data: %s\n\n" % json.dumps({"error": SAID}).encode()),
    "anthropic": (AnthropicCodec(), b"event: error\ndata: %s\n\n" % json.dumps(SAID, separators=(",", ":")).encode()),
}


def check(error: ModelError | None) -> None:
    assert type(error) is Overloaded, "it is retried, and the conversation is left as it is"
    assert error.retryable
    assert "run fewer at once" in error.hint


@pytest.mark.parametrize("format", FRAMES)
def test_inside_a_stream(format: str) -> None:
    codec, frame = FRAMES[format]
    decoder = codec.decoder(ModelRequest(messages=()))
    decoder.feed(frame)
    check(decoder.error)


@pytest.mark.parametrize("format", FRAMES)
def test_before_one(format: str) -> None:
    check(FRAMES[format][0].error(500, {}, json.dumps({"error": SAID}).encode(), address="http://h/v1"))


def test_behind_a_gateway() -> None:
    message = f"litellm.InternalServerError: InternalServerError: OpenAIException - {SAID['message']}"
    body = {"error": {"message": message, "type": None, "param": None, "code": "500"}}
    check(ChatCodec().error(500, {}, json.dumps(body).encode(), address="http://h/v1"))


def test_the_same_words_of_a_prompt_that_is_too_long() -> None:
    """LM Studio (lmstudio-ai/lmstudio-bug-tracker#2339): no 500 is named, and no waiting would help."""
    decoder = ChatCodec().decoder(ModelRequest(messages=()))
    decoder.feed(b'event: error\ndata: {"error":{"message":"Context size has been exceeded."}}\n\n')
    assert type(decoder.error) is ContextOverflow
    assert type(ChatCodec().error(400, {}, b'{"error":"Context size has been exceeded."}', address="http://h")) is ContextOverflow
