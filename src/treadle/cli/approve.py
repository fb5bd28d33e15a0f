"""`--approve`: an approval policy as words."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Any, cast

from treadle.errors import UsageError
from treadle.tools.function import FunctionTool
from treadle.values.toolcalls import Approvals, Rule

__all__ = ["policy_of"]

_HINT = "Write ask, always or never; or rules: allow:TOOL, allow:shell:git status, allow:write_file:docs/*, deny:TOOL, ask:*."
_SUBJECTS = ("command", "path", "url")
"""Arguments that a pattern is about without being named, in this order."""

_URL_WITH_ONE_HOST = re.compile(r"https?://[^/*?\[]+/.*", re.S)


def policy_of(words: Sequence[str], tools: Sequence[FunctionTool[..., Any]]) -> Approvals:
    """The policy that `--approve` gives, one word or several rules.

    Args:
        tools: Those of the run; a rule that names none of them is a mistake.

    Raises:
        UsageError: It is none, or one that would not do what it seems to.
    """
    if not words or list(words) == ["ask"]:
        return ()
    if list(words) in (["always"], ["never"]):
        return cast("Approvals", words[0])
    for word in words:
        if word in ("ask", "always", "never"):
            hint = "Leave the rules out, or end them with ask:* or allow:*, which fit every call."
            raise UsageError(f"--approve {word} stands alone", hint=hint)
    return tuple(_rule(word, tools) for word in words)


def _rule(word: str, tools: Sequence[FunctionTool[..., Any]]) -> Rule:
    action, _, rest = word.partition(":")
    name, _, pattern = rest.partition(":")
    if action not in ("allow", "ask", "deny") or not name:
        raise UsageError(f"--approve {word}: that is no policy", hint=_HINT)
    fitting = [tool for tool in tools if fnmatch.fnmatchcase(tool.spec.name, name)]
    if not fitting and name != "*":
        names = ", ".join(tool.spec.name for tool in tools) or "none"
        raise UsageError(f"--approve {word}: no tool is named {name}", hint=f"Tools of this run: {names}.")
    if not pattern:
        return Rule(action=action, tool=name)
    key, text = _subject(word, name, pattern, fitting)
    if name == "shell" and action == "deny":
        hint = "A shell has too many ways to say the same. Allow the commands that you trust, then deny:shell, or leave it at being asked."
        raise UsageError(f"--approve {word}: a pattern cannot keep a command from running", hint=hint)
    if key == "url" and action == "allow" and not _URL_WITH_ONE_HOST.fullmatch(text):
        hint = (
            "Write out the host and a slash: allow:fetch:https://docs.python.org/*. Or name hosts: allow:fetch:host=*.python.org."
        )
        raise UsageError(f"--approve {word}: the pattern fits addresses of other hosts, too", hint=hint)
    return Rule(action=action, tool=name, arguments={key: text})


def _subject(word: str, name: str, pattern: str, fitting: Sequence[FunctionTool[..., Any]]) -> tuple[str, str]:
    """The argument that a pattern is about, and the pattern itself."""
    arguments = [set(cast("dict[str, Any]", tool.spec.parameters.get("properties", {}))) for tool in fitting]
    known = set[str]().union(*arguments)
    key, equals, text = pattern.partition("=")
    if equals and (key in known or (key, name) == ("host", "fetch")):
        return key, text
    usual = {next((subject for subject in _SUBJECTS if subject in each), None) for each in arguments}
    if len(usual) == 1 and (subject := usual.pop()) is not None:
        return subject, pattern
    names = ", ".join(sorted(known)) or "its arguments"
    hint = f"Write --approve {word.partition(':')[0]}:{name}:ARGUMENT=PATTERN with one of: {names}."
    raise UsageError(f"--approve {word}: which argument of {name} is meant?", hint=hint)
