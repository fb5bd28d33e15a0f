"""Ollama's `/api/chat` requests: a conversation to bytes. What is sent and why: docs/protocols/ollama.md."""

from __future__ import annotations

import base64
import re
from typing import Any

import msgspec

from treadle.errors import UsageError
from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Message,
    SystemMessage,
    Thinking,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Omission, Options
from treadle.wire.untyped import object_

__all__ = ["OllamaEncoder"]

_encode = msgspec.json.Encoder().encode
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_MADE_ID = re.compile(r"call_.{0,8}_\d+_\d+")  # the shape of the ids that the decoder makes up
_OURS = frozenset({"model", "messages", "tools", "stream"})


class OllamaEncoder:
    """Write the requests of one run. Messages come last in the body and are written once: a longer conversation extends
    the bytes of a shorter one, so a turn costs what is new in it."""

    omitted: tuple[Omission, ...] = ()

    def __init__(self, model: str, *, num_ctx: int | None = None) -> None:
        self._model = model
        self._num_ctx = num_ctx
        self._messages: tuple[Message, ...] = ()
        self._instructions: str | None = None
        self._written = bytearray()

    def encode(self, request: ModelRequest) -> bytes:
        messages = request.messages
        known = len(self._messages)
        if (
            messages[:known] != self._messages
            or request.instructions != self._instructions
            or (0 < known < len(messages) and isinstance(messages[known], ToolMessage) and _is_result(messages[known - 1]))
        ):
            known = 0
        if known == 0:
            self._written.clear()
            system = request.instructions
            if messages and isinstance(messages[0], SystemMessage):  # many templates take one system message, at the start
                system, known = "\n\n".join(text for text in (system, messages[0].content) if text), 1
            if system:
                self._add({"role": "system", "content": system})
        shown: list[dict[str, Any]] = []
        for message in messages[known:]:
            if shown and not isinstance(message, ToolMessage):
                self._add_all(shown)
                shown = []
            item = _message(message)
            if len(item) > 2 or item["content"] or item["role"] != "assistant":
                self._add(item)
            if isinstance(message, ToolMessage) and message.images:
                text = f"[Images of the result of {message.name}, {message.call_id}]"
                shown.append({"role": "user", "content": text, "images": [_base64(image) for image in message.images]})
        self._add_all(shown)  # results come all at once, so no further one can follow that would move this
        self._messages, self._instructions = messages, request.instructions
        return b"".join((self._head(request), b',"messages":[', self._written, b"]}"))

    def _add_all(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            self._add(item)

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
        options = request.options
        taken = _OURS & options.extra_body.keys()
        if taken:
            raise UsageError(f"extra_body may not set {', '.join(sorted(taken))}", hint="These fields are the run's own.")
        head: dict[str, Any] = {"model": self._model, "stream": True}
        if options.reasoning is not None:
            head["think"] = self._think(options.reasoning)
        if settings := self._options(options):
            head["options"] = settings
        head |= {key: value for key, value in options.extra_body.items() if key != "options"}
        if request.tools and options.tool_choice != "none":  # the format has no choice: none is said by offering none
            head["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in request.tools
            ]
        return _encode(head)[:-1]

    def _think(self, effort: str) -> bool | str:
        if effort == "off":
            return False
        return effort if "gpt-oss" in self._model else True  # documented: the one family that knows levels

    def _options(self, options: Options) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "num_ctx": self._num_ctx,
            "num_predict": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
            "stop": list(options.stop) or None,
        }
        return {key: value for key, value in fields.items() if value is not None} | object_(options.extra_body.get("options"))


def _is_result(message: Message) -> bool:
    return isinstance(message, ToolMessage)


def _message(message: Message) -> dict[str, Any]:
    if isinstance(message, AssistantMessage):
        return _assistant(message)
    if isinstance(message, ToolMessage):
        # The format has no flag for errors, so the text says it.
        content = f"Error: {message.content}" if message.is_error else message.content
        if message.note:
            content += f"\n[{message.note}]"
        item = {"role": "tool", "content": content, "tool_name": _named(message.name)}
        return item if _MADE_ID.fullmatch(message.call_id) else item | {"tool_call_id": message.call_id}
    if isinstance(message, UserMessage) and message.attachments:
        texts = [_document(each) for each in message.attachments if isinstance(each, Document)]
        item: dict[str, Any] = {"role": "user", "content": "\n\n".join((*texts, message.content))}
        if images := [_base64(each) for each in message.attachments if isinstance(each, Image)]:
            item["images"] = images
        return item
    return {"role": message.__struct_config__.tag, "content": message.content}


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    tagged: list[str] = []
    thinking: list[str] = []
    for part in message.content:
        if isinstance(part, Thinking):
            if part.source == "content":
                tagged.append(part.raw or f"<think>{part.text}</think>")
            elif part.source != "block":  # a block belongs to the provider that made it
                thinking.append(part.text)
    item: dict[str, Any] = {"role": "assistant", "content": "".join(tagged) + message.text}
    if thinking:
        item["thinking"] = "".join(thinking)
    if calls := message.calls:
        item["tool_calls"] = [
            ({} if _MADE_ID.fullmatch(call.id) else {"id": call.id})
            | {
                "function": {
                    "name": _named(call.name),
                    "arguments": msgspec.Raw(call.arguments.encode()) if _is_object(call.arguments) else {},
                }
            }
            for call in calls
        ]
    return item


def _document(document: Document) -> str:
    """A document's text before the user's: the format knows pictures only."""
    kind = document.media_type.partition(";")[0].strip()
    if not (kind.startswith("text/") or kind in ("application/json", "application/xml", "application/yaml")):
        raise UsageError(
            f"Ollama takes no documents of type {kind}", hint="Attach the text, or the pages as images, or use another provider."
        )
    return f"[{document.name or 'document'}]\n{document.data.decode('utf-8', 'replace')}"


def _base64(image: Image) -> str:
    return base64.b64encode(image.data).decode()


def _named(name: str) -> str:
    return _NOT_IN_A_NAME.sub("_", name)[:64] or "unknown"


def _is_object(text: str) -> bool:
    try:
        return type(msgspec.json.decode(text)) is dict
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
