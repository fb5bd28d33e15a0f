"""The page for users and the example beside it, run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.test_plugin import Project
from treadle import LlamaServer, ModelRequest
from treadle.testing.tape import Tape, codec_from, read_tape

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tested-agent"
PAGE = (ROOT / "docs" / "testing-agents.md").read_text(encoding="utf-8")


def test_the_page(llamacpp: LlamaServer, tmp_path: Path) -> None:
    """Every block is a file, or more of one that came before: recorded from the real server, then played without it."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    files: dict[str, str] = {}
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        files[name] = files.get(name, "") + code
    assert list(files) == ["test_weather.py", "conftest.py", "test_busy.py"]
    assert len(re.findall("```python", PAGE)) == 4
    project = Project(tmp_path, llamacpp)
    for name, code in files.items():
        project.write(code, name)
    project.passes("test_weather.py", online=True)
    project.passes(CI="true")
    project.write(files["test_weather.py"].replace("What's the weather in Oslo?", "Bye"), "test_weather.py")
    changed = project.fails("test_weather.py")
    said = re.findall(r"(RequestDiffers: .*)\n  (.*)\n", PAGE)
    assert len(said) == 1
    assert all(line in changed for line in said[0])


def run_example(where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_ARG", "PYTEST_", "CI"))}
    return subprocess.run([sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "it", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return tmp_path / "it"


def test_the_example_runs_offline(example: Path) -> None:
    done = run_example(example, "-m", "pytest", "-q", "--treadle-record=none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].split()[0] == "..."


def test_the_example_is_recorded_again_by_its_own_command(example: Path) -> None:
    cassette = example / "cassettes" / "two-cities.json"
    committed = read_tape(cassette)
    done = run_example(example, "record.py")
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = read_tape(cassette)
    assert recorded != committed
    assert meant(recorded) == meant(committed), "record it again: python examples/tested-agent/record.py"


def meant(tape: Tape) -> list[object]:
    """The requests without the server's ids, and what the answers say."""
    found: list[object] = [tape.model, tape.codec]
    for exchange in tape.exchanges:
        decoder = codec_from(tape.codec or {}).decoder(ModelRequest(messages=()))
        for read in exchange.answer.reads:
            decoder.feed(read)
        decoder.close()
        reply = decoder.reply
        found += [
            re.sub(rb'"[A-Za-z0-9]{32}"', b'"ID"', exchange.request.body),
            (reply.message.text, [(call.name, call.arguments) for call in reply.message.calls], reply.finish),
        ]
    return found
