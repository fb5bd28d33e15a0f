"""The rules strict servers have for the `messages` of a Chat Completions request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["check_chat_history", "check_prefix"]


def check_chat_history(messages: Any) -> None:
    """Pass if every strict server would take these messages.

    - `system` only as the first message; the last is from `user` or `tool`.
    - `content` is there and is a string; in an assistant message it may be null.
    - An assistant message has text or calls; its `tool_calls` are left out rather than empty.
    - A call has `type: function`, an id that is not empty and not used twice in its message, a name, and `arguments`:
      a string that is a JSON object.
    - Right after an assistant message come its results, one `tool` message per call, in call order, with its id; and
      `tool` messages are nowhere else.

    Raises:
        AssertionError: A rule is broken; the message names the index.
    """
    _require(isinstance(messages, list) and messages, "messages", "must be a list that is not empty")
    waiting: list[str] = []  # ids of calls whose results must come next
    for index, message in enumerate(messages):
        here = f"messages[{index}]"
        _require(isinstance(message, dict), here, "must be an object")
        role = message.get("role")
        _require(role in ("system", "user", "assistant", "tool"), here, f"has the unknown role {role!r}")
        _require(role != "system" or index == 0, here, "is a system message that is not the first")
        _require("content" in message, here, "has no content")
        content = message["content"]
        nullable = role == "assistant"
        in_parts = (
            role == "user" and isinstance(content, list) and all(isinstance(p, dict) and p.get("type") in p for p in content)
        )
        _require(isinstance(content, str) or in_parts or (nullable and content is None), here, "content must be a string")
        _require(role == "assistant" or "tool_calls" not in message, here, f"is from {role} and has tool_calls")
        if role == "tool":
            _require(bool(waiting), here, "is a result without a call")
            expected, *waiting = waiting
            found = message.get("tool_call_id")
            _require(found == expected, here, f"must be the result of call {expected!r}, not of {found!r}")
            continue
        _require(not waiting, here, f"comes before the results of {waiting}")
        if role == "assistant":
            waiting = _ids_of_calls(message, here)
            _require(bool(content or waiting), here, "has neither text nor calls")
    here = f"messages[{len(messages) - 1}]"
    _require(not waiting, here, f"is the last, and calls {waiting} have no results")
    _require(messages[-1]["role"] in ("user", "tool"), here, "is the last, and neither from user nor a result")


def check_prefix(earlier: Sequence[Any], later: Sequence[Any]) -> None:
    """Pass if the later messages begin with the earlier ones, as the same JSON text.

    Raises:
        AssertionError: They do not; the message names the first index that moved.
    """
    for index, message in enumerate(earlier):
        here = f"messages[{index}]"
        _require(index < len(later), here, "is gone: the request before had it")
        _require(json.dumps(message) == json.dumps(later[index]), here, "is not what it was in the request before")


def _ids_of_calls(message: dict[str, Any], here: str) -> list[str]:
    if "tool_calls" not in message:
        return []
    calls = message["tool_calls"]
    _require(isinstance(calls, list) and calls, here, "has tool_calls that are not a list, or empty")
    ids: list[str] = []
    for position, call in enumerate(calls):
        at = f"{here}.tool_calls[{position}]"
        _require(isinstance(call, dict) and call.get("type") == "function", at, "must be of type function")
        _require(isinstance(call.get("id"), str) and call["id"], at, "has no id")
        _require(call["id"] not in ids, at, f"has the id {call['id']!r} of an earlier call")
        ids.append(call["id"])
        function = call.get("function")
        _require(isinstance(function, dict), at, "has no function")
        _require(isinstance(function.get("name"), str) and function["name"], at, "has no name")
        _require(isinstance(function.get("arguments"), str), at, "arguments must be a string")
        _require(_is_json_object(function["arguments"]), at, "arguments must be a JSON object")
    return ids


def _is_json_object(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict)
    except ValueError:
        return False


def _require(condition: object, where: str, what: str) -> None:
    if not condition:
        raise AssertionError(f"{where} {what}")
