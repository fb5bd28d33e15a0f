"""Model calls over HTTP: any codec and one client. The only module that knows the client, aiohttp (docs/decisions/0002).

Nothing here retries. Redirects are not followed, because they could carry a key away.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, NoReturn, Self

import aiohttp
import msgspec

from treadle.drivers.address import ApiKey, check_url, proxy_for, ssl_context, usable_key
from treadle.errors import (
    BadStream,
    ConnectFailed,
    ModelError,
    ModelNotFound,
    ModelTimeout,
    UsageError,
)
from treadle.values.events import Delta
from treadle.values.limits import Timeouts
from treadle.values.outgoing import HIDDEN, HttpRequest
from treadle.values.request import ModelInfo, ModelRequest, Omission, PrefixMove, Reply, SchemaSupport
from treadle.values.tokens import Calibration
from treadle.wire.codec import Codec, Decoder, Encoder
from treadle.wire.ledger import Following, Ledger

__all__ = ["HttpConnection", "HttpDriver", "HttpReply", "get_json"]

_USER_AGENT = "treadle/0.1"
_KEEPALIVE_S = 4.0  # below the 5 s after which llama.cpp's and uvicorn's servers close an idle connection
_END_OF_STREAM_S = 0.1  # after the end mark: how long to wait for the end of the body, so that the connection can be reused
_CLOSES_UNASKED = {"llama.cpp"}
"""`Server` headers of servers that promise `Keep-Alive` and close after every stream all the same (captured; llama.cpp of
2026-10): a request sent at once on such a connection is lost. Theirs is closed from our side after each reply."""
_MOMENT_S = 0.01
_LARGE_BODY = 2**20  # above this the client wants a file-like body, and sends it in pieces
_ERROR_BODY_BYTES = 65_536
_BODY_S = 5.0
_JSON_BODY_BYTES = 2**22
_EXPLAIN_S = 1.0


class HttpDriver:
    """One model on one server.

    Args:
        codec: The wire format.
        base_url: Where the format's paths begin, usually ending in `/v1`.
        model: The model's name as the server knows it.
        name: The name in events and reports; by default `base_url#model`.
        api_key: Sent where the format wants it, when there is one.
        key_header: The header that carries the key as it is, for servers that want it elsewhere than the format does.
        headers: Sent with every request.
        client: Your own session: its pool, proxies and lifetime are yours. By default each run has its own.
        explain: Called when the server cannot be reached or does not know the path; returns a sentence on what is
            there instead. It has a second, and may fail.
        check: Looks at each request before it is sent, and raises what should stop it.
        info: Asks the server about the model.
        counter: Counts a request's tokens exactly; see `treadle.drivers.counting`.
    """

    def __init__(
        self,
        codec: Codec,
        base_url: str,
        model: str,
        *,
        name: str | None = None,
        api_key: ApiKey = None,
        key_header: str | None = None,
        headers: dict[str, str] | None = None,
        client: aiohttp.ClientSession | None = None,
        explain: Callable[[ModelError], Awaitable[str]] | None = None,
        check: Callable[[ModelRequest], None] | None = None,
        info: Callable[[], Awaitable[ModelInfo]] | None = None,
        counter: Callable[[HttpDriver, ModelRequest], Awaitable[int | None]] | None = None,
    ) -> None:
        self.base_url = check_url(base_url)
        self.model = name or f"{self.base_url}#{model}"
        self.codec = codec
        self.served_model = model
        self.calibration = Calibration()
        self.ledger = Ledger()  # of what was sent: the next run may go on with it
        self._api_key = api_key
        self._key_header = key_header
        self._headers = dict(headers or {})
        self._client = client
        self._explain = explain
        self.check = check
        self._info = info
        self._counter = counter

    def __repr__(self) -> str:
        return f"HttpDriver({self.model!r})"

    @property
    def continuable(self) -> bool:
        return self.codec.continuable

    @property
    def schema_support(self) -> SchemaSupport:
        return self.codec.schema_support

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[HttpConnection]:
        """A connection pool for one run, opened by its first request."""
        async with AsyncExitStack() as stack:
            sockets: list[socket.socket] = []
            client = self._client or await stack.enter_async_context(_session(sockets))
            yield HttpConnection(self, client, sockets)

    async def info(self) -> ModelInfo:
        """What the server says of the model; only the name if nobody knows how to ask it."""
        if self._info is None:
            return ModelInfo(model=self.served_model, server="openai-compatible")
        return await self._info()

    async def count(self, request: ModelRequest) -> int | None:
        """How many tokens the server would read for this request; None if nobody can be asked or does not answer.

        Raises:
            UsageError, ContextOverflow: The request could not be sent either.
        """
        if self._counter is None:
            return None
        if self.check is not None:
            self.check(request)
        return await self._counter(self, request)

    async def explained(self, error: ModelError) -> ModelError:
        """The same error, with a hint that says what is there instead, if that can be found out within a second."""
        if self._explain is not None:
            # An explanation that fails must not hide what it explains.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_EXPLAIN_S):
                    error.hint = await self._explain(error) or error.hint
        return error

    def headers(self, request: ModelRequest) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "User-Agent": _USER_AGENT,
            **self._headers,
            **self._key_headers(),
        }
        headers |= request.options.extra_headers
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()):
                raise UsageError(f"the header {name} holds a character that HTTP cannot carry", hint="Use printable ASCII.")
        return headers

    def shown_headers(self, request: ModelRequest) -> dict[str, str]:
        """The same with `***` for every value that is not ours: a key, or one that somebody put there."""
        ours = {"Accept", "Accept-Encoding", "Content-Type", "User-Agent", *self.codec.headers(None)}
        theirs = {name.lower() for name in (*self._headers, *request.options.extra_headers, self._key_header or "")}
        return {
            name: value if name in ours and name.lower() not in theirs else HIDDEN
            for name, value in self.headers(request).items()
        }

    def _key_headers(self) -> dict[str, str]:
        key = usable_key(self._api_key)
        if self._key_header is None:
            return self.codec.headers(key)
        return self.codec.headers(None) | ({self._key_header: key} if key else {})


class HttpConnection:
    """One run's way to a server.

    Attributes:
        client: What sends the requests. A recorder puts itself around it.
    """

    def __init__(self, driver: HttpDriver, client: aiohttp.ClientSession, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self.address = driver.base_url
        self.codec = driver.codec
        self.served_model = driver.served_model
        self._driver = driver
        self.client = client
        self._encoder: Encoder = driver.codec.encoder(driver.served_model)
        self._untold: list[Omission] = []  # the encoder says each once, and a request may fail before anybody hears of it
        self.following = Following(driver.ledger)
        self._url = driver.base_url + driver.codec.path

    def open(self, request: ModelRequest) -> HttpReply:
        return HttpReply(self, request)

    def encode(self, request: ModelRequest) -> bytes:
        if self._driver.check is not None:
            self._driver.check(request)
        body = self._encoder.encode(request)
        self._untold += self._encoder.omitted
        return body

    def take_omitted(self) -> Sequence[Omission]:
        """What requests left out since this was asked last."""
        taken = tuple(self._untold)
        self._untold.clear()
        return taken

    def sending(self) -> None:
        """What was encoded last is sent now, so it is what servers will have in their caches."""
        self.following.sent(self._encoder.prefix, self._encoder.moved)

    def said(self, request: ModelRequest) -> HttpRequest:
        """What `open` would send."""
        body = self.encode(request)
        return HttpRequest(method="POST", url=self._url, headers=self._driver.shown_headers(request), body=body)

    def decoder(self, request: ModelRequest) -> Decoder:
        return self._driver.codec.decoder(request)

    def abort(self) -> None:
        """Cut off a request that has no response yet, without sending the rest of it. Knows our own session's sockets only."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    async def post(self, request: ModelRequest, body: bytes) -> aiohttp.ClientResponse:
        self._sockets[:] = [each for each in self._sockets if each.fileno() >= 0]
        sys.audit("treadle.request", self._url)  # tests that must not leave the machine listen for it
        return await self.client.post(
            self._url,
            data=io.BytesIO(body) if len(body) > _LARGE_BODY else body,
            headers=self._driver.headers(request),
            allow_redirects=False,
            raise_for_status=False,
            proxy=proxy_for(self._url),
            ssl=ssl_context() if self._url.startswith("https:") else True,
            timeout=_client_timeout(request.timeouts.connect_s),
        )

    async def error(self, response: aiohttp.ClientResponse) -> ModelError:
        body = await _body(response, _ERROR_BODY_BYTES)
        error = self._driver.codec.error(response.status, response.headers, body, address=self._url)
        return await self.explained(error) if isinstance(error, ModelNotFound | BadStream) else error

    async def explained(self, error: ModelError) -> ModelError:
        return await self._driver.explained(error)

    def is_closed(self) -> bool:
        return self.client.closed


class _DeadlinePassed(Exception):
    """Raised in the read that waited too long."""


class HttpReply:
    """A reply as it arrives. Leaving the block before its end closes the server's connection."""

    def __init__(self, connection: HttpConnection, request: ModelRequest) -> None:
        self._connection = connection
        self._request = request
        self._timeouts: Timeouts = request.timeouts
        self._decoder = connection.decoder(request)
        self._response: aiohttp.ClientResponse | None = None
        self._first_token_s = 0.0
        self._deadline = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._bytes_read = 0
        self._progress = 0
        self._closed: asyncio.Future[None] | None = None  # of the connection, which other replies will use
        self._draining = False
        self._over = False
        self.omitted: Sequence[Omission] = ()
        self.moved: PrefixMove | None = None

    @property
    def reply(self) -> Reply:
        return self._decoder.reply

    async def __aenter__(self) -> Self:
        body = self._connection.encode(self._request)
        self._connection.sending()
        timeouts = self._timeouts
        # About four bytes a token; a better estimate belongs to whoever makes the request.
        self._first_token_s = timeouts.first_token_s + len(body) / 4 * timeouts.first_token_ms_per_prompt_token / 1000
        self._deadline = asyncio.get_running_loop().time() + self._first_token_s
        try:
            async with asyncio.timeout_at(self._deadline):
                self._response = await self._connection.post(self._request, body)
                if self._response.status != 200:
                    raise await self._connection.error(self._response)
        except BaseException as error:
            self._close()
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise self._timed_out() from None
            await self._translate(error)
        line = self._response.connection
        if line is not None and line.protocol is not None:
            if self._response.headers.get("Server") in _CLOSES_UNASKED:
                line.protocol.force_close()
            self._closed = line.protocol.closed
            if self._closed is not None:
                self._closed.remove_done_callback(_retrieve)
                self._closed.add_done_callback(_retrieve)  # once, however many replies use the connection
                self._closed.add_done_callback(self._lost)
        self._expect_within(self._deadline - asyncio.get_running_loop().time())
        self.omitted = self._connection.take_omitted()
        self.moved = self._connection.following.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Delta]:
        decoder = self._decoder
        if decoder.error is not None:
            raise decoder.error
        if self._over:
            raise StopAsyncIteration
        clean = True
        try:
            data = await self._read()
        except _DeadlinePassed:
            if not decoder.finished:
                raise self._timed_out() from None
            data = b""  # the reply is whole; only usage or the end of the body did not come
        except (aiohttp.ClientError, OSError):
            data, clean = b"", False
        if not data:
            self._over = True
            return decoder.close(clean=clean)
        deltas = decoder.feed(data)
        if decoder.done:
            if not self._draining:
                self._draining = True
                self._expect_within(_END_OF_STREAM_S)
        elif decoder.progress != self._progress:
            self._progress = decoder.progress
            self._expect_within(self._patience_s())
        return deltas

    def _patience_s(self) -> float:
        if self._decoder.finished:
            return self._timeouts.after_finish_s
        return self._timeouts.silence_s if self._decoder.began else self._first_token_s

    async def _read(self) -> bytes:
        """What one read brings; nothing at the end of the body.

        Raises:
            _DeadlinePassed: The deadline passed while waiting.
        """
        assert self._response is not None
        content = self._response.content
        data = content.read_nowait()
        if not data and not content.at_eof():
            data = await content.readany()
        self._bytes_read += len(data)
        return data

    def _expect_within(self, seconds: float) -> None:
        """Move the deadline. Called for every token, so a timer that is early is left to find out by itself."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + seconds
        if self._watchdog is not None and self._watchdog.when() <= self._deadline:
            return
        self._stop_watching()
        self._watchdog = loop.call_at(self._deadline, self._watch)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        response = self._response
        assert response is not None
        if loop.time() < self._deadline:
            self._watchdog = loop.call_at(self._deadline, self._watch)
        elif response.content.total_bytes > self._bytes_read:
            # Bytes are here and our reader has not had its turn, because something blocked the loop: no silence of theirs.
            self._watchdog = loop.call_later(_MOMENT_S, self._watch)
        else:
            self._watchdog = None
            response.content.set_exception(_DeadlinePassed())

    def _stop_watching(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _lost(self, _: asyncio.Future[None]) -> None:
        """The connection is gone. The client says so by itself, except after broken chunk framing."""
        content = self._response.content if self._response is not None else None
        if content is not None and not self._over and not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("connection lost"))

    def _timed_out(self) -> ModelTimeout:
        phase: Literal["silence", "first_token"] = "silence" if self._decoder.began else "first_token"
        limit_s = self._timeouts.silence_s if self._decoder.began else self._first_token_s
        return ModelTimeout(phase, round(limit_s, 1), address=self._connection.address)

    def _close(self) -> None:
        """Close the connection, unless the body was read to its end: then it went back to the pool by itself."""
        self._stop_watching()
        if self._closed is not None:
            self._closed.remove_done_callback(self._lost)
        response = self._response
        if response is None:
            self._connection.abort()
        elif response.connection is not None:
            if response.connection.transport is not None:
                response.connection.transport.abort()  # `close` would first send what is left of the request
            response.close()

    async def _translate(self, error: BaseException) -> NoReturn:
        """Raise what the client raised as one of our errors."""
        address = self._connection.address
        match error:
            case aiohttp.ConnectionTimeoutError():
                raise ModelTimeout("connect", self._timeouts.connect_s, address=address) from error
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
                raise ConnectFailed(
                    f"no secure connection to {address}",
                    hint="For a private CA set SSL_CERT_FILE; for a server without TLS use http://.",
                ) from error
            case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
                raise ConnectFailed(
                    f"the proxy in front of {address} did not let the request through",
                    hint="Check HTTPS_PROXY and HTTP_PROXY, or name the host in NO_PROXY.",
                ) from error
            case aiohttp.ClientConnectorDNSError():
                raise ConnectFailed(f"the host of {address} is unknown", hint="Check the address for a typing error.") from error
            case aiohttp.ClientConnectorError():
                reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no connection"
                raise await self._connection.explained(ConnectFailed(f"nothing answers at {address}: {reason}")) from error
            case aiohttp.ClientResponseError():  # its text holds what the server said, its repr our headers
                bad = BadStream(f"what answers at {address} does not speak HTTP as a model server does")
                raise await self._connection.explained(bad) from None
            case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
                raise UsageError(
                    f"{address} is not an HTTP address", hint="Use http://host:port/v1 or https://host/v1."
                ) from None
            case aiohttp.ClientError() | OSError():
                raise ConnectFailed(
                    f"{address} closed the connection without an answer ({type(error).__name__})",
                    hint="The server may have crashed on this request: look at its log.",
                ) from None
            case RuntimeError() if self._connection.is_closed():
                raise UsageError("the client session was closed", hint="Keep your session open while runs use it.") from None
            case _:
                raise error


async def get_json(
    url: str,
    *,
    timeout_s: float = 2.0,
    headers: dict[str, str] | None = None,
    body: Any = None,
    api_key: ApiKey = None,
) -> Any:
    """What a GET of `url` answers with, decoded from JSON; None unless that is a 200 with JSON.

    With a `body` it is a POST of that body as JSON. Reads at most 4 MiB.

    Raises:
        TimeoutError: It took longer than `timeout_s`.
    """
    sys.audit("treadle.request", url)
    sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
    if key := usable_key(api_key):
        sent["Authorization"] = f"Bearer {key}"
    async with asyncio.timeout(timeout_s), _session() as client:
        try:
            async with client.request(
                "GET" if body is None else "POST",
                url,
                json=body,
                headers=sent,
                allow_redirects=False,
                proxy=proxy_for(url),
                ssl=ssl_context() if url.startswith("https:") else True,
            ) as response:
                if response.status != 200:
                    return None
                answer = await _body(response, _JSON_BODY_BYTES)
                return msgspec.json.decode(answer)
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
            return None


def _retrieve(closed: asyncio.Future[None]) -> None:
    """How a connection ended is told by the reads on it; nobody else has to look."""
    if not closed.cancelled():
        closed.exception()


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, or what comes of it within the bounds: a status means the same without the rest of its explanation."""
    body = b""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(_BODY_S):
            while len(body) < max_bytes and (data := await response.content.read(max_bytes - len(body))):
                body += data
    return body


@functools.cache
def _client_timeout(connect_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect_s)


def _session(sockets: list[socket.socket] | None = None) -> aiohttp.ClientSession:
    """A session of our own. Its sockets are put into the list, so that one can be cut off before it has a response."""

    def open_socket(address: Any) -> socket.socket:
        made = socket.socket(*address[:3])  # as getaddrinfo gives it
        if sockets is not None:
            sockets.append(made)
        return made

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(keepalive_timeout=_KEEPALIVE_S, socket_factory=open_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=_client_timeout(10.0),
    )
