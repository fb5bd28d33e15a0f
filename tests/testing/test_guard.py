"""Staying offline: what is blocked, what is not, and how the test hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness import ByteServer, finish_chunk, run_virtual, sse, text_chunk
from treadle import Agent, HttpDriver, ScriptedDriver, TreadleError
from treadle.drivers.discovery import discover
from treadle.drivers.http import get_json
from treadle.drivers.servers import look_at
from treadle.testing import NetworkBlocked, offline
from treadle.wire.chat import ChatCodec


def test_a_model_server_on_this_machine_is_blocked_too() -> None:
    async def main() -> int:
        async with ByteServer([sse(text_chunk("Hi"), finish_chunk())], check=False) as server:
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m"))
            with (
                pytest.raises(
                    NetworkBlocked, match=rf"tried to reach {server.url}/chat/completions, and (.|\n)*cassette\("
                ) as raised,
                offline(),
            ):
                await agent.run("Hi")
            assert raised.value.address == f"{server.url}/chat/completions"
            assert not server.requests
            await agent.run("Hi")  # the block is over
            return len(server.requests)

    assert run_virtual(main()) == 1


def test_a_call_that_is_swallowed_is_reported_at_the_end() -> None:
    async def main() -> None:
        with contextlib.suppress(TreadleError):
            await Agent("http://127.0.0.1:9/v1#m").run("Hi")

    with pytest.raises(NetworkBlocked, match="127.0.0.1:9"), offline():
        asyncio.run(main())


def test_discovery_is_blocked() -> None:
    with pytest.raises(NetworkBlocked, match="127.0.0.1"), offline():
        Agent("local").run_sync("Hi")
    with pytest.raises(NetworkBlocked), offline():
        asyncio.run(get_json("http://127.0.0.1:9/v1/models"))


@pytest.mark.parametrize("look", [discover, lambda: look_at("http://127.0.0.1:9/v1")])
def test_looking_for_servers_says_that_it_was_blocked_and_not_that_nobody_answers(look: Callable[[], Any]) -> None:
    async def main() -> None:
        await look()

    with pytest.raises(NetworkBlocked), offline(), pytest.raises(NetworkBlocked, match="127.0.0.1"):
        asyncio.run(main())


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.invalid", 80)])
def test_no_other_machine_whoever_asks(address: tuple[str, int]) -> None:
    with pytest.raises(NetworkBlocked, match=f"{address[0]}:80"), offline():
        socket.create_connection(address, timeout=0.1)
    with pytest.raises(NetworkBlocked, match="2001:db8::1"), offline(), socket.socket(socket.AF_INET6) as made:
        made.connect(("2001:db8::1", 80))
    with pytest.raises(NetworkBlocked, match="192.0.2.1:53"), offline(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"?", ("192.0.2.1", 53))


@pytest.mark.parametrize(
    "call",
    [
        lambda made: made.sendmsg([b"?"], [], 0, ("192.0.2.1", 53)),
        lambda made: made.connect_ex(("192.0.2.1", 53)),
        lambda made: socket.gethostbyname("example.invalid"),
        lambda made: socket.gethostbyname_ex("example.invalid"),
        lambda made: socket.gethostbyaddr("192.0.2.1"),
        lambda made: socket.getnameinfo(("192.0.2.1", 53), 0),
        lambda made: socket.getaddrinfo("example.invalid", 53),
    ],
    ids=["sendmsg", "connect_ex", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getaddrinfo"],
)
def test_every_way_out_of_a_socket(call: Callable[[socket.socket], Any]) -> None:
    with pytest.raises(NetworkBlocked, match=r"192\.0\.2\.1|example\.invalid"), offline():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            call(made)


def test_a_tests_own_servers_are_let_through() -> None:
    with offline(), socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
    a, b = socket.socketpair()
    a.close()
    b.close()


def test_a_script_needs_no_network() -> None:
    with offline(), offline():
        assert Agent(ScriptedDriver(["Hi"])).run_sync("Hi").text == "Hi"
