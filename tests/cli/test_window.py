"""`--window` and `--compaction`: what is planned with, what becomes of a long conversation, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from treadle_tiny import model_path

from tests.cli.terminal import serving
from tests.harness import reply, sse

LOOK = '''
from treadle import tool

@tool(concurrency="read_only", repeatable=True)
def look(what: int) -> str:
    """Look at something."""
    return f"{what}: " + "some words of a result that is long\\n" * 30
'''
LONG = "some words of a question that is long\n" * 400


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mytools.py").write_text(LOOK)
    return tmp_path


def treadle(*arguments: str, cwd: Path, said: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treadle.cli", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, input=said, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("compaction", "how", "stands_for"),
    [
        ([], "(local_summary)", "earlier messages were left out for lack of room. In extracts:"),
        (["--compaction", "local"], "(local_summary)", "In extracts:"),
        (["--compaction", "window"], "left out (sliding_window)", None),
    ],
)
def test_a_long_run_is_shortened_and_says_so(compaction: list[str], how: str, stands_for: str | None, here: Path) -> None:
    turns = [sse(*reply(calls=[("look", {"what": n})], usage=None)) for n in range(12)]
    with serving(*turns, sse(*reply("Done.", usage=None)), check_prefix=False) as server:
        done = treadle("run", "Look around.", *server.options("--window", "2000", *compaction, tools=["look"]), cwd=here)
        assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr
        assert f"~ the window of {server.url}#m is 2,000 tokens (setting)" in done.stderr
        (first, *_) = [line for line in done.stderr.splitlines() if "conversation shortened" in line]
        assert how in first
        assert " tokens" in first
        texts = [str(message["content"]) for message in server.requests[-1]["messages"]]
        assert any(stands_for in text for text in texts) if stands_for else not any("left out" in text for text in texts)


def test_a_model_writes_the_summary_if_it_is_asked_to(here: Path) -> None:
    turns = [sse(*reply("what was done so far", calls=[("look", {"what": n})], usage=None)) for n in range(12)]
    with serving(*turns, *["what was done so far"] * 9, check_prefix=False) as server:
        options = server.options("--window", "2000", "--compaction", "model", "--max-turns", "9", tools=["look"])
        done = treadle("run", "Look around.", *options, cwd=here)
        assert "summed up (" in done.stderr
        asked = [request for request in server.requests if "tools" not in request]
        assert asked
        assert "left out of the assistant's memory" in asked[0]["messages"][0]["content"]


def test_what_cannot_be_shortened_is_an_error_that_lists_it(here: Path) -> None:
    with serving("never") as server:
        done = treadle("run", "-", *server.options("--window", "700", tools=["look"]), cwd=here, said=LONG)
        assert (done.returncode, done.stdout, server.requests) == (3, "", [])
        error = done.stderr[done.stderr.index("error: ") :]
        assert "does not fit the window of 700" in error
        assert "the user's first request" in error
        assert "1 tools" in error


def test_a_prompt_that_was_cut_in_silence_is_an_error_that_says_what_to_do(here: Path) -> None:
    with serving(sse(*reply("A wrong answer.", usage=(900, 5)))) as server:
        done = treadle("run", "-", *server.options(tools=["look"]), cwd=here, said=LONG)
        assert done.returncode == 3, done.stderr
        assert "error: " in done.stderr
        assert "--window TOKENS" in done.stderr
        # Nobody was there to say the window, which is told once.
        assert done.stderr.count("! Nobody says how large the window") == 1


def test_ollama_is_told_the_window(here: Path) -> None:
    done = treadle("run", "Hi", "--print-request", "--json", "--model", "ollama/m", "--window", "16384", cwd=here, OLLAMA_HOST="")
    assert json.loads(done.stdout)["body"]["options"] == {"num_ctx": 16384}
    other = treadle(
        "run", "Hi", "--print-request", "--json", "--model", "chat+ollama/m", "--window", "16384", cwd=here, OLLAMA_HOST=""
    )
    assert "16384" not in other.stdout, "its compatible side has no field for it"


def test_a_file_is_served_with_the_window(here: Path) -> None:
    done = treadle("run", "-", "--model", str(model_path()), "--window", "512", "--tool", "mytools.py:look", cwd=here, said=LONG)
    assert done.returncode == 3
    assert "does not fit the window of 512" in done.stderr


def test_it_is_part_of_the_command_that_goes_on(here: Path) -> None:
    options = ["--window", "2000", "--compaction", "window", "--save", "run.json"]
    with serving(("ask_user", {"question": "Which?"})) as server:
        done = treadle("run", "Hi", "--tools", "ask", *server.options(*options, tools=[]), cwd=here)
        assert done.returncode == 6
        (line,) = [line for line in done.stderr.splitlines() if "treadle resume" in line]
        assert "--window 2000 --compaction window" in line


@pytest.mark.parametrize(
    "options",
    [["--window", "0"], ["--window", "many"], ["--window", "100000001"], ["--window", "9" * 30], ["--compaction", "all"]],
)
def test_what_cannot_be_is_refused(options: list[str], here: Path) -> None:
    done = treadle("run", "Hi", *options, cwd=here)
    assert done.returncode == 2
    assert options[0] in done.stderr
