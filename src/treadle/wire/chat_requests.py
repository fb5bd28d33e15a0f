"""Chat Completions requests: a conversation to bytes. What is sent and why: docs/protocols/chat.md."""

from __future__ import annotations

import base64
import re
from typing import Any

import msgspec

from treadle.errors import UsageError
from treadle.values.messages import AssistantMessage, Document, Image, Message, SystemMessage, Thinking, ToolMessage, UserMessage
from treadle.values.request import ModelRequest, Omission, Options
from treadle.wire.dialects import Dialect

__all__ = ["ChatEncoder"]

_encode = msgspec.json.Encoder().encode
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_OURS = frozenset({"model", "messages", "tools", "stream", "stream_options", "n"})


class ChatEncoder:
    """Write the requests of one run. Messages come last in the body and are written once: a longer conversation extends
    the bytes of a shorter one, so a turn costs what is new in it."""

    omitted: tuple[Omission, ...] = ()

    def __init__(self, model: str, dialect: Dialect) -> None:
        self._model = model
        self._dialect = dialect
        self._messages: tuple[Message, ...] = ()
        self._instructions: str | None = None
        self._written = bytearray()

    def encode(self, request: ModelRequest) -> bytes:
        known = len(self._messages)
        if request.messages[:known] != self._messages or request.instructions != self._instructions:
            known = 0
            self._written.clear()
        if not self._written and request.instructions:
            first = request.messages[0] if request.messages else None
            system = request.instructions
            if isinstance(first, SystemMessage):  # many templates take one system message, at the start
                system, known = f"{system}\n\n{first.content}", 1
            self._add({"role": "system", "content": system})
        shown: list[dict[str, Any]] = []
        for message in request.messages[known:]:
            if shown and not isinstance(message, ToolMessage):
                self._add({"role": "user", "content": shown})
                shown = []
            item = _message(message, self._dialect)
            if item["content"] != "" or item["role"] != "assistant":  # strict servers refuse an assistant that says nothing
                self._add(item)
            if isinstance(message, ToolMessage):
                shown += _images(message)
        if shown:  # results come all at once, so no further one can follow that would move this
            self._add({"role": "user", "content": shown})
        self._messages, self._instructions = request.messages, request.instructions
        tail = b""
        if request.continues is not None:
            tail = b"," + _encode({"role": "assistant", "content": request.continues.text})
        return b"".join((self._head(request), b',"messages":[', self._written, tail, b"]}"))

    def _add(self, item: dict[str, Any]) -> None:
        try:
            written = _encode(item)
        except UnicodeEncodeError:
            raise UsageError(
                f"a message of role {item['role']} holds half of a surrogate pair, which no JSON can carry",
                hint="Clean the text: text.encode('utf-8', 'replace').decode().",
            ) from None
        if self._written:
            self._written += b","
        self._written += written

    def _head(self, request: ModelRequest) -> bytes:
        head: dict[str, Any] = {"model": self._model, "stream": True}
        if self._dialect.ask_usage:
            head["stream_options"] = {"include_usage": True}
        if self._dialect.ask_progress:
            head["return_progress"] = True
        if request.continues is not None:
            head |= self._dialect.continues or {}
        if request.options.reasoning is not None:
            head |= self._dialect.reasoning[request.options.reasoning]
        head |= _options(request.options)
        if request.tools:
            head["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in request.tools
            ]
        return _encode(head)[:-1]


def _options(options: Options) -> dict[str, Any]:
    taken = _OURS & options.extra_body.keys()
    if taken:
        raise UsageError(f"extra_body may not set {', '.join(sorted(taken))}", hint="These fields are the run's own.")
    choice: Any = options.tool_choice
    if choice not in (None, "auto", "none", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    fields: dict[str, Any] = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": list(options.stop) or None,
        "tool_choice": choice,
    }
    return {key: value for key, value in fields.items() if value is not None} | options.extra_body


def _message(message: Message, dialect: Dialect) -> dict[str, Any]:
    if isinstance(message, AssistantMessage):
        return _assistant(message, dialect)
    if isinstance(message, ToolMessage):
        # The format has no flag for errors, so the text says it.
        content = f"Error: {message.content}" if message.is_error else message.content
        if message.note:
            content += f"\n[{message.note}]"
        return {"role": "tool", "tool_call_id": message.call_id, "content": content}
    if isinstance(message, UserMessage) and message.attachments:
        parts = [_attachment(each) for each in message.attachments]
        return {"role": "user", "content": [*parts, {"type": "text", "text": message.content}]}
    return {"role": message.__struct_config__.tag, "content": message.content}


def _attachment(attached: Image | Document) -> dict[str, Any]:
    url = f"data:{attached.media_type};base64,{base64.b64encode(attached.data).decode()}"
    if isinstance(attached, Image):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": attached.name or "document", "file_data": url}}


def _images(message: ToolMessage) -> list[dict[str, Any]]:
    """A result's images, as parts of a user message: the format has no place for them in a result."""
    if not message.images:
        return []
    parts: list[dict[str, Any]] = [{"type": "text", "text": f"[Images of the result of {message.name}, {message.call_id}]"}]
    return parts + [_attachment(image) for image in message.images]


def _assistant(message: AssistantMessage, dialect: Dialect) -> dict[str, Any]:
    text: list[str] = []
    item: dict[str, Any] = {"role": "assistant", "content": None}
    for part in message.content:
        if not isinstance(part, Thinking):
            continue
        if part.source == "content":
            text.append(part.raw or f"<think>{part.text}</think>")
        elif dialect.send_reasoning and part.source != "block":  # a block belongs to another format
            item[part.source] = item.get(part.source, "") + part.text
    content = "".join(text) + message.text
    calls = message.calls
    item["content"] = content if content or not calls else None
    if calls:
        item["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                # Names and arguments that a strict server would refuse were refused by us too: the call's result says so
                # in words. llama.cpp answers arguments that are not JSON with a 500 (captured).
                "function": {
                    "name": _NOT_IN_A_NAME.sub("_", call.name)[:64] or "unknown",
                    "arguments": call.arguments if _is_object(call.arguments) else "{}",
                },
            }
            for call in calls
        ]
    return item


def _is_object(text: str) -> bool:
    try:
        return type(msgspec.json.decode(text)) is dict
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
