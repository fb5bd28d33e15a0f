"""`fetch` against real servers on loopback, which are allowed by name; see test_fetch_escapes.py for what is not."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.harness import ByteServer, Close, Hang, Request, Reset, Send, Step, Wait, run_virtual, settled
from treadle.errors import MissingExtra, ToolError, UsageError
from treadle.tools.builtin import fetch_answer, fetch_text
from treadle.tools.builtin.fetch import fetch_tool
from treadle.tools.builtin.fetch_address import Allowed, normal_url
from treadle.tools.builtin.fetch_text import clean, decoded, read_html

# URLs


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://docs.python.org", "https://docs.python.org/"),
        ("  HTTPS://Docs.Python.ORG.:443/3/  ", "https://docs.python.org/3/"),
        ("http://example.com:80", "http://example.com/"),
        ("http://example.com:/", "http://example.com/"),
        ("https://example.com:8443/a#b?c", "https://example.com:8443/a"),
        ("https://example.com/a/../b/./c/..", "https://example.com/b/"),
        ("https://example.com/a/%2e%2E/b", "https://example.com/b"),
        ("https://example.com/../../a", "https://example.com/a"),
        ("https://example.com//a//", "https://example.com//a//"),
        ("https://example.com/%7euser/%c3%a9/é/%zz/a b", "https://example.com/~user/%C3%A9/%C3%A9/%25zz/a%20b"),
        ("https://example.com/?q=a b&c=/?:@é%2f#x", "https://example.com/?q=a%20b&c=/?:@%C3%A9%2F"),
        ("https://example.com?#x", "https://example.com/"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://BÜCHER.example/", "https://xn--bcher-kva.example/"),
        ("https://faß.de/", "https://xn--fa-hia.de/"),
        ("https://例え。テスト/", "https://xn--r8jz45g.xn--zckzah/"),
        ("https://my_host.example/", "https://my_host.example/"),
        ("http://8.8.8.8/", "http://8.8.8.8/"),
        ("http://8.8.8.8./", "http://8.8.8.8/"),
        ("http://[2606:4700:0::1111]:8080/", "http://[2606:4700::1111]:8080/"),
        ("https://docs.python.org.evil.example/", "https://docs.python.org.evil.example/"),
        ("https://evil.example/@docs.python.org/", "https://evil.example/@docs.python.org/"),
        ("https://evil.example?@docs.python.org/", "https://evil.example/?@docs.python.org/"),
        ("https://evil.example#@docs.python.org/", "https://evil.example/"),
    ],
)
def test_a_url_has_one_form(url: str, normal: str) -> None:
    assert normal_url(url).url == normal
    assert normal_url(normal).url == normal


@given(st.text(alphabet="aZ0.%2eE5cC/\\@:?#[]é。１ \t-_~;&=", max_size=40))
@example("a%2e%2e/%2e%2e%2fb")
@example("_?")
@example("a/%25%32%65%32%65/")
def test_the_client_reads_a_normal_form_as_we_do(rest: str) -> None:
    import yarl

    try:
        address = normal_url(f"http://{rest}")
    except ToolError:
        return
    assert normal_url(address.url) == address
    theirs = yarl.URL(address.url, encoded=True)
    assert (theirs.raw_host, theirs.port, str(theirs)) == (address.host, address.port, address.url)
    assert address.url.isascii() and "/../" not in address.url.partition("?")[0]


@pytest.mark.parametrize(
    "path",
    [
        *("/a/..%2fb", "/a/..%5Cb", "/%2e%2e%2fb", "/a/%2f../b", "/3/..;/admin", "/3/..;x=1/admin", "/3/..%3b/admin"),
        *("/3/%252e%252e/admin", "/3/.%252e/admin", "/3/%25252e%25252E/admin", "/3/..%00/admin", "/3/..%20/admin", "/3/..."),
        *("/3/x%252f..%252fadmin", "/3/%252e%252e%252fadmin", "/3/..%09"),
        "/3/%" + "25" * 3_000 + "2e",
    ],
)
def test_a_path_that_some_servers_read_as_another_is_refused(path: str) -> None:
    with pytest.raises(ToolError, match="a part of the path") as caught:
        normal_url(f"https://example.com{path}")
    assert caught.value.kind == "invalid_input"


@pytest.mark.parametrize(
    "path", ["/a..b/c..", "/v1...v2", "/.well-known/x", "/.;a", "/100%25", "/%25252525", "/a%2Fb", "/%C3%A9"]
)
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert normal_url(f"https://example.com{path}").url == f"https://example.com{path}"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b?c", "https://example.com/b?c"),
        ("b", "https://example.com/a/b"),
        ("../b", "https://example.com/b"),
        ("?q", "https://example.com/a/x?q"),
        ("//other.example/b", "https://other.example/b"),
        ("http://other.example", "http://other.example/"),
        ("/é b", "https://example.com/%C3%A9%20b"),
    ],
)
def test_a_redirect_may_be_relative(location: str, url: str) -> None:
    assert normal_url(location, base=normal_url("https://example.com/a/x")).url == url


def test_rules_and_people_see_what_would_be_contacted() -> None:
    tool = fetch_tool()
    settings: Any = tool.settings
    assert settings["subjects"](url="HTTPS://Docs.Python.org.:443/a/../3#x", part="main") == {
        "url": "https://docs.python.org/3",
        "host": "docs.python.org",
    }
    assert settings["subjects"](url="https://docs.python.org@evil.example/") == {}
    assert settings["preview"](url="https://Bücher.example") == "https://xn--bcher-kva.example/"
    for url in ("https://a@b.example", "http://127.0.0.1/", "http://8.8.8.8:22/"):
        with pytest.raises(ToolError):
            settings["preview"](url=url)
    assert (tool.spec.name, tool.concurrency, settings["needs_approval"]) == ("fetch", "read_only", True)
    assert tool.spec.parameters["required"] == ["url"]


@pytest.mark.parametrize(
    "entry", ["", "http://a.example/", "a b", "10.0.0.1/8/8", "a.example:0", "a.example:x", "::1:80:", "u@a.example"]
)
def test_an_exception_that_names_nothing(entry: str) -> None:
    with pytest.raises(UsageError):
        Allowed(allow=[entry])


@pytest.mark.parametrize("settings", [{"timeout_s": 0}, {"max_bytes": 0}, {"user_agent": "a\nb"}, {"allow": "localhost"}])
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        fetch_tool(**settings)


def test_a_port_below_1024_can_be_allowed() -> None:
    Allowed(allow=["example.com:81"]).check_url(normal_url("http://example.com:81/"))
    with pytest.raises(ToolError):
        Allowed(allow=["example.com"]).check_url(normal_url("http://example.com:81/"))


def test_public_addresses_are_public() -> None:
    for host in (
        "8.8.8.8",
        "[2606:4700::1111]",
        "[64:ff9b::808:808]",
        "[::ffff:8.8.8.8]",
        "172.32.0.1",
        "100.128.0.1",
        "192.0.1.1",
    ):
        Allowed().check_url(normal_url(f"http://{host}/"))


# Answers

CODECS = set(fetch_text._CHARSETS.values())


def ok(body: bytes, content_type: str | None = "text/html", *, status: str = "200 OK", **headers: str) -> list[Step]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"Content-Type: {content_type}"] if content_type is not None else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return [Send("\r\n".join([*lines, "", ""]).encode() + body)]


def fetched(*steps: Step, url: str = "/", routes: dict[str, Sequence[Step]] | None = None, **settings: Any) -> str:
    """What the tool says of a server's page. Its address is written as `http://site`."""
    part = settings.pop("part", "main")

    async def main() -> str:
        async with ByteServer(routes=routes or {"/": steps}) as server:
            try:
                said = await fetch_tool(allow_private=True, **settings)(url=f"http://127.0.0.1:{server.port}{url}", part=part)
            except ToolError as error:
                error.message = error.message.replace(f"127.0.0.1:{server.port}", "site").replace("127.0.0.1", "site")
                raise
            return said.replace(f"127.0.0.1:{server.port}", "site")

    return run_virtual(main())


def failed(*steps: Step, **settings: Any) -> ToolError:
    with pytest.raises(ToolError) as caught:
        fetched(*steps, **settings)
    return caught.value


def body(said: str) -> str:
    return said.partition("\n\n")[2]


def test_a_page() -> None:
    said = fetched(*ok(b"<title>T &amp; t</title><p>Hello <a href='/x'>there</a>."))
    assert said == "URL: http://site/\nStatus: 200, text/html, 56 bytes\nTitle: T & t\n\nHello [there](http://site/x)."


def test_the_main_part_the_page_and_its_source() -> None:
    page = b"<nav>Menu</nav><main>" + b"word " * 100 + b"</main>"
    assert fetched(*ok(page)) == (
        "URL: http://site/\nStatus: 200, text/html, 528 bytes\n"
        'Shown: the main part (part="page" has the rest)\n\n' + ("word " * 100).strip()
    )
    assert body(fetched(*ok(page), part="page")).startswith("Menu\nword")
    assert body(fetched(*ok(page), part="source")) == page.decode()
    assert body(fetched(*ok(b"<nav>Menu</nav><main>Loading</main>"))) == "Menu\nLoading"  # a script would fill it


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain", "text/markdown; charset=utf-8", "application/json", "application/ld+json", "application/xml", "text/xml",
        "application/atom+xml", "image/svg+xml", "text/csv", "application/javascript", "application/yaml", "application/toml",
        "application/octet-stream", None, "nonsense", "TEXT/PLAIN",
    ],
)  # fmt: skip
def test_text_comes_as_it_is(content_type: str | None) -> None:
    assert body(fetched(*ok("<a>  é\r\nx\n".encode(), content_type))) == "<a>  é\nx\n"


@pytest.mark.parametrize(
    ("content", "content_type", "words"),
    [
        (b"\x89PNG\r\n", "image/png", "This is no text (image/png, 6 bytes)"),
        (b"%PDF-1.7", "application/pdf", "(application/pdf, 8 bytes)"),
        (b"a\0b", "text/plain", "(text/plain, 3 bytes)"),
        (b"a\0b", None, "(type unknown, 3 bytes)"),
        (b"\xff\xfa", "application/octet-stream", "(application/octet-stream, 2 bytes)"),
        (b"\xff\xfa", "image/\x1b]0;x\x07", "(application/octet-stream, 2 bytes)"),
        (b"\xff\xfa", "image/\u202e", "(application/octet-stream, 2 bytes)"),
        (b"\xff\xfa", "image/" + "x" * 5_000, "(application/octet-stream, 2 bytes)"),
        (b"\xff\xfa", "image/x (This is text)", "(application/octet-stream, 2 bytes)"),
    ],
)
def test_what_is_no_text_is_named(content: bytes, content_type: str | None, words: str) -> None:
    assert words in fetched(*ok(content, content_type))


def test_a_binary_body_is_not_read() -> None:
    head = Send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9999999999\r\n\r\n")
    assert "(video/mp4, 9,999,999,999 bytes)" in fetched(head, Hang())


def test_html_is_known_by_its_looks_only_without_a_type() -> None:
    assert body(fetched(*ok(b"<!-- x --><!DOCTYPE html><p>Hi", None))) == "Hi"
    assert body(fetched(*ok(b"<!DOCTYPE html><p>Hi", "text/plain"))) == "<!DOCTYPE html><p>Hi"


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        (b"caf\xe9 \x80", "iso-8859-1", "café €"),
        ("\ufeffcafé".encode(), "iso-8859-1", "café"),
        ("café".encode("utf-16"), None, "café"),
        ("café".encode("utf-16-be"), "utf-16be", "café"),
        (b"<meta charset=windows-1251>\xcf", None, "П"),
        (b"<meta charset=windows-1251>\xe9", "latin1", "é"),
        (b"<meta http-equiv=Content-Type content='text/html; charset=Shift_JIS'>\x83e\x83X\x83g", None, "テスト"),
        (b"<meta charset=utf-16>caf\xc3\xa9", None, "café"),
        (b"caf\xe9", None, "caf\ufffd"),
        (b"caf\xc3\xa9", "nonsense", "café"),
        (b"caf+AOk-", "utf-7", "caf+AOk-"),
        (b"uryyb", "rot13", "uryyb"),
        (b"\xc3\xa9", "unicode_escape", "é"),
        (b"x", "a\0b", "x"),
    ],
)
def test_characters(content: bytes, charset: str | None, text: str) -> None:
    assert decoded(content, charset, is_html=True).rpartition(">")[2] == text


@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode), st.integers(1, 9), st.sampled_from(sorted(CODECS)))
def test_decoding_in_pieces_is_decoding(content: bytes, piece: int, charset: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_text, "_PIECE", piece)
        assert fetch_text._decoded(content, charset) == content.decode(charset, "replace")
        text = content.decode("latin-1")
        assert clean(text) == text.replace("\r\n", "\n").replace("\r", "\n").translate(fetch_text._INVISIBLE)


def test_no_thread_decodes_much_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait meanwhile: what is no text takes long."""
    sizes: list[int] = []
    real = codecs.getincrementaldecoder("utf-8")

    class Decoder(real):
        def decode(self, data: Any, final: bool = False) -> str:
            sizes.append(len(data))
            return super().decode(data, final)

    def by_table(data: bytes, errors: str, table: str) -> tuple[str, int]:
        sizes.append(len(data))
        return "", 0

    with monkeypatch.context() as patch:
        patch.setattr(codecs, "getincrementaldecoder", lambda name: Decoder)
        patch.setattr(codecs, "charmap_decode", by_table)
        decoded(b"\x81" * 5_000_000, None, is_html=True)
        assert sum(sizes) == 5_000_000
        decoded(b"\x81" * 5_000_000, "windows-1252", is_html=True)
    assert sum(sizes) == 10_000_256  # with the table
    assert max(sizes) <= 65_536


def test_an_empty_page() -> None:
    assert body(fetched(*ok(b""))) == "(No text. Scripts, which may fill this page, are not run.)"
    assert body(fetched(*ok(b"<!-- only this -->"))).startswith("(No text.")
    assert body(fetched(*ok(b"", "text/plain"))) == "(empty)"


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "raw deflate", "two parts", "padded"])
def test_compressed_bodies(encoding: str) -> None:
    text = b"hello " * 1000
    raw = zlib.compressobj(wbits=-15)
    data = {
        "gzip": gzip.compress(text),
        "x-gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "raw deflate": raw.compress(text) + raw.flush(),
        "two parts": gzip.compress(text[:100]) + gzip.compress(text[100:]),
        "padded": gzip.compress(text) + b"\0" * 100,
    }[encoding]
    name = {"raw deflate": "deflate", "two parts": "gzip", "padded": "gzip"}.get(encoding, encoding)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: {name}\r\n\r\n".encode()
    pieces = [Send(data[i : i + 7]) for i in range(0, len(data), 7)]
    assert body(fetched(Send(head), *pieces, Close())) == text.decode()


def test_what_is_sent() -> None:
    async def main() -> None:
        async with ByteServer(
            routes={
                "/a": ok(b"", status="302 Found", Location="/b", Set_Cookie="a=b; Path=/"),
                "/b": ok(b"done", "text/plain"),
            }
        ) as server:
            await fetch_tool(allow_private=True, user_agent="me/1")(url=f"http://127.0.0.1:{server.port}/a?q=%2f#x")
            first, second = server.requests
            assert (first.method, first.path, first.query, first.body) == ("GET", "/a", "q=%2F", b"")
            for request in (first, second):
                assert request.headers == {
                    "host": f"127.0.0.1:{server.port}",
                    "user-agent": "me/1",
                    "accept": request.headers["accept"],
                    "accept-encoding": "gzip, deflate",
                    "connection": "close",
                }

    run_virtual(main())


# Redirects


def moved(location: str, status: str = "302 Found") -> list[Step]:
    return ok(b"<a href=x>here</a>", status=status, Location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_on_the_same_site_are_followed(status: int) -> None:
    routes = {"/": moved("/b", f"{status} Moved"), "/b": moved("c/d"), "/c/d": ok(b"<a href=e>x</a>")}
    said = fetched(routes=routes)
    assert said.startswith("URL: http://site/c/d\nRedirected from: http://site/\nStatus: 200")
    assert body(said) == "[x](http://site/c/e)"


def test_a_redirect_to_another_site_is_told() -> None:
    assert fetched(*moved("https://other.example/x")) == (
        "URL: http://site/\nStatus: 302, a redirect to another site, which was not followed\n"
        "Redirects to: https://other.example/x\n\nTo read it, call fetch with that URL."
    )


def test_a_redirect_to_another_site_is_followed_if_that_is_wanted() -> None:
    async def main() -> None:
        async with ByteServer(routes={"/": ok(b"there", "text/plain")}) as other:
            async with ByteServer(routes={"/": moved(f"http://127.0.0.1:{other.port}/")}) as server:
                tool = fetch_tool(allow_private=True, cross_site=True)
                assert body(await tool(url=f"http://127.0.0.1:{server.port}/")) == "there"

    run_virtual(main())


def test_never_from_https_to_http() -> None:
    from treadle.tools.builtin import fetch as module

    class Response:
        def __init__(self) -> None:
            self.status, self.headers = 301, {"Location": "http://example.com/"}

    settings = module._Settings(allowed=Allowed(), timeout_s=1, max_bytes=1, cross_site=True, user_agent="")
    response: Any = Response()
    with pytest.raises(ToolError, match="from https to http") as caught:
        module._next_hop(normal_url("https://example.com/"), response, settings)
    assert caught.value.kind == "permission"
    upgraded = module._next_hop(normal_url("http://example.com/"), response, settings)
    assert upgraded == normal_url("http://example.com/")


def test_http_to_https_is_the_same_site() -> None:
    assert normal_url("https://a.example/x").same_site(normal_url("http://a.example/"))
    assert not normal_url("https://a.example/x").same_site(normal_url("http://a.example:8080/"))
    assert not normal_url("https://a.example/x").same_site(normal_url("https://b.a.example/"))


def test_a_redirect_loop_ends() -> None:
    assert failed(routes={"/": moved("/b"), "/b": moved("/")}).kind == "network"


def test_an_endless_row_of_redirects_ends() -> None:
    async def main() -> None:
        def further(request: Request) -> list[Step]:
            return moved(f"/{len(server.requests)}")

        async with ByteServer(routes={f"/{i}": [further] for i in range(20)}) as server:
            with pytest.raises(ToolError, match="more than 5 times"):
                await fetch_tool(allow_private=True)(url=f"http://127.0.0.1:{server.port}/0")
            assert len(server.requests) == 6

    run_virtual(main())


# Failures


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_input"),
        (401, "permission"),
        (403, "permission"),
        (404, "not_found"),
        (405, "invalid_input"),
        (408, "network"),
        (410, "not_found"),
        (429, "rate_limited"),
        (451, "permission"),
        (500, "network"),
        (503, "network"),
        (304, "network"),
        (302, "network"),  # without a place
    ],
)
def test_a_status_says_what_kind_of_failure_it_is(status: int, kind: str) -> None:
    page = b"" if status == 304 else b"<title>No</title><h1>Sorry,</h1><script>x()</script><p>not   today"  # a 304 has no body
    error = failed(*ok(page, status=f"{status} X"))
    assert error.kind == kind
    assert error.message.startswith(f"http://site/ answered {status}. ")
    said = 'It says: "# Sorry, not today"'
    assert error.message.endswith(said if page else ".")


def test_a_snippet_is_short_and_costs_no_patience() -> None:
    assert len(failed(*ok(b"word " * 10_000, "text/plain", status="500 X")).message) < 500
    assert "It says" not in failed(*ok(b"\x89PNG", "image/png", status="500 X")).message
    head = Send(b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\n\r\nbusy")
    assert failed(head, Hang()).message.endswith('It says: "busy"')


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:29:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    for status in ("429 Slow", "503 Busy"):
        assert failed(*ok(b"", status=status, **headers)).retry_after_s == seconds
    assert failed(*ok(b"", status="404 No", **headers)).retry_after_s is None


TEXT = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


CHUNKED = TEXT + b"Transfer-Encoding: chunked\r\n\r\n"


def endless(head: bytes, piece: bytes, *, every_s: float = 0) -> list[Step]:
    """A server that sends without end, as fast as it is read unless said otherwise."""

    def more(request: Request) -> list[Step]:
        return [Send(piece), *([Wait(every_s)] if every_s else []), more]

    return [Send(head), more]


FAULTS: dict[str, tuple[list[Step], str, str]] = {
    "closed at once": ([Close()], "network", "closed before"),
    "reset at once": ([Reset()], "network", "closed before"),
    "reset in the head": ([Send(b"HTTP/1.1 200 OK\r\n"), Reset()], "network", "closed before"),
    "reset in the body": ([Send(TEXT + b"Content-Length: 9\r\n\r\nabc"), Reset()], "network", "broke off"),
    "body too short": ([Send(TEXT + b"Content-Length: 9\r\n\r\nabc"), Close()], "network", "broke off"),
    "chunks cut": ([Send(CHUNKED + b"5\r\nab"), Close()], "network", "broke off"),
    "chunks broken": ([Send(CHUNKED + b"xyz\r\nabc"), Hang()], "network", "no valid HTTP"),
    "chunks broken later": ([Send(CHUNKED), Send(b"3\r\nabc\r\n"), Send(b"xyz\r\nabc"), Hang()], "network", "broke off"),
    "chunks without end": (endless(CHUNKED + b"1;", b"a" * 4096, every_s=1), "timeout", "within 30 s"),
    "trailers without end": (endless(CHUNKED + b"0\r\n", b"A: aaaaaaaaaaaaaaaaa\r\n"), "network", "broke off"),
    "two lengths": ([Send(TEXT + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\nabc"), Hang()], "network", "no valid HTTP"),
    "negative length": ([Send(TEXT + b"Content-Length: -1\r\n\r\nabc"), Hang()], "network", "no valid HTTP"),
    "no HTTP": ([Send(b"SSH-2.0-OpenSSH_9.0\r\n"), Hang()], "network", "no valid HTTP"),
    "another protocol": (
        [Send(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), Hang()],
        "network",
        "answered 101",
    ),
    "large header": ([Send(TEXT + b"A: " + b"a" * 20_000 + b"\r\n\r\n"), Hang()], "network", "header is too large"),
    "endless header": (endless(TEXT, b"A: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"), "network", "header is too large"),
    "endless header line": (endless(TEXT + b"A: ", b"a" * 4096), "network", "header is too large"),
    "endless body": (endless(TEXT + b"\r\n", b"a" * 65_536), "invalid_input", "larger than 1,000,000 bytes"),
    "large body, as it says": ([Send(TEXT + b"Content-Length: 1000001\r\n\r\n"), Hang()], "invalid_input", "larger than"),
    "silent": ([Hang()], "timeout", "within 30 s"),
    "silent in the body": ([Send(TEXT + b"\r\nabc"), Hang()], "timeout", "within 30 s"),
    "unknown compression": ([Send(TEXT + b"Content-Encoding: br\r\n\r\nabc"), Hang()], "network", "not asked for"),
    "broken compression": ([Send(TEXT + b"Content-Encoding: gzip\r\n\r\nabc"), Hang()], "network", "broken or incomplete"),
    "cut compression": (
        [Send(TEXT + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"a" * 100)[:-9]), Close()],
        "network",
        "broken or incomplete",
    ),
    "gzip bomb": (
        [Send(TEXT + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"a" * 50_000_000)), Close()],
        "invalid_input",
        "larger than",
    ),
    "deflate bomb": (
        [Send(TEXT + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(b"a" * 50_000_000)), Close()],
        "invalid_input",
        "larger than",
    ),
    "gzip of nothing without end": (
        endless(TEXT + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"") * 3_000),
        "invalid_input",
        "larger than",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_typed_error_in_time(fault: str) -> None:
    steps, kind, words = FAULTS[fault]

    async def main() -> None:
        async with ByteServer(routes={"/": steps}) as server:
            with pytest.raises(ToolError, match=words) as caught:
                await fetch_tool(allow_private=True, max_bytes=1_000_000)(url=f"http://127.0.0.1:{server.port}/")
            assert caught.value.kind == kind
            assert asyncio.get_running_loop().time() <= 30

    run_virtual(main())


@pytest.mark.parametrize(("head", "piece"), [(b"HTTP/1.1 200 OK\r\n", b"A"), (TEXT + b"\r\n", b"a"), (b"H", b"")])
def test_a_server_that_sends_a_byte_now_and_then(head: bytes, piece: bytes) -> None:
    async def main() -> None:
        def more(request: Request) -> list[Step]:
            return [Wait(5), *([Send(piece)] if piece else []), more]

        async with ByteServer(routes={"/": [Send(head), more]}) as server:
            with pytest.raises(ToolError, match="within 12 s") as caught:
                await fetch_tool(allow_private=True, timeout_s=12)(url=f"http://127.0.0.1:{server.port}/")
            assert caught.value.kind == "timeout"
            assert asyncio.get_running_loop().time() == 12
            await settled()
            assert server.connections[0].client_closed_at == 12

    run_virtual(main())


def test_a_body_is_inflated_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have their turn between two of them: five megabytes of empty gzip parts take 0.1 s."""
    sizes: list[int] = []
    feed = fetch_answer.Inflater.feed

    def watched(self: fetch_answer.Inflater, data: bytes, room: int) -> bytes:
        sizes.append(len(data))
        return feed(self, data, room)

    monkeypatch.setattr(fetch_answer.Inflater, "feed", watched)
    data = gzip.compress(b"") * 20_000
    fetched(Send(TEXT + b"Content-Encoding: gzip\r\n\r\n" + data), Close())
    assert sum(sizes) == len(data)
    assert max(sizes) <= 16_384


def test_nobody_listens() -> None:
    async def main() -> None:
        async with ByteServer() as server:
            url = f"http://127.0.0.1:{server.port}/"
        with pytest.raises(ToolError, match="there is no connection") as caught:
            await fetch_tool(allow_private=True)(url=url)
        assert caught.value.kind == "network"

    run_virtual(main())


@pytest.mark.parametrize("steps", [[Hang()], [Send(TEXT + b"\r\nabc"), Hang()], [Send(b"HTTP/1.1 500 X\r\n\r\nabc"), Hang()]])
def test_cancelling_closes_the_connection_at_once(steps: list[Step]) -> None:
    async def main() -> None:
        async with ByteServer(routes={"/": steps}) as server:
            task = asyncio.ensure_future(fetch_tool(allow_private=True)(url=f"http://127.0.0.1:{server.port}/"))
            await asyncio.sleep(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await settled()
            assert server.connections[0].client_closed_at == 2

    run_virtual(main())


def test_a_slow_name_server_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle.tools.builtin import fetch as module

    monkeypatch.setattr(module, "_look_up", lambda host, port: asyncio.sleep(1000))

    async def main() -> None:
        with pytest.raises(ToolError) as caught:
            await fetch_tool()(url="http://example.com/")
        assert (caught.value.kind, asyncio.get_running_loop().time()) == ("timeout", 30)

    run_virtual(main())


@pytest.mark.parametrize(("code", "kind"), [("EAI_NONAME", "not_found"), ("EAI_AGAIN", "network")])
def test_a_name_that_is_not_found(code: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def getaddrinfo(*args: Any, **settings: Any) -> None:
        raise socket.gaierror(getattr(socket, code), "no")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        with pytest.raises(ToolError, match=r"example\.com") as caught:
            await fetch_tool()(url="http://example.com/")
        assert caught.value.kind == kind

    run_virtual(main())


def test_a_server_on_ipv6_and_aiohttps_own() -> None:
    """Real time, a server that this project did not write, and an address in brackets."""
    from aiohttp import web

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=f"<p>{request.host} {request.path_qs}", content_type="text/html")

    async def main() -> str:
        app = web.Application()
        app.router.add_get("/{rest:.*}", page)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "::1", 0)
            await site.start()
            port = runner.addresses[0][1]
            said = await fetch_tool(allow=["::1"])(url=f"http://[::1]:{port}/a%20b?x=1")
            return said.replace(str(port), "PORT")
        finally:
            await runner.cleanup()

    import socket

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert body(asyncio.run(main())) == "[::1]:PORT /a%20b?x=1"


# HTML


def markdown(html: str, **settings: Any) -> str:
    settings = {
        "url": "https://example.com/a/b",
        "main_only": False,
        "max_chars": 1_000_000,
        "stop": threading.Event(),
    } | settings
    return read_html(html, **settings).text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<h1>One</h1>two<h3>Three</h3>", "# One\n\ntwo\n\n### Three"),
        ("<p>a\n  b&nbsp;c<p>d<br>e<br><br>f", "a b\xa0c\n\nd\ne\n\nf"),
        ("a <b>bold</b>, <i> it</i> <code>x  y</code> <s>no</s>", "a **bold**, *it* `x y` ~~no~~"),
        ("<b></b><a href=/x></a><b> </b>x", "x"),
        ("a<a href='/x y?q=(1)'>b</a>c", "a[b](https://example.com/x%20y?q=%281%29)c"),
        ("<a href=c>c</a> <a href=#x>d</a> <a name=y>e</a>", "[c](https://example.com/a/c) d e"),
        ("<a href='javascript:x()'>a</a><a href='data:,x'>b</a><a href='file:///x'>c</a>", "abc"),
        ("<a href='mailto:a@b.example'>m</a>", "[m](mailto:a@b.example)"),
        ("<base href='//other.example/x/'><a href=y>y</a>", "[y](https://other.example/x/y)"),
        ("x<a href=/c><div><h3>Card</h3>text</div></a>", "x\n\n### [Card\n\ntext](https://example.com/c)"),
        ("<ul><li>a<li><p>b</p><ul><li>c</ul><li></ul>d", "- a\n- b\n  - c\n\nd"),
        ("<ol start=9><li>a<li>b</ol>", "9. a\n10. b"),
        ("<blockquote>a<p>b</blockquote>c", "> a\n\n> b\n\nc"),
        ("<dl><dt>a<dd>b</dl>", "a\n: b"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2<tr><td><p>3</p><td></table>", "a | b\n--- | ---\n1 | 2\n3 |"),
        ("<pre>\nif a:\n\n    b  c\n</pre>x", "```\nif a:\n\n    b  c\n```\n\nx"),
        ("<pre><code>a <b>b</b>\n</code></pre>", "```\na b\n```"),
        ("<ul><li>a<pre>b\n c</pre></ul>", "- a\n\n  ```\n  b\n   c\n  ```"),
        ("a<hr>b", "a\n\n---\n\nb"),
        ("<img alt='a  cat' src=x><img src=y><img alt='' src=z>", "[image: a cat]"),
        ("&lt;script&gt; &amp;amp; &#x1F600; &#xD800;", "<script> &amp; 😀 \ufffd"),
        ("a<script>b()</script><style>c{}</style><template>d</template><svg><text>e</text></svg><!-- f -->g", "ag"),
        ("<noscript>a</noscript><textarea>b</textarea><select><option>c</select><iframe>d</iframe>", "ab"),
        ("plain text", "plain text"),
        ("<p>unclosed <b>bold <i>both", "unclosed **bold *both***"),
        ("<li>stray</li></ul></table></td></a></b></main>x", "- stray\nx"),
        ("\ufeff<meta charset=latin1><p>é€", "é€"),
    ],
)
def test_html_as_markdown(html: str, text: str) -> None:
    assert markdown(html).rstrip() == text


@pytest.mark.parametrize(
    "attribute",
    [
        "hidden", "aria-hidden=true", "style='display:none'", "style='color:red; DISPLAY : None !important'", "style='visibility: hidden'",
        "style='opacity:0'", "style='opacity: 0.0;x:y'", "style='font-size:0px'",
    ],
)  # fmt: skip
def test_hidden_content_is_dropped(attribute: str) -> None:
    assert markdown(f"a<div {attribute}>secret<p>more</p></div><span {attribute}>s</span>b") in ("ab", "a\nb")


@pytest.mark.parametrize("style", ["opacity:0.5", "font-size:0.9em", "display:block", "x-display:nonee", ""])
def test_visible_content_is_kept(style: str) -> None:
    assert markdown(f"<span style='{style}'>seen</span>") == "seen"


def test_characters_that_show_nothing_are_dropped() -> None:
    assert clean("a\x1b[31m\x00\x85b\r\nc\td\re\U000e0041") == "a[31mb\nc\td\ne"


N = 100_000
HOSTILE = {
    "nested div": "<div>" * N + "x",
    "nested and closed": "<div>" * N + "x" + "</div>" * N,
    "nested i": "<i>" * 1_600_000,
    "nested lists": "<ul><li>" * N,
    "nested quotes": "<blockquote>x" * N,
    "nested tables": "<table><tr><td>" * N,
    "nested links": "<a href=x>" * N,
    "nested svg": "<svg><foreignObject>" * N,
    "misnested": "<p>" + "".join(f"<b id={i}>" for i in range(20_000)) + "</p>" + "<p>x" * 20_000,
    "ends that match nothing": "<i>" * 50_000 + "</b>" * 1_000_000,
    "ends that match nothing, below the limit": "<i>" * 900 + "</b>" * 200_000,
    "quotes with many lines": "<blockquote>" * 900 + "x<br>" * 500_000,
    "lists with many lines": "<ul><li>" * 400 + "<p>x" * 500_000,
    "a long base": f"<base href='http://e.example/{'a' * 1_900}/'>" + "<a href=x>x</a>" * 200_000,
    "a longer base": f"<base href='http://e.example/{'a' * 1_000_000}/'>" + "<a href=x>x</a>" * 200_000,
    "a base of many parts": f"<base href='http://e.example/{'a/' * 900}'>" + "<a href=x></a>" * 50_000,
    "a base of many parts, and links that go up": f"<base href='http://e.example/{'a/' * 900}'>"
    + "<a href=../../x>x</a>" * 20_000,
    "a huge attribute": f"<p title='{'a' * 5_000_000}' style='{' ' * 1_000_000}'>x",
    "many attributes": "<p " + " ".join(f"a{i}=1" for i in range(400_000)) + ">x",
    "a huge link": f"<a href='{'../' * 1_500_000}'>x</a>",
    "huge alternatives": f"<img alt='{' a' * 2_000_000}'>",
    "comments": "<!--" * 1_200_000,
    "open tags": "<" * 300_000,
    "entities": "&" * 5_000_000,
    "declarations": "<!" * 2_500_000,
    "instructions": "<?" * 2_500_000,
    "character data": "<![CDATA[" * 500_000,
    "scripts": "<script><!--<script>" * 250_000,
    "titles": "<title>" * 600_000,
    "options": "<select><option>" * 300_000,
    "open quotes": "<a b='" * 800_000,
    "zeros": "\0" * 300_000,
    "empty lines": "<pre>" + "\n" * 5_000_000 + "</pre>x",
    "breaks": "<br>" * 200_000 + "x",
    "spaces": " " * 5_000_000 + "x",
    "inline marks": "<b><i>" * 400 + "x</b>" * 200_000,
    "cells": "<table>" + "<td>" * 100_000,
    "headings": "<table><tr>" + "<th>x" * 100_000 + "</table>",
}


@pytest.mark.parametrize("page", HOSTILE)
def test_hostile_pages_end_in_time_and_space(page: str) -> None:
    """Megabytes each, within seconds. What is quadratic would take many minutes and run into the timeout of the test."""
    result = read_html(HOSTILE[page], url="https://example.com/", main_only=True, max_chars=1_000_000, stop=threading.Event())
    assert len(result.text) <= 1_000_000


def test_links_are_resolved_if_that_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    assert markdown(f"<base href='http://e.example/{'a/' * 50}'><a href=x>x</a>").endswith("/a/x)")
    monkeypatch.setattr(fetch_text, "urljoin", None)  # it would fail if it were called
    assert markdown(f"<base href='{'a/' * 101}'><a href=x>x</a>", url=f"http://e.example/{'a/' * 101}") == "x"


def test_what_is_too_deep_or_too_long_is_told() -> None:
    page = b"<p>begin</p>" + b"<div>" * 2_000 + b"secret"
    assert body(fetched(*ok(page))) == "begin\n\n(The rest of the page is too long or too deeply nested, and is left out.)"
    assert len(fetched(*ok(b"word " * 500_000))) < 1_001_000
    assert fetched(*ok(b"word " * 500_000, "text/plain")).endswith("(The rest, 1,500,000 characters, is left out.)")


def test_nobody_waits_for_a_page_that_was_given_up() -> None:
    stop = threading.Event()
    stop.set()
    assert markdown("<p>x" * 1_000_000, stop=stop) == ""


def test_making_text_does_not_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading happens in a thread, and the whole has one deadline."""
    began, release = threading.Event(), threading.Event()

    def slow(html: str, **settings: Any) -> fetch_text.Page:
        began.set()
        release.wait(10)
        assert settings["stop"].is_set()
        return fetch_text.Page(title="", text="")

    monkeypatch.setattr(fetch_answer, "read_html", slow)

    async def main() -> None:
        async with ByteServer(routes={"/": ok(b"<p>x")}) as server:
            fetching = asyncio.ensure_future(fetch_tool(allow_private=True)(url=f"http://127.0.0.1:{server.port}/"))
            while not began.is_set():
                await asyncio.sleep(0)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching
            release.set()

    asyncio.run(main())


# The module


def test_importing_it_and_making_the_tool_loads_no_client() -> None:
    code = (
        "import sys; from treadle.tools.builtin.fetch import fetch_tool; loaded = {'aiohttp', 'lxml', 'idna', 'yarl'} & set(sys.modules);"
        "assert not loaded, loaded; fetch_tool(); assert 'aiohttp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_parser_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml", None)
    with pytest.raises(MissingExtra, match="fetch"):
        fetch_tool()
