"""A tool that runs commands, as a person at a terminal would: with that person's rights, and asked about first.

It starts in the workspace and is **not confined to it**. A command can read, change and delete what you can, use the network, and
read the files that hold your keys. Its environment is clean, which keeps keys from getting into a program or its log by accident;
it does not keep a program out that looks for them. What does is a container or another user.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from treadle.errors import ToolError, UsageError
from treadle.tools.builtin.processes import ProcessResult, run_process
from treadle.tools.context import ToolContext
from treadle.tools.function import FunctionTool, tool
from treadle.values.toolcalls import ToolResult

__all__ = ["clean_environment", "plain_text", "shell_tool"]

_MAX_OUTPUT_BYTES = 9_900_000  # with what is said about it less than a run keeps of a result, whose end would be lost otherwise
_MARGIN_S = 10.0  # the tool's own timeout is never the first

_DESCRIPTION = """\
Run a command and read what it prints (standard output and standard error together) and its exit code.

It starts in {workspace} but is not confined to that directory: it can read, change and delete anything the user can, and use the \
network. A text is run by `sh -c`; a list is a program and its arguments, run without a shell. Every command begins afresh: `cd` and \
variables do not last. There is no input and no terminal, and nobody to answer questions: use flags such as `-y`. When the command \
exits, what it left running in the background is ended too."""

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
    ways to the same end (`/usr/bin/git` is not `git *`): deny what is careless, not what is hostile. `git *` allows `git -c core.pager=... log`, `find *` allows `find -delete`, and a repository's own settings
    can make `git status` run programs. Allow whole commands, or none.

    An exit code other than 0 is no failure of the tool: `grep` that finds nothing and tests that do not pass have answered, and a
    model that looks around must not be refused its shell after three of those. The model reads the code. A command that could not be
    started, or whose time was up, is a failure.

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
        text = _visible(command if isinstance(command, str) else shlex.join(command)).replace("\n", "\n  ")
        where = f"In {_visible(cwd)}, but not confined to it: with all your rights, for up to {limit(timeout_s):g} s"
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
            content=_report(result, limit(timeout_s)), error_kind="timeout" if result.timed_out else None, details=details
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
    Relative directories are left out of `PATH`: with one, a file of the workspace could pass for `git`.
    """
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    path = kept.get("PATH", os.defpath).split(os.pathsep)
    kept["PATH"] = os.pathsep.join(directory for directory in path if os.path.isabs(directory))
    return {**kept, **_SET, **(extra or {})}


# CSI sequences; OSC and other strings up to their end; two- and three-character ones. Possessive, so that no text takes long.
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?|\x1b[\]PX^_][^\x07\x1b\n]*+(?:\x07|\x1b\\)|\x1b[ -/]*+[0-~]")
_OVERSTRUCK = re.compile(r"[^\n\x08]\x08")  # how manual pages were made bold
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain_text(text: str) -> str:
    """Printed text without what only a terminal understands: colours, titles, control characters.

    Of a line that was written over again and again, as progress bars are, the last state is kept.
    """
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


def _visible(text: str) -> str:
    """Text that cannot hide anything from whoever reads it: what does not show, or turns the line around, is written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _report(result: ProcessResult, limit_s: float) -> str:
    """What the model reads: the output, then how the command ended."""
    output = plain_text(result.output).rstrip() or "(no output)"
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
