"""`Cassette`: a model's answers, recorded once from the real server and played in tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from treadle.testing.errors import CassetteError, NotRecorded
from treadle.testing.faults import Fault, Split
from treadle.testing.guard import lifted
from treadle.testing.replay import ReplayDriver
from treadle.testing.scrub import Scrubber, without_address
from treadle.testing.tape import codec_from, read_tape, write_tape
from treadle.values.ports import Driver
from treadle.values.request import ModelRequest
from treadle.wire.codec import Codec

if TYPE_CHECKING:
    from treadle.testing.record import RecordingDriver

__all__ = ["Cassette", "Record", "default_record"]

Record: TypeAlias = Literal["none", "once", "all"]
"""`none` only plays; `once` records where there is no file yet; `all` records anew."""


def default_record() -> Record:
    """`once`; where the variable CI is set, `none`."""
    return "none" if os.environ.get("CI", "").lower() not in ("", "0", "false") else "once"


class Cassette:
    """Recorded answers of a model, as the driver of an agent.

        with Cassette("cassettes/oslo.json", model="ollama/qwen3:8b") as driver:
            result = Agent(driver, tools=[get_weather]).run_sync("Weather in Oslo?")

    Playing needs no network and no key. A request that is not the recorded one fails the run with `RequestDiffers`, which names the
    first difference. Leaving the block without an error writes what was recorded, or checks that all of it was played. Before anything is written, secrets are taken out (docs/testing-agents.md).

    Args:
        path: The file.
        model: As `Agent` takes it: a name, or a driver (an `HttpDriver`; for a wire format of your own it has to be one).
        record: `none`, `once` or `all`; by default `once`, and `none` where the variable CI is set.
        split: Where the bytes of the answers are cut when they are played: `recorded`, `whole`, `bytes`, or a seed for random places.
        faults: What goes wrong, by the number of the exchange, from 0. It strikes when the exchange is asked for, and the attempt
            after it gets the recorded answer; of several each strikes one attempt. A use with faults or another split records nothing.
        ignore: Places in the request's JSON that may differ: `messages.0.content`, `messages.*.content`. `*` is any step or steps.
        secrets: What must not be written, besides keys that are sent and those in variables of the environment.

    Raises:
        CassetteError: From entering: there is no cassette to play (`NotRecorded`), or it is another model's. From leaving: something
            was not played (`NotPlayed`), or a request differed and the error was swallowed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | Driver,
        record: Record | None = None,
        split: Split = "recorded",
        faults: Mapping[int, Fault | Sequence[Fault]] | None = None,
        ignore: Iterable[str] = (),
        secrets: Iterable[str] = (),
    ) -> None:
        self.path = Path(path)
        self._model = model
        self._record: Record = record or default_record()
        self._split: Split = split
        self._faults = faults or {}
        self._ignore = ignore
        self._scrubber = Scrubber(secrets)
        self._driver: ReplayDriver | RecordingDriver | None = None
        self._held = ExitStack()

    @property
    def records(self) -> bool:
        """This use asks the real server. One that changes the answers does not: it plays what another recorded."""
        if self._faults or self._split != "recorded" or self._record == "none":
            return False
        return self._record == "all" or not self.path.exists()

    def __enter__(self) -> ReplayDriver | RecordingDriver:
        if self.records:
            self._held.enter_context(lifted())
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._held.close()
        if error is None:
            self.finish()

    def start(self) -> ReplayDriver | RecordingDriver:
        """The driver. Entering the block does this.

        Raises:
            CassetteError: There is no cassette to play, it cannot be read, or it is another model's.
        """
        self._driver = self._recording() if self.records else self._replaying()
        return self._driver

    def finish(self) -> None:
        """Write what was recorded, or check that all was played. Leaving the block without an error does this."""
        driver = self._driver
        if isinstance(driver, ReplayDriver):
            driver.check_end()
        elif driver is not None:
            write_tape(driver.tape(), self.path)

    @property
    def requests(self) -> list[ModelRequest]:
        """What was asked so far, in order."""
        return [] if self._driver is None else self._driver.requests

    def _recording(self) -> RecordingDriver:
        from treadle.testing.record import RecordingDriver  # loads the HTTP client

        model = self._model
        if isinstance(model, str):
            from treadle.drivers.catalog import driver_for

            return RecordingDriver(driver_for(model), model, self._scrubber)
        return RecordingDriver(model, model.model, self._scrubber)

    def _replaying(self) -> ReplayDriver:
        try:
            tape = read_tape(self.path)
        except FileNotFoundError:
            raise NotRecorded(f"there is no cassette {self.path.name} in {self.path.parent.name or 'this directory'}/") from None
        model = self._model
        codec: Codec | None = None if isinstance(model, str) else getattr(model, "codec", None)
        if isinstance(model, str) and without_address(model) != tape.model != self._scrubber.clean_text(without_address(model)):
            raise CassetteError(f"{self.path.name} was recorded with {tape.model!r}, and the test asks for {model!r}")
        if codec is None:
            if tape.codec is None:
                raise CassetteError(
                    f"{self.path.name} was recorded in a wire format of your own",
                    hint="Pass the HttpDriver with that codec as `model=`, as when it was recorded.",
                )
            codec = codec_from(tape.codec)
        return ReplayDriver(
            tape,
            codec,
            self.path,
            split=self._split,
            faults=self._faults,
            ignore=self._ignore,
            scrubber=self._scrubber,
        )
