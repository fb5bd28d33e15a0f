"""Recorded from the real llama.cpp server, and played byte by byte."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.testing.world import facts
from treadle import Agent, Event, LlamaServer, Options, ToolFinished, tool
from treadle.testing import Cassette, check_events, offline

PROMPT = "What's the weather in Oslo and what's the weather in Lima?"


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Current weather in a city."""
    return {"Oslo": "4 C, snow"}.get(city, "18 C, sunny")


async def events_of(driver: Any) -> list[Event]:
    agent = Agent(driver, tools=[get_weather], options=Options(temperature=0.0, max_tokens=200))
    async with agent.stream(PROMPT) as run:
        events = [event async for event in run]
    assert "18 C, sunny" in run.result.text
    return events


def test_recorded_once_and_played_at_every_split(llamacpp: LlamaServer, tmp_path: Path) -> None:
    path = tmp_path / "weather.json"
    with Cassette(path, model=llamacpp.driver, record="once") as driver:
        events = asyncio.run(events_of(driver))
        asyncio.run(driver.info())
    check_events(events)
    assert sum(isinstance(event, ToolFinished) for event in events) == 2
    for split in ("recorded", "whole", "bytes", 1, 2):
        with offline(), Cassette(path, model="embedded/tiny-tool-caller.q8_0", record="none", split=split) as driver:
            again = asyncio.run(events_of(driver))
            assert facts(again) == facts(events), split
            check_events(again)
            assert asyncio.run(driver.info()).window_tokens == 2048


def test_a_model_by_its_name_finds_its_server_once_and_is_played_without_it(
    llamacpp: LlamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "weather.json", "llamacpp/tiny-tool-caller.q8_0"
    where = urlsplit(llamacpp.base_url)
    monkeypatch.setenv("LLAMA_ARG_HOST", str(where.hostname))
    monkeypatch.setenv("LLAMA_ARG_PORT", str(where.port))
    with Cassette(path, model=model, record="all") as driver:
        events = asyncio.run(events_of(driver))
    monkeypatch.delenv("LLAMA_ARG_HOST")
    monkeypatch.delenv("LLAMA_ARG_PORT")
    assert f":{where.port}" not in path.read_text()
    with offline(), Cassette(path, model=model, record="none", split="bytes") as driver:
        assert facts(asyncio.run(events_of(driver))) == facts(events)
