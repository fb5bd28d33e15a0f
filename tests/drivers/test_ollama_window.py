"""The window of a model on Ollama: planned once, named in every request, and never Ollama's small default by accident.

Ollama's answers are as documented (docs.ollama.com/api, server/routes.go; 2026-11), not captured.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from tests.harness import ByteServer, Exchange, Send, json_reply, run_virtual
from treadle import Agent, Compacted, ContextPlanned, ContextPolicy, Event, ModelSummary, UserMessage, tool
from treadle.drivers.catalog import PRESETS
from treadle.values.tokens import estimate_tokens

LISTED = {"object": "list", "data": [{"id": "qwen3:8b", "object": "model", "owned_by": "library"}]}
LONG = "some words of a question that is long\n" * 300  # about 2,700 tokens
TRAINED = {"general.architecture": "qwen3", "qwen3.context_length": 40_960}


def routes(*, loaded: int | None = None, parameters: str = "", trained: dict[str, Any] = TRAINED) -> dict[str, Any]:
    running = [] if loaded is None else [{"model": "qwen3:8b", "context_length": loaded}]
    return {
        "/v1/models": json_reply(LISTED),
        "/api/version": json_reply({"version": "0.32.9"}),
        "/api/ps": json_reply({"models": running}),
        "/api/show": json_reply({"capabilities": ["completion", "tools"], "parameters": parameters, "model_info": trained}),
    }


def says(text: str = "Hi", calls: tuple[tuple[str, dict[str, Any]], ...] = ()) -> Exchange:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    line = json.dumps({"model": "qwen3:8b", "message": message, "done": True, "done_reason": "stop"})
    return [Send(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n" + line.encode() + b"\n")]


@tool(concurrency="read_only", repeatable=True)
async def look(what: int) -> str:
    """Look at something."""
    return f"{what}: " + "some words of a result that is long\n" * 40


def asked(
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, Any],
    exchanges: list[Exchange],
    *,
    name: str = "ollama/qwen3:8b",
    **settings: Any,
) -> tuple[list[dict[str, Any]], list[Event]]:
    """The bodies that were sent to the model, and the events."""

    async def main() -> tuple[list[dict[str, Any]], list[Event]]:
        async with ByteServer(exchanges, routes=said) as server:
            monkeypatch.setitem(PRESETS, "ollama", structs.replace(PRESETS["ollama"], base_url=server.url))
            monkeypatch.delenv("OLLAMA_HOST", raising=False)
            prompt = settings.pop("prompt", LONG)
            history = settings.pop("history", ())
            events: list[Event] = []
            async with Agent(name, **settings).stream(prompt, history=history) as running:
                async for event in running:
                    events.append(event)
            return [post.json for post in server.posts if post.path != "/api/show"], events

    return run_virtual(main())


def planned(events: list[Event]) -> list[tuple[int, str, str | None]]:
    return [(e.window_tokens, e.source, e.warning) for e in events if isinstance(e, ContextPlanned)]


def windows(bodies: list[dict[str, Any]]) -> list[int | None]:
    return [body.get("options", {}).get("num_ctx") for body in bodies]


@pytest.mark.parametrize(
    ("said", "window", "source"),
    [
        (routes(), 32_768, "num_ctx, set by treadle"),  # the server's default would be 4,096, or more: nobody says
        (routes(loaded=4_096), 32_768, "num_ctx, set by treadle"),
        (
            routes(loaded=4_096, trained={"general.architecture": "a", "a.context_length": 8_192}),
            8_192,
            "num_ctx, set by treadle",
        ),
        (routes(loaded=32_768), 32_768, "GET /api/ps context_length"),
        (routes(loaded=40_960), 40_960, "GET /api/ps context_length"),
        (routes(parameters="num_ctx    8192"), 8_192, "POST /api/show parameters num_ctx"),  # its owner's choice
        (routes(loaded=4_096, parameters="num_ctx 8192"), 8_192, "POST /api/show parameters num_ctx"),
    ],
)
def test_what_is_planned_for_is_what_the_model_is_loaded_with(
    said: dict[str, Any], window: int, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies, events = asked(monkeypatch, said, [says()])
    assert planned(events) == [(window, source, None)]
    assert windows(bodies) == [window]
    assert bodies[0]["truncate"] is False


def test_it_is_the_same_in_every_request_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change would have the model loaded anew."""
    steps = [says("", (("look", {"what": n}),)) for n in range(4)]
    bodies, events = asked(monkeypatch, routes(loaded=4_096), [*steps, says("Done")], tools=[look])
    assert len(planned(events)) == 1
    assert windows(bodies) == [32_768] * 5


def test_a_small_prompt_asks_nothing_and_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies, events = asked(monkeypatch, {}, [says()], prompt="Hi")
    assert planned(events) == []
    assert windows(bodies) == [None]


def test_a_setting_is_sent_from_the_first_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt in ("Hi", LONG):
        bodies, _ = asked(monkeypatch, {}, [says()], prompt=prompt, context=ContextPolicy(window_tokens=16_384))
        assert windows(bodies) == [16_384]


def test_the_default_is_the_policys(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies, events = asked(monkeypatch, routes(), [says()], context=ContextPolicy(unknown_window_tokens=12_000))
    assert planned(events) == [(12_000, "num_ctx, set by treadle", None)]
    assert windows(bodies) == [12_000]


def test_the_model_that_sums_up_is_asked_with_the_same_window(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [UserMessage("Look around.")]
    steps = [says("", (("look", {"what": n}),)) for n in range(12)]
    policy = ContextPolicy(window_tokens=4_000, compaction=ModelSummary(), keep_turns=1)
    exchanges = [*steps, *[says("a summary")] * 6]
    bodies, events = asked(monkeypatch, {}, exchanges, prompt="Go on.", history=history, tools=[look], context=policy)
    summed_up = [body for body in bodies if "tools" not in body]
    assert summed_up
    assert any(isinstance(event, Compacted) for event in events)
    assert set(windows(bodies)) == {4_000}


def test_its_compatible_side_cannot_be_told_and_is_planned_with_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json_reply({"choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]})
    bodies, events = asked(monkeypatch, routes(loaded=8_192), [answer], name="chat+ollama/qwen3:8b")
    assert planned(events) == [(8_192, "GET /api/ps context_length", None)]
    assert "options" not in bodies[0]
    _, events = asked(monkeypatch, routes(), [answer], name="chat+ollama/qwen3:8b")
    [(window, source, warning)] = planned(events)
    assert (window, source) == (32_768, "default")
    assert warning is not None
    assert "(it could have 40,960), so 32,768 tokens are assumed" in warning
    assert "--window" in warning


def test_a_prompt_that_ollama_refuses_is_shortened_instead_of_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama hands on llama.cpp's refusal as a text (seen by others: ollama/ollama#16800)."""
    inner = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 4_600, "n_ctx": 4_096}
    inner["message"] = "request (4600 tokens) exceeds the available context size (4096 tokens), try increasing it"
    refused = json_reply({"error": json.dumps({"error": inner})}, status=400)
    steps = [says("", (("look", {"what": n}),)) for n in range(6)]
    bodies, events = asked(monkeypatch, routes(loaded=4_096), [*steps, refused, says("Done")], tools=[look])
    sizes = [estimate_tokens(json.dumps(body["messages"])) for body in bodies]
    assert sizes[-1] < sizes[-2]
    assert any(isinstance(event, Compacted) and event.emergency for event in events)
    assert set(windows(bodies)) == {32_768}, "a refusal does not have the model loaded anew"
