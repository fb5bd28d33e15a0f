"""OpenAI Chat Completions, and everything that calls itself compatible with it.

What servers really send, and where it was seen: docs/protocols/chat.md. Streaming and whole answers go through one
decoder, because some servers send JSON where a stream was asked for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from treadle.errors import BadStream, ModelError, StreamTruncated
from treadle.values.events import Delta
from treadle.values.request import ModelRequest, Reply, SchemaSupport
from treadle.values.usage import Usage
from treadle.wire.chat_errors import error_from_object, error_from_response
from treadle.wire.chat_requests import ChatEncoder
from treadle.wire.codec import bearer
from treadle.wire.dialects import FINISH, Dialect
from treadle.wire.fold import ReplyFold
from treadle.wire.stream import AnswerReader, excerpt
from treadle.wire.untyped import array, count, object_, string

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


class ChatDecoder:
    """Decode one reply: feed chunks cut anywhere, then `close` once. No I/O. `error` is then one of:

    - `StreamTruncated`: no finish reason arrived, or more of the answer followed it and then the stream broke off.
      `[DONE]` alone is no reason.
    - `BadStream`: what came is neither an event stream nor a completion.
    - any `ModelError`: the server sent an error object.

    Memory is bounded by the longest frame (16 MiB), the whole stream (64 MiB) and the reply itself.
    """

    def __init__(self, request: ModelRequest) -> None:
        self.progress = 0
        self.finished = False
        self.done = False
        self.error: ModelError | None = None
        self._fold = ReplyFold(
            turn=request.turn, attempt=request.attempt, call_id_prefix=f"call_{request.run_id[:8]}_{request.turn}_"
        )
        if request.continues is not None:
            self._fold.take_tags_for_text()  # the middle of an answer is no place for reasoning to begin
        self._answer = AnswerReader()
        self._finish_said: str | None = None
        self._wavered = False  # the answer went on after a reason: only a proper end makes it whole now
        self._called_tools = False
        self._refused = False
        self._prompt_read = 0  # tokens of the prompt that the server has read, where it says so
        self._usage: dict[str, Any] = {}
        self._model: str | None = None

    @property
    def began(self) -> bool:
        return not self._fold.empty or self.finished

    def feed(self, data: bytes) -> list[Delta]:
        if self.done:
            return []
        try:
            self._feed(data)
        except ModelError as error:
            self._fail(error)
        return self._fold.take()

    def close(self, *, clean: bool = True) -> list[Delta]:
        if not self.done:
            try:
                self._close(clean)
            except ModelError as error:
                self._fail(error)
        self._fold.flush()
        if self.error is None and not self.finished:
            what = "after its text began" if not self._fold.empty else "after nothing at all"
            self.error = StreamTruncated(f"the stream ended {what}, without a finish reason")
        if self.error is None and self._fold.empty and FINISH.get(self._finish_said or "") == "tool_use":
            self._fail(
                BadStream(
                    "the server says that the model called tools, but sent no call",
                    hint="Its tool-call parser may not fit the model: check the server's tool-parser setting.",
                )
            )
        return self._fold.take()

    @property
    def reply(self) -> Reply:
        said = self._finish_said
        finish = None
        if self.finished:
            finish = "refused" if self._refused else FINISH.get(said or "", "unknown")
            # Some servers say `stop` with calls (a whole turn all the same); a claim of calls without one is no reason.
            if finish in ("end", "tool_use"):
                finish = "tool_use" if self._fold.has_calls else "end" if finish == "end" else "unknown"
        return Reply(message=self._fold.message(), finish=finish, finish_said=said, usage=_usage(self._usage), model=self._model)

    def _fail(self, error: ModelError) -> None:
        self.error = error
        self.done = True
        self.finished = False

    def _feed(self, data: bytes) -> None:
        for event, payload in self._answer.feed(data):
            self._frame(event, payload)
            if self.done:
                return

    def _close(self, clean: bool) -> None:
        if (whole := self._answer.json) is not None:
            self._whole(whole)
        has_lines = self._answer.has_lines
        for event, payload in self._answer.close():
            with contextlib.suppress(BadStream):  # the last frame was cut: a missing finish reason says so
                self._frame(event, payload)
        if has_lines and self._answer.opening and not self._answer.frames:
            raise BadStream("the answer is not an event stream: it holds no event at all")
        if self._wavered and clean:
            self.finished = self._finish_said is not None

    def _frame(self, event: str, payload: bytes) -> None:
        if payload[:6] == b"[DONE]":
            self.done = True
            self.finished = self._finish_said is not None
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
            if self._finish_said is not None and self.progress != before:
                self._wavered = True
                self.finished = False
            if choice.finish_reason:
                self._finish_said = str(choice.finish_reason)[:100]
                self.finished = not self._wavered
                self.progress += 1

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
        body = body.lstrip(b"\xef\xbb\xbf")
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
        except RecursionError:
            raise BadStream("the server answered with JSON that is nested too deeply") from None
        except (msgspec.MsgspecError, UnicodeError):
            raise StreamTruncated("the answer is JSON that breaks off in the middle, or more than one JSON value") from None
        self._frame("", body)
        if not self.finished:
            raise BadStream("the server answered with JSON that is not a chat completion", server_said=excerpt(body))

    def _note_usage(self, usage: Any) -> None:
        self._usage.update(object_(usage))


def _decode_odd_chunk(payload: bytes) -> _Chunk | None:
    """A chunk that is not quite JSON: bytes that are no UTF-8, half a surrogate pair, NaN in a field that nobody reads.

    What cannot be read becomes U+FFFD, as the event-stream standard has it. None if it is no chunk at all.
    """
    try:
        value = json.loads(payload.decode("utf-8", "replace"), parse_constant=lambda _: None)
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        return _decode_chunk(text.decode("utf-16", "replace"))
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None


def _usage(said: dict[str, Any]) -> Usage:
    cached = count(object_(said.get("prompt_tokens_details")).get("cached_tokens"))
    return Usage(
        input_tokens=count(said.get("prompt_tokens")),
        output_tokens=count(said.get("completion_tokens")),
        cached_input_tokens=cached if cached is not None else count(said.get("prompt_cache_hit_tokens")),  # DeepSeek
        reasoning_tokens=count(object_(said.get("completion_tokens_details")).get("reasoning_tokens")),
    )


class ChatCodec:
    """Chat Completions over HTTP."""

    path = "/chat/completions"

    def __init__(self, dialect: Dialect | None = None) -> None:
        self._dialect = dialect or Dialect()

    schema_support: SchemaSupport = "none"

    @property
    def continuable(self) -> bool:
        return self._dialect.continues is not None

    def headers(self, key: str | None) -> dict[str, str]:
        return bearer(key)

    def encoder(self, model: str) -> ChatEncoder:
        return ChatEncoder(model, self._dialect)

    def decoder(self, request: ModelRequest) -> ChatDecoder:
        return ChatDecoder(request)

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
        return error_from_response(status, headers, body, address=address)
