"""Gemini's `streamGenerateContent`. What it sends and where that is said: docs/protocols/gemini.md (no captures).

Each event is a whole `GenerateContentResponse`; the parts of all of them, in order, are the reply. A whole answer, and the
array that comes where `alt=sse` got lost, go through the same decoder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from treadle.errors import BadStream, ModelError, ServerError, StreamTruncated, UsageError
from treadle.values.events import Delta
from treadle.values.request import Finish, ModelRequest, Reply, SchemaSupport
from treadle.values.usage import Usage
from treadle.wire.gemini_errors import gemini_error_from_object, gemini_error_from_response
from treadle.wire.gemini_fold import GeminiFold
from treadle.wire.gemini_requests import GeminiEncoder
from treadle.wire.stream import AnswerReader, excerpt
from treadle.wire.untyped import count, object_, string

__all__ = ["FINISH", "GeminiCodec", "GeminiDecoder", "GeminiEncoder"]

FINISH: dict[str, Finish] = {
    "STOP": "end",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",  # going on takes a token of its own, which we do not send
    "SAFETY": "refused",
    "RECITATION": "refused",
    "LANGUAGE": "refused",
    "BLOCKLIST": "refused",
    "PROHIBITED_CONTENT": "refused",
    "SPII": "refused",
    "ESCALATION": "refused",
    "MODEL_ARMOR": "refused",
    "IMAGE_SAFETY": "refused",
    "IMAGE_PROHIBITED_CONTENT": "refused",
    "IMAGE_RECITATION": "refused",
}
"""What a `finishReason` means; all documented. Anything else (OTHER, TOO_MANY_TOOL_CALLS, ...) is `unknown`."""

_UNSPECIFIED = {"", "FINISH_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED"}  # protobuf's zero value: nothing was said
_BROKEN = {"MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL"}


class _Call(Struct, gc=False):
    id: Any = None
    name: Any = None
    args: msgspec.Raw = msgspec.Raw()  # an object; kept as it is written


class _Part(Struct, gc=False, rename="camel"):
    text: Any = None
    thought: Any = None
    thought_signature: Any = None
    function_call: _Call | None = None


class _Content(Struct, gc=False):
    parts: list[msgspec.Raw] | None = None


class _Candidate(Struct, gc=False, rename="camel"):
    index: Any = None
    content: _Content | None = None
    finish_reason: Any = None
    finish_message: Any = None


class _Chunk(Struct, gc=False, rename="camel"):
    candidates: list[_Candidate | None] | None = None
    prompt_feedback: Any = None
    usage_metadata: Any = None
    model_version: Any = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_part = msgspec.json.Decoder(_Part).decode


class GeminiDecoder:
    """Decode one reply: feed chunks cut anywhere, then `close` once. No I/O. `error` is then one of:

    - `StreamTruncated`: neither a `finishReason` nor a `blockReason` arrived, or more of the answer followed it and then
      the stream broke off.
    - `BadStream`: what came is neither an event stream nor an answer.
    - `ServerError`: the model wrote a call that the server could not parse, and nothing else.
    - any `ModelError`: the server sent an error object.

    Memory is bounded by the longest frame (16 MiB), the whole stream (64 MiB) and the reply itself.
    """

    def __init__(self, request: ModelRequest) -> None:
        self.progress = 0
        self.finished = False
        self.done = False
        self.error: ModelError | None = None
        prefix = f"call_{request.run_id[:8]}_{request.turn}_"
        self._fold = GeminiFold(turn=request.turn, attempt=request.attempt, call_id_prefix=prefix)
        self._answer = AnswerReader(json_starts=b"{[")
        self._answers = 0  # frames that held a candidate
        self._finish_said: str | None = None
        self._finish_message: str | None = None
        self._blocked = False
        self._wavered = False  # the answer went on after a reason: only a proper end makes it whole now
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
        if self.error is None and not self.finished:
            what = "after nothing at all" if self._fold.empty else "after its answer began"
            self.error = StreamTruncated(f"the stream ended {what}, without a finish reason")
        if self.error is None and self._finish_said in _BROKEN and self._fold.only_thoughts:
            self._fail(
                ServerError(
                    "the model wrote a tool call that its server could not parse",
                    hint="Run again: this passes as a rule. If it stays, simplify the tools' schemas.",
                    server_said=self._finish_message,
                )
            )
        return self._fold.take()

    @property
    def reply(self) -> Reply:
        said = self._finish_said
        finish: Finish | None = None
        if self.finished:
            finish = "refused" if self._blocked else FINISH.get(said or "", "unknown")
            if finish == "end" and self._fold.has_calls:  # the format has no reason of its own for calls
                finish = "tool_use"
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
        if payload[:6] == b"[DONE]":  # not Gemini's, but a gateway's
            self.done = True
            self.finished = self._finish_said is not None
            return
        if not payload:
            return
        try:
            self._chunk(_decode_chunk(payload), event, payload)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            try:
                self._chunk(_decode_chunk(_mended(payload)), event, payload)
            except (ValueError, RecursionError, msgspec.MsgspecError):
                if event == "error":
                    raise gemini_error_from_object(excerpt(payload)) from None
                raise BadStream("a frame of the stream is no GenerateContentResponse", server_said=excerpt(payload)) from None

    def _chunk(self, chunk: _Chunk, event: str, payload: bytes) -> None:
        # Parts are read before anything is noted, so that a chunk that cannot be read has left no trace.
        read = [(c, _parts(c)) for c in chunk.candidates or () if c is not None and not c.index]  # others: never asked for
        if event == "error" or chunk.error:
            raise gemini_error_from_object(chunk.error or excerpt(payload))
        self._usage.update(object_(chunk.usage_metadata))
        if self._model is None and type(chunk.model_version) is str:
            self._model = chunk.model_version
        for candidate, parts in read:
            self._answers += 1
            before = self.progress
            for raw, part in parts:
                self._part(raw, part)
            if self._finish_said is not None and self.progress != before:
                self._wavered = True
                self.finished = False
            if candidate.finish_reason and (said := str(candidate.finish_reason)) not in _UNSPECIFIED:
                self._finish(said)
                self._finish_message = string(candidate.finish_message) or None
        reason = string(object_(chunk.prompt_feedback).get("blockReason"))
        if reason not in _UNSPECIFIED:
            self._blocked = True
            self._finish(reason)

    def _finish(self, said: str) -> None:
        self._finish_said = said[:100]
        self.finished = not self._wavered
        self.progress += 1

    def _part(self, raw: bytes, part: _Part) -> None:
        signature = part.thought_signature if type(part.thought_signature) is str and part.thought_signature else None
        if part.function_call is not None:
            call = part.function_call
            arguments = bytes(call.args).decode("utf-8", "replace")
            if arguments in ("", "null"):  # a call without arguments may leave them out
                arguments = "{}"
            self._fold.call(string(call.id), string(call.name), arguments, signature)
        elif type(part.text) is str:
            text = part.text
            if not text and signature is None:
                return
            if part.thought is True:
                self._fold.thought(text, signature)
            elif signature is not None:
                self._fold.signed_text(text, raw)
            else:
                self._fold.text(text)
        elif raw != b"{}":
            self._fold.opaque(raw)
        else:
            return
        self.progress += 1

    def _whole(self, body: bytes) -> None:
        body = body.strip(b" \t\r\n\xef\xbb\xbf")
        try:
            raw = msgspec.json.decode(body, type=msgspec.Raw)
            frames = msgspec.json.decode(raw, type=list[msgspec.Raw]) if body[:1] == b"[" else [raw]
        except RecursionError:
            raise BadStream("the server answered with JSON that is nested too deeply") from None
        except (msgspec.MsgspecError, UnicodeError):
            raise StreamTruncated("the answer is JSON that breaks off in the middle, or more than one JSON value") from None
        for frame in frames:
            self._frame("", bytes(frame))
        if not self._answers and not self.finished:
            raise BadStream("the server answered with JSON that is no GenerateContentResponse", server_said=excerpt(body))


def _parts(candidate: _Candidate) -> list[tuple[bytes, _Part]]:
    raws = (candidate.content.parts if candidate.content is not None else None) or ()
    return [(bytes(raw), _decode_part(raw)) for raw in raws if bytes(raw) != b"null"]


def _mended(payload: bytes) -> bytes:
    """JSON that is not quite JSON (bytes that are no UTF-8, half a surrogate pair, NaN) with U+FFFD and null in its place.

    Raises:
        ValueError: It is no JSON at all.
    """
    value = json.loads(payload.decode("utf-8", "replace"), parse_constant=lambda _: None)
    return json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _usage(said: dict[str, Any]) -> Usage:
    """Counts that are 0 are left out by the server; what can be told from the total is."""
    prompt, tools = count(said.get("promptTokenCount")), count(said.get("toolUsePromptTokenCount"))
    answer, thoughts = count(said.get("candidatesTokenCount")), count(said.get("thoughtsTokenCount"))
    total = count(said.get("totalTokenCount"))
    read = None if prompt is None else prompt + (tools or 0)
    written = None if answer is None else answer + (thoughts or 0)
    if written is None and read is not None and total is not None and total >= read:
        written = total - read or None
    return Usage(
        input_tokens=read,
        output_tokens=written,
        cached_input_tokens=count(said.get("cachedContentTokenCount")),
        reasoning_tokens=thoughts,
    )


class GeminiCodec:
    """The Gemini API over HTTP. One codec speaks to one model, since the model is in the path.

    Args:
        model: As `gemini-2.5-flash`, or with its collection: `models/...`, `tunedModels/...`.
    """

    continuable = False
    schema_support: SchemaSupport = "none"

    def __init__(self, model: str) -> None:
        self._model = model
        name = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
        self.path = f"/{quote(name)}:streamGenerateContent?alt=sse"

    def headers(self, key: str | None) -> dict[str, str]:
        return {"x-goog-api-key": key} if key else {}

    def encoder(self, model: str) -> GeminiEncoder:
        if model != self._model:
            raise UsageError(
                f"this codec's path names the model {self._model!r}, so it cannot ask {model!r}",
                hint="Make a GeminiCodec for that model.",
            )
        return GeminiEncoder(model)

    def decoder(self, request: ModelRequest) -> GeminiDecoder:
        return GeminiDecoder(request)

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
        return gemini_error_from_response(status, headers, body, address=address)
