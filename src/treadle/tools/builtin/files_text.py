"""The text of a file: what is taken as text, where something occurs in it, and lines of one that is not held in memory."""

from __future__ import annotations

import codecs

from treadle.errors import ToolError
from treadle.tools.builtin.workspace_paths import quoted

__all__ = [
    "MAX_FILE_BYTES", "Passage", "checked", "encoded", "exact_text", "is_binary", "line_numbers", "listed_lines", "near_miss", "places",
    "shown_text", "with_line_ends_of",
]  # fmt: skip

MAX_FILE_BYTES = 10_000_000  # read, edited or written at once
_MAX_SEARCHED = 200_000  # characters in which something like a text is looked for; nothing can interrupt it
_MAX_SOUGHT = 10_000
_MAX_PLACES = 10


def is_binary(data: bytes) -> bool:
    return b"\0" in data


def checked(data: bytes, path: str) -> bytes:
    """The bytes themselves, if they are text.

    Raises:
        ToolError: They are not, or are text in another encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ToolError(f"{quoted(path)} is text in UTF-16. Only UTF-8 is handled: have it converted.", kind="invalid_input")
    if is_binary(data):
        raise ToolError(f"{quoted(path)} is a binary file, not text.", kind="invalid_input")
    return data


def shown_text(data: bytes, *, is_start: bool = True) -> tuple[str, str]:
    """Bytes as text to read, and a remark if some of them are not UTF-8."""
    data = data.removeprefix(codecs.BOM_UTF8) if is_start else data
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        said = "it is not all UTF-8: \ufffd stands for bytes that are not, and it cannot be edited"
        return data.decode("utf-8", "replace"), f"; {said}"


def exact_text(data: bytes, path: str) -> str:
    """Text that encodes to the same bytes again, byte order mark included.

    Raises:
        ToolError: It is no text, or not all UTF-8.
    """
    try:
        return checked(data, path).decode()
    except UnicodeDecodeError:
        said = "is not all UTF-8, so an edit could damage it"
        raise ToolError(f"{quoted(path)} {said}. Nothing was changed.", kind="invalid_input") from None


def encoded(text: str, name: str) -> bytes:
    """A text that a model gave as the argument `name`, as it goes into a file.

    Raises:
        ToolError: It is too long, or no text.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ToolError(f"`{name}` holds half of a surrogate pair, which is no text.", kind="invalid_input") from None
    if is_binary(data):
        raise ToolError(f"`{name}` holds a NUL character. Only text can be written.", kind="invalid_input")
    if len(data) > MAX_FILE_BYTES:
        raise ToolError(f"`{name}` has {len(data):,} bytes; at most {MAX_FILE_BYTES:,} can be written.", kind="invalid_input")
    return data


class Passage:
    """Collects some lines of a file from its blocks, so that the rest of it is never held.

    Attributes:
        data: The lines, at most `MAX_FILE_BYTES`.
        line: The one that the next byte belongs to, from 1, until `is_whole`.
        is_whole: No more bytes are needed.
        is_cut: The lines are longer than may be had at once.
    """

    def __init__(self, start_line: int, max_lines: int | None) -> None:
        self.data = bytearray()
        self.line = 1
        self.is_whole = False
        self.is_cut = False
        self._start = start_line
        self._end = None if max_lines is None else start_line + max_lines

    def feed(self, block: bytes) -> None:
        at = 0
        while self.line < self._start:
            ends = block.count(b"\n", at)
            if self.line + ends < self._start:  # the common case on the way there, in one step
                self.line += ends
                return
            at = block.find(b"\n", at) + 1
            self.line += 1
        while at < len(block):
            if self.line == self._end:
                self.is_whole = True
                return
            end = block.find(b"\n", at) + 1
            self.data += block[at : end or len(block)]
            if len(self.data) > MAX_FILE_BYTES:
                del self.data[MAX_FILE_BYTES:]
                self.is_whole = self.is_cut = True
                return
            if not end:
                return
            self.line += 1
            at = end
        self.is_whole = self.line == self._end


def with_line_ends_of(text: str, old: str, new: str) -> tuple[str, str]:
    """What to replace and by what, with the line ends of the text: models write line feeds, whatever they read.

    A text that has both kinds of ends is taken at its word, unless `old` is found only with the other kind.
    """
    if "\r\n" not in text:
        return old, new
    is_mixed = text.count("\n") != text.count("\r\n")
    if is_mixed and old in text:
        return old, new
    return _as_crlf(old), _as_crlf(new)


def _as_crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def places(text: str, old: str, *, at_most: int, step: int = 1) -> list[int]:
    """Where it begins, each place at least `step` characters after the one before."""
    found: list[int] = []
    at = text.find(old)
    while at >= 0 and len(found) < at_most:
        found.append(at)
        at = text.find(old, at + step)
    return found


def line_numbers(text: str, at: list[int]) -> list[int]:
    """The lines, from 1, of places in rising order."""
    numbers: list[int] = []
    line, counted = 1, 0
    for place in at:
        line += text.count("\n", counted, place)
        counted = place
        numbers.append(line)
    return numbers


def listed_lines(lines: list[int]) -> str:
    unique = list(dict.fromkeys(lines))
    return f"line{'s' if len(unique) > 1 else ''} {', '.join(map(str, unique))}"


def near_miss(text: str, old: str) -> str:
    """Where something like `old` is, without quoting the file. In long texts, or for a long `old`, only its first line is looked for."""
    if len(text) <= _MAX_SEARCHED and len(old) <= _MAX_SOUGHT and (words := " ".join(old.split())):
        joined = " ".join(text.split())
        at = joined.find(words)
        if at >= 0:
            line = _line_of_word(text, joined.count(" ", 0, at))
            return f"At line {line} is text that differs from it only in white space. Copy it exactly."
        at = text.casefold().find(old.casefold()) if text.isascii() else -1
        if at >= 0:
            line = line_numbers(text, [at])[0]
            return f"At line {line} is text that differs from it only in upper and lower case. Copy it exactly."
    first = old.lstrip().partition("\n")[0].strip()
    if first and (found := places(text, first, at_most=_MAX_PLACES)):
        lines = listed_lines(line_numbers(text, found))
        return f"Its first line occurs at {lines}, but what follows differs. Read the file again."
    return "Read the file again and copy the text exactly."


def _line_of_word(text: str, number: int) -> int:
    """The line, from 1, that has the word of this number, from 0."""
    for line, content in enumerate(text.split("\n"), 1):
        number -= len(content.split())
        if number < 0:
            return line
    return 1
