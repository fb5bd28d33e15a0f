"""A to-do list that lives in the conversation, so it is saved, resumed and forgotten with it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct

from treadle.errors import ToolError
from treadle.tools.function import tool
from treadle.values.toolcalls import ToolResult

__all__ = ["todo"]

_MARKS = {"open": "[ ]", "doing": "[>]", "done": "[x]"}
_MOST = 100


class Item(Struct, frozen=True):
    """One thing to do."""

    text: Annotated[str, "What is to be done."]
    status: Literal["open", "doing", "done"] = "open"


@tool(concurrency="read_only", repeatable=True)
async def todo(items: Annotated[list[Item], "The whole list, in order, finished items included."]) -> ToolResult:
    """Write down the steps of a longer task, and keep the list up to date as you go. Each call replaces the list."""
    if len(items) > _MOST:
        raise ToolError(f"{len(items)} items; a list has at most {_MOST}. Put the small ones together.", kind="invalid_input")
    lines = "\n".join(f"{_MARKS[item.status]} {' '.join(item.text.split())}" for item in items)
    left = sum(item.status != "done" for item in items)
    return ToolResult(content=f"{left} of {len(items)} left.\n{lines}".strip(), display=lines or "(the list is empty)")
