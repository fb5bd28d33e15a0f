"""Searching the text of a workspace.

The files are walked and read here, so that no link is followed and nothing outside is read, whatever changes meanwhile. Only the
matching is left to another process, which gets text on its standard input and answers with line numbers: `rg` if it is there, else
Python. Both can be killed, which a pattern that takes for ever makes necessary: Python's `re` cannot be interrupted, and would hold
up the whole program. Neither program may lie in the workspace, where the model could have written it: that holds for the Python of a
`.venv` in the workspace too, whose place the Python it was made from takes. What the child runs was read when this was imported.

Text goes to the child in pieces of a few megabytes, and few searches run at a time, so that memory stays bounded.

Neither heeds `.gitignore`. `rg` and Python read a pattern the same way but for rare forms: what `rg` does not know (look-around,
references back) or reads otherwise (`\\A`, `\\<`, `a*+`) goes to Python; `\\p{Greek}` and `[[:alpha:]]` are known to `rg` alone; which
letters `\\w` and `\\s` stand for differs outside of everyday text.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from bisect import bisect_right
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from treadle.errors import ToolError
from treadle.tools.builtin import search_worker
from treadle.tools.builtin.files_glob import Glob
from treadle.tools.builtin.visible import one_line
from treadle.tools.builtin.workspace import Directory, Workspace
from treadle.tools.builtin.workspace_paths import quoted
from treadle.tools.builtin.workspace_walk import Budget, walk
from treadle.tools.function import FunctionTool, tool
from treadle.tools.threads import run_in_thread

__all__ = ["Search", "search_tool"]

SEARCH_S = 20.0
_MAX_PATTERN = 1_000
_MAX_FILE_BYTES = 50_000_000
_MAX_BYTES = 300_000_000
_MAX_ENTRIES = 100_000
_MAX_AT_A_TIME = 2
_PIECE_BYTES = 4_000_000
_BATCH_FILES = 2_000
_BLOCK = 1 << 18
_MAX_SHOWN = 200
_MAX_SHOWN_A_FILE = 50
_MAX_LINE_CHARS = 300


def search_tool(space: Workspace) -> FunctionTool[..., Any]:
    """`search_files`, for one workspace."""

    @tool(concurrency="read_only", group="files", repeatable=True, subjects=space.subjects)
    async def search_files(pattern: str, path: str = ".", glob: str | None = None, ignore_case: bool = False) -> str:
        """Search the files of the workspace for lines that match a regular expression. Each is shown as `path:line: text`.

        Leaves out binary files, links, `.git`, `node_modules` and caches. Does not heed .gitignore.

        Args:
            pattern: The regular expression. It is matched within one line.
            path: A directory, or one file.
            glob: Only files like this, such as `*.py` or `src/**/*.ts`.
            ignore_case: Take upper and lower case as the same.
        """
        async with _turn():
            budget = Budget(entries=_MAX_ENTRIES, max_bytes=_MAX_BYTES, seconds=SEARCH_S)
            search = Search(space, budget, pattern, ignore_case=ignore_case, glob=glob)
            timer = asyncio.get_running_loop().call_later(SEARCH_S, search.stop, f"{SEARCH_S:g} s were over")
            try:
                return await run_in_thread(lambda: search.run(path))
            finally:  # also when it is cancelled: the thread then ends at once, and so does its child
                timer.cancel()
                search.stop("it was cancelled")

    return search_files


_turns: dict[asyncio.AbstractEventLoop, tuple[asyncio.Semaphore, list[None]]] = {}


@asynccontextmanager
async def _turn() -> AsyncGenerator[None, None]:
    """Wait until fewer than `_MAX_AT_A_TIME` searches of this event loop run. Nothing is kept of a loop that has none."""
    loop = asyncio.get_running_loop()
    places, users = _turns.setdefault(loop, (asyncio.Semaphore(_MAX_AT_A_TIME), []))
    users.append(None)
    try:
        async with places:
            yield
    finally:
        users.pop()
        if not users:
            _turns.pop(loop, None)


@dataclass
class _Batch:
    """Pieces of files that are matched together, one after the other in one text.

    Attributes:
        starts: The number of each piece's first line in the text, from 0.
        firsts: The number of that line in its file, from 0.
    """

    paths: list[str] = field(default_factory=list[str])
    starts: list[int] = field(default_factory=list[int])
    firsts: list[int] = field(default_factory=list[int])
    text: bytearray = field(default_factory=bytearray)
    lines: int = 0

    def add(self, path: str, first: int, text: bytes) -> int:
        """Add a piece; how many lines it has."""
        lines = text.count(b"\n")
        self.paths.append(path)
        self.starts.append(self.lines)
        self.firsts.append(first)
        self.text += text
        self.lines += lines
        return lines

    @property
    def is_full(self) -> bool:
        return len(self.text) >= _PIECE_BYTES or len(self.paths) >= _BATCH_FILES


class Search:
    """One search. `run` blocks; `stop`, from any thread, makes it end with what it has.

    Args:
        program: The `rg` to use; None to look for it. An empty text: Python.
    """

    def __init__(
        self,
        space: Workspace,
        budget: Budget,
        pattern: str,
        *,
        ignore_case: bool = False,
        glob: str | None = None,
        program: str | None = None,
    ) -> None:
        if not pattern or len(pattern) > _MAX_PATTERN:
            raise ToolError(f"a pattern has 1 to {_MAX_PATTERN:,} characters.", kind="invalid_input")
        if any(char in pattern for char in "\n\r\0") or any("\ud800" <= char <= "\udfff" for char in pattern):
            said = "the pattern has a line end or a NUL character in it. Lines are matched one by one: search for one line"
            raise ToolError(f"{said}.", kind="invalid_input")
        self._space = space
        self._budget = budget
        self._pattern = pattern
        self._ignore_case = ignore_case
        self._glob = None if glob is None else Glob(glob)
        if _OTHER_BOUNDARY.search(pattern):
            raise ToolError("`\\b{...}` is not known here. Write `\\b` for the edge of a word.", kind="invalid_input")
        self._program = "" if _READ_OTHERWISE.search(pattern) else _ripgrep(space) if program is None else program
        self._python = _python(space)
        self._lock = threading.Lock()
        self._is_stopped = False
        self._child: subprocess.Popen[bytes] | None = None
        self._shown: list[str] = []
        self._found = 0
        self._files = 0
        self._found_in: dict[str, int] = {}
        self._last = ""
        self._left_out = {"binary": 0, "over 50 MB": 0, "not readable": 0}

    def stop(self, why: str) -> None:
        with self._lock:
            self._is_stopped = True
            self._budget.stop(why)
            if self._child is not None:
                self._child.kill()

    def run(self, path: str) -> str:
        """The lines that match, and what was left out.

        Raises:
            ToolError: The path or the pattern is refused.
        """
        self._match(b"")  # is the pattern valid?
        batch, last, first = _Batch(), None, 0
        with closing(self._texts(path)) as texts:
            for where, text in texts:
                first = first if where == last else 0
                last = where
                first += batch.add(where, first, text)
                if batch.is_full:
                    self._show(batch)
                    batch = _Batch()
                    if len(self._shown) >= _MAX_SHOWN:
                        break
        if batch.paths and len(self._shown) < _MAX_SHOWN:
            self._show(batch)
        self._say_more()
        return "\n".join([*self._shown, *self._remarks(path)])

    def _remarks(self, path: str) -> Iterator[str]:
        in_files = f"{self._files:,} file{'' if self._files == 1 else 's'} in {quoted(path)}"
        if not self._found:
            yield f"[no line matches; searched {in_files}]"
        elif len(self._shown) >= _MAX_SHOWN:
            yield f"[stopped after {_MAX_SHOWN} lines; there are more. Narrow the pattern, the path or the glob]"
        else:
            lines = f"{self._found:,} line{' matches' if self._found == 1 else 's match'}"
            yield f"[{lines}, in {len(self._found_in):,} of {in_files}]"
        if skipped := ", ".join(f"{count:,} {why}" for why, count in self._left_out.items() if count):
            yield f"[files not searched: {skipped}]"
        if said := self._budget.said():
            yield f"[incomplete: {said}. Narrow the path or the glob]"

    def _texts(self, path: str) -> Generator[tuple[str, bytes], None, None]:
        """Path and text of each file that is to be searched; of a large one, piece after piece."""
        names = self._space.names(path)
        if names:
            with self._space.directory(names[:-1]) as above:
                if above.kind(names[-1]) == "file":
                    with above.open_file(names[-1]):  # says why, if it cannot be read
                        pass
                    yield from self._pieces(above, names[-1])
                    return
        with self._space.directory(names) as directory, closing(walk(directory, depth=None, budget=self._budget)) as found:
            for entry in found:
                if entry.kind != "file":
                    continue
                if self._glob and not self._glob.fits((*entry.parent.names, entry.name)[len(names) :]):
                    continue
                yield from self._pieces(entry.parent, entry.name)

    def _pieces(self, directory: Directory, name: str) -> Generator[tuple[str, bytes], None, None]:
        """A file as the matcher gets it: valid UTF-8, line feeds, one at its end. Nothing for what is not searched."""
        where = directory.where(name)
        try:
            with directory.open_file(name) as file:
                why, size = _unsearched(file)
                if why:
                    self._left_out[why] += 1
                    return
                if not self._budget.take(size=size):
                    return
                self._files += 1
                is_first = True
                for piece in _whole_lines(file, size):
                    yield where, _clean(piece.removeprefix(b"\xef\xbb\xbf") if is_first else piece)
                    is_first = False
        except (ToolError, OSError):
            self._left_out["not readable"] += 1

    def _show(self, batch: _Batch) -> None:
        """Match the pieces of a batch and keep the lines to show."""
        found = self._match(batch.text)
        pieces = [bisect_right(batch.starts, number) - 1 for number, _, _ in found]
        for (number, column, start), index in zip(found, pieces, strict=True):
            path = batch.paths[index]
            if path != self._last:
                self._say_more()
                self._last = path
            self._found_in[path] = self._found_in.get(path, 0) + 1
            self._found += 1
            if self._found_in[path] > _MAX_SHOWN_A_FILE:
                continue
            if len(self._shown) < _MAX_SHOWN:
                line = batch.text[start : batch.text.find(b"\n", start)]
                line_number = number - batch.starts[index] + batch.firsts[index] + 1
                self._shown.append(f"{one_line(path)}:{line_number}: {_cut(line, column)}")
        if len(found) >= search_worker.MAX_LINES:
            self._budget.missed.add("too many lines match")

    def _say_more(self) -> None:
        """How many lines of the file that was last are not shown."""
        many = self._found_in.get(self._last, 0) - _MAX_SHOWN_A_FILE
        if many > 0 and len(self._shown) < _MAX_SHOWN:
            self._shown.append(f"{one_line(self._last)}: [{many:,} more lines match in this file]")

    def _match(self, text: bytes | bytearray) -> Sequence[tuple[int, int, int]]:
        """Of each line that matches: its number, the byte in it where the first match begins, the byte where it begins. All from 0."""
        if self._program:
            case = "--ignore-case" if self._ignore_case else "--case-sensitive"
            code, said, _ = self._run([self._program, *_RIPGREP, case, f"--regexp={self._pattern}", "-"], text)
            if code in (0, 1):
                return _numbers(said)
            if self._is_stopped:
                return []
            self._program = ""  # a pattern that it does not know, or an `rg` that does not work
        if not self._python:
            said = "searching needs ripgrep here, outside the workspace, and `rg` does not work with this pattern or is not there"
            raise ToolError(f"{said}. Try a simpler pattern, or tell the user.")
        argv = [
            self._python,
            "-I",
            "-S",
            "-c",
            _WORKER,
            self._pattern,
            "i" if self._ignore_case else "-",
            str(int(SEARCH_S) + 10),
        ]
        code, said, why = self._run(argv, text)
        if code == 2:
            explained = why.decode("utf-8", "replace").partition("\n")[0][:300]
            raise ToolError(f"the pattern is not a valid regular expression: {explained}.", kind="invalid_input")
        if code and not self._is_stopped:
            raise ToolError("the search process failed. Try a simpler pattern.")
        return _numbers(said) if not code else []

    def _run(self, argv: list[str], text: bytes | bytearray) -> tuple[int, bytes, bytes]:
        """Exit code, output and error output of a child that gets the text. A code that is not 0 if it was stopped."""
        with self._lock:
            if self._is_stopped:
                return -1, b"", b""
            pipe = subprocess.PIPE
            try:
                # S603 asks for a look: no shell, the program is ours to choose, and a pattern cannot become an option.
                child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)  # noqa: S603
            except OSError:
                return 127, b"", b""
            self._child = child
        feeder = threading.Thread(target=_feed, args=(child.stdin, text), name="treadle-search-feed", daemon=True)
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            feeder.start()  # `communicate` would do it in pieces of 512 bytes, at a hundred times the cost
            said = child.stdout.read()
            why = child.stderr.read()  # a line or two: no pipe is filled by it
            child.wait()
        finally:
            with self._lock:
                self._child = None
                child.kill()  # does nothing to one that has ended
            if feeder.ident is not None:
                feeder.join()
            with child:
                pass
        return child.returncode, said, why


def _feed(stdin: BinaryIO, text: bytes | bytearray) -> None:
    with suppress(OSError), stdin:  # the child has enough, or was killed
        stdin.write(text)


def _unsearched(file: BinaryIO) -> tuple[str, int]:
    """Why a file is not searched, or nothing; and its size. It is read for that, and is at its beginning afterwards."""
    size = os.fstat(file.fileno()).st_size
    if size > _MAX_FILE_BYTES:
        return "over 50 MB", size
    size = 0
    while block := file.read(_BLOCK):
        size += len(block)
        if size > _MAX_FILE_BYTES:
            return "over 50 MB", size
        if b"\0" in block:
            return "binary", size
    file.seek(0)
    return "", size


def _whole_lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """What is in a file, up to a size, in pieces that end where lines do."""
    rest = bytearray()
    while size > 0 and (block := file.read(min(size, _PIECE_BYTES))):
        size -= len(block)
        rest += block
        end = rest.rfind(b"\n", len(rest) - len(block)) + 1
        if end:
            yield bytes(rest[:end])
            del rest[:end]
    if rest:
        yield bytes(rest)


def _clean(data: bytes) -> bytes:
    data = data.replace(b"\r\n", b"\n").replace(b"\0", b"\xff")  # a NUL may have come meanwhile
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode("utf-8", "replace").encode()
    return data if not data or data.endswith(b"\n") else data + b"\n"


_RIPGREP = (
    "--no-config",
    "--color=never",
    "--no-filename",
    "--line-number",
    "--column",
    "--byte-offset",
    "--max-columns=1",  # the text is known here: a longer line is answered with a remark in its place
    f"--max-count={search_worker.MAX_LINES}",
    "--text",  # binary files are sorted out before
    "--encoding=none",
)


def _source() -> str:
    try:
        return inspect.getsource(search_worker)
    except OSError:  # installed without sources
        return ""


_WORKER = _source()
_ESCAPED = r"(?<!\\)(?:\\\\)*\\"
_READ_OTHERWISE = re.compile(_ESCAPED + r"[AzZ<>]|[*+?}]\+")
_OTHER_BOUNDARY = re.compile(_ESCAPED + r"[bB]\{[a-z]")


def _ripgrep(space: Workspace) -> str:
    """Where `rg` is; empty if it is nowhere, or where the model may have written it."""
    found = shutil.which("rg")
    return found if found and Path(found).is_absolute() and not space.contains(found) else ""


def _python(space: Workspace) -> str:
    """A Python to run the worker with; empty if there is none but such as the model may have written to.

    The one of a virtual environment reads `pyvenv.cfg` beside it to know where its library is, so it is not used inside the workspace.
    """
    if not _WORKER or getattr(sys, "frozen", False):  # frozen: it is the program itself, which would be started again
        return ""
    candidates: tuple[str, ...] = (sys.executable, getattr(sys, "_base_executable", ""))
    return next((path for path in candidates if path and not space.contains(path)), "")


_FOUND = re.compile(rb"(\d+):(?:(\d+):)?(\d+):")


def _numbers(said: bytes) -> list[tuple[int, int, int]]:
    """What `--line-number --column --byte-offset` say. `rg` leaves the column out where it cannot tell it."""
    found = (_FOUND.match(line) for line in said.split(b"\n"))
    return [(int(one[1]) - 1, int(one[2] or 1) - 1, int(one[3])) for one in found if one]


def _cut(line: bytes | bytearray, column: int) -> str:
    """A line to show; of a long one, the part around the match."""
    text = line.decode("utf-8", "replace")
    if len(text) > _MAX_LINE_CHARS:
        start = max(0, len(line[:column].decode("utf-8", "replace")) - _MAX_LINE_CHARS // 3)
        end = start + _MAX_LINE_CHARS
        text = f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
    return one_line(text, keep="\t")
