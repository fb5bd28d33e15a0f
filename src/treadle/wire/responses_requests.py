"""Responses requests: a conversation to bytes. What is sent and why: docs/protocols/responses.md."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import msgspec
from msgspec import Struct

from treadle.errors import UsageError
from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Message,
    Opaque,
    SystemMessage,
    Text,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Omission, Options, ToolSpec
from treadle.wire.responses_items import FORMAT
from treadle.wire.untyped import array, object_, string

__all__ = ["LLAMACPP_RESPONSES", "ResponsesDialect", "ResponsesEncoder", "is_strict"]

_encode = msgspec.json.Encoder().encode
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_OURS = frozenset(
    {
        "model",
        "input",
        "messages",
        "instructions",
        "tools",
        "stream",
        "store",
        "background",
        "previous_response_id",
        "conversation",
    }
)
_MAX_ID = 64  # a longer call_id is refused by OpenAI (reported)


class ResponsesDialect(Struct, frozen=True, kw_only=True):
    """How requests to one kind of server differ.

    Attributes:
        encrypted_reasoning: Ask for encrypted reasoning. OpenAI answers this with a 400 for models that do not reason.
        stop_and_seed: The server knows `stop` and `seed`. The format has neither, and OpenAI refuses unknown fields.
    """

    encrypted_reasoning: bool = True
    stop_and_seed: bool = False


LLAMACPP_RESPONSES = ResponsesDialect(encrypted_reasoning=False, stop_and_seed=True)


class ResponsesEncoder:
    """Write the requests of one run. Input items come last in the body and are written once: a longer conversation extends
    the bytes of a shorter one, so a turn costs what is new in it."""

    omitted: tuple[Omission, ...] = ()

    def __init__(self, model: str, dialect: ResponsesDialect) -> None:
        self._model = model
        self._dialect = dialect
        self._messages: tuple[Message, ...] = ()
        self._first = 0
        self._written = bytearray()

    def encode(self, request: ModelRequest) -> bytes:
        messages, instructions, first = request.messages, request.instructions, 0
        if instructions and messages and isinstance(messages[0], SystemMessage):
            instructions, first = f"{instructions}\n\n{messages[0].content}", 1  # many templates take one system message
        known = len(self._messages)
        if messages[:known] != self._messages or first != self._first:
            known = 0
            self._written.clear()
        for place in range(max(known, first), len(messages)):
            for item in _items(messages[place], place):
                self._add(item)
        self._messages, self._first = messages, first
        return b"".join((self._head(request, instructions), b',"input":[', self._written, b"]}"))

    def _add(self, item: dict[str, Any] | msgspec.Raw) -> None:
        try:
            written = _encode(item)
        except UnicodeEncodeError:
            raise UsageError(
                "a message holds half of a surrogate pair, which no JSON can carry",
                hint="Clean the text: text.encode('utf-8', 'replace').decode().",
            ) from None
        if self._written:
            self._written += b","
        self._written += written

    def _head(self, request: ModelRequest, instructions: str | None) -> bytes:
        head: dict[str, Any] = {"model": self._model, "stream": True, "store": False}
        if self._dialect.encrypted_reasoning:
            head["include"] = ["reasoning.encrypted_content"]
        head |= _options(request.options, self._dialect)
        if instructions:
            head["instructions"] = instructions
        if request.tools:
            head["tools"] = [_tool(tool) for tool in request.tools]
        return _encode(head)[:-1]


def _options(options: Options, dialect: ResponsesDialect) -> dict[str, Any]:
    taken = _OURS & options.extra_body.keys()
    if taken:
        raise UsageError(f"extra_body may not set {', '.join(sorted(taken))}", hint="These fields are the run's own.")
    choice: Any = options.tool_choice
    if choice not in (None, "auto", "none", "required"):
        choice = {"type": "function", "name": choice}
    effort = {None: None, "off": "none"}.get(options.reasoning, options.reasoning)
    fields: dict[str, Any] = {
        "max_output_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "reasoning": {"effort": effort} if effort else None,
        "tool_choice": choice,
    }
    if dialect.stop_and_seed:
        fields |= {"seed": options.seed, "stop": list(options.stop) or None}
    return {key: value for key, value in fields.items() if value is not None} | options.extra_body


def _tool(tool: ToolSpec) -> dict[str, Any]:
    # `strict` is always said: left out, OpenAI rewrites the schema so that optional parameters become required (documented).
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": is_strict(tool.parameters),
    }


def _items(message: Message, place: int) -> list[dict[str, Any] | msgspec.Raw]:
    if isinstance(message, AssistantMessage):
        return _assistant(message, place)
    if isinstance(message, ToolMessage):
        return [{"type": "function_call_output", "call_id": _id(message.call_id), "output": _output(message)}]
    if isinstance(message, UserMessage) and message.attachments:
        parts = [_attachment(each) for each in message.attachments]
        if message.content:
            parts.append({"type": "input_text", "text": message.content})
        return [{"role": "user", "content": parts}]
    return [{"role": message.__struct_config__.tag, "content": message.content}]


def _output(message: ToolMessage) -> str | list[dict[str, Any]]:
    # The format has no flag for errors, so the text says it.
    text = f"Error: {message.content}" if message.is_error else message.content
    if message.note:
        text += f"\n[{message.note}]"
    if not message.images:
        return text
    said = [{"type": "input_text", "text": text}] if text else []
    return said + [_attachment(image) for image in message.images]


def _attachment(attached: Image | Document) -> dict[str, Any]:
    url = f"data:{attached.media_type};base64,{base64.b64encode(attached.data).decode()}"
    if isinstance(attached, Image):
        return {"type": "input_image", "detail": "auto", "image_url": url}
    return {"type": "input_file", "filename": attached.name or "document", "file_data": url}


def _assistant(message: AssistantMessage, place: int) -> list[dict[str, Any] | msgspec.Raw]:
    """A turn's items. `Thinking` is for people; what the server reads of it is the item kept beside it."""
    items: list[dict[str, Any] | msgspec.Raw] = []
    heads: dict[str, dict[str, Any]] = {}
    waiting: list[msgspec.Raw] = []  # reasoning goes out only before what it led to: alone, OpenAI refuses it (reported)
    for part in message.content:
        if isinstance(part, Opaque):
            kept = _object(part.data) if part.format == FORMAT else {}
            kind = string(kept.get("type"))
            if kind in ("message", "function_call"):
                heads = {kind: kept}
            elif kind == "reasoning":
                if kept.get("encrypted_content") or kept.get("content"):
                    waiting.append(msgspec.Raw(part.data.encode()))
            elif kind:
                items += [*waiting, msgspec.Raw(part.data.encode())]
                waiting = []
        elif isinstance(part, Text) and part.text:
            head = {"type": "message", "id": f"msg_{place}_{len(items)}", "status": "completed"} | heads.get("message", {})
            items += [*waiting, _text(part.text, head)]
            waiting, heads = [], {}
        elif isinstance(part, ToolCall):
            items += [*waiting, _call(part, heads.get("function_call") or {})]
            waiting, heads = [], {}
    return items


def _text(text: str, head: dict[str, Any]) -> dict[str, Any]:
    # llama.cpp takes a turn's text in this form only (seen); the official types require an id and a status here.
    refused = object_((array(head.get("content")) or [None])[0]).get("type") == "refusal"
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if refused:
        part = {"type": "refusal", "refusal": text}
    return {**head, "role": "assistant", "content": [part]}


def _call(call: ToolCall, head: dict[str, Any]) -> dict[str, Any]:
    return {
        **head,
        "type": "function_call",
        "call_id": _id(call.id),
        # Names and arguments that a strict server would refuse were refused by us too: the call's result says so in words.
        "name": _NOT_IN_A_NAME.sub("_", call.name)[:64] or "unknown",
        "arguments": call.arguments if _is_object(call.arguments) else "{}",
    }


def _id(id: str) -> str:
    return id if len(id) <= _MAX_ID else f"call_{hashlib.sha256(id.encode('utf-8', 'replace')).hexdigest()[:32]}"


def _object(text: str) -> dict[str, Any]:
    try:
        return object_(msgspec.json.decode(text))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


def _is_object(text: str) -> bool:
    try:
        return type(msgspec.json.decode(text)) is dict
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


# Strict schemas. A schema that is not surely in the supported subset is sent with `strict: false`, which always works.

_KEYWORDS = {
    *("description", "title", "enum", "const", "$defs"),
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "$ref", "pattern", "format"),
    *("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
}
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
_MAX_DEPTH = 10


def is_strict(schema: dict[str, Any]) -> bool:
    """The schema keeps to what OpenAI's strict mode documents: closed objects, every property required, known keywords."""
    return schema.get("type") == "object" and "anyOf" not in schema and _strict(schema, 0)


def _strict(schema: Any, depth: int) -> bool:
    fields = object_(schema)
    if not fields or depth > _MAX_DEPTH or not fields.keys() <= _KEYWORDS or fields.get("format", "date") not in _FORMATS:
        return False
    kinds = array(fields.get("type")) or [fields.get("type")]
    properties = object_(fields.get("properties"))
    if "object" in kinds or properties:
        closed = fields.get("additionalProperties") is False
        if not closed or sorted(array(fields.get("required"))) != sorted(properties):
            return False
    if kinds == [None] and not fields.keys() & {"anyOf", "$ref", "enum", "const"}:
        return False  # anything at all
    if "array" in kinds and "items" not in fields:
        return False
    inner = [*properties.values(), *object_(fields.get("$defs")).values(), *array(fields.get("anyOf"))]
    if "items" in fields:
        inner.append(fields["items"])
    return all(_strict(each, depth + 1) for each in inner)
