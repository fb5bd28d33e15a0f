"""Each ability on each provider, through the name a user writes and the whole loop, over real HTTP.

A scripted server plays what the provider documents (`providers.py`) and checks what it is sent; no provider was asked. docs/providers.md
is made from these and from the tests of real servers, captures and SDKs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness import Request, json_reply, sse
from tests.providers.asking import KEY, Told, check_refusal, refused
from tests.providers.providers import NO_IMAGES, PROVIDERS, Answer, Provider
from tests.providers.wires import Call, Turn
from treadle import Limits, Omitted, Replied, TextDelta, ThinkingDelta, ToolError, tool
from treadle.errors import Unsupported
from treadle.values.messages import AssistantMessage, Image, Thinking, ToolCall, ToolMessage, UserMessage
from treadle.wire.schemas import closed

IMAGE = Image(b"GIF8", "image/gif")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
THOUGHT = "Let me see: Oslo or Łódź?\n  It is 日本's winter, too. "
TEXT = "Snow in Oslo, 4 °C — 日本 too."

every_provider = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)


@dataclass
class Place:
    """A place."""

    name: str
    snows: bool


@tool(concurrency="read_only")
async def look(city: str) -> str:
    """Look out."""
    if city == "Atlantis":
        raise ToolError("no such city")
    return f"snow in {city}"


def unmarked(value: Any) -> Any:
    """Without the cache markers that Anthropic's format has in its requests (tests/wire/test_anthropic_encode.py)."""
    if isinstance(value, dict):
        return {key: unmarked(each) for key, each in value.items() if key != "cache_control"}
    return [unmarked(each) for each in value] if isinstance(value, list) else value


def conversation(provider: Provider, request: Request) -> list[Any]:
    items = unmarked(request.json[provider.wire.conversation])
    return [item for item in items if item.get("role") != "system"]


def has(body: Any, fields: dict[str, Any]) -> None:
    """The body has these fields, with these values."""
    body = unmarked(body)
    assert {name: body.get(name) for name in fields} == fields


@every_provider
def test_text(provider: Provider, ask: Callable[..., Told]) -> None:
    told = ask(provider, Turn(TEXT))
    assert told.error is None
    shown = [event.text for event in told.of(TextDelta)]
    assert "".join(shown) == TEXT
    assert len(shown) > 1, "it was shown as it came"
    assert told.result is not None
    assert (told.result.text, told.result.stop_reason) == (TEXT, "end")
    (sent,) = told.requests
    model = provider.model.partition("#")[2] or provider.model.rpartition("+")[2].partition("/")[2]
    assert sent.path == provider.path + provider.wire.path(model)
    key = {provider.key_header: KEY} if provider.key_header else provider.wire.key(KEY)
    assert {name: sent.headers.get(name) for name in key} == key
    assert sum(KEY in value for value in sent.headers.values()) == 1
    has(sent.json, provider.wire.spoken("Be brief.", "Weather?"))
    if provider.name == "gemini":  # the path says both
        assert sent.query == "alt=sse"
    else:
        has(sent.json, {"model": model, "stream": True})


@every_provider
def test_tools(provider: Provider, ask: Callable[..., Told]) -> None:
    turn = Turn(calls=(Call(provider.wire.ids[0], "look", '{"city":"Łódź"}'),))
    told = ask(provider, turn, Turn("Snow."), tools=[look])
    has(told.requests[0].json, provider.wire.declared("look", "Look out.", CITY))
    assert conversation(provider, told.requests[1])[1:] == provider.wire.round(turn, [("snow in Łódź", False)])
    called, answered = told.of(Replied)
    assert (called.finish, answered.finish) == ("tool_use", "end")
    assert called.message.calls[0].id == provider.wire.ids[0]
    assert told.result is not None
    assert (told.result.text, told.result.stop_reason) == ("Snow.", "end")


@every_provider
def test_parallel_tools(provider: Provider, ask: Callable[..., Told]) -> None:
    """Two calls of one tool, of which one fails: they are not merged, and each gets its own result, in their order."""
    first, second = provider.wire.ids
    calls = (Call(first, "look", '{"city":"Oslo"}'), Call(second, "look", '{"city":"Atlantis"}'))
    turn = Turn(calls=calls)
    told = ask(provider, turn, Turn("Snow."), tools=[look])
    results = [("snow in Oslo", False), ("no such city", True)]
    assert conversation(provider, told.requests[1])[1:] == provider.wire.round(turn, results)
    (called, _) = told.of(Replied)
    assert [(call.id, json.loads(call.arguments)) for call in called.message.calls] == [
        (first, {"city": "Oslo"}),
        (second, {"city": "Atlantis"}),
    ]


@every_provider
def test_images(provider: Provider, ask: Callable[..., Told]) -> None:
    id = provider.wire.ids[0]
    history = (
        UserMessage("Look", (IMAGE,)),
        AssistantMessage((ToolCall(id, "photo", "{}"),)),
        ToolMessage(id, "photo", "a cat", images=(IMAGE,)),
    )
    if not provider.pictures:
        # The provider refuses images (reported: nesquena/hermes-webui#2297, rikkahub/rikkahub#1433), and that ends the run.
        said = {"error": {"message": NO_IMAGES, "type": "invalid_request_error", "param": None, "code": "invalid_request_error"}}
        told = ask(provider, json_reply(said, status=400), history=history)
        assert type(told.error) is Unsupported
        assert told.error.retryable is False
        return
    told = ask(provider, Turn("A cat."), prompt="And now?", history=history)
    items = conversation(provider, told.requests[0])
    expected = provider.wire.picture_result(id, "a cat")
    assert items[0] == provider.wire.pictured("Look")
    if provider.name == "anthropic":  # neighbours of one role are one message there
        assert items[2]["content"] == [*expected[0]["content"], {"type": "text", "text": "And now?"}]
    else:
        assert items[2:-1] == expected
    moved = [event.what for event in told.of(Omitted)]
    assert moved == (["images"] if len(expected) == 2 else []), "that they follow the results is said"


@every_provider
def test_reasoning_kept(provider: Provider, ask: Callable[..., Told]) -> None:
    """What the model thought before its calls is shown, and goes back with them as it came; where it may not, that is said."""
    call = Call(provider.wire.ids[0], "look", '{"city":"Oslo"}')
    server = getattr(provider.wire, "server", None)
    back = server is None or server.thinking_back is not None
    if server is not None and server.thinking is None:  # it shows none; other servers' may be in a history
        thought = AssistantMessage((Thinking(THOUGHT), ToolCall(call.id, "look", call.arguments)))
        history = (UserMessage("Weather?"), thought, ToolMessage(call.id, "look", "snow in Oslo"))
        told = ask(provider, Turn("Snow."), prompt="And now?", history=history, tools=[look])
        sent = conversation(provider, told.requests[0])[1:-1]
    else:
        told = ask(provider, Turn(thinking=THOUGHT, calls=(call,)), Turn("Snow."), tools=[look])
        assert "".join(event.text for event in told.of(ThinkingDelta)) == THOUGHT
        assert told.of(Replied)[0].message.thinking == THOUGHT
        sent = conversation(provider, told.requests[1])[1:]
    expected = Turn(thinking=THOUGHT if back else "", calls=(call,))
    assert sent == provider.wire.round(expected, [("snow in Oslo", False)])
    assert [event.what for event in told.of(Omitted)] == ([] if back else ["reasoning"])
    assert (THOUGHT[:20] in json.dumps(sent, ensure_ascii=False)) == back


SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A place.",
    "properties": {"name": {"type": "string"}, "snows": {"type": "boolean"}},
    "required": ["name", "snows"],
    "additionalProperties": False,
}


@every_provider
def test_structured_output(provider: Provider, ask: Callable[..., Told]) -> None:
    """Without tools and with them: in one phase where both may be sent, in two where not, in words where there is no field."""
    held = provider.wire.held_to("Place", SCHEMA)
    answer = '{"name": "Oslo", "snows": true}'

    def is_held(request: Request) -> bool:
        return {name: unmarked(request.json).get(name) for name in held} == held

    told = ask(provider, Turn(answer), output=Place)
    assert told.result is not None
    assert told.result.output == Place("Oslo", True)
    (sent,) = told.requests
    assert is_held(sent) == (provider.schemas != "none")
    assert "JSON Schema" in sent.body.decode(), "it is said in words, too"
    assert [event.what for event in told.of(Omitted)] == []

    called = Turn(calls=(Call(provider.wire.ids[0], "look", '{"city":"Oslo"}'),))
    asked_again = [] if provider.schemas == "with_tools" else [Turn("It is Oslo.")]
    told = ask(provider, called, *asked_again, Turn(answer), tools=[look], output=Place)
    assert told.result is not None
    assert told.result.output == Place("Oslo", True)
    has_tools = ["tools" in request.json for request in told.requests]
    schemas = [is_held(request) for request in told.requests]
    if provider.schemas == "with_tools":
        assert (has_tools, schemas) == ([True, True], [True, True])
    elif provider.schemas == "alone":
        assert (has_tools, schemas) == ([True, True, False], [False, False, True])
    else:
        assert (has_tools, schemas) == ([True, True, True], [False] * 3)


@every_provider
def test_cache_tokens(provider: Provider, ask: Callable[..., Told]) -> None:
    for counts, usage in provider.counted:
        told = ask(provider, Turn("Snow.", usage=counts))
        assert told.result is not None
        assert told.result.usage == usage


@every_provider
def test_stop_reasons(provider: Provider, ask: Callable[..., Told]) -> None:
    """Every reason that is documented for a turn without calls; `tool_use` is in `test_tools`."""
    for reason in provider.reasons:
        check_reason(reason, ask(provider, Turn(reason.text, finish=reason.said), limits=Limits(max_turns=1)))


def check_reason(reason: Answer, told: Told) -> None:
    if isinstance(reason.outcome, type):
        assert type(told.error) is reason.outcome, reason
        return
    assert told.error is None, reason
    (replied,) = told.of(Replied)
    assert told.result is not None
    assert (replied.finish_said, replied.finish, told.result.stop_reason) == (reason.said, reason.finish, reason.outcome)
    assert told.result.text == reason.text


@every_provider
def test_errors(provider: Provider, ask: Callable[..., Told]) -> None:
    """Every status that is documented, and errors inside of a stream that had begun."""
    for refusal in provider.refusals:
        check_refusal(refusal, ask(provider, refused(refusal)))
    for frame, kind in provider.broken:
        told = ask(provider, [*provider.wire.answer(Turn(TEXT))[:-2], *sse(frame, done=False)[1:]])
        assert type(told.error) is kind, frame
        assert told.error.retryable is kind.retryable
        assert told.of(TextDelta), "what had come was shown"


def test_schemas_here_are_what_providers_are_sent() -> None:
    assert closed(SCHEMA) == SCHEMA, "so that one constant fits every format"
