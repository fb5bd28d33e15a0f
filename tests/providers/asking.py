"""An agent that asks a provider, played by a scripted server at the provider's address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import structs

from tests.harness import ByteServer, Exchange, Request, json_reply, run_virtual
from tests.providers.providers import Provider, Refusal
from tests.providers.wires import Turn
from treadle import Agent, Event, RetryPolicy, RunResult, driver_for
from treadle.drivers.catalog import PRESETS
from treadle.errors import ContextOverflow, ModelError
from treadle.values.messages import Message

__all__ = ["KEY", "Told", "ask", "check_refusal", "nothing_set", "refused"]

KEY = "CANARY-key"


@dataclass
class Told:
    """What came of a run."""

    events: list[Event]
    result: RunResult[Any] | None
    error: ModelError | None
    requests: list[Request]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for preset in PRESETS.values():
        for name in (*preset.address_env, preset.key_env):
            if name:
                monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Run an agent on the provider, which answers with these turns or exchanges."""

    def ask(
        provider: Provider,
        *answers: Turn | Exchange,
        prompt: str = "Weather?",
        history: tuple[Message, ...] = (),
        output: Any = None,
        **settings: Any,
    ) -> Told:
        async def main() -> Told:
            exchanges = [provider.wire.answer(each) if isinstance(each, Turn) else each for each in answers]
            async with ByteServer(exchanges, check_prefix=output is None) as server:
                name = provider.model.rpartition("+")[2].partition("/")[0]
                if provider.name == "azure":
                    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"http://127.0.0.1:{server.port}")
                elif name in PRESETS:
                    monkeypatch.setitem(PRESETS, name, structs.replace(PRESETS[name], base_url=server.url, also=()))
                driver = driver_for(provider.model.replace("URL", server.url), api_key=KEY)
                events: list[Event] = []
                error: ModelError | None = None
                settings.setdefault("instructions", "Be brief.")
                run = Agent(driver, retry=RetryPolicy(attempts=1), **settings).stream(prompt, history=history, output=output)
                try:
                    async with run:
                        async for event in run:
                            events.append(event)
                except ModelError as raised:
                    error = raised
                    assert KEY not in str(raised) + repr(raised)
            return Told(events, None if error else run.result, error, server.posts)

        return run_virtual(main())

    return ask


def refused(refusal: Refusal) -> Exchange:
    return json_reply(refusal.body, status=refusal.status, headers=dict(refusal.headers))


def check_refusal(refusal: Refusal, told: Told) -> None:
    if refusal.kind is ContextOverflow:  # one message cannot be shortened, and that is said
        assert isinstance(told.error, ContextOverflow), refusal
    else:
        assert type(told.error) is refusal.kind, refusal
        assert told.error.status == refusal.status
    assert told.error.retry_after_s == refusal.retry_after_s
    assert told.requests, "it was sent"
