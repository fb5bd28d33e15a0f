"""The bounds of a run, over bytes on a real socket and a virtual clock."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness import (
    ByteServer,
    Connection,
    Exchange,
    Hang,
    Send,
    Step,
    VirtualClockLoop,
    Wait,
    call_chunk,
    finish_chunk,
    json_reply,
    reply,
    run_virtual,
    sse,
    text_chunk,
    thinking_chunk,
)
from treadle import (
    Agent,
    AssistantMessage,
    Discarded,
    Ended,
    Event,
    GuardLimits,
    HttpDriver,
    Limits,
    ModelError,
    ModelTimeout,
    Prompted,
    Replied,
    Retried,
    RetryPolicy,
    RunResult,
    TextDelta,
    ThinkingDelta,
    Timeouts,
    ToolError,
    ToolMessage,
    ToolStarted,
    tool,
)
from treadle.values.history import check_history
from treadle.values.tokens import estimate_tokens
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import Dialect

FINE = sse(*reply("Fine"))
DOWN = json_reply({"error": {"message": "down"}}, status=500)

PIECE = "wordsoffourletterswithoutanyblankbetween"  # 10 tokens by estimate
ran: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@tool
async def write(path: str = "", n: int = 0) -> str:
    """Write a file."""
    ran.append((path, n))
    return f"wrote {n}"


@tool(concurrency="read_only")
async def slow(n: int = 0) -> str:
    """Take 50 s."""
    ran.append(n)
    await asyncio.sleep(50)
    return f"slept {n}"


@dataclass
class Outcome:
    """A watched run: how it came out, its events, the requests' bodies, the server's view, the loop time it took."""

    came: RunResult | ModelError
    events: list[Event]
    requests: list[Any]
    connections: list[Connection]
    took_s: float

    @property
    def result(self) -> RunResult:
        assert isinstance(self.came, RunResult), self.came
        check_history(self.came.messages)
        assert isinstance(self.events[-1], Ended)
        return self.came

    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TextDelta))

    def replies(self) -> list[Replied]:
        return [e for e in self.events if isinstance(e, Replied)]


def outcome(exchanges: Sequence[Exchange], limits: Limits, *, dialect: Dialect | None = None, **settings: Any) -> Outcome:
    on_interrupted = settings.pop("on_interrupted", "fail")

    async def main() -> Outcome:
        async with ByteServer(exchanges, check_history=dialect is None) as server:
            agent = Agent(HttpDriver(ChatCodec(dialect), server.url, "m"), limits=limits, **settings)
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
                took_s = asyncio.get_running_loop().time()
        return Outcome(came, events, [request.json for request in server.posts], server.connections, took_s)

    return run_virtual(main())


def endless(*before: dict[str, Any], then: dict[str, Any], wait_s: float = 0.0) -> Iterator[Step]:
    """A stream that never ends: some chunks, then one chunk over and over, each a write of its own."""
    yield sse(done=False)[0]
    for chunk in before:
        yield sse(chunk, done=False)[1]
    again = sse(then, done=False)[1]
    while True:
        if wait_s:
            yield Wait(wait_s)
        yield again


def left_at(connection: Connection) -> float:
    assert connection.client_closed_at is not None, "the client should have closed the connection"
    return connection.client_closed_at


def test_the_defaults_are_those_of_the_contract() -> None:
    assert Limits() == Limits(
        max_turns=50,
        output_tokens_per_turn=32_768,
        output_tokens_per_run=262_144,
        reasoning_tokens_per_turn=32_768,
        reasoning_tokens_per_run=262_144,
        on_reasoning_limit="stop",
        deadline_s=3600,
        parallel_tools=8,
        tool_timeout_s=120,
        tool_result_chars=16_000,
        tool_result_kept_chars=10_000_000,
        timeouts=Timeouts(connect_s=10, first_token_s=300, first_token_ms_per_prompt_token=10, silence_s=120),
        guard=GuardLimits(tool_failures=3, run_failures=6, repeats_noted=3, repeats_stop=6),
    )
    policy = RetryPolicy()
    assert (policy.attempts, policy.run_budget, policy.first_wait_s, policy.max_wait_s) == (4, 10, 0.5, 30)
    assert policy.retry_after_cap_s == 60


class TestOutputTokens:
    LIMITS = Limits(output_tokens_per_turn=100)

    def test_a_stream_without_end_is_cut_and_its_text_kept(self) -> None:
        seen = outcome([endless(then=text_chunk(PIECE))], self.LIMITS)
        assert seen.result.stop_reason == "output_limit"
        assert seen.result.text == PIECE * 11 == seen.text()
        assert seen.connections[0].bytes_sent == sum(
            len(step.data) for step in itertools.islice(endless(then=text_chunk(PIECE)), 12) if isinstance(step, Send)
        ), "one read past the bound, and no more"
        assert left_at(seen.connections[0]) == 0
        [fact] = seen.replies()
        assert (fact.cut, fact.finish, fact.output_tokens) == ("output_limit", "length", 110)

    def test_at_the_default_bound(self) -> None:
        counting = (text_chunk("".join(f"{n + k} " for k in range(200))) for n in range(0, 10**9, 200))
        exchange = itertools.chain(sse(done=False)[:1], (sse(chunk, done=False)[1] for chunk in counting))
        result = outcome([exchange], Limits()).result  # type: ignore[list-item]
        assert result.stop_reason == "output_limit"
        assert 32_768 < estimate_tokens(result.text) < 32_768 + 1_000

    def test_exactly_the_bound_passes(self) -> None:
        seen = outcome([sse(*[text_chunk(PIECE)] * 10, finish_chunk())], self.LIMITS)
        assert seen.result.stop_reason == "end"

    def test_one_large_read_is_kept_whole(self) -> None:
        seen = outcome([sse(text_chunk(PIECE * 50), text_chunk("never read"), Hang())], self.LIMITS)
        assert (seen.result.stop_reason, seen.result.text) == ("output_limit", PIECE * 50)

    def test_a_whole_answer_that_was_not_streamed_is_bounded_too(self) -> None:
        body = {"choices": [{"message": {"role": "assistant", "content": PIECE * 50}, "finish_reason": "stop"}]}
        assert outcome([json_reply(body)], self.LIMITS).result.stop_reason == "output_limit"

    def test_tool_arguments_count_and_the_call_does_not_run(self) -> None:
        begun = call_chunk(0, id="a", name="write", arguments='{"path": "')
        seen = outcome([endless(begun, then=call_chunk(0, arguments=PIECE))], self.LIMITS, tools=[write])
        assert seen.result.stop_reason == "output_limit"
        assert ran == []
        assert not any(isinstance(e, ToolStarted) for e in seen.events)
        result = seen.result.messages[-1]
        assert isinstance(result, ToolMessage)
        assert result.content.startswith("Not run: the reply was cut before its end")
        assert '{"path": "wordsof' in result.content
        assert left_at(seen.connections[0]) == 0

    def test_a_whole_call_of_a_cut_turn_does_not_run_either(self) -> None:
        call = call_chunk(0, id="a", name="write", arguments='{"path": "x"}')
        seen = outcome([endless(call, then=text_chunk(PIECE))], self.LIMITS, tools=[write])
        assert (seen.result.stop_reason, ran) == ("output_limit", [])

    def test_the_conversation_can_be_gone_on_with(self) -> None:
        async def main() -> None:
            begun = call_chunk(0, id="a", name="write", arguments='{"path": "')
            async with ByteServer([endless(begun, then=call_chunk(0, arguments=PIECE)), FINE], check_prefix=True) as server:  # type: ignore[list-item]
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[write], limits=self.LIMITS)
                first = await agent.run("Hi")
                second = await agent.run("Go on", history=first.messages)
                assert (first.stop_reason, second.text) == ("output_limit", "Fine")

        run_virtual(main())

    def test_the_bound_of_a_run_covers_its_turns_together(self) -> None:
        def turn(n: int) -> list[Step]:
            called = call_chunk(0, id="a", name="write", arguments=f'{{"n": {n}}}')
            return sse(*[text_chunk(PIECE)] * 9, called, finish_chunk("tool_calls"))

        limits = Limits(output_tokens_per_turn=100, output_tokens_per_run=250)
        seen = outcome([turn(1), turn(2), endless(then=text_chunk(PIECE))], limits, tools=[write])
        assert seen.result.stop_reason == "output_limit"
        assert [fact.cut for fact in seen.replies()] == [None, None, "output_limit"]
        assert 250 < sum(fact.output_tokens for fact in seen.replies()) <= 260
        assert seen.result.state.output_tokens == sum(fact.output_tokens for fact in seen.replies())
        assert [n for _, n in ran] == [1, 2]

    def test_reasoning_does_not_count_as_output(self) -> None:
        seen = outcome([sse(*[thinking_chunk(PIECE)] * 50, text_chunk("Done"), finish_chunk())], self.LIMITS)
        assert (seen.result.stop_reason, seen.result.text) == ("end", "Done")

    def test_an_answer_that_is_gone_on_with_after_breaking_off_is_one_turn(self) -> None:
        """A turn that arrives in several attempts is still one turn, with one bound."""
        broken = sse(*[text_chunk(PIECE)] * 8, done=False)
        seen = outcome(
            [broken, broken, broken, FINE],
            self.LIMITS,
            dialect=Dialect(continues={}),
            on_interrupted="continue",
            retry=RetryPolicy(first_wait_s=0),
        )
        assert seen.result.stop_reason == "output_limit"
        assert len(seen.result.text) / 4 <= 110
        assert seen.replies()[0].output_tokens == len(seen.result.text) / 4


class TestReasoningTokens:
    LIMITS = Limits(reasoning_tokens_per_turn=100)

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_reasoning_without_end_is_cut(self, field: str) -> None:
        seen = outcome([endless(then=thinking_chunk(PIECE, field))], self.LIMITS)
        assert (seen.result.stop_reason, seen.result.text) == ("reasoning_limit", "")
        assert "".join(e.text for e in seen.events if isinstance(e, ThinkingDelta)) == PIECE * 11
        assert left_at(seen.connections[0]) == 0
        assert (seen.replies()[0].cut, seen.replies()[0].reasoning_tokens) == ("reasoning_limit", 110)

    def test_reasoning_inside_the_content_counts_as_reasoning(self) -> None:
        seen = outcome([endless(text_chunk("<think>"), then=text_chunk(PIECE))], self.LIMITS)
        assert seen.result.stop_reason == "reasoning_limit"

    def test_the_bound_of_a_run_covers_its_turns_together(self) -> None:
        def turn(n: int) -> list[Step]:
            called = call_chunk(0, id="a", name="write", arguments=f'{{"n": {n}}}')
            return sse(*[thinking_chunk(PIECE)] * 9, called, finish_chunk("tool_calls"))

        limits = Limits(reasoning_tokens_per_turn=100, reasoning_tokens_per_run=250)
        seen = outcome([turn(1), turn(2), endless(then=thinking_chunk(PIECE))], limits, tools=[write])
        assert seen.result.stop_reason == "reasoning_limit"
        assert 250 < seen.result.state.reasoning_tokens <= 260

    def test_text_that_came_first_is_kept(self) -> None:
        seen = outcome([endless(text_chunk("So far"), then=thinking_chunk(PIECE))], self.LIMITS)
        assert (seen.result.stop_reason, seen.result.text) == ("reasoning_limit", "So far")

    class TestAnswer:
        LIMITS = Limits(reasoning_tokens_per_turn=100, on_reasoning_limit="answer")

        @pytest.mark.parametrize("field", ["reasoning_content", "reasoning", None])
        def test_the_answer_is_asked_for_once_and_arrives(self, field: str | None) -> None:
            begun = [text_chunk("<think>")] if field is None else []
            piece = text_chunk(PIECE) if field is None else thinking_chunk(PIECE, field)
            seen = outcome([endless(*begun, then=piece), sse(*reply("42"))], self.LIMITS)
            assert (seen.result.stop_reason, seen.result.text, seen.result.turns) == ("end", "42", 2)
            assert len(seen.requests) == 2
            [prompted] = [e for e in seen.events if isinstance(e, Prompted)]
            assert prompted.why == "reasoning_limit"
            last = seen.requests[1]["messages"][-1]
            assert last == {"role": "user", "content": prompted.message.content}
            assert "give your answer now" in last["content"]
            assert PIECE in last["content"]
            assert left_at(seen.connections[0]) == 0

        def test_a_second_cut_stops(self) -> None:
            seen = outcome([endless(then=thinking_chunk(PIECE)), endless(then=thinking_chunk(PIECE))], self.LIMITS)
            assert seen.result.stop_reason == "reasoning_limit"
            assert len(seen.requests) == 2

        def test_a_bound_of_output_is_not_asked_about(self) -> None:
            limits = Limits(output_tokens_per_turn=100, on_reasoning_limit="answer")
            seen = outcome([endless(then=text_chunk(PIECE))], limits)
            assert seen.result.stop_reason == "output_limit"

        def test_calls_of_the_cut_turn_do_not_run_and_the_history_is_valid(self) -> None:
            call = call_chunk(0, id="a", name="write", arguments="{}")
            seen = outcome([endless(call, then=thinking_chunk(PIECE)), sse(*reply("42"))], self.LIMITS, tools=[write])
            assert (seen.result.text, ran) == ("42", [])
            assert [message["role"] for message in seen.requests[1]["messages"]] == ["user", "assistant", "tool", "user"]
            assert PIECE in seen.requests[1]["messages"][-1]["content"]

        def test_there_is_no_turn_left_for_it(self) -> None:
            limits = Limits(reasoning_tokens_per_turn=100, on_reasoning_limit="answer", max_turns=1)
            seen = outcome([endless(then=thinking_chunk(PIECE))], limits)
            assert seen.result.stop_reason == "max_turns"
            assert len(seen.requests) == 1


class TestRepetition:
    def test_text_that_is_stuck_is_cut_and_kept(self) -> None:
        stuck = "I will now write the file. "
        seen = outcome([endless(text_chunk("Sure! "), then=text_chunk(stuck))], Limits())
        assert seen.result.stop_reason == "loop_detected"
        assert seen.result.text.startswith("Sure! " + stuck)
        assert 6_000 < len(seen.result.text) < 8_000
        assert seen.result.text == seen.text()
        assert left_at(seen.connections[0]) == 0

    def test_reasoning_that_is_stuck(self) -> None:
        seen = outcome([endless(then=thinking_chunk("Wait, let me reconsider. "))], Limits())
        assert seen.result.stop_reason == "loop_detected"

    def test_calls_before_it_do_not_run(self) -> None:
        call = call_chunk(0, id="a", name="write", arguments="{}")
        seen = outcome([endless(call, then=text_chunk("and so on "))], Limits(), tools=[write])
        assert (seen.result.stop_reason, ran) == ("loop_detected", [])

    def test_each_turn_is_looked_at_by_itself(self) -> None:
        turns = [
            sse(text_chunk("again " * 500), call_chunk(0, id="a", name="write", arguments=f'{{"n": {n}}}'), finish_chunk())
            for n in range(3)
        ]
        seen = outcome([*turns, FINE], Limits(), tools=[write])
        assert seen.result.stop_reason == "end"


class TestDeadline:
    LIMITS = Limits(deadline_s=30)

    def test_while_streaming(self) -> None:
        seen = outcome([endless(then=text_chunk("tick "), wait_s=4)], self.LIMITS)
        assert (seen.result.stop_reason, seen.result.text) == ("deadline", "tick " * 7)
        assert seen.took_s == pytest.approx(30, abs=0.1)
        assert left_at(seen.connections[0]) == pytest.approx(30, abs=0.1)
        assert isinstance(seen.result.messages[-1], AssistantMessage)

    def test_while_waiting_for_the_first_token(self) -> None:
        seen = outcome([[Hang()]], self.LIMITS)
        assert (seen.result.stop_reason, seen.result.text) == ("deadline", "")
        assert left_at(seen.connections[0]) == pytest.approx(30, abs=0.1)

    def test_while_waiting_before_a_retry(self) -> None:
        busy = json_reply({}, status=429, headers={"Retry-After": "20"})
        seen = outcome([busy, busy, FINE], self.LIMITS)
        assert seen.result.stop_reason == "deadline"
        assert sum(isinstance(e, Retried) for e in seen.events) == 2
        assert (len(seen.requests), seen.took_s) == (2, pytest.approx(30, abs=0.1))

    def test_while_tools_run(self) -> None:
        seen = outcome(
            [sse(*reply(calls=[("slow", {"n": 1}), ("slow", {"n": 2}), ("write", {})]))], self.LIMITS, tools=[slow, write]
        )
        assert seen.result.stop_reason == "deadline"
        assert seen.took_s == pytest.approx(30, abs=0.1)
        assert ran == [1, 2]
        said = [message.content for message in seen.result.messages if isinstance(message, ToolMessage)]
        assert [text.split(".")[0] for text in said] == [
            "Interrupted",
            "Interrupted",
            "Not run: the run ended before this call was started",
        ]

    @pytest.mark.parametrize("calls", [1, 2])
    def test_a_tool_that_ignores_its_cancellation_is_left_behind(self, calls: int) -> None:
        async def main() -> None:
            stubborn_ended = asyncio.Event()

            @tool(concurrency="read_only")
            async def stubborn(n: int) -> str:
                """Go on whatever happens."""
                for _ in range(100):
                    try:
                        await asyncio.sleep(1)
                    except asyncio.CancelledError:
                        pass
                stubborn_ended.set()
                return "late"

            script = [sse(*reply(calls=[("stubborn", {"n": n}) for n in range(calls)]))]
            async with ByteServer(script) as server:
                result = await Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[stubborn], limits=self.LIMITS).run("Hi")
                assert result.stop_reason == "deadline"
                assert asyncio.get_running_loop().time() <= 31.1
                before = result.messages
                await stubborn_ended.wait()
                await asyncio.sleep(1)
                assert result.state.messages == before

        run_virtual(main())

    def test_it_counts_turns_tools_and_waits_together(self) -> None:
        turns = [[Wait(4), *sse(*reply(calls=[("nap", {"n": n})]))] for n in range(10)]

        @tool
        async def nap(n: int) -> str:
            """Sleep."""
            await asyncio.sleep(5)
            return str(n)

        seen = outcome([turns[0], turns[1], DOWN, *turns[2:]], self.LIMITS, tools=[nap])
        assert seen.result.stop_reason == "deadline"
        assert seen.result.turns in (3, 4)
        assert seen.took_s == pytest.approx(30, abs=0.1)

    def test_a_run_that_is_done_in_time_is_not_cut(self) -> None:
        assert outcome([[Wait(29), *FINE]], self.LIMITS).result.stop_reason == "end"


class TestTurns:
    def test_a_model_that_never_stops_calling(self) -> None:
        seen = outcome([sse(*reply(calls=[("write", {"n": n})])) for n in range(50)], Limits(), tools=[write])
        assert (seen.result.stop_reason, seen.result.turns, len(seen.requests)) == ("max_turns", 50, 50)
        assert len(ran) == 50
        assert isinstance(seen.result.messages[-1], ToolMessage)

    def test_an_answer_on_the_last_turn_is_an_end(self) -> None:
        seen = outcome([sse(*reply(calls=[("write", {})])), FINE], Limits(max_turns=2), tools=[write])
        assert seen.result.stop_reason == "end"

    def test_retries_are_no_turns(self) -> None:
        seen = outcome([DOWN, DOWN, FINE], Limits(max_turns=1), retry=RetryPolicy(first_wait_s=0))
        assert (seen.result.stop_reason, seen.result.turns) == ("end", 1)


class TestParallelTools:
    @pytest.mark.parametrize(("most", "took"), [(8, 3 * 50), (20, 50), (3, 7 * 50), (1, 20 * 50)])
    def test_read_only_calls_beyond_the_bound_queue(self, most: int, took: float) -> None:
        running = 0
        peak = 0

        @tool(concurrency="read_only")
        async def look(n: int) -> str:
            """Look."""
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(50)
            running -= 1
            return str(n)

        calls = sse(*reply(calls=[("look", {"n": n}) for n in range(20)]))
        seen = outcome([calls, FINE], Limits(parallel_tools=most), tools=[look])
        assert (seen.result.stop_reason, peak) == ("end", most)
        assert seen.took_s == pytest.approx(took, abs=1)
        results = [message.content for message in seen.result.messages if isinstance(message, ToolMessage)]
        assert results == [str(n) for n in range(20)]

    def test_the_default_is_8(self) -> None:
        assert Limits().parallel_tools == 8


class TestToolTime:
    def result(self, call: str, limits: Limits, *tools: Any) -> tuple[ToolMessage, float]:
        seen = outcome([sse(*reply(calls=[(call, {})])), FINE], limits, tools=tools)
        message = seen.result.messages[2]
        assert isinstance(message, ToolMessage)
        return message, seen.took_s

    def test_the_runs_limit(self) -> None:
        message, took_s = self.result("slow", Limits(tool_timeout_s=7), slow)
        assert (message.is_error, message.content.startswith("timed out after 7 s")) == (True, True)
        assert took_s == pytest.approx(7, abs=0.6)

    def test_the_default_is_two_minutes(self) -> None:
        @tool
        async def forever() -> None:
            """Never return."""
            await asyncio.sleep(10_000)

        message, took_s = self.result("forever", Limits(), forever)
        assert message.content.startswith("timed out after 120 s")
        assert took_s == pytest.approx(120, abs=0.6)

    @pytest.mark.parametrize("own", [3, 60])
    def test_a_tools_own_limit_wins(self, own: float) -> None:
        @tool(timeout_s=own)
        async def quick() -> str:
            """Take 40 s."""
            await asyncio.sleep(40)
            return "done"

        message, _ = self.result("quick", Limits(tool_timeout_s=7), quick)
        assert message.content.startswith("timed out after 3 s" if own == 3 else "done")

    def test_a_thread_that_does_not_end_is_left_behind(self) -> None:
        released = threading.Event()

        @tool(timeout_s=5)
        def block() -> str:
            """Block."""
            released.wait()
            return "late"

        async def main() -> RunResult:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualClockLoop)
            loop.quiescent.clear()
            async with ByteServer([sse(*reply(calls=[("block", {})])), FINE]) as server:
                try:
                    return await Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[block]).run("Hi")
                finally:
                    released.set()

        result = run_virtual(main())
        message = result.messages[2]
        assert isinstance(message, ToolMessage)
        assert (result.text, message.content.startswith("timed out after 5 s")) == ("Fine", True)


class TestResultSize:
    def message(self, value: str, limits: Limits = Limits(), *, fails: bool = False) -> tuple[ToolMessage, str]:
        @tool
        async def dump() -> str:
            """Write much."""
            if fails:
                raise ToolError(value)
            return value

        seen = outcome([sse(*reply(calls=[("dump", {})], usage=None)), FINE], limits, tools=[dump])
        message = seen.result.messages[2]
        assert isinstance(message, ToolMessage)
        return message, seen.requests[1]["messages"][-1]["content"]

    def test_at_the_bound_it_is_whole(self) -> None:
        message, sent = self.message("x" * 16_000)
        assert (message.content, message.full, sent) == ("x" * 16_000, None, "x" * 16_000)

    def test_beyond_it_head_and_tail_are_sent_and_all_is_kept(self) -> None:
        value = "".join(f"line {n}\n" for n in range(10_000))
        message, sent = self.message(value)
        assert message.full == value
        assert sent == message.content
        assert sent.startswith("line 0\n")
        assert sent.endswith("line 9999\n")
        head, tail = re.split(r"\n\[\.\.\. .* \.\.\.\]\n", sent)
        assert value.startswith(head + "\n")
        assert value.endswith("\n" + tail)
        assert len(sent) <= 16_000
        assert f"{len(value) - len(head) - len(tail):,} of {len(value):,} characters left out" in sent
        assert len(sent) > 15_900

    def test_what_is_kept_is_bounded_too(self) -> None:
        message, _ = self.message("x" * 5_000, Limits(tool_result_chars=100, tool_result_kept_chars=2_000))
        assert message.full == "x" * 2_000
        assert len(message.content) <= 100

    def test_errors_have_the_same_bound(self) -> None:
        message, sent = self.message("y" * 50_000, fails=True)
        assert message.is_error
        assert len(sent) <= 16_000 + len("Error: ")


class TestTimeouts:
    """Phase by phase in drivers/test_http.py; here, that the limits of a run get there."""

    def timed_out(self, exchange: Exchange, timeouts: Timeouts) -> tuple[ModelTimeout, float]:
        seen = outcome([exchange], Limits(timeouts=timeouts), retry=RetryPolicy(attempts=1))
        assert isinstance(seen.came, ModelTimeout)
        return seen.came, seen.took_s

    def test_first_token(self) -> None:
        error, took_s = self.timed_out([Hang()], Timeouts(first_token_s=5, first_token_ms_per_prompt_token=0))
        assert (error.phase, took_s) == ("first_token", pytest.approx(5, abs=0.1))

    def test_first_token_grows_with_the_prompt(self) -> None:
        _, took_s = self.timed_out([Hang()], Timeouts(first_token_s=5, first_token_ms_per_prompt_token=1000))
        assert 5 + 10 < took_s < 5 + 60

    def test_silence_is_not_broken_by_comments(self) -> None:
        comments = [step for _ in range(50) for step in (Wait(1), b": keep-alive\n\n")]
        error, took_s = self.timed_out(sse(text_chunk("Hel"), *comments, done=False), Timeouts(silence_s=9))
        assert (error.phase, took_s) == ("silence", pytest.approx(9, abs=0.1))

    def test_after_the_finish_nothing_more_is_needed(self) -> None:
        seen = outcome([sse(text_chunk("Hi"), finish_chunk(), Hang())], Limits(timeouts=Timeouts(after_finish_s=3)))
        assert (seen.result.text, seen.took_s) == ("Hi", pytest.approx(3, abs=0.1))


def _letters(n: int) -> str:
    """40 letters, 10 tokens by estimate, that are not the same twice."""
    return "".join("abcdefghij"[int(digit)] for digit in f"{n:040d}")


class TestCalibration:
    def turn(self, pieces: int, reported: int | None) -> list[Step]:
        usage = (10, reported) if reported is not None else None
        return sse(*reply(PIECE * pieces, usage=usage))

    @pytest.mark.parametrize(("reported", "kept"), [(200, 26), (100, 51), (50, 101), (None, 51), (100_000, 13), (1, 201)])
    def test_the_next_runs_bound_follows_the_servers_counts(self, reported: int | None, kept: int) -> None:
        """A bound of 500 tokens is 50 pieces by estimate; half as many, if a piece is 20 tokens to the server."""

        async def main() -> tuple[RunResult, float]:
            counting = (sse(text_chunk(_letters(n)), done=False)[1] for n in itertools.count())
            script: list[Any] = [self.turn(10, reported)] * 10 + [itertools.chain(sse(done=False)[:1], counting)]
            async with ByteServer(script) as server:
                driver = HttpDriver(ChatCodec(), server.url, "m")
                for _ in range(10):
                    await Agent(driver).run("Hi")
                limits = Limits(output_tokens_per_turn=500)
                return await Agent(driver, limits=limits).run("Hi"), driver.calibration.factor

        result, factor = run_virtual(main())
        assert result.stop_reason == "output_limit"
        assert 0.25 <= factor <= 4
        assert len(result.text) == kept * len(PIECE)

    def test_a_cut_turn_teaches_nothing(self) -> None:
        async def main() -> float:
            usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9000}}
            async with ByteServer([sse(usage, text_chunk(PIECE * 20), Hang())]) as server:
                driver = HttpDriver(ChatCodec(), server.url, "m")
                result = await Agent(driver, limits=Limits(output_tokens_per_turn=100)).run("Hi")
                assert result.stop_reason == "output_limit"
                return driver.calibration.factor

        assert run_virtual(main()) == 1

    def test_a_server_that_reports_no_usage_is_bounded_by_the_estimate(self) -> None:
        limits = Limits(output_tokens_per_turn=100)
        seen = outcome([sse(*reply(PIECE * 11, usage=None))], limits)
        assert seen.result.stop_reason == "output_limit"
        assert seen.replies()[0].usage.output_tokens is None


def test_bounds_of_one_run_can_differ_from_the_agents() -> None:
    async def main() -> None:
        async with ByteServer([sse(*reply(PIECE * 20)), sse(*reply(PIECE * 20))]) as server:
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), limits=Limits(output_tokens_per_turn=100))
            assert (await agent.run("Hi")).stop_reason == "output_limit"
            assert (await agent.run("Hi", limits=Limits())).stop_reason == "end"

    run_virtual(main())


def test_a_restarted_answer_is_bounded_anew_and_discarded_text_is_not_in_the_result() -> None:
    broken = sse(*[text_chunk(PIECE)] * 8, done=False)
    seen = outcome(
        [broken, FINE], Limits(output_tokens_per_turn=100), on_interrupted="restart", retry=RetryPolicy(first_wait_s=0)
    )
    assert (seen.result.stop_reason, seen.result.text) == ("end", "Fine")
    assert any(isinstance(e, Discarded) for e in seen.events)
