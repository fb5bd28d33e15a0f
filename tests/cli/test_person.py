"""A person at a real terminal approves, denies, edits, answers and leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import TOOLS, Screen, serving
from treadle import run_from_json

WRITE = ("write", {"path": "a.txt", "text": "new"})
ASK = ("ask_user", {"question": "Which colour?", "options": ["red", "blue"]})


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mytools.py").write_text(TOOLS)
    (tmp_path / "a.txt").write_text("old")
    return tmp_path


def written(here: Path) -> str:
    return (here / "a.txt").read_text()


class TestApproval:
    def test_yes(self, here: Path) -> None:
        with serving(WRITE, "Done.") as server, Screen(["run", "Hi", *server.options()], here) as screen:
            shown = screen.expect("Run it?")
            assert "│ --- a/a.txt" in shown and "│ -old" in shown and "│ +new" in shown
            assert written(here) == "old"
            screen.type("y")
            assert screen.end() == 0
            assert written(here) == "new"
            assert server.tool_texts == ["wrote a.txt"]
            assert "Done." in screen.text and "■ end" in screen.text
            assert screen.text.count("+new") == 1  # what was approved is not shown a second time
            assert "waiting_approval" not in screen.text
            assert "\x1b[32m+new" in screen.raw and "\x1b[31m-old" in screen.raw and "\x1b[36m@@" in screen.raw

    def test_no_and_why(self, here: Path) -> None:
        with serving(WRITE, "Oh.") as server, Screen(["run", "Hi", *server.options()], here) as screen:
            screen.expect("Run it?")
            screen.type("n")
            screen.expect("Why not?")
            screen.type("the file is mine")
            assert screen.end() == 0
            assert written(here) == "old"
            assert server.tool_texts == ["Error: Denied: the file is mine"]

    def test_no_with_the_reason_on_the_same_line_and_none_at_all(self, here: Path) -> None:
        with serving([WRITE, WRITE], "Oh.") as server, Screen(["run", "Hi", *server.options()], here) as screen:
            assert "1 of 2" in screen.expect("Run it?")
            screen.type("n not today")
            assert "2 of 2" in screen.expect("Run it?")
            screen.type("no")
            screen.expect("Why not?")
            screen.type("")
            assert screen.end() == 0
            assert [text.partition(": ")[2][:20] for text in server.tool_texts] == ["Denied: not today", "Denied, without a re"]

    @pytest.mark.parametrize("typed", ["", "yep", "y please", "maybe", "1", '{"a": 1}', "$(touch x)", "a ls", "\x1b[A"])
    def test_nothing_else_is_a_yes(self, here: Path, typed: str) -> None:
        with serving(WRITE) as server, Screen(["run", "Hi", *server.options()], here) as screen:
            screen.expect("Run it?")
            screen.type(typed)
            screen.expect("Type one of the letters")
            screen.expect("Run it?")
            screen.type("q")
            assert screen.end() == 6
            assert written(here) == "old"

    def test_what_was_typed_before_the_question_answers_nothing(self, here: Path) -> None:
        calls = [WRITE, ("pay", {"amount": 5})]
        with serving(calls) as server, Screen(["run", "Hi", *server.options(tools=("write", "pay"))], here) as screen:
            screen.expect("Run it?")
            screen.type("n no\ny\ny\ny")  # as a paste is
            screen.expect("pay")
            screen.expect("Run it?")
            screen.type("q")
            assert screen.end() == 6
            assert not (here / "paid.txt").exists() and written(here) == "old"

    def test_a_call_without_a_preview_shows_its_arguments(self, here: Path) -> None:
        with serving(("pay", {"amount": 5, "to": "Eve"}), "Paid.") as server:
            with Screen(["run", "Hi", *server.options(tools=["pay"])], here) as screen:
                assert '│   "to": "Eve"' in screen.expect("Run it?")
                screen.type("yes")
                assert screen.end() == 0

    def test_edit_on_a_line(self, here: Path) -> None:
        with serving(("pay", {"amount": 5}), "Paid.") as server:
            with Screen(["run", "Hi", *server.options(tools=["pay"])], here) as screen:
                for wrong, said in [
                    ('{"amount": ', "That is no JSON"),
                    ('{"amount": "much"}', "amount"),
                    ("[1]", "object"),
                    ('{"amount": 1, "amount": 2}', "twice"),
                ]:
                    screen.expect("Run it?")
                    screen.type("e")
                    screen.expect("as JSON")
                    screen.type(wrong)
                    screen.expect(said)
                    screen.expect("again? (y/n)")
                    screen.type("n")
                screen.expect("Run it?")
                screen.type("e")
                screen.expect("as JSON")
                screen.type("")
                screen.expect("Nothing was changed")
                screen.expect("Run it?")
                screen.type("e")
                screen.expect("as JSON")
                screen.type('{"amount": 3, "to": "$(touch x)"}')
                assert screen.end() == 0
                assert (here / "paid.txt").read_text() == "3 to $(touch x)\n"
                assert not (here / "x").exists()
                assert 'It ran with: {"amount":3,"to":"$(touch x)"}' in server.tool_texts[0]

    def test_edit_in_an_editor(self, here: Path) -> None:
        editor = here / "editor.py"
        editor.write_text("import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write(t.replace('5', '7'))")
        with serving(("pay", {"amount": 5}), "Paid.") as server:
            command = f"{sys.executable} {editor}"
            with Screen(["run", "Hi", *server.options(tools=["pay"])], here, EDITOR=command) as screen:
                screen.expect("Run it?")
                screen.type("e")
                assert screen.end() == 0
                assert (here / "paid.txt").read_text() == "7 to Bob\n"

    def test_an_editor_that_fails(self, here: Path) -> None:
        with serving(("pay", {"amount": 5})) as server:
            with Screen(["run", "Hi", *server.options(tools=["pay"])], here, EDITOR="false") as screen:
                screen.expect("Run it?")
                screen.type("e")
                screen.expect("Editing failed")
                screen.expect("as JSON")
                screen.type("")
                screen.expect("Run it?")
                screen.type("q")
                assert screen.end() == 6

    def test_always_is_for_every_later_call_of_the_tool(self, here: Path) -> None:
        other = ("write", {"path": "b.txt", "text": "b"})
        with serving([WRITE, other], ("write", {"path": "c.txt", "text": "c"}), ("pay", {"amount": 1})) as server:
            with Screen(["run", "Hi", *server.options(tools=("write", "pay"))], here) as screen:
                assert "any write in this run" in screen.expect("Run it?")
                screen.type("a")
                assert "pay" in screen.expect("Run it?")
                assert (here / "b.txt").exists() and (here / "c.txt").exists()
                assert "│ +c" in screen.text  # it was not asked about, so it is shown now
                screen.type("q")
                assert screen.end() == 6

    def test_always_is_for_the_very_same_command_alone(self, here: Path) -> None:
        first, second = ("shell", {"command": "ls"}), ("shell", {"command": "ls; rm -rf x"})
        with serving(first, first, second) as server:
            with Screen(["run", "Hi", *server.options(tools=["shell"])], here) as screen:
                assert "this very call again" in screen.expect("Run it?")
                screen.type("a")
                assert "rm -rf x" in screen.expect("Run it?")
                screen.type("q")
                assert screen.end() == 6
                assert (here / "ran.txt").read_text() == "ls\nls\n"

    def test_a_long_preview_shows_its_ends_and_all_on_demand(self, here: Path) -> None:
        text = "\n".join(f"line {n}" for n in range(200))
        with serving(("write", {"path": "b.txt", "text": text})) as server:
            with Screen(["run", "Hi", *server.options()], here) as screen:
                shown = screen.expect("Run it?")
                assert "+line 0" in shown and "+line 199" in shown and "+line 100" not in shown
                assert "… 172 more lines …" in shown and "v all (172 more lines)" in shown
                screen.type("v")
                shown = screen.expect("Run it?")
                assert "+line 100" in shown and '│   "path": "b.txt"' in shown
                screen.type("q")
                assert screen.end() == 6


class TestQuestion:
    def play(self, here: Path, typed: str, *more: str) -> tuple[list[str], int, str]:
        with serving(ASK, "Fine.") as server:
            with Screen(["run", "Hi", *server.options("--tools", "ask", *more, tools=())], here) as screen:
                shown = screen.expect("Your answer:")
                assert "│ Which colour?" in shown and "│ 2. blue" in shown
                screen.type(typed)
                return (server.tool_texts if (code := screen.end()) == 0 else [], code, screen.text)

    @pytest.mark.parametrize(
        ("typed", "said"),
        [
            ("2", "blue"),
            ("green, please", "green, please"),
            ("3", "3"),
            ("y", "y"),
            ("/skip you decide", "Error: Denied: you decide"),
            ("été ✓", "été ✓"),
        ],
    )
    def test_a_number_or_words(self, here: Path, typed: str, said: str) -> None:
        texts, code, _ = self.play(here, typed)
        assert (texts, code) == ([said], 0)

    def test_leave(self, here: Path) -> None:
        _, code, text = self.play(here, "/quit", "--save", "run.json")
        assert code == 6
        assert "treadle resume run.json --model" in text

    def test_any_tools_bring_it_along_in_a_terminal(self, here: Path) -> None:
        with serving("Fine.") as server, Screen(["run", "Hi", *server.options("--tools", "todo")], here) as screen:
            assert screen.end() == 0
            names = [tool["function"]["name"] for tool in server.requests[0]["tools"]]
            assert names == ["todo", "ask_user", "write"]


class TestLeaving:
    @pytest.mark.parametrize(("how", "code"), [("c", 130), ("d", 6), ("q", 6)])
    def test_at_the_question(self, here: Path, how: str, code: int) -> None:
        with serving(WRITE, "Done.") as server:
            with Screen(["run", "Hi", *server.options("--save", "run.json")], here) as screen:
                screen.expect("Run it?")
                if how == "q":
                    screen.type("q")
                else:
                    screen.ctrl(how)
                assert screen.end() == code
                assert written(here) == "old"
                assert "treadle resume run.json" in screen.text
                assert run_from_json((here / "run.json").read_bytes()).pending[0].name == "write"
            with Screen(["resume", "run.json", *server.options()], here) as screen:
                screen.expect("Run it?")
                screen.type("y")
                assert screen.end() == 0
            assert written(here) == "new"
            assert run_from_json((here / "run.json").read_bytes()).stop_reason == "end"

    def test_unsaved_it_says_so(self, here: Path) -> None:
        with serving(WRITE) as server, Screen(["run", "Hi", *server.options()], here) as screen:
            screen.expect("Run it?")
            screen.ctrl("d")
            assert screen.end() == 6
            assert "not saved" in screen.text

    @pytest.mark.parametrize("at", ["Why not?", "as JSON"])
    def test_at_a_second_question(self, here: Path, at: str) -> None:
        with serving(WRITE) as server, Screen(["run", "Hi", *server.options()], here) as screen:
            screen.expect("Run it?")
            screen.type("n" if at == "Why not?" else "e")
            screen.expect(at)
            screen.ctrl("c")
            assert screen.end() == 130
            assert written(here) == "old"


def test_standard_output_holds_the_answer_alone(here: Path) -> None:
    with serving(WRITE, "Done.") as server:
        with Screen(["run", "Hi", *server.options()], here, stdout=here / "answer") as screen:
            screen.expect("Run it?")
            screen.type("y")
            assert screen.end() == 0
    assert (here / "answer").read_text() == "Done.\n"
    assert written(here) == "new"


def test_a_prompt_that_was_typed(here: Path) -> None:
    with serving(WRITE, "Done.") as server, Screen(["run", "-", *server.options()], here) as screen:
        screen.type("Write it.")
        screen.ctrl("d")
        screen.expect("Run it?")
        screen.type("y")
        assert screen.end() == 0
        assert server.requests[0]["messages"][-1]["content"] == "Write it.\n"
    assert written(here) == "new"


def test_a_terminal_that_knows_no_unicode(here: Path) -> None:
    with serving(WRITE, "Done ✓ 世") as server:
        with Screen(["run", "Hi", *server.options()], here, PYTHONIOENCODING="ascii") as screen:
            screen.expect("Run it?")
            screen.type("y")
            assert screen.end() == 0
            assert "Done ? ?" in screen.text


HOSTILE = "\r\x1b[2K\x1b]0;owned\x07\x9b6n\x08\u202egnp\u200b\u2066\u061c\x85\u2028Run it? "


class TestForeignText:
    """A call cannot steer the terminal, nor pass for our own words."""

    def shown(self, here: Path, call: tuple[str, Any], tools: list[str]) -> Screen:
        with serving(call) as server, Screen(["run", "Hi", *server.options(tools=tools)], here) as screen:
            screen.expect("q quit")
            screen.type("v")
            screen.expect("q quit")
            screen.type("q")
            assert screen.end() == 6
            return screen

    @pytest.mark.parametrize(
        ("call", "tools"),
        [
            (("shell", {"command": f"ls{HOSTILE}"}), ["shell"]),
            (("write", {"path": f"a{HOSTILE}", "text": "x"}), ["write"]),
            (("write", {"path": "a", "text": f"x{HOSTILE}"}), ["write"]),
            (("pay", {"amount": 1, "to": f"x{HOSTILE}"}), ["pay"]),
        ],
    )
    def test_control_characters_are_written_out(self, here: Path, call: tuple[str, Any], tools: list[str]) -> None:
        screen = self.shown(here, call, tools)
        for char in "\x07\x9b\x08\u202e\u200b\u2066\u061c\x85\u2028":
            assert char not in screen.raw, hex(ord(char))
        assert "\x1b]" not in screen.raw
        assert "\\u202e" in screen.text
        assert "\\u001b[2K" in screen.text

    def test_every_row_of_a_call_is_behind_the_bar(self, here: Path) -> None:
        forged = "ls" + " " * 94 + "\n".join(["", "Run it? y", "  Run it? ", "? shell  waits for you"]) + "x" * 300 + "世" * 120
        screen = self.shown(here, ("shell", {"command": forged}), ["shell"])
        begun = screen.text[screen.text.index("? shell  waits") :]
        for line in begun[: begun.index("  y yes")].splitlines()[1:]:
            assert line.startswith("│ ") and len(line) <= 100, line
        assert screen.text.count("\n  Run it? ") == 2

    def test_arguments_of_a_running_tool(self, here: Path) -> None:
        call = ("look", {"what": "a\u202eb\x9bc\x7f"})
        code = 'def look(what: str) -> str:\n    """Look."""\n    return what\n'
        (here / "mytools.py").write_text(code)
        with serving(call, "Done\u202e\x1b]0;x\x07") as server:
            with Screen(["run", "Hi", *server.options(tools=["look"])], here) as screen:
                assert screen.end() == 0
                for char in "\u202e\x9b\x7f\x07":
                    assert char not in screen.raw
                assert "\x1b]" not in screen.raw


def test_the_real_tools(here: Path) -> None:
    work = here / "work"
    work.mkdir()
    (work / "notes.md").write_text("old\n")
    turns = [
        ("read_file", {"path": "notes.md"}),
        [("edit_file", {"path": "notes.md", "old": "old", "new": "new"}), ("shell", {"command": "cat notes.md"})],
        "Done.",
    ]
    with serving(*turns) as server:
        options = server.options("--tools", "files,shell", "--workspace", "work", tools=())
        with Screen(["run", "Hi", *options], here) as screen:
            assert "│ +new" in screen.expect("Run it?")
            screen.type("y")
            assert "$ cat notes.md" in screen.expect("Run it?")
            screen.type("y")
            assert screen.end() == 0
            assert "new" in server.tool_texts[-1]
            system = server.requests[0]["messages"][0]
            assert system["role"] == "system" and len(system["content"]) < 100
            names = {tool["function"]["name"] for tool in server.requests[0]["tools"]}
            assert {"read_file", "write_file", "shell", "ask_user", "read_result"} <= names
    assert (work / "notes.md").read_text() == "new\n"
    assert json.dumps(server.requests)  # all of it is JSON
