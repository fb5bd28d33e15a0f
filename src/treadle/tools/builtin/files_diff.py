"""What a write would change, as a unified diff for a person: bounded, and the same for the same texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import takewhile

from treadle.tools.builtin.workspace_paths import visible

__all__ = ["unified"]

_MAX_LINES = 400
_MAX_CHARS = 12_000  # less than what a result is cut to, so that the last line is there
_MAX_LINE_CHARS = 500
_MAX_COMPARED = 2_000  # changed lines; comparing takes up to the square of that
_CONTEXT = 3

_Change = tuple[str, int, int, int, int]


def unified(path: str, before: str | None, after: str) -> str:
    """The difference between two texts of a file; `before` is None for a new one.

    Line ends are left out if both texts use the same; otherwise a `\\r` shows as `\\u000d`. What cannot be seen is written out. A diff
    that is cut ends with a digest of the texts, so that two that differ only further down are told apart.
    """
    old, new = _lines(before or ""), _lines(after)
    if _has_only_crlf(after) and (before is None or _has_only_crlf(before)):
        old, new = [line.replace("\r\n", "\n") for line in old], [line.replace("\r\n", "\n") for line in new]
    shown = visible(path)
    lines = [f"--- {'/dev/null' if before is None else 'a/' + shown}", f"+++ b/{shown}"]
    chars, is_cut, left_out = 0, False, 0
    for line in _hunks(old, new):
        if len(lines) >= _MAX_LINES or chars > _MAX_CHARS:
            left_out += 1
            continue
        is_cut = is_cut or len(line) > _MAX_LINE_CHARS
        line = (
            line
            if len(line) <= _MAX_LINE_CHARS
            else f"{line[:_MAX_LINE_CHARS]}[... {len(line) - _MAX_LINE_CHARS:,} more characters]"
        )
        lines.append(visible(line, keep="\t\n"))
        chars += len(lines[-1])
    if left_out or is_cut:
        both = f"{before is None}\0{before or ''}\0{after}".encode("utf-8", "surrogatepass")
        said = f"{left_out:,} more lines of this diff are not shown" if left_out else "long lines are cut"
        lines.append(f"[... {said}; digest of the whole {hashlib.sha256(both).hexdigest()[:16]} ...]")
    return "\n".join(lines)


def _has_only_crlf(text: str) -> bool:
    return "\r\n" in text and text.count("\n") == text.count("\r\n")


def _lines(text: str) -> list[str]:
    """Lines with their ends; only a line feed ends one."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _hunks(old: list[str], new: list[str]) -> Iterator[str]:
    for group in _groups(old, new):
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from _marked(" ", old[i1:i2])
            else:
                yield from _marked("-", old[i1:i2])
                yield from _marked("+", new[j1:j2])


def _marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"


def _range(start: int, end: int) -> str:
    return f"{start + 1 if end > start else start},{end - start}"


def _groups(old: list[str], new: list[str]) -> Iterator[list[_Change]]:
    """Changes with three lines around them, near ones together. Only what lies between a common beginning and a common end is
    compared, and that only up to a size; beyond it is all taken out and all put in."""
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    if max(len(middle_old), len(middle_new)) <= _MAX_COMPARED:
        found = SequenceMatcher(None, middle_old, middle_new).get_opcodes()
        changes: list[_Change] = [(tag, i1 + head, i2 + head, j1 + head, j2 + head) for tag, i1, i2, j1, j2 in found]
    else:
        changes = [("replace", head, len(old) - tail, head, len(new) - tail)]
    changes = [("equal", 0, head, 0, head), *changes, ("equal", len(old) - tail, len(old), len(new) - tail, len(new))]
    group: list[_Change] = []
    has_change = False
    for number, (tag, i1, i2, j1, j2) in enumerate(changes, 1):
        if tag != "equal":
            group.append((tag, i1, i2, j1, j2))
            has_change = True
        elif not has_change:  # what comes before the first change: its last lines
            group = [("equal", max(i1, i2 - _CONTEXT), i2, max(j1, j2 - _CONTEXT), j2)]
        elif i2 - i1 > 2 * _CONTEXT or number == len(changes):
            yield [*group, ("equal", i1, min(i2, i1 + _CONTEXT), j1, min(j2, j1 + _CONTEXT))]
            group = [("equal", max(i1, i2 - _CONTEXT), i2, max(j1, j2 - _CONTEXT), j2)]
            has_change = False
        else:
            group.append((tag, i1, i2, j1, j2))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many lines two texts have in common at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
