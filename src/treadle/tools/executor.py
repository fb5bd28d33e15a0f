"""Running calls: validate, bound, time, turn whatever happens into a result the model can read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from treadle.errors import ToolError
from treadle.tools.function import BoundCall, FunctionTool, InvalidArguments
from treadle.values.limits import Limits
from treadle.values.messages import ToolCall, ToolMessage
from treadle.values.ports import Concurrency

__all__ = ["Executor", "left_behind", "shortened"]

_GRACE_S = 0.5  # for a tool that cleans up when it is cancelled; after that it is left behind

_left_behind: set[asyncio.Task[Any]] = set()
"""Async tools that ignored their cancellation. They cannot write to a run any more; kept here so that they can be listed."""


class Executor:
    """The tools of a run, and the rules for running them."""

    def __init__(self, tools: Iterable[FunctionTool[..., Any]], limits: Limits) -> None:
        self._tools = {tool.spec.name: tool for tool in tools}
        self._limits = limits
        self._cancelled: set[asyncio.Task[Any]] = set()

    def prepare(self, call: ToolCall) -> Execution | ToolMessage:
        """What to run; or, for an unknown tool or arguments that fail a gate, the result that says so."""
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join(sorted(self._tools)) or "none"
            return _error(call, f"there is no tool named {call.name[:64]!r}. Tools: {names}.")
        try:
            bound = tool.bind(call.arguments)
        except InvalidArguments as error:
            said = f"invalid arguments: {error}. Nothing ran. Arguments as received: {call.arguments[:500]}"
            return _error(call, said)
        return Execution(call, tool, bound, self._limits, self._cancelled)

    async def run_in_turn(self, jobs: Sequence[tuple[Concurrency, Callable[[], Awaitable[None]]]]) -> None:
        """Run one turn's jobs, given in call order: none starts before an earlier one that it conflicts with has ended.

        Read-only jobs do not conflict with each other; every other pair does. Cancelled, it cancels the jobs; `settle` then
        waits for their tools.
        """
        if len(jobs) == 1:
            await jobs[0][1]()
            return
        most = max(1, self._limits.parallel_tools)
        waiting = list(jobs)
        running: dict[asyncio.Future[None], Concurrency] = {}
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    concurrency, job = waiting[0]
                    if running and (concurrency != "read_only" or any(c != "read_only" for c in running.values())):
                        break
                    running[asyncio.ensure_future(job())] = concurrency
                    waiting.pop(0)
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    task.result()
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running, timeout=_GRACE_S)

    async def settle(self) -> None:
        """Give the tools of a cancelled run a moment to clean up. What still runs then is left behind."""
        cancelled, self._cancelled = self._cancelled, set()
        if cancelled:
            await _settled(cancelled)


class Execution:
    """A call that passed every gate."""

    def __init__(
        self,
        call: ToolCall,
        tool: FunctionTool[..., Any],
        bound: BoundCall,
        limits: Limits,
        cancelled: set[asyncio.Task[Any]],
    ) -> None:
        self._cancelled = cancelled
        self.concurrency: Concurrency = tool.concurrency
        self._call = call
        self._bound = bound
        self._limits = limits
        self._timeout_s = tool.timeout_s if tool.timeout_s is not None else limits.tool_timeout_s

    async def run(self) -> ToolMessage:
        """The result. Raises only when cancelled from outside.

        The tool runs in a task of its own, so that one that ignores its cancellation can be left behind.
        """
        call = self._call
        task = asyncio.get_running_loop().create_task(self._outcome(), name=f"treadle-{call.name}")
        try:
            done, _ = await asyncio.wait([task], timeout=self._timeout_s)
        except asyncio.CancelledError:
            task.cancel()
            self._cancelled.add(task)  # waited for later: the server's connection is closed first
            raise
        if not done:
            task.cancel()
            await _settled({task})
            return _error(call, f"timed out after {self._timeout_s:g} s. It may have taken effect.")
        try:
            value, error = task.result()
        except asyncio.CancelledError as own:  # the tool's own business, not ours
            return self._failed(own)
        if error is not None:
            return self._failed(error)
        try:
            text = _text(value)
        except Exception as error:
            kind = type(value).__name__
            return _error(call, f"the tool ran, but its result (a {kind}) cannot be written as JSON: {_words(error)}")
        return self._message(text)

    async def _outcome(self) -> tuple[object, BaseException | None]:
        """What the tool returned or raised. A SystemExit that leaves a task would end the event loop."""
        try:
            return await self._bound.run(), None
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            return None, error

    def _failed(self, error: BaseException) -> ToolMessage:
        said = error.message if isinstance(error, ToolError) else f"{type(error).__name__}: {_words(error)}"
        return self._message(said, is_error=True)

    def _message(self, text: str, *, is_error: bool = False) -> ToolMessage:
        if not text.isascii():
            text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair, as file names may hold
        kept = text[: self._limits.tool_result_kept_chars]
        content = shortened(text, self._limits.tool_result_chars)
        return ToolMessage(self._call.id, self._call.name, content, is_error=is_error, full=kept if content is not text else None)


def left_behind() -> tuple[str, ...]:
    """Names of async tools that ignored their cancellation and still run."""
    return tuple(sorted(task.get_name() for task in _left_behind))


async def _settled(cancelled: set[asyncio.Task[Any]]) -> None:
    """Wait for cancelled tools; after the grace, leave behind those that still run."""
    try:
        await asyncio.wait(cancelled, timeout=_GRACE_S)
    finally:
        for task in cancelled:
            if not task.done():
                _left_behind.add(task)
            task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text cannot be read)"


def shortened(text: str, max_chars: int) -> str:
    """The text itself if it fits; else its head and tail, with a line between them that says how much is missing.

    The result is never longer than `max_chars` plus that line.
    """
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    tail = max_chars - head
    return f"{text[:head]}\n[... {len(text) - max_chars:,} of {len(text):,} characters left out ...]\n{text[len(text) - tail :]}"


def _text(value: Any) -> str:
    """A tool's return value as the model reads it: text as it is, nothing as a word, the rest as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return "(done, no output)"
    return msgspec.json.encode(value, enc_hook=_encode_other).decode()


def _encode_other(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # a pydantic model
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _error(call: ToolCall, said: str) -> ToolMessage:
    return ToolMessage(call.id, call.name, said, is_error=True)
