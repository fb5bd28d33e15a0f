"""What these tests record: conversations on a scripted server, in every wire format."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.harness import ByteServer, Exchange, run_virtual
from treadle import Agent, Asked, Event, Fact, HttpDriver, Replied, RetryPolicy, TreadleError, event_to_json, tool
from treadle.testing import Cassette
from treadle.wire.codec import Codec

PROMPT = "What is a?"
NO_WAIT = RetryPolicy(first_wait_s=0.0)


@tool(concurrency="read_only")
async def look(what: str) -> str:
    """Look."""
    await asyncio.sleep(0)
    return f"saw {what}"


def agent_of(driver: Any, **settings: Any) -> Agent:
    return Agent(driver, **{"tools": [look], "instructions": "Be brief.", "retry": NO_WAIT, **settings})


async def watched(driver: Any, *, prompt: str = PROMPT, **settings: Any) -> tuple[list[Event], str]:
    """The events of a run, and how it came out: a stop reason, or the error's class."""
    events: list[Event] = []
    async with agent_of(driver, **settings).stream(prompt, on_interrupted="restart") as run:
        try:
            async for event in run:
                events.append(event)
        except TreadleError as error:
            return events, type(error).__name__
        return events, str(run.result.stop_reason)


def facts(events: list[Event]) -> list[bytes]:
    """The facts as they are said, without what is another in every run: its id, and the address of a server."""
    said: list[bytes] = []
    for event in events:
        if isinstance(event, Asked):
            event = replace(event, run_id="", model="")
        if isinstance(event, Replied):  # what was counted here depends on what the driver has learnt
            event = replace(event, output_tokens=0.0, reasoning_tokens=0.0)
        if isinstance(event, Fact):
            line = re.sub(rb"call_[0-9a-f]{8}_", b"call_run_", event_to_json(event))
            said.append(re.sub(rb"http://127\.0\.0\.1:\d+/v1[^ \"]*|the cassette [\w.]+", b"ADDRESS", line))
    return said


def recorded(exchanges: list[Exchange], codec: Codec, path: Path, **settings: Any) -> tuple[list[Event], str]:
    """A run on a real connection, recorded."""
    cassette_settings = {name: settings.pop(name) for name in ("secrets",) if name in settings}
    driver_settings = {name: settings.pop(name) for name in ("api_key", "headers") if name in settings}

    async def main() -> tuple[list[Event], str]:
        async with ByteServer(exchanges, check_history=False) as server:
            driver = HttpDriver(codec, server.url, "m", name="test/m", **driver_settings)
            with Cassette(path, model=driver, record="all", **cassette_settings) as recording:
                return await watched(recording, **settings)

    return run_virtual(main())


def played(path: Path, *, run: dict[str, Any] | None = None, **settings: Any) -> tuple[list[Event], str]:
    """The same run from the cassette alone."""

    async def main() -> tuple[list[Event], str]:
        with Cassette(path, model="test/m", record="none", **settings) as driver:
            return await watched(driver, **(run or {}))

    return run_virtual(main())
