"""Ollama's `/api/chat` requests: a conversation to bytes. What is sent and why: docs/protocols/ollama.md."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from treadle.errors import UsageError
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
from treadle.values.request import ModelRequest
from treadle.wire.encoder import IMAGES, PART, REASONING, SIGNATURE, Pieces, RunEncoder
from treadle.wire.parts import (
    base64_text,
    function,
    images_heading,
    is_made_id,
    is_text,
    named,
    raw_object,
    result_text,
    with_extra_body,
)

__all__ = ["OllamaEncoder"]

_encode = msgspec.json.Encoder().encode
_OURS = frozenset({"model", "messages", "tools", "stream"})
_MERGED = ("options",)


class OllamaEncoder(RunEncoder):
    """Write the requests of one run (`RunEncoder`)."""

    def __init__(self, model: str, *, num_ctx: int | None = None) -> None:
        super().__init__()
        self._model = model
        self._num_ctx = num_ctx
        self._instructions: str | None = None

    def _encode(self, request: ModelRequest) -> Pieces:
        messages = request.messages
        known = len(self._messages)
        split = 0 < known < len(messages) and isinstance(messages[known], ToolMessage) and _is_result(messages[known - 1])
        known = self._known(request, anew=split or request.instructions != self._instructions)
        if known == 0:
            self._restart()
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
            item = self._message(message)
            if len(item) > 2 or item["content"] or item["role"] != "assistant":
                self._add(item)
            if isinstance(message, ToolMessage) and message.images:
                self._leave_out("images", IMAGES, len(message.images))
                images = [base64_text(image) for image in message.images]
                shown.append({"role": "user", "content": images_heading(message), "images": images})
        self._add_all(shown)  # results come all at once, so no further one can follow that would move this
        self._instructions = request.instructions
        return (self._head(request), b',"messages":[', self._written, b"]}")

    def _add_all(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            self._add(item)

    def _head(self, request: ModelRequest) -> bytes:
        options = request.options
        settings: dict[str, Any] = {
            "num_ctx": request.window_tokens or self._num_ctx,
            "num_predict": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
            "stop": list(options.stop) or None,
        }
        head: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            # Else what does not fit is cut from the prompt, and from the conversation while the model writes, without a word.
            "truncate": False,
            "shift": False,
            "think": self._think(options.reasoning),
            "options": {key: value for key, value in settings.items() if value is not None} or None,
            "format": request.output.schema if request.output is not None else None,
        }
        head = with_extra_body(head, options, ours=_OURS, merged=_MERGED)
        if options.tool_choice not in (None, "auto", "none"):
            self._leave_out("tool_choice", "The format has no choice of tools: the model chooses.")
        self._leave_out_ttl(request)
        if options.tool_choice == "none":  # which is said by offering none
            request = replace(request, tools=())
        tools = self._tools(request, lambda tool: {"type": "function", "function": function(tool)})
        return _encode(head)[:-1] + (b',"tools":' + tools if tools else b"")

    def _think(self, effort: str | None) -> bool | str | None:
        if effort is None:
            return None
        knows_levels = "gpt-oss" in self._model  # documented: the one family that does, and that always thinks
        if effort == "off":
            if knows_levels:
                self._leave_out("reasoning", "The model cannot do without reasoning.")
            return False
        if not knows_levels:
            self._leave_out("reasoning", "This server knows only on and off: every level is on.")
        return effort if knows_levels else True

    def _message(self, message: Message) -> dict[str, Any]:
        if isinstance(message, AssistantMessage):
            return self._assistant(message)
        if isinstance(message, ToolMessage):
            item = {"role": "tool", "content": result_text(message), "tool_name": named(message.name)}
            return item if is_made_id(message.call_id) else item | {"tool_call_id": message.call_id}
        if isinstance(message, UserMessage) and message.attachments:
            texts = [_document(each) for each in message.attachments if isinstance(each, Document)]
            if texts:
                self._leave_out("documents", "The format has no documents: their text goes before the user's.", len(texts))
            item: dict[str, Any] = {"role": "user", "content": "\n\n".join((*texts, message.content))}
            if images := [base64_text(each) for each in message.attachments if isinstance(each, Image)]:
                item["images"] = images
            return item
        return {"role": message.__struct_config__.tag, "content": message.content}

    def _assistant(self, message: AssistantMessage) -> dict[str, Any]:
        tagged: list[str] = []
        thinking: list[str] = []
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, Text):
                texts.append(part.text)
            elif isinstance(part, Thinking):
                if part.source == "content":
                    tagged.append(part.raw or f"<think>{part.text}</think>")
                elif part.source != "block":
                    thinking.append(part.text)
                else:
                    self._leave_out("reasoning", REASONING)
            elif isinstance(part, Opaque):
                self._leave_out("part", PART)
            else:
                if part.signature:
                    self._leave_out("signature", SIGNATURE)
                called = {"name": named(part.name), "arguments": raw_object(part.arguments) or msgspec.Raw(b"{}")}
                calls.append(({} if is_made_id(part.id) else {"id": part.id}) | {"function": called})
        item: dict[str, Any] = {"role": "assistant", "content": "".join(tagged + texts)}
        if thinking:
            item["thinking"] = "".join(thinking)
        if calls:
            item["tool_calls"] = calls
        return item


def _is_result(message: Message) -> bool:
    return isinstance(message, ToolMessage)


def _document(document: Document) -> str:
    """A document's text before the user's: the format knows pictures only."""
    if not is_text(document):
        raise UsageError(
            f"Ollama takes no documents of type {document.media_type}",
            hint="Attach the text, or the pages as images, or use another provider.",
        )
    return f"[{document.name or 'document'}]\n{document.data.decode('utf-8', 'replace')}"
