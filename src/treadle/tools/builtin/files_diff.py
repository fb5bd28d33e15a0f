"""What a write would change, as a unified diff for a person: bounded, cheap, and the same for the same texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import islice

from treadle.tools.builtin.visible import one_line, visible

__all__ = ["digest", "line_count", "unified"]

_MAX_LINES = 400
_MAX_CHARS = 12_000  # less than what a result is cut to, so that the last line is there
_MAX_LINE_CHARS = 500
_MAX_COMPARED = 2_000  # changed lines; comparing takes up to the square of that
_CONTEXT = 3

_Change = tuple[str, int, int, int, int]


def unified(path: str, before: str | None, after: str) -> str:
    """The difference between two texts of a file; `before` is None for a new one.

    If both texts end their lines with CR LF, that is said once and left out; otherwise a carriage return shows as `\\u{d}`. What
    cannot be seen is written out. A diff that does not say all of the change ends with a digest of both texts, so that two that
    differ only in what it leaves out are told apart.
    """
    old, new = before or "", after
    shown = visible(one_line(path))
    lines = [f"--- {'/dev/null' if before is None else 'a/' + shown}", f"+++ b/{shown}"]
    if _has_only_crlf(new) and (before is None or _has_only_crlf(old)):
        old, new = old.replace("\r\n", "\n"), new.replace("\r\n", "\n")
        lines.append("(lines end with CR LF)")
    chars, is_cut, is_escaped = 0, False, False
    for line in _hunks(old, new):
        if line is None or len(lines) >= _MAX_LINES or chars > _MAX_CHARS:
            is_cut = True
            break
        part = line[: _MAX_LINE_CHARS + 1]
        seen = visible(part)
        is_escaped = is_escaped or seen != part
        if len(seen) > _MAX_LINE_CHARS:
            is_cut = True
            more = f" {len(line) - _MAX_LINE_CHARS:,}" if len(line) > _MAX_LINE_CHARS else ""
            seen = f"{seen[:_MAX_LINE_CHARS]}[...{more} more characters]"
        lines.append(seen)
        chars += len(seen)
    if is_cut or is_escaped:
        said = "not all of the change is shown" if is_cut else "what cannot be seen is written as \\u{...}"
        sizes = f"{line_count(old):,} lines before, {line_count(new):,} after"
        both = digest(f"{before is None}\0{before or ''}\0{after}".encode("utf-8", "surrogatepass"))
        lines.append(f"[... {said}; {sizes}; digest of both texts {both} ...]")
    return "\n".join(lines)


def digest(data: bytes) -> str:
    """Enough of a SHA-256 that nobody finds other bytes with the same: 32 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:32]


def line_count(text: str) -> int:
    """Lines of a text; only a line feed ends one."""
    return text.count("\n") + (not text.endswith("\n") and text != "")


def _has_only_crlf(text: str) -> bool:
    return "\r\n" in text and text.count("\n") == text.count("\r\n")


def _hunks(old: str, new: str) -> Iterator[str | None]:
    """The lines of the diff, made as they are asked for; None where some are left out. Only what lies between a common beginning and a common end is taken apart;
    if that is much, it is not compared either: all of it is taken out and put in, the beginnings of both shown."""
    start, same = _common_lines(old, new)
    end_old, end_new = len(old) - same, len(new) - same
    number = old.count("\n", 0, start)
    first = start
    head: list[str] = []
    while first and len(head) < _CONTEXT:
        first = old.rfind("\n", 0, first - 1) + 1
        head = list(_lines(old, first, start))
    tail = list(islice(_lines(old, end_old, len(old)), _CONTEXT))
    at = number - len(head)
    sizes = [line_count(old[start:end_old]), line_count(new[start:end_new])]
    if max(sizes) > _MAX_COMPARED:
        yield f"@@ -{_range(at, number + sizes[0] + len(tail))} +{_range(at, number + sizes[1] + len(tail))} @@"
        yield from _marked(" ", head)
        for mark, text, end in (("-", old, end_old), ("+", new, end_new)):
            chars = 0
            for line in islice(_lines(text, start, end), _MAX_LINES // 2 - 10):
                if chars > _MAX_CHARS // 2 - 2 * _MAX_LINE_CHARS:
                    break
                chars += min(len(line), _MAX_LINE_CHARS)
                yield from _marked(mark, [line])
        yield None
        return
    olds, news = list(_lines(old, start, end_old)), list(_lines(new, start, end_new))
    found: list[_Change] = [
        (tag, i1 + len(head), i2 + len(head), j1 + len(head), j2 + len(head))
        for tag, i1, i2, j1, j2 in SequenceMatcher(None, olds, news).get_opcodes()
    ]
    ends = (len(head) + len(olds), len(head) + len(news))
    around: list[_Change] = [
        ("equal", 0, len(head), 0, len(head)),
        *found,
        ("equal", ends[0], ends[0] + len(tail), ends[1], ends[1] + len(tail)),
    ]
    olds, news = [*head, *olds, *tail], [*head, *news, *tail]
    for group in _groups(around):
        g0, g1 = group[0], group[-1]
        yield f"@@ -{_range(at + g0[1], at + g1[2])} +{_range(at + g0[3], at + g1[4])} @@"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from _marked(" ", olds[i1:i2])
            else:
                yield from _marked("-", olds[i1:i2])
                yield from _marked("+", news[j1:j2])


def _lines(text: str, start: int, end: int) -> Iterator[str]:
    """Lines of a part of a text, with their ends."""
    while start < end:
        after = text.find("\n", start, end) + 1 or end
        yield text[start:after]
        start = after


def _marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"


def _range(start: int, end: int) -> str:
    return f"{start + 1 if end > start else start},{end - start}"


def _groups(changes: Sequence[_Change]) -> Iterator[list[_Change]]:
    """Changes with three lines around them, near ones together. The first and the last are `equal`."""
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


def _common_lines(a: str, b: str) -> tuple[int, int]:
    """How many characters of whole lines two texts have in common at the beginning, and, after those, at the end."""
    start, high = 0, min(len(a), len(b))
    while start < high:  # by halves: each comparison is one call, whatever the size
        middle = (start + high + 1) // 2
        start, high = (middle, high) if a[start:middle] == b[start:middle] else (start, middle - 1)
    start = a.rfind("\n", 0, start) + 1
    same, high = 0, min(len(a), len(b)) - start
    while same < high:
        middle = (same + high + 1) // 2
        is_same = a[len(a) - middle : len(a) - same] == b[len(b) - middle : len(b) - same]
        same, high = (middle, high) if is_same else (same, middle - 1)
    ends = [(text, len(text) - same) for text in (a, b)]
    if not all(at == start or text[at - 1] == "\n" for text, at in ends):
        same = len(a) - (a.find("\n", len(a) - same) + 1 or len(a))
    return start, same
