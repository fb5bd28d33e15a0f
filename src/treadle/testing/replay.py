"""Recorded bytes, played into the real codec: no socket, no HTTP client, no time.

What the loop sees is what `HttpDriver` would have shown it for the same bytes; `tests/testing/test_replay.py` compares the two.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from treadle.errors import ConnectFailed, ModelError, ModelTimeout
from treadle.testing.errors import CassetteError, NotPlayed, NotRecorded, RequestDiffers
from treadle.testing.faults import Cut, Fault, Refuse, Split, Stall, Status, struck, with_split
from treadle.testing.matching import difference
from treadle.testing.scrub import Scrubber
from treadle.testing.tape import Answer, Exchange, Sent, Tape
from treadle.values.events import Delta
from treadle.values.request import ModelInfo, ModelRequest, Omission, PrefixMove, Reply, SchemaSupport
from treadle.values.tokens import Calibration
from treadle.wire.codec import Codec, Decoder
from treadle.wire.ledger import Following, Ledger

__all__ = ["ReplayDriver"]


class _Headers(dict[str, str]):
    """Looked up in any case, as codecs expect; held in lower case."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)


class _Play:
    """An exchange that was asked for, and how it is to go this time."""

    def __init__(self, player: _Player, number: int, fault: Fault | None) -> None:
        self.exchange: Exchange = player.tape.exchanges[number]
        self.fault = fault
        self.split: Split = player.split
        self.is_over = fault is None
        self._player = player
        self._number = number

    def finished(self) -> None:
        """The answer was whole in spite of its fault: nobody will ask for it again."""
        self.is_over = True
        self._player.played.add(self._number)


class _Player:
    """What of a cassette has been played."""

    def __init__(
        self,
        tape: Tape,
        path: Path,
        split: Split,
        faults: Mapping[int, Fault | Sequence[Fault]],
        ignore: Iterable[str],
        scrubber: Scrubber,
    ) -> None:
        self.tape = tape
        self.path = path
        self.split: Split = split
        self.ignore = tuple(ignore)
        self.played: set[int] = set()
        self.problem: CassetteError | None = None
        self._last: _Play | None = None
        self._scrubber = scrubber
        self._faults: dict[int, list[Fault]] = {
            number: list(each) if isinstance(each, Sequence) else [each] for number, each in faults.items()
        }
        for number in self._faults:
            if number not in range(len(tape.exchanges)):
                raise CassetteError(
                    f"a fault is for exchange {number}, and {path.name} has {len(tape.exchanges)}",
                    hint="Exchanges are counted from 0.",
                )

    def take(self, asked: Sent) -> _Play:
        """The recorded exchange with this request, the first that was not played yet.

        Raises:
            CassetteError: There is none.
        """
        left = [number for number in range(len(self.tape.exchanges)) if number not in self.played]
        found: tuple[str, str] | None = None
        for number in left:
            differs = self._difference(self.tape.exchanges[number].request, asked)
            if differs is None:
                faults = self._faults.get(number)
                fault = faults.pop(0) if faults else None
                if fault is None:
                    self.played.add(number)
                self._last = _Play(self, number, fault)
                return self._last
            found = found or differs
        name, total = self.path.name, len(self.tape.exchanges)
        if found is None:
            self.problem = NotRecorded(
                f"{name} has {total} exchanges, all of them were played, and the run asks for one more",
                hint=RequestDiffers.default_hint,
            )
        else:
            path, what = found
            self.problem = RequestDiffers(
                f"the request is not the recorded one (exchange {left[0]} of {name}): {what}", path=path
            )
        raise self.problem

    def check_end(self) -> None:
        """Raise what a test should not pass with."""
        if self.problem is not None:
            raise self.problem
        if self._last is not None and not self._last.is_over:
            return  # the run ended of the fault, so it did not ask for the rest
        left = [number for number in range(len(self.tape.exchanges)) if number not in self.played]
        if left:
            raise NotPlayed(
                f"{len(left)} of {len(self.tape.exchanges)} exchanges of {self.path.name} were not asked for: "
                f"{', '.join(map(str, left))}"
            )
        if struck_not := sorted(number for number, faults in self._faults.items() if faults):
            raise NotPlayed(
                f"faults for the exchanges {', '.join(map(str, struck_not))} never struck: they were not asked for again",
                hint="A second fault strikes the next attempt. Is the run allowed to make one?",
            )

    def _difference(self, recorded: Sent, asked: Sent) -> tuple[str, str] | None:
        if recorded.method != asked.method or difference(recorded.path, asked.path) is not None:
            path = self._scrubber.clean_path(asked.path)
            return "path", f"it goes to {asked.method} {path}; recorded was {recorded.method} {recorded.path}"
        # As it is, first: what only this machine takes for a secret makes no difference. Then without, for it must not be shown.
        if self._body_difference(recorded.body, asked.body) is None:
            return None
        return self._body_difference(recorded.body, self._scrubber.clean_request(asked.body))

    def _body_difference(self, recorded: bytes, asked: bytes) -> tuple[str, str] | None:
        try:
            return difference(json.loads(recorded), json.loads(asked), ignore=self.ignore)
        except ValueError:
            return None if recorded == asked else ("body", "its body, which is no JSON, is another")


class ReplayDriver:
    """Answers a run's requests from a cassette. Made by `Cassette`.

    Attributes:
        requests: What was asked, in order.
    """

    def __init__(
        self,
        tape: Tape,
        codec: Codec,
        path: Path,
        *,
        split: Split = "recorded",
        faults: Mapping[int, Fault | Sequence[Fault]] | None = None,
        ignore: Iterable[str] = (),
        scrubber: Scrubber | None = None,
    ) -> None:
        self.model = tape.model
        self.codec = codec
        self.served_model = tape.served_model
        self.calibration = Calibration()
        self.ledger = Ledger()
        self.requests: list[ModelRequest] = []
        self._tape = tape
        self._player = _Player(tape, path, split, faults or {}, ignore, scrubber or Scrubber())

    def __repr__(self) -> str:
        return f"ReplayDriver({self.model!r}, {len(self._player.played)} of {len(self._tape.exchanges)} exchanges played)"

    @property
    def continuable(self) -> bool:
        return self.codec.continuable

    @property
    def schema_support(self) -> SchemaSupport:
        return self.codec.schema_support

    async def info(self) -> ModelInfo:
        """What the server said when this was recorded; only the name if it was not asked then."""
        return self._tape.info or ModelInfo(model=self.served_model, server="openai-compatible")

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[_ReplayConnection]:
        yield _ReplayConnection(self, self._player)

    def check_end(self) -> None:
        """Pass if everything was played.

        Raises:
            CassetteError: A request had no answer, an exchange was not asked for, or a fault did not strike.
        """
        self._player.check_end()


class _ReplayConnection:
    def __init__(self, driver: ReplayDriver, player: _Player) -> None:
        self.driver = driver
        self.player = player
        self.encoder = driver.codec.encoder(driver.served_model)
        self.address = f"the cassette {player.path.name}"
        self.untold: list[Omission] = []  # as HttpConnection has it
        self.following = Following(driver.ledger)

    def open(self, request: ModelRequest) -> _ReplayReply:
        return _ReplayReply(self, request)


class _ReplayReply:
    """A recorded reply, as `HttpReply` would have read it."""

    def __init__(self, connection: _ReplayConnection, request: ModelRequest) -> None:
        self._connection = connection
        self._request = request
        self._decoder: Decoder = connection.driver.codec.decoder(request)
        self._reads: list[bytes] = []
        self._play: _Play | None = None
        self._over = False
        self.omitted: Sequence[Omission] = ()
        self.moved: PrefixMove | None = None

    @property
    def reply(self) -> Reply:
        return self._decoder.reply

    async def __aenter__(self) -> Self:
        connection = self._connection
        body = connection.encoder.encode(self._request)
        connection.untold += connection.encoder.omitted
        connection.following.sent(connection.encoder.prefix, connection.encoder.moved)
        connection.driver.requests.append(self._request)
        await asyncio.sleep(0)
        codec = connection.driver.codec
        self._play = play = connection.player.take(Sent(method="POST", path=codec.path, headers={}, body=body))
        answer = _faulty(play.exchange.answer, play.fault)
        if answer is None:
            raise ConnectFailed(f"nothing answers at {connection.address}: refused by the test")
        if answer.status != 200:
            raise codec.error(answer.status, _Headers(answer.headers), b"".join(answer.reads), address=connection.address)
        self._answer = answer
        self._reads = with_split(answer.reads, play.split)[::-1]
        if isinstance(play.fault, Stall) and not self._reads:
            raise self._timed_out()
        self.omitted = tuple(connection.untold)
        connection.untold.clear()
        self.moved = connection.following.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._play is not None and self._play.fault is not None and self._decoder.finished and self._decoder.error is None:
            self._play.finished()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Delta]:
        decoder = self._decoder
        if decoder.error is not None:
            raise decoder.error
        if self._over:
            raise StopAsyncIteration
        await asyncio.sleep(0)
        if self._reads:
            return decoder.feed(self._reads.pop())
        self._over = True
        end = self._answer.end
        if end == "stalled" and not decoder.finished:
            raise self._timed_out()
        if end == "left" and not decoder.finished:
            raise CassetteError(
                f"the run reads on where the recorded one had read enough ({self._connection.player.path.name})",
            )
        return decoder.close(clean=end != "broken")

    def _timed_out(self) -> ModelError:
        timeouts, began = self._request.timeouts, self._decoder.began
        limit_s = timeouts.silence_s if began else timeouts.first_token_s
        return ModelTimeout("silence" if began else "first_token", limit_s, address=self._connection.address)


def _faulty(answer: Answer, fault: Fault | None) -> Answer | None:
    """The answer with its fault; None if there is none at all."""
    if isinstance(fault, Refuse):
        return None
    if isinstance(fault, Status):
        headers = {"content-type": "application/json"}
        if fault.retry_after_s is not None:
            headers["retry-after"] = f"{fault.retry_after_s:g}"
        return Answer(status=fault.code, headers=headers, reads=[fault.body])
    reads = struck(answer.reads, fault, answer.headers.get("content-type", ""))
    end = "stalled" if isinstance(fault, Stall) else "broken" if isinstance(fault, Cut) else answer.end
    return Answer(status=answer.status, headers=answer.headers, reads=reads, end=end)
