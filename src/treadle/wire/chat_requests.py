"""Chat Completions requests: a conversation to bytes. What is sent and why: docs/protocols/chat.md."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Message,
    Opaque,
    SystemMessage,
    Text,
    Thinking,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Options, OutputSchema, ToolSpec
from treadle.wire.dialects import Dialect
from treadle.wire.encoder import IMAGES, PART, REASONING, SIGNATURE, Pieces, RunEncoder
from treadle.wire.parts import arguments, data_url, function, images_heading, named, result_text, with_extra_body
from treadle.wire.schemas import is_strict

__all__ = ["ChatEncoder"]

_encode = msgspec.json.Encoder().encode
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_OURS = frozenset({"model", "messages", "tools", "stream", "stream_options", "n"})


class ChatEncoder(RunEncoder):
    """Write the requests of one run (`RunEncoder`)."""

    def __init__(self, model: str, dialect: Dialect) -> None:
        super().__init__()
        self._model = model
        self._dialect = dialect
        self._instructions: str | None = None
        self._head_of: tuple[Options | None, OutputSchema | None, tuple[ToolSpec, ...] | None] = (None, None, None)
        self._written_head = b""

    def _encode(self, request: ModelRequest) -> Pieces:
        known = self._known(request, anew=request.instructions != self._instructions or self._reopens(request))
        if not self._written and request.instructions:
            first = request.messages[0] if request.messages else None
            system = request.instructions
            if isinstance(first, SystemMessage):  # many templates take one system message, at the start
                system, known = f"{system}\n\n{first.content}", 1
            self._add({"role": "system", "content": system})
        shown: list[dict[str, Any]] = []
        for message in _with_summaries(request.messages[known:]):
            if shown and not isinstance(message, ToolMessage):
                self._add({"role": "user", "content": shown})
                shown = []
            item = self._message(message)
            if item["content"] != "" or item["role"] != "assistant":  # strict servers refuse an assistant that says nothing
                self._add(item)
            elif len(item) > 2 and isinstance(message, AssistantMessage):
                thoughts = sum(isinstance(part, Thinking) and part.source != "block" for part in message.content)
                self._leave_out("reasoning", "A turn that only reasoned is left out: it would say nothing.", thoughts)
            if isinstance(message, ToolMessage) and message.images:  # the format has no place for them in a result
                self._leave_out("images", IMAGES, len(message.images))
                shown += [{"type": "text", "text": images_heading(message)}, *map(_attachment, message.images)]
        if shown:  # results come all at once, so no further one can follow that would move this
            self._add({"role": "user", "content": shown})
        self._instructions = request.instructions
        tail = b""
        if request.continues is not None:
            tail = b"," + _encode({"role": "assistant", "content": request.continues.text})
            thoughts = sum(isinstance(part, Thinking) for part in request.continues.content)
            if thoughts:
                self._leave_out("reasoning", "A partial answer is gone on from by its text alone.", thoughts)
        return (self._head(request), b',"messages":[', self._written, tail, b"]}")

    def _reopens(self, request: ModelRequest) -> bool:
        """The last item that was written holds more now: a summary is joined with its neighbours, and a system message at the start
        with the instructions."""
        known = len(self._messages)
        if len(request.messages) <= known:
            return False
        new = request.messages[known]
        if known == 0:
            return bool(self._written) and isinstance(new, SystemMessage)
        last = self._messages[-1]
        return isinstance(last, UserMessage) and isinstance(new, UserMessage) and "summary" in (last.origin, new.origin)

    def _head(self, request: ModelRequest) -> bytes:
        """All but the messages. Within a run it is the same objects, turn after turn, and then the same bytes."""
        made_of = (request.options, request.output, self._specs)
        is_same = all(one is other for one, other in zip(made_of, self._head_of, strict=True)) and self._specs is request.tools
        if is_same and request.continues is None:
            return self._written_head
        self._written_head = self._new_head(request)
        # A head with a partial answer's fields is of that request alone.
        self._head_of = (request.options, request.output, self._specs) if request.continues is None else (None, None, None)
        return self._written_head

    def _new_head(self, request: ModelRequest) -> bytes:
        dialect, options = self._dialect, request.options
        head: dict[str, Any] = {"model": self._model, "stream": True}
        if dialect.ask_usage:
            head["stream_options"] = {"include_usage": True}
        if dialect.ask_progress:
            head["return_progress"] = True
        if request.continues is not None:
            head |= dialect.continues or {}
        if options.reasoning is not None:
            asked = dialect.reasoning.get(options.reasoning)
            head |= asked or {}
            if asked is None:
                self._leave_out("reasoning", "This model cannot be asked for that: it decides by itself.")
            elif options.reasoning != "off" and dialect.reasoning.get("low") == dialect.reasoning.get("high"):
                self._leave_out("reasoning", "This server knows only on and off: every level is on.")
        head |= {
            dialect.max_tokens_field: options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            dialect.seed_field: options.seed,
            "stop": list(options.stop) or None,
            "tool_choice": self._choice(request),
            "response_format": self._format(request),
        }
        head = with_extra_body(head, options, ours=_OURS)
        self._leave_out_ttl(request)
        tools = self._tools(request, self._function)
        return _encode(head)[:-1] + (b',"tools":' + tools if tools else b"")

    def _choice(self, request: ModelRequest) -> str | dict[str, Any] | None:
        choice = request.options.tool_choice
        if choice is None:
            return None
        if not request.tools:
            self._leave_out_choice(choice)
            return None
        return choice if choice in ("auto", "none", "required") else {"type": "function", "function": {"name": choice}}

    def _format(self, request: ModelRequest) -> dict[str, Any] | None:
        output = request.output
        if output is None:
            return None
        if self._dialect.schema_support == "none":
            self._leave_out_schema()
            return None
        schema = {"name": output.name, "schema": output.schema, "strict": is_strict(output.schema)}
        return {"type": "json_schema", "json_schema": schema}

    def _function(self, tool: ToolSpec) -> dict[str, Any]:
        fields = function(tool)
        if self._dialect.strict_tools:
            fields["strict"] = is_strict(tool.parameters)
        return {"type": "function", "function": fields}

    def _message(self, message: Message) -> dict[str, Any]:
        if isinstance(message, AssistantMessage):
            return self._assistant(message)
        if isinstance(message, ToolMessage):
            return {"role": "tool", "tool_call_id": self._id(message.call_id), "content": result_text(message)}
        if isinstance(message, UserMessage) and message.attachments:
            parts = [_attachment(each) for each in message.attachments]
            return {"role": "user", "content": [*parts, {"type": "text", "text": message.content}]}
        return {"role": message.__struct_config__.tag, "content": message.content}

    def _assistant(self, message: AssistantMessage) -> dict[str, Any]:
        tagged: list[str] = []
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        item: dict[str, Any] = {"role": "assistant", "content": None}
        for part in message.content:
            if isinstance(part, Text):
                texts.append(part.text)
            elif isinstance(part, Thinking):
                if part.source == "content":
                    tagged.append(part.raw or f"<think>{part.text}</think>")
                elif part.source == "block":  # belongs to another format
                    self._leave_out("reasoning", REASONING)
                elif self._dialect.send_reasoning:
                    field = self._dialect.reasoning_field or part.source
                    item[field] = item.get(field, "") + part.text
                else:
                    self._leave_out("reasoning", "This server refuses reasoning that is sent back.")
            elif isinstance(part, Opaque):
                self._leave_out("part", PART)
            else:
                if part.signature:
                    self._leave_out("signature", SIGNATURE)
                called = {"name": named(part.name), "arguments": arguments(part.arguments)}
                id = self._id(part.id)
                if id != part.id:
                    self._leave_out("id", "The provider does not take an id of this form: call and result get a hash of it.")
                calls.append({"id": id, "type": "function", "function": called})
        content = "".join(tagged + texts)
        item["content"] = content if content or not calls else None
        if calls:
            item["tool_calls"] = calls
            if self._dialect.reasoning_field:
                item.setdefault(self._dialect.reasoning_field, "")
        return item

    def _id(self, id: str) -> str:
        if not self._dialect.nine_character_ids or _NINE.fullmatch(id):
            return id
        return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]


def _with_summaries(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages, a summary joined with the user's messages on both sides of it: many templates refuse two of them in a row.

    In a run a summary comes when the conversation is written anew, so what is joined was never sent apart.
    """
    if not any(isinstance(message, UserMessage) and message.origin == "summary" for message in messages):
        yield from messages
        return
    held: list[UserMessage] = []
    for message in messages:
        if isinstance(message, UserMessage) and (not held or "summary" in (message.origin, held[-1].origin)):
            held.append(message)
            continue
        yield from _joined(held)
        held = [message] if isinstance(message, UserMessage) else []
        if not held:
            yield message
    yield from _joined(held)


def _joined(messages: Sequence[UserMessage]) -> Iterator[UserMessage]:
    if len(messages) < 2:
        yield from messages
    else:
        text = "\n\n".join(message.content for message in messages)
        yield UserMessage(text, tuple(each for message in messages for each in message.attachments))


def _attachment(attached: Image | Document) -> dict[str, Any]:
    url = data_url(attached)
    if isinstance(attached, Image):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": attached.name or "document", "file_data": url}}
