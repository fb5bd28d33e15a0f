"""Reading the rest of a result that was too long to be read at once."""

from __future__ import annotations

from typing import Annotated

from treadle.errors import ToolError
from treadle.tools.context import ToolContext
from treadle.tools.function import tool
from treadle.values.text import find_result

__all__ = ["read_result"]

PAGE_CHARS = 12_000
"""Of one page; under `Limits.tool_result_chars`, so that a page is not cut again."""

_MATCHES = 50
_LINE_CHARS = 200


@tool(concurrency="read_only", repeatable=True)
async def read_result(
    ctx: ToolContext,
    ref: Annotated[str, "As the cut result names it, such as r1a2b3c4d."],
    offset: Annotated[int, "Character to begin at, from 0."] = 0,
    max_chars: Annotated[int, "Characters to read, at most 12,000."] = PAGE_CHARS,
    find: Annotated[str, "Instead of a page: the lines that hold this text, each with its offset."] = "",
) -> str:
    """Read more of an earlier result that was cut because it was long."""
    text = find_result(ctx.messages, ref)
    if text is None:
        raise ToolError(
            f"no cut result is named {ref[:64]!r}. The line that says what was left out has the name.", kind="not_found"
        )
    if find:
        return _matches(text, find)
    if not 0 <= offset < len(text):
        raise ToolError(
            f"offset {offset} is outside of the result: it has {len(text):,} characters, from 0.", kind="invalid_input"
        )
    end = min(len(text), offset + max(1, min(max_chars, PAGE_CHARS)))
    if end < len(text) and (line_end := text.rfind("\n", offset, end) + 1) > offset + (end - offset) // 2:
        end = line_end
    rest = f"; go on with offset={end}" if end < len(text) else ", which is its end"
    return f"[characters {offset:,} to {end:,} of {len(text):,}{rest}]\n{text[offset:end]}"


def _matches(text: str, find: str) -> str:
    found: list[str] = []
    at, total = 0, 0
    while (at := text.find(find, at)) >= 0:
        line_start, line_end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
        line_end = len(text) if line_end < 0 else line_end
        total += 1
        if len(found) < _MATCHES:
            start = max(line_start, at - _LINE_CHARS // 2)
            found.append(f"{start}: {text[start : min(line_end, start + _LINE_CHARS)]}")
        at = max(line_end, at + 1)
    if not found:
        return f"No line of the result has {find[:200]!r}."
    shown = f", the first {len(found)}" if total > len(found) else ""
    return "\n".join((f"[{total:,} lines{shown}; each with its offset]", *found))
