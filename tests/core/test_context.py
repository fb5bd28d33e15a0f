"""A run whose conversation outgrows the window, over the wire: what is sent, what is told, and how often a server may refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.harness import ByteServer, Exchange, call_chunk, finish_chunk, json_reply, reply, run_virtual, sse, text_chunk
from treadle import (
    Agent,
    Compacted,
    ContextFloorExceedsWindow,
    ContextOverflow,
    ContextPlanned,
    ContextPolicy,
    Event,
    HttpDriver,
    Limits,
    ModelInfo,
    ModelSummary,
    Options,
    Pruned,
    Retried,
    RetryPolicy,
    RunResult,
    read_result,
    run_from_json,
    run_to_json,
    sliding_window,
    tool,
)
from treadle.core.state import fold
from treadle.values.history import check_history
from treadle.values.tokens import estimate_tokens
from treadle.wire.chat import ChatCodec

LINE = "some words of a result that is long\n"


@tool(concurrency="read_only", repeatable=True)
async def look(what: int) -> str:
    """Look at something."""
    return f"{what}: {LINE * 20}"


@tool(concurrency="read_only", repeatable=True)
async def read(what: int) -> str:
    """Read something long."""
    return f"{what}: {LINE * 200}"


def too_long(window: int, prompt: int) -> Exchange:
    """As llama.cpp says it (captured)."""
    message = f"request ({prompt} tokens) exceeds the available context size ({window} tokens), try increasing it"
    error = {"code": 400, "message": message, "type": "exceed_context_size_error", "n_prompt_tokens": prompt, "n_ctx": window}
    return json_reply({"error": error}, status=400)


def called(name: str, what: int) -> Exchange:
    return sse(*reply(f"step {what}", calls=[(name, {"what": what})], usage=None))


FINE = sse(*reply("Fine", usage=None))


def run(
    exchanges: Sequence[Exchange], window: int | None, prompt: str = "Do it.", **settings: Any
) -> tuple[Any, list[Event], list[list[dict[str, Any]]]]:
    """The result or the error, the events, and the messages of each request."""

    async def info() -> ModelInfo:
        return ModelInfo(model="m", server="x", window_tokens=window, window_source="GET /props n_ctx")

    async def main() -> tuple[Any, list[Event], list[list[dict[str, Any]]]]:
        async with ByteServer(exchanges, check=True) as server:
            driver = HttpDriver(ChatCodec(), server.url, "m", info=info)
            agent = Agent(driver, **{"tools": [look, read], **settings})
            events: list[Event] = []
            try:
                async with agent.stream(prompt) as running:
                    async for event in running:
                        events.append(event)
                outcome: Any = running.result
            except ContextOverflow as error:
                outcome = error
            return outcome, events, [post.json["messages"] for post in server.posts]

    return run_virtual(main())


def tokens(request: list[dict[str, Any]]) -> float:
    """About how many tokens the messages have."""
    calls = [call["function"]["arguments"] for m in request for call in m.get("tool_calls", ())]
    return sum(estimate_tokens(m["content"] or "") for m in request) + sum(map(estimate_tokens, calls))


def of(events: list[Event], *kinds: Any) -> list[Any]:
    return [event for event in events if isinstance(event, kinds)]


def test_a_long_run_goes_on_in_a_small_window() -> None:
    result, events, requests = run([*(called("look", n) for n in range(30)), FINE], 4_000)
    assert isinstance(result, RunResult)
    assert (result.text, result.turns) == ("Fine", 31)
    [planned] = of(events, ContextPlanned)
    assert (planned.window_tokens, planned.source, planned.warning) == (4_000, "GET /props n_ctx", None)
    compacted = of(events, Compacted)
    assert 1 <= len(compacted) <= 8
    assert all(tokens(request) < 4_000 for request in requests)
    assert all(request[0]["content"].startswith("Do it.") for request in requests), "the user's request stays"
    moved = sum(after[: len(before)] != before for before, after in zip(requests, requests[1:], strict=False))
    assert moved == len({event.turn for event in of(events, Pruned, Compacted)}), "the prefix moves when an event says so"
    check_history(result.messages)
    shown = {str(m) for m in (*result.messages, *result.state.originals)}
    assert sum("step" in text for text in shown) >= 30, "what was taken out is in the state"
    loaded = run_from_json(run_to_json(result))
    assert loaded.state.originals == result.state.originals


def test_long_results_are_cut_first_and_can_be_read_again() -> None:
    exchanges = [*(called("read", n) for n in range(12)), FINE]
    result, events, requests = run(exchanges, 18_000, tools=[look, read, read_result])
    pruned = of(events, Pruned)
    assert pruned and not of(events, Compacted)[1:]
    assert pruned[0].tokens_after < pruned[0].tokens_before
    cut = next(m for m in requests[-1] if m["role"] == "tool" and "left out" in m["content"])
    assert "read_result(ref=" in cut["content"]
    assert any(m.full is not None for m in result.messages if hasattr(m, "full"))


def test_what_was_taken_out_can_still_be_read_by_its_reference() -> None:
    from treadle.values.text import reference

    text = f"0: {LINE * 600}"  # cut when it is made, and later left out with its turn

    @tool(concurrency="read_only")
    async def huge(what: int) -> str:
        """Make a result that is cut at once."""
        return text

    asks = sse(*reply(calls=[("read_result", {"ref": reference(text), "offset": 15_000})], usage=None))
    exchanges = [called("huge", 0), *(called("look", n) for n in range(20)), asks, FINE]
    result, events, requests = run(exchanges, 6_000, tools=[look, huge, read_result])
    assert of(events, Compacted)
    answer = requests[-1][-1]["content"]
    assert answer.startswith("[characters 15,"), answer[:200]
    assert result.text == "Fine"


def test_a_refusal_is_answered_by_one_shorter_request() -> None:
    exchanges = [*(called("look", n) for n in range(14)), too_long(3_000, 3_700), FINE]
    result, events, requests = run(exchanges, None)
    assert result.text == "Fine"
    [retried] = of(events, Retried)
    assert retried.error.kind == "ContextOverflow"
    planned = of(events, ContextPlanned)
    assert [p.source for p in planned] == ["default", "the server's refusal"]
    assert planned[1].window_tokens == 3_000
    assert of(events, Pruned, Compacted)
    assert len(str(requests[-1])) < 0.7 * len(str(requests[-2]))
    assert requests[-1][0]["content"].startswith(requests[-2][0]["content"])


def test_the_second_refusal_is_the_error() -> None:
    exchanges = [*(called("look", n) for n in range(14)), too_long(3_000, 3_700), too_long(3_000, 3_200), FINE]
    error, events, requests = run(exchanges, None)
    assert type(error) is ContextOverflow
    assert (error.window_tokens, error.prompt_tokens) == (3_000, 3_200)
    assert len(requests) == 16
    assert len(of(events, Retried)) == 1
    assert error.result is not None
    check_history(error.result.messages)


def test_each_turn_may_be_refused_once_within_the_budget() -> None:
    more = [called("look", n) for n in range(14)]
    exchanges = [*more, too_long(3_000, 3_700), called("look", 20), *more[:9], too_long(2_000, 2_700), FINE]
    result, events, _ = run(exchanges, None)
    assert result.text == "Fine"
    assert len(of(events, Retried)) == 2
    error, _, requests = run([*more, too_long(3_000, 3_700), FINE], None, retry=RetryPolicy(run_budget=0))
    assert type(error) is ContextOverflow
    assert len(requests) == 15


def test_a_refusal_without_numbers() -> None:
    refusal = json_reply({"error": {"message": "the prompt is too long", "code": "context_length_exceeded"}}, status=400)
    result, events, requests = run([*(called("look", n) for n in range(14)), refusal, FINE], None)
    assert result.text == "Fine"
    assert len(str(requests[-1])) < 0.7 * len(str(requests[-2]))
    assert of(events, Compacted)[0].emergency


def test_a_refusal_of_what_has_to_stay() -> None:
    error, _, requests = run([too_long(1_000, 4_000)], None, prompt="A long request. " * 1_000)
    assert isinstance(error, ContextFloorExceedsWindow)
    assert list(error.floor) == ["the user's first request", "2 tools"]
    assert 3_500 < error.floor["the user's first request"] < 4_100, "in the server's own tokens"
    assert len(requests) == 1


def test_a_refusal_without_numbers_of_what_has_to_stay_is_the_servers_own() -> None:
    refusal = json_reply({"error": {"message": "the prompt is too long", "code": "context_length_exceeded"}}, status=400)
    error, _, requests = run([refusal], None, prompt="A long request. " * 1_000)
    assert type(error) is ContextOverflow
    assert error.status == 400
    assert len(requests) == 1


def test_a_refusal_for_max_tokens_is_the_servers_own() -> None:
    """The prompt would fit; the answer that was asked for would not (vLLM, captured)."""
    message = "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 2048 tokens and your request has 10 input tokens (5000 > 2048 - 10)."
    refusal = json_reply(
        {"error": {"message": message, "type": "BadRequestError", "param": "max_tokens", "code": 400}}, status=400
    )
    error, _, requests = run([refusal], None, options=Options(max_tokens=5_000))
    assert type(error) is ContextOverflow
    assert (error.window_tokens, error.status) == (2_048, 400)
    assert error.server_said is not None
    assert len(requests) == 1


def test_a_long_conversation_makes_room_for_max_tokens() -> None:
    message = "This model's maximum context length is 4096 tokens. However, you requested 4500 tokens (3000 in the messages, 1500 in the completion)."
    refusal = json_reply({"error": {"message": message, "code": "context_length_exceeded"}}, status=400)
    exchanges = [*(called("look", n) for n in range(14)), refusal, FINE]
    result, events, requests = run(exchanges, None, options=Options(max_tokens=1_500))
    assert result.text == "Fine"
    assert of(events, ContextPlanned)[1].window_tokens == 4_096
    assert len(str(requests[-1])) < 0.9 * len(str(requests[-2]))


def test_a_request_that_cannot_fit_is_not_sent() -> None:
    error, events, requests = run([FINE], 1_000, prompt="A long request. " * 1_000)
    assert isinstance(error, ContextFloorExceedsWindow)
    assert requests == []
    assert "the user's first request" in str(error)
    assert [type(event).__name__ for event in events] == ["Asked", "ContextPlanned", "Failed"]


def test_room_for_the_answer_counts() -> None:
    options = Options(max_tokens=2_500)
    _, events, requests = run([*(called("look", n) for n in range(16)), FINE], 4_000, options=options)
    assert of(events, Compacted)
    assert all(tokens(request) < 1_500 for request in requests)


def test_nothing_stands_for_it_if_so_wanted() -> None:
    policy = ContextPolicy(compaction=sliding_window)
    _, events, requests = run([*(called("look", n) for n in range(20)), FINE], 4_000, context=policy)
    assert of(events, Compacted)
    assert [m["role"] for m in requests[-1]].count("user") == 1


def test_a_models_summary_counts_for_the_runs_bounds() -> None:
    async def info() -> ModelInfo:
        return ModelInfo(model="m", server="x", window_tokens=4_000, window_source="s")

    async def main() -> tuple[RunResult, list[Event], list[Any]]:
        summary = sse(*reply("Goals: do it. Open steps: look further.", usage=(900, 12)))
        looks = [sse(*reply(f"step {n}", calls=[("look", {"what": n})], usage=None)) for n in range(20)]
        async with ByteServer(looks, check=True) as server, ByteServer([summary] * 2) as cheap:
            writer = HttpDriver(ChatCodec(), cheap.url, "c")
            policy = ContextPolicy(compaction=ModelSummary(writer))
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m", info=info), tools=[look], context=policy)
            events: list[Event] = []
            async with agent.stream("Do it.", limits=Limits(max_turns=20)) as running:
                async for event in running:
                    events.append(event)
            return running.result, events, [post.json for post in server.posts] + [post.json for post in cheap.posts]

    result, events, requests = run_virtual(main())
    compacted = of(events, Compacted)
    assert compacted[0].how == "model_summary"
    assert compacted[0].usage is not None and compacted[0].usage.input_tokens == 900
    assert compacted[0].output_tokens > 5
    assert result.state.output_tokens >= sum(fact.output_tokens for fact in compacted) > 0
    assert any("Goals: do it." in str(request) for request in requests[:-1])


def test_a_run_that_is_carried_on_keeps_what_was_done() -> None:
    """Cancelled after a compaction, saved, loaded and resumed: the conversation is the shortened one, the originals are there."""

    async def info() -> ModelInfo:
        return ModelInfo(model="m", server="x", window_tokens=4_000, window_source="s")

    async def main() -> None:
        async with ByteServer([*(called("look", n) for n in range(20)), FINE], check=True) as server:
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m", info=info), tools=[look])
            async with agent.stream("Do it.") as running:
                async for event in running:
                    if isinstance(event, Compacted):
                        break
            saved = run_from_json(run_to_json(running.result))
            assert saved.state.originals
            result = await agent.resume(saved)
            assert result.text == "Fine"
            assert result.state.originals[: len(saved.state.originals)] == saved.state.originals
            check_history(result.messages)
            await asyncio.sleep(0)

    run_virtual(main())


@pytest.mark.parametrize("window", [600, 900, 1_500, 3_000, 6_000])
def test_any_window_ends_in_an_answer_or_a_typed_error(window: int) -> None:
    outcome, _, _ = run([*(called("read", n) if n % 3 else called("look", n) for n in range(20)), FINE], window)
    assert isinstance(outcome, RunResult | ContextFloorExceedsWindow)


class TestEmergencies:
    def test_a_refusal_after_something_was_shown(self) -> None:
        """Some servers find out while they answer. `run` begins anew, shortened."""
        broken = sse(text_chunk("Half "), {"error": {"message": "the context is full", "code": "context_length_exceeded"}})[:-1]
        exchanges = [*(called("look", n) for n in range(14)), broken, FINE]

        async def main() -> tuple[RunResult, list[Any]]:
            async with ByteServer(exchanges, check=True) as server:
                result = await Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[look]).run("Do it.")
                return result, [post.json["messages"] for post in server.posts]

        result, requests = run_virtual(main())
        assert result.text == "Fine"
        assert len(requests[-1]) < len(requests[-2])

    def test_a_crash_between_the_refusal_and_the_shorter_request(self) -> None:
        """Resumed from its journal, wherever that ends, the run is refused and shortened as if nothing had happened."""
        exchanges = [*(called("look", n) for n in range(14)), too_long(3_000, 3_700), FINE]

        class Facts(list[Any]):
            async def append(self, run_id: str, fact: Any) -> None:  # type: ignore[override]
                list.append(self, fact)

        facts = Facts()

        async def whole() -> None:
            async with ByteServer(exchanges, check=True) as server:
                await Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[look], journal=facts).run("Do it.")

        run_virtual(whole())
        at = next(i for i, fact in enumerate(facts) if isinstance(fact, Retried))

        async def resumed(length: int) -> RunResult:
            state = fold(facts[:length])
            async with ByteServer([too_long(3_000, 3_700), FINE], check=True) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[look])
                return await agent.resume(run_from_json(run_to_json(RunResult.of(state))))

        for length in (at, at + 1, at + 2):
            assert run_virtual(resumed(length)).text == "Fine"

    def test_another_model_has_another_window_and_count(self) -> None:
        """What one server counted or refused says nothing about the next."""

        async def main() -> tuple[RunResult, list[Event], int]:
            first = [
                *(sse(*reply(calls=[("look", {"what": n})], usage=(90_000 + 5_000 * n, 5))) for n in range(2)),
                json_reply({}, status=401),
            ]
            async with ByteServer(first) as one, ByteServer([FINE]) as two:

                async def info() -> ModelInfo:
                    return ModelInfo(model="b", server="x", window_tokens=8_000, window_source="s")

                agent = Agent(
                    HttpDriver(ChatCodec(), one.url, "a"),
                    tools=[look],
                    fallback=[HttpDriver(ChatCodec(), two.url, "b", info=info)],
                    context=ContextPolicy(unknown_window_tokens=200_000),
                )
                events: list[Event] = []
                async with agent.stream("Do it. " * 900) as running:
                    async for event in running:
                        events.append(event)
                return running.result, events, len(two.posts)

        result, events, asked = run_virtual(main())
        assert (result.text, asked) == ("Fine", 1)
        assert not of(events, Compacted), "it was 90,000 tokens to the first server, and is 2,000"

    @pytest.mark.parametrize("window", [0, -5])
    def test_absurd_windows_are_nobodys(self, window: int) -> None:
        result, events, _ = run([FINE], window, prompt="A long request. " * 1_000)
        assert isinstance(result, RunResult)
        assert of(events, ContextPlanned)[0].source == "default"
        refusal = json_reply({"error": {"message": "too long", "type": "exceed_context_size_error", "n_ctx": window}}, status=400)
        outcome, events, _ = run([*(called("look", n) for n in range(14)), refusal, FINE], None)
        assert outcome.text == "Fine"

    def test_a_driver_that_cannot_say_its_window_ends_no_run(self) -> None:
        async def info() -> ModelInfo:
            raise NotImplementedError

        async def main() -> RunResult:
            async with ByteServer([FINE]) as server:
                return await Agent(HttpDriver(ChatCodec(), server.url, "m", info=info)).run("A long request. " * 1_000)

        assert run_virtual(main()).text == "Fine"


class TestCounts:
    def test_reasoning_that_does_not_go_back_takes_no_room(self) -> None:
        usage = {"prompt_tokens": 3_000, "completion_tokens": 5_150, "completion_tokens_details": {"reasoning_tokens": 5_130}}
        first = sse(
            call_chunk(0, id="c", name="look", arguments='{"what": 1}'),
            finish_chunk("tool_calls"),
            {"choices": [], "usage": usage},
        )
        result, events, _ = run([first, FINE], 8_192, prompt="Some words to read. " * 600)
        assert result.text == "Fine"
        assert not of(events, Pruned, Compacted)

    def test_pictures_that_may_be_small_end_no_run(self) -> None:
        from treadle import Image, UserMessage

        pictures = [UserMessage("See these.", tuple(Image(b"x", "image/png") for _ in range(12)))]

        async def info() -> ModelInfo:
            return ModelInfo(model="m", server="x", window_tokens=8_192, window_source="s")

        async def main() -> RunResult:
            async with ByteServer([FINE]) as server:
                return await Agent(HttpDriver(ChatCodec(), server.url, "m", info=info)).run("Well?", history=pictures)

        assert run_virtual(main()).text == "Fine"

    def test_a_window_that_was_set_holds_for_small_conversations_too(self) -> None:
        policy = ContextPolicy(window_tokens=700)
        _, events, requests = run([*(called("look", n) for n in range(8)), FINE], None, context=policy)
        assert of(events, Compacted)
        assert all(tokens(request) < 700 for request in requests)
