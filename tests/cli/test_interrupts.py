"""Ctrl-C: once for a clean end, twice for the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import TOOLS, Screen, serving


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mytools.py").write_text(TOOLS)
    return tmp_path


def test_in_the_terminal_a_tool_that_was_stopped_says_so(here: Path) -> None:
    with serving(("slow", {})) as server, Screen(["run", "Hi", *server.options(tools=["slow"])], here) as screen:
        screen.expect("50% half of it")
        screen.ctrl("c")
        assert screen.end() == 130
        assert "■ slow()  stopped after" in screen.text
        assert "■ cancelled" in screen.text
        assert screen.raw.rstrip().rfind("\x1b[?25h") > screen.raw.rfind("\x1b[?25l")  # the cursor is back


def test_a_tool_that_ignores_it_is_left_behind(here: Path) -> None:
    with serving(("deaf", {})) as server, Screen(["run", "Hi", *server.options(tools=["deaf"])], here) as screen:
        screen.expect("cannot hear")
        screen.ctrl("c")
        assert screen.end() == 130
        assert "■ cancelled" in screen.text
        assert "Task was destroyed" not in screen.text


@pytest.mark.parametrize("tool", ["blocks", "stubborn"])
def test_a_second_one_ends_the_program_while_the_loop_is_blocked(here: Path, tool: str) -> None:
    with serving((tool, {})) as server, Screen(["run", "Hi", *server.options(tools=[tool])], here) as screen:
        screen.expect("blocked")
        screen.ctrl("c")
        screen.expect("Ctrl-C again ends it at once")
        screen.ctrl("c")
        assert screen.end() == 130
        assert screen.raw.rstrip().rfind("\x1b[?25h") > screen.raw.rfind("\x1b[?25l")


def test_in_a_pipe_too(here: Path) -> None:
    with serving(("blocks", {})) as server:
        command = [sys.executable, "-m", "treadle.cli", "run", "Hi", *server.options("--json", tools=["blocks"])]
        process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "blocked\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stderr.readline() + process.stderr.readline()  # it says that it is stuck
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert all(json.loads(line) for line in out.splitlines())


def test_what_was_ignored_stays_ignored(here: Path) -> None:
    with serving(("ticks", {})) as server:
        options = " ".join(server.options("--json", tools=["ticks"]))
        command = f"trap '' HUP; exec {sys.executable} -m treadle.cli run Hi {options}"
        process = subprocess.Popen(["sh", "-c", command], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None

        def tick() -> None:
            assert process.stdout is not None
            while '"tool_progress"' not in (line := process.stdout.readline()):
                assert line

        tick()
        os.kill(process.pid, signal.SIGHUP)
        for _ in range(5):  # it would have ended by then
            tick()
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert json.loads(out.splitlines()[-1])["stop_reason"] == "cancelled"
        assert process.returncode == 130
