"""What a hostile review found, each as a test: tools, journals, readers and servers that do their worst."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import Any

import pytest

from tests.harness import (
    ByteServer,
    Close,
    Exchange,
    Hang,
    Reset,
    Send,
    Wait,
    call_chunk,
    finish_chunk,
    json_reply,
    reply,
    run_virtual,
    settled,
    sse,
    text_chunk,
)
from treadle import (
    Agent,
    Asked,
    AssistantMessage,
    Cooldown,
    Discarded,
    Ended,
    Event,
    Fact,
    Failed,
    GuardLimits,
    HttpDriver,
    InvalidRequest,
    Limits,
    ModelTimeout,
    Options,
    Replied,
    Retried,
    RetryPolicy,
    RunResult,
    StreamTruncated,
    Text,
    TextDelta,
    Timeouts,
    ToolFinished,
    UsageError,
    UserMessage,
    event_from_json,
    event_to_json,
    tool,
)
from treadle.core.state import fold
from treadle.tools.execution import left_behind
from treadle.values.history import check_history
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import Dialect


def agent_of(server: ByteServer, *tools: Any, **settings: Any) -> Agent:
    return Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=tools, **{"retry": RetryPolicy(attempts=1), **settings})


def calls(name: str, then: Exchange | None = None) -> list[Exchange]:
    return [sse(*reply(calls=[(name, {})])), then or sse(*reply("Done"))]


class Abort(BaseException):
    pass


class TestTools:
    @pytest.mark.parametrize(
        "error", [Abort("x"), SystemExit(3), BaseExceptionGroup("g", [Abort()]), asyncio.CancelledError(), TimeoutError("own")]
    )
    @pytest.mark.parametrize("threaded", [False, True])
    def test_whatever_a_tool_raises_is_its_result(self, error: BaseException, threaded: bool) -> None:
        @tool
        async def boom() -> str:
            """Raise."""
            raise error

        @tool(name="boom")
        def boom_in_thread() -> str:
            """Raise in a thread."""
            raise error

        async def main() -> None:
            async with ByteServer(calls("boom")) as server:
                async with agent_of(server, boom_in_thread if threaded else boom).stream("Hi") as run:
                    events = [event async for event in run]
                (finished,) = [e for e in events if isinstance(e, ToolFinished)]
                assert finished.result.is_error and type(error).__name__ in finished.result.content
                assert run.result.text == "Done"

        run_virtual(main())

    def test_a_tool_that_swallows_its_cancellation_does_not_swallow_the_runs(self) -> None:
        @tool
        async def polite() -> str:
            """Clean up."""
            try:
                await asyncio.sleep(50)
            except asyncio.CancelledError:
                return "cleaned up"
            return "never"

        async def main() -> None:
            async with ByteServer(calls("polite"), check=False) as server:
                task = asyncio.create_task(agent_of(server, polite).run("Hi"))
                await asyncio.sleep(10)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert asyncio.get_running_loop().time() <= 11
                assert len(server.posts) == 1

        run_virtual(main())

    @pytest.mark.parametrize("how", ["leave", "cancel", "timeout"])
    def test_a_tool_that_ignores_its_cancellation_is_left_behind(self, how: str) -> None:
        release = False

        @tool(timeout_s=5)
        async def stubborn() -> str:
            """Never stop."""
            while not release:
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    pass
            return "at last"

        async def main() -> None:
            nonlocal release
            loop = asyncio.get_running_loop()
            async with ByteServer(calls("stubborn"), check=False) as server:
                events: list[Event] = []
                async with agent_of(server, stubborn).stream("Hi") as run:
                    async for event in run:
                        events.append(event)
                        if how == "leave" and type(event).__name__ == "ToolStarted":
                            break
                        if how == "cancel" and type(event).__name__ == "ToolStarted":
                            loop.call_later(1, lambda: asyncio.ensure_future(run.cancel()))
                assert loop.time() <= {"leave": 1.0, "cancel": 2.0, "timeout": 6.0}[how]
                assert any("stubborn" in name for name in left_behind())
                result = run.result
                assert result.stop_reason == ("end" if how == "timeout" else "cancelled")
                check_history(result.messages)
                release = True
                await asyncio.sleep(3)
                assert run.result == result, "what it does later is not part of the run"
                assert left_behind() == ()

        run_virtual(main())

    def test_a_result_or_an_error_that_fails_in_its_own_way(self) -> None:
        class Rude(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no")

        class Model:
            def model_dump(self, mode: str) -> Any:
                raise RuntimeError("no")

        @tool
        async def first() -> Any:
            """Return something rude."""
            return Model()

        @tool
        async def second() -> Any:
            """Raise something rude."""
            raise Rude

        async def main() -> None:
            script = [sse(*reply(calls=[("first", {}), ("second", {})])), sse(*reply("Done"))]
            async with ByteServer(script) as server:
                assert (await agent_of(server, first, second).run("Hi")).text == "Done"

        run_virtual(main())

    def test_a_file_name_that_is_no_text(self) -> None:
        @tool
        async def name() -> str:
            """Name a file."""
            return os.fsdecode(b"caf\xe9.txt")

        async def main() -> None:
            async with ByteServer(calls("name")) as server:
                result = await agent_of(server, name).run("Hi")
                assert result.text == "Done"
                assert server.posts[1].json["messages"][-1]["content"] == "caf\\udce9.txt"

        run_virtual(main())

    @pytest.mark.parametrize(
        ("made", "field"),
        [
            (lambda: Limits(parallel_tools=0), "parallel_tools"),
            (lambda: Limits(max_turns="5"), "max_turns"),  # type: ignore[arg-type]
            (lambda: Limits(tool_result_chars=-5), "tool_result_chars"),
            (lambda: Timeouts(silence_s=-1), "silence_s"),
            (lambda: Timeouts(connect_s=float("nan")), "connect_s"),
            (lambda: GuardLimits(repeats_stop=0), "repeats_stop"),
            (lambda: RetryPolicy(attempts=0), "attempts"),
            (lambda: Cooldown("ollama/x", failures=0), "failures"),
        ],
    )
    def test_a_bound_that_cannot_work_is_refused_where_it_is_written(self, made: Any, field: str) -> None:
        with pytest.raises(UsageError, match=field):
            made()


class TestEndings:
    def test_an_empty_last_turn_is_empty_and_not_an_older_answer(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(finish_chunk("stop"))]) as server:
                history = [UserMessage("q"), AssistantMessage((Text("OLD ANSWER"),))]
                assert (await agent_of(server).run("new", history=history)).text == ""

        run_virtual(main())

    def test_an_unknown_reason_for_nothing_ends_the_run(self) -> None:
        @tool(concurrency="read_only")
        async def look() -> str:
            """Look."""
            return "seen"

        async def main() -> None:
            async with ByteServer(calls("look", sse(finish_chunk("weird")))) as server:
                assert (await agent_of(server, look).run("Hi")).stop_reason == "end"

        run_virtual(main())

    def test_cancel_before_the_start_is_kept(self) -> None:
        async def main() -> None:
            async with ByteServer([]) as server:
                run = agent_of(server).stream("Hi")
                await run.cancel()
                assert run.result.stop_reason == "cancelled"
                async with run:
                    await asyncio.sleep(1)
                    assert [e async for e in run] == [Ended(stop_reason="cancelled")]
                assert [e async for e in run] == []
                assert server.posts == []

        run_virtual(main())

    def test_two_readers_of_one_run(self) -> None:
        async def main() -> None:
            async with ByteServer([[Wait(5), *sse(*reply("a"))]]) as server:
                async with agent_of(server).stream("Hi") as run:

                    async def read() -> int:
                        return len([event async for event in run])

                    first = asyncio.create_task(read())
                    await asyncio.sleep(1)
                    with pytest.raises(UsageError, match="two tasks"):
                        await read()
                    assert await first

        run_virtual(main())

    def test_every_event_of_a_run_survives_json(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("a", thinking="hm", calls=[("f", {})])), sse(*reply("b"))]) as server:
                async with agent_of(server).stream("Hi") as run:
                    events = [event async for event in run]
            assert [event_from_json(event_to_json(event)) for event in events] == events

        run_virtual(main())
        with pytest.raises(UsageError, match="not an event"):
            event_from_json('{"type": "news_from_the_future"}')


class Slow:
    """A journal that writes, then takes its time."""

    def __init__(self, kind: type[Fact] | None = None, takes_s: float = 0.0) -> None:
        self.facts: list[Fact] = []
        self.kind = kind
        self.takes_s = takes_s

    async def append(self, run_id: str, fact: Fact) -> None:
        self.facts.append(fact)
        if self.kind is not None and isinstance(fact, self.kind):
            await asyncio.sleep(self.takes_s)


class TestJournals:
    @pytest.mark.parametrize("kind", [Asked, Replied, Ended])
    def test_a_journal_that_blocks_does_not_make_a_run_uncancellable(self, kind: type[Fact]) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("a"))], check=False) as server:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(5):
                        await agent_of(server, journal=Slow(kind, 6000)).run("Hi")
                assert asyncio.get_running_loop().time() <= 6

        run_virtual(main())

    def test_a_slow_journal_still_gets_the_failure(self) -> None:
        async def main() -> None:
            journal = Slow(Failed, 3)
            async with ByteServer([json_reply({}, status=400)]) as server:
                with pytest.raises(InvalidRequest):
                    await agent_of(server, journal=journal).run("Hi")
            assert [type(fact) for fact in journal.facts] == [Asked, Failed]

        run_virtual(main())

    @pytest.mark.parametrize("kind", [Asked, Replied, Ended])
    def test_leaving_while_a_fact_is_being_written_leaves_journal_and_state_agreed(self, kind: type[Fact]) -> None:
        async def main() -> None:
            journal = Slow(kind, 0.2)
            async with ByteServer([sse(*reply("a"))], check=False) as server:
                async with agent_of(server, journal=journal).stream("Hi") as run:
                    while not any(isinstance(fact, kind) for fact in journal.facts):
                        await asyncio.sleep(0.01)
            assert fold(journal.facts) == run.result.state
            assert sum(isinstance(fact, Ended | Failed) for fact in journal.facts) == 1

        run_virtual(main())

    def test_text_that_was_discarded_is_no_partial_answer_if_the_run_is_left_before_the_next_attempt(self) -> None:
        async def main() -> None:
            journal = Slow(Retried, 1)
            script = [
                sse(text_chunk("Hello"), done=False),
                json_reply({"error": {"message": "prefill is incompatible"}}, status=400),
            ]
            async with ByteServer(script) as server:
                driver = HttpDriver(ChatCodec(Dialect(continues={})), server.url, "m")
                agent = Agent(driver, retry=RetryPolicy(first_wait_s=0), journal=journal)
                server.check_history = False  # the request that goes on ends with the partial answer
                async with agent.stream("Hi", on_interrupted="continue") as run:
                    while sum(isinstance(fact, Retried) for fact in journal.facts) < 2:
                        await asyncio.sleep(0.01)
            assert any(isinstance(fact, Discarded) for fact in journal.facts)
            assert run.result.text == ""
            assert run.result.messages == (UserMessage("Hi"),)

        run_virtual(main())


class TestServers:
    def test_a_call_begun_after_the_reason_and_cut_does_not_run(self) -> None:
        ran: list[int] = []

        @tool
        async def pay(n: int = 5) -> str:
            """Pay."""
            ran.append(n)
            return "ok"

        async def main() -> None:
            begun = sse(
                text_chunk("x"), finish_chunk("stop"), call_chunk(0, id="x", name="pay", arguments=""), Close(), done=False
            )
            async with ByteServer([begun]) as server:
                with pytest.raises(StreamTruncated):
                    await agent_of(server, pay).run("Hi")
            assert ran == []

        run_virtual(main())

    def test_a_reason_on_every_chunk_proves_nothing(self) -> None:
        async def main() -> None:
            said = [
                {"choices": [{"index": 0, "delta": {"content": w}, "finish_reason": "stop"}]} for w in ("The ", "answer ", "is ")
            ]
            async with ByteServer([sse(*said, Wait(3), Reset(), done=False), sse(*said, *said)]) as server:
                with pytest.raises(StreamTruncated):
                    await agent_of(server).run("Hi")
                assert (await agent_of(server).run("Hi")).text == "The answer is " * 2

        run_virtual(main())

    def test_bytes_after_the_end_mark_do_not_keep_the_run_alive(self) -> None:
        async def main() -> None:
            more = [step for _ in range(4000) for step in (b": ka\n\n", Wait(0.09))]
            async with ByteServer([sse(*reply("hello"), b"data: [DONE]\n\n", *more, done=False)]) as server:
                assert (await agent_of(server).run("Hi")).text == "hello"
            assert asyncio.get_running_loop().time() < 1

        run_virtual(main())

    def test_broken_chunk_framing_is_noticed_at_once(self) -> None:
        async def main() -> None:
            broken = [*sse(text_chunk("a"), done=False)[:-1], Send(b"zz\r\n"), Hang()]
            async with ByteServer([broken]) as server:
                with pytest.raises(StreamTruncated):
                    await agent_of(server).run("Hi")
            assert asyncio.get_running_loop().time() < 1

        run_virtual(main())

    @pytest.mark.parametrize("megabytes", [0.5, 4])
    def test_a_cancelled_upload_is_cut_off(self, megabytes: float) -> None:
        async def main() -> None:
            gone = asyncio.Event()

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                transport = writer.transport
                assert isinstance(transport, asyncio.ReadTransport)
                transport.pause_reading()
                await asyncio.sleep(10.1)  # the client has left by now
                transport.resume_reading()
                try:
                    while await reader.read(2**20):
                        pass
                except ConnectionError:
                    pass
                writer.close()
                gone.set()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            agent = Agent(HttpDriver(ChatCodec(), f"http://127.0.0.1:{port}/v1", "m"))
            task = asyncio.create_task(agent.run("x" * int(megabytes * 2**20)))
            await asyncio.sleep(10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(1):
                await gone.wait()
            server.close()
            await server.wait_closed()

        run_virtual(main())

    def test_a_watcher_that_blocks_the_loop_is_no_silence_of_the_server(self) -> None:
        def serve(listener: socket.socket) -> None:
            with listener, listener.accept()[0] as line:
                while b"\r\n\r\n" not in line.recv(65536, socket.MSG_PEEK):
                    pass
                for step in sse(*[step for _ in range(12) for step in (text_chunk("a"), Wait(0.1))], finish_chunk()):
                    if isinstance(step, Send):
                        line.sendall(step.data)
                    elif isinstance(step, Wait):
                        time.sleep(step.seconds)  # real time, in a thread: the loop below is a real one that blocks

        async def main() -> str:
            limits = Limits(timeouts=Timeouts(silence_s=0.5, first_token_s=0.5, first_token_ms_per_prompt_token=0))
            listener = socket.create_server(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            thread = threading.Thread(target=serve, args=(listener,))
            thread.start()
            agent = Agent(HttpDriver(ChatCodec(), url, "m"), limits=limits, retry=RetryPolicy(attempts=1))
            async with agent.stream("Hi") as run:
                async for event in run:
                    if isinstance(event, TextDelta):
                        time.sleep(0.8)
            thread.join()
            return run.result.text

        assert asyncio.run(main()) == "a" * 12


class TestSecrets:
    CANARY = "c4n4ry"

    def everything(self, error: BaseException) -> str:
        """What a log of the error, its causes and its notes would show."""
        shown = ""
        at: BaseException | None = error
        while at is not None:
            shown += f"{at}|{at!r}|{getattr(at, '__notes__', '')}"
            at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
        return shown

    @pytest.mark.parametrize(
        "exchange",
        [
            [Send(b"HTTP/1.1 garbage c4n4ry\r\n\r\n"), Close()],
            json_reply({"error": {"message": "c4n4ry"}}, status=400),
            json_reply({"error": {"message": "c4n4ry"}}),
            json_reply(b"<html>c4n4ry"),
            sse(b"data: {c4n4ry\n\n"),
            sse(b'data: {"choices":[{"delta":{"content":"c4n4ry\xff"}}]}\n\n'),
            [Close()],
        ],
    )
    def test_no_error_shows_the_key_the_prompt_or_what_the_server_said(
        self, exchange: Exchange, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(0)

        async def main() -> None:
            async with ByteServer([exchange]) as server:
                driver = HttpDriver(ChatCodec(), server.url, "m", api_key=f"key-{self.CANARY}")
                options = Options(extra_headers={"X-Key": self.CANARY})
                agent = Agent(driver, retry=RetryPolicy(attempts=1), options=options, instructions=self.CANARY)
                with pytest.raises(Exception) as caught:
                    await agent.run(f"prompt {self.CANARY}")
                assert self.CANARY not in self.everything(caught.value)
                assert self.CANARY not in f"{agent!r}{driver!r}{options!r}"

        run_virtual(main())
        assert self.CANARY not in caplog.text

    @pytest.mark.parametrize("url", ["http://user:c4n4ry@h/v1", "http://h/v1?key=c4n4ry", "http://h/v1#c4n4ry"])
    def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(self, url: str) -> None:
        with pytest.raises(UsageError) as caught:
            HttpDriver(ChatCodec(), url, "m")
        assert self.CANARY not in self.everything(caught.value)

    @pytest.mark.parametrize("key", ["a\nb", "k\udce9y", "ключ"])
    def test_a_key_that_no_header_can_carry(self, key: str) -> None:
        async def main() -> None:
            async with ByteServer([]) as server:
                with pytest.raises(UsageError) as caught:
                    await Agent(HttpDriver(ChatCodec(), server.url, "m", api_key=key)).run("Hi")
                assert key not in str(caught.value)

        run_virtual(main())

    def test_the_line_end_of_a_key_file_is_no_part_of_the_key(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("a"))]) as server:
                await Agent(HttpDriver(ChatCodec(), server.url, "m", api_key="key\n")).run("Hi")
                assert server.posts[0].headers["authorization"] == "Bearer key"

        run_virtual(main())


def test_a_prompt_that_no_json_can_carry() -> None:
    async def main() -> None:
        async with ByteServer([]) as server:
            with pytest.raises(UsageError, match="surrogate"):
                await agent_of(server).run("half a pair: \ud83d")

    run_virtual(main())


def test_silence_is_still_a_timeout() -> None:
    async def main() -> RunResult | None:
        async with ByteServer([sse(text_chunk("a"), Hang())]) as server:
            with pytest.raises(ModelTimeout):
                await agent_of(server).run("Hi")
            await settled()
        return None

    run_virtual(main())
