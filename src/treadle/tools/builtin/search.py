"""Searching the text of a workspace.

The files are walked and read here, so that no link is followed and nothing outside is read, whatever changes meanwhile. Only the
matching is left to another process, which gets text on its standard input and answers with line numbers: `rg` if it is there, else
Python. Both can be killed, which a pattern that takes for ever makes necessary: Python's `re` cannot be interrupted, and would hold
up the whole program.

Neither heeds `.gitignore`. `rg` and Python read a pattern the same way but for rare forms: what `rg` does not know (look-around,
references back) goes to Python; `\\p{Greek}` and `[[:alpha:]]` are known to `rg` alone.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treadle.errors import ToolError
from treadle.tools.builtin.files_glob import Glob
from treadle.tools.builtin.search_worker import MAX_LINES
from treadle.tools.builtin.workspace import Budget, Directory, Workspace, walk
from treadle.tools.builtin.workspace_paths import quoted, visible
from treadle.tools.function import FunctionTool, tool
from treadle.tools.threads import run_in_thread

__all__ = ["Search", "search_tool"]

SEARCH_S = 20.0
_MAX_PATTERN = 1_000
_MAX_FILE_BYTES = 50_000_000
_MAX_BYTES = 300_000_000
_MAX_ENTRIES = 100_000
_MAX_DEPTH = 40
_BATCH_BYTES = 4_000_000
_BATCH_FILES = 2_000
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
        budget = Budget(entries=_MAX_ENTRIES, max_bytes=_MAX_BYTES, seconds=SEARCH_S)
        search = Search(space, budget, pattern, ignore_case=ignore_case, glob=glob)
        timer = asyncio.get_running_loop().call_later(SEARCH_S, search.stop, f"{SEARCH_S:g} s were over")
        try:
            return await run_in_thread(lambda: search.run(path))
        finally:  # also when it is cancelled: the thread then ends at once, and so does its child
            timer.cancel()
            search.stop("it was cancelled")

    return search_files


@dataclass
class _Batch:
    """Files that are matched together, one after the other in one text.

    Attributes:
        starts: The number of each file's first line, from 0.
    """

    paths: list[str] = field(default_factory=list[str])
    starts: list[int] = field(default_factory=list[int])
    texts: list[bytes] = field(default_factory=list[bytes])
    lines: int = 0
    size: int = 0

    def add(self, path: str, text: bytes) -> None:
        self.paths.append(path)
        self.starts.append(self.lines)
        self.texts.append(text)
        self.lines += text.count(b"\n")
        self.size += len(text)

    @property
    def is_full(self) -> bool:
        return self.size >= _BATCH_BYTES or len(self.paths) >= _BATCH_FILES


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
        self._program = _ripgrep(space) if program is None else program
        self._lock = threading.Lock()
        self._is_stopped = False
        self._child: subprocess.Popen[bytes] | None = None
        self._shown: list[str] = []
        self._found = 0
        self._files = 0
        self._files_found = 0
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
        batch = _Batch()
        with closing(self._texts(path)) as texts:
            for where, text in texts:
                batch.add(where, text)
                if batch.is_full:
                    self._show(batch)
                    batch = _Batch()
                    if len(self._shown) >= _MAX_SHOWN:
                        break
        if batch.paths and len(self._shown) < _MAX_SHOWN:
            self._show(batch)
        return "\n".join([*self._shown, *self._remarks(path)])

    def _remarks(self, path: str) -> Iterator[str]:
        in_files = f"{self._files:,} file{'' if self._files == 1 else 's'} in {quoted(path)}"
        if not self._found:
            yield f"[no line matches; searched {in_files}]"
        elif len(self._shown) >= _MAX_SHOWN:
            yield f"[stopped after {_MAX_SHOWN} lines; there are more. Narrow the pattern, the path or the glob]"
        else:
            lines = f"{self._found:,} line{' matches' if self._found == 1 else 's match'}"
            yield f"[{lines}, in {self._files_found:,} of {in_files}]"
        if skipped := ", ".join(f"{count:,} {why}" for why, count in self._left_out.items() if count):
            yield f"[files not searched: {skipped}]"
        if said := self._budget.said():
            yield f"[incomplete: {said}. Narrow the path or the glob]"

    def _texts(self, path: str) -> Generator[tuple[str, bytes], None, None]:
        """Path and text of each file that is to be searched."""
        names = self._space.names(path)
        if names:
            with self._space.directory(names[:-1]) as above:
                if above.kind(names[-1]) == "file":
                    with above.open_file(names[-1]):  # says why, if it cannot be read
                        pass
                    text = self._text(above, names[-1])
                    if text is not None:
                        yield above.where(names[-1]), text
                    return
        with self._space.directory(names) as directory, closing(walk(directory, depth=_MAX_DEPTH, budget=self._budget)) as found:
            for entry in found:
                if entry.kind != "file":
                    continue
                if self._glob and not self._glob.fits((*entry.parent.names, entry.name)[len(names) :]):
                    continue
                text = self._text(entry.parent, entry.name)
                if text is not None:
                    yield entry.path, text

    def _text(self, directory: Directory, name: str) -> bytes | None:
        """A file as the matcher gets it: valid UTF-8, line feeds, one at its end. None for what is not searched."""
        try:
            with directory.open_file(name) as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        except (ToolError, OSError):
            self._left_out["not readable"] += 1
            return None
        if len(data) > _MAX_FILE_BYTES or b"\0" in data:
            self._left_out["over 50 MB" if len(data) > _MAX_FILE_BYTES else "binary"] += 1
            return None
        if not self._budget.take(size=len(data)):
            return None
        self._files += 1
        data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        try:
            data.decode()
        except UnicodeDecodeError:
            data = data.decode("utf-8", "replace").encode()
        return data if not data or data.endswith(b"\n") else data + b"\n"

    def _show(self, batch: _Batch) -> None:
        """Match the files of a batch and keep the lines to show."""
        in_file: dict[int, int] = {}
        last, lines = -1, [b""]
        found = self._match(b"".join(batch.texts))
        for number, column in found:
            index = bisect_right(batch.starts, number) - 1
            in_file[index] = in_file.get(index, 0) + 1
            self._found += 1
            if in_file[index] > _MAX_SHOWN_A_FILE or len(self._shown) >= _MAX_SHOWN:
                continue
            if index != last:
                last, lines = index, batch.texts[index].split(b"\n")
            line_number = number - batch.starts[index]
            self._shown.append(f"{visible(batch.paths[index])}:{line_number + 1}: {_cut(lines[line_number], column)}")
            if in_file[index] == _MAX_SHOWN_A_FILE and len(self._shown) < _MAX_SHOWN:
                many = sum(1 for other, _ in found if bisect_right(batch.starts, other) - 1 == index) - _MAX_SHOWN_A_FILE
                if many:
                    self._shown.append(f"{visible(batch.paths[index])}: [{many:,} more lines match in this file]")
        self._files_found += len(in_file)
        if len(found) >= MAX_LINES:
            self._budget.missed.add("too many lines match")

    def _match(self, text: bytes) -> Sequence[tuple[int, int]]:
        """Number, from 0, of each line that matches, and the byte in it, from 0, where the first match begins."""
        if self._program:
            code, said, _ = self._run(
                [
                    self._program,
                    *_RIPGREP,
                    *(["--ignore-case"] if self._ignore_case else ["--case-sensitive"]),
                    f"--regexp={self._pattern}",
                    "-",
                ],
                text,
            )
            if code in (0, 1):
                return _numbers(said)
            if self._is_stopped:
                return []
            self._program = ""  # a pattern that it does not know, or an `rg` that does not work
        if not sys.executable or getattr(sys, "frozen", False):  # the program itself: it would be started again
            raise ToolError("searching needs ripgrep here, and `rg` does not work with this pattern or is not there.")
        argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("search_worker.py")), self._pattern]
        code, said, why = self._run([*argv, "i" if self._ignore_case else "-", str(int(SEARCH_S) + 10)], text)
        if code == 2:
            explained = why.decode("utf-8", "replace").partition("\n")[0][:300]
            raise ToolError(f"the pattern is not a valid regular expression: {explained}.", kind="invalid_input")
        if code and not self._is_stopped:
            raise ToolError("the search process failed. Try a simpler pattern.")
        return _numbers(said) if not code else []

    def _run(self, argv: list[str], text: bytes) -> tuple[int, bytes, bytes]:
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
        with child:
            try:
                said, why = child.communicate(text)
            finally:
                with self._lock:
                    self._child = None
                    child.kill()  # does nothing to one that has ended
        return child.returncode, said, why


_RIPGREP = (
    "--no-config",
    "--color=never",
    "--no-filename",
    "--line-number",
    "--column",
    "--max-columns=1",  # the text is known here: a longer line is answered with a remark in its place
    f"--max-count={MAX_LINES}",
    "--text",  # binary files are sorted out before
    "--encoding=none",
)


def _ripgrep(space: Workspace) -> str:
    """Where `rg` is; empty if it is nowhere, or where the model may have written it."""
    found = shutil.which("rg")
    return found if found and Path(found).is_absolute() and not space.contains(found) else ""


def _numbers(said: bytes) -> list[tuple[int, int]]:
    found = (line.split(b":", 2) for line in said.splitlines() if line)
    return [(int(line) - 1, int(column) - 1) for line, column, _ in found]


def _cut(line: bytes, column: int) -> str:
    """A line to show; of a long one, the part around the match."""
    text = line.decode("utf-8", "replace")
    if len(text) > _MAX_LINE_CHARS:
        start = max(0, len(line[:column].decode("utf-8", "replace")) - _MAX_LINE_CHARS // 3)
        end = start + _MAX_LINE_CHARS
        text = f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
    return visible(text, keep="\t").rstrip("\n")
