"""What is in a directory of the workspace and below, as far as a budget goes."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import dataclass

from treadle.errors import ToolError
from treadle.tools.builtin.workspace import Directory, Kind, kind_of

__all__ = ["NOT_ENTERED", "Budget", "Entry", "walk"]

NOT_ENTERED = frozenset(
    {".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv", ".tox", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
)
"""Directories that a walk names and does not enter. A walk that begins in one of them does."""

_MAX_DEPTH = 40  # one descriptor is open for each level


class Budget:
    """How much a walk may look at. Once something has run out it stays so. Any thread may call `stop`.

    Attributes:
        spent: What ran out, in words; None while there is some of everything.
        missed: What else was not looked at, in words.
    """

    def __init__(self, *, entries: int, max_bytes: int = 0, seconds: float) -> None:
        self.spent: str | None = None
        self.missed: set[str] = set()
        self._entries = entries
        self._bytes = max_bytes
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds

    def take(self, *, entries: int = 0, size: int = 0) -> bool:
        """Use some of it; whether it was there."""
        self._entries -= entries
        self._bytes -= size
        if self._entries < 0:
            self.stop("there are too many entries")
        elif self._bytes < 0:
            self.stop("there is too much text")
        elif time.monotonic() > self._ends_at:
            self.stop(f"{self._seconds:g} s were over")
        return self.spent is None

    def left(self) -> int:
        """Entries that may still be looked at."""
        return max(0, self._entries)

    def stop(self, why: str) -> None:
        self.spent = self.spent or why

    def said(self) -> str:
        """Why the walk is incomplete, in words; empty if it is not."""
        return "; ".join([*([self.spent] if self.spent else []), *sorted(self.missed)])


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing found by a walk.

    Attributes:
        parent: Where it is; open until the walk goes on.
        size: Of a file, in bytes.
        is_entered: A directory that the walk goes into.
    """

    name: str
    kind: Kind
    parent: Directory
    size: int = 0
    is_entered: bool = False

    @property
    def path(self) -> str:
        """Relative to the workspace."""
        return self.parent.where(self.name)


def walk(directory: Directory, *, depth: int | None, budget: Budget) -> Generator[Entry, None, None]:
    """What is in a directory and below, sorted by name, a directory before what is in it.

    Close the iterator if you leave it early: it holds directories open.

    Args:
        depth: Levels; 1 for the directory alone, None for all. Below 40 levels nothing is entered; `Budget.missed` then says so.
    """
    entries, is_all = directory.scan(budget.left())
    for entry in entries:
        if not budget.take(entries=1):
            return
        kind, size = _looked_at(entry)
        is_entered = kind == "directory" and (depth is None or depth > 1) and entry.name not in NOT_ENTERED
        if is_entered and len(directory.names) >= _MAX_DEPTH:
            budget.missed.add(f"directories go deeper than {_MAX_DEPTH} levels")
            is_entered = False
        yield Entry(entry.name, kind, directory, size, is_entered)
        if is_entered:
            try:
                below = directory.child(entry.name)
            except ToolError:  # no permission, or no longer a directory
                budget.missed.add("some directories could not be opened")
                continue
            with below:
                yield from walk(below, depth=depth and depth - 1, budget=budget)
    if not is_all:
        budget.stop("there are too many entries")


def _looked_at(entry: os.DirEntry[str]) -> tuple[Kind, int]:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile
        return "other", 0
    return kind_of(found), found.st_size
