"""Patterns for file names: `*.py`, `src/**/test_?.py`, `*.{ts,tsx}`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import cache

from treadle.errors import ToolError

__all__ = ["Glob"]

_MAX_CHARS = 500
_MAX_ALTERNATIVES = 64


class Glob:
    """A pattern, ready to be held against paths. Letters count in their case; names that begin with a dot are like others.

    Without a `/` it is for the last name of a path, at any depth. With one it is for the whole path, and `**` stands for any number
    of directories. `{a,b}` is either.

    Raises:
        ToolError: The pattern is too long, or has too many alternatives.
    """

    def __init__(self, pattern: str) -> None:
        if not pattern or len(pattern) > _MAX_CHARS:
            raise ToolError(f"a glob has 1 to {_MAX_CHARS} characters, such as `*.py`.", kind="invalid_input")
        self._options = [self._steps(option) for option in _alternatives(pattern)]

    @staticmethod
    def _steps(pattern: str) -> list[re.Pattern[str] | None]:
        """For each name of a path what it must look like; None for any number of names."""
        names = [name for name in pattern.removeprefix("./").split("/") if name]
        if "/" not in pattern.removeprefix("./"):
            names.insert(0, "**")
        return [None if name == "**" else re.compile(fnmatch.translate(name)) for name in names]

    def fits(self, names: Sequence[str]) -> bool:
        """Whether a path fits, given as the names below where the walk began."""
        return any(_fits(steps, names) for steps in self._options)


def _fits(steps: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    @cache  # without it, several `**` would try the same rest again and again
    def rest_fits(step: int, name: int) -> bool:
        if step == len(steps):
            return name == len(names)
        wanted = steps[step]
        if wanted is None:
            return rest_fits(step + 1, name) or (name < len(names) and rest_fits(step, name + 1))
        return name < len(names) and wanted.match(names[name]) is not None and rest_fits(step + 1, name + 1)

    return rest_fits(0, 0)


def _alternatives(pattern: str) -> list[str]:
    """The pattern once for each choice in its braces. Braces without a comma, or not closed, are letters."""
    options = [""]
    for part in re.split(r"(\{[^{},]*(?:,[^{},]*)+\})", pattern):
        choices = part[1:-1].split(",") if part.startswith("{") and part.endswith("}") and "," in part else [part]
        if len(options) * len(choices) > _MAX_ALTERNATIVES:
            raise ToolError(f"the glob has more than {_MAX_ALTERNATIVES} alternatives. Use fewer braces.", kind="invalid_input")
        options = [option + choice for option in options for choice in choices]
    return options
