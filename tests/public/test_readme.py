"""The README's Python, run as it stands, on the real llama.cpp server found through `local`."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.harness import ByteServer, reply, sse
from treadle import Agent, HttpDriver, LlamaServer, RunResult
from treadle.cli.exits import EXITS
from treadle.wire.chat import ChatCodec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_examples_run(llamacpp: LlamaServer) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    where = urlsplit(llamacpp.base_url)
    environment = {**os.environ, "LLAMA_ARG_HOST": str(where.hostname), "LLAMA_ARG_PORT": str(where.port)}
    # The model is greedy here so that the test is exact; a user's server decides for itself.
    code = (
        "\n".join(blocks)
        .replace("import Agent,", "import Options, Agent,")
        .replace("tools=", "options=Options(temperature=0.0), tools=")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "The weather in Oslo: 4 C, snow." in done.stdout
    assert "[get_weather: 18 C, sunny]\nThe weather in Lima: 18 C, sunny.end" in done.stdout


def test_the_examples_of_the_page_about_tools_are_sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tools.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    agent: Agent = names["agent"]
    waiting = asyncio.run(_asked(agent))
    (pending,) = waiting.pending
    assert (pending.name, pending.asks) == ("ask_user", "question")


def test_the_example_of_the_page_about_context_is_sound() -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "context.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})


async def _asked(agent: Agent) -> RunResult:
    async with ByteServer([sse(*reply(calls=[("ask_user", {"question": "Which?"})]))]) as server:
        driver = HttpDriver(ChatCodec(), server.url, "m")
        return await Agent(driver, tools=agent.tools, approvals=agent.approvals).run("Hi")


def test_its_exit_codes_are_the_real_ones() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)] == list(EXITS)
