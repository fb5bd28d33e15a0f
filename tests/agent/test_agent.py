"""The loop over bytes on a real socket."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.harness import (
    ByteServer,
    Close,
    Exchange,
    Hang,
    Send,
    Wait,
    call_chunk,
    completion,
    data_line,
    finish_chunk,
    json_reply,
    reply,
    run_virtual,
    settled,
    sse,
    text_chunk,
    usage_chunk,
)
from treadle import (
    Agent,
    Asked,
    AssistantMessage,
    Ended,
    Event,
    Failed,
    HistoryError,
    HttpDriver,
    Limits,
    ModelTimeout,
    Options,
    Replied,
    RunResult,
    State,
    StreamTruncated,
    Text,
    TextDelta,
    ToolCallDelta,
    ToolDefinitionError,
    ToolError,
    ToolFinished,
    ToolMessage,
    ToolStarted,
    Usage,
    UsageError,
    UserMessage,
    messages_from_json,
    messages_to_json,
    tool,
)
from treadle.core.state import fold
from treadle.policy.recovery import RetryPolicy
from treadle.values.events import Fact
from treadle.values.history import check_history
from treadle.wire.chat import ChatCodec

ran: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@tool(concurrency="read_only")
async def look(what: str) -> str:
    """Look at something."""
    ran.append(what)
    await asyncio.sleep(1)
    return f"saw {what}"


@tool
async def write(path: str, text: str = "") -> str:
    """Write a file."""
    ran.append((path, text))
    await asyncio.sleep(1)
    return "written"


@tool(concurrency="read_only")
def count(n: int) -> int:
    """Count, in a thread."""
    ran.append(n)
    return n + 1


@tool
async def fail() -> None:
    """Fail."""
    raise ToolError("the disk is full")


@tool
async def crash() -> None:
    """Crash."""
    raise KeyError("x")


@tool(timeout_s=5)
async def hang() -> None:
    """Never return."""
    await asyncio.sleep(10_000)


TOOLS = (look, write, count, fail, crash, hang)


def agent_of(server: ByteServer, tools: Sequence[Any] = TOOLS, **settings: Any) -> Agent:
    settings = {"retry": RetryPolicy(attempts=1), **settings}
    return Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=tools, **settings)


def run(exchanges: Sequence[Exchange], prompt: str = "Hi", **settings: Any) -> tuple[RunResult, list[Event], list[Any]]:
    """A streamed run on the virtual clock: its result, its events, and the messages of each request."""

    async def main() -> tuple[RunResult, list[Event], list[Any]]:
        async with ByteServer(exchanges, check_prefix=True) as server:
            events: list[Event] = []
            async with agent_of(server, **settings).stream(prompt) as running:
                async for event in running:
                    events.append(event)
            return running.result, events, [request.json["messages"] for request in server.posts]

    return run_virtual(main())


def results(events: list[Event]) -> list[str]:
    return [e.result.content for e in events if isinstance(e, ToolFinished)]


def test_a_turn_of_text() -> None:
    result, events, requests = run([sse(*reply("Hello"))])
    assert (result.text, result.stop_reason, result.turns) == ("Hello", "end", 1)
    assert result.usage == Usage(input_tokens=10, output_tokens=5)
    assert result.messages == (UserMessage("Hi"), AssistantMessage((Text("Hello"),)))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "Hello"
    assert [type(e) for e in events if isinstance(e, Fact)] == [Asked, Replied, Ended]
    assert requests == [[{"role": "user", "content": "Hi"}]]


def test_the_text_alone() -> None:
    async def main() -> tuple[list[str], RunResult]:
        async with ByteServer([sse(*reply("Hel", calls=[("look", {"what": "a"})])), sse(*reply("lo"))]) as server:
            async with agent_of(server).stream("Hi") as running:
                return [text async for text in running.text_deltas()], running.result

    texts, result = run_virtual(main())
    assert "".join(texts) == "Hello"
    assert result.stop_reason == "end"


def test_two_read_only_tools_run_at_the_same_time() -> None:
    async def main() -> None:
        calls = [("look", {"what": "a"}), ("look", {"what": "b"})]
        async with ByteServer([sse(*reply("I look.", calls=calls)), sse(*reply("Done"))]) as server:
            result = await agent_of(server).run("Hi")
            assert asyncio.get_running_loop().time() == pytest.approx(1, abs=0.1)
        assert ran == ["a", "b"]
        assert result.text == "Done"
        assert server.posts[1].json["messages"][1:] == [
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"what": "a"}'}},
                    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"what": "b"}'}},
                ],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": "saw a"},
            {"role": "tool", "tool_call_id": "call_1", "content": "saw b"},
        ]

    run_virtual(main())


def test_exclusive_tools_run_alone_and_in_order() -> None:
    calls = [("look", {"what": "a"}), ("write", {"path": "p"}), ("write", {"path": "q"}), ("look", {"what": "b"})]
    _, events, _ = run([sse(*reply(calls=calls)), sse(*reply("Done"))])
    order = [(type(e).__name__, e.position) for e in events if isinstance(e, ToolStarted | ToolFinished)]
    assert order == [(kind, n) for n in range(4) for kind in ("ToolStarted", "ToolFinished")]


def test_results_go_back_in_call_order_whatever_finishes_first() -> None:
    @tool(concurrency="read_only")
    async def sleep(s: float) -> str:
        """Sleep."""
        await asyncio.sleep(s)
        return str(s)

    calls = [("sleep", {"s": 3}), ("sleep", {"s": 1}), ("sleep", {"s": 2})]
    _, events, requests = run([sse(*reply(calls=calls)), sse(*reply("Done"))], tools=[sleep])
    assert results(events) == ["1.0", "2.0", "3.0"]
    assert [m["content"] for m in requests[1][2:]] == ["3.0", "1.0", "2.0"]


def test_at_most_eight_run_at_a_time() -> None:
    running, most = 0, 0

    @tool(concurrency="read_only")
    async def busy(n: int) -> None:
        """Be busy."""
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(1)
        running -= 1

    run([sse(*reply(calls=[("busy", {"n": n}) for n in range(20)])), sse(*reply("Done"))], tools=[busy])
    assert most == 8


class TestWire:
    """Law 2 and law 4, end to end."""

    def test_two_parallel_calls_both_sent_as_index_0_run_both(self) -> None:
        stream = sse(
            call_chunk(0, id="x", name="look", arguments='{"what": "a"}'),
            call_chunk(0, id="y", name="look", arguments='{"what": "b"}'),
            finish_chunk("tool_calls"),
        )
        result, events, _ = run([stream, sse(*reply("Done"))])
        assert ran == ["a", "b"]
        assert results(events) == ["saw a", "saw b"]
        assert result.stop_reason == "end"

    def test_a_stream_without_a_stop_reason_is_truncated(self) -> None:
        with pytest.raises(StreamTruncated) as caught:
            run([sse(text_chunk("Hel"), text_chunk("lo"))])
        assert caught.value.result is not None
        result = caught.value.result
        assert (result.text, result.stop_reason, result.turns) == ("Hello", None, 0)
        assert result.messages == (UserMessage("Hi"), AssistantMessage((Text("Hello"),)))
        assert result.error is not None and result.error.kind == "StreamTruncated"

    def test_calls_of_a_truncated_stream_do_not_run(self) -> None:
        with pytest.raises(StreamTruncated):
            run([sse(call_chunk(0, id="x", name="write", arguments='{"path": "p"}'))])
        assert ran == []

    @pytest.mark.parametrize("arguments", ['{"path": "/srv/da', '{"path": "p"}'])
    def test_calls_of_a_turn_cut_by_length_do_not_run(self, arguments: str) -> None:
        cut = sse(call_chunk(0, id="x", name="write", arguments=arguments), finish_chunk("length"))
        result, _, _ = run([cut])
        assert ran == []
        assert result.stop_reason == "output_limit"
        (refused,) = [m for m in result.messages if isinstance(m, ToolMessage)]
        assert refused.is_error and "cut" in refused.content and arguments in refused.content

    def test_calls_of_a_turn_that_ended_for_an_unknown_reason_do_not_run_and_the_model_is_told(self) -> None:
        odd = sse(call_chunk(0, id="x", name="write", arguments='{"path": "p"}'), finish_chunk("because"))
        result, _, requests = run([odd, sse(*reply("Sorry"))])
        assert ran == []
        assert "unknown reason" in requests[1][2]["content"]
        assert (result.text, result.stop_reason) == ("Sorry", "end")

    def test_a_stream_of_keep_alive_comments_ends_in_a_typed_timeout(self) -> None:
        keepalive = [step for _ in range(500) for step in (Wait(2), Send(b"d\r\n: keepalive\n\n\r\n"))]

        async def main() -> None:
            async with ByteServer([sse(*keepalive, Hang())]) as server:
                with pytest.raises(ModelTimeout) as caught:
                    await agent_of(server).run("Hi")
                assert caught.value.phase == "first_token"
                left = asyncio.get_running_loop().time()
                assert 300 <= left <= 305  # 300 s and 10 ms for each token of the tool list
                await settled()
                assert server.connections[0].client_closed_at == pytest.approx(left, abs=0.1)

        run_virtual(main())

    def test_stop_with_calls_runs_them(self) -> None:
        result, _, _ = run([sse(*reply(calls=[("look", {"what": "a"})], finish="stop")), sse(*reply("Done"))])
        assert (ran, result.text) == (["a"], "Done")

    def test_plain_json_with_calls(self) -> None:
        result, _, _ = run([json_reply(completion(None, calls=[("look", {"what": "a"})])), json_reply(completion("Done"))])
        assert (ran, result.text, result.usage.input_tokens) == (["a"], "Done", 20)

    def test_text_that_quotes_a_call_never_runs_it(self) -> None:
        quoted = 'I will not run <tool_call>{"name": "write", "arguments": {"path": "/etc/x"}}</tool_call>.'
        result, _, _ = run([sse(*reply(quoted))])
        assert (ran, result.text, result.stop_reason) == ([], quoted, "end")

    def test_usage_that_one_turn_did_not_report_is_unknown_in_all(self) -> None:
        calls = [("count", {"n": 1})]
        result, _, _ = run([sse(*reply(calls=calls)), sse(*reply("Done", usage=None))])
        assert result.usage == Usage()

    def test_an_empty_answer_leaves_a_valid_history(self) -> None:
        result, _, _ = run([sse(finish_chunk("stop"))])
        assert (result.text, result.stop_reason, result.messages) == ("", "end", (UserMessage("Hi"),))

    def test_a_refusal(self) -> None:
        assert run([sse(text_chunk("No."), finish_chunk("content_filter"))])[0].stop_reason == "refused"


class TestTools:
    @pytest.mark.parametrize(
        ("name", "arguments", "said"),
        [
            ("nothing", "{}", "there is no tool named 'nothing'. Tools: count, crash, fail, hang, look, write."),
            ("write", '{"path": "p"', "invalid arguments"),
            ("write", '{"path": 3}', "invalid arguments"),
            ("write", '{"path": "p", "path": "q"}', "invalid arguments"),
            ("write", '{"path": "p", "mode": 7}', "invalid arguments"),
            ("write", "{'path': 'p'}", "invalid arguments"),
            ("write", "[]", "invalid arguments"),
        ],
    )
    def test_a_call_that_fails_a_gate_does_not_start_and_the_model_is_told(self, name: str, arguments: str, said: str) -> None:
        stream = sse(call_chunk(0, id="x", name=name, arguments=arguments), finish_chunk("tool_calls"))
        _, events, requests = run([stream, sse(*reply("Sorry"))])
        assert ran == []
        assert not any(isinstance(e, ToolStarted) for e in events)
        assert requests[1][2]["content"].startswith(f"Error: {said}")

    @pytest.mark.parametrize(
        ("name", "said"),
        [("fail", "Error: the disk is full"), ("crash", "Error: KeyError: 'x'"), ("hang", "Error: timed out after 5 s")],
    )
    def test_a_failure_is_a_result(self, name: str, said: str) -> None:
        result, _, requests = run([sse(*reply(calls=[(name, {})])), sse(*reply("Sorry"))])
        assert requests[1][2]["content"].startswith(said)
        assert result.stop_reason == "end"

    def test_a_sync_function_runs_in_a_thread(self) -> None:
        result, events, _ = run([sse(*reply(calls=[("count", {"n": 1}), ("count", {"n": 2})])), sse(*reply("Done"))])
        assert sorted(results(events)) == ["2", "3"]
        assert result.text == "Done"

    def test_no_arguments_at_all(self) -> None:
        stream = sse(call_chunk(0, id="x", name="fail", arguments=""), finish_chunk("tool_calls"))
        _, events, _ = run([stream, sse(*reply("Sorry"))])
        assert results(events) == ["the disk is full"]

    def test_a_long_result_is_cut_and_kept(self) -> None:
        @tool
        def big() -> str:
            """Return a lot."""
            return "head" + "x" * 100_000 + "tail"

        result, _, requests = run([sse(*reply(calls=[("big", {})])), sse(*reply("Done"))], tools=[big])
        read = requests[1][2]["content"]
        head, said, tail = read.split("\n")
        assert head.startswith("head") and tail.endswith("tail") and len(read) <= 16_000
        assert said == f"[... {100_008 - len(head) - len(tail):,} of 100,008 characters left out ...]"
        kept = next(m for m in result.messages if isinstance(m, ToolMessage))
        assert kept.full is not None and len(kept.full) == 100_008

    @pytest.mark.parametrize(
        ("value", "said"),
        [(None, "(done, no output)"), ("a", "a"), (7, "7"), ([1, {"a": None}], '[1,{"a":null}]'), (b"x", '"eA=="')],
    )
    def test_return_values(self, value: Any, said: str) -> None:
        @tool
        async def give() -> Any:
            """Give."""
            return value

        assert results(run([sse(*reply(calls=[("give", {})])), sse(*reply("Done"))], tools=[give])[1]) == [said]

    def test_a_result_that_is_not_json_is_an_error_that_says_the_tool_ran(self) -> None:
        @tool
        async def give() -> Any:
            """Give."""
            return object()

        (said,) = results(run([sse(*reply(calls=[("give", {})])), sse(*reply("Done"))], tools=[give])[1])
        assert said.startswith("the tool ran, but its result (a object) cannot be written as JSON")

    def test_the_tool_list_that_is_sent(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("a"))]) as server:
                await agent_of(server, tools=[look]).run("Hi")
                (sent,) = server.posts[0].json["tools"]
                assert sent == {
                    "type": "function",
                    "function": {
                        "name": "look",
                        "description": "Look at something.",
                        "parameters": {
                            "type": "object",
                            "properties": {"what": {"type": "string"}},
                            "required": ["what"],
                            "additionalProperties": False,
                        },
                    },
                }

        run_virtual(main())

    def test_two_tools_of_one_name_are_refused(self) -> None:
        with pytest.raises(ToolDefinitionError, match="'look'"):
            Agent(HttpDriver(ChatCodec(), "http://h/v1", "m"), tools=[look, look])


class TestEndings:
    def test_max_turns(self) -> None:
        result, _, requests = run([sse(*reply(calls=[("count", {"n": n})])) for n in range(3)], limits=Limits(max_turns=3))
        assert (result.stop_reason, result.turns, len(requests)) == ("max_turns", 3, 3)
        check_history(result.messages)

    def test_failed_is_the_last_event_and_then_the_iterator_raises(self) -> None:
        async def main() -> None:
            async with ByteServer([[Close()]]) as server:
                events: list[Event] = []
                with pytest.raises(Exception) as caught:
                    async with agent_of(server).stream("Hi") as running:
                        async for event in running:
                            events.append(event)
                assert [type(e) for e in events] == [Asked, Failed]
                assert running.result.error == events[-1].error  # type: ignore[union-attr]
                assert caught.value.result == running.result  # type: ignore[attr-defined]

        run_virtual(main())

    def test_run_equals_a_drained_stream(self) -> None:
        script = lambda: [sse(*reply("a", calls=[("look", {"what": "a"}), ("count", {"n": 1})])), sse(*reply("Done"))]  # noqa: E731
        streamed, _, _ = run(script())

        async def main() -> RunResult:
            async with ByteServer(script()) as server:
                return await agent_of(server).run("Hi")

        drained = run_virtual(main())
        assert (drained.messages, drained.text, drained.usage, drained.stop_reason) == (
            streamed.messages,
            streamed.text,
            streamed.usage,
            streamed.stop_reason,
        )

    def test_a_conversation_goes_on(self) -> None:
        async def main() -> None:
            async with ByteServer(
                [sse(*reply(calls=[("count", {"n": 1})])), sse(*reply("b")), sse(*reply("c"))], check_prefix=True
            ) as server:
                agent = agent_of(server, instructions="Be brief.")
                first = await agent.run("Hi")
                history = messages_from_json(messages_to_json(first.messages))
                assert history == first.messages
                second = await agent.run("And?", history=history)
                assert second.text == "c" and second.turns == 1
                assert [m["role"] for m in server.posts[2].json["messages"]] == [
                    "system", "user", "assistant", "tool", "assistant", "user",
                ]  # fmt: skip

        run_virtual(main())

    def test_an_item_that_is_no_message_is_refused_with_its_index(self) -> None:
        with pytest.raises(HistoryError, match="item 1 of the history is a str"):
            Agent(HttpDriver(ChatCodec(), "http://h/v1", "m")).stream("Hi", history=[UserMessage("a"), "b"])  # type: ignore[list-item]

    def test_run_sync(self) -> None:
        async def inside() -> None:
            Agent(HttpDriver(ChatCodec(), "http://127.0.0.1:9/v1", "m")).run_sync("Hi")

        with pytest.raises(UsageError, match="running event loop"):
            asyncio.run(inside())

    def test_options_and_limits_of_one_run(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply(calls=[("count", {"n": 1})]))]) as server:
                agent = agent_of(server, options=Options(temperature=1.0))
                result = await agent.run("Hi", options=Options(temperature=0.5), limits=Limits(max_turns=1))
                assert server.posts[0].json["temperature"] == 0.5
                assert result.stop_reason == "max_turns"

        run_virtual(main())


class Journal:
    """Keeps facts in memory, and checks that nobody saw one before it was here."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.facts: list[Fact] = []
        self.fail_at = fail_at

    async def append(self, run_id: str, fact: Fact) -> None:
        await asyncio.sleep(0.01)
        if self.fail_at is not None and len(self.facts) >= self.fail_at:
            raise OSError("disk full")
        self.facts.append(fact)


class TestJournal:
    SCRIPT = staticmethod(lambda: [sse(*reply("a", calls=[("look", {"what": "a"}), ("count", {"n": 1})])), sse(*reply("Done"))])

    def test_facts_are_kept_before_they_are_shown_and_fold_to_the_state(self) -> None:
        journal = Journal()

        async def main() -> State:
            async with ByteServer(self.SCRIPT()) as server:
                async with agent_of(server, journal=journal).stream("Hi") as running:
                    async for event in running:
                        if isinstance(event, Fact):
                            assert event in journal.facts
            return running.result.state

        state = run_virtual(main())
        assert fold(journal.facts) == state

    def test_every_prefix_of_a_journal_is_a_valid_conversation(self) -> None:
        journal = Journal()

        async def main() -> None:
            async with ByteServer(self.SCRIPT()) as server:
                await agent_of(server, journal=journal).run("Hi")

        run_virtual(main())
        for length in range(1, len(journal.facts) + 1):
            check_history(fold(journal.facts[:length]).messages)

    @pytest.mark.parametrize("fail_at", range(8))
    def test_a_full_disk_ends_the_run_with_one_ending(self, fail_at: int) -> None:
        async def main() -> None:
            async with ByteServer(self.SCRIPT(), check=False) as server:
                events: list[Event] = []
                with pytest.raises(OSError, match="disk full"):
                    async with agent_of(server, journal=Journal(fail_at)).stream("Hi") as running:
                        async for event in running:
                            events.append(event)
                assert [type(e) for e in events if isinstance(e, Ended | Failed)] == [Failed]
                assert isinstance(events[-1], Failed)
                check_history(running.result.messages)

        run_virtual(main())


class TestLeaving:
    """Law 8 from each surface, wherever the run stands."""

    SCRIPT = staticmethod(
        lambda: [
            sse(text_chunk("Hel"), Wait(1), text_chunk("lo"), Wait(1), call_chunk(0, id="x", name="look", arguments='{"what"'), Wait(1),
                call_chunk(0, arguments=': "a"}'), call_chunk(1, id="y", name="look", arguments='{"what": "b"}'), finish_chunk("tool_calls")),
            [Wait(1), *sse(text_chunk("Done"), finish_chunk(), Wait(1), usage_chunk(1, 1))],
        ]
    )  # fmt: skip

    def check(self, server: ByteServer, result: RunResult, left: float) -> None:
        assert result.stop_reason == "cancelled"
        check_history(result.messages)
        assert sum(isinstance(m, AssistantMessage) for m in result.messages) <= 2
        for connection in server.connections:
            assert connection.client_closed_at is not None and connection.client_closed_at - left <= 0.1

    @pytest.mark.parametrize("tenths", range(0, 60, 2))
    def test_leaving_the_block(self, tenths: int) -> None:
        async def main() -> None:
            async with ByteServer(self.SCRIPT(), check=False) as server:
                journal = Journal()
                async with agent_of(server, journal=journal).stream("Hi") as running:
                    await asyncio.sleep(tenths / 10)
                left = asyncio.get_running_loop().time()
                await settled()
                self.check(server, running.result, left)
                if journal.facts:  # left before the first step: nothing was asked, so nothing is kept
                    assert isinstance(journal.facts[-1], Ended)

        run_virtual(main())

    @pytest.mark.parametrize("tenths", range(0, 60, 2))
    def test_cancelling_the_task_of_run(self, tenths: int) -> None:
        async def main() -> None:
            async with ByteServer(self.SCRIPT(), check=False) as server:
                task = asyncio.create_task(agent_of(server).run("Hi"))
                await asyncio.sleep(tenths / 10)
                left = asyncio.get_running_loop().time()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await settled()
                for connection in server.connections:
                    assert connection.client_closed_at is not None and connection.client_closed_at - left <= 0.1

        run_virtual(main())

    @pytest.mark.parametrize("tenths", range(0, 60, 4))
    def test_cancel_gives_the_ending_as_an_event(self, tenths: int) -> None:
        async def main() -> None:
            async with ByteServer(self.SCRIPT(), check=False) as server:
                async with agent_of(server).stream("Hi") as running:
                    asyncio.get_running_loop().call_later(tenths / 10, lambda: asyncio.ensure_future(running.cancel()))
                    events = [event async for event in running]
                    left = tenths / 10
                    assert events[-1] == Ended(stop_reason="cancelled", partial=running.result.state.partial)
                await settled()
                self.check(server, running.result, left)

        run_virtual(main())

    def test_dropping_the_stream(self) -> None:
        async def main() -> None:
            async with ByteServer(self.SCRIPT(), check=False) as server:
                running = agent_of(server).stream("Hi")
                async for event in running:
                    if isinstance(event, TextDelta):
                        break
                left = asyncio.get_running_loop().time()
                del running
                gc.collect()
                await settled()
                assert server.connections[0].client_closed_at == pytest.approx(left, abs=0.1)

        run_virtual(main())

    def test_a_timeout_around_the_run(self) -> None:
        async def main() -> None:
            async with ByteServer(self.SCRIPT(), check=False) as server:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.5), agent_of(server).stream("Hi") as running:
                        async for _ in running:
                            pass
                await settled()
                self.check(server, running.result, 1.5)
                assert running.result.text == "Hello"

        run_virtual(main())

    def test_a_call_that_had_started_is_said_to_be_interrupted_and_the_conversation_goes_on(self) -> None:
        async def main() -> None:
            async with ByteServer([*self.SCRIPT()[:1], sse(*reply("Fine"))]) as server:
                agent = agent_of(server)
                async with agent.stream("Hi") as running:
                    async for event in running:
                        if isinstance(event, ToolStarted) and event.position == 1:
                            break
                after = await agent.run("Go on", history=running.result.messages)
                assert after.text == "Fine"
                said = [m["content"] for m in server.posts[1].json["messages"] if m["role"] == "tool"]
                assert len(said) == 2 and all(s.startswith("Error: Interrupted. The call had started") for s in said)

        run_virtual(main())

    def test_reading_on_after_the_end_stops(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("a"))]) as server:
                async with agent_of(server).stream("Hi") as running:
                    assert [e async for e in running]
                    assert [e async for e in running] == []
                assert [e async for e in running] == []

        run_virtual(main())

    def test_no_result_before_the_end(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("a"))]) as server:
                running = agent_of(server).stream("Hi")
                with pytest.raises(UsageError, match="not ended"):
                    _ = running.result
                async with running:
                    async for _ in running:
                        pass

        run_virtual(main())


def test_a_slow_watcher_slows_nobody_and_loses_nothing() -> None:
    async def main() -> None:
        tokens = [step for n in range(300) for step in (text_chunk(f"{n} "), Wait(0.01))]
        async with ByteServer([sse(*tokens, finish_chunk())]) as server:
            async with agent_of(server).stream("Hi") as running:
                texts: list[str] = []
                async for event in running:
                    if isinstance(event, TextDelta):
                        texts.append(event.text)
                        await asyncio.sleep(1)
            assert "".join(texts) == "".join(f"{n} " for n in range(300)) == running.result.text
            assert len(texts) < 10
            assert (server.connections[0].client_closed_at or 0) < 12

    run_virtual(main())


def test_arguments_are_shown_as_they_come() -> None:
    _, events, _ = run([sse(*reply(calls=[("look", {"what": "abc"})])), sse(*reply("Done"))])
    deltas = [e for e in events if isinstance(e, ToolCallDelta)]
    assert json.loads("".join(d.arguments for d in deltas)) == {"what": "abc"}
    assert {(d.turn, d.position, d.name) for d in deltas} == {(1, 0, "look")}


def test_a_broken_data_line_after_text_is_a_typed_error_with_the_partial_text() -> None:
    with pytest.raises(Exception) as caught:
        run([sse(text_chunk("Hel"), data_line("x")[:-3] + b"\n\n")])
    assert type(caught.value).__name__ == "BadStream"
    assert caught.value.result.text == "Hel"  # type: ignore[attr-defined]
