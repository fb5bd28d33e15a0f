"""The harness keeps its own promises: a test on it may be trusted when it passes, and read when it fails."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from . import (
    ByteServer,
    Close,
    Deadlock,
    Hang,
    Request,
    Reset,
    Send,
    Step,
    TimeLimit,
    VirtualClockLoop,
    Wait,
    call_chunk,
    check_chat_history,
    check_prefix,
    completion,
    cut,
    finish_chunk,
    json_reply,
    reply,
    run_virtual,
    settled,
    size,
    split,
    sse,
    text_chunk,
    thinking_chunk,
    usage_chunk,
)

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def now() -> float:
    return asyncio.get_running_loop().time()


class Client:
    """One connection to a server, in bytes."""

    def __init__(self, server: ByteServer) -> None:
        self.server = server

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass

    def ask(self, value: Any = HELLO, path: str = "/v1/chat/completions", method: str = "POST") -> None:
        body = json.dumps(value).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of an answer that has a length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        return int(head.split(" ")[1]), await self.reader.readexactly(int(head.split("content-length: ")[1].split()[0]))


# The clock


def test_sleeping_takes_virtual_time_only() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return now()

    assert run_virtual(main()) == 3600


def test_timers_fire_in_order_and_at_their_time() -> None:
    async def main() -> list[tuple[str, float]]:
        fired: list[tuple[str, float]] = []
        loop = asyncio.get_running_loop()
        for name, delay in (("c", 30), ("a", 0.5), ("b", 7), ("b2", 7)):
            loop.call_later(delay, lambda name=name: fired.append((name, now())))
        await asyncio.sleep(100)
        return fired

    assert run_virtual(main()) == [("a", 0.5), ("b", 7), ("b2", 7), ("c", 30)]


def test_timeouts_are_virtual() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(300):
                await asyncio.Event().wait()
        return now()

    assert run_virtual(main()) == 300


def test_work_in_an_executor_holds_time() -> None:
    async def main() -> tuple[str, float]:
        async with asyncio.timeout(0.001):
            return await asyncio.to_thread(lambda: time.sleep(0.05) or "done"), now()

    assert run_virtual(main()) == ("done", 0)


def test_a_quiescent_hook_holds_time() -> None:
    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        answer = loop.create_future()

        def work() -> None:
            time.sleep(0.05)
            loop.call_soon_threadsafe(answer.set_result, "done")

        thread = threading.Thread(target=work)
        thread.start()
        loop.quiescent.append(lambda: not thread.is_alive())
        async with asyncio.timeout(0.001):
            return await answer, now()

    assert run_virtual(main()) == ("done", 0)


def test_a_tool_in_a_thread_holds_time() -> None:
    threads = pytest.importorskip("treadle.tools.threads")

    async def main() -> tuple[str, float]:
        async with asyncio.timeout(0.001):
            return await threads.run_in_thread(lambda: time.sleep(0.05) or "done"), now()

    assert run_virtual(main()) == ("done", 0)


def test_settled_waits_for_all_that_needs_no_time() -> None:
    async def main() -> tuple[int, float]:
        turns = 0

        async def busy() -> None:
            nonlocal turns
            for _ in range(50):
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(busy())
        await settled()
        await task
        return turns, now()

    assert run_virtual(main()) == (50, 0)


def test_settled_works_on_any_loop() -> None:
    asyncio.run(settled())


def test_a_deadlock_names_who_waits() -> None:
    async def wait_for_nobody() -> None:
        asyncio.get_running_loop().stuck_after_s = 0.01  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"wait_for_nobody|locks.py:\d+ in wait"):
        run_virtual(wait_for_nobody())


def test_a_thread_that_never_ends_is_a_deadlock_too() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        loop.stuck_after_s = 0.01
        loop.quiescent.append(lambda: False)
        try:
            await asyncio.sleep(1)
        finally:
            loop.quiescent.clear()

    with pytest.raises(Deadlock, match="threads are still at work"):
        run_virtual(main())


def test_virtual_time_has_a_limit() -> None:
    async def forever() -> None:
        while True:
            await asyncio.sleep(60)

    with pytest.raises(TimeLimit, match="past 600 s"):
        run_virtual(forever(), limit_s=600)


def test_bytes_in_flight_hold_time() -> None:
    data = bytes(48 << 20)

    async def main() -> tuple[int, float]:
        async with ByteServer([[Send(data), Close()]]) as server, Client(server) as client:
            client.ask()
            async with asyncio.timeout(1e-6):
                return len(await client.reader.read(-1)), now()

    assert run_virtual(main()) == (len(data), 0)


# What is left behind


async def leave_a_task() -> None:
    asyncio.get_running_loop().kept = asyncio.create_task(asyncio.sleep(1), name="leaked")  # type: ignore[attr-defined]


async def leave_a_connection() -> None:
    async with ByteServer() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.pause_reading()  # so that not even the server's leaving ends it
        asyncio.get_running_loop().kept = reader, writer  # type: ignore[attr-defined]


async def leave_a_listener() -> None:
    await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)


async def leave_a_socket() -> None:
    socket.socket()


async def leave_a_socket_in_a_cycle() -> None:
    cycle: list[Any] = [socket.socket()]
    cycle.append(cycle)


async def leave_an_exception() -> None:
    async def fail() -> None:
        raise ValueError("nobody looks")

    asyncio.create_task(fail())  # noqa: RUF006
    await asyncio.sleep(1)


async def leave_a_failed_callback() -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)


async def leave_a_coroutine() -> None:
    asyncio.sleep(1)  # type: ignore[unused-coroutine]


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        (leave_a_task, "left open: task leaked: sleep waits at tasks.py"),
        (leave_a_connection, "left open: _SelectorSocketTransport"),
        (leave_a_listener, "left open: file .*_accept_connection"),
        (leave_a_socket, "ResourceWarning: unclosed <socket"),
        (leave_a_socket_in_a_cycle, "ResourceWarning: unclosed <socket"),
        (leave_an_exception, r"never retrieved: ValueError\('nobody looks'\)"),
        (leave_a_failed_callback, "reported to the loop: Exception in callback"),
        (leave_a_coroutine, "RuntimeWarning: coroutine 'sleep' was never awaited"),
    ],
)
def test_what_is_left_behind_fails_the_run(leave: Callable[[], Coroutine[Any, Any, None]], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        run_virtual(leave())


def test_a_failing_run_raises_its_own_exception_and_notes_the_rest() -> None:
    async def main() -> None:
        await leave_a_task()
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        run_virtual(main())
    assert "task leaked" in caught.value.__notes__[0]


def test_other_warnings_go_where_they_always_go() -> None:
    async def main() -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="old"):
        run_virtual(main())


# The server


def test_waits_are_virtual_and_requests_are_recorded() -> None:
    async def main() -> None:
        exchange = sse(Wait(100), text_chunk("Hi"), finish_chunk())
        async with ByteServer([exchange]) as server, Client(server) as client:
            await asyncio.sleep(7)
            client.ask(path="/v1/chat/completions?a=b")
            body = await client.reader.readuntil(b"0\r\n\r\n")
            assert b'"content":"Hi"' in body and b"data: [DONE]\n\n" in body
            assert now() == 107
            request = server.posts[0]
            assert (request.method, request.path, request.query) == ("POST", "/v1/chat/completions", "a=b")
            assert request.headers == {"host": "x", "content-length": str(len(request.body))}
            assert (request.json, request.connection, request.at) == (HELLO, 0, 7)
            assert server.connections[0].bytes_sent == size(exchange)

    run_virtual(main())


def test_each_send_is_one_read() -> None:
    class Reads(asyncio.Protocol):
        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def data_received(self, data: bytes) -> None:
            self.seen.append(data)

    async def main() -> None:
        exchange = json_reply({"a": 1})
        async with ByteServer([[*split(exchange), Send(b"two"), Close()]]) as server:
            transport, reads = await asyncio.get_running_loop().create_connection(Reads, "127.0.0.1", server.port)
            transport.write(b"POST / HTTP/1.1\r\n\r\n")
            await asyncio.sleep(1)
            assert [len(data) for data in reads.seen] == [1] * size(exchange) + [3]
            transport.close()

    run_virtual(main())


def test_a_connection_carries_several_requests_even_sent_at_once() -> None:
    async def main() -> None:
        async with ByteServer([json_reply({"n": n}) for n in range(3)]) as server, Client(server) as client:
            for _ in range(3):
                client.ask()
            assert [await client.answer() for _ in range(3)] == [(200, b'{"n": %d}' % n) for n in range(3)]
            assert [(c.number, c.requests) for c in server.connections] == [(0, 3)]

    run_virtual(main())


def test_a_chunked_request_is_read_whole() -> None:
    async def main() -> None:
        async with ByteServer([json_reply({})]) as server, Client(server) as client:
            head = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nA: 1\r\nA: 2\r\n\r\n"
            client.writer.write(head + b'3\r\n{"a\r\n4;x=y\r\n":1}\r\n0\r\n\r\n')
            await client.answer()
            assert server.requests[0].json == {"a": 1}
            assert server.requests[0].headers["a"] == "1, 2"

    run_virtual(main())


def test_a_reset_is_seen_as_one_and_a_close_is_not() -> None:
    async def main() -> None:
        async with ByteServer([[Send(b"abc"), Wait(1), Reset()], [Send(b"abc"), Close()]]) as server:
            async with Client(server) as client:
                client.ask()
                assert await client.reader.readexactly(3) == b"abc"
                with pytest.raises(ConnectionResetError):
                    await client.reader.read()
            async with Client(server) as client:
                client.ask()
                assert await client.reader.read() == b"abc"
            assert [c.client_closed_at for c in server.connections] == [None, None]

    run_virtual(main())


@pytest.mark.parametrize("last", [Hang(), Wait(1000)], ids=lambda step: type(step).__name__)
def test_the_time_and_place_of_a_client_that_leaves_are_recorded(last: Step) -> None:
    async def main() -> None:
        async with ByteServer([[Send(b"abc"), last, Send(b"never")]]) as server:
            async with Client(server) as client:
                client.ask()
                await client.reader.readexactly(3)
                await asyncio.sleep(42)
            await settled()
            (connection,) = server.connections
            assert (connection.client_closed_at, connection.bytes_sent) == (42, 3)

    run_virtual(main())


def test_leaving_the_block_ends_a_server_that_hangs() -> None:
    async def main() -> bytes:
        async with ByteServer([[Send(b"abc"), Hang()]]) as server:
            client = await Client(server).__aenter__()
            client.ask()
            await settled()
        seen = await client.reader.read()
        await client.__aexit__()
        return seen

    assert run_virtual(main()) == b"abc"


def test_a_callable_step_sees_the_request_and_adds_steps() -> None:
    async def main() -> None:
        async def later(request: Request) -> list[Step]:
            await asyncio.sleep(5)
            return json_reply({"said": request.json["say"]})

        async with ByteServer([[lambda request: None, later]]) as server, Client(server) as client:
            client.ask({"say": "hey"}, path="/v1/other")
            assert await client.answer() == (200, b'{"said": "hey"}')
            assert now() == 5

    run_virtual(main())


def test_probes_and_routes_do_not_use_up_the_script() -> None:
    async def main() -> None:
        routes = {"/v1/models": json_reply({"data": []}), "/api/show": json_reply({"show": 1})}
        async with ByteServer([json_reply({"script": 1})], routes=routes) as server, Client(server) as client:
            for path, method in (
                ("/props", "GET"),
                ("/v1/models", "GET"),
                ("/v1/models", "GET"),
                ("/api/show", "POST"),
                ("/v1/chat/completions", "POST"),
            ):
                client.ask(HELLO if method == "POST" else None, path=path, method=method)
            statuses = [await client.answer() for _ in range(5)]
            assert [status for status, _ in statuses] == [404, 200, 200, 200, 200]
            assert [body for _, body in statuses[1:]] == [b'{"data": []}'] * 2 + [b'{"show": 1}', b'{"script": 1}']
            assert len(server.requests) == 5 and not server.script

    run_virtual(main())


def test_a_request_beyond_the_script_fails_the_block_if_checked() -> None:
    async def main(check: bool) -> None:
        async with ByteServer(check=check) as server, Client(server) as client:
            client.ask()
            assert (await client.answer())[0] == 500
            assert len(server.unexpected) == 1

    run_virtual(main(check=False))
    with pytest.raises(AssertionError, match="beyond the script: POST /v1/chat/completions"):
        run_virtual(main(check=True))


def test_a_broken_history_gets_a_400_and_fails_the_block() -> None:
    async def main() -> None:
        async with ByteServer([json_reply({})]) as server, Client(server) as client:
            client.ask({"messages": [{"role": "tool", "tool_call_id": "a", "content": "?"}]})
            assert (await client.answer())[0] == 400

    with pytest.raises(AssertionError, match=r"request 0: messages\[0\] is a result without a call"):
        run_virtual(main())


def test_a_prefix_that_moved_fails_the_block_when_asked_to() -> None:
    async def main(check_prefix: bool) -> None:
        async with ByteServer([json_reply({})] * 2, check_prefix=check_prefix) as server, Client(server) as client:
            for said in ("one", "two"):
                client.ask({"messages": [{"role": "user", "content": said}]})
                await client.answer()

    run_virtual(main(check_prefix=False))
    with pytest.raises(AssertionError, match=r"request 1: messages\[0\] is not what it was"):
        run_virtual(main(check_prefix=True))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"nonsense\r\n\r\n", "connection 0: ValueError"),
        (b"POST /x HTTP/1.1\r\n\r\n", "connection 0: ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_in_the_server_fails_the_block(data: bytes, words: str) -> None:
    async def main() -> None:
        async with ByteServer([[lambda request: 1 / 0]]) as server, Client(server) as client:
            client.writer.write(data)
            await client.reader.read()

    with pytest.raises(AssertionError, match=words):
        run_virtual(main())


def test_an_exception_in_the_block_is_not_replaced_by_the_servers_findings() -> None:
    async def main() -> None:
        async with ByteServer() as server, Client(server) as client:
            client.ask()
            await client.answer()
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        run_virtual(main())
    assert "beyond the script" in caught.value.__notes__[0]


def test_the_same_script_gives_the_same_run_a_hundred_times() -> None:
    async def main() -> list[tuple[float, bytes]]:
        seen: list[tuple[float, bytes]] = []
        async with ByteServer([sse(*reply("Some text.", calls=[("f", {"x": 1})]), Wait(3), Close())] * 2) as server:
            for _ in range(2):
                async with Client(server) as client:
                    client.ask()
                    while data := await client.reader.read(65536):
                        seen.append((now(), data))
        return seen

    first = run_virtual(main())
    assert all(run_virtual(main()) == first for _ in range(100))


# Builders


def test_cut_ends_an_exchange_after_any_number_of_bytes() -> None:
    exchange: list[Step] = [Send(b"ab"), Wait(1), Send(b"cde")]
    assert cut(exchange, 0) == [Close()]
    assert cut(exchange, 2) == [Send(b"ab"), Close()]
    assert cut(exchange, 4, Reset()) == [Send(b"ab"), Wait(1), Send(b"cd"), Reset()]
    assert size(exchange) == 5


def test_a_stream_without_chunks_ends_with_the_connection() -> None:
    head, body, end = sse(b"x", chunked=False, done=False, headers={"Content-Type": None, "A": "b"})
    assert head == Send(b"HTTP/1.1 200 OK\r\nconnection: close\r\na: b\r\n\r\n")
    assert (body, end) == (Send(b"x"), Close())


def delta(chunk: dict[str, Any]) -> dict[str, Any]:
    return chunk["choices"][0]["delta"]


def test_chunks_leave_out_what_is_not_given() -> None:
    assert delta(text_chunk("a")) == {"content": "a"}
    assert delta(thinking_chunk("a", "reasoning")) == {"reasoning": "a"}
    assert delta(call_chunk(None, arguments="{")) == {"tool_calls": [{"function": {"arguments": "{"}}]}
    assert delta(call_chunk(1, id="a", name="f", arguments="")) == {
        "tool_calls": [{"index": 1, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]
    }
    assert finish_chunk("length")["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert usage_chunk(3, 4)["choices"] == []
    assert usage_chunk(3, 4)["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_reply_streams_what_a_completion_says_at_once() -> None:
    calls = [("f", {"x": 1}), ("g", {})]
    whole = completion("Hello", calls=calls)
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in reply("Hello", calls=calls)]
    deltas = [delta(chunk) for chunk in chunks if chunk["choices"]]
    pieces = [call for d in deltas for call in d.get("tool_calls", ())]
    message = whole["choices"][0]["message"]
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]
    for index, call in enumerate(message["tool_calls"]):
        own = [piece for piece in pieces if piece["index"] == index]
        assert own[0]["id"] == call["id"]
        assert own[0]["function"]["name"] == call["function"]["name"]
        assert "".join(piece["function"]["arguments"] for piece in own) == call["function"]["arguments"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"] == whole["usage"]


# The history rules

USER = {"role": "user", "content": "?"}


def assistant(*ids: str, **fields: Any) -> dict[str, Any]:
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": None} | ({"tool_calls": calls} if calls else {}) | fields


def result(id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": "ok"}


def with_call(**fields: Any) -> list[dict[str, Any]]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}} | fields
    return [USER, assistant(tool_calls=[call]), result("a")]


def test_a_good_history_passes() -> None:
    check_chat_history(
        [
            {"role": "system", "content": "Be brief."},
            USER,
            USER,
            assistant("a", "b", content="Let me see."),
            result("a"),
            result("b"),
            assistant("a"),
            result("a"),
            assistant(content="So."),
            USER,
        ]
    )


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "messages must be a list"),
        ([], "messages must be a list that is not empty"),
        (["?"], r"messages\[0\] must be an object"),
        ([{"role": "boss", "content": "?"}], r"messages\[0\] has the unknown role 'boss'"),
        ([USER, {"role": "system", "content": "?"}, USER], r"messages\[1\] is a system message that is not the first"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": None}], r"messages\[0\] content must be a string"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\] content must be a string"),
        ([USER, assistant("a"), {**result("a"), "content": None}], r"messages\[2\] content must be a string"),
        ([{**USER, "tool_calls": []}], r"messages\[0\] is from user and has tool_calls"),
        ([USER, assistant(), USER], r"messages\[1\] has neither text nor calls"),
        ([USER, assistant(content=""), USER], r"messages\[1\] has neither text nor calls"),
        ([USER, assistant(content="x", tool_calls=[]), USER], r"messages\[1\] has tool_calls that are not a list"),
        ([USER, assistant(content="x", tool_calls=None), USER], r"messages\[1\] has tool_calls that are not a list"),
        ([USER, result("a")], r"messages\[1\] is a result without a call"),
        ([USER, assistant("a"), result("a"), result("a")], r"messages\[3\] is a result without a call"),
        ([USER, assistant("a"), USER], r"messages\[2\] comes before the results of \['a'\]"),
        ([USER, assistant("a", "b"), result("a"), assistant(content="x")], r"messages\[3\] comes before the results"),
        ([USER, assistant("a", "b"), result("b"), result("a")], r"messages\[2\] must be the result of call 'a'"),
        ([USER, assistant("a"), result("z")], r"messages\[2\] must be the result of call 'a', not of 'z'"),
        ([USER, assistant("a")], r"messages\[1\] is the last, and calls \['a'\] have no results"),
        ([USER, assistant("a", "b"), result("a")], r"messages\[2\] is the last, and calls \['b'\] have no results"),
        ([USER, assistant(content="x")], r"messages\[1\] is the last, and neither from user"),
        ([{"role": "system", "content": "x"}], r"messages\[0\] is the last, and neither from user"),
        ([USER, assistant("a", "a"), result("a"), result("a")], r"messages\[1\].tool_calls\[1\] has the id 'a' of an"),
        (with_call(id=""), r"messages\[1\].tool_calls\[0\] has no id"),
        (with_call(id=None), r"messages\[1\].tool_calls\[0\] has no id"),
        (with_call(type="tool"), r"messages\[1\].tool_calls\[0\] must be of type function"),
        (with_call(function=None), r"messages\[1\].tool_calls\[0\] has no function"),
        (with_call(function={"name": "", "arguments": "{}"}), r"messages\[1\].tool_calls\[0\] has no name"),
        (with_call(function={"name": "f", "arguments": {}}), r"tool_calls\[0\] arguments must be a string"),
        (with_call(function={"name": "f", "arguments": ""}), r"tool_calls\[0\] arguments must be a JSON object"),
        (with_call(function={"name": "f", "arguments": "[]"}), r"tool_calls\[0\] arguments must be a JSON object"),
        (with_call(function={"name": "f", "arguments": '{"a": NaN}'}), r"tool_calls\[0\] arguments must be a JSON obj"),
    ],
)
def test_a_broken_history_is_named(messages: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_chat_history(messages)


def test_the_prefix_may_grow_and_may_not_move() -> None:
    check_prefix([], [USER])
    check_prefix([USER], [USER])
    check_prefix([USER], [USER, assistant(content="x")])
    with pytest.raises(AssertionError, match=r"messages\[1\] is gone"):
        check_prefix([USER, USER], [USER])
    with pytest.raises(AssertionError, match=r"messages\[0\] is not what it was"):
        check_prefix([USER], [{"content": "?", "role": "user"}])
