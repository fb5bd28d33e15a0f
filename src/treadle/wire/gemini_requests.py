"""Gemini requests: a conversation to bytes. What is sent and why: docs/protocols/gemini.md."""

from __future__ import annotations

import re
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
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, ToolSpec
from treadle.wire.encoder import IMAGES, PART, REASONING, SIGNATURE, Pieces, RunEncoder
from treadle.wire.gemini_fold import FORMAT, MARK
from treadle.wire.parts import base64_text, images_heading, is_made_id, object_in, raw_object, result_text, with_extra_body
from treadle.wire.untyped import string

__all__ = ["GeminiEncoder", "is_three"]

_encode = msgspec.json.Encoder().encode
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_.:-]")
_OURS = frozenset({"model", "contents", "messages", "systemInstruction", "system_instruction", "tools", "stream"})
_MERGED = ("generationConfig", "toolConfig")
_UNSIGNED = "skip_thought_signature_validator"
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_BUDGETS = {"low": 1024, "medium": 8192, "high": 24576}


class GeminiEncoder(RunEncoder):
    """Write the requests of one run (`RunEncoder`)."""

    def __init__(self, model: str) -> None:
        super().__init__(name="contents")
        self._name = model.rpartition("/")[2]
        self._three = is_three(model)

    def _encode(self, request: ModelRequest) -> Pieces:
        messages = request.messages
        known = len(self._messages)
        known = self._known(request, anew=known < len(messages) and _splits_results(messages, known))
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
                self._write("model", self._model_parts(message))
            else:
                self._write("user", self._user_parts(message))
        self._add_results(results)  # they come all at once, so no further one can follow that would move what is written
        return (self._head(request, system), b'"contents":[', self._written, b"]}")

    def _write(self, role: str, parts: list[Any]) -> None:
        if parts:
            self._add({"role": role, "parts": parts})

    def _add_results(self, results: list[ToolMessage]) -> None:
        self._write("user", [self._result(result) for result in results])
        if self._three:
            return
        shown: list[Any] = []
        for result in results:
            if result.images:
                self._leave_out("images", IMAGES, len(result.images))
                shown += [{"text": images_heading(result)}, *map(_inline, result.images)]
        self._write("user", shown)

    def _result(self, message: ToolMessage) -> dict[str, Any]:
        item = _with_id(message.call_id)
        item["name"] = _named(message.name)
        item["response"] = {"error" if message.is_error else "output": result_text(message, flagged=True)}
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
                else:
                    self._leave_out("reasoning", REASONING)
            elif isinstance(part, ToolCall):
                item = _with_id(part.id)
                item["name"] = _named(part.name)
                item["args"] = raw_object(part.arguments) or {}
                if part.signature and not part.signature.startswith(MARK):
                    self._leave_out("signature", SIGNATURE)
                whole = _signed({"functionCall": item}, part.signature)
                if first_call and self._three and "thoughtSignature" not in whole:
                    whole["thoughtSignature"] = _UNSIGNED
                first_call = False
                parts.append(whole)
            else:
                text = _text_of(part) if part.format == FORMAT else None
                before = content[at - 1] if at else None
                if text == "" or (isinstance(before, Text) and before.text == text):
                    parts.append(msgspec.Raw(part.data.encode()))
                else:
                    self._leave_out("part", PART)
        return parts

    def _user_parts(self, message: UserMessage | SystemMessage) -> list[Any]:
        if isinstance(message, SystemMessage):
            self._leave_out("system", "The format has no system message but the first: later ones go as the user's.")
            return [{"text": message.content}]
        parts: list[Any] = [_inline(each) for each in message.attachments]
        if named := sum(isinstance(each, Document) and bool(each.name) for each in message.attachments):
            self._leave_out("documents", "The format has no field for a document's name.", named)
        if message.content or not parts:
            parts.append({"text": message.content})
        return parts

    def _head(self, request: ModelRequest, system: str | None) -> bytes:
        options = request.options
        head: dict[str, Any] = {
            "generationConfig": self._generation_config(request) or None,
            "toolConfig": self._tool_config(request),
        }
        head = with_extra_body(head, options, ours=_OURS, merged=_MERGED)
        self._leave_out_ttl(request)
        tools = self._tools(request, _tool)
        said = self.prefix.system = _encode({"parts": [{"text": system}]}) if system else b""
        fields = [_encode(head)[1:-1]] if head else []
        if tools:
            fields.append(b'"tools":[{"functionDeclarations":' + tools + b"}]")
        if said:
            fields.append(b'"systemInstruction":' + said)
        return b"{" + b"".join(field + b"," for field in fields)

    def _generation_config(self, request: ModelRequest) -> dict[str, Any]:
        options, output = request.options, request.output
        fields: dict[str, Any] = {
            "maxOutputTokens": options.max_tokens,
            "temperature": options.temperature,
            "topP": options.top_p,
            "seed": options.seed,
            "stopSequences": list(options.stop) or None,
            "thinkingConfig": self._thinking(options.reasoning),
        }
        if output is not None:
            fields |= {"responseMimeType": "application/json", "responseJsonSchema": output.schema}
        return {key: value for key, value in fields.items() if value is not None}

    def _thinking(self, effort: str | None) -> dict[str, Any] | None:
        if effort is None:
            return None
        pro = "pro" in self._name
        if effort == "off":
            if pro or self._three:
                self._leave_out("reasoning", "The model cannot do without reasoning: it is asked for the least there is.")
            if self._three:
                return {"thinkingLevel": "low" if pro else "minimal"}
            return {"thinkingBudget": 128 if pro else 0}
        if self._three:
            if pro and effort == "medium" and _generation(self._name) == 3:
                self._leave_out("reasoning", "The model knows no medium effort: it is asked for a high one.")
                effort = "high"
            return {"thinkingLevel": effort, "includeThoughts": True}
        return {"thinkingBudget": _BUDGETS[effort], "includeThoughts": True}

    def _tool_config(self, request: ModelRequest) -> dict[str, Any] | None:
        choice = request.options.tool_choice
        if choice is None:
            return None
        if not request.tools:  # refused without
            self._leave_out_choice(choice)
            return None
        if choice in _MODES:
            return {"functionCallingConfig": {"mode": _MODES[choice]}}
        return {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": [choice]}}


def is_three(model: str) -> bool:
    """A model of Gemini's third generation or later, by its name."""
    return _generation(model.rpartition("/")[2]) >= 3


def _generation(name: str) -> float:
    """3.1 of `gemini-3.1-flash`; 2 where the name does not say."""
    found = re.match(r"gemini-(\d+(?:\.\d+)?)", name)
    if found:
        return float(found[1])
    return 3 if re.fullmatch(r"gemini-(pro|flash|flash-lite)-latest", name) else 2


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}


def _inline(attached: Image | Document) -> dict[str, Any]:
    return {"inlineData": {"mimeType": attached.media_type, "data": base64_text(attached)}}


def _signed(part: dict[str, Any], signature: str | None) -> dict[str, Any]:
    """With its signature, if it is one of Gemini's."""
    if signature is not None and signature.startswith(MARK) and signature != MARK:
        part["thoughtSignature"] = signature.removeprefix(MARK)
    return part


def _with_id(id: str) -> dict[str, Any]:
    """The id is sent if the server, or another provider, gave it; not if it was made up here, for a call that had none."""
    return {} if is_made_id(id) else {"id": id}


def _named(name: str) -> str:
    """A name that the server accepts. A name it would refuse was refused by us too: the result says so."""
    name = _NOT_IN_A_NAME.sub("_", name)[:64]
    return name if name[:1].isalpha() or name[:1] == "_" else f"_{name}"[:64]


def _text_of(part: Opaque) -> str | None:
    """The text in a part that was kept whole, empty if it is of another kind; None if it is no part."""
    data = object_in(part.data)
    return None if data is None else string(data.get("text"))


def _stands_for(part: object, text: str) -> bool:
    return isinstance(part, Opaque) and part.format == FORMAT and _text_of(part) == text


def _splits_results(messages: tuple[Message, ...], at: int) -> bool:
    return at > 0 and isinstance(messages[at], ToolMessage) and isinstance(messages[at - 1], ToolMessage)
