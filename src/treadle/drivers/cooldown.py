"""A driver around a driver: a server that keeps failing is left alone for a while, then probed by one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager

from treadle.errors import ContentRefused, ContextOverflow, InvalidRequest, ModelError, Overloaded, Unsupported, UsageError
from treadle.values.outgoing import HttpRequest, said_by
from treadle.values.ports import Connection, Driver, ReplyStream, TokenCounter
from treadle.values.request import ModelInfo, ModelRequest, SchemaSupport
from treadle.values.tokens import Calibration

__all__ = ["Cooldown"]

_PROBE_S = 5.0
_THE_REQUESTS_OWN = (ContentRefused, ContextOverflow, InvalidRequest, Unsupported)


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
        if failures < 1 or cooldown_s <= 0:
            raise UsageError(f"Cooldown(failures={failures}, cooldown_s={cooldown_s}) cannot work", hint="Both are above 0.")
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

    @property
    def schema_support(self) -> SchemaSupport:
        return self._driver.schema_support

    async def info(self) -> ModelInfo:
        """As the driver's; a server that is cooling down is not asked."""
        if self._is_cooling():
            raise self._refusal()
        return await self._driver.info()

    async def count(self, request: ModelRequest) -> int | None:
        """As the driver's, if it counts; a server that is cooling down is not asked."""
        if self._is_cooling() or not isinstance(self._driver, TokenCounter):
            return None
        return await self._driver.count(request)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection]:
        if self._is_cooling():
            raise self._refusal()  # a server that is down must not be looked for either
        async with AsyncExitStack() as held:
            with self._counted():
                connection = await held.enter_async_context(self._driver.connect())
            yield _Cooled(self, connection)

    @asynccontextmanager
    async def call(self, connection: Connection, request: ModelRequest) -> AsyncGenerator[ReplyStream]:
        """One call, counted."""
        if self._is_cooling() or self._probing:
            raise self._refusal()
        self._probing = probe = self._failed >= self._failures
        try:
            with self._counted():
                async with connection.open(request) as stream:
                    yield stream
                self._failed = 0
        finally:
            if probe:
                self._probing = False

    @contextmanager
    def _counted(self) -> Generator[None]:
        try:
            yield
        except _THE_REQUESTS_OWN:
            self._failed = 0  # it answered
            raise
        except ModelError:
            self._failed += 1
            if self._failed >= self._failures:
                self._until = asyncio.get_running_loop().time() + self._cooldown_s
            raise

    def _is_cooling(self) -> bool:
        return self._failed >= self._failures and asyncio.get_running_loop().time() < self._until

    def _refusal(self) -> Overloaded:
        left_s = self._until - asyncio.get_running_loop().time()
        what = f"is left alone for {left_s:.0f} s more" if left_s > 0 else "is being probed by another call"
        return Overloaded(
            f"{self.model} failed {self._failed} times in a row and {what}",
            hint="Wait, look at the server, or name a fallback model.",
            retry_after_s=left_s if left_s > 0 else min(self._cooldown_s, _PROBE_S),
        )


class _Cooled:
    def __init__(self, cooldown: Cooldown, connection: Connection) -> None:
        self._cooldown = cooldown
        self._connection = connection

    def open(self, request: ModelRequest) -> AbstractAsyncContextManager[ReplyStream]:
        return self._cooldown.call(self._connection, request)

    def said(self, request: ModelRequest) -> HttpRequest:
        return said_by(self._connection, request, model=self._cooldown.model)
