"""The same scripted task gives the same facts on every provider's wire: one behaviour, whatever is spoken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness import (
    ByteServer,
    Exchange,
    Send,
    call_chunk,
    finish_chunk,
    run_virtual,
    split,
    sse,
    text_chunk,
    thinking_chunk,
)
from tests.wire import test_anthropic_decode as anthropic
from tests.wire import test_gemini_decode as gemini
from tests.wire import test_ollama_decode as ollama
from tests.wire import test_responses_decode as responses
from treadle import (
    Agent,
    Asked,
    Discarded,
    Ended,
    Event,
    Fact,
    HttpDriver,
    Limits,
    Repaired,
    Replied,
    Retried,
    RetryPolicy,
    Rule,
    RunResult,
    TextDelta,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    approve,
    deny,
    edit,
    run_from_json,
    run_to_json,
    tool,
)
from treadle.testing import check_events
from treadle.values.history import check_history
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import ANTHROPIC_API
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec


@dataclass(frozen=True)
class Turn:
    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    cut: bool = False
    broken: bool = False  # the connection ends before the reason


LOOK_A, LOOK_B = ("look", {"what": "a"}), ("look", {"what": "b"})
TASK = [
    Turn("I look. ", "Where to begin?", (LOOK_A, LOOK_B)),  # 1 two at a time
    Turn(calls=(("write", {"path": "a", "text": "1"}),)),  # 2 waits, is approved
    Turn(calls=(("write", {"path": "b", "text": "2"}), LOOK_A)),  # 3 waits, is denied
    Turn(calls=(("write", {"path": "c", "text": "3"}),)),  # 4 waits, is edited
    Turn("Half ", broken=True),  # 5 breaks off, is begun anew
    Turn("Half of it. ", calls=(("fail", {}),)),  # 6 an error
    Turn(calls=(("nothing", {}),)),  # 7 no such tool
    Turn(calls=(("look", {"which": "a"}),)),  # 8 invalid arguments
    Turn(calls=(("big", {}),)),  # 9 a long result
    Turn("日本 — é", "Almost done."),  # 10 text in other scripts ends the run
]
FOLLOW_UP = [Turn(calls=(LOOK_B,)), Turn("As I said", cut=True)]  # 11 and 12: another run with this history, cut by length


def _body(*pieces: bytes, broken: bool) -> Exchange:
    steps = sse(*pieces, done=False)
    return steps[:-1] if broken else steps  # without the end of the body: the connection is closed


def chat(turn: Turn, n: int) -> Exchange:
    frames: list[Any] = [thinking_chunk(turn.thinking)] if turn.thinking else []
    frames += [text_chunk(turn.text)] if turn.text else []
    for i, (name, arguments) in enumerate(turn.calls):
        frames.append(call_chunk(i, id=f"call_{n}_{i}", name=name, arguments=json.dumps(arguments)))
    if turn.broken:
        return sse(*frames, done=False)[:-1]
    return sse(*frames, finish_chunk("length" if turn.cut else "tool_calls" if turn.calls else "stop"))


def as_anthropic(turn: Turn, n: int) -> Exchange:
    pieces, index = [anthropic.start(input_tokens=40 * (n + 1) + 6_000 * (n > 8), output_tokens=1)], 0  # as if it read all
    if turn.thinking:
        thought = anthropic.delta(0, "thinking_delta", thinking=turn.thinking) + anthropic.delta(
            0, "signature_delta", signature="sg=="
        )
        pieces.append(anthropic.block(0, type="thinking", thinking="", signature="") + thought + anthropic.end(0))
        index = 1
    if turn.text:
        pieces.append(anthropic.text(turn.text, index))
        index += 1
    for i, (name, arguments) in enumerate(turn.calls):
        pieces.append(anthropic.call(index + i, f"toolu_{n}_{i}", name, json.dumps(arguments)))
    if not turn.broken:
        pieces += [anthropic.stop("max_tokens" if turn.cut else "tool_use" if turn.calls else "end_turn"), anthropic.STOP]
    return _body(*pieces, broken=turn.broken)


def as_responses(turn: Turn, n: int) -> Exchange:
    pieces: list[bytes] = []
    index = 0
    if turn.thinking:
        pieces.append(responses.added(0, id=f"rs_{n}", type="reasoning", summary=[]))
        pieces.append(
            responses.event(
                "response.reasoning_summary_text.delta", item_id=f"rs_{n}", output_index=0, summary_index=0, delta=turn.thinking
            )
        )
        summary = [{"type": "summary_text", "text": turn.thinking}]
        pieces.append(responses.done(0, id=f"rs_{n}", type="reasoning", summary=summary, encrypted_content="gAA=="))
        index = 1
    if turn.text:
        item = {"type": "message", "id": f"msg_{n}", "role": "assistant", "status": "completed"}
        pieces.append(responses.added(index, **item, content=[]) + responses.text(turn.text, f"msg_{n}", index))
        if not turn.broken:
            pieces.append(responses.done(index, **item, content=[{"type": "output_text", "text": turn.text, "annotations": []}]))
        index += 1
    for i, (name, arguments) in enumerate(turn.calls):
        item = {"type": "function_call", "id": f"fc_{n}_{i}", "call_id": f"call_{n}_{i}", "name": name}
        pieces.append(responses.added(index + i, **item, arguments=""))
        pieces.append(responses.arguments(json.dumps(arguments), f"fc_{n}_{i}", index + i))
        pieces.append(responses.done(index + i, **item, arguments=json.dumps(arguments), status="completed"))
    if turn.cut:
        pieces.append(responses.ended("incomplete", incomplete_details={"reason": "max_output_tokens"}))
    elif not turn.broken:
        pieces.append(responses.ended())
    return _body(*pieces, broken=turn.broken)


def as_gemini(turn: Turn, n: int) -> Exchange:
    pieces = [gemini.frame(gemini.text(turn.thinking, thought=True))] if turn.thinking else []
    pieces += [gemini.frame(gemini.text(turn.text))] if turn.text else []
    pieces += [gemini.frame(gemini.call(name, arguments, signature="sg")) for name, arguments in turn.calls]
    if not turn.broken:
        pieces.append(gemini.frame(finish="MAX_TOKENS" if turn.cut else "STOP"))
    return _body(*pieces, broken=turn.broken)


def as_ollama(turn: Turn, n: int) -> Exchange:
    pieces = [ollama.line(thinking=turn.thinking)] if turn.thinking else []
    pieces += [ollama.line(turn.text)] if turn.text else []
    pieces += [ollama.line(tool_calls=[ollama.call(name, arguments) for name, arguments in turn.calls])] if turn.calls else []
    if not turn.broken:
        pieces.append(ollama.line(done=True, done_reason="length" if turn.cut else "stop"))
    return _body(*pieces, broken=turn.broken)


WIRES: dict[str, tuple[Codec, Callable[[Turn, int], Exchange]]] = {
    "chat": (ChatCodec(), chat),
    "anthropic": (AnthropicCodec(ANTHROPIC_API), as_anthropic),
    "responses": (ResponsesCodec(), as_responses),
    "gemini": (GeminiCodec("m"), as_gemini),
    "ollama": (OllamaCodec(), as_ollama),
}


def bytewise(exchange: Exchange) -> Exchange:
    head, *rest = exchange  # type: ignore[misc]
    assert isinstance(head, Send)
    return [head, *split(rest, 7)]


def story(wire: str, *, cut: bool = False) -> list[Any]:
    """Both runs, as what a user of any provider would be told: ids, usage and the provider's own words left out."""
    codec, written = WIRES[wire]
    ran: list[Any] = []

    @tool(concurrency="read_only")
    async def look(what: str) -> str:
        """Look."""
        ran.append(what)
        await asyncio.sleep(1)
        return f"saw {what}"

    @tool(needs_approval=True)
    async def write(path: str, text: str) -> str:
        """Write."""
        ran.append((path, text))
        return f"wrote {path}"

    @tool
    async def fail() -> None:
        """Fail."""
        raise ValueError("no")

    @tool
    def big() -> str:
        """Say a lot."""
        return "line\n" * 10_000

    async def main() -> list[Any]:
        exchanges = [written(turn, n) for n, turn in enumerate([*TASK, *FOLLOW_UP])]
        if cut:
            exchanges = [bytewise(exchange) for exchange in exchanges]
        facts: list[Any] = []
        async with ByteServer(exchanges, check=False, check_history=False) as server:
            agent = Agent(
                HttpDriver(codec, server.url, "m"),
                tools=[look, write, fail, big],
                instructions="Be brief.",
                retry=RetryPolicy(first_wait_s=0.0),
                approvals=[Rule(action="ask", tool="write")],
                limits=Limits(max_turns=20),
            )

            async def watch(running: Any) -> RunResult:
                events: list[Event] = []
                async with running:
                    async for event in running:
                        events.append(event)
                        if isinstance(event, Fact):
                            facts.append(told(event))
                        elif isinstance(event, TextDelta | ThinkingDelta) and facts[-1:] and isinstance(facts[-1], list):
                            facts[-1].append(event.text)
                check_events(events)
                check_history(running.result.messages)
                return run_from_json(run_to_json(running.result))

            result = await watch(agent.stream("Begin", on_interrupted="restart"))
            answers = [approve, deny("not that one"), edit({"path": "d", "text": "mine"})]
            while result.stop_reason == "waiting_approval":
                (pending,) = result.pending
                result = await watch(agent.resume_stream(result, {pending.call_id: answers.pop(0)}, on_interrupted="restart"))
            last = await watch(agent.stream("Say it again", history=result.messages))
        return [facts, ran, result.text, result.stop_reason, last.text, last.stop_reason, len(server.posts)]

    return run_virtual(main())


def told(fact: Fact) -> Any:
    match fact:
        case Replied():
            calls = [(call.name, json.loads(call.arguments)) for call in fact.message.calls]
            return ("replied", fact.turn, fact.message.text, fact.message.thinking, calls, fact.finish if not calls else "calls")
        case ToolStarted():
            return ("started", fact.turn, fact.position, fact.name, json.loads(fact.arguments))
        case ToolFinished():
            said = fact.result.content.partition("Arguments as received")[0]
            return (
                "finished",
                fact.turn,
                fact.position,
                fact.result.name,
                said,
                fact.result.is_error,
                fact.refused,
                fact.result.note,
            )
        case Retried():
            return ("retried", fact.turn, fact.attempt, fact.error.kind)
        case Ended():
            return ("ended", fact.stop_reason)
        case Asked() | Repaired() | Discarded():
            return type(fact).__name__
        case _:
            return type(fact).__name__


REFERENCE: list[Any] = []


@pytest.mark.parametrize("wire", WIRES)
def test_the_same_task_gives_the_same_facts(wire: str) -> None:
    if not REFERENCE:
        REFERENCE.extend(story("chat"))
    facts, ran, *outcome = story(wire)
    assert facts == REFERENCE[0]
    assert ran == REFERENCE[1] == ["a", "b", ("a", "1"), "a", ("d", "mine"), "b"]
    assert outcome == REFERENCE[2:] == ["日本 — é", "end", "As I said", "output_limit", 12]


@pytest.mark.parametrize("wire", WIRES)
def test_wherever_its_bytes_are_cut(wire: str) -> None:
    assert story(wire, cut=True) == story(wire)
