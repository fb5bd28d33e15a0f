"""JSON whose shape nobody promised: ask for what should be there, get something empty where it is not."""

from __future__ import annotations

from typing import Any, cast

__all__ = ["array", "count", "object_", "string"]


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
