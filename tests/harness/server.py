"""An HTTP/1.1 server that plays a script of bytes, faults and waits, and remembers what was asked of it.

A script is a list of exchanges, one per request; an exchange is a list of steps. `sse` and `json_reply` write the usual
ones, `split` and `cut` change them:

    ByteServer([sse(text_chunk("Hi"), Wait(5), Reset()), split(json_reply(completion("Hi")))])
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import responses
from types import TracebackType
from typing import Any, TypeAlias

from .clock import settled
from .history import check_chat_history, check_prefix

__all__ = [
    "ByteServer",
    "Close",
    "Connection",
    "Exchange",
    "Hang",
    "Request",
    "Reset",
    "Send",
    "Step",
    "Wait",
    "cut",
    "data_line",
    "json_reply",
    "size",
    "split",
    "sse",
]


@dataclass(frozen=True)
class Send:
    """Send these bytes in one write, then let the loop do all it can: the client reads them before the next step."""

    data: bytes


@dataclass(frozen=True)
class Wait:
    """Let loop time pass."""

    seconds: float


@dataclass(frozen=True)
class Close:
    """End the connection cleanly (FIN)."""


@dataclass(frozen=True)
class Reset:
    """End the connection rudely (RST)."""


@dataclass(frozen=True)
class Hang:
    """Do nothing until the client leaves."""


Step: TypeAlias = Send | Wait | Close | Reset | Hang | Callable[["Request"], Any]
"""A callable gets the request and returns more steps, or None; it may be a coroutine function."""

Exchange: TypeAlias = Sequence[Step]


@dataclass(frozen=True)
class Request:
    """A request as it came.

    Attributes:
        path: Without the query.
        headers: Names in lower case; a name sent twice has its values joined with a comma.
        json: The body parsed, or None if it is not JSON.
        connection: The number of the connection it came on, from 0.
        at: Loop time when all of it was here.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    json: Any
    connection: int
    at: float


@dataclass
class Connection:
    """A connection so far.

    Attributes:
        number: Counts from 0.
        requests: How many came on it.
        bytes_sent: Handed to the socket so far; once the client has left, how many when it did.
        client_closed_at: Loop time when the client left; None while it has not, or if the server ended it first.
    """

    number: int
    opened_at: float
    requests: int = 0
    bytes_sent: int = 0
    client_closed_at: float | None = None


class ByteServer:
    """Serves a script on 127.0.0.1 while the block lasts; leaving it ends every connection.

    A request takes the next exchange of the script, except: a path in `routes` is answered from there, any number of
    times; any other GET gets a 404; a history that breaks the rules gets a 400; one beyond the script gets a 500.
    An exchange that does not end the connection leaves it open for the next request. When a client leaves, the steps
    left of its exchange are dropped.

    Arguments:
        check: Leaving the block raises AssertionError for requests beyond the script.
        check_history: Every POST to a path ending in /chat/completions must pass `check_chat_history`.
        check_prefix: Its messages must also begin with those of the POST before it: one run per server.

    Attributes:
        requests: All of them, in order of arrival.
        unexpected: Those beyond the script.
        problems: Histories that broke the rules, requests that are no HTTP, callables that raised. Leaving the block
            raises AssertionError for these, too.
        connections: All of them, in order.
    """

    def __init__(
        self,
        exchanges: Sequence[Exchange] = (),
        *,
        routes: Mapping[str, Exchange] | None = None,
        check: bool = True,
        check_history: bool = True,
        check_prefix: bool = False,
    ) -> None:
        self.script = list(exchanges)
        self.routes = dict(routes or {})
        self.check = check
        self.check_history = check_history
        self.check_prefix = check_prefix
        self.requests: list[Request] = []
        self.unexpected: list[Request] = []
        self.problems: list[str] = []
        self.connections: list[Connection] = []
        self.port = 0
        self._lines: list[_Line] = []
        self._messages: list[Any] = []

    @property
    def url(self) -> str:
        """The base address of the API, ending in /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[Request]:
        """The POST requests, in order."""
        return [request for request in self.requests if request.method == "POST"]

    async def __aenter__(self) -> ByteServer:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Line(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await settled()  # so that a client which has just left is on record
        self._server.close()
        for line in self._lines:
            line.end()
        await asyncio.gather(*(line.task for line in self._lines), return_exceptions=True)
        await self._server.wait_closed()
        await settled()
        found = list(self.problems)
        if self.check:
            found += [f"beyond the script: {request.method} {request.path}" for request in self.unexpected]
        if found:
            report = "the server's view:" + "".join(f"\n  {item}" for item in found)
            if error is None:
                raise AssertionError(report)
            error.add_note(report)

    def _exchange_for(self, request: Request) -> Exchange:
        if request.path in self.routes:
            return self.routes[request.path]
        if request.method == "GET":
            return json_reply({"error": {"message": "not found"}}, status=404)
        if self.check_history and request.path.endswith("/chat/completions"):
            try:
                messages = request.json.get("messages") if isinstance(request.json, dict) else None
                check_chat_history(messages)
                if self.check_prefix:
                    check_prefix(self._messages, messages)
                self._messages = messages
            except AssertionError as error:
                self.problems.append(f"request {len(self.requests) - 1}: {error}")
                return json_reply({"error": {"message": str(error)}}, status=400)
        if not self.script:
            self.unexpected.append(request)
            return json_reply({"error": {"message": "beyond the script"}}, status=500)
        return self.script.pop(0)


class _Line(asyncio.StreamReaderProtocol):
    """One connection: its bytes both ways, and the task that plays exchanges on it until either side ends it."""

    def __init__(self, server: ByteServer) -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(limit=2**20, loop=self.loop)
        self.over = False
        super().__init__(self.reader, loop=self.loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport: Any = transport
        self.writer = asyncio.StreamWriter(self.transport, self, self.reader, self.loop)
        self.record = Connection(number=len(self.server.connections), opened_at=self.loop.time())
        self.server.connections.append(self.record)
        self.server._lines.append(self)
        self.task = self.loop.create_task(self.serve(), name=f"server connection {self.record.number}")

    def eof_received(self) -> bool:
        super().eof_received()
        self.client_left()
        return False  # the transport closes

    def connection_lost(self, exc: Exception | None) -> None:
        self.client_left()
        super().connection_lost(exc)
        self.task.cancel()

    def client_left(self) -> None:
        if not self.over:
            self.record.client_closed_at = self.loop.time()
            self.over = True

    def end(self) -> None:
        """End the connection now, whatever it was doing."""
        self.over = True
        self.transport.abort()
        self.task.cancel()

    async def serve(self) -> None:
        try:
            while not self.over:
                request = await self.receive()
                self.server.requests.append(request)
                self.record.requests += 1
                await self.play(self.server._exchange_for(request), request)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left; the record says when
        except Exception as error:
            self.server.problems.append(f"connection {self.record.number}: {error!r}")
            self.end()

    async def receive(self) -> Request:
        """The next request.

        Raises:
            asyncio.IncompleteReadError: The client left.
        """
        start, *lines = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
        method, target, _ = start.split(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, value = (part.strip() for part in line.split(":", 1))
            headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while length := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += (await self.reader.readexactly(length + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        path, _, query = target.partition("?")
        return Request(method, path, query, headers, body, parsed, self.record.number, self.loop.time())

    async def play(self, steps: Exchange, request: Request) -> None:
        for step in steps:
            if self.over:
                return
            match step:
                case Send(data):
                    self.writer.write(data)
                    self.record.bytes_sent += len(data)
                    await self.writer.drain()
                    await settled()
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Close():
                    self.over = True
                    self.transport.close()
                case Reset():
                    self.over = True
                    linger = struct.pack("ii", 1, 0)
                    self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.transport.abort()
                case Hang():
                    await self.loop.create_future()
                case _:
                    more = step(request)
                    if inspect.isawaitable(more):
                        more = await more
                    await self.play(more or (), request)


def data_line(value: Any) -> bytes:
    """An SSE frame with this value as JSON."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def sse(
    *pieces: dict[str, Any] | bytes | Step,
    status: int = 200,
    headers: Mapping[str, str | None] | None = None,
    chunked: bool = True,
    done: bool = True,
) -> list[Step]:
    """An event stream: the head, then a `Send` per piece.

    Arguments:
        pieces: A dict is sent as a `data:` frame, bytes as they are, each in a chunk of its own; a step is taken as it
            is (a `Send` among them is not put in a chunk).
        headers: Added to the usual ones; None removes one.
        chunked: With False the end of the connection ends the body.
        done: Send `data: [DONE]` at the end. The body is ended properly either way; to cut it, end with `Close()`.
    """
    framing = {"transfer-encoding": "chunked"} if chunked else {"connection": "close"}
    steps: list[Step] = [Send(_head(status, {"content-type": "text/event-stream"} | framing, headers))]
    for piece in (*pieces, b"data: [DONE]\n\n") if done else pieces:
        if isinstance(piece, dict):
            piece = data_line(piece)
        if isinstance(piece, bytes):
            piece = Send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        steps.append(piece)
    return [*steps, Send(b"0\r\n\r\n") if chunked else Close()]


def json_reply(value: Any, *, status: int = 200, headers: Mapping[str, str | None] | None = None) -> list[Step]:
    """A whole JSON body in one `Send`; bytes are sent as they are."""
    body = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    usual = {"content-type": "application/json", "content-length": str(len(body))}
    return [Send(_head(status, usual, headers) + body)]


def split(exchange: Exchange, every: int = 1) -> list[Step]:
    """The same bytes in `Send`s of `every` bytes."""
    steps: list[Step] = []
    for step in exchange:
        if isinstance(step, Send):
            steps += [Send(step.data[i : i + every]) for i in range(0, len(step.data), every)]
        else:
            steps.append(step)
    return steps


def cut(exchange: Exchange, after: int, then: Step | None = None) -> list[Step]:
    """The exchange up to its first `after` bytes, then `then`, which is `Close()` if not given."""
    steps: list[Step] = []
    for step in exchange:
        if isinstance(step, Send):
            if len(step.data) >= after:
                steps += [Send(step.data[:after])] if after else []
                break
            after -= len(step.data)
        steps.append(step)
    return [*steps, then or Close()]


def size(exchange: Exchange) -> int:
    """How many bytes its `Send`s come to."""
    return sum(len(step.data) for step in exchange if isinstance(step, Send))


def _head(status: int, usual: dict[str, str], headers: Mapping[str, str | None] | None) -> bytes:
    named = usual | {name.lower(): value for name, value in (headers or {}).items()}
    lines = [f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in named.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
