"""The README's Python, run as it stands, on the real llama.cpp server found through `local`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from treadle import LlamaServer
from treadle.cli.exits import EXITS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_its_examples_run(llamacpp: LlamaServer) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
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


def test_its_exit_codes_are_the_real_ones() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)] == list(EXITS)
