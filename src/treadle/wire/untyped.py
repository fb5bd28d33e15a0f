"""JSON whose shape nobody promised: ask for what should be there, get something empty where it is not."""

from __future__ import annotations

import json
from typing import Any, cast

__all__ = ["array", "count", "mended", "object_", "string"]


def object_(value: Any) -> dict[str, Any]:
    """The object itself; an empty one for anything else."""
    return cast(dict[str, Any], value) if type(value) is dict else {}


def array(value: Any) -> list[Any]:
    """The array itself; an empty one for anything else."""
    return cast(list[Any], value) if type(value) is list else []


def string(value: Any) -> str:
    """The string itself; an empty one for anything else."""
    return value if type(value) is str else ""


def count(value: Any) -> int | None:
    """The number itself if it can count something; else None, never 0."""
    return value if type(value) is int and value >= 0 else None


def mended(data: bytes) -> bytes | None:
    """JSON that is not quite JSON: bytes that are no UTF-8, half a surrogate pair, NaN in a field that nobody reads.

    What cannot be read becomes U+FFFD, as the event-stream standard has it, and what is no number null. None if it is no JSON
    at all.
    """
    try:
        value = json.loads(data.decode("utf-8", "replace"), parse_constant=lambda _: None)
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        return text.decode("utf-16", "replace").encode()
    except (ValueError, RecursionError):
        return None
