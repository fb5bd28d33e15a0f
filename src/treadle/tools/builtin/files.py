"""Tools for the files of one directory: list, read, search, write, edit.

    agent = Agent("ollama/qwen3:8b", tools=file_tools("."))

Files are text in UTF-8. What is read is exactly what is in the file, so that it can be copied into an edit; only a byte order mark is
left out. A write puts a whole new file in the old one's place, so nobody ever sees half of it.
"""

from __future__ import annotations

import codecs
import os
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec

from treadle.errors import ToolError
from treadle.tools.builtin.files_diff import unified
from treadle.tools.builtin.files_glob import Glob
from treadle.tools.builtin.search import search_tool
from treadle.tools.builtin.workspace import NO_FILE, Budget, Entry, Workspace, version_of, walk
from treadle.tools.builtin.workspace_paths import quoted, visible
from treadle.tools.function import FunctionTool, tool
from treadle.values.toolcalls import ToolResult

__all__ = ["file_tools"]

_MAX_FILE_BYTES = 10_000_000  # read, edited or written at once
_SAY_SIZE_CHARS = 15_000  # a longer text is shortened on its way to the model, which should know how to ask for the rest
_BLOCK = 1 << 16
_MAX_LISTED = 500
_MAX_SEEN = 50_000
_MAX_DEPTH = 20
_WALK_S = 20.0
_SKIP_S = 20.0  # to reach a line of a file that is too large to read whole
_MAX_PLACES = 10

_Line = Annotated[int, msgspec.Meta(ge=1)]


def file_tools(workspace: str | Path, *, read_only: bool = False) -> tuple[FunctionTool[..., Any], ...]:
    """Tools for the files of a directory: `list_files`, `read_file`, `search_files`, `write_file`, `edit_file`.

    Nothing outside the directory is read or written: see `treadle.tools.builtin.workspace`. A person is asked before a file is
    written or edited, and sees what would change. Approval rules are held against the path inside the workspace: a rule for
    `docs/*` is not met by `docs/../src/x`. `.git` can be read and not written.

    Args:
        workspace: An existing directory.
        read_only: Only the first three.

    Raises:
        UsageError: There is no such directory, or it is the whole file system.
    """
    space = Workspace(workspace)
    reading = (_list_tool(space), _read_tool(space), search_tool(space))
    return reading if read_only else (*reading, _write_tool(space), _edit_tool(space))


def _list_tool(space: Workspace) -> FunctionTool[..., Any]:
    @tool(concurrency="read_only", group="files", repeatable=True, subjects=space.subjects)
    def list_files(
        path: str = ".", pattern: str | None = None, depth: Annotated[int, msgspec.Meta(ge=1, le=_MAX_DEPTH)] | None = None
    ) -> str:
        """List the files in a directory of the workspace, hidden ones too. Directories end with `/`.

        Args:
            path: The directory.
            pattern: Only files like this, at any depth, such as `*.py` or `src/**/*.ts`.
            depth: How many levels of directories to list; 1 if not given. `.git`, `node_modules` and caches are not entered.
        """
        glob = None if pattern is None else Glob(pattern)
        levels = depth or (_MAX_DEPTH if glob else 1)
        names = space.names(path)
        budget = Budget(entries=_MAX_SEEN, seconds=_WALK_S)
        lines: list[str] = []
        count = 0
        with space.directory(names) as directory, closing(walk(directory, depth=levels, budget=budget)) as found:
            for entry in found:
                if glob and not (entry.kind != "directory" and glob.fits((*entry.parent.names, entry.name)[len(names) :])):
                    continue
                count += 1
                if count <= _MAX_LISTED:
                    lines.append(_listed(entry, is_deep=levels > 1))
        if count > _MAX_LISTED:
            lines.append(f"[{count - _MAX_LISTED:,} more are left out; list a directory below, or give a pattern]")
        if said := budget.said():
            lines.append(f"[incomplete: {said}]")
        if not count:
            where = quoted("/".join(names) or ".")
            lines.insert(0, f"no file like {quoted(pattern)} in {where}" if pattern else f"{where} is empty")
        return "\n".join(lines)

    return list_files


def _listed(entry: Entry, *, is_deep: bool) -> str:
    shown = visible(entry.path)
    match entry.kind:
        case "file":
            return f"{shown} ({entry.size:,} bytes)"
        case "directory":
            return f"{shown}/ (not entered)" if is_deep and not entry.is_entered else f"{shown}/"
        case "link":
            return f"{shown} (a link, not followed)"
        case "other":
            return f"{shown} (not a regular file)"


def _read_tool(space: Workspace) -> FunctionTool[..., Any]:
    @tool(concurrency="read_only", group="files", repeatable=True, subjects=space.subjects)
    def read_file(path: str, start_line: _Line = 1, max_lines: _Line | None = None) -> str:
        """Read a text file of the workspace.

        Args:
            path: The file.
            start_line: The first line to read.
            max_lines: How many lines to read; all if not given.
        """
        is_part = start_line > 1 or max_lines is not None
        with space.file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_FILE_BYTES:
                if not is_part:
                    said = f"{size:,} bytes, more than the {_MAX_FILE_BYTES:,} that are read at once"
                    advice = "Read a part with start_line and max_lines, or use search_files"
                    raise ToolError(f"{quoted(path)} has {said}. {advice}.", kind="invalid_input")
                return _part_of_large(file, path, size, start_line, max_lines)
            data = file.read(_MAX_FILE_BYTES + 1)
        text, note = _shown_text(_checked(data, path))
        if is_part:
            lines = _lines(text)
            if start_line > max(1, len(lines)):
                said = f"has {_counted(len(lines), 'line')}, so it has no line {start_line:,}"
                raise ToolError(f"{quoted(path)} {said}.", kind="invalid_input")
            end = len(lines) if max_lines is None else min(len(lines), start_line - 1 + max_lines)
            if (start_line, end) != (1, len(lines)):
                note = f"lines {start_line}-{end} of {len(lines):,}; {len(text):,} characters in all{note}"
                return f"[{note}]\n{''.join(lines[start_line - 1 : end])}"
        if len(text) > _SAY_SIZE_CHARS:
            note = f"; {len(_lines(text)):,} lines, {len(text):,} characters; start_line and max_lines read a part{note}"
        if not text:
            return "[the file is empty]"
        return f"[{note.removeprefix('; ')}]\n{text}" if note else text

    return read_file


def _write_tool(space: Workspace) -> FunctionTool[..., Any]:
    def plan(path: str, content: str) -> _Change:
        names = _target(space, path)
        data = _encoded(content, "content")
        before, version, note = None, NO_FILE, ""
        try:
            before, version = _read_whole(space, names)
        except ToolError as error:
            if error.kind != "not_found":
                raise
        except _TooLarge as large:
            before, version, note = b"", None, f"(replaces a file of {large.size:,} bytes, which is too large to compare)\n"
        return _Change(names, before, data, version, note)

    def preview(path: str, content: str) -> str:
        return plan(path, content).diff()

    @tool(concurrency="exclusive", group="files", needs_approval=True, preview=preview, subjects=space.subjects)
    def write_file(path: str, content: str) -> ToolResult:
        """Write a text file in the workspace: a new one, or in place of the one that is there. Missing directories are made.

        Use edit_file to change a part of a file.

        Args:
            path: The file.
            content: The whole text of the file.
        """
        change = plan(path, content)
        if change.before == change.after and not change.note:
            return ToolResult(content=f"{change.path} has exactly this text already; nothing was written")
        change.apply(space, parents=True)
        verb = "created" if change.before is None else "replaced"
        size = f"{_counted(len(_lines(content)), 'line')}, {_counted(len(content), 'character')}"
        return ToolResult(content=f"{verb} {change.path}: {size}", display=change.diff())

    return write_file


def _edit_tool(space: Workspace) -> FunctionTool[..., Any]:
    def plan(path: str, old: str, new: str, replace_all: bool) -> tuple[_Change, list[int]]:
        names = _target(space, path)
        if not old:
            raise ToolError("`old` is empty. Give the text to replace, or use write_file.", kind="invalid_input")
        if old == new:
            raise ToolError("`old` and `new` are the same, so there is nothing to edit.", kind="invalid_input")
        _encoded(old, "old")
        _encoded(new, "new")
        try:
            before, version = _read_whole(space, names)
        except _TooLarge as large:
            said = f"{large.size:,} bytes, more than the {_MAX_FILE_BYTES:,} that can be edited"
            raise ToolError(f"{quoted(path)} has {said}.", kind="invalid_input") from None
        text = _exact_text(before, path)
        old, new = _with_line_ends_of(text, old, new)
        # Overlapping occurrences count too: what occurs so is not one thing that could be meant.
        places = _places(text, old, step=len(old)) if replace_all else _places(text, old, at_most=_MAX_PLACES + 1)
        if not places:
            raise ToolError(f"`old` does not occur in {quoted(path)}. {_near_miss(text, old)}", kind="invalid_input")
        if len(places) > 1 and not replace_all:
            many = f"more than {_MAX_PLACES}" if len(places) > _MAX_PLACES else str(len(places))
            said = f"`old` occurs {many} times in {quoted(path)}, at {_at_lines(text, places[:_MAX_PLACES])}"
            advice = "Give more of the text around the one you mean, or set replace_all"
            raise ToolError(f"{said}. Nothing was changed. {advice}.", kind="invalid_input")
        after = text.replace(old, new).encode()
        if len(after) > _MAX_FILE_BYTES:
            raise ToolError(f"{quoted(path)} would have more than {_MAX_FILE_BYTES:,} bytes.", kind="invalid_input")
        return _Change(names, before, after, version), _line_numbers(text, places)

    def preview(path: str, old: str, new: str, replace_all: bool) -> str:
        return plan(path, old, new, replace_all)[0].diff()

    @tool(concurrency="exclusive", group="files", needs_approval=True, preview=preview, subjects=space.subjects)
    def edit_file(path: str, old: str, new: str, replace_all: bool = False) -> ToolResult:
        """Replace a piece of text in a file of the workspace.

        Args:
            path: The file.
            old: The text to replace, exactly as in the file, with enough around it that it occurs only once.
            new: The text to put in its place.
            replace_all: Replace every occurrence.
        """
        change, lines = plan(path, old, new, replace_all)
        change.apply(space, parents=False)
        said = f"edited {change.path}: {_counted(len(lines), 'replacement')}, at {_listed_lines(lines[:_MAX_PLACES])}"
        return ToolResult(content=said + (", ..." if len(lines) > _MAX_PLACES else ""), display=change.diff())

    return edit_file


@dataclass(frozen=True)
class _Change:
    """What one write would do.

    Attributes:
        before: None if there is no file yet.
        version: Of the file that `before` was read from; None to replace whatever is there.
        note: For the person, before the difference.
    """

    names: tuple[str, ...]
    before: bytes | None
    after: bytes
    version: tuple[int, ...] | None
    note: str = ""

    @property
    def path(self) -> str:
        return visible("/".join(self.names))

    def diff(self) -> str:
        before, note = self.before, self.note
        if before is not None and _is_binary(before):
            before, note = b"", f"(replaces a binary file of {len(before):,} bytes)\n"
        text = None if before is None else before.decode("utf-8", "backslashreplace")
        return note + unified("/".join(self.names), text, self.after.decode())

    def apply(self, space: Workspace, *, parents: bool) -> None:
        with space.directory(self.names[:-1], create=parents) as here:
            here.put(self.names[-1], self.after, unless_changed_from=self.version)


class _TooLarge(Exception):
    """A file has more bytes than are handled at once."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def _target(space: Workspace, path: str) -> tuple[str, ...]:
    names = space.names(path, for_writing=True)
    if not names:
        raise ToolError(f"{quoted(path)} is the workspace itself. Write the path of a file.", kind="invalid_input")
    return names


def _read_whole(space: Workspace, names: tuple[str, ...]) -> tuple[bytes, tuple[int, ...]]:
    """A file's bytes, and its version as it was before they were read."""
    with space.directory(names[:-1]) as here, here.open_file(names[-1]) as file:
        found = os.fstat(file.fileno())
        data = b"" if found.st_size > _MAX_FILE_BYTES else file.read(_MAX_FILE_BYTES + 1)
        if max(found.st_size, len(data)) > _MAX_FILE_BYTES:
            raise _TooLarge(max(found.st_size, len(data)))
    return data, version_of(found)


def _is_binary(data: bytes) -> bool:
    return b"\0" in data


def _checked(data: bytes, path: str) -> bytes:
    """The bytes themselves, if they are text.

    Raises:
        ToolError: They are not, or are text in another encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ToolError(f"{quoted(path)} is text in UTF-16. Only UTF-8 is handled: have it converted.", kind="invalid_input")
    if _is_binary(data):
        raise ToolError(f"{quoted(path)} is a binary file ({len(data):,} bytes), not text.", kind="invalid_input")
    return data


def _shown_text(data: bytes, *, is_start: bool = True) -> tuple[str, str]:
    """Bytes as text to read, and a remark if some of them are not UTF-8."""
    data = data.removeprefix(codecs.BOM_UTF8) if is_start else data
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        return data.decode(
            "utf-8", "replace"
        ), "; it is not all UTF-8: \ufffd stands for bytes that are not, and it cannot be edited"


def _exact_text(data: bytes, path: str) -> str:
    """Text that encodes to the same bytes again, byte order mark included."""
    try:
        return _checked(data, path).decode()
    except UnicodeDecodeError:
        said = "is not all UTF-8, so an edit could damage it"
        raise ToolError(f"{quoted(path)} {said}. Nothing was changed.", kind="invalid_input") from None


def _encoded(text: str, name: str) -> bytes:
    """A text that a model gave, as it goes into a file."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ToolError(f"`{name}` holds half of a surrogate pair, which is no text.", kind="invalid_input") from None
    if _is_binary(data):
        raise ToolError(f"`{name}` holds a NUL character. Only text can be written.", kind="invalid_input")
    if len(data) > _MAX_FILE_BYTES:
        raise ToolError(f"`{name}` has {len(data):,} bytes; at most {_MAX_FILE_BYTES:,} can be written.", kind="invalid_input")
    return data


def _lines(text: str) -> list[str]:
    """Lines with their ends. Only a line feed ends one."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _part_of_large(file: BinaryIO, path: str, size: int, start_line: int, max_lines: int | None) -> str:
    """Lines of a file that is too large to have in memory, which is read no further than to their end."""
    wanted = _Passage(start_line, max_lines)
    budget = Budget(entries=0, max_bytes=size + _BLOCK, seconds=_SKIP_S)
    while not wanted.is_whole and (block := file.read(_BLOCK)):
        if not budget.take(size=len(block)):
            raise ToolError(f"{quoted(path)}: line {start_line:,} was not reached; {budget.spent}.", kind="invalid_input")
        wanted.feed(block)
    if wanted.line <= start_line and not wanted.data:
        raise ToolError(f"{quoted(path)} has fewer than {start_line:,} lines.", kind="invalid_input")
    text, note = _shown_text(_checked(bytes(wanted.data), path), is_start=start_line == 1)
    cut = "; cut, because these lines are too long" if wanted.is_cut else ""
    last = start_line - 1 + max(1, len(_lines(text)))
    return f"[lines {start_line}-{last} of a file of {size:,} bytes{cut}{note}]\n{text}"


class _Passage:
    """Collects some lines of a file from its blocks.

    Attributes:
        line: The one that the next byte belongs to, from 1.
        is_whole: No more bytes are needed.
        is_cut: They are more than may be had at once.
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
            at = block.find(b"\n", at) + 1
            if not at:
                return
            self.line += 1
        while at < len(block):
            if self.line == self._end:
                self.is_whole = True
                return
            end = block.find(b"\n", at) + 1
            self.data += block[at : end or len(block)]
            if len(self.data) > _MAX_FILE_BYTES:
                del self.data[_MAX_FILE_BYTES:]
                self.is_whole = self.is_cut = True
                return
            if not end:
                return
            self.line += 1
            at = end
        self.is_whole = self.line == self._end


def _with_line_ends_of(text: str, old: str, new: str) -> tuple[str, str]:
    """What to replace and by what, with the line ends of the text: models write line feeds, whatever they read.

    A text that has both kinds of ends is taken at its word, unless `old` is found only with the other kind.
    """
    if "\r\n" not in text:
        return old, new
    as_crlf = tuple(re.sub(r"\r?\n", "\r\n", part) for part in (old, new))
    is_mixed = text.count("\n") != text.count("\r\n")
    return (old, new) if is_mixed and old in text else (as_crlf[0], as_crlf[1])


def _places(text: str, old: str, *, at_most: int = _MAX_FILE_BYTES, step: int = 1) -> list[int]:
    """Where it begins, each place at least `step` characters after the one before."""
    places: list[int] = []
    at = text.find(old)
    while at >= 0 and len(places) < at_most:
        places.append(at)
        at = text.find(old, at + step)
    return places


def _line_numbers(text: str, places: list[int]) -> list[int]:
    numbers: list[int] = []
    line, counted = 1, 0
    for place in places:
        line += text.count("\n", counted, place)
        counted = place
        numbers.append(line)
    return numbers


def _listed_lines(lines: list[int]) -> str:
    unique = list(dict.fromkeys(lines))
    return f"line{'s' if len(unique) > 1 else ''} {', '.join(map(str, unique))}"


def _at_lines(text: str, places: list[int]) -> str:
    return _listed_lines(_line_numbers(text, places))


def _near_miss(text: str, old: str) -> str:
    """Where something like `old` is, without quoting the file."""
    words = old.split()
    if words and len(words) <= 200 and len(text) <= 200_000:
        # Bounded, because nothing can interrupt it. White space between words that hold none: there is one way to match.
        if found := re.search(r"\s+".join(map(re.escape, words)), text):
            return f"At {_at_lines(text, [found.start()])} is text that differs from it only in white space. Copy it exactly."
        at = text.casefold().find(old.casefold()) if text.isascii() else -1
        if at >= 0:
            return f"At {_at_lines(text, [at])} is text that differs from it only in upper and lower case. Copy it exactly."
    first = next((line.strip() for line in old.splitlines() if line.strip()), "")
    if first and (places := _places(text, first, at_most=_MAX_PLACES)):
        return f"Its first line occurs at {_at_lines(text, places)}, but what follows differs. Read the file again."
    return "Read the file again and copy the text exactly."
