"""The driver against bytes on a real socket: deadlines, endings, closing, errors."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

import pytest
from msgspec import structs

from tests.harness import (
    ByteServer,
    Close,
    Exchange,
    Hang,
    Reset,
    Send,
    Step,
    Wait,
    cut,
    data_line,
    finish_chunk,
    json_reply,
    reply,
    run_virtual,
    settled,
    size,
    split,
    sse,
    text_chunk,
    usage_chunk,
)
from treadle import Agent
from treadle.drivers import http
from treadle.drivers.address import check_url, proxy_for, ssl_context
from treadle.drivers.http import HttpDriver
from treadle.errors import (
    BadStream,
    ConnectFailed,
    ContextOverflow,
    ModelError,
    ModelTimeout,
    Overloaded,
    RateLimited,
    StreamTruncated,
    UsageError,
)
from treadle.values.events import Omitted, Retried, TextDelta
from treadle.values.limits import Timeouts
from treadle.values.messages import UserMessage
from treadle.values.request import ModelRequest, Options, Reply
from treadle.values.usage import Usage
from treadle.wire.chat import ChatCodec

REQUEST = ModelRequest(messages=(UserMessage("Hi"),), run_id="run", timeouts=Timeouts(first_token_ms_per_prompt_token=0))
KEEPALIVE = Send(b"d\r\n: keepalive\n\n\r\n")


def driver_of(server: ByteServer, **settings: Any) -> HttpDriver:
    return HttpDriver(ChatCodec(), server.url, "m", **settings)


async def ask(driver: HttpDriver, request: ModelRequest = REQUEST) -> tuple[str, Reply]:
    """The text as it was shown, and the reply."""
    shown = ""
    async with driver.connect() as connection, connection.open(request) as stream:
        try:
            async for deltas in stream:
                shown += "".join(d.text for d in deltas if isinstance(d, TextDelta))
        except ModelError as error:
            error.add_note(f"shown: {shown}")
            raise
        return shown, stream.reply


def answers(exchange: Exchange, **settings: Any) -> tuple[str, Reply]:
    """What the driver makes of one exchange, on the virtual clock."""

    async def main() -> tuple[str, Reply]:
        async with ByteServer([exchange]) as server:
            return await ask(driver_of(server, **settings))

    return run_virtual(main())


def test_a_whole_turn() -> None:
    shown, got = answers(sse(*reply("Hello")))
    assert (shown, got.message.text, got.finish, got.usage) == ("Hello", "Hello", "end", Usage(input_tokens=10, output_tokens=5))


def test_one_byte_per_segment() -> None:
    assert answers(split(sse(*reply("Grüße, 日本 🎉"))))[0] == "Grüße, 日本 🎉"


def test_the_request() -> None:
    async def main() -> None:
        async with ByteServer([sse(*reply("a"))]) as server:
            driver = driver_of(server, api_key=lambda: "secret", headers={"X-A": "1"})
            options = Options(extra_headers={"X-B": "2"})
            await ask(driver, ModelRequest(messages=REQUEST.messages, options=options))
            (request,) = server.requests
        assert (request.method, request.path) == ("POST", "/v1/chat/completions")
        assert request.json["messages"] == [{"role": "user", "content": "Hi"}]
        wanted = {"authorization": "Bearer secret", "x-a": "1", "x-b": "2", "content-type": "application/json"}
        assert wanted.items() <= request.headers.items()
        assert request.headers["user-agent"].startswith("treadle/")
        assert "secret" not in repr(driver)

    run_virtual(main())


def test_no_key_no_header() -> None:
    async def main() -> None:
        async with ByteServer([sse(*reply("a"))]) as server:
            await ask(driver_of(server, api_key=lambda: None))
            assert "authorization" not in server.requests[0].headers

    run_virtual(main())


def test_turns_of_a_run_share_a_connection() -> None:
    async def main() -> None:
        async with ByteServer([sse(*reply("a")), sse(*reply("b")), sse(*reply("c"))]) as server:
            async with driver_of(server).connect() as connection:
                for _ in range(3):
                    async with connection.open(REQUEST) as stream:
                        async for _ in stream:
                            pass
            assert [request.connection for request in server.requests] == [0, 0, 0]

    run_virtual(main())


def test_a_server_that_closes_after_every_stream_gets_a_new_connection_each_time() -> None:
    """llama.cpp answers `Keep-Alive: timeout=5, max=100` and then closes: the next request must not be sent into the void."""

    async def main() -> None:
        stream = sse(*reply("a"), headers={"Server": "llama.cpp", "Keep-Alive": "timeout=5, max=100"})
        async with ByteServer([stream, stream]) as server:
            async with driver_of(server).connect() as connection:
                for _ in range(2):
                    async with connection.open(REQUEST) as reply_stream:
                        async for _ in reply_stream:
                            pass
            assert [request.connection for request in server.requests] == [0, 1]

    run_virtual(main())


class TestTruncation:
    @pytest.mark.parametrize("then", [Close(), Reset()])
    def test_at_every_byte_before_the_reason_it_is_an_error(self, then: Step) -> None:
        whole = sse(text_chunk("Hello"), text_chunk(" you"), finish_chunk(), done=False)
        reason_at = size(whole) - size([whole[-1]]) - 7

        async def one(k: int) -> str:
            async with ByteServer([cut(whole, k, then)]) as server:
                try:
                    shown, _ = await ask(driver_of(server))
                except (StreamTruncated, ConnectFailed, BadStream) as error:
                    return type(error).__name__
                assert shown == "Hello you"
                return "whole"

        outcomes = [run_virtual(one(k)) for k in range(size(whole) + 1)]
        assert outcomes[-1] == "whole"
        first_whole = outcomes.index("whole")
        assert first_whole >= reason_at
        assert "whole" not in outcomes[:first_whole]

    def test_the_body_ends_cleanly_without_a_reason(self) -> None:
        with pytest.raises(StreamTruncated):
            answers(sse(text_chunk("a"), done=True))

    @pytest.mark.parametrize("then", [Close(), Reset()])
    def test_a_connection_lost_after_the_reason_loses_nothing(self, then: Step) -> None:
        assert answers([*sse(text_chunk("a"), finish_chunk(), done=False)[:-1], then])[0] == "a"

    def test_an_error_object_is_raised_at_once_though_the_server_stays(self) -> None:
        async def main() -> None:
            error = data_line({"error": {"message": "m", "type": "exceed_context_size_error"}})
            async with ByteServer([sse(text_chunk("a"), error, Hang())]) as server:
                with pytest.raises(ContextOverflow) as caught:
                    await ask(driver_of(server))
                assert caught.value.__notes__ == ["shown: a"]
            assert asyncio.get_running_loop().time() < 1

        run_virtual(main())


class TestDeadlines:
    def timed_out(self, exchange: Exchange) -> tuple[str, float, str]:
        async def main() -> tuple[str, float, str]:
            async with ByteServer([exchange]) as server:
                with pytest.raises(ModelTimeout) as caught:
                    await ask(driver_of(server))
                time = asyncio.get_running_loop().time()
                await settled()
                assert server.connections[0].client_closed_at == pytest.approx(time, abs=0.1)
                return caught.value.phase, round(time), str(caught.value)

        return run_virtual(main())

    def test_no_answer_at_all(self) -> None:
        assert self.timed_out([Hang()])[:2] == ("first_token", 300)

    def test_headers_and_then_nothing(self) -> None:
        assert self.timed_out(sse(Hang()))[:2] == ("first_token", 300)

    def test_only_keep_alive_comments(self) -> None:
        assert self.timed_out(sse(*[step for _ in range(200) for step in (Wait(5), KEEPALIVE)], Hang()))[:2] == (
            "first_token",
            300,
        )

    def test_comments_after_the_text_began(self) -> None:
        steps = [step for _ in range(200) for step in (Wait(5), KEEPALIVE)]
        phase, time, said = self.timed_out(sse(text_chunk("a"), *steps, Hang()))
        assert (phase, time) == ("silence", 120)
        assert "127.0.0.1" in said and "120 s" in said

    def test_empty_deltas_are_silence(self) -> None:
        steps = [step for _ in range(200) for step in (Wait(5), text_chunk(""))]
        assert self.timed_out(sse(text_chunk("a"), *steps, Hang()))[:2] == ("silence", 120)

    def test_a_slow_but_steady_stream_is_left_alone(self) -> None:
        steps = [step for _ in range(50) for step in (Wait(119), text_chunk("a"))]
        assert answers(sse(*steps, finish_chunk()))[0] == "a" * 50

    def test_a_long_prompt_gets_longer(self) -> None:
        async def main() -> float:
            async with ByteServer([[Hang()]]) as server:
                with pytest.raises(ModelTimeout):
                    await ask(driver_of(server), ModelRequest(messages=(UserMessage("x" * 40_000),)))
                return asyncio.get_running_loop().time()

        assert 400 <= run_virtual(main()) <= 402

    def test_a_server_that_holds_the_line_after_done_costs_a_moment(self) -> None:
        async def main() -> float:
            async with ByteServer([sse(text_chunk("a"), finish_chunk(), b"data: [DONE]\n\n", Hang())]) as server:
                await ask(driver_of(server))
                return asyncio.get_running_loop().time()

        assert run_virtual(main()) <= 0.2

    def test_a_server_that_holds_the_line_after_the_reason_costs_two_seconds(self) -> None:
        async def main() -> float:
            steps = [step for _ in range(9) for step in (Wait(1), KEEPALIVE)]
            async with ByteServer([sse(text_chunk("a"), finish_chunk(), *steps, Hang())]) as server:
                assert (await ask(driver_of(server)))[0] == "a"
                return asyncio.get_running_loop().time()

        assert run_virtual(main()) == pytest.approx(2, abs=0.1)

    def test_usage_that_comes_a_second_after_the_reason_is_read(self) -> None:
        got = answers(sse(text_chunk("a"), finish_chunk(), Wait(1), usage_chunk(7, 3)))[1]
        assert got.usage == Usage(input_tokens=7, output_tokens=3)

    def test_connecting(self) -> None:
        async def main() -> None:
            with socket.socket() as full:  # its backlog is full, so the kernel answers nobody
                full.bind(("127.0.0.1", 0))
                full.listen(0)
                port = full.getsockname()[1]
                holders = [socket.socket() for _ in range(8)]
                for holder in holders:
                    holder.setblocking(False)
                    holder.connect_ex(("127.0.0.1", port))
                try:
                    with pytest.raises(ModelTimeout) as caught:
                        await ask(HttpDriver(ChatCodec(), f"http://127.0.0.1:{port}/v1", "m"))
                finally:
                    for holder in holders:
                        holder.close()
            assert (caught.value.phase, caught.value.limit_s) == ("connect", 10)

        run_virtual(main())


class TestLeaving:
    """Law 8: the server sees the connection close within 100 ms of the reader leaving."""

    FOREVER = sse(text_chunk("a"), *[step for _ in range(1000) for step in (Wait(1), text_chunk("a"))])

    @pytest.mark.parametrize("after_s", [0.0, 0.5, 3.0])
    @pytest.mark.parametrize("exchange", [FOREVER, [Hang()], sse(Hang())])
    def test_cancelling_the_task(self, exchange: Exchange, after_s: float) -> None:
        async def main() -> None:
            async with ByteServer([exchange], check=False) as server:
                task = asyncio.create_task(ask(driver_of(server)))
                await settled()
                await asyncio.sleep(after_s)
                left = asyncio.get_running_loop().time()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await settled()
                closed = server.connections[0].client_closed_at
                assert closed is not None and closed - left <= 0.1

        run_virtual(main())

    def test_breaking_out(self) -> None:
        async def main() -> None:
            async with ByteServer([self.FOREVER]) as server:
                async with driver_of(server).connect() as connection:
                    async with connection.open(REQUEST) as stream:
                        async for deltas in stream:
                            if deltas:
                                break
                    left = asyncio.get_running_loop().time()
                    await settled()
                    closed = server.connections[0].client_closed_at
                    assert closed is not None and closed - left <= 0.1

        run_virtual(main())


class TestErrors:
    @pytest.mark.parametrize(
        ("exchange", "error"),
        [
            (json_reply({"error": {"message": "m"}}, status=429, headers={"Retry-After": "3"}), RateLimited),
            (json_reply({"error": {"type": "exceed_context_size_error"}}, status=400), ContextOverflow),
            (json_reply(b"<html>", headers={"content-type": "text/html"}), BadStream),
            (json_reply(b"", status=302, headers={"Location": "http://evil"}), BadStream),
            ([Send(b"SSH-2.0-OpenSSH_9\r\n"), Close()], BadStream),
            ([Close()], ConnectFailed),
            ([Reset()], ConnectFailed),
            (json_reply(b"x" * 3_000_000, status=400), ModelError),
        ],
    )
    def test_typed_and_with_a_hint(self, exchange: Exchange, error: type[ModelError]) -> None:
        with pytest.raises(error) as caught:
            answers(exchange)
        assert (caught.value.hint and "127.0.0.1" in caught.value.message) or isinstance(caught.value, BadStream)

    def test_an_error_body_in_pieces_and_without_end_is_understood(self) -> None:
        body = b'{"error": {"type": "exceed_context_size_error"}}'
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 500\r\n\r\n"
        with pytest.raises(ContextOverflow):
            answers([Send(head), Send(body[:20]), Wait(1), Send(body[20:]), Hang()])
        with pytest.raises(ContextOverflow):
            answers([Send(head), Send(body), Reset()])

    def test_nothing_listens(self) -> None:
        async def main() -> None:
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"

                async def explain(error: ModelError) -> str:
                    return "Type this."

                with pytest.raises(ConnectFailed, match="nothing answers at http://127.0.0.1:") as caught:
                    await ask(HttpDriver(ChatCodec(), url, "m", explain=explain))
                assert caught.value.hint == "Type this."

        run_virtual(main())

    @pytest.mark.parametrize("explanation", [OSError("no"), None])
    def test_an_explanation_that_fails_or_hangs_changes_nothing(self, explanation: Exception | None) -> None:
        async def main() -> None:
            async def explain(error: ModelError) -> str:
                if explanation is None:
                    await asyncio.sleep(3600)
                    return ""
                raise explanation

            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                driver = HttpDriver(ChatCodec(), f"http://127.0.0.1:{unused.getsockname()[1]}", "m", explain=explain)
                with pytest.raises(ConnectFailed) as caught:
                    await ask(driver)
            assert caught.value.hint == ConnectFailed.default_hint
            assert asyncio.get_running_loop().time() <= 1

        run_virtual(main())

    def test_a_large_request_is_sent(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("a"))]) as server:
                await ask(driver_of(server), ModelRequest(messages=(UserMessage("x" * 3_000_000),)))
                assert len(server.requests[0].body) > 3_000_000

        run_virtual(main())

    @pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://h/v1", "http://", "http://h:port/v1", "http://[::1"])
    def test_addresses_that_are_none(self, url: str) -> None:
        with pytest.raises(UsageError):
            check_url(url)


class TestProxies:
    @pytest.mark.parametrize(
        ("url", "env", "proxy"),
        [
            ("https://api.example/v1", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
            ("http://api.example/v1", {"HTTPS_PROXY": "http://p:1"}, None),
            ("http://api.example/v1", {"http_proxy": "p:1"}, "http://p:1"),
            ("https://api.example/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, None),
            ("http://127.0.0.1:8080/v1", {"http_proxy": "http://p:1"}, None),
            ("http://localhost:8080/v1", {"http_proxy": "http://p:1"}, None),
            ("http://[::1]:8080/v1", {"ALL_PROXY": "http://p:1"}, None),
        ],
    )
    def test_from_the_environment_and_never_for_loopback(
        self, url: str, env: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        assert proxy_for(url) == proxy

    def test_a_socks_proxy_is_not_silently_gone_around(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "socks5://p:1")
        with pytest.raises(UsageError, match="socks5"):
            proxy_for("https://api.example/v1")

    def test_a_private_ca(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
        ssl_context.cache_clear()
        with pytest.raises(FileNotFoundError):
            ssl_context()
        ssl_context.cache_clear()


def test_get_json_survives_anything() -> None:
    async def main() -> None:
        routes: dict[str, Exchange] = {
            "/v1/a": json_reply({"x": 1}),
            "/v1/b": json_reply(b"<html>"),
            "/v1/c": json_reply(b"{}", status=500),
            "/v1/d": [Close()],
            "/v1/e": json_reply(b"[" * 100_000),
        }
        async with ByteServer(routes=routes) as server:
            assert await http.get_json(server.url + "/a") == {"x": 1}
            for path in "bcde":
                assert await http.get_json(f"{server.url}/{path}") is None
            with pytest.raises(TimeoutError):
                server.routes["/v1/f"] = [Hang()]
                await http.get_json(server.url + "/f", timeout_s=1)
        gc.collect()

    run_virtual(main())


class TestOmissions:
    """What a request left out is told by the first reply that opens after it, whatever failed before."""

    # The request offers no tools to choose from, so that the choice is left out.
    FORCED = structs.replace(REQUEST, options=Options(tool_choice="required"))
    BUSY = json_reply({"error": {"message": "loading"}}, status=503)

    def test_a_busy_server_does_not_swallow_it(self) -> None:
        async def main() -> None:
            async with ByteServer([self.BUSY, sse(*reply("Hi")), sse(*reply("Hi"))]) as server:
                async with HttpDriver(ChatCodec(), server.url, "m").connect() as connection:
                    with pytest.raises(Overloaded):
                        async with connection.open(self.FORCED):
                            pass
                    async with connection.open(self.FORCED) as stream:
                        assert [each.what for each in stream.omitted] == ["tool_choice"]
                        assert [each.what for each in stream.omitted] == ["tool_choice"]
                    async with connection.open(self.FORCED) as stream:
                        assert stream.omitted == ()

        run_virtual(main())

    def test_a_run_says_it_in_the_attempt_that_was_answered(self) -> None:
        async def main() -> None:
            async with ByteServer([self.BUSY, sse(*reply("Hi"))]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), options=Options(tool_choice="required"))
                await agent.next_request("Hi")
                async with agent.stream("Hi") as run:
                    events = [type(event).__name__ async for event in run if isinstance(event, Retried | Omitted)]
                assert events == ["Retried", "Omitted"]

        run_virtual(main())

    def test_looking_at_a_request_does_not_swallow_it(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("Hi"))]) as server:
                async with HttpDriver(ChatCodec(), server.url, "m").connect() as connection:
                    connection.said(self.FORCED)
                    async with connection.open(self.FORCED) as stream:
                        assert [each.what for each in stream.omitted] == ["tool_choice"]

        run_virtual(main())
