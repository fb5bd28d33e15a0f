"""One call that passed every gate: bound, timed, watched, and whatever happens turned into an outcome."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from treadle.errors import ToolError
from treadle.tools.context import Progress, ToolContext
from treadle.tools.function import BoundCall, FunctionTool
from treadle.tools.outcomes import Outcomes
from treadle.tools.threads import run_in_thread
from treadle.values.limits import Limits
from treadle.values.messages import ToolCall
from treadle.values.ports import CallContext
from treadle.values.text import plain_text, shortened
from treadle.values.toolcalls import Concurrency, Outcome

__all__ = ["GRACE_S", "Execution", "Leftovers", "left_behind"]

GRACE_S = 0.5
"""For a tool that cleans up when it is cancelled; after that it is left behind."""

_PROGRESS_EVERY_S = 0.1
_RESOLUTION_S = 0.001  # a wait shorter than this may pass without the clock having moved
_BLOCKED_S = 1.0  # an async tool that holds the event loop for longer is told on

_left_behind: set[asyncio.Task[Any]] = set()
"""Async tools that ignored their cancellation. They cannot write to a run any more; kept here so that they can be listed."""


class Leftovers:
    """The cancelled tools of a run, until they have ended or are left behind."""

    def __init__(self) -> None:
        self._cancelled: set[asyncio.Task[Any]] = set()

    def add(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self._cancelled.add(task)

    async def settle(self) -> None:
        """Give them a moment to clean up. What still runs then is left behind."""
        cancelled, self._cancelled = self._cancelled, set()
        if not cancelled:
            return
        try:
            await asyncio.wait(cancelled, timeout=GRACE_S)
        finally:
            for task in cancelled:
                if not task.done():
                    _left_behind.add(task)
                task.add_done_callback(_forget)


def left_behind() -> tuple[str, ...]:
    """Names of async tools that ignored their cancellation and still run."""
    return tuple(sorted(task.get_name() for task in _left_behind))


def _forget(task: asyncio.Task[Any]) -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it


class Execution:
    """A call that passed every gate. See `treadle.values.ports.PreparedCall`.

    Args:
        injected: Values for the parameters that the run fills, but for the context, which is made here.
        leftovers: Takes the tool's task if the call is cancelled from outside.
        can_read_result: The model has a tool to page through long results, so they may name it.
    """

    def __init__(
        self,
        call: ToolCall,
        tool: FunctionTool[..., Any],
        bound: BoundCall,
        injected: Mapping[str, object],
        limits: Limits,
        leftovers: Leftovers,
        *,
        can_read_result: bool = False,
    ) -> None:
        self.concurrency: Concurrency = tool.concurrency
        self.group = tool.settings.get("group")
        self.repeatable = tool.settings.get("repeatable", False)
        self.needs_approval = tool.settings.get("needs_approval", False)
        self.is_question = tool.settings.get("is_question", False)
        self._call = call
        self._tool = tool
        self._bound: BoundCall | None = bound
        self._injected = injected
        self._limits = limits
        self._leftovers = leftovers
        self._outcomes = Outcomes(call, limits, can_read_result=can_read_result)
        timeout_s = math.inf if tool.concurrency == "interactive" else limits.tool_timeout_s
        self._timeout_s = timeout_s if tool.timeout_s is None else tool.timeout_s

    def subjects(self) -> Mapping[str, str | None]:
        given = self._again().arguments
        own = self._tool.settings.get("subjects")
        if own is None:
            written = msgspec.json.decode(self._call.arguments or "{}", type=dict[str, msgspec.Raw])
            return {name: _as_written(written.get(name), value) for name, value in given.items()}
        said: dict[str, str | None] = dict.fromkeys(given)
        try:
            said |= own(**given)
        except Exception:  # then nobody knows what it acts on
            return dict.fromkeys(given)
        return {name: subject if isinstance(subject, str) else None for name, subject in said.items()}

    async def preview(self) -> str | None:
        make = self._tool.settings.get("preview")
        if make is None:
            return None
        task = asyncio.get_running_loop().create_task(_outcome(_previewed(make, self._again().arguments)))
        try:
            done, _ = await asyncio.wait([task], timeout=self._limits.tool_timeout_s)
        finally:
            if not task.done():
                self._leftovers.add(task)
        try:
            value, error = task.result() if done else (None, TimeoutError())
        except asyncio.CancelledError as own:
            value, error = None, own
        if error is None and value is None:
            return None
        if isinstance(error, ToolError):
            return f"(it would fail: {plain_text(error.message)})"[: self._limits.tool_result_chars]
        text = plain_text(value) if error is None else f"(no preview: {type(error).__name__}: {plain_text(error)})"
        if len(text) <= self._limits.tool_result_chars:
            return text
        # What is left out of it must be the same too when the call runs.
        digest = f"\n[the whole text: sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}]"
        return shortened(text, self._limits.tool_result_chars - len(digest)) + digest

    def _again(self) -> BoundCall:
        """The arguments anew: what was handed to a function once may not be what it was."""
        return self._tool.bind(self._call.arguments)

    async def run(self, context: CallContext) -> Outcome:
        """The outcome. Raises only when cancelled from outside.

        The tool runs in a task of its own, so that one that ignores its cancellation can be left behind.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._timeout_s
        progress: Progress | None = None
        injected = dict(self._injected)
        for name, parameter in self._tool.injected.items():
            if parameter.annotation is ToolContext:
                progress = progress or Progress()
                injected[name] = ToolContext(context, self._call.id, min(ends_at, context.deadline), progress)
        bound, self._bound = self._bound or self._again(), None
        watched = _Watched(partial(bound.run, injected))
        task = loop.create_task(_outcome(watched), name=f"treadle-{self._call.name}")
        try:
            is_done = await self._wait(task, progress, ends_at, context)
        except BaseException:  # cancelled; or its progress could not be journaled
            self._leftovers.add(task)  # waited for later: the server's connection is closed first
            raise
        if is_done:
            outcome = self._ended(task)
        else:
            late = Leftovers()
            late.add(task)
            await late.settle()
            outcome = self._outcomes.of_failure(f"timed out after {self._timeout_s:g} s. It may have taken effect.", "timeout")
        if watched.longest_step_s >= _BLOCKED_S:
            said = f"{self._call.name} held up the whole program for {watched.longest_step_s:.1f} s: no timeout, no other tool and no"
            advice = "Ctrl-C could act meanwhile. Make it a plain `def`, which runs in a thread, or await what it waits for."
            outcome = replace(outcome, warning=f"{said} {advice}")
        return outcome

    def _ended(self, task: asyncio.Task[tuple[object, BaseException | None]]) -> Outcome:
        try:
            value, error = task.result()
        except asyncio.CancelledError as own:  # the tool's own business, not ours
            return self._outcomes.of_error(own)
        return self._outcomes.of_value(value) if error is None else self._outcomes.of_error(error)

    async def _wait(self, task: asyncio.Task[Any], progress: Progress | None, ends_at: float, context: CallContext) -> bool:
        """Wait until the tool has ended or its time is up, passing on what it tells meanwhile; whether it has ended."""
        loop = asyncio.get_running_loop()
        if progress is None:
            done, _ = await asyncio.wait([task], timeout=None if math.isinf(ends_at) else ends_at - loop.time())
            return bool(done)
        while not task.done() and ends_at - loop.time() > _RESOLUTION_S:
            told = loop.create_task(progress.get())
            try:
                timeout_s = None if math.isinf(ends_at) else ends_at - loop.time()
                await asyncio.wait([task, told], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if told.done():
                    await context.report(*told.result())
            finally:
                told.cancel()
            if told.done() and not task.done():
                await asyncio.wait([task], timeout=min(_PROGRESS_EVERY_S, max(0.0, ends_at - loop.time())))
        if (last := progress.take()) is not None:
            await context.report(*last)
        return task.done()


class _Watched:
    """An awaitable that measures how long its coroutine holds the event loop at a stretch, in real time."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._start = start
        self.longest_step_s = 0.0

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._start().__await__()
        step = inner.__next__
        while True:
            began = time.perf_counter()
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            finally:
                self.longest_step_s = max(self.longest_step_s, time.perf_counter() - began)
            try:
                yield waits_for
                step = inner.__next__
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:
                thrown = error
                step = lambda: inner.throw(thrown)  # noqa: E731, B023


async def _previewed(make: Callable[..., Any], arguments: Mapping[str, Any]) -> object:
    made: Any = make(**arguments) if inspect.iscoroutinefunction(make) else await run_in_thread(partial(make, **arguments))
    return await made if inspect.isawaitable(made) else made


def _as_written(written: msgspec.Raw | None, value: object) -> str | None:
    """An argument as text: as the model wrote it, or the default in its place; None if that is no JSON."""
    try:
        json = bytes(written) if written is not None else msgspec.json.encode(value)
        decoded = msgspec.json.decode(json)
    except (TypeError, UnicodeError, msgspec.MsgspecError):
        return None
    return decoded if isinstance(decoded, str) else msgspec.json.encode(decoded).decode()


async def _outcome(watched: Awaitable[object]) -> tuple[object, BaseException | None]:
    """What the tool returned or raised. A SystemExit that leaves a task would end the event loop."""
    try:
        return await watched, None
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:
        return None, error
