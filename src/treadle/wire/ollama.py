"""Ollama's own `/api/chat`: a line of JSON per piece of the reply. Sources: docs/protocols/ollama.md (no captures)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from treadle.errors import BadStream, ModelError, ModelNotFound, StreamTruncated, Unsupported
from treadle.values.request import Finish, ModelRequest, Reply, SchemaSupport
from treadle.values.usage import Usage
from treadle.wire.chat_errors import error_from_object, error_from_response
from treadle.wire.codec import bearer
from treadle.wire.decoder import ReplyDecoder
from treadle.wire.fold import ReplyFold
from treadle.wire.ollama_requests import OllamaEncoder
from treadle.wire.parts import call_id_prefix
from treadle.wire.sse import MAX_FRAME_BYTES
from treadle.wire.stream import MAX_BODY_BYTES, excerpt
from treadle.wire.untyped import count, mended, string

__all__ = ["FINISH", "OllamaCodec", "OllamaDecoder", "OllamaEncoder"]

FINISH: dict[str, Finish] = {"stop": "end", "length": "length"}
"""What a `done_reason` means. `load` and `unload` (the model was moved, nothing was asked) and others are `unknown`."""

_HINT = "Is this the address of an Ollama server, without /v1?"
_NO_MEMORY = re.compile(r"requires more system memory", re.IGNORECASE)  # reported, HTTP 500
_NO_CHAT = re.compile(r"does not support (chat|generate)", re.IGNORECASE)  # an embedding model, reported, HTTP 400


class _Function(Struct, gc=False):
    name: Any = None
    arguments: msgspec.Raw = msgspec.Raw()  # an object; kept as it is written


class _ToolCall(Struct, gc=False):
    id: Any = None
    function: _Function | None = None


class _Message(Struct, gc=False):
    content: Any = None
    thinking: Any = None
    tool_calls: list[_ToolCall] | None = None


class _Line(Struct, gc=False):
    model: Any = None
    message: _Message | None = None
    done: Any = None
    done_reason: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None
    status_code: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode


class OllamaDecoder(ReplyDecoder[ReplyFold]):
    """Decode one reply: feed chunks cut anywhere, then `close` once. No I/O. `error` is then one of:

    - `StreamTruncated`: no line said `done`.
    - `BadStream`: what came are no lines of JSON, or none of a chat.
    - any `ModelError`: the server sent an error.

    Memory is bounded by the longest line (16 MiB), the whole stream (64 MiB) and the reply itself.
    """

    def __init__(self, request: ModelRequest) -> None:
        super().__init__(ReplyFold(turn=request.turn, attempt=request.attempt, call_id_prefix=call_id_prefix(request)))
        self._tail: list[bytes] = []  # pieces of the unfinished last line
        self._tail_size = 0
        self._received = 0
        self._begun = False
        self._answers = 0  # lines that are of a chat
        self._calls = 0
        self._usage = Usage()
        self._model: str | None = None

    def _flush(self) -> None:
        self._fold.flush()

    def _close(self, clean: bool) -> None:
        with contextlib.suppress(BadStream):  # the last line was cut: a missing `done` says so
            self._line(b"".join(self._tail))

    def _judge(self) -> None:
        if self.finished:
            return
        if self._begun and not self._answers and not self._tail:
            raise BadStream("the server answered with JSON that is no chat", hint=_HINT)
        raise StreamTruncated(f"the stream ended {self._where}, without a line that says `done`")

    @property
    def reply(self) -> Reply:
        finish: Finish | None = None
        if self.finished:
            finish = FINISH.get(self._said or "", "unknown")
            if finish == "end" and self._fold.has_calls:  # the format has no reason of its own for calls
                finish = "tool_use"
        return Reply(message=self._fold.message(), finish=finish, finish_said=self._said, usage=self._usage, model=self._model)

    def _feed(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_BODY_BYTES:
            raise BadStream(f"the answer is larger than {MAX_BODY_BYTES:,} bytes", hint="The server is faulty or hostile.")
        if not self._begun:
            self._begin(data)
        first, *others = data.split(b"\n")
        self._hold(first)
        for piece in others:
            line = b"".join(self._tail)
            self._tail.clear()
            self._tail_size = 0
            self._line(line)
            if self.done:
                return
            self._hold(piece)

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._tail.append(piece)
            self._tail_size += len(piece)
            if self._tail_size > MAX_FRAME_BYTES:
                raise BadStream(
                    f"one line of the stream is larger than {MAX_FRAME_BYTES:,} bytes", hint="The server is faulty or hostile."
                )

    def _begin(self, data: bytes) -> None:
        start = data.lstrip(b" \t\r\n")
        if not start:
            return
        self._begun = True
        if start[:1] == b"<":
            raise BadStream("the server answered with a web page, not with a model's answer", server_said=excerpt(data))
        if start[:1] != b"{":
            raise BadStream("the server's answer is no JSON", hint=_HINT, server_said=excerpt(data))

    def _line(self, data: bytes) -> None:
        if not data.strip():
            return
        try:
            line = _decode_line(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            try:
                line = _decode_line(mended(data) or b"")
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                raise BadStream("a line of the stream is no piece of a chat", hint=_HINT, server_said=excerpt(data)) from None
        if line.error:
            said = line.status_code
            raise _as_kind(error_from_object(line.error, status=said if type(said) is int and 400 <= said < 600 else None))
        if line.message is None and line.done is None:
            return
        self._answers += 1
        if self._model is None and type(line.model) is str:
            self._model = line.model
        if line.message is not None:
            self._message(line.message)
        if line.done is True:
            self._said = string(line.done_reason)[:100] or "done"
            self._usage = Usage(input_tokens=count(line.prompt_eval_count), output_tokens=count(line.eval_count))
            self.finished = self.done = True
            self.progress += 1

    def _message(self, message: _Message) -> None:
        if type(message.thinking) is str and message.thinking:
            self._fold.thinking(message.thinking, "reasoning")
            self.progress += 1
        if type(message.content) is str and message.content:
            self._fold.content(message.content)
            self.progress += 1
        for call in message.tool_calls or ():
            function = call.function or _Function()
            arguments = bytes(function.arguments).decode("utf-8", "replace")
            if arguments[:1] == '"':
                arguments = msgspec.json.decode(arguments, type=str)
            name = string(function.name)
            if not (name or string(call.id) or arguments):
                continue
            # Calls come whole, so each is one of its own, whatever index it says.
            self._fold.call(self._calls, string(call.id), name, "{}" if arguments in ("", "null") else arguments)
            self._calls += 1
            self.progress += 1


def _as_kind(error: ModelError) -> ModelError:
    """The same error with what is special to Ollama."""
    said = error.server_said or ""
    kind, hint = type(error), ""
    if _NO_MEMORY.search(said):
        kind = Unsupported
        hint = (
            "The model does not fit: use a smaller one, or a smaller window: ContextPolicy(window_tokens=...), --window TOKENS."
        )
    elif _NO_CHAT.search(said):
        kind, hint = Unsupported, "Name a model that chats; this one is of another kind."
    elif kind is ModelNotFound:
        hint = "Does `ollama list` show the model? If not: `ollama pull` it. And is the address one without /v1?"
    if not hint:
        return error
    return kind(error.message, hint=hint, status=error.status, retry_after_s=error.retry_after_s, server_said=error.server_said)


class OllamaCodec:
    """Ollama's own chat over HTTP. Paths begin at the server's root, not at /v1.

    Args:
        num_ctx: The context window to load the model with, in tokens; None: the server decides (often 4,096). What a run plans
            with (`ModelRequest.window_tokens`) goes before it, and `extra_body={"options": {"num_ctx": ...}}` before both.
    """

    path = "/api/chat"
    continuable = False
    schema_support: SchemaSupport = "alone"  # with tools the model calls none (reported)

    def __init__(self, *, num_ctx: int | None = None) -> None:
        self._num_ctx = num_ctx

    def headers(self, key: str | None) -> dict[str, str]:
        return bearer(key)

    def encoder(self, model: str) -> OllamaEncoder:
        return OllamaEncoder(model, num_ctx=self._num_ctx)

    def decoder(self, request: ModelRequest) -> OllamaDecoder:
        return OllamaDecoder(request)

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
        return _as_kind(error_from_response(status, headers, body, address=address))
