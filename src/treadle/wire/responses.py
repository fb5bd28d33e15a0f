"""OpenAI Responses, streamed and without state on the server.

What servers really send, and what the documentation says: docs/protocols/responses.md. Streaming and whole answers go
through one decoder, because some servers send JSON where a stream was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from treadle.errors import BadStream, ModelError, StreamTruncated
from treadle.values.request import Finish, ModelRequest, Reply, SchemaSupport
from treadle.values.usage import Usage
from treadle.wire.chat_errors import error_from_response
from treadle.wire.codec import bearer
from treadle.wire.decoder import EventDecoder, is_cut
from treadle.wire.parts import call_id_prefix
from treadle.wire.responses_errors import error_in_stream
from treadle.wire.responses_items import ItemsFold
from treadle.wire.responses_requests import LLAMACPP_RESPONSES, ResponsesDialect, ResponsesEncoder
from treadle.wire.stream import excerpt
from treadle.wire.untyped import count, mended, object_, string

__all__ = [
    "LLAMACPP_RESPONSES",
    "ResponsesCodec",
    "ResponsesDecoder",
    "ResponsesDialect",
    "ResponsesEncoder",
]


_FINISH: dict[str, Finish] = {"completed": "end", "max_output_tokens": "length", "content_filter": "refused"}
_TERMINAL = {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}


class _Event(Struct, gc=False):
    type: Any = None
    delta: Any = None
    item_id: Any = None
    output_index: Any = None
    summary_index: Any = None
    item: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    error: Any = None
    model: Any = None


class _Response(Struct, gc=False):
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    usage: Any = None
    model: Any = None
    output: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class ResponsesDecoder(EventDecoder[ItemsFold]):
    """Decode one reply: feed chunks cut anywhere, then `close` once. No I/O. `error` is then one of:

    - `StreamTruncated`: no event said that the response is completed or incomplete. `[DONE]` alone does not.
    - `BadStream`: what came is neither an event stream nor a response.
    - any `ModelError`: the response failed, or the server sent an error.
    """

    def __init__(self, request: ModelRequest) -> None:
        super().__init__(ItemsFold(turn=request.turn, attempt=request.attempt, call_id_prefix=call_id_prefix(request)))
        self._max_tokens = request.options.max_tokens
        self._usage: dict[str, Any] = {}
        self._model: str | None = None

    def _judge(self) -> None:
        if not self.finished:
            raise StreamTruncated(f"the stream ended {self._where}, and nothing said that the response is complete")

    @property
    def reply(self) -> Reply:
        usage = _usage(self._usage)
        finish = self._finish(usage) if self.finished else None
        return Reply(message=self._fold.message(), finish=finish, finish_said=self._said, usage=usage, model=self._model)

    def _finish(self, usage: Usage) -> Finish:
        finish = _FINISH.get(self._said or "", "unknown")
        if finish != "end":
            return finish
        if self._fold.refused:
            return "refused"
        if is_cut(usage, self._max_tokens) or self._fold.has_cut_call:
            return "length"
        return "tool_use" if self._fold.has_calls else "end"

    def _frame(self, name: str, payload: bytes) -> None:
        if payload[:6] == b"[DONE]":
            self._end()
            return
        if not payload:
            return  # a ping
        event = _read_event(payload)
        if name == "error" or (event is not None and _is_error(event)):
            raise error_in_stream((event.error if event is not None else None) or _loose(payload))
        if event is None:
            raise BadStream("a frame of the stream is not a Responses event", server_said=excerpt(payload))
        kind = event.type if type(event.type) is str else name
        delta = event.delta
        if type(delta) is str and delta:
            self._delta(kind, event, delta)
        elif kind in _TERMINAL:
            self._terminal(kind, bytes(event.response))
        elif kind == "response.output_item.added":
            self._fold.added(bytes(event.item), event.output_index)
            self.progress += 1
        elif kind == "response.output_item.done":
            self._fold.done(bytes(event.item), event.output_index)
            self.progress += 1
        elif self._model is None and kind == "response.created":
            self._model = string(_read_response(bytes(event.response)).model) or string(event.model) or None

    def _delta(self, kind: str, event: _Event, delta: str) -> None:
        fold, id, index = self._fold, event.item_id, event.output_index
        self.progress += 1
        if kind == "response.output_text.delta":
            fold.text(id, index, delta)
        elif kind == "response.function_call_arguments.delta":
            fold.arguments(id, index, delta)
        elif kind == "response.reasoning_text.delta":
            fold.thinking(id, index, delta, way="text")
        elif kind == "response.reasoning_summary_text.delta":
            fold.thinking(id, index, delta, way="summary", part=event.summary_index)
        elif kind == "response.refusal.delta":
            fold.text(id, index, delta, refusal=True)

    def _terminal(self, kind: str, raw: bytes) -> None:
        response = _read_response(raw)
        status = string(response.status)
        if status in ("", "in_progress", "queued"):
            status = kind.removeprefix("response.")
        self._usage = object_(response.usage)
        self._model = string(response.model) or self._model
        with contextlib.suppress(msgspec.MsgspecError):
            self._fold.final([bytes(item) for item in _decode_items(bytes(response.output) or b"[]")])
        if status == "failed" or kind == "response.failed":
            raise error_in_stream(response.error or {"code": "server_error"})
        # vLLM says `incomplete` inside of an event `response.completed` (captured).
        reason = string(object_(response.incomplete_details).get("reason")) if status == "incomplete" else ""
        self._stop(reason or status)
        self.done = True

    def _whole(self, body: bytes) -> None:
        response = _read_response(body)
        status = string(response.status)
        if response.error and status != "failed":
            raise error_in_stream(response.error)
        if status not in ("completed", "incomplete", "failed", "cancelled"):
            raise BadStream("the server answered with JSON that is no finished response", server_said=excerpt(body))
        self._terminal(f"response.{status}", body)


def _is_error(event: _Event) -> bool:
    kind = string(event.type)
    return kind in ("error", "response.error") or (bool(event.error) and not kind.startswith("response."))


def _read_event(payload: bytes) -> _Event | None:
    """The event; None if it is none. Bytes and escapes that are no characters become U+FFFD."""
    try:
        return _decode_event(payload)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        try:
            return _decode_event(mended(payload) or b"")
        except (msgspec.MsgspecError, RecursionError):
            return None


def _read_response(raw: bytes) -> _Response:
    try:
        return _decode_response(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        try:
            return _decode_response(mended(raw) or b"{}")
        except (msgspec.MsgspecError, RecursionError):
            return _Response()


def _loose(payload: bytes) -> Any:
    """An error event's own fields (code, message, param), or its text."""
    try:
        return object_(msgspec.json.decode(mended(payload) or b"{}")) or excerpt(payload)
    except (msgspec.MsgspecError, RecursionError):
        return excerpt(payload)


def _usage(said: dict[str, Any]) -> Usage:
    read = object_(said.get("input_tokens_details"))
    return Usage(
        input_tokens=count(said.get("input_tokens")),
        output_tokens=count(said.get("output_tokens")),
        cached_input_tokens=count(read.get("cached_tokens")),
        cache_creation_tokens=count(read.get("cache_write_tokens")),
        reasoning_tokens=count(object_(said.get("output_tokens_details")).get("reasoning_tokens")),
    )


class ResponsesCodec:
    """Responses over HTTP."""

    path = "/responses"
    continuable = False

    def __init__(self, dialect: ResponsesDialect | None = None) -> None:
        self._dialect = dialect or ResponsesDialect()

    @property
    def schema_support(self) -> SchemaSupport:
        return self._dialect.schema_support

    def headers(self, key: str | None) -> dict[str, str]:
        return bearer(key)

    def encoder(self, model: str) -> ResponsesEncoder:
        return ResponsesEncoder(model, self._dialect)

    def decoder(self, request: ModelRequest) -> ResponsesDecoder:
        return ResponsesDecoder(request)

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
        return error_from_response(status, headers, body, address=address)
