"""Responses requests: a conversation to bytes. What is sent and why: docs/protocols/responses.md."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec
from msgspec import Struct

from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Message,
    Opaque,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, SchemaSupport, ToolSpec
from treadle.wire.encoder import PART, REASONING, SIGNATURE, Pieces, RunEncoder
from treadle.wire.parts import arguments, data_url, function, named, object_in, result_text, with_extra_body
from treadle.wire.responses_items import FORMAT
from treadle.wire.schemas import is_strict
from treadle.wire.untyped import array, object_, string

__all__ = ["LLAMACPP_RESPONSES", "ResponsesDialect", "ResponsesEncoder"]

_encode = msgspec.json.Encoder().encode
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
_MERGED = ("text",)
_MAX_ID = 64  # a longer call_id is refused by OpenAI (reported)


class ResponsesDialect(Struct, frozen=True, kw_only=True):
    """How requests to one kind of server differ.

    Attributes:
        encrypted_reasoning: Ask for encrypted reasoning. OpenAI answers this with a 400 for models that do not reason.
        stop_and_seed: The server knows `stop` and `seed`. The format has neither, and OpenAI refuses unknown fields.
        sampling: When the model takes `temperature` and `top_p`. Some that reason refuse them, or take them only while they do not.
        schema_support: What a schema for the answer may be sent with. `alone` for servers we know nothing of, as in Chat.
    """

    encrypted_reasoning: bool = True
    stop_and_seed: bool = False
    sampling: Literal["always", "without_reasoning", "never"] = "always"
    schema_support: SchemaSupport = "alone"


LLAMACPP_RESPONSES = ResponsesDialect(encrypted_reasoning=False, stop_and_seed=True, schema_support="none")
"""llama.cpp, run and seen (xllamacpp 2026.10.11549): `stop` and `seed` work, a schema for the answer is ignored."""


class ResponsesEncoder(RunEncoder):
    """Write the requests of one run (`RunEncoder`)."""

    def __init__(self, model: str, dialect: ResponsesDialect) -> None:
        super().__init__(name="input")
        self._model = model
        self._dialect = dialect
        self._first = 0

    def _encode(self, request: ModelRequest) -> Pieces:
        messages, instructions, first = request.messages, request.instructions, 0
        if instructions and messages and isinstance(messages[0], SystemMessage):
            instructions, first = f"{instructions}\n\n{messages[0].content}", 1  # many templates take one system message
        known = self._known(request, anew=first != self._first)
        for place in range(max(known, first), len(messages)):
            for item in self._items(messages[place], place):
                self._add(item)
        self._first = first
        return (self._head(request, instructions), b',"input":[', self._written, b"]}")

    def _head(self, request: ModelRequest, instructions: str | None) -> bytes:
        head: dict[str, Any] = {"model": self._model, "stream": True, "store": False}
        if self._dialect.encrypted_reasoning:
            head["include"] = ["reasoning.encrypted_content"]
        head |= self._options(request)
        self._leave_out_ttl(request)
        system = self.prefix.system = _encode(instructions) if instructions else b""
        tools = self._tools(request, _tool)
        return b"".join(
            (
                _encode(head)[:-1],
                b',"instructions":' + system if system else b"",
                b',"tools":' + tools if tools else b"",
            )
        )

    def _options(self, request: ModelRequest) -> dict[str, Any]:
        options, dialect = request.options, self._dialect
        effort = {None: None, "off": "none"}.get(options.reasoning, options.reasoning)
        fields: dict[str, Any] = {
            "max_output_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "reasoning": {"effort": effort} if effort else None,
            "tool_choice": self._choice(request),
        }
        if dialect.sampling == "never" or (dialect.sampling == "without_reasoning" and effort not in (None, "none")):
            for name in ("temperature", "top_p"):
                if fields[name] is not None:
                    fields[name] = None
                    self._leave_out(name, "The model does not take it while it reasons.")
        if dialect.stop_and_seed:
            fields |= {"seed": options.seed, "stop": list(options.stop) or None}
        else:
            if options.stop:
                self._leave_out("stop", "The format has no stop texts.")
            if options.seed is not None:
                self._leave_out("seed", "The format has no seed.")
        if (output := request.output) is not None:
            if dialect.schema_support == "none":
                self._leave_out_schema()
            else:
                schema = {"name": output.name, "schema": output.schema, "strict": is_strict(output.schema)}
                fields["text"] = {"format": {"type": "json_schema", **schema}}
        return with_extra_body(fields, options, ours=_OURS, merged=_MERGED)

    def _choice(self, request: ModelRequest) -> str | dict[str, Any] | None:
        choice = request.options.tool_choice
        if choice is None:
            return None
        if not request.tools:
            self._leave_out_choice(choice)
            return None
        return choice if choice in ("auto", "none", "required") else {"type": "function", "name": choice}

    def _items(self, message: Message, place: int) -> list[dict[str, Any] | msgspec.Raw]:
        if isinstance(message, AssistantMessage):
            return self._assistant(message, place)
        if isinstance(message, ToolMessage):
            return [{"type": "function_call_output", "call_id": _id(message.call_id), "output": _output(message)}]
        if isinstance(message, UserMessage) and message.attachments:
            parts = [_attachment(each) for each in message.attachments]
            if message.content:
                parts.append({"type": "input_text", "text": message.content})
            return [{"role": "user", "content": parts}]
        return [{"role": message.__struct_config__.tag, "content": message.content}]

    def _assistant(self, message: AssistantMessage, place: int) -> list[dict[str, Any] | msgspec.Raw]:
        """A turn's items. `Thinking` is for people; what the server reads of it is the item kept beside it."""
        items: list[dict[str, Any] | msgspec.Raw] = []
        heads: dict[str, dict[str, Any]] = {}
        waiting: list[msgspec.Raw] = []  # reasoning goes out only before what it led to: alone, OpenAI refuses it (reported)
        shown = reasoned = unreadable = 0
        for part in message.content:
            if isinstance(part, Opaque):
                kept = (object_in(part.data) if part.format == FORMAT else None) or {}
                kind = string(kept.get("type"))
                if kind in ("message", "function_call"):
                    heads = {kind: kept}
                elif kind == "reasoning":
                    reasoned += 1
                    if kept.get("encrypted_content") or kept.get("content"):
                        waiting.append(msgspec.Raw(part.data.encode()))
                    else:
                        unreadable += 1
                elif kind:
                    items += [*waiting, msgspec.Raw(part.data.encode())]
                    waiting = []
                else:
                    self._leave_out("part", PART)
            elif isinstance(part, Thinking):
                shown += 1
            elif isinstance(part, Text):
                if part.text:
                    head = {"type": "message", "id": f"msg_{place}_{len(items)}", "status": "completed"}
                    items += [*waiting, _text(part.text, head | heads.get("message", {}))]
                    waiting, heads = [], {}
            else:
                items += [*waiting, self._call(part, heads.get("function_call") or {})]
                waiting, heads = [], {}
        if shown and not reasoned:
            self._leave_out("reasoning", REASONING, shown)
        if lost := unreadable + len(waiting):
            self._leave_out("reasoning", "Reasoning that holds nothing to read, or that led to nothing, is refused.", lost)
        return items

    def _call(self, call: ToolCall, head: dict[str, Any]) -> dict[str, Any]:
        if call.signature:
            self._leave_out("signature", SIGNATURE)
        id = _id(call.id)
        if id != call.id:
            self._leave_out("id", "OpenAI refuses an id of more than 64 characters: call and result get a hash of it.")
        return {
            **head,
            "type": "function_call",
            "call_id": id,
            "name": named(call.name),
            "arguments": arguments(call.arguments),
        }


def _tool(tool: ToolSpec) -> dict[str, Any]:
    # `strict` is always said: left out, OpenAI rewrites the schema so that optional parameters become required (documented).
    return {"type": "function", **function(tool), "strict": is_strict(tool.parameters)}


def _output(message: ToolMessage) -> str | list[dict[str, Any]]:
    text = result_text(message)
    if not message.images:
        return text
    said = [{"type": "input_text", "text": text}] if text else []
    return said + [_attachment(image) for image in message.images]


def _attachment(attached: Image | Document) -> dict[str, Any]:
    url = data_url(attached)
    if isinstance(attached, Image):
        return {"type": "input_image", "detail": "auto", "image_url": url}
    return {"type": "input_file", "filename": attached.name or "document", "file_data": url}


def _text(text: str, head: dict[str, Any]) -> dict[str, Any]:
    # llama.cpp takes a turn's text in this form only (seen); the official types require an id and a status here.
    refused = object_((array(head.get("content")) or [None])[0]).get("type") == "refusal"
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if refused:
        part = {"type": "refusal", "refusal": text}
    return {**head, "role": "assistant", "content": [part]}


def _id(id: str) -> str:
    return id if len(id) <= _MAX_ID else f"call_{hashlib.sha256(id.encode('utf-8', 'replace')).hexdigest()[:32]}"
