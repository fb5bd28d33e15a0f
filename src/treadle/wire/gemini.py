"""Gemini's `streamGenerateContent`. What it sends and where that is said: docs/protocols/gemini.md (no captures).

Each event is a whole `GenerateContentResponse`; the parts of all of them, in order, are the reply. A whole answer, and the
array that comes where `alt=sse` got lost, go through the same decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from treadle.errors import BadStream, ModelError, ServerError, StreamTruncated, UsageError
from treadle.values.request import Finish, ModelRequest, Reply, SchemaSupport
from treadle.values.usage import Usage
from treadle.wire.decoder import EventDecoder
from treadle.wire.gemini_errors import gemini_error_from_object, gemini_error_from_response
from treadle.wire.gemini_fold import GeminiFold
from treadle.wire.gemini_requests import GeminiEncoder, is_three
from treadle.wire.parts import call_id_prefix
from treadle.wire.stream import AnswerReader, excerpt
from treadle.wire.untyped import count, mended, object_, string

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


class GeminiDecoder(EventDecoder[GeminiFold]):
    """Decode one reply: feed chunks cut anywhere, then `close` once. No I/O. `error` is then one of:

    - `StreamTruncated`: neither a `finishReason` nor a `blockReason` arrived, or more of the answer followed it and then
      the stream broke off.
    - `BadStream`: what came is neither an event stream nor an answer.
    - `ServerError`: the model wrote a call that the server could not parse, and nothing else.
    - any `ModelError`: the server sent an error object.
    """

    def __init__(self, request: ModelRequest) -> None:
        fold = GeminiFold(turn=request.turn, attempt=request.attempt, call_id_prefix=call_id_prefix(request))
        super().__init__(fold, AnswerReader(json_starts=b"{["))
        self._answers = 0  # frames that held a candidate
        self._finish_message: str | None = None
        self._blocked = False
        self._usage: dict[str, Any] = {}
        self._model: str | None = None

    def _judge(self) -> None:
        if not self.finished:
            raise StreamTruncated(f"the stream ended {self._where}, without a finish reason")
        if self._said in _BROKEN and self._fold.only_thoughts:
            raise ServerError(
                "the model wrote a tool call that its server could not parse",
                hint="Run again: this passes as a rule. If it stays, simplify the tools' schemas.",
                server_said=self._finish_message,
            )

    @property
    def reply(self) -> Reply:
        said = self._said
        finish: Finish | None = None
        if self.finished:
            finish = "refused" if self._blocked else FINISH.get(said or "", "unknown")
            if finish == "end" and self._fold.has_calls:  # the format has no reason of its own for calls
                finish = "tool_use"
        return Reply(message=self._fold.message(), finish=finish, finish_said=said, usage=_usage(self._usage), model=self._model)

    def _frame(self, event: str, payload: bytes) -> None:
        if payload[:6] == b"[DONE]":  # not Gemini's, but a gateway's
            self._end()
            return
        if not payload:
            return
        try:
            self._chunk(_decode_chunk(payload), event, payload)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            try:
                self._chunk(_decode_chunk(mended(payload) or b""), event, payload)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
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
            self._note_more(before)
            if candidate.finish_reason and (said := str(candidate.finish_reason)) not in _UNSPECIFIED:
                self._stop(said)
                self._finish_message = string(candidate.finish_message) or None
        reason = string(object_(chunk.prompt_feedback).get("blockReason"))
        if reason not in _UNSPECIFIED:
            self._blocked = True
            self._stop(reason)

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
        for frame in msgspec.json.decode(body, type=list[msgspec.Raw]) if body[:1] == b"[" else [body]:
            self._frame("", bytes(frame))
        if not self._answers and not self.finished:
            raise BadStream("the server answered with JSON that is no GenerateContentResponse", server_said=excerpt(body))


def _parts(candidate: _Candidate) -> list[tuple[bytes, _Part]]:
    raws = (candidate.content.parts if candidate.content is not None else None) or ()
    return [(bytes(raw), _decode_part(raw)) for raw in raws if bytes(raw) != b"null"]


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

    def __init__(self, model: str) -> None:
        self._model = model
        # Older models answer a schema with tools with a 400 (docs/protocols/gemini.md).
        self.schema_support: SchemaSupport = "with_tools" if is_three(model) else "alone"
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
