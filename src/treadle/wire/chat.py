"""OpenAI Chat Completions, and everything that calls itself compatible with it.

What servers really send, and where it was seen: docs/protocols/chat.md. Streaming and whole answers go through one
decoder, because some servers send JSON where a stream was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from treadle.errors import BadStream, ModelError, Overloaded, ServerError, StreamTruncated
from treadle.values.request import ModelRequest, Reply, SchemaSupport
from treadle.values.usage import Usage
from treadle.wire.chat_errors import error_from_object, error_from_response
from treadle.wire.chat_requests import ChatEncoder
from treadle.wire.codec import bearer
from treadle.wire.decoder import EventDecoder
from treadle.wire.dialects import FINISH, Dialect
from treadle.wire.fold import ReplyFold
from treadle.wire.parts import call_id_prefix
from treadle.wire.stream import excerpt
from treadle.wire.untyped import array, count, mended, object_, string

__all__ = ["ChatCodec", "ChatDecoder", "ChatEncoder"]


# Reading. Fields that servers fill with different types are Any and looked at by hand; the rest of a chunk is skipped
# unparsed, which is what makes a token cheap.


class _Function(Struct, gc=False):
    name: Any = None
    arguments: msgspec.Raw = msgspec.Raw()  # text in JSON as a rule, an object from some; kept as it is written


class _ToolCall(Struct, gc=False):
    index: Any = None
    id: Any = None
    function: _Function | None = None


class _Delta(Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(Struct, gc=False):
    index: Any = None
    delta: _Delta | str | None = None
    message: _Delta | None = None
    finish_reason: Any = None
    usage: Any = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice | None] | None = None
    usage: Any = None
    error: Any = None
    model: Any = None
    prompt_progress: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.Encoder().encode

# A turn that ends so was broken off by the server: its text is no answer, and the next attempt may bring one.
_FAILED: dict[str, type[ModelError]] = {
    "error": ServerError,  # Mistral, OpenRouter (documented)
    "insufficient_system_resource": Overloaded,  # DeepSeek (documented)
}


class ChatDecoder(EventDecoder[ReplyFold]):
    """Decode one reply: feed chunks cut anywhere, then `close` once. No I/O. `error` is then one of:

    - `StreamTruncated`: no finish reason arrived, or more of the answer followed it and then the stream broke off.
      `[DONE]` alone is no reason.
    - `BadStream`: what came is neither an event stream nor a completion.
    - `ServerError`, `Overloaded`: the finish reason says that the server failed.
    - any `ModelError`: the server sent an error object.
    """

    def __init__(self, request: ModelRequest) -> None:
        super().__init__(ReplyFold(turn=request.turn, attempt=request.attempt, call_id_prefix=call_id_prefix(request)))
        if request.continues is not None:
            self._fold.take_tags_for_text()  # the middle of an answer is no place for reasoning to begin
        self._called_tools = False
        self._refused = False
        self._prompt_read = 0  # tokens of the prompt that the server has read, where it says so
        self._usage: dict[str, Any] = {}
        self._model: str | None = None

    def _flush(self) -> None:
        self._fold.flush()

    def _judge(self) -> None:
        if not self.finished:
            raise StreamTruncated(f"the stream ended {self._where}, without a finish reason")
        if (failed := _FAILED.get(self._said or "")) is not None:
            raise failed(f"the server broke off its answer: its finish reason is `{self._said}`")
        if self._fold.empty and FINISH.get(self._said or "") == "tool_use":
            raise BadStream(
                "the server says that the model called tools, but sent no call",
                hint="Its tool-call parser may not fit the model: check the server's tool-parser setting.",
            )

    @property
    def reply(self) -> Reply:
        said = self._said
        finish = None
        if self.finished:
            finish = "refused" if self._refused else FINISH.get(said or "", "unknown")
            # Some servers say `stop` with calls (a whole turn all the same); a claim of calls without one is no reason.
            if finish in ("end", "tool_use"):
                finish = "tool_use" if self._fold.has_calls else "end" if finish == "end" else "unknown"
        return Reply(message=self._fold.message(), finish=finish, finish_said=said, usage=_usage(self._usage), model=self._model)

    def _frame(self, event: str, payload: bytes) -> None:
        if payload[:6] == b"[DONE]":
            self._end()
            return
        if not payload:
            return  # a ping
        try:
            chunk = _decode_chunk(payload)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            chunk = _decode_odd_chunk(payload)
        if event == "error" or (chunk is not None and chunk.error):
            raise error_from_object(chunk.error if chunk is not None and chunk.error else excerpt(payload))
        if chunk is None:
            raise BadStream("a frame of the stream is not a chat completion chunk", server_said=excerpt(payload))
        if chunk.usage:
            self._note_usage(chunk.usage)
        if chunk.prompt_progress:
            read = count(object_(chunk.prompt_progress).get("processed")) or 0
            if read > self._prompt_read:
                self._prompt_read = read
                self.progress += 1
        if self._model is None and type(chunk.model) is str:
            self._model = chunk.model
        for choice in chunk.choices or ():
            if choice is None or (choice.index and choice.index != "0"):
                continue  # n > 1 was never asked for
            before = self.progress
            delta = choice.delta or choice.message
            if type(delta) is _Delta:
                # The hot path is one token of text.
                content = delta.content
                if type(content) is str and content and delta.tool_calls is None and delta.function_call is None:
                    if type(delta.reasoning_content) is str or type(delta.reasoning) is str:
                        self._thinking(delta)
                    self._fold.content(content)
                    self.progress += 1
                    if delta.refusal:
                        self._refusal(delta.refusal)
                else:
                    self._delta(delta)
            if choice.usage:
                self._note_usage(choice.usage)
            self._note_more(before)
            if choice.finish_reason:
                self._stop(choice.finish_reason)

    def _delta(self, delta: _Delta) -> None:
        self._thinking(delta)
        if type(delta.content) is str:
            if delta.content:
                self._fold.content(delta.content)
                self.progress += 1
        else:
            for part in array(delta.content):  # Mistral's content parts
                self._part({"text": part} if type(part) is str else object_(part))
        self._refusal(delta.refusal)
        for call in delta.tool_calls or ():
            self._called_tools = True
            self._call(call.index, call.id, call.function or _Function())
        if delta.function_call is not None and not self._called_tools:  # llama-cpp-python sends both forms of one call
            self._call(None, None, delta.function_call)

    def _refusal(self, refusal: Any) -> None:
        if type(refusal) is str and refusal:
            self._refused = True
            self._fold.flush()
            self._fold.text(refusal)
            self.progress += 1

    def _thinking(self, delta: _Delta) -> None:
        # vLLM sends `reasoning`, llama.cpp `reasoning_content`; a gateway that sends both says the same thing twice.
        for source, piece in (("reasoning_content", delta.reasoning_content), ("reasoning", delta.reasoning)):
            if type(piece) is str and piece:
                self._fold.thinking(piece, source)
                self.progress += 1
                return

    def _part(self, part: dict[str, Any]) -> None:
        if text := string(part.get("text")):
            self._fold.content(text)
            self.progress += 1
        for inner in array(part.get("thinking")):
            if piece := string(object_(inner).get("text")):
                self._fold.thinking(piece, "reasoning_content")
                self.progress += 1

    def _call(self, index: Any, id: Any, function: _Function) -> None:
        arguments = bytes(function.arguments).decode("utf-8", "replace")
        if arguments[:1] == '"':
            arguments = msgspec.json.decode(arguments, type=str)
        elif arguments == "null":
            arguments = ""
        name = string(function.name)
        if not (id or name or arguments):
            return
        if type(index) is str and index.isdecimal():
            index = int(index)
        self._fold.call(index, str(id) if id else "", name, arguments)
        self.progress += 1

    def _whole(self, body: bytes) -> None:
        self._frame("", body)
        if not self.finished:
            raise BadStream("the server answered with JSON that is not a chat completion", server_said=excerpt(body))

    def _note_usage(self, usage: Any) -> None:
        self._usage.update(object_(usage))


def _decode_odd_chunk(payload: bytes) -> _Chunk | None:
    """A chunk that is not quite JSON; None if it is no chunk at all."""
    try:
        return _decode_chunk(mended(payload) or b"")
    except (msgspec.MsgspecError, RecursionError):
        return None


def _usage(said: dict[str, Any]) -> Usage:
    read = object_(said.get("prompt_tokens_details"))
    # OpenAI and most others; DeepSeek; Kimi, and servers of its models (documented).
    places = (read.get("cached_tokens"), said.get("prompt_cache_hit_tokens"), said.get("cached_tokens"))
    return Usage(
        input_tokens=count(said.get("prompt_tokens")),
        output_tokens=count(said.get("completion_tokens")),
        cached_input_tokens=next((tokens for place in places if (tokens := count(place)) is not None), None),
        cache_creation_tokens=count(read.get("cache_write_tokens")),  # OpenRouter (documented)
        reasoning_tokens=count(object_(said.get("completion_tokens_details")).get("reasoning_tokens")),
    )


class ChatCodec:
    """Chat Completions over HTTP."""

    path = "/chat/completions"

    def __init__(self, dialect: Dialect | None = None) -> None:
        self._dialect = dialect or Dialect()

    @property
    def continuable(self) -> bool:
        return self._dialect.continues is not None

    @property
    def schema_support(self) -> SchemaSupport:
        return self._dialect.schema_support

    def headers(self, key: str | None) -> dict[str, str]:
        return bearer(key)

    def encoder(self, model: str) -> ChatEncoder:
        return ChatEncoder(model, self._dialect)

    def decoder(self, request: ModelRequest) -> ChatDecoder:
        return ChatDecoder(request)

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
        return error_from_response(status, headers, body, address=address)
