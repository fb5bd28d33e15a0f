"""A driver that asks the real server and keeps what was sent and what came back, read by read."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import msgspec

from treadle.drivers.http import HttpConnection
from treadle.errors import TreadleError
from treadle.testing.errors import CassetteError
from treadle.testing.scrub import (
    KEPT_ANSWER_HEADERS,
    KEPT_REQUEST_HEADERS,
    Scrubber,
    frames,
    kept,
    sent_secrets,
    without_address,
)
from treadle.testing.tape import Answer, End, Exchange, Sent, Tape, described
from treadle.values.ports import Driver
from treadle.values.request import ModelInfo, ModelRequest, SchemaSupport
from treadle.values.tokens import Calibration
from treadle.wire.codec import Codec, Decoder

__all__ = ["RecordingDriver"]


class _Heard:
    """An answer while it is being read."""

    def __init__(self, request: Sent, model_request: ModelRequest | None) -> None:
        self.request = request
        self.model_request = model_request
        self.status = 0
        self.headers: dict[str, str] = {}
        self.reads: list[bytes] = []
        self.end: End = "left"


class RecordingDriver:
    """Another driver, recorded. Made by `Cassette`.

    Args:
        driver: An `HttpDriver`, or one that finds its server and then is one.
    """

    def __init__(self, driver: Driver, model: str, scrubber: Scrubber) -> None:
        self.model = model
        self.requests: list[ModelRequest] = []
        self._driver = driver
        self._scrubber = scrubber
        self._heard: list[_Heard] = []
        self._info: ModelInfo | None = None
        self._codec: Codec | None = None
        self._served_model = ""
        self._addresses: set[str] = set()

    def __repr__(self) -> str:
        return f"RecordingDriver({self.model!r}, {len(self._heard)} exchanges)"

    @property
    def calibration(self) -> Calibration:
        return self._driver.calibration

    @property
    def continuable(self) -> bool:
        return self._driver.continuable

    @property
    def schema_support(self) -> SchemaSupport:
        return self._driver.schema_support

    async def info(self) -> ModelInfo:
        self._info = await self._driver.info()
        return self._info

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[_RecordingConnection]:
        async with self._driver.connect() as connection:
            if not isinstance(connection, HttpConnection):
                raise CassetteError(
                    f"{type(self._driver).__name__} makes no HTTP requests of its own, so there is nothing to record",
                    hint="Record a model by its name, or an HttpDriver.",
                )
            self._codec, self._served_model = connection.codec, connection.served_model
            self._addresses.add(connection.address)
            yield _RecordingConnection(self, connection, self._heard, self._scrubber)

    def tape(self) -> Tape:
        """What was recorded, without secrets.

        Raises:
            CassetteError: Nothing was; or an answer spells a secret out in a way that cannot be taken out of its bytes.
        """
        if self._codec is None or not self._heard:
            raise CassetteError("nothing was recorded, because nothing was asked", hint="Does the run use the cassette's driver?")
        scrubber = self._scrubber
        tape = Tape(
            model=scrubber.clean_text(without_address(self.model)),
            served_model=scrubber.clean_text(self._served_model),
            codec=described(self._codec),
            exchanges=[self._clean(each) for each in self._heard],
            info=self._clean_info(),
        )
        if scrubber.gives_away(json.dumps([tape.model, tape.served_model, tape.codec], ensure_ascii=False)):
            raise _unwritten("a secret stands in the settings of the wire format")
        return tape

    def _clean_info(self) -> ModelInfo | None:
        if self._info is None:
            return None
        text = msgspec.json.encode(self._info).decode()
        for address in self._addresses:
            text = text.replace(address, "")
        return msgspec.json.decode(self._scrubber.clean_text(text), type=ModelInfo)

    def _clean(self, heard: _Heard) -> Exchange:
        scrubber, sent = self._scrubber, heard.request
        body = scrubber.clean_answer(b"".join(heard.reads), failed=heard.status != 200)
        reads: list[bytes] = []
        for read in heard.reads:
            reads.append(body[: len(read)])
            body = body[len(read) :]
        exchange = Exchange(
            request=Sent(
                method=sent.method,
                path=scrubber.clean_path(sent.path),
                headers={name: scrubber.clean_text(value) for name, value in sent.headers.items()},
                body=scrubber.clean_request(sent.body),
            ),
            answer=Answer(
                status=heard.status,
                headers={name: scrubber.clean_text(value) for name, value in heard.headers.items()},
                reads=reads,
                end=heard.end,
            ),
        )
        self._check_said(exchange, heard.model_request)
        self._check_meaning(heard, exchange)
        return exchange

    def _check_said(self, exchange: Exchange, request: ModelRequest | None) -> None:
        """Nothing that can be read out of what is written gives a secret away.

        A model that repeats a key does so in pieces, each in a frame of its own, where no search of the bytes finds it. So the texts at
        one place of all frames are joined, whether our decoder reads them or not.
        """
        sent, answer = exchange.request, exchange.answer
        body = b"".join(answer.reads)
        pieces: dict[tuple[str, ...], list[str]] = {}
        for _, _, value in (*frames(sent.body), *frames(body)):
            for path, text in _strings(value):
                pieces.setdefault(path, []).append(text)
        said = [sent.body.decode("utf-8", "replace"), body.decode("utf-8", "replace"), *map("".join, pieces.values())]
        if (decoder := self._decoded(answer, request)) is not None:
            message = decoder.reply.message
            said += [message.text, message.thinking, *(text for call in message.calls for text in (call.name, call.arguments))]
        if any(self._scrubber.gives_away(text) or self._scrubber.hides_in_base64(text) for text in said):
            raise _unwritten("a secret is spelled out in pieces, or in a way that cannot be taken out")

    def _check_meaning(self, heard: _Heard, exchange: Exchange) -> None:
        """What is written asks for the tools that the model asked for. A secret may be a word of the protocol or a tool's name."""
        request = heard.model_request
        before = self._decoded(Answer(status=heard.status, headers={}, reads=heard.reads, end=heard.end), request)
        after = self._decoded(exchange.answer, request)
        if before is None or after is None:
            return
        if _outline(before) != _outline(after):
            raise _unwritten("a secret stands in the name of a tool or of an argument, or is a word that the protocol needs")

    def _decoded(self, answer: Answer, request: ModelRequest | None) -> Decoder | None:
        if self._codec is None or request is None or answer.status != 200:
            return None
        decoder = self._codec.decoder(request)
        for read in answer.reads:
            decoder.feed(read)
        decoder.close(clean=answer.end == "clean")
        return decoder


def _unwritten(why: str) -> CassetteError:
    return CassetteError(
        f"{why}, so the cassette was not written",
        hint="Keep the secret out of the prompt, the tools and their results, and record again.",
    )


def _outline(decoder: Decoder) -> object:
    """What must not change: which tools are called, with which arguments, and how the reply ended."""
    reply = decoder.reply
    calls = reply.message.calls
    return (
        type(decoder.error),
        reply.finish,
        len({call.id for call in calls}),
        [(call.name, _keys(call.arguments)) for call in calls],
    )


def _keys(arguments: str) -> object:
    try:
        value: Any = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return [step for step, _ in _strings(value)]


def _strings(value: Any) -> list[tuple[tuple[str, ...], str]]:
    """The texts in a JSON value, and the keys of its objects, each with its place. Keys are the same in every frame: none is in pieces."""
    left: list[tuple[tuple[str, ...], Any]] = [((), value)]
    found: list[tuple[tuple[str, ...], str]] = []
    while left:
        path, each = left.pop()
        if isinstance(each, str):
            found.append((path, each))
        elif isinstance(each, dict):
            held = cast("dict[str, Any]", each)
            found += [((*path, "", key), key) for key in held]
            left += [((*path, key), item) for key, item in held.items()]
        elif isinstance(each, list):
            left += [((*path, str(n)), item) for n, item in enumerate(cast("list[Any]", each))]
    return found


def _below(url: str, base_url: str) -> str:
    """The path below the base address, and never the address itself."""
    if url.startswith(base_url):
        return url.removeprefix(base_url)
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


class _RecordingConnection:
    def __init__(self, driver: RecordingDriver, connection: HttpConnection, heard: list[_Heard], scrubber: Scrubber) -> None:
        self._driver = driver
        self._connection = connection
        self._client = _RecordingClient(connection, heard, scrubber)
        connection.client = cast(aiohttp.ClientSession, self._client)

    def open(self, request: ModelRequest) -> Any:
        self._driver.requests.append(request)
        self._client.asked = request
        return self._connection.open(request)


class _RecordingClient:
    """Stands where the connection's client stood, and writes down what passes."""

    def __init__(self, connection: HttpConnection, heard: list[_Heard], scrubber: Scrubber) -> None:
        self._client = connection.client
        self._base_url = connection.address
        self._heard = heard
        self._scrubber = scrubber
        self.asked: ModelRequest | None = None

    @property
    def closed(self) -> bool:
        return self._client.closed

    async def post(self, url: str, *, data: bytes | io.BytesIO, headers: Mapping[str, str], **settings: Any) -> Any:
        self._scrubber.add(sent_secrets(headers))
        sent = Sent(
            method="POST",
            path=_below(url, self._base_url),
            headers=kept(headers, KEPT_REQUEST_HEADERS),
            body=data if isinstance(data, bytes) else data.getvalue(),
        )
        heard = _Heard(sent, self.asked)
        response = await self._client.post(url, data=data, headers=headers, **settings)
        heard.status = response.status
        heard.headers = kept(response.headers, KEPT_ANSWER_HEADERS)
        self._heard.append(heard)
        cast(Any, response).content = _Tap(response.content, heard)
        return response


class _Tap:
    """A body's stream that keeps what is read from it."""

    def __init__(self, stream: aiohttp.StreamReader, heard: _Heard) -> None:
        self._stream = stream
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read_nowait(self) -> bytes:
        try:
            return self._keep(self._stream.read_nowait(), waited=False)
        except BaseException as error:
            self._note(error)
            raise

    async def readany(self) -> bytes:
        return await self._reading(self._stream.readany())

    async def read(self, n: int = -1) -> bytes:
        return await self._reading(self._stream.read(n))

    async def _reading(self, read: Any) -> bytes:
        try:
            return self._keep(await read, waited=True)
        except BaseException as error:
            self._note(error)
            raise

    def _keep(self, data: bytes, *, waited: bool) -> bytes:
        if data:
            self._heard.reads.append(data)
        elif waited or self._stream.at_eof():
            self._heard.end = "clean"
        return data

    def _note(self, error: BaseException) -> None:
        if isinstance(error, aiohttp.ClientError | OSError):
            self._heard.end = "broken"
        elif isinstance(error, Exception) and not isinstance(error, TreadleError):
            self._heard.end = "stalled"  # the driver's own deadline
