"""`treadle run --print-request`: what would be sent, and nothing sent to a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from treadle import LlamaServer


def treadle(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treadle.cli", "run", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env=environment)


def test_it_is_printed_with_its_key_hidden_and_needs_nobody(tmp_path: Path) -> None:
    done = treadle(
        *("Hi", "--print-request", "--model", "anthropic/claude-opus-4-6", "--max-tokens", "9"),
        cwd=tmp_path,
        ANTHROPIC_API_KEY="CANARY",
    )
    assert (done.returncode, done.stderr) == (0, "")
    head, _, body = done.stdout.partition("\n\n")
    assert head.splitlines()[:2] == ["POST /v1/messages HTTP/1.1", "Host: api.anthropic.com"]
    assert "x-api-key: ***" in head.splitlines()
    assert "CANARY" not in done.stdout
    assert json.loads(body)["max_tokens"] == 9
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_run_to_save(tmp_path: Path) -> None:
    done = treadle("Hi", "--print-request", "--save", "run.json", "--model", "http://127.0.0.1:9/v1#m", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--save" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_as_json_it_is_a_line(tmp_path: Path) -> None:
    done = treadle("Hi", "--print-request", "--json", "--model", "ollama+http://host:1#qwen3:8b", "--tools", "todo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["method"], shown["url"]) == ("POST", "http://host:1/api/chat")
    assert shown["body"]["tools"][0]["function"]["name"] == "todo"
    assert done.stdout.count("\n") == 1


def test_a_server_to_be_found_is_found(llamacpp: LlamaServer, tmp_path: Path) -> None:
    done = treadle("Hi", "--print-request", "--model", f"responses+{llamacpp.base_url}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("POST /v1/responses HTTP/1.1\n")
    assert "model: responses+" in done.stderr


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("antropic+http://h#m", 2, "anthropic+"),
        ("azure/d", 2, "AZURE_OPENAI_ENDPOINT"),
        ("http://127.0.0.1:9", 3, "no model server"),
    ],
)
def test_what_cannot_be_said_is_an_error(model: str, code: int, said: str, tmp_path: Path) -> None:
    done = treadle("Hi", "--print-request", "--model", model, cwd=tmp_path, AZURE_OPENAI_ENDPOINT="")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
