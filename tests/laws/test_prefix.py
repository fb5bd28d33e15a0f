"""Requests of a run extend each other, byte for byte, and so do those of a chat of many runs; where not, an event says what moved."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.harness import ByteServer, Exchange, Send, run_virtual
from tests.laws.test_every_wire import WIRES, Turn
from treadle import (
    Agent,
    ContextPolicy,
    HttpDriver,
    Limits,
    Options,
    PrefixMoved,
    Pruned,
    RunResult,
    run_from_json,
    run_to_json,
    tool,
)
from treadle.testing import check_events
from treadle.values.messages import AssistantMessage, Message, Thinking, ToolCall, ToolMessage

MODELS = {"anthropic": "claude-opus-5"}  # of a kind that is sent cache markers
LISTS = {"responses": b'"input":[', "gemini": b'"contents":['}
TURNS = [Turn("I look. ", "Hm.", (("look", {"what": f"{n}"}), ("look", {"what": "日本"}))[: 1 + n % 2]) for n in range(30)]


@tool(concurrency="read_only")
def look(what: str) -> str:
    """Look."""
    return f"saw {what} " + "and the calm sea " * 200


@tool
def fly() -> str:
    """Fly."""
    return "up"


def answers(wire: str, turns: list[Turn]) -> list[Exchange]:
    """What the server says, in this format. Its counts are left out: they are not of these texts."""
    exchanges = [WIRES[wire][1](turn, n) for n, turn in enumerate(turns)]
    return [[uncounted(step) if isinstance(step, Send) else step for step in steps] for steps in exchanges]


def uncounted(step: Send) -> Send:
    data = step.data.replace(b'"input_tokens"', b'"other_tokens"').replace(b'"output_tokens"', b'"former_tokens"')
    return replace(step, data=data)  # as long as it was


def sent_prefix(wire: str, body: bytes) -> tuple[Any, Any, bytes]:
    """Tools, system text and the messages as they are written, without what closes them, and without cache markers."""
    body = body.replace(b',"cache_control":{"type":"ephemeral"}', b"")
    head, _, messages = body.partition(LISTS.get(wire, b'"messages":['))
    fields = json.loads(head.rstrip(b",") + b"}")
    system = [fields.get(name) for name in ("system", "instructions", "systemInstruction")]
    return fields.get("tools"), system, re.sub(rb"\]\}\]\}$" if wire == "anthropic" else rb"\]\}$", b"", messages)


def extends(wire: str, before: bytes, after: bytes) -> bool:
    old, new = sent_prefix(wire, before), sent_prefix(wire, after)
    return old[:2] == new[:2] and new[2].startswith(old[2])


def agent(wire: str, server: ByteServer, **settings: Any) -> Agent:
    codec, _ = WIRES[wire]
    driver = settings.pop("driver", None) or HttpDriver(codec, server.url, MODELS.get(wire, "m"))
    given = {"tools": [look, fly], "instructions": "Be brief.", "limits": Limits(max_turns=40), **settings}
    return Agent(driver, **given)


async def watched(agent: Agent, prompt: str, **settings: Any) -> tuple[list[Any], RunResult]:
    events: list[Any] = []
    async with agent.stream(prompt, **settings) as run:
        async for event in run:
            events.append(event)
    check_events(events)
    return events, run.result


def thirty_turns(wire: str, context: ContextPolicy) -> tuple[list[bytes], list[Any], RunResult]:
    async def main() -> tuple[list[bytes], list[Any], RunResult]:
        steady, exchanges = context.prune == "never", answers(wire, [*TURNS[:-1], Turn("Done.")])
        async with ByteServer(exchanges, check_history=wire == "chat", check_prefix=wire == "chat" and steady) as server:
            events, result = await watched(agent(wire, server, context=context), "Begin")
        return [post.body for post in server.posts], events, result

    return run_virtual(main())


@pytest.mark.parametrize("wire", WIRES)
def test_the_requests_of_thirty_turns_extend_each_other(wire: str) -> None:
    bodies, events, result = thirty_turns(wire, ContextPolicy(window_tokens=1_000_000, prune="never"))
    assert len(bodies) == 30
    assert all(extends(wire, *pair) for pair in itertools.pairwise(bodies))
    assert not [event for event in events if isinstance(event, PrefixMoved)]
    assert result.cache.breaks == ()


@pytest.mark.parametrize("wire", WIRES)
def test_except_where_an_event_says_otherwise(wire: str) -> None:
    bodies, events, result = thirty_turns(wire, ContextPolicy(window_tokens=24_000, prune="at_threshold", prune_at=0.5))
    moves = {event.turn: event for event in events if isinstance(event, PrefixMoved)}
    pruned = {event.turn for event in events if isinstance(event, Pruned)}
    broken = {turn + 2 for turn, pair in enumerate(itertools.pairwise(bodies)) if not extends(wire, *pair)}
    assert broken == set(moves) >= pruned != set()
    assert all(re.search(r"the result of `look`$", moves[turn].component) for turn in pruned)
    assert all(0 < move.lost_tokens < 24_000 for move in moves.values())
    assert sum(each.count for each in result.cache.breaks) == len(moves)
    assert result.cache.lost_tokens == sum(move.lost_tokens for move in moves.values())
    assert run_from_json(run_to_json(result)).cache == result.cache


def changed(messages: tuple[Message, ...], change: Callable[[Any], Message]) -> tuple[Message, ...]:
    """The first message that can be changed is."""
    for index, message in enumerate(messages):
        if (other := change(message)) != message:
            return (*messages[:index], other, *messages[index + 1 :])
    raise AssertionError("nothing to change")


def rewritten(message: Any) -> Message:
    """Arguments read and written again, as with another JSON library."""
    if not isinstance(message, AssistantMessage):
        return message
    return AssistantMessage(
        tuple(
            ToolCall(part.id, part.name, json.dumps(json.loads(part.arguments), separators=(" , ", " : ")), part.signature)
            if isinstance(part, ToolCall)
            else part
            for part in message.content
        )
    )


def unreasoned(message: Any) -> Message:
    if not isinstance(message, AssistantMessage):
        return message
    kept = [part for part in message.content if not isinstance(part, Thinking) and '"reasoning"' not in getattr(part, "data", "")]
    return AssistantMessage(tuple(kept))


def cut(message: Any) -> Message:
    return ToolMessage(message.call_id, message.name, "cut") if isinstance(message, ToolMessage) else message


CULPRITS: dict[str, tuple[dict[str, Any], Callable[[Any], Message] | None, str]] = {
    "tool order": ({"tools": [fly, look]}, None, r"^the order of the tools, from `fly` on$"),
    "time in the system text": ({"instructions": "It is 03:58."}, None, r"^the system text$"),
    "re-serialised arguments": ({}, rewritten, r"\[\d\]: the arguments of the call( `\w+`)? of `look`$"),
    "dropped reasoning": ({}, unreasoned, r"\[\d\]: the reasoning, which is gone$"),
    "pruned result": ({}, cut, r"\[\d\]: the result of `look`$"),
}


@tool(concurrency="read_only", name="look")
def look_elsewhere(what: str) -> str:
    """Look elsewhere."""
    return what


CULPRITS["changed tool"] = ({"tools": [look_elsewhere, fly]}, None, r"^the tool `look`, which changed$")


@pytest.mark.parametrize("culprit", [None, *CULPRITS])
@pytest.mark.parametrize("wire", WIRES)
def test_a_chat_goes_on_where_it_was_and_each_culprit_is_named(wire: str, culprit: str | None) -> None:
    """Each answer of a chat is a run of its own; what was sent before is known to the driver."""
    settings, change, words = CULPRITS[culprit] if culprit else ({}, None, "")

    async def main() -> tuple[list[Any], bool, list[Any]]:
        looked = replace(TURNS[1], text="I look at what there is, and then at what others call it. ")
        turns = [looked, Turn("A sea.", "Hm."), Turn("Nothing more."), Turn("You are welcome.")]
        async with ByteServer(answers(wire, turns), check_history=False) as server:
            one = agent(wire, server)
            _, result = await watched(one, "What is there?")
            history = changed(result.messages, change) if change else result.messages
            other = agent(wire, server, driver=one.driver, **settings)
            await other.next_request("And then?", history=history)  # looking at it changes nothing
            events, result = await watched(other, "And then?", history=history)
            later, _ = await watched(other, "Thanks.", history=result.messages)
        extended = extends(wire, server.posts[1].body, server.posts[2].body)
        return events, extended, later

    events, extended, later = run_virtual(main())
    moves = [event for event in events if isinstance(event, PrefixMoved)]
    assert extended is (culprit is None)
    assert len(moves) == (0 if culprit is None else 1)
    for move in moves:
        assert re.search(words, move.component)
        assert move.turn == 1 and move.lost_tokens > 0
    assert not [event for event in later if isinstance(event, PrefixMoved)]


def test_options_are_no_part_of_the_prompt() -> None:
    async def main() -> list[Any]:
        async with ByteServer([WIRES["chat"][1](Turn(str(n)), n) for n in range(2)]) as server:
            one = agent("chat", server)
            _, result = await watched(one, "a")
            events, _ = await watched(one, "b", history=result.messages, options=Options(temperature=0.3))
            return events

    assert not [event for event in run_virtual(main()) if isinstance(event, PrefixMoved)]
