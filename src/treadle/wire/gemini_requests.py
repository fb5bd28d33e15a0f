"""Gemini requests: a conversation to bytes. What is sent and why: docs/protocols/gemini.md."""

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
    Opaque,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Omission, Options
from treadle.wire.gemini_fold import FORMAT, MARK
from treadle.wire.untyped import object_, string

__all__ = ["GeminiEncoder"]

_encode = msgspec.json.Encoder().encode
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_.:-]")
_MADE_ID = re.compile(r"call_.{0,8}_\d+_\d+")  # the shape of the ids that the decoder makes up
_OURS = frozenset({"model", "contents", "messages", "systemInstruction", "system_instruction", "tools", "stream"})
_MERGED = ("generationConfig", "toolConfig")
_UNSIGNED = "skip_thought_signature_validator"
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_BUDGETS = {"low": 1024, "medium": 8192, "high": 24576}


class GeminiEncoder:
    """Write the requests of one run. Contents come last in the body and are written once: a longer conversation extends
    the bytes of a shorter one, so a turn costs what is new in it."""

    omitted: tuple[Omission, ...] = ()

    def __init__(self, model: str) -> None:
        self._name = model.rpartition("/")[2]
        self._three = _generation(self._name) >= 3
        self._messages: tuple[Message, ...] = ()
        self._written = bytearray()

    def encode(self, request: ModelRequest) -> bytes:
        messages = request.messages
        known = len(self._messages)
        if messages[:known] != self._messages or (known < len(messages) and _splits_results(messages, known)):
            known = 0
            self._written.clear()
        system = request.instructions
        if messages and isinstance(messages[0], SystemMessage):
            system = "\n\n".join(text for text in (system, messages[0].content) if text)
            known = max(known, 1)
        results: list[ToolMessage] = []
        for message in messages[known:]:
            if isinstance(message, ToolMessage):
                results.append(message)
                continue
            self._add_results(results)
            results = []
            if isinstance(message, AssistantMessage):
                self._add("model", self._model_parts(message))
            else:
                self._add("user", _user_parts(message))
        self._add_results(results)  # they come all at once, so no further one can follow that would move what is written
        self._messages = messages
        return b"".join((self._head(request, system), b'"contents":[', self._written, b"]}"))

    def _add(self, role: str, parts: list[Any]) -> None:
        if not parts:
            return
        try:
            written = _encode({"role": role, "parts": parts})
        except UnicodeEncodeError:
            raise UsageError(
                f"a message of role {role} holds half of a surrogate pair, which no JSON can carry",
                hint="Clean the text: text.encode('utf-8', 'replace').decode().",
            ) from None
        if self._written:
            self._written += b","
        self._written += written

    def _add_results(self, results: list[ToolMessage]) -> None:
        self._add("user", [self._result(result) for result in results])
        if self._three:
            return
        shown: list[Any] = []
        for result in results:
            if result.images:
                shown.append({"text": f"[Images of the result of {result.name}, {result.call_id}]"})
                shown += [_inline(image) for image in result.images]
        self._add("user", shown)

    def _result(self, message: ToolMessage) -> dict[str, Any]:
        content = f"{message.content}\n[{message.note}]" if message.note else message.content
        item = _with_id(message.call_id)
        item["name"] = _named(message.name)
        item["response"] = {"error" if message.is_error else "output": content}
        if self._three and message.images:  # multimodal function responses: Gemini 3 and later
            item["parts"] = [_inline(image) for image in message.images]
        return {"functionResponse": item}

    def _model_parts(self, message: AssistantMessage) -> list[Any]:
        parts: list[Any] = []
        content = message.content
        first_call = True
        for at, part in enumerate(content):
            if isinstance(part, Text):
                if part.text and not (at + 1 < len(content) and _stands_for(content[at + 1], part.text)):
                    parts.append({"text": part.text})
            elif isinstance(part, Thinking):
                if part.signature is not None and part.signature.startswith(MARK):
                    parts.append(_signed({"text": part.text, "thought": True}, part.signature))
            elif isinstance(part, ToolCall):
                item = _with_id(part.id)
                item["name"] = _named(part.name)
                item["args"] = msgspec.Raw(part.arguments.encode()) if _is_object(part.arguments) else {}
                whole = _signed({"functionCall": item}, part.signature)
                if first_call and self._three and "thoughtSignature" not in whole:
                    whole["thoughtSignature"] = _UNSIGNED
                first_call = False
                parts.append(whole)
            elif part.format == FORMAT:
                text = _text_of(part)
                before = content[at - 1] if at else None
                if text == "" or (isinstance(before, Text) and before.text == text):
                    parts.append(msgspec.Raw(part.data.encode()))
        return parts

    def _head(self, request: ModelRequest, system: str | None) -> bytes:
        options = request.options
        taken = _OURS & options.extra_body.keys()
        if taken:
            raise UsageError(f"extra_body may not set {', '.join(sorted(taken))}", hint="These fields are the run's own.")
        head: dict[str, Any] = {}
        if config := _generation_config(options, self._name):
            head["generationConfig"] = config
        if request.tools and options.tool_choice is not None:  # without tools the server refuses it
            head["toolConfig"] = {"functionCallingConfig": _calling(options.tool_choice)}
        for key, value in options.extra_body.items():
            head[key] = head.get(key, {}) | object_(value) if key in _MERGED else value
        if request.tools:
            declared = [
                {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}
                for tool in request.tools
            ]
            head["tools"] = [{"functionDeclarations": declared}]
        if system:
            head["systemInstruction"] = {"parts": [{"text": system}]}
        try:
            written = _encode(head)[:-1]
        except UnicodeEncodeError:
            raise UsageError(
                "the instructions or a tool hold half of a surrogate pair, which no JSON can carry",
                hint="Clean the text: text.encode('utf-8', 'replace').decode().",
            ) from None
        return written + b"," if head else written


def _generation(name: str) -> float:
    """3.1 of `gemini-3.1-flash`; 2 where the name does not say."""
    found = re.match(r"gemini-(\d+(?:\.\d+)?)", name)
    if found:
        return float(found[1])
    return 3 if re.fullmatch(r"gemini-(pro|flash|flash-lite)-latest", name) else 2


def _generation_config(options: Options, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "maxOutputTokens": options.max_tokens,
        "temperature": options.temperature,
        "topP": options.top_p,
        "seed": options.seed,
        "stopSequences": list(options.stop) or None,
        "thinkingConfig": _thinking(options.reasoning, name),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _thinking(effort: str | None, name: str) -> dict[str, Any] | None:
    if effort is None:
        return None
    pro = "pro" in name
    if effort == "off":  # the Pro models cannot do without: they get the least there is
        if _generation(name) >= 3:
            return {"thinkingLevel": "low" if pro else "minimal"}
        return {"thinkingBudget": 128 if pro else 0}
    if _generation(name) >= 3:
        if pro and effort == "medium" and _generation(name) == 3:  # Gemini 3 Pro knows low and high
            effort = "high"
        return {"thinkingLevel": effort, "includeThoughts": True}
    return {"thinkingBudget": _BUDGETS[effort], "includeThoughts": True}


def _calling(choice: str) -> dict[str, Any]:
    if choice in _MODES:
        return {"mode": _MODES[choice]}
    return {"mode": "ANY", "allowedFunctionNames": [choice]}


def _user_parts(message: UserMessage | SystemMessage) -> list[Any]:
    attached = message.attachments if isinstance(message, UserMessage) else ()
    parts: list[Any] = [_inline(each) for each in attached]
    if message.content or not parts:
        parts.append({"text": message.content})
    return parts


def _inline(attached: Image | Document) -> dict[str, Any]:
    return {"inlineData": {"mimeType": attached.media_type, "data": base64.b64encode(attached.data).decode()}}


def _signed(part: dict[str, Any], signature: str | None) -> dict[str, Any]:
    """With its signature, if it is one of Gemini's."""
    if signature is not None and signature.startswith(MARK) and signature != MARK:
        part["thoughtSignature"] = signature.removeprefix(MARK)
    return part


def _with_id(id: str) -> dict[str, Any]:
    """The id is sent if the server, or another provider, gave it; not if it was made up here, for a call that had none."""
    return {} if _MADE_ID.fullmatch(id) else {"id": id}


def _named(name: str) -> str:
    """A name that the server accepts. A name it would refuse was refused by us too: the result says so."""
    name = _NOT_IN_A_NAME.sub("_", name)[:64]
    return name if name[:1].isalpha() or name[:1] == "_" else f"_{name}"[:64]


def _text_of(part: Opaque) -> str | None:
    """The text in a part that was kept whole, empty if it is of another kind; None if it is no part."""
    if not _is_object(part.data):
        return None
    return string(object_(msgspec.json.decode(part.data)).get("text"))


def _stands_for(part: object, text: str) -> bool:
    return isinstance(part, Opaque) and part.format == FORMAT and _text_of(part) == text


def _splits_results(messages: tuple[Message, ...], at: int) -> bool:
    return at > 0 and isinstance(messages[at], ToolMessage) and isinstance(messages[at - 1], ToolMessage)


def _is_object(text: str) -> bool:
    try:
        return type(msgspec.json.decode(text)) is dict
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
