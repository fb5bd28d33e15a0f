"""Attempts to make `fetch` contact what it may not. Each is refused before any connection; a canary on 127.0.0.1 hears nothing.

`{port}` in a URL is the canary's, so an attempt that got through would reach it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from tests.harness import ByteServer, Send, VirtualClockLoop, run_virtual
from treadle.errors import ToolError
from treadle.tools.builtin import fetch as module
from treadle.tools.builtin.fetch import fetch_tool

PAGE = [Send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\ncanary")]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that a socket was told to connect to."""
    seen: list[Any] = []
    connect = VirtualClockLoop.sock_connect

    async def watched(self: Any, sock: socket.socket, address: Any) -> None:
        seen.append(address)
        await connect(self, sock, address)

    monkeypatch.setattr(VirtualClockLoop, "sock_connect", watched)
    return seen


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Name -> its answers, one a look-up; the last one stays."""
    known: dict[str, list[list[str]]] = {}

    async def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        if host not in known:
            raise ToolError("unknown", kind="not_found")
        answers = known[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [_info(ip, port) for ip in found]

    monkeypatch.setattr(module, "_look_up", look_up)
    return known


def _info(ip: str, port: int) -> tuple[Any, ...]:
    if ":" in ip:
        plain, _, zone = ip.partition("%")
        place = (plain, port, 0, int(zone)) if zone.isdecimal() else (ip, port, 0, 0)
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", place)
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))


def refused(url: str, **settings: Any) -> ToolError:
    """The error of an attempt. The canary must not have heard of it."""

    async def main() -> ToolError:
        async with ByteServer(routes={"/": PAGE}) as canary:
            with pytest.raises(ToolError) as caught:
                await fetch_tool(**settings)(url=url.replace("{port}", str(canary.port)))
            assert canary.connections == []
            return caught.value

    return run_virtual(main())


LITERALS = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://0x7F.0x0.0x0.0x1:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.0.0.01:{port}/",
    "http://127.0.0.1%00.example.com:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[0:0:0:0:0:ffff:7f00:0001]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::1]:{port}/",
    "http://[2001:0:7f00:1::80ff:fffe]:{port}/",
    "http://[::1%lo]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fe80::1%251]:{port}/",
    "http://[fec0::1]:{port}/",
    "http://[fc00::1]:{port}/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[ff02::1]:{port}/",
    "http://[2001:db8::1]/",
    "http://[v1.a]/",
    "http://[::1/",
    "http://::1:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/",
    "http://2852039166/latest/meta-data/",
    "http://168.63.129.16/metadata",
    "http://100.100.100.200/latest/meta-data/",
    "http://100.64.0.1/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.254/",
    "http://192.168.1.1/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://192.88.99.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
]

TRICKS = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "data:text/plain,hello",
    "ftp://127.0.0.1:{port}/",
    "javascript:alert(1)",
    "gopher://127.0.0.1:{port}/_GET%20/",
    "dict://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "http://unix:/var/run/docker.sock:/info",
    "view-source:http://127.0.0.1:{port}/",
    "",
    "/etc/passwd",
    "127.0.0.1:{port}",
    "//127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:////127.0.0.1:{port}/",
    "http://",
    "http:///",
    "http://:{port}/",
    "http://./",
    "http://../",
    "http://?@127.0.0.1:{port}/",
    "http://#@127.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://user:password@example.com/",
    "http://@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@example.com/",
    "http://example.com:80@127.0.0.1:{port}/",
    "http://example.com%40127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}\\",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://127.0.0.1\t:{port}/",
    "ht\ntp://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: example.com",
    "http://127.0.0.1:{port}/ HTTP/1.1\r\nX-Injected: 1\r\n\r\nGET /",
    "http://127.0.0.1:{port}/\0",
    "http://127.0.0.1:{port}/\x7f",
    "\x00http://127.0.0.1:{port}/",
    "http://127.0.0.1\x00.example.com:{port}/",
    "http://127.0.0.1 .example.com:{port}/",
    "http://127.0.0.1 :{port}/",
    "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:65536/",
    "http://127.0.0.1:99999999999999999999/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:+{port}/",
    "http://127.0.0.1:{port}a/",
    "http://127.0.0.1: {port}/",
    "http://127.0.0.1:８０８０/",
    "http://127.0.0.1,example.com:{port}/",
    "http://127.0.0.1;example.com:{port}/",
    "http://exa mple.com/",
    "http://example..com/",
    "http://-example.com/",
    "http://exa\ud800mple.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 130 + "com/",
    "http://xn--a-\u200b.com/",
    "http://[example.com]/",
    "http://[127.0.0.1]:{port}/",
    "http://<127.0.0.1>:{port}/",
    "http://8.8.8.8:22/",
    "http://8.8.8.8:25/",
    "http://8.8.8.8:1023/",
]


@pytest.mark.parametrize("url", [*LITERALS, *TRICKS])
def test_no_way_to_write_a_url_gets_through(url: str, connected: list[Any], names: dict[str, Any]) -> None:
    """`names` knows none, so what is read as a name is no way either."""
    looked_up = "//unix:/" in url  # a host of that name, and no socket
    assert refused(url).kind in (("not_found",) if looked_up else ("permission", "invalid_input"))
    assert connected == []


@pytest.mark.parametrize("url", LITERALS)
def test_a_literal_gets_through_no_more_as_the_answer_for_a_name(url: str, connected: list[Any], names: dict[str, Any]) -> None:
    """Whatever a resolver says, it is an IP address that may be contacted, or nothing is."""
    host = url.removeprefix("http://").rpartition(":{port}")[0] or url.split("/")[2]
    names["example.com"] = [[host.strip("[]")]]
    assert refused("http://example.com:{port}/").kind == "permission"
    assert connected == []


@pytest.mark.parametrize("url", ["http://localhost:{port}/", "http://LOCALHOST.:{port}/", "http://foo.localhost:{port}/"])
def test_names_of_this_machine(url: str, connected: list[Any]) -> None:
    assert refused(url).kind in ("permission", "not_found", "network")  # as the system's resolver knows them
    assert connected == []


@pytest.mark.parametrize(
    "found",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["10.1.2.3"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["2606:4700::1111", "8.8.8.8", "fe80::1"],
        ["2606:4700::1111%2"],
        ["169.254.169.254"],
        ["64:ff9b::a00:1"],
        ["127.1"],
        ["2130706433"],
        ["localhost"],
        ["/var/run/docker.sock"],
    ],
    ids=str,
)
def test_a_name_that_leads_to_what_is_not_public(found: list[str], connected: list[Any], names: dict[str, Any]) -> None:
    names["example.com"] = [found]
    assert refused("http://example.com:{port}/").kind == "permission"
    assert connected == []


def test_the_second_look_up_is_checked_like_the_first(connected: list[Any], names: dict[str, Any]) -> None:
    names["example.com"] = [["8.8.8.8"], ["127.0.0.1"]]

    async def check_first() -> None:  # what a check apart from the connection would have seen
        await module._look_up("example.com", 80)

    run_virtual(check_first())
    assert refused("http://example.com:{port}/").kind == "permission"
    assert connected == []


@pytest.mark.parametrize(
    ("found", "source"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("2606:4700::1111", "2606:4700::1111"),
        ("2606:4700::1111", "2606:4700::2"),
        ("64:ff9b::808:808", "8.8.8.8"),
        ("::ffff:8.8.8.8", "::ffff:8.8.8.8"),
    ],
)
@pytest.mark.parametrize("as_literal", [True, False])
def test_this_machine_and_its_neighbours_by_public_addresses(
    found: str, source: str, as_literal: bool, connected: list[Any], names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_source", lambda ip, port: ipaddress.ip_address(source))
    names["example.com"] = [[found]]
    host = (f"[{found}]" if ":" in found else found) if as_literal else "example.com"
    assert refused(f"http://{host}/").kind == "permission"
    assert connected == []


def test_a_public_address_of_this_machine_can_be_allowed() -> None:
    ip, address = ipaddress.ip_address("8.8.8.8"), module.normal_url("http://example.com/")
    for allowed in (module.Allowed(allow=["8.8.8.8"]), module.Allowed(allow=["example.com"]), module.Allowed(private=True)):
        allowed.check_ip(ip, address, source=ip)
    module.Allowed().check_ip(ip, address, source=ipaddress.ip_address("8.8.4.4"))
    module.Allowed().check_ip(ip, address, source=ipaddress.ip_address("2606:4700::1"))


def test_a_machine_is_its_own_source() -> None:
    ip = ipaddress.ip_address("127.0.0.1")
    assert module._source(ip, 80) == ip
    assert module._source(ipaddress.ip_address("255.255.255.255"), 80) != ipaddress.ip_address("255.255.255.255")


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_the_gate_opens_no_socket_for_anything_else(family: int) -> None:
    gate = module._Gate(module.normal_url("http://8.8.8.8/"), module.Allowed())
    for place in [("127.0.0.1", 80), ("8.8.8.8", 81), ("8.8.8.8.", 80), ("example.com", 80), ("", 80), ("::1", 80, 0, 0)]:
        with pytest.raises(ToolError):
            gate.open_socket((family, socket.SOCK_STREAM, 0, "", place))
    assert gate._sockets == []


# Redirects, from a server that may be contacted: 127.0.0.1 by name, and the port of that server only.

TARGETS = [
    "http://127.0.0.1:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "//127.0.0.1:{port}/",
    "http://2130706433:{port}/",
    "http://localhost:{port}/",
    "http://private.example:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://user@start.example:{port}/",
    "http://start.example@127.0.0.1:{port}/",
    "\\\\127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "///127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/",
    "data:text/html,hello",
    "javascript:alert(1)",
    "gopher://127.0.0.1:{port}/",
    "http://start.example:22/",
    "http://127.0.0.1:{port}/\tx",
]


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("cross_site", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_a_redirect_to_what_may_not_be_contacted(
    target: str, cross_site: bool, status: int, connected: list[Any], names: dict[str, Any]
) -> None:
    names |= {"start.example": [["127.0.0.1"]], "localhost": [["127.0.0.1"]], "private.example": [["127.0.0.1"]]}

    async def main() -> None:
        async with ByteServer(routes={"/": PAGE}) as canary:
            location = target.replace("{port}", str(canary.port))
            redirect = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
            async with ByteServer(routes={"/": [Send(redirect)]}) as start:
                tool = fetch_tool(allow=[f"start.example:{start.port}"], cross_site=cross_site)
                try:
                    said = await tool(url=f"http://start.example:{start.port}/")
                except ToolError as error:
                    assert error.kind in ("permission", "invalid_input")
                else:  # not followed, because it is another site; the model may try it, and is refused then
                    assert not cross_site and "was not followed" in said and "canary" not in said
                assert len(start.connections) == 1
            assert canary.connections == []
            assert connected == [("127.0.0.1", start.port)]

    run_virtual(main())


def test_a_redirect_on_a_site_whose_name_now_leads_elsewhere(connected: list[Any], names: dict[str, Any]) -> None:
    """Rebinding between two hops: the second connection's address is checked, not remembered."""

    async def main() -> None:
        redirect = b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n"
        async with ByteServer(routes={"/": [Send(redirect)], "/next": PAGE}) as server:
            names["start.example"] = [["127.0.0.1"], ["127.0.0.2"]]
            with pytest.raises(ToolError) as caught:
                await fetch_tool(allow=["127.0.0.1"])(url=f"http://start.example:{server.port}/")
            assert caught.value.kind == "permission"
            assert [request.path for request in server.requests] == ["/"]
            assert connected == [("127.0.0.1", server.port)]

    run_virtual(main())


# What is allowed opens no more than it says.


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        (["127.0.0.1:1"], "http://127.0.0.1:{port}/"),
        (["localhost:1"], "http://localhost:{port}/"),
        (["127.0.0.2"], "http://127.0.0.1:{port}/"),
        (["127.0.0.1"], "http://[::1]:{port}/"),
        (["::1"], "http://127.0.0.1:{port}/"),
        (["10.0.0.0/8"], "http://127.0.0.1:{port}/"),
        (["start.example"], "http://127.0.0.1:{port}/"),
        (["start.example"], "http://localhost:{port}/"),
        (["start.example"], "http://start.example.evil.example:{port}/"),
        (["start.example"], "http://metadata.example/"),
        (["metadata.example"], "http://metadata.example/"),
        (["metadata.example"], "http://169.254.169.254/"),
        (["metadata.example"], "http://zero.example:{port}/"),
    ],
)
def test_an_exception_is_for_what_it_names(allow: Sequence[str], url: str, connected: list[Any], names: dict[str, Any]) -> None:
    names |= {
        "localhost": [["127.0.0.1"]],
        "start.example.evil.example": [["127.0.0.1"]],
        "metadata.example": [["169.254.169.254"]],
        "zero.example": [["0.0.0.0"]],
    }
    assert refused(url, allow=allow).kind == "permission"
    assert connected == []


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "0.0.0.0",
        "[::]",
        "[fe80::1]",
        "224.0.0.1",
    ],
)
def test_private_networks_do_not_include_a_cloud_machines_keys(host: str, connected: list[Any]) -> None:
    assert refused(f"http://{host}/", allow_private=True).kind == "permission"
    assert connected == []


def test_the_environments_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch, names: dict[str, Any]) -> None:
    async def main() -> None:
        async with ByteServer(routes={"/": PAGE}) as server, ByteServer() as proxy:
            for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.delenv("no_proxy", raising=False)
            names["start.example"] = [["127.0.0.1"]]
            assert "canary" in await fetch_tool(allow=["start.example"])(url=f"http://start.example:{server.port}/")
            assert proxy.connections == []

    run_virtual(main())


def test_the_canary_hears_what_is_allowed() -> None:
    """Without this, all of the above could pass because nothing ever gets through."""

    async def main() -> None:
        async with ByteServer(routes={"/": PAGE}) as canary:
            for allowed in ({"allow_private": True}, {"allow": ["127.0.0.0/8"]}, {"allow": [f"127.0.0.1:{canary.port}"]}):
                for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "１２７.0.0.1"):
                    assert "canary" in await fetch_tool(**allowed)(url=f"http://{host}:{canary.port}/")
            assert "canary" in await fetch_tool(allow=["localhost"])(url=f"http://localhost:{canary.port}/")
            assert len(canary.connections) == 10

    run_virtual(main())


def test_a_task_that_is_refused_leaves_nothing_running() -> None:
    async def main() -> None:
        with pytest.raises(ToolError):
            await fetch_tool()(url="http://127.0.0.1/")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())
