"""Anthropic Messages, as Anthropic documents it and as llama.cpp, vLLM and LiteLLM speak it.

What each of them sends, and where it was seen: docs/protocols/anthropic.md. Streaming and whole answers go through one decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from treadle.errors import BadStream, ModelError, StreamTruncated
from treadle.values.request import Finish, ModelRequest, Reply, SchemaSupport
from treadle.values.usage import Usage
from treadle.wire.anthropic_blocks import BlockFold, loose
from treadle.wire.anthropic_errors import error_from_object, error_from_response
from treadle.wire.anthropic_requests import AnthropicDialect, AnthropicEncoder, max_tokens_sent
from treadle.wire.codec import bearer
from treadle.wire.decoder import EventDecoder, is_cut
from treadle.wire.parts import call_id_prefix
from treadle.wire.stream import AnswerReader, excerpt
from treadle.wire.untyped import count, object_, string

__all__ = ["AnthropicCodec", "AnthropicDecoder"]


_FINISH: dict[str, Finish] = {
    # The first three and max_tokens are captured, the others documented.
    "end_turn": "end",
    "stop_sequence": "end",
    "tool_use": "tool_use",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
    "pause_turn": "pause",
}

_WHOLE = ("end_turn", "tool_use")  # what LiteLLM says of a turn that was cut, too

_HINT = "Is this the address of an API in Anthropic's format (usually ending in /v1)?"


class _Delta(Struct, gc=False):
    type: Any = None
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    signature: Any = None
    stop_reason: Any = None


class _Message(Struct, gc=False):
    model: Any = None
    usage: Any = None


class _Event(Struct, gc=False):
    type: Any = None
    index: Any = None
    delta: _Delta | None = None
    content_block: msgspec.Raw = msgspec.Raw()
    message: _Message | None = None
    usage: Any = None
    error: Any = None


class _Whole(Struct, gc=False):
    """A message that was not streamed."""

    content: list[msgspec.Raw] = []
    stop_reason: Any = None
    usage: Any = None
    model: Any = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


class AnthropicDecoder(EventDecoder[BlockFold]):
    """Decode one reply: feed chunks cut anywhere, then `close` once. No I/O. `error` is then one of:

    - `StreamTruncated`: no stop reason arrived, or more of the answer followed it and then the stream broke off.
    - `BadStream`: what came is neither an event stream nor a message.
    - any `ModelError`: the server sent an error event.

    Args:
        max_tokens: What the request was sent with.
    """

    def __init__(self, request: ModelRequest, *, max_tokens: int | None = None) -> None:
        fold = BlockFold(turn=request.turn, attempt=request.attempt, call_id_prefix=call_id_prefix(request))
        super().__init__(fold, AnswerReader(hint=_HINT))
        self._max_tokens = max_tokens
        self._usage: dict[str, Any] = {}
        self._model: str | None = None

    def _judge(self) -> None:
        if not self.finished:
            raise StreamTruncated(f"the stream ended {self._where}, without a stop reason")
        if self._fold.empty and self._said == "tool_use":
            raise BadStream(
                "the server says that the model called tools, but sent no call",
                hint="Its tool-call parser may not fit the model: check the server's tool-parser setting.",
            )

    @property
    def reply(self) -> Reply:
        usage = _usage(self._usage)
        finish = None
        if self.finished:
            finish = _FINISH.get(self._said or "", "unknown")
            # Calls in a turn that ended or paused are to be answered all the same: without their results nothing may be sent.
            # A claim of calls without one is no reason.
            if self._fold.has_calls and finish in ("end", "pause"):
                finish = "tool_use"
            elif finish == "tool_use" and not self._fold.has_calls:
                finish = "unknown"
            if self._said in _WHOLE and is_cut(usage, self._max_tokens):
                finish = "length"
        return Reply(
            message=self._fold.message(),
            finish=finish,
            finish_said=self._said,
            usage=usage,
            model=self._model,
        )

    def _frame(self, name: str, payload: bytes) -> None:
        if payload[:6] == b"[DONE]":  # not of this format; from gateways
            self._end()
            return
        if not payload:
            return
        try:
            event = _decode_event(payload)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            payload, event = _odd_event(payload)
        if event is None and name != "error":
            raise BadStream("a frame of the stream is not an event", hint=_HINT, server_said=excerpt(payload))
        kind = event.type if event is not None and type(event.type) is str else name
        if kind == "error" or name == "error" or (event is not None and event.error):
            raise error_from_object(event.error if event is not None and event.error else excerpt(payload))
        assert event is not None
        before = self.progress
        if kind == "content_block_delta":
            self._delta(_index(event.index), event.delta or _Delta(), payload)
        elif kind == "content_block_start":
            if self._fold.begin(_index(event.index), bytes(event.content_block)):
                self.progress += 1
        elif kind == "content_block_stop":
            self._fold.end(_index(event.index))
        elif kind == "message_start":
            self._start(event.message or _Message())
        elif kind == "message_stop":
            self._end()
        self._note_more(before)
        if kind == "message_delta":
            self._message_delta(event)

    def _delta(self, index: int | None, delta: _Delta, payload: bytes) -> None:
        kind = delta.type
        fold = self._fold
        if kind == "text_delta" and type(delta.text) is str:
            fold.text(index, delta.text)
            self.progress += delta.text != ""
        elif kind == "input_json_delta" and type(delta.partial_json) is str:
            fold.arguments(index, delta.partial_json)
            self.progress += delta.partial_json != ""
        elif kind == "thinking_delta" and type(delta.thinking) is str:
            fold.thinking(index, delta.thinking)
            self.progress += delta.thinking != ""
        elif kind == "signature_delta" and type(delta.signature) is str:
            fold.sign(index, delta.signature)
            self.progress += delta.signature != ""
        elif fold.other(index, object_(object_(loose(payload)[1]).get("delta"))):
            self.progress += 1

    def _start(self, message: _Message) -> None:
        if type(message.model) is str:
            self._model = message.model
        usage = {name: value for name, value in object_(message.usage).items() if name != "output_tokens"}  # not counted yet
        if any(usage.values()):  # LiteLLM begins a stream with nothing but zeros, and counts at its end (captured)
            self._note_usage(usage)

    def _message_delta(self, event: _Event) -> None:
        self._note_usage(object_(event.usage))
        said = event.delta.stop_reason if event.delta is not None else None
        if said:
            self._stop(said)

    def _stop(self, said: object) -> None:
        self._fold.complete()
        super()._stop(said)

    def _whole(self, body: bytes) -> None:
        try:
            message = msgspec.json.decode(body, type=_Whole)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            message = _Whole()
        if message.error:
            raise error_from_object(message.error)
        for index, block in enumerate(message.content):
            self.progress += self._fold.begin(index, bytes(block))
        self._model = message.model if type(message.model) is str else None
        self._note_usage(object_(message.usage))
        if not message.stop_reason:
            raise BadStream("the server answered with JSON that is not a finished message", hint=_HINT, server_said=excerpt(body))
        self._stop(message.stop_reason)

    def _note_usage(self, usage: dict[str, Any]) -> None:
        """Counts are running totals: a later one replaces an earlier one, and what is left out stays."""
        self._usage.update({name: value for name, value in usage.items() if value is not None})


def _index(said: Any) -> int | None:
    return said if type(said) is int else None


def _odd_event(payload: bytes) -> tuple[bytes, _Event | None]:
    """An event that is not quite what it should be. One of a type we do not know may have any fields. None if it is no event."""
    text, value = loose(payload)
    mended = text.encode()
    try:
        return mended, _decode_event(mended)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    fields = object_(value)
    kind = string(fields.get("type"))
    known = not kind or kind.startswith(("message_", "content_block_"))
    return mended, None if known else _Event(type=kind, error=fields.get("error"))


def _usage(said: dict[str, Any]) -> Usage:
    """The format counts the prompt in three parts that do not overlap."""
    uncached = count(said.get("input_tokens"))
    read = count(said.get("cache_read_input_tokens"))
    created = count(said.get("cache_creation_input_tokens"))
    total = None if uncached is None else uncached + (read or 0) + (created or 0)
    return Usage(
        input_tokens=total,
        output_tokens=count(said.get("output_tokens")),
        cached_input_tokens=read,
        cache_creation_tokens=created,
        reasoning_tokens=count(object_(said.get("output_tokens_details")).get("thinking_tokens")),
    )


class AnthropicCodec:
    """Anthropic Messages over HTTP."""

    path = "/messages"
    continuable = False  # a partial last answer is refused by newer models (documented), and not known to work elsewhere

    def __init__(self, dialect: AnthropicDialect | None = None) -> None:
        self._dialect = dialect or AnthropicDialect()

    @property
    def schema_support(self) -> SchemaSupport:
        return self._dialect.schema_support

    def headers(self, key: str | None) -> dict[str, str]:
        named = {"x-api-key": key} | (bearer(key) if self._dialect.bearer else {}) if key else {}
        return {"anthropic-version": "2023-06-01", **named}

    def encoder(self, model: str) -> AnthropicEncoder:
        return AnthropicEncoder(model, self._dialect)

    def decoder(self, request: ModelRequest) -> AnthropicDecoder:
        return AnthropicDecoder(request, max_tokens=max_tokens_sent(request, self._dialect))

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
        return error_from_response(status, headers, body, address=address)
