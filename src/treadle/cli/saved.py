"""A run in a file, as far as it has come, so that it can be carried on: after a person's answer, a failure, a crash."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from treadle.core.state import apply, begin
from treadle.errors import UsageError
from treadle.values.events import Asked, Fact, ToolProgress
from treadle.values.state import RunResult, State, run_from_json, run_to_json

__all__ = ["SavedRun", "load_run"]


class SavedRun:
    """A journal that keeps the state of one run in a file.

    The file is written anew with every fact, before anybody sees it, so that it never lags behind what has happened: a program that
    is killed while a tool runs leaves a file that says the tool had started. It takes the old one's place in one step, and only its
    owner can read it.

    Args:
        state: The run, if it is one that is carried on.

    Raises:
        UsageError: There is a file of that name that is no run, or none can be written there.
    """

    def __init__(self, path: Path, state: State | None = None) -> None:
        self.path = path
        self._state = state
        if path.is_dir():
            raise UsageError(f"--save {path}: that is a directory", hint="Name a file in it.")
        if path.exists() and path.stat().st_size:
            try:
                load_run(path)
            except UsageError:
                hint = "Choose another name: only a file that holds a run is written over."
                raise UsageError(f"--save {path}: there is a file of that name, and it holds no run", hint=hint) from None
        try:
            os.close(self._temporary())  # it can be written: better said now than after the first answer
        except OSError as error:
            raise UsageError(
                f"--save {path}: {error.strerror}", hint="Name a file in a directory that you can write to."
            ) from None
        self._remove()

    async def append(self, run_id: str, fact: Fact) -> None:
        if isinstance(fact, Asked):
            self._state = begin(fact)
        else:
            assert self._state is not None
            self._state = apply(self._state, fact)
        if not isinstance(fact, ToolProgress):
            self._write(self._state)

    def put(self, run: RunResult) -> None:
        """Write the run as it is now. An ending that came too late for the journal is in it."""
        self._state = run.state
        self._write(run.state)

    def _write(self, state: State) -> None:
        # No fsync: the file outlives this program, not a power cut.
        try:
            with open(self._temporary(), "wb") as file:
                file.write(run_to_json(RunResult.of(state)))
            os.replace(self._name, self.path)
        except OSError as error:
            self._remove()
            raise UsageError(
                f"the run cannot be saved in {self.path}: {error.strerror}", hint="Make room, or save elsewhere."
            ) from None

    def _temporary(self) -> int:
        number, self._name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # mode 0600
        return number

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._name)


def load_run(path: Path) -> RunResult:
    """The run in a file.

    Raises:
        UsageError: There is none.
    """
    try:
        return run_from_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="Name a file that `--save` wrote.") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint="Name a file that `--save` wrote.") from None
