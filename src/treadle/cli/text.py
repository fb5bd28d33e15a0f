"""What models, tools and files say, made fit for a person's screen: it must neither steer the terminal nor pass for our own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import msgspec
from rich.cells import chop_cells
from rich.text import Text as Styled

__all__ = ["boxed", "exact", "harmless", "is_diff", "one_line", "pretty_json", "shown_call", "styled_rows"]

_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Letters of Unicode that are drawn as nothing or as a blank: fillers and variation selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")

_PREVIEW_CHARS = 200
_TAB = 8
_DIFF_STYLES = {"@": "cyan", "+": "green", "-": "red", "\\": "dim"}


def harmless(text: str) -> str:
    """The text without characters that could steer a terminal or reverse what is read. A model's output is foreign."""
    return _STEERS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def exact(text: str) -> str:
    """The text for somebody who has to decide about it: what cannot be seen, blanks but the usual one too, is written as `\\uXXXX`."""
    return "".join(
        char if char in "\n\t" or (char.isprintable() and not _BLANK.match(char)) else f"\\u{ord(char):04x}" for char in text
    )


def is_diff(text: str) -> bool:
    """It looks like a unified diff."""
    lines = text.split("\n", 4)
    return any(a.startswith("--- ") and b.startswith("+++ ") for a, b in pairwise(lines))


def styled_rows(text: str, width: int, *, style: str = "") -> Iterator[Styled]:
    """The text cut into rows of at most `width` cells, coloured by line if it is a diff.

    Cut here and not by the terminal, so that a long line cannot begin a row of its own outside of whatever frames it.
    """
    as_diff = is_diff(text)
    for number, line in enumerate(text.split("\n")):
        line_style = style
        if as_diff:
            is_head = number < 3 and line.startswith(("--- ", "+++ "))
            line_style = "bold" if is_head else _DIFF_STYLES.get(line[:1], style)
        for row in chop_cells(line.expandtabs(_TAB), max(8, width)) or [""]:
            yield Styled(row, line_style, no_wrap=True, end="")


def boxed(text: str, width: int, *, max_rows: int | None = None) -> tuple[list[Styled], int]:
    """The rows of a text, each behind a bar, and how many were left out: of a long one there are its head and tail."""
    rows = list(styled_rows(exact(text.rstrip("\n")), width - 2))
    left_out = 0
    if max_rows is not None and len(rows) > max_rows:
        head, tail = max_rows * 2 // 3, max_rows - max_rows * 2 // 3 - 1
        left_out = len(rows) - head - tail
        rows = [*rows[:head], Styled(f"… {left_out:,} more lines …", "bold yellow"), *rows[len(rows) - tail :]]
    return [Styled.assemble(("│ ", "dim yellow"), row) for row in rows], left_out


def shown_call(name: str, arguments: str) -> str:
    """A call as one would write it in Python, on one line, shortened."""
    try:
        given = msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return harmless(f"{name} {one_line(arguments)}")
    return harmless(f"{name}({one_line(', '.join(f'{key}={bytes(value).decode()}' for key, value in given.items()))})")


def pretty_json(arguments: str) -> str:
    """A call's arguments over several lines; as they are if they are no JSON."""
    try:
        return msgspec.json.format(arguments, indent=2)
    except msgspec.MsgspecError:
        return arguments


def one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _PREVIEW_CHARS else line[: _PREVIEW_CHARS - 1] + "…"
