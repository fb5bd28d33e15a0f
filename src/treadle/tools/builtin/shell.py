"""A tool that runs commands, as a person at a terminal would: with that person's rights, and asked about first.

It starts in the workspace and is **not confined to it**. A command can read, change and delete what you can, use the network, and
read the files that hold your keys. Its environment is clean, which keeps keys from getting into a program or its log by accident;
it does not keep a program out that looks for them. What does is a container or another user.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import shlex
import signal
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from treadle.errors import ToolError, UsageError
from treadle.tools.builtin.processes import ProcessResult, run_process
from treadle.tools.builtin.visible import visible
from treadle.tools.context import ToolContext
from treadle.tools.function import FunctionTool, tool
from treadle.values.toolcalls import ToolResult

__all__ = ["clean_environment", "plain_text", "shell_tool"]

_MAX_OUTPUT_BYTES = 9_900_000  # with what is said about it less than a run keeps of a result, whose end would be lost otherwise
_MAX_COMMAND_CHARS = 10_000  # as it is shown; a longer preview would be cut, and nobody knows what they approve
_MARGIN_S = 10.0  # the tool's own timeout is never the first

_DESCRIPTION = """\
Run a command and read what it prints (standard output and standard error together) and its exit code.

It starts in {workspace} but is not confined to that directory: it can read, change and delete anything the user can, and use the \
network. A text is run by `sh -c`; a list is a program and its arguments, run without a shell. Every command begins afresh: `cd` and \
variables do not last. There is no input and no terminal, and nobody to answer questions or to type in an editor: use flags such as \
`-y` and `-m`. When the command exits, what it left running in the background is ended too."""

_KEPT = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("SYSTEMROOT", "SYSTEMDRIVE", "COMSPEC", "PATHEXT", "TEMP", "TMP", "USERPROFILE", "APPDATA", "LOCALAPPDATA"),
    )
)
_SET = {
    "TERM": "dumb",
    "NO_COLOR": "1",
    "PAGER": "cat",
    "MANPAGER": "cat",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",  # a password that nobody can type
    # A text that nobody can write. Git's own two win over its settings. They fail rather than accept what is there: else a rebase
    # would go through, or a commit get words, that nobody chose.
    "GIT_EDITOR": "false",
    "GIT_SEQUENCE_EDITOR": "false",
    "EDITOR": "false",
    "VISUAL": "false",
    # A directory is no repository because files named HEAD, objects and refs lie in it: its `config` could make `git status` run
    # programs. Git takes this from here since 2.38.
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.bareRepository",
    "GIT_CONFIG_VALUE_0": "explicit",
    "PYTHONUNBUFFERED": "1",  # what a program has printed is there when it is ended, and can be watched before
}


def shell_tool(
    workspace: str | Path,
    *,
    timeout_s: float = 120.0,
    max_timeout_s: float = 600.0,
    env: Mapping[str, str] | None = None,
) -> FunctionTool[..., Any]:
    """The tool `shell`. It runs alone in its turn, and a person is asked before each command unless the approvals say otherwise.

    It is not a sandbox: see the module. Approval rules can let commands pass by their text, such as
    `Rule(tool="shell", arguments={"command": "git status*"}, action="allow")`. Rules see a command only if no shell would read more
    into it than its words: a list of arguments, or a text of letters, digits, blanks and `_-./:,+@=`. Any other fits no `allow`, and
    may fit any `deny`, so a person is asked. A pattern says nothing about what a program does with its arguments, nor about other
    ways to the same end (`/usr/bin/git` is not `git *`): deny what is careless, not what is hostile. `git *` allows
    `git -c core.pager=... log`, `find *` allows `find -delete`, and a repository's own settings can make `git status` run programs.
    Allow whole commands, or none.

    An exit code other than 0 is no failure of the tool: `grep` that finds nothing and tests that do not pass have answered, and a
    model that looks around must not be refused its shell after three of those. The model reads the code. A command that could not be
    started, or whose time was up, is a failure. So is one of more than 10,000 characters, as a person would be shown it.

    Args:
        workspace: Where commands start.
        timeout_s: Seconds for a command that does not ask for a time of its own. It is ended then, and what it printed is kept.
        max_timeout_s: The most that a command gets, whatever it asks for.
        env: Variables for the commands, on top of `clean_environment()`.

    Raises:
        UsageError: A time is not a positive number.
    """
    if not 0 < timeout_s < math.inf or not 0 < max_timeout_s < math.inf:
        wrong = f"shell_tool(timeout_s={timeout_s!r}, max_timeout_s={max_timeout_s!r}) cannot work"
        raise UsageError(wrong, hint="Both are seconds, finite and above 0.")
    cwd = os.path.abspath(os.path.expanduser(workspace))
    extra = dict(env or {})

    def limit(asked_s: int | None) -> float:
        return min(timeout_s if asked_s is None else asked_s, max_timeout_s)

    def preview(command: str | list[str], timeout_s: int | None) -> str:
        text = _shown(command)
        where = f"In {visible(cwd)}, but not confined to it: with all your rights, for up to {limit(timeout_s):g} s"
        return f"{where}{'' if isinstance(command, str) else ', without a shell'}:\n$ {text}"

    def subjects(command: str | list[str], timeout_s: int | None) -> dict[str, str]:
        text = _words(command)
        return {} if text is None else {"command": text}

    async def run(
        ctx: ToolContext,
        command: Annotated[str | list[str], "A text for `sh -c`, or a list: program and arguments."],
        timeout_s: Annotated[
            int | None, f"Seconds until it is ended; {limit(None):g} if not given, {max_timeout_s:g} at most."
        ] = None,
    ) -> ToolResult:
        if timeout_s is not None and timeout_s <= 0:
            raise ToolError(f"timeout_s is {timeout_s}. Pass seconds above 0.", kind="invalid_input")
        _shown(command)  # also where nobody is asked: what may run must not depend on that
        last = ""

        def watch(text: str) -> None:
            nonlocal last
            last = (last + text)[-2_000:]
            if line := plain_text(last).rstrip().rpartition("\n")[2].strip():
                ctx.progress(line)

        result = await run_process(
            command,
            cwd=cwd,
            env=clean_environment(extra),
            timeout_s=limit(timeout_s),
            max_output_bytes=_MAX_OUTPUT_BYTES,
            on_output=watch,
        )
        details = {"exit_code": result.exit_code, "signal": result.signal, "timed_out": result.timed_out}
        return ToolResult(
            content=await _report(result, limit(timeout_s)), error_kind="timeout" if result.timed_out else None, details=details
        )

    description = _DESCRIPTION.format(workspace=cwd)
    return tool(
        run,
        name="shell",
        description=description,
        concurrency="exclusive",
        needs_approval=True,
        timeout_s=max_timeout_s + _MARGIN_S,
        preview=preview,
        subjects=subjects,
    )


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program needs of this process's environment, without what it is not meant to know.

    That is: where programs, the user's files and temporary files are, who the user is, language and time zone; and settings that
    keep programs from using colours, pagers and questions. No key, token or proxy is in it, unless it is in `extra`, which wins.
    Relative directories are left out of `PATH`: with one, a file of the workspace could pass for `git`. An absolute one stays, also
    if it is in the workspace, because that is where an activated Python environment is. So what is allowed there by a rule
    (`pytest *`) is whatever the workspace says it is.
    """
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    path = [each for each in kept.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(each)]
    kept["PATH"] = os.pathsep.join(path) or os.defpath  # an empty one would be the current directory
    return {**kept, **_SET, **(extra or {})}


# CSI sequences; OSC and other strings up to their end; two- and three-character ones. Possessive, so that no text takes long.
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?|\x1b[\]PX^_][^\x07\x1b\n]*+(?:\x07|\x1b\\)|\x1b[ -/]*+[0-~]")
_OVERSTRUCK = re.compile(r"[^\n\x08]\x08")  # how manual pages were made bold
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


_PIECE_CHARS = 65_536


def plain_text(text: str) -> str:
    """Printed text without what only a terminal understands: colours, titles, control characters.

    Of a line that was written over again and again, as progress bars are, the last state is kept. A line of more than 65,536
    characters is taken as several.
    """
    return "".join(_plain_pieces(text))


def _plain_pieces(text: str) -> Generator[str]:
    """The same, one after the other: for ten megabytes it takes half a second."""
    start = 0
    while start < len(text):
        end = start + _PIECE_CHARS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield _plain(text[start:end])
        start = end


def _plain(text: str) -> str:
    if "\x1b" in text or "\x9b" in text:
        text = _ESCAPES.sub("", text)
    if "\r" in text:
        lines = (line.rstrip("\r") for line in text.split("\n"))
        text = "\n".join(line.rpartition("\r")[2] for line in lines)
    if "\x08" in text:
        text = _OVERSTRUCK.sub("", text)
    return _CONTROLS.sub("", text)


_WORD = re.compile(r"[A-Za-z0-9_./:,+@=-]+")


def _words(command: str | Sequence[str]) -> str | None:
    """The command as approval rules read it: its words, one blank between them. None if a shell could read more into it.

    Text is held against what is allowed, not searched for what is not: shells differ, and their lists of special characters are
    long. `=` in the first word would make it a variable, and the next word the program.
    """
    words = [word for word in command.split(" ") if word] if isinstance(command, str) else list(command)
    if not words or "=" in words[0]:
        return None
    if isinstance(command, str):
        return " ".join(words) if all(_WORD.fullmatch(word) for word in words) else None
    return shlex.join(words)


def _shown(command: str | Sequence[str]) -> str:
    """The command as a person is shown it, with nothing hidden in it.

    Raises:
        ToolError: It is too long for that.
    """
    text = command if isinstance(command, str) else shlex.join(command)
    if len(text) <= _MAX_COMMAND_CHARS:
        text = visible(text).replace("\n", "\n  ")
    if len(text) > _MAX_COMMAND_CHARS:
        raise ToolError(
            f"the command is too long to be shown to a person: over {_MAX_COMMAND_CHARS:,} characters. "
            "Put it, or the data in it, in a file, and run that.",
            kind="invalid_input",
        )
    return text


async def _report(result: ProcessResult, limit_s: float) -> str:
    """What the model reads: the output, then how the command ended. Others run meanwhile."""
    pieces: list[str] = []
    for piece in _plain_pieces(result.output):
        if pieces:
            await asyncio.sleep(0)
        pieces.append(piece)
    output = "".join(pieces).rstrip() or "(no output)"
    ends: list[str] = []
    if result.timed_out:
        ends.append(f"timed out after {limit_s:g} s, ended with everything it had started")
    elif result.signal is not None:
        ends.append(f"killed by signal {result.signal}{_signal_name(result.signal)}")
    else:
        ends.append("exit code unknown" if result.exit_code is None else f"exit {result.exit_code}")
    if result.left_running:
        ends.append(f"it left these running, and they were ended: {'; '.join(result.left_running)}")
    if result.not_ended:
        ends.append(f"these could not be ended and may still run: {'; '.join(result.not_ended)}")
    return "\n".join([output, *(f"[{plain_text(end)}]" for end in ends)])


def _signal_name(number: int) -> str:
    try:
        return f", {signal.Signals(number).name}"
    except ValueError:
        return ""
