"""What the requests of every format are made of: names, ids, arguments, files, what a result says, and `extra_body`."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from typing import Any

import msgspec

from treadle.errors import UsageError
from treadle.values.messages import Document, Image, ToolMessage
from treadle.values.request import ModelRequest, Options, ToolSpec
from treadle.wire.untyped import object_

__all__ = [
    "arguments",
    "base64_text",
    "call_id_prefix",
    "data_url",
    "function",
    "images_heading",
    "is_made_id",
    "is_text",
    "named",
    "object_in",
    "raw_object",
    "result_text",
    "tidied",
    "with_extra_body",
]

_NOT_TIDY = re.compile(r"[^a-zA-Z0-9_-]")
_MADE_ID = re.compile(r"call_.{0,8}_\d+_\d+")
_TEXT_TYPES = ("application/json", "application/xml", "application/yaml")


# Names and ids


def tidied(text: str) -> str:
    """Letters, digits, `_` and `-`, which every server takes in a name; any other character becomes `_`."""
    return _NOT_TIDY.sub("_", text)


def named(name: str) -> str:
    """A tool's name that strict servers accept. One they would refuse was refused by us too: the call's result says so."""
    return tidied(name)[:64] or "unknown"


def call_id_prefix(request: ModelRequest) -> str:
    """How ids begin that we make for the calls of this turn, where the server sent none, or one twice."""
    return f"call_{request.run_id[:8]}_{request.turn}_"


def is_made_id(id: str) -> bool:
    """The id has the shape of those that `call_id_prefix` begins."""
    return _MADE_ID.fullmatch(id) is not None


# Arguments. Those that are no JSON object were refused, and their result says so in words; some servers answer anything else
# than an object with an error (llama.cpp with a 500, captured), so an empty one is sent.


def object_in(text: str) -> dict[str, Any] | None:
    """The object that JSON text holds; None if it holds none."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def arguments(text: str) -> str:
    """A call's arguments as text: the characters they came in if they are a JSON object, else `{}`."""
    return "{}" if object_in(text) is None else text


def raw_object(text: str) -> msgspec.Raw | None:
    """JSON text of an object, to be put into a request as it is; None if it is no such text."""
    return None if object_in(text) is None else msgspec.Raw(text.encode())


def function(tool: ToolSpec) -> dict[str, Any]:
    """A tool, in the fields that most formats declare it with."""
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


# Results and files


def result_text(message: ToolMessage, *, flagged: bool = False) -> str:
    """What a result says: its text and its note, and that it is an error, unless the format flags those."""
    text = f"Error: {message.content}" if message.is_error and not flagged else message.content
    return f"{text}\n[{message.note}]" if message.note else text


def images_heading(message: ToolMessage) -> str:
    """What stands before images of a result that could not go with it."""
    return f"[Images of the result of {message.name}, {message.call_id}]"


def base64_text(attached: Image | Document) -> str:
    return base64.b64encode(attached.data).decode()


def data_url(attached: Image | Document) -> str:
    return f"data:{attached.media_type};base64,{base64_text(attached)}"


def is_text(document: Document) -> bool:
    """Its bytes are text, by its media type."""
    kind = document.media_type.partition(";")[0].strip()
    return kind.startswith("text/") or kind in _TEXT_TYPES


# The rest of a body


def with_extra_body(
    fields: dict[str, Any], options: Options, *, ours: Collection[str], merged: Collection[str] = ()
) -> dict[str, Any]:
    """The fields that are set, and those of `extra_body`, which go before ours; objects of `merged` are joined field by field.

    Raises:
        UsageError: `extra_body` has a field that is the run's own.
    """
    extra = options.extra_body
    if taken := sorted(key for key in extra if key in ours):
        raise UsageError(f"extra_body may not set {', '.join(taken)}", hint="These fields are the run's own.")
    body = {key: value for key, value in fields.items() if value is not None}
    for key, value in extra.items():
        body[key] = object_(body.get(key)) | object_(value) if key in merged else value
    return body
