"""In a pipe nobody is asked: the run stops, is kept in a file, and goes on in another process."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import TOOLS, Screen, Server, serving
from tests.harness import Hang, sse
from treadle import event_from_json, run_from_json

WRITE = ("write", {"path": "a.txt", "text": "new"})
PAY = ("pay", {"amount": 5})
ASK = ("ask_user", {"question": "Which colour?", "options": ["red", "blue"]})


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mytools.py").write_text(TOOLS)
    (tmp_path / "a.txt").write_text("old")
    return tmp_path


def treadle(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treadle.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def parked(here: Path, server: Server, *more: str, tools: Any = ("write", "pay")) -> subprocess.CompletedProcess[str]:
    done = treadle("run", "Hi", *server.options("--save", "run.json", *more, tools=tools), cwd=here)
    assert done.returncode == 6, done.stderr
    return done


class TestStopping:
    def test_it_says_what_waits_and_how_to_go_on(self, here: Path) -> None:
        with serving([WRITE, PAY], "Done.") as server:
            done = parked(here, server)
            assert done.stdout == ""
            assert "2 calls wait for a person" in done.stderr
            assert "call_0  write" in done.stderr and "│ +new" in done.stderr and "call_1  pay" in done.stderr
            assert "\x1b" not in done.stderr
            # The command that it names is one that works.
            (line,) = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("treadle resume")]
            command = f"{sys.executable} -m treadle.cli {line.removeprefix('treadle ')}"
            again = subprocess.run(["sh", "-c", command], cwd=here, capture_output=True, text=True, timeout=60)
            assert (again.returncode, again.stdout) == (0, "Done.\n"), again.stderr
            assert (here / "a.txt").read_text() == "new"

    def test_unsaved(self, here: Path) -> None:
        with serving(WRITE) as server:
            done = treadle("run", "Hi", *server.options(), cwd=here)
        assert done.returncode == 6
        assert "1 call waits" in done.stderr and "--save FILE" in done.stderr
        assert list(here.glob("*.json")) == []

    def test_json_is_events_alone(self, here: Path) -> None:
        with serving(WRITE, "Done.") as server:
            first = parked(here, server, "--json")
            second = treadle("resume", "run.json", "--yes", *server.options("--json", tools=("write", "pay")), cwd=here)
        assert second.returncode == 0, second.stderr
        kinds = [[type(event_from_json(line)).__name__ for line in done.stdout.splitlines()] for done in (first, second)]
        assert kinds[0][-2:] == ["ApprovalRequested", "Ended"]
        assert kinds[1][:3] == ["Resumed", "ApprovalAnswered", "ToolStarted"] and kinds[1][-1] == "Ended"
        assert "call_0" in first.stderr and second.stderr == ""

    def test_the_file_is_ours_alone(self, here: Path) -> None:
        with serving(WRITE) as server:
            parked(here, server)
        assert stat.S_IMODE((here / "run.json").stat().st_mode) == 0o600
        assert {path.name for path in here.iterdir()} - {"__pycache__"} == {"mytools.py", "a.txt", "run.json"}

    def test_a_file_that_is_no_run_is_not_written_over(self, here: Path) -> None:
        with serving() as server:
            done = treadle("run", "Hi", *server.options("--save", "a.txt"), cwd=here)
        assert (done.returncode, (here / "a.txt").read_text()) == (2, "old")
        assert "holds no run" in done.stderr

    def test_a_place_that_cannot_be_written(self, here: Path) -> None:
        with serving() as server:
            done = treadle("run", "Hi", *server.options("--save", "no/run.json"), cwd=here)
        assert done.returncode == 2
        assert "--save no/run.json" in done.stderr


class TestAnswers:
    def resumed(self, here: Path, *answers: str, call: Any = WRITE) -> tuple[list[str], str]:
        with serving(call, "Done.") as server:
            parked(here, server)
            done = treadle("resume", "run.json", *answers, *server.options(tools=("write", "pay")), cwd=here)
            assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr
            return server.tool_texts, (here / "a.txt").read_text()

    def test_approve(self, here: Path) -> None:
        assert self.resumed(here, "--approve-call", "call_0") == (["wrote a.txt"], "new")

    def test_yes(self, here: Path) -> None:
        assert self.resumed(here, "--yes") == (["wrote a.txt"], "new")

    def test_deny(self, here: Path) -> None:
        assert self.resumed(here, "--deny-call", "call_0=it = mine") == (["Error: Denied: it = mine"], "old")

    def test_deny_one_and_yes_to_the_rest(self, here: Path) -> None:
        texts, _ = self.resumed(here, "--deny-call", "call_0", "--yes", call=[WRITE, PAY])
        assert [text[:14] for text in texts] == ["Error: Denied,", "paid"]

    def test_edit(self, here: Path) -> None:
        texts, text = self.resumed(here, "--edit-call", 'call_0={"path": "a.txt", "text": "mine"}')
        assert text == "mine"
        assert "A person changed the arguments" in texts[0]

    def test_a_policy_decides_about_what_still_waits_too(self, here: Path) -> None:
        with serving(WRITE, PAY, "Done.") as server:
            parked(here, server)
            options = server.options("--approve", "allow:write", tools=("write", "pay"))
            assert treadle("resume", "run.json", *options, cwd=here).returncode == 6
            assert (here / "a.txt").read_text() == "new"
            assert not (here / "paid.txt").exists()
            assert treadle("resume", "run.json", "--approve", "never", *options[:-2], cwd=here).returncode == 0
            assert (here / "paid.txt").exists()

    def test_what_has_changed_since_it_was_shown_does_not_run(self, here: Path) -> None:
        with serving(WRITE, "Done.") as server:
            parked(here, server)
            (here / "a.txt").write_text("newer")
            assert treadle("resume", "run.json", "--yes", *server.options(), cwd=here).returncode == 0
            assert (here / "a.txt").read_text() == "newer"
            assert "has changed since it was approved" in server.tool_texts[0]

    def test_say(self, here: Path) -> None:
        with serving(ASK, "Done.") as server:
            done = parked(here, server, "--tools", "ask", tools=())
            assert "(a question)" in done.stderr and "--say-call call_0=..." in done.stderr
            done = treadle("resume", "run.json", "--yes", *server.options(tools=()), cwd=here)  # which answers no question
            assert done.returncode == 6
            done = treadle("resume", "run.json", "--say-call", "call_0=teal", *server.options(tools=()), cwd=here)
            assert done.returncode == 0, done.stderr
            assert server.tool_texts == ["teal"]

    def test_one_after_the_other(self, here: Path) -> None:
        with serving([WRITE, PAY], "Done.") as server:
            parked(here, server)
            options = server.options(tools=("write", "pay"))
            done = treadle("resume", "run.json", "--approve-call", "call_1", *options, cwd=here)
            assert done.returncode == 6
            assert "1 call waits" in done.stderr and "call_1" not in done.stderr.split("To go on")[0]
            assert not (here / "paid.txt").exists()
            done = treadle("resume", "run.json", "--approve-call", "call_0", *options, cwd=here)
            assert done.returncode == 0, done.stderr
            assert (here / "paid.txt").exists() and (here / "a.txt").read_text() == "new"

    def test_none_prints_what_waits(self, here: Path) -> None:
        with serving(WRITE) as server:
            parked(here, server)
            (here / "a.txt").write_text("newer")
            done = treadle("resume", "run.json", *server.options(), cwd=here)
            assert done.returncode == 6
            assert "│ -newer" in done.stderr  # as it would be now
            assert run_from_json((here / "run.json").read_bytes()).pending[0].preview == (
                "--- a/a.txt\n+++ b/a.txt\n@@ -1,1 +1,1 @@\n-newer\n+new"
            )

    def test_a_run_that_has_ended_is_not_run_again(self, here: Path) -> None:
        self.resumed(here, "--yes")
        (here / "a.txt").write_text("later")
        done = treadle("resume", "run.json", "--model", "http://127.0.0.1:9/v1#m", cwd=here)
        assert done.returncode == 2
        assert "nothing to resume" in done.stderr

    @pytest.mark.parametrize(
        ("answers", "said"),
        [
            (["--approve-call", "call_9"], "no such call waits"),
            (["--approve-call", "call_0", "--deny-call", "call_0"], "two answers"),
            (["--approve-call", "call_0=x"], "cannot be understood"),
            (["--edit-call", "call_0"], "cannot be understood"),
            (["--edit-call", 'call_0={"path": 1}'], "invalid arguments"),
            (["--edit-call", "call_0={"], "invalid arguments"),
            (["--say-call", "call_0=yes"], "is no answer to the approval"),
        ],
    )
    def test_answers_that_are_none_change_nothing(self, here: Path, answers: list[str], said: str) -> None:
        with serving(WRITE) as server:
            parked(here, server)
            before = (here / "run.json").read_bytes()
            done = treadle("resume", "run.json", *answers, *server.options(), cwd=here)
            assert done.returncode == 2
            assert said in done.stderr
            assert (here / "run.json").read_bytes() == before
            assert (here / "a.txt").read_text() == "old"

    def test_without_its_tool_a_call_is_not_lost(self, here: Path) -> None:
        with serving(WRITE) as server:
            parked(here, server)
            before = (here / "run.json").read_bytes()
            done = treadle("resume", "run.json", "--yes", *server.options(tools=()), cwd=here)
            assert done.returncode == 2
            assert "a call of write" in done.stderr
            assert (here / "run.json").read_bytes() == before

    def test_saving_elsewhere(self, here: Path) -> None:
        with serving(WRITE, "Done.") as server:
            parked(here, server)
            before = (here / "run.json").read_bytes()
            done = treadle("resume", "run.json", "--yes", "--save", "mytools.py", *server.options(), cwd=here)
            assert done.returncode == 2 and "holds no run" in done.stderr
            done = treadle("resume", "run.json", "--yes", "--save", "other.json", *server.options(), cwd=here)
            assert done.returncode == 0, done.stderr
            assert (here / "run.json").read_bytes() == before
            assert run_from_json((here / "other.json").read_bytes()).stop_reason == "end"

    def test_no_run_at_all(self, here: Path) -> None:
        done = treadle("resume", "a.txt", cwd=here)
        assert done.returncode == 2
        assert "not a run" in done.stderr


class TestBrokenOff:
    def test_failed_it_is_kept_and_goes_on(self, here: Path) -> None:
        with serving(sse(status=400), "Done.") as server:
            done = treadle("run", "Hi", *server.options("--save", "run.json"), cwd=here)
            assert done.returncode == 3
            assert "treadle resume run.json" in done.stderr
            done = treadle("resume", "run.json", *server.options(), cwd=here)
            assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr

    def test_stopped_by_a_signal(self, here: Path) -> None:
        with serving([Hang()], "Done.") as server:
            command = [sys.executable, "-m", "treadle.cli", "run", "Hi", *server.options("--save", "run.json")]
            process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            while not server.requests:
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGTERM)
            _, err = process.communicate(timeout=20)
            assert process.returncode == 130
            assert "treadle resume run.json" in err
            done = treadle("resume", "run.json", *server.options(), cwd=here)
            assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr

    def test_killed_while_a_tool_ran_the_call_is_not_made_again(self, here: Path) -> None:
        with serving(("slow", {}), "Done.") as server:
            with Screen(["run", "Hi", *server.options("--save", "run.json", tools=["slow"])], here) as screen:
                screen.expect("half of it")
                screen.signal(signal.SIGKILL)
                screen.end()
            kept = run_from_json((here / "run.json").read_bytes())
            assert kept.state.open_calls[0].started and not kept.state.ended
            done = treadle("resume", "run.json", *server.options(tools=["slow"]), cwd=here)
            assert done.returncode == 0, done.stderr
            assert "Outcome unknown" in server.tool_texts[0]

    def test_while_the_person_thinks_it_is_kept(self, here: Path) -> None:
        with serving(WRITE) as server:
            with Screen(["run", "Hi", *server.options("--save", "run.json")], here) as screen:
                screen.expect("Run it?")
                screen.signal(signal.SIGHUP)  # the terminal is closed
                screen.end()
            assert run_from_json((here / "run.json").read_bytes()).pending


class TestInTheTerminal:
    def test_it_asks_for_what_is_missing(self, here: Path) -> None:
        with serving([WRITE, PAY], "Done.") as server:
            parked(here, server)
            (here / "a.txt").write_text("newer")
            options = server.options(tools=("write", "pay"))
            with Screen(["resume", "run.json", "--deny-call", "call_1", *options], here) as screen:
                assert "│ -newer" in screen.expect("Run it?")  # as it would be now, or it would not run after all
                screen.type("y")
                assert screen.end() == 0
            assert [text[:14] for text in server.tool_texts] == ["wrote a.txt", "Error: Denied,"]

    def test_a_question_of_a_run_without_other_tools(self, here: Path) -> None:
        with serving(ASK, "Done.") as server:
            parked(here, server, "--tools", "ask", tools=())
            with Screen(["resume", "run.json", *server.options(tools=())], here) as screen:
                screen.expect("Your answer:")
                screen.type("1")
                assert screen.end() == 0
            assert server.tool_texts == ["red"]


def test_tool_names(here: Path) -> None:
    done = treadle("run", "Hi", "--tools", "files,shel", "--model", "http://127.0.0.1:9/v1#m", cwd=here)
    assert done.returncode == 2
    assert "--tools shel" in done.stderr and "read-files, shell, fetch, todo, ask" in done.stderr
    done = treadle("run", "Hi", "--tools", "files", "--workspace", "nowhere", cwd=here)
    assert done.returncode == 2 and "nowhere" in done.stderr


def test_a_policy_on_the_command_line(here: Path) -> None:
    with serving(WRITE, "Done.") as server:
        done = treadle("run", "Hi", *server.options("--approve", "allow:write:a.*", "--json"), cwd=here)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["stop_reason"] == "end"
    with serving(WRITE, "Oh.") as server:
        done = treadle("run", "Hi", *server.options("--approve", "allow:write:b.*", "--approve", "deny:*"), cwd=here)
        assert done.returncode == 0, done.stderr
        assert server.tool_texts == ["Error: Denied: an approval rule says no."]
