"""A driver around a driver: a server that keeps failing is left alone for a while, then probed by one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from treadle.errors import InvalidRequest, ModelError, Overloaded
from treadle.values.ports import Connection, Driver, ReplyStream
from treadle.values.request import ModelInfo, ModelRequest
from treadle.values.tokens import Calibration

__all__ = ["Cooldown"]


class Cooldown:
    """Refuses calls at once while a server is cooling down, so that a run goes on to its fallback without waiting.

        Agent(Cooldown("ollama/qwen3:8b"), fallback=["llamacpp/small"])

    After `failures` failed calls in a row, whichever runs made them, calls raise `Overloaded` for `cooldown_s` seconds. Then
    one call is let through: if it succeeds the server is back, if it fails it cools down again. Share one `Cooldown` between
    agents to share what they learn.

    Args:
        failures: Failed calls in a row. Errors that are the request's own fault do not count.
        cooldown_s: How long the server is left alone, on the event loop's clock.
    """

    def __init__(self, driver: Driver | str, *, failures: int = 3, cooldown_s: float = 30.0) -> None:
        if isinstance(driver, str):
            from treadle.drivers.catalog import driver_for

            driver = driver_for(driver)
        self._driver = driver
        self._failures = failures
        self._cooldown_s = cooldown_s
        self._failed = 0
        self._until = 0.0
        self._probing = False

    @property
    def model(self) -> str:
        return self._driver.model

    @property
    def calibration(self) -> Calibration:
        return self._driver.calibration

    @property
    def continuable(self) -> bool:
        return self._driver.continuable

    async def info(self) -> ModelInfo:
        return await self._driver.info()

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection]:
        if self._is_cooling():
            raise self._refusal()  # a server that is down must not be looked for either
        async with self._driver.connect() as connection:
            yield _Cooled(self, connection)

    @asynccontextmanager
    async def call(self, connection: Connection, request: ModelRequest) -> AsyncGenerator[ReplyStream]:
        """One call, counted."""
        if self._is_cooling() or self._probing:
            raise self._refusal()
        probe = self._failed >= self._failures
        self._probing = probe
        try:
            async with connection.open(request) as stream:
                yield stream
        except InvalidRequest:
            raise
        except ModelError:
            self._failed += 1
            if self._failed >= self._failures:
                self._until = asyncio.get_running_loop().time() + self._cooldown_s
            raise
        else:
            self._failed = 0
        finally:
            if probe:
                self._probing = False

    def _is_cooling(self) -> bool:
        return self._failed >= self._failures and asyncio.get_running_loop().time() < self._until

    def _refusal(self) -> Overloaded:
        left_s = max(0.0, self._until - asyncio.get_running_loop().time())
        return Overloaded(
            f"{self.model} failed {self._failed} times in a row and is left alone for {left_s:.0f} s more",
            hint="Wait, look at the server, or name a fallback model.",
            retry_after_s=left_s,
        )


class _Cooled:
    def __init__(self, cooldown: Cooldown, connection: Connection) -> None:
        self._cooldown = cooldown
        self._connection = connection

    def open(self, request: ModelRequest) -> AbstractAsyncContextManager[ReplyStream]:
        return self._cooldown.call(self._connection, request)
