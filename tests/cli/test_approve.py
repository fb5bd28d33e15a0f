"""`--approve`: words become a policy, or an error that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from treadle import Rule, UsageError, tool
from treadle.cli.approve import policy_of
from treadle.tools.builtin.person import ask_user


@tool
def shell(command: str) -> str:
    """Run a command."""
    return command


@tool
def write_file(path: str) -> str:
    """Write."""
    return path


@tool
def edit_file(path: str) -> str:
    """Edit."""
    return path


@tool
def fetch(url: str) -> str:
    """Fetch."""
    return url


@tool
def pay(to: str) -> str:
    """Pay."""
    return to


TOOLS = (shell, write_file, edit_file, fetch, pay, ask_user)


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        ([], ()),
        (["ask"], ()),
        (["always"], "always"),
        (["never"], "never"),
        (["deny:fetch"], (Rule(action="deny", tool="fetch"),)),
        (["ask:*"], (Rule(action="ask", tool="*"),)),
        (["allow:shell:git status"], (Rule(action="allow", tool="shell", arguments={"command": "git status"}),)),
        (["allow:shell:FOO=1 make a:b"], (Rule(action="allow", tool="shell", arguments={"command": "FOO=1 make a:b"}),)),
        (["allow:write_file:docs/*"], (Rule(action="allow", tool="write_file", arguments={"path": "docs/*"}),)),
        (["allow:*_file:docs/*"], (Rule(action="allow", tool="*_file", arguments={"path": "docs/*"}),)),
        (["allow:fetch:host=*.python.org"], (Rule(action="allow", tool="fetch", arguments={"host": "*.python.org"}),)),
        (
            ["allow:fetch:https://docs.python.org/*?a=b"],
            (Rule(action="allow", tool="fetch", arguments={"url": "https://docs.python.org/*?a=b"}),),
        ),
        (
            ["allow:pay:to=Bob", "deny:pay"],
            (Rule(action="allow", tool="pay", arguments={"to": "Bob"}), Rule(action="deny", tool="pay")),
        ),
    ],
)
def test_words(words: list[str], policy: object) -> None:
    assert policy_of(words, TOOLS) == policy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sometimes"], "that is no policy"),
        (["permit:shell"], "that is no policy"),
        (["allow:"], "that is no policy"),
        (["allow"], "that is no policy"),
        (["never", "deny:shell"], "never stands alone"),
        (["deny:shell", "ask"], "ask stands alone"),
        (["always", "never"], "always stands alone"),
        (["deny:fecth"], "no tool is named fecth"),
        (["allow:pay:Bob"], "which argument of pay"),
        (["allow:pay:too=Bob"], "which argument of pay"),
        (["allow:*:docs/*"], r"which argument of \*"),
        (["deny:shell:rm*"], "cannot keep a command from running"),
        (["allow:fetch:https://docs.python.org*"], "other hosts"),
        (["allow:fetch:https://*.python.org/*"], "other hosts"),
        (["allow:fetch:*"], "other hosts"),
    ],
)
def test_what_is_no_policy_or_not_what_it_seems(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        policy_of(words, TOOLS)
    assert caught.value.hint


def test_for_the_real_tools(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    from treadle.tools.builtin.fetch import fetch_tool
    from treadle.tools.builtin.files import file_tools
    from treadle.tools.builtin.shell import shell_tool

    tools = (*file_tools(tmp_path), shell_tool(tmp_path), fetch_tool())
    words = ["allow:shell:pytest -q", "allow:edit_file:src/*", "deny:write_file:.github/*", "allow:fetch:https://example.org/*"]
    rules = policy_of(words, tools)
    assert [rule.arguments for rule in rules if isinstance(rule, Rule)] == [
        {"command": "pytest -q"},
        {"path": "src/*"},
        {"path": ".github/*"},
        {"url": "https://example.org/*"},
    ]
