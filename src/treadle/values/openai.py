"""OpenAI-style message dicts, as most people's histories are, as messages."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from treadle.errors import HistoryError
from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Message,
    Part,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)

__all__ = ["message_from_dict"]

_HINT = 'Write {"role": "user", "content": "..."}, with role system, user, assistant or tool; or pass `result.messages`.'


def message_from_dict(item: Mapping[str, Any], index: int, names: dict[str, str]) -> Message:
    """The message that a Chat Completions dict means.

    Args:
        index: Its place in the history, for errors.
        names: Of tools, by the id of the call; filled from assistant messages and read by tool messages.

    Raises:
        HistoryError: It is none, or holds what cannot be carried over, such as an image that is only linked to.
    """
    try:
        match item.get("role"):
            case "system" | "developer":
                return SystemMessage(_text(item.get("content")))
            case "user":
                return _user(item.get("content"))
            case "assistant":
                return _assistant(item, names)
            case "tool":
                call_id = _str(item["tool_call_id"], "tool_call_id")
                return ToolMessage(call_id, _str(item.get("name") or names.get(call_id, ""), "name"), _text(item.get("content")))
            case role:
                raise ValueError(f"its role is {role!r}")
    except KeyError as missing:
        raise HistoryError(f"item {index} of the history has no {missing.args[0]!r}", hint=_HINT) from None
    except (ValueError, TypeError) as error:
        raise HistoryError(f"item {index} of the history cannot be read: {error}", hint=_HINT) from None


def _assistant(item: Mapping[str, Any], names: dict[str, str]) -> AssistantMessage:
    parts: list[Part] = []
    for field in ("reasoning_content", "reasoning"):
        if isinstance(said := item.get(field), str) and said:
            parts.append(Thinking(said, field))
    if text := _text(item.get("content")) or _text(item.get("refusal")):
        parts.append(Text(text))
    for call in _list(item.get("tool_calls") or [], "tool_calls"):
        function = call["function"]
        arguments = function.get("arguments", "")
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        made = ToolCall(_str(call.get("id") or "", "id"), _str(function["name"], "name"), arguments)
        names[made.id] = made.name
        parts.append(made)
    return AssistantMessage(tuple(parts))


def _user(content: Any) -> UserMessage:
    if isinstance(content, str):
        return UserMessage(content)
    texts: list[str] = []
    attached: list[Image | Document] = []
    for part in _list(content, "content"):
        match part.get("type"):
            case "text":
                texts.append(_str(part["text"], "text"))
            case "image_url":
                media_type, data = _data(part["image_url"]["url"])
                attached.append(Image(data, media_type))
            case "file":
                media_type, data = _data(part["file"]["file_data"])
                attached.append(Document(data, media_type, part["file"].get("filename")))
            case kind:
                raise ValueError(f"a part of type {kind!r} is not known")
    return UserMessage("\n".join(texts), tuple(attached))


def _text(content: Any) -> str:
    """The text of a content: a string, nothing, or text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part.get("text", part.get("refusal")) for part in _list(content, "content")]
    return "".join(_str(part, "text") for part in parts)


def _data(url: Any) -> tuple[str, bytes]:
    head, comma, data = _str(url, "url").partition(",")
    media_type = head.removeprefix("data:").removesuffix(";base64")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError("a file is only linked to; pass its bytes as a data: URL")
    try:
        return media_type, base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError("a data: URL holds no base64") from None


def _str(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{what}` is a {type(value).__name__}")
    return value


def _list(value: Any, what: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in cast("list[Any]", value)):
        raise ValueError(f"`{what}` is no list of objects")
    return cast("Sequence[Mapping[str, Any]]", value)
