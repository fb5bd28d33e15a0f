"""The tiny model on the real llama.cpp server drives the built-in read-only tools. Not skipped anywhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from treadle import Agent, LlamaServer, Options, RunResult, ToolFinished, ToolStarted, file_tools
from treadle.values.history import check_history

EXACT = Options(temperature=0.0, max_tokens=200)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("The door code is 4711.\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print('hi')\n")
    return tmp_path


def ask(server: LlamaServer, workspace: Path, prompt: str) -> tuple[RunResult, dict[tuple[str, str], str]]:
    """The result, and what each call that ran came to."""

    async def main() -> tuple[RunResult, dict[tuple[str, str], str]]:
        agent = Agent(server.driver, tools=file_tools(workspace), options=EXACT)
        called: dict[int, tuple[str, str]] = {}
        came: dict[tuple[str, str], str] = {}
        async with agent.stream(prompt) as run:
            async for event in run:
                if isinstance(event, ToolStarted) and event.turn == 1:
                    called[event.position] = (event.name, json.loads(event.arguments)["path"])
                elif isinstance(event, ToolFinished) and event.turn == 1:
                    came[called[event.position]] = event.result.content
        return run.result, came

    return asyncio.run(main())


def test_it_reads_a_file(llamacpp: LlamaServer, workspace: Path) -> None:
    result, came = ask(llamacpp, workspace, "Read the file notes.txt")
    assert came == {("read_file", "notes.txt"): "The door code is 4711.\n"}
    assert result.stop_reason == "end"
    assert "4711" in result.text
    check_history(result.messages)


def test_it_lists_a_directory(llamacpp: LlamaServer, workspace: Path) -> None:
    result, came = ask(llamacpp, workspace, "List the files in src")
    assert came == {("list_files", "src"): "src/main.py (12 bytes)"}
    assert result.stop_reason == "end"
    assert "src/main.py" in result.text


def test_it_does_both_in_one_turn(llamacpp: LlamaServer, workspace: Path) -> None:
    result, came = ask(llamacpp, workspace, "List the files in src and read the file notes.txt")
    assert came == {("list_files", "src"): "src/main.py (12 bytes)", ("read_file", "notes.txt"): "The door code is 4711.\n"}
    assert result.stop_reason == "end"


def test_a_file_that_is_not_there_is_told_to_it(llamacpp: LlamaServer, workspace: Path) -> None:
    _, came = ask(llamacpp, workspace, "Read the file missing.txt")
    assert list(came) == [("read_file", "missing.txt")]
    assert "missing.txt" in came["read_file", "missing.txt"]


def test_it_cannot_read_what_is_outside(llamacpp: LlamaServer, workspace: Path) -> None:
    inside = workspace / "inside"
    inside.mkdir()
    result, came = ask(llamacpp, inside, "Read the file ../notes.txt")
    assert came, "the model called the tool"
    assert not any("4711" in text for text in came.values())
    assert "4711" not in str(result.messages)
