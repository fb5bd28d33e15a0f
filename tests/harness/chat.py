"""Chat Completions answers, piece by piece or whole.

The `_chunk` builders give dicts for `sse`; an argument that is None is left out of the chunk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .server import data_line

__all__ = ["call_chunk", "completion", "finish_chunk", "reply", "text_chunk", "thinking_chunk", "usage_chunk"]

_MODEL = "test-model"


def text_chunk(text: str) -> dict[str, Any]:
    """A piece of the answer."""
    return _chunk({"content": text})


def thinking_chunk(text: str, field: str = "reasoning_content") -> dict[str, Any]:
    """A piece of reasoning, under the name this server has for it."""
    return _chunk({field: text})


def call_chunk(index: int | None = 0, *, id: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    """A piece of a tool call. `arguments` is text as a rule; some servers send an object."""
    function = _without_none(name=name, arguments=arguments)
    kind = "function" if id is not None or name is not None else None
    call = _without_none(index=index, id=id, type=kind, function=function or None)
    return _chunk({"tool_calls": [call]})


def finish_chunk(reason: str = "stop") -> dict[str, Any]:
    """Why the turn stopped."""
    return _chunk({}, finish=reason)


def usage_chunk(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The count that comes last, in a chunk without choices."""
    return {**_chunk({}), "choices": [], "usage": _usage(prompt_tokens, completion_tokens)}


def reply(
    text: str = "",
    *,
    thinking: str = "",
    calls: Sequence[tuple[str, dict[str, Any]]] = (),
    finish: str | None = None,
    usage: tuple[int, int] | None = (10, 5),
    id_prefix: str = "call_",
) -> list[bytes]:
    """A whole turn as `data:` frames for `sse`, without `[DONE]`.

    Text comes in two pieces, and so do the arguments of each call, whose id is `id_prefix` and its position. The reason
    to stop is `tool_calls` if there are calls, else `stop`, unless `finish` says another.
    """
    chunks: list[dict[str, Any]] = [_chunk({"role": "assistant", "content": None})]
    chunks += [thinking_chunk(piece) for piece in _halves(thinking)]
    chunks += [text_chunk(piece) for piece in _halves(text)]
    for index, (name, arguments) in enumerate(calls):
        chunks.append(call_chunk(index, id=f"{id_prefix}{index}", name=name, arguments=""))
        chunks += [call_chunk(index, arguments=piece) for piece in _halves(json.dumps(arguments))]
    chunks.append(finish_chunk(finish or ("tool_calls" if calls else "stop")))
    if usage is not None:
        chunks.append(usage_chunk(*usage))
    return [data_line(chunk) for chunk in chunks]


def completion(
    text: str | None = None,
    *,
    calls: Sequence[tuple[str, dict[str, Any]]] = (),
    finish: str | None = None,
    usage: tuple[int, int] | None = (10, 5),
    id_prefix: str = "call_",
) -> dict[str, Any]:
    """A whole turn as the body of an answer that is not streamed, for `json_reply`."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"{id_prefix}{index}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for index, (name, arguments) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": finish or ("tool_calls" if calls else "stop")}
    body = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": _MODEL, "choices": [choice]}
    return body if usage is None else {**body, "usage": _usage(*usage)}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": _MODEL, "choices": [choice]}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [piece for piece in (text[:middle], text[middle:]) if piece]


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
