"""The command as people run it: a process of its own, against the real llama.cpp server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from treadle_tiny import model_path

from treadle import LlamaServer

TOOLS = '''
import time

NUMBER = 7

def get_weather(city: str) -> str:
    """Get the weather for a city"""
    return "18 C, sunny"

def slow(city: str) -> str:
    """Get the weather for a city"""
    print("started", flush=True)
    time.sleep(60)
slow.__name__ = "get_weather"
'''


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mytools.py").write_text(TOOLS)
    return tmp_path


def treadle(*arguments: str, cwd: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treadle.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, **settings)


def ask(server: LlamaServer, *more: str) -> list[str]:
    return ["run", "What's the weather in Oslo?", "--model", server.base_url, "--temperature", "0", "--max-tokens", "200", *more]


def test_in_a_pipe_the_answer_alone_is_on_standard_output(llamacpp: LlamaServer, here: Path) -> None:
    done = treadle(*ask(llamacpp, "--tool", "mytools.py:get_weather"), cwd=here)
    assert (done.returncode, done.stdout) == (0, "The weather in Oslo: 18 C, sunny.\n")
    assert '> get_weather(city="Oslo")' in done.stderr
    assert "< get_weather: 18 C, sunny" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_json_is_one_event_per_line(llamacpp: LlamaServer, here: Path) -> None:
    done = treadle(*ask(llamacpp, "--tool", "mytools:get_weather", "--json"), cwd=here)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "asked" and events[0]["schema"] == 1
    assert [k for k in kinds if not k.endswith("delta")] == [
        "asked",
        "replied",
        "tool_started",
        "tool_finished",
        "replied",
        "ended",
    ]
    assert events[-1] == {"type": "ended", "stop_reason": "end"}
    assert done.stderr == ""


def test_the_prompt_from_standard_input_and_instructions(llamacpp: LlamaServer, here: Path) -> None:
    arguments = ["run", "-", "--model", llamacpp.base_url, "--tool", "mytools.py:get_weather", "--temperature", "0"]
    done = treadle(*arguments, cwd=here, input="What's the weather in Oslo?")
    assert done.stdout == "The weather in Oslo: 18 C, sunny.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--max-turns", "1", "--tool", "mytools.py:get_weather"], 4, "max_turns"),
        (["--model", "http://127.0.0.1:9/v1#m"], 3, "nothing answers at http://127.0.0.1:9/v1"),
        (["--model", "olama/x"], 2, "ollama"),
        (["--model", "missing.gguf"], 2, "missing.gguf"),
        (["--model", "mytools.gguf"], 2, "mytools.gguf"),
        (["--tool", "mytools.py:nothing"], 2, "has no nothing"),
        (["--tool", "nowhere:f"], 2, "cannot be imported"),
        (["--tool", "mytools"], 2, "names no function"),
        (["--tool", "broken.py:f"], 2, "SyntaxError"),
        (["--tool", "mytools.py:NUMBER"], 2, "NUMBER is a int"),
        (["--max-turns", "0"], 2, "--max-turns"),
    ],
)
def test_exit_codes_and_errors_that_help(llamacpp: LlamaServer, here: Path, arguments: list[str], code: int, said: str) -> None:
    (here / "mytools.gguf").write_text("not a model")
    (here / "broken.py").write_text("def f(:")
    done = treadle(*ask(llamacpp), *arguments, cwd=here)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_and_leaves_nothing(llamacpp: LlamaServer, here: Path, number: int) -> None:
    command = [sys.executable, "-m", "treadle.cli", *ask(llamacpp, "--tool", "mytools.py:slow", "--json")]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=10)  # the tool's thread would sleep for a minute
    assert json.loads(out.splitlines()[-1]) == {"type": "ended", "stop_reason": "cancelled"}
    assert (process.returncode, err) == (130, "")


def test_a_reader_who_leaves_ends_it_quietly(llamacpp: LlamaServer, here: Path) -> None:
    command = [sys.executable, "-m", "treadle.cli", *ask(llamacpp, "--tool", "mytools.py:get_weather", "--json")]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=30)
    process.stderr.close()


def test_a_gguf_file(here: Path) -> None:
    arguments = ["run", "What's the weather in Oslo?", "--model", str(model_path()), "--tool", "mytools.py:get_weather"]
    done = treadle(*arguments, "--temperature", "0", cwd=here)
    assert (done.returncode, done.stdout) == (0, "The weather in Oslo: 18 C, sunny.\n")


def test_the_demo(here: Path) -> None:
    done = treadle("demo", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The weather in Oslo: -3 C, snow.\n12*(3+4) = 84\n"
    assert "tiny" in done.stderr and "treadle run" in done.stderr and "tokens in" in done.stderr
    events = [json.loads(line) for line in treadle("demo", "--json", cwd=here).stdout.splitlines()]
    order = [event["type"] for event in events if event["type"].startswith("tool_") and not event["type"].endswith("delta")]
    assert order == ["tool_started", "tool_started", "tool_finished", "tool_finished"]


def test_a_tool_file_may_have_the_name_of_a_module(llamacpp: LlamaServer, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "json.py").write_text((here / "mytools.py").read_text())
    done = treadle(*ask(llamacpp, "--tool", "sub/json.py:get_weather"), cwd=here)
    assert (done.returncode, done.stdout) == (0, "The weather in Oslo: 18 C, sunny.\n")


def test_help_teaches(here: Path) -> None:
    assert "treadle demo" in treadle("--help", cwd=here).stdout
    said = treadle("run", "--help", cwd=here).stdout
    assert "130" in said and "ollama/qwen3:8b" in said
    assert "--window TOKENS" in said and "--compaction [local|model|window]" in said


def test_without_the_extra_it_says_how_to_install_it(here: Path) -> None:
    code = "import sys; sys.modules['rich'] = None; from treadle.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install '.[cli]'" in done.stderr
