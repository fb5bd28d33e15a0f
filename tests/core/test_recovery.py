"""Retries, fallback and interruptions, over bytes on a real socket and a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.harness import (
    ByteServer,
    Close,
    Exchange,
    Hang,
    Wait,
    call_chunk,
    finish_chunk,
    json_reply,
    reply,
    run_virtual,
    sse,
    text_chunk,
)
from treadle import (
    Abort,
    Agent,
    Answer,
    AuthenticationFailed,
    ConnectFailed,
    ContextFloorExceedsWindow,
    Discarded,
    Event,
    Failed,
    Failure,
    HttpDriver,
    InvalidRequest,
    Limits,
    ModelError,
    ModelInfo,
    ModelTimeout,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    Replied,
    Retried,
    Retry,
    RetryPolicy,
    RunResult,
    ServerError,
    StreamTruncated,
    Switch,
    TextDelta,
    Timeouts,
    ToolStarted,
    tool,
)
from treadle.drivers.cooldown import Cooldown
from treadle.values.tokens import Calibration
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import Dialect

DOWN = json_reply({"error": {"message": "down"}}, status=500)
FINE = sse(*reply("Fine"))
NO_WAIT = RetryPolicy(first_wait_s=0.0)


def outcome(
    exchanges: Sequence[Exchange], *, on_interrupted: Any = "restart", dialect: Dialect | None = None, **settings: Any
) -> tuple[RunResult | ModelError, list[Event], list[Any], float]:
    """A watched run: how it came out, its events, the requests' bodies, and the loop time it took."""

    async def main() -> Any:
        # A request that goes on from a partial answer ends with it, which the checker takes for a mistake.
        async with ByteServer(exchanges, check_history=dialect is None) as server:
            agent = Agent(HttpDriver(ChatCodec(dialect), server.url, "m"), **{"retry": NO_WAIT, **settings})
            events: list[Event] = []
            came: RunResult | ModelError
            async with agent.stream("Hi", on_interrupted=on_interrupted) as run:
                try:
                    async for event in run:
                        events.append(event)
                except ModelError as error:
                    came = error
                else:
                    came = run.result
            return came, events, [request.json for request in server.posts], asyncio.get_running_loop().time()

    return run_virtual(main())


def retries(events: list[Event]) -> list[Retried]:
    return [e for e in events if isinstance(e, Retried)]


class TestBeforeTheFirstDelta:
    def test_a_failure_that_may_pass_is_retried_and_said(self) -> None:
        came, events, requests, _ = outcome([DOWN, [Close()], FINE], on_interrupted="fail")
        assert isinstance(came, RunResult) and came.text == "Fine"
        assert [(r.turn, r.attempt, r.error.kind) for r in retries(events)] == [(1, 1, "ServerError"), (1, 2, "ConnectFailed")]
        assert requests[0] == requests[1] == requests[2]
        assert not any(isinstance(e, Discarded) for e in events)
        assert {e.attempt for e in events if isinstance(e, TextDelta)} == {3}

    def test_four_attempts_and_then_the_last_error_with_the_count(self) -> None:
        came, events, requests, _ = outcome([DOWN] * 4)
        assert isinstance(came, ServerError) and "after 4 attempts" in str(came)
        assert len(requests) == 4
        assert isinstance(events[-1], Failed) and events[-1].error.message == came.message

    def test_the_attempts_of_each_turn_count_anew_and_the_budget_of_the_run_does_not(self) -> None:
        @tool(concurrency="read_only")
        async def step(n: int) -> str:
            """Take a step."""
            return str(n)

        script: list[Exchange] = []
        for n in range(5):
            script += [DOWN, DOWN, DOWN, sse(*reply(calls=[("step", {"n": n})]))]
        came, events, requests, _ = outcome([*script[:13], DOWN], tools=[step])
        # 3 + 3 + 3 retries in three turns; the tenth and last in the fourth
        assert isinstance(came, ServerError)
        assert len(retries(events)) == 10
        assert len(requests) == 14

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422])
    def test_what_cannot_pass_is_not_retried(self, status: int) -> None:
        came, _, requests, _ = outcome([json_reply({"error": {"message": "no"}}, status=status)])
        assert isinstance(came, ModelError) and not came.retryable
        assert len(requests) == 1

    def test_waits_double_with_full_jitter_up_to_a_cap(self) -> None:
        policy = RetryPolicy()
        longest = [policy.wait_s(attempt=n, retry_after_s=None, jitter=1.0) for n in range(1, 10)]
        assert longest == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
        assert policy.wait_s(attempt=5, retry_after_s=None, jitter=0.0) == 0
        assert policy.wait_s(attempt=1000, retry_after_s=None, jitter=1.0) == 30

    @pytest.mark.parametrize(
        ("headers", "waited"),
        [
            ({"Retry-After": "7"}, 7),
            ({"Retry-After-Ms": "2500"}, 2.5),
            ({"Date": "Sat, 21 Nov 2026 10:00:00 GMT", "Retry-After": "Sat, 21 Nov 2026 10:00:20 GMT"}, 20),
            ({"Retry-After": "soon"}, 0),
            ({"Retry-After": "-3"}, 0),
            ({"Retry-After": "nan"}, 0),
        ],
    )
    def test_retry_after_is_honoured(self, headers: dict[str, str], waited: float) -> None:
        came, events, _, took = outcome([json_reply({}, status=429, headers=headers), FINE])
        assert isinstance(came, RunResult)
        assert retries(events)[0].wait_s == pytest.approx(waited)
        assert took == pytest.approx(waited, abs=0.2)

    def test_a_server_that_asks_for_more_than_a_minute_is_not_waited_for(self) -> None:
        came, _, requests, took = outcome([json_reply({}, status=429, headers={"Retry-After": "61"})])
        assert isinstance(came, RateLimited) and came.retry_after_s == 61
        assert (len(requests), took < 1) == (1, True)

    def test_a_timeout_is_retried(self) -> None:
        limits = Limits(timeouts=Timeouts(first_token_s=5, first_token_ms_per_prompt_token=0))
        came, events, _, took = outcome([[Hang()], FINE], limits=limits)
        assert isinstance(came, RunResult) and took == pytest.approx(5, abs=0.2)
        assert retries(events)[0].error.kind == "ModelTimeout"

    @pytest.mark.parametrize("how", ["leave", "cancel", "task"])
    def test_leaving_during_the_wait_ends_the_run_at_once_and_asks_no_more(self, how: str) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            async with ByteServer([json_reply({}, status=429, headers={"Retry-After": "50"})]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"))
                if how == "task":
                    task = asyncio.create_task(agent.run("Hi"))
                    await asyncio.sleep(10)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    async with agent.stream("Hi") as run:
                        await asyncio.sleep(10)
                        if how == "cancel":
                            await run.cancel()
                    assert run.result.stop_reason == "cancelled"
                assert loop.time() == pytest.approx(10, abs=0.1)
                assert len(server.posts) == 1

        run_virtual(main())


class TestAfterTheFirstDelta:
    CUT = sse(text_chunk("Hel"), text_chunk("lo"), done=False)

    def test_a_watched_stream_fails_with_the_partial_text(self) -> None:
        came, events, requests, _ = outcome([self.CUT], on_interrupted="fail")
        assert isinstance(came, StreamTruncated) and came.result is not None and came.result.text == "Hello"
        assert (len(requests), retries(events)) == (1, [])

    def test_restart_announces_that_what_was_shown_is_void(self) -> None:
        came, events, requests, _ = outcome([self.CUT, FINE], on_interrupted="restart")
        assert isinstance(came, RunResult) and came.text == "Fine"
        at = events.index(Discarded(turn=1, attempt=1))
        assert "".join(e.text for e in events[:at] if isinstance(e, TextDelta)) == "Hello"
        assert "".join(e.text for e in events[at:] if isinstance(e, TextDelta)) == "Fine"
        assert {e.attempt for e in events[at:] if isinstance(e, TextDelta)} == {2}
        assert requests[0] == requests[1]

    def test_run_restarts_by_default_and_stream_fails_by_default(self) -> None:
        async def main() -> None:
            async with ByteServer([self.CUT, FINE, self.CUT]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), retry=NO_WAIT)
                assert (await agent.run("Hi")).text == "Fine"
                with pytest.raises(StreamTruncated):
                    async with agent.stream("Hi") as run:
                        async for _ in run:
                            pass

        run_virtual(main())

    def test_calls_of_the_attempt_that_was_cut_do_not_run(self) -> None:
        ran: list[int] = []

        @tool
        async def write(n: int) -> str:
            """Write."""
            ran.append(n)
            return "ok"

        cut = sse(call_chunk(0, id="a", name="write", arguments='{"n": 1}'), done=False)
        again = sse(call_chunk(0, id="a", name="write", arguments='{"n": 2}'), finish_chunk("tool_calls"))
        came, events, _, _ = outcome([cut, again, FINE], tools=[write])
        assert isinstance(came, RunResult)
        assert ran == [2]
        assert sum(isinstance(e, ToolStarted) for e in events) == 1

    def test_continue_goes_on_and_shows_no_character_twice(self) -> None:
        dialect = Dialect(continues={"go_on": True})
        came, events, requests, _ = outcome(
            [self.CUT, sse(text_chunk(" wor"), done=False), sse(text_chunk("ld"), finish_chunk())],
            on_interrupted="continue",
            dialect=dialect,
        )
        assert isinstance(came, RunResult) and came.text == "Hello world"
        shown = [e for e in events if isinstance(e, TextDelta)]
        assert "".join(e.text for e in shown) == "Hello world"
        assert {e.attempt for e in shown} == {1}
        assert not any(isinstance(e, Discarded) for e in events)
        assert [r["messages"][-1] for r in requests[1:]] == [
            {"role": "assistant", "content": "Hello"},
            {"role": "assistant", "content": "Hello wor"},
        ]
        assert "go_on" not in requests[0] and requests[1]["go_on"] is True

    def test_continue_restarts_where_the_server_cannot(self) -> None:
        came, events, _, _ = outcome([self.CUT, FINE], on_interrupted="continue")
        assert isinstance(came, RunResult) and came.text == "Fine"
        assert any(isinstance(e, Discarded) for e in events)

    def test_a_server_that_refuses_to_go_on_is_asked_anew(self) -> None:
        refused = json_reply({"error": {"message": "Assistant response prefill is incompatible"}}, status=400)
        came, events, _, _ = outcome([self.CUT, refused, FINE], on_interrupted="continue", dialect=Dialect(continues={}))
        assert isinstance(came, RunResult) and came.text == "Fine"
        assert Discarded(turn=1, attempt=1) in events

    def test_tags_in_the_middle_of_an_answer_are_text(self) -> None:
        rest = sse(text_chunk("<think> is a tag</think> ok"), finish_chunk())
        came, _, _, _ = outcome([self.CUT, rest], on_interrupted="continue", dialect=Dialect(continues={}))
        assert isinstance(came, RunResult) and came.text == "Hello<think> is a tag</think> ok"

    def test_what_a_failed_attempt_cost_counts_for_the_run(self) -> None:
        cut = sse(*[text_chunk("four letter word ") for _ in range(20)], done=False)
        limits = Limits(output_tokens_per_run=100)
        came, _, requests, _ = outcome([cut] * 4, limits=limits, retry=RetryPolicy(attempts=9, first_wait_s=0))
        assert isinstance(came, RunResult) and came.stop_reason == "output_limit"
        assert len(requests) == 2

    def test_a_continuation_that_fails_for_good_keeps_all_that_was_shown(self) -> None:
        came, _, _, _ = outcome([self.CUT, json_reply({}, status=401)], on_interrupted="continue", dialect=Dialect(continues={}))
        assert isinstance(came, AuthenticationFailed) and came.result is not None
        assert came.result.text == "Hello"


class TestFallback:
    def two(
        self, first: Sequence[Exchange], second: Sequence[Exchange], **settings: Any
    ) -> tuple[Any, list[Event], list[int], float]:
        window, prompt = settings.pop("window", None), settings.pop("prompt", "Hi")

        async def info() -> ModelInfo:
            return ModelInfo(model="b", server="x", window_tokens=window)

        async def main() -> Any:
            async with ByteServer(first) as a, ByteServer(second) as b:
                wrap = settings.pop("wrap", lambda d: d)
                agent = Agent(
                    wrap(HttpDriver(ChatCodec(), a.url, "a")),
                    fallback=[HttpDriver(ChatCodec(), b.url, "b", info=info)],
                    **{"retry": RetryPolicy(attempts=2, first_wait_s=0), **settings},
                )
                events: list[Event] = []
                came: Any
                async with agent.stream(prompt, on_interrupted="restart") as run:
                    try:
                        async for event in run:
                            events.append(event)
                    except ModelError as error:
                        came = error
                    else:
                        came = run.result
                return came, events, [len(a.posts), len(b.posts)], asyncio.get_running_loop().time()

        return run_virtual(main())

    def test_retry_then_the_next_model(self) -> None:
        came, events, asked, _ = self.two([DOWN, DOWN], [FINE])
        assert came.text == "Fine" and asked == [2, 1]
        assert [r.driver for r in retries(events)] == [0, 1]
        assert retries(events)[1].model is not None and retries(events)[1].model.endswith("#b")

    @pytest.mark.parametrize("status", [401, 402, 404])
    def test_what_another_model_may_do_is_not_retried_here(self, status: int) -> None:
        came, _, asked, _ = self.two([json_reply({}, status=status)], [FINE])
        assert came.text == "Fine" and asked == [1, 1]

    def test_a_request_that_is_wrong_is_wrong_everywhere(self) -> None:
        came, _, asked, _ = self.two([json_reply({}, status=400)], [])
        assert isinstance(came, InvalidRequest) and asked == [1, 0]

    def test_after_text_was_shown_the_switch_is_announced(self) -> None:
        came, events, _, _ = self.two([sse(text_chunk("Hel"), done=False)] * 2, [FINE])
        assert came.text == "Fine"
        assert [e.attempt for e in events if isinstance(e, Discarded)] == [1, 2]
        assert {e.attempt for e in events[-4:] if isinstance(e, TextDelta)} == {3}

    def test_a_long_retry_after_is_not_waited_for_while_there_is_another(self) -> None:
        came, _, asked, took = self.two([json_reply({}, status=429, headers={"Retry-After": "30"})], [FINE])
        assert came.text == "Fine" and asked == [1, 1] and took < 1

    def test_a_conversation_that_does_not_fit_the_next_model_is_not_sent_to_it(self) -> None:
        came, _, asked, _ = self.two([DOWN, DOWN], [], window=1_000, prompt="What is this? " * 2_000)
        assert asked == [2, 0]
        assert isinstance(came, ContextFloorExceedsWindow) and "does not fit" in came.message

    def test_the_run_stays_with_the_model_that_answered(self) -> None:
        @tool(concurrency="read_only")
        async def look() -> str:
            """Look."""
            return "seen"

        came, _, asked, _ = self.two([DOWN, DOWN], [sse(*reply(calls=[("look", {})])), FINE], tools=[look])
        assert came.text == "Fine" and asked == [2, 2]

    def test_a_strategy_of_ones_own(self) -> None:
        seen: list[Failure] = []

        def answer(failure: Failure) -> Any:
            seen.append(failure)
            return [Retry(), Switch(1), Answer("Nobody is home.")][len(seen) - 1]

        came, events, asked, _ = self.two([DOWN, DOWN], [DOWN], strategy=answer)
        assert came.text == "Nobody is home." and came.stop_reason == "end" and asked == [2, 1]
        assert [(f.attempt, f.driver, f.turn, f.error.status) for f in seen] == [(1, 0, 1, 500), (2, 0, 1, 500), (1, 1, 1, 500)]
        assert isinstance(events[-2], Replied)

    def test_going_on_to_the_next_model_needs_no_budget(self) -> None:
        came, _, asked, _ = self.two([DOWN], [FINE], retry=RetryPolicy(run_budget=0))
        assert came.text == "Fine" and asked == [1, 1]

    def test_a_strategy_cannot_break_the_budget(self) -> None:
        came, events, asked, _ = self.two(
            [DOWN] * 20, [], strategy=lambda _: Retry(), retry=RetryPolicy(attempts=99, first_wait_s=0)
        )
        assert isinstance(came, ServerError) and len(retries(events)) == 10 and asked == [11, 0]
        came, events, _, _ = self.two([DOWN], [], strategy=lambda _: Switch(7))
        assert isinstance(came, ServerError) and retries(events) == []
        came, _, _, _ = self.two([DOWN], [], strategy=lambda _: Abort())
        assert isinstance(came, ServerError)


class TestCooldown:
    def test_a_failing_server_is_left_alone_then_probed_by_one_call(self) -> None:
        async def main() -> None:
            script: list[Exchange] = [DOWN, DOWN, DOWN, DOWN, [Wait(5), *FINE], FINE]
            async with ByteServer(script) as server:
                agent = Agent(
                    Cooldown(HttpDriver(ChatCodec(), server.url, "m"), failures=3, cooldown_s=30), retry=RetryPolicy(attempts=1)
                )

                async def error() -> str:
                    with pytest.raises(ModelError) as caught:
                        await agent.run("Hi")
                    return type(caught.value).__name__

                assert [await error() for _ in range(3)] == ["ServerError"] * 3
                assert [await error() for _ in range(3)] == ["Overloaded"] * 3
                assert len(server.posts) == 3
                await asyncio.sleep(31)
                assert await error() == "ServerError"  # the probe
                assert await error() == "Overloaded"
                assert len(server.posts) == 4
                await asyncio.sleep(31)
                probe = asyncio.create_task(agent.run("Hi"))
                await asyncio.sleep(1)
                assert await error() == "Overloaded", "one probe at a time"
                assert (await probe).text == "Fine"
                assert (await agent.run("Hi")).text == "Fine"

        run_virtual(main())

    def test_a_server_that_is_not_there_cools_down_too_and_is_then_asked_nothing(self) -> None:
        asked: list[str] = []

        class Gone:
            model, calibration, continuable = "gone", Calibration(), False

            @asynccontextmanager
            async def connect(self) -> Any:
                asked.append("connect")
                raise ConnectFailed("nobody is there")
                yield

            async def info(self) -> ModelInfo:
                asked.append("info")
                return ModelInfo(model="m", server="x")

        async def main() -> None:
            agent = Agent(Cooldown(Gone(), failures=2), retry=RetryPolicy(attempts=1))
            kinds = []
            for _ in range(5):
                with pytest.raises(ModelError) as caught:
                    await agent.run("Hi")
                kinds.append(type(caught.value).__name__)
            assert kinds == ["ConnectFailed"] * 2 + ["Overloaded"] * 3
            with pytest.raises(Overloaded):
                await agent.driver.info()
            assert asked == ["connect", "connect"]

        run_virtual(main())

    def test_while_one_call_probes_the_others_are_told_to_wait(self) -> None:
        async def main() -> None:
            slow = sse(text_chunk("Fi"), Wait(8), text_chunk("ne"), finish_chunk())
            async with ByteServer([DOWN, slow, FINE]) as server:
                agent = Agent(Cooldown(HttpDriver(ChatCodec(), server.url, "m"), failures=1, cooldown_s=30))
                with pytest.raises(ServerError):
                    await Agent(agent.driver, retry=RetryPolicy(attempts=1)).run("Hi")
                await asyncio.sleep(31)
                both = await asyncio.gather(agent.run("Hi"), agent.run("Hi"))
                assert [r.text for r in both] == ["Fine", "Fine"]

        run_virtual(main())

    @pytest.mark.parametrize("body", [{}, {"type": "exceed_context_size_error"}, {"code": "content_filter"}])
    def test_errors_of_the_request_do_not_count(self, body: Any) -> None:
        async def main() -> None:
            async with ByteServer([json_reply({"error": body}, status=400)] * 5 + [FINE]) as server:
                agent = Agent(Cooldown(HttpDriver(ChatCodec(), server.url, "m"), failures=1))
                for _ in range(5):
                    with pytest.raises(ModelError):
                        await agent.run("Hi")
                assert (await agent.run("Hi")).text == "Fine"

        run_virtual(main())


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (402, {}, QuotaExceeded),
        (429, {"error": {"code": "insufficient_quota"}}, QuotaExceeded),
        (503, {"error": {"message": "Loading model"}}, Overloaded),
        (401, {}, AuthenticationFailed),
    ],
)
def test_classes(status: int, body: Any, error: type[ModelError]) -> None:
    came, _, _, _ = outcome([json_reply(body, status=status)], retry=RetryPolicy(attempts=1))
    assert type(came) is error


def test_a_prompt_that_is_still_being_read_is_waited_for_and_not_sent_again() -> None:
    """llama.cpp reports progress while it reads a long prompt; a client that gives up makes it start over (llama.cpp#22160)."""
    progress = [
        step
        for n in range(1, 40)
        for step in (
            Wait(20),
            {"choices": [], "prompt_progress": {"total": 4000, "cache": 0, "processed": n * 100, "time_ms": n}},
        )
    ]
    limits = Limits(timeouts=Timeouts(first_token_s=30, first_token_ms_per_prompt_token=0))
    came, events, requests, took = outcome([sse(*progress, text_chunk("Done"), finish_chunk())], limits=limits)
    assert isinstance(came, RunResult) and came.text == "Done"
    assert (len(requests), retries(events)) == (1, [])
    assert took == pytest.approx(780, abs=1)


def test_progress_that_does_not_advance_is_none() -> None:
    stuck = [
        step
        for _ in range(40)
        for step in (Wait(20), {"choices": [], "prompt_progress": {"total": 4000, "cache": 0, "processed": 100, "time_ms": 1}})
    ]
    limits = Limits(timeouts=Timeouts(first_token_s=30, first_token_ms_per_prompt_token=0))
    came, _, _, took = outcome([sse(*stuck, Hang())], limits=limits, retry=RetryPolicy(attempts=1))
    assert isinstance(came, ModelTimeout) and took < 60
