"""Tools for the files of one directory: list, read, search, write, edit.

    agent = Agent("ollama/qwen3:8b", tools=file_tools("."))

Files are text in UTF-8. What is read is exactly what is in the file, so that it can be copied into an edit; only a byte order mark is
left out. A write puts a whole new file in the old one's place, so nobody ever sees half of it.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from treadle.errors import ToolError
from treadle.tools.builtin import files_text
from treadle.tools.builtin.files_diff import digest, line_count, unified
from treadle.tools.builtin.files_glob import Glob
from treadle.tools.builtin.files_text import Passage, checked, encoded, exact_text, is_binary, shown_text
from treadle.tools.builtin.search import search_tool
from treadle.tools.builtin.visible import one_line, visible
from treadle.tools.builtin.workspace import NO_FILE, Workspace, version_of
from treadle.tools.builtin.workspace_paths import quoted
from treadle.tools.builtin.workspace_walk import Budget, Entry, walk
from treadle.tools.function import FunctionTool, tool
from treadle.values.toolcalls import ToolResult

__all__ = ["file_tools"]

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
        levels = depth or (None if glob else 1)
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
                    lines.append(_listed(entry, is_deep=levels != 1))
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
    shown = one_line(entry.path)
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
        if start_line > 1 or max_lines is not None:
            return _part(space, path, start_line, max_lines)
        with space.file(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > files_text.MAX_FILE_BYTES else file.read(files_text.MAX_FILE_BYTES + 1)
        if max(size, len(data)) > files_text.MAX_FILE_BYTES:
            said = f"{size:,} bytes, more than the {files_text.MAX_FILE_BYTES:,} that are read at once"
            advice = "Read a part with start_line and max_lines, or use search_files"
            raise ToolError(f"{quoted(path)} has {said}. {advice}.", kind="invalid_input")
        text, note = shown_text(checked(data, path))
        return _whole(text, note)

    return read_file


def _whole(text: str, note: str) -> str:
    if not text:
        return "[the file is empty]"
    if len(text) > _SAY_SIZE_CHARS:
        note = f"; {line_count(text):,} lines, {len(text):,} characters; start_line and max_lines read a part{note}"
    return f"[{note.removeprefix('; ')}]\n{text}" if note else text


def _part(space: Workspace, path: str, start_line: int, max_lines: int | None) -> str:
    """Lines of a file, of which no more is held than those. One that is too large to be read whole is read no further either."""
    wanted = Passage(start_line, max_lines)
    ends, last, is_first = 0, b"\n", True
    with space.file(path) as file:
        size = os.fstat(file.fileno()).st_size
        is_large = size > files_text.MAX_FILE_BYTES
        budget = Budget(entries=0, max_bytes=size + _BLOCK, seconds=_SKIP_S)
        while not (wanted.is_whole and is_large) and (block := file.read(_BLOCK)):
            if not budget.take(size=len(block)):
                raise ToolError(f"{quoted(path)}: line {start_line:,} was not reached; {budget.spent}.", kind="invalid_input")
            if not is_large and (is_first or is_binary(block)):
                checked(block, path)
            ends, last, is_first = ends + block.count(b"\n"), block[-1:], False
            if not wanted.is_whole:
                wanted.feed(block)
    lines = ends + (last != b"\n")
    if not wanted.data and (start_line > 1 or lines):
        said = f"fewer than {start_line:,} lines" if is_large else f"{_counted(lines, 'line')}, so it has no line {start_line:,}"
        raise ToolError(f"{quoted(path)} has {said}.", kind="invalid_input")
    data = bytes(wanted.data)
    text, note = shown_text(checked(data, path) if is_large else data, is_start=start_line == 1)
    end = start_line - 1 + max(1, line_count(text))
    if is_large:
        cut = "; cut, because these lines are too long" if wanted.is_cut else ""
        return f"[lines {start_line}-{end} of a file of {size:,} bytes{cut}{note}]\n{text}"
    if start_line == 1 and end >= lines:
        return _whole(text, note)
    return f"[lines {start_line}-{end} of {lines:,}; {size:,} bytes in all{note}]\n{text}"


def _write_tool(space: Workspace) -> FunctionTool[..., Any]:
    def plan(path: str, content: str) -> _Change:
        names = _target(space, path)
        data = encoded(content, "content")
        before, version, note = None, NO_FILE, ""
        try:
            before, version = _read_whole(space, names)
        except ToolError as error:
            if error.kind != "not_found":
                raise
        except _TooLarge as large:
            # Its version stands for its content: reading all of it for a digest could take any time.
            version = large.version
            note = f"(replaces a file of {large.size:,} bytes, too large to compare, last written at {version[-1]} ns)"
            return _Change(names, b"", data, version, note)
        if before is not None:
            note = _not_compared(before)
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
        size = f"{_counted(line_count(content), 'line')}, {_counted(len(content), 'character')}"
        return ToolResult(content=f"{verb} {change.path}: {size}", display=change.diff())

    return write_file


def _edit_tool(space: Workspace) -> FunctionTool[..., Any]:
    def plan(path: str, old: str, new: str, replace_all: bool) -> tuple[_Change, int, list[int]]:
        names = _target(space, path)
        if not old:
            raise ToolError("`old` is empty. Give the text to replace, or use write_file.", kind="invalid_input")
        encoded(old, "old")
        encoded(new, "new")
        try:
            before, version = _read_whole(space, names)
        except _TooLarge as large:
            said = f"{large.size:,} bytes, more than the {files_text.MAX_FILE_BYTES:,} that can be edited"
            raise ToolError(f"{quoted(path)} has {said}.", kind="invalid_input") from None
        text = exact_text(before, path)
        old, new = files_text.with_line_ends_of(text, old, new)
        if old == new:
            raise ToolError("`old` and `new` are the same, so there is nothing to edit.", kind="invalid_input")
        # Overlapping occurrences count too: what occurs so is not one thing that could be meant.
        places = files_text.places(text, old, at_most=_MAX_PLACES + 1, step=len(old) if replace_all else 1)
        if not places:
            raise ToolError(f"`old` does not occur in {quoted(path)}. {files_text.near_miss(text, old)}", kind="invalid_input")
        lines = files_text.line_numbers(text, places[:_MAX_PLACES])
        if len(places) > 1 and not replace_all:
            many = f"more than {_MAX_PLACES}" if len(places) > _MAX_PLACES else str(len(places))
            said = f"`old` occurs {many} times in {quoted(path)}, at {files_text.listed_lines(lines)}"
            advice = "Give more of the text around the one you mean, or set replace_all"
            raise ToolError(f"{said}. Nothing was changed. {advice}.", kind="invalid_input")
        count = text.count(old)
        # Before anything of that size is made: a few characters for each of millions are gigabytes.
        size = len(before) + count * (len(new.encode()) - len(old.encode()))
        if size > files_text.MAX_FILE_BYTES:
            said = f"{size:,} bytes; it may have {files_text.MAX_FILE_BYTES:,}"
            raise ToolError(f"{quoted(path)} would have {said}. Nothing was changed.", kind="invalid_input")
        return _Change(names, before, text.replace(old, new).encode(), version), count, lines

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
        change, count, lines = plan(path, old, new, replace_all)
        change.apply(space, parents=False)
        said = f"edited {change.path}: {_counted(count, 'replacement')}, at {files_text.listed_lines(lines)}"
        return ToolResult(content=said + (", ..." if count > _MAX_PLACES else ""), display=change.diff())

    return edit_file


@dataclass(frozen=True)
class _Change:
    """What one write would do.

    Attributes:
        before: None if there is no file yet.
        version: Of the file that `before` was read from.
        note: For the person, in place of what was there: it cannot be compared.
    """

    names: tuple[str, ...]
    before: bytes | None
    after: bytes
    version: tuple[int, ...]
    note: str = ""

    @property
    def path(self) -> str:
        return one_line("/".join(self.names))

    def diff(self) -> str:
        path, after = "/".join(self.names), self.after.decode()
        if not self.note and self.before == self.after:
            return f"(no difference: {visible(self.path)} has exactly this text already)"
        if not self.note:
            return unified(path, None if self.before is None else self.before.decode(), after)
        return f"{self.note}\n{unified(path, '', after)}\n(digest of the new content: {digest(self.after)})"

    def apply(self, space: Workspace, *, parents: bool) -> None:
        with space.directory(self.names[:-1], create=parents) as here:
            here.put(self.names[-1], self.after, unless_changed_from=self.version)


class _TooLarge(Exception):
    """A file has more bytes than are handled at once."""

    def __init__(self, size: int, version: tuple[int, ...]) -> None:
        super().__init__(size)
        self.size = size
        self.version = version


def _target(space: Workspace, path: str) -> tuple[str, ...]:
    names = space.names(path, for_writing=True)
    if not names:
        raise ToolError(f"{quoted(path)} is the workspace itself. Write the path of a file.", kind="invalid_input")
    return names


def _read_whole(space: Workspace, names: tuple[str, ...]) -> tuple[bytes, tuple[int, ...]]:
    """A file's bytes, and its version as it was before they were read."""
    with space.directory(names[:-1]) as here, here.open_file(names[-1]) as file:
        found = os.fstat(file.fileno())
        data = b"" if found.st_size > files_text.MAX_FILE_BYTES else file.read(files_text.MAX_FILE_BYTES + 1)
        if max(found.st_size, len(data)) > files_text.MAX_FILE_BYTES:
            raise _TooLarge(max(found.st_size, len(data)), version_of(found))
    return data, version_of(found)


def _not_compared(before: bytes) -> str:
    """What is said of a file whose text cannot be shown next to another; empty for text."""
    if not is_binary(before):
        try:
            before.decode()
        except UnicodeDecodeError:
            kind = "a file that is not all UTF-8"
        else:
            return ""
    else:
        kind = "a binary file"
    return f"(replaces {kind}, of {len(before):,} bytes; its digest: {digest(before)})"


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
