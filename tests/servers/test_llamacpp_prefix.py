"""What the real llama.cpp server read from its cache, by its own count, when requests extend each other. Not skipped anywhere.

`python -m tests.servers.test_llamacpp_prefix` prints the table of docs/prefix.md.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from treadle_tiny import model_path

from treadle import Agent, HttpDriver, LlamaServer, Message, Options, PrefixMoved, Replied, RunResult, tool
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.responses import ResponsesCodec

EXACT = Options(temperature=0.0, max_tokens=60)
CODECS: dict[str, Codec] = {"chat": ChatCodec(), "anthropic": AnthropicCodec(), "responses": ResponsesCodec()}
QUESTIONS = [
    "What's the weather in Paris and what is 12*7?",
    "What's the weather in Rome?",
    "What is 12*7?",
    "What's the weather in Oslo?",
    "What's the weather in Lima?",
]
FEW = 16  # tokens that the template puts behind the last message, for the answer, and takes away again


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Get the weather for a city"""
    return "18 C, sunny"


@tool(concurrency="read_only")
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    return "84"


async def chatted(server: LlamaServer, format: str, *, clock: bool) -> tuple[list[list[Any]], list[RunResult]]:
    """A chat of five questions, each a run: the events that matter, and the results."""
    driver = HttpDriver(CODECS[format], server.base_url, "tiny")
    hour = 3 + list(CODECS).index(format)  # else the server knows the conversation from another format
    history: tuple[Message, ...] = ()
    told: list[list[Any]] = []
    results: list[RunResult] = []
    for minute, question in enumerate(QUESTIONS):
        instructions = f"It is 0{hour}:{minute:02}. Be brief." if clock else "Be brief."
        agent = Agent(driver, tools=[get_weather, calculator], instructions=instructions, options=EXACT)
        async with agent.stream(question, history=history) as run:
            told.append([event async for event in run if isinstance(event, Replied | PrefixMoved)])
        history = run.result.messages
        results.append(run.result)
    return told, results


@pytest.mark.parametrize("format", CODECS)
def test_each_request_reads_the_one_before_it_from_the_cache(llamacpp: LlamaServer, format: str) -> None:
    told, results = asyncio.run(chatted(llamacpp, format, clock=False))
    events = [event for run in told for event in run]
    assert not [event for event in events if isinstance(event, PrefixMoved)]
    usages = [event.usage for event in events if isinstance(event, Replied)]
    assert len(usages) >= 6
    for before, after in zip(usages, usages[1:], strict=False):
        assert before.input_tokens and after.input_tokens and after.cached_input_tokens
        assert before.input_tokens - FEW <= after.cached_input_tokens <= after.input_tokens
    assert all(result.cache.hit_rate and not result.cache.breaks for result in results[1:])


@pytest.mark.parametrize("format", CODECS)
def test_a_clock_in_the_system_text_is_named_and_costs_what_was_cached(llamacpp: LlamaServer, format: str) -> None:
    told, results = asyncio.run(chatted(llamacpp, format, clock=True))
    assert not [event for event in told[0] if isinstance(event, PrefixMoved)]
    for run, result in zip(told[1:], results[1:], strict=True):
        moved, replied, *_ = run
        assert (moved.component, moved.turn) == ("the system text", 1)
        read_again = replied.usage.input_tokens - replied.usage.cached_input_tokens
        assert moved.lost_tokens > 0 and read_again > 0.5 * replied.usage.input_tokens
        assert [each.component for each in result.cache.breaks] == ["the system text"]


def main() -> None:
    print(
        "| format | system text | requests | prompt tokens | of them cached | hit rate | breaks told |\n|---|---|---|---|---|---|---|"
    )
    with LlamaServer(model_path(), n_ctx=2048, n_parallel=2, n_threads=1) as server:
        for name in CODECS:
            for clock in (False, True):
                _, results = asyncio.run(chatted(server, name, clock=clock))
                uses = [result.cache for result in results]
                read, cached = sum(use.input_tokens for use in uses), sum(use.cached_input_tokens for use in uses)
                breaks = sum(each.count for use in uses for each in use.breaks)
                said = "with a clock" if clock else "stands still"
                print(
                    f"| {name} | {said} | {sum(use.turns for use in uses)} | {read:,} | {cached:,} | {cached / read:.0%} | {breaks} |"
                )


if __name__ == "__main__":
    main()
