"""What tools really return, raise and say, beyond what their types allow: none of it may end a run or spoil its journal."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import run_virtual, settled
from treadle.errors import ToolDefinitionError, ToolError, UsageError
from treadle.tools import execution as execution_module
from treadle.tools.context import Injected, Progress, ToolContext
from treadle.tools.executor import Executor
from treadle.tools.function import tool
from treadle.tools.turn import run_jobs
from treadle.values.messages import ToolMessage
from treadle.values.ports import Job
from treadle.values.toolcalls import Outcome, ToolResult

from .calls import LIMITS, Reports, context, execution, outcome


class Text(str):
    """As libraries return it: markup, a scraped string, a path's name."""

    __slots__ = ()


def journaled(fn: Any) -> Outcome:
    made = run_virtual(outcome(fn))
    msgspec.json.encode(made)
    return made


def returning(value: object) -> Callable[[], Any]:
    async def f() -> Any:
        return value

    return f


def raising(error: BaseException) -> Callable[[], Any]:
    async def f() -> Any:
        raise error

    return f


# --- execution.py: `run` raises only when cancelled, and what it returns can be journaled ----------------------------


def test_a_text_of_a_subclass_of_str_becomes_plain() -> None:
    assert journaled(returning(Text("x"))).result.content == "x"


def test_a_display_of_a_subclass_of_str_becomes_plain() -> None:
    assert journaled(returning(ToolResult(content="x", display=Text("y")))).result.display == "y"


def test_a_tool_error_with_a_subclass_of_str_becomes_plain() -> None:
    assert journaled(raising(ToolError(Text("x")))).result.content == "x"


def test_a_subclass_of_str_inside_a_list_is_text() -> None:
    assert journaled(returning([Text("x")])).result.content == '["x"]'


def test_a_tool_error_made_from_an_exception_has_its_words() -> None:
    """`raise ToolError(error) from error` is what people write."""
    made = journaled(raising(ToolError(ValueError("why"))))  # type: ignore[arg-type]
    assert (made.result.content, made.result.is_error) == ("why", True)


@pytest.mark.parametrize(
    "made",
    [
        ToolResult(content="x", display=3),  # type: ignore[arg-type]
        ToolResult(content="x", images=5),  # type: ignore[arg-type]
    ],
    ids=["display", "images"],
)
def test_a_result_whose_parts_are_of_the_wrong_type_is_still_an_outcome(made: ToolResult) -> None:
    assert isinstance(run_virtual(outcome(returning(made))), Outcome)


def test_images_that_are_no_images_do_not_reach_the_history() -> None:
    """The next request, which is nowhere near the tool, is what fails then."""
    made = run_virtual(outcome(returning(ToolResult(content="x", images=("chart.png",)))))  # type: ignore[arg-type]
    assert made.result.is_error or made.result.images == ()


def test_a_kind_that_there_is_not_can_be_read_back() -> None:
    made = run_virtual(outcome(raising(ToolError("x", kind="not found"))))  # type: ignore[arg-type]
    msgspec.json.decode(msgspec.json.encode(made), type=Outcome)


def test_words_that_exit_when_they_are_read_do_not_end_the_program() -> None:
    class Exits(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    assert journaled(raising(Exits())).result.content.startswith("Exits: ")


def test_a_value_that_exits_when_it_is_dumped_does_not_end_the_program() -> None:
    class Exits:
        def model_dump(self, **_: object) -> object:
            raise SystemExit(3)

    assert journaled(returning(Exits())).result.is_error


def test_details_for_debugging_do_not_spoil_a_good_result() -> None:
    made = journaled(returning(ToolResult(content="fine", details={"at": object()})))
    assert (made.result.content, made.result.is_error) == ("fine", False)


def test_details_are_measured_in_characters() -> None:
    details = {"name": "é" * (LIMITS.tool_result_chars // 2 + 1)}
    assert journaled(returning(ToolResult(content="x", details=details))).details == details


def test_half_surrogates_inside_a_value_are_written_out() -> None:
    """`os.listdir` returns them. The same name as text is written out."""
    made = journaled(returning(["a", "name \udcff.txt"]))
    assert (made.result.content, made.result.is_error) == ('["a","name \\\\udcff.txt"]', False)


def test_a_tool_that_held_up_the_loop_and_ran_out_of_time_is_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopwatch:
        now_s = 0.0

        def perf_counter(self) -> float:
            return self.now_s

    watch = Stopwatch()
    monkeypatch.setattr(execution_module, "time", watch)

    async def f() -> None:
        watch.now_s += 300
        await asyncio.get_running_loop().create_future()

    made = run_virtual(outcome(f))
    assert made.result.error_kind == "timeout"
    assert made.warning is not None


def test_a_report_that_fails_ends_the_tool() -> None:
    """A journal that is full ends the run; the tool must end with it."""
    ended: list[str] = []

    async def f(ctx: ToolContext) -> None:
        ctx.progress("x")
        try:
            await asyncio.sleep(100)
        finally:
            ended.append("cancelled")

    async def full(_text: str, _fraction: float | None) -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        executor = Executor([tool(f)], LIMITS)
        prepared = executor.prepare(execution(f)._call)
        assert not isinstance(prepared, ToolMessage)
        with pytest.raises(OSError, match="No space left"):
            await prepared.run(context(full))
        await executor.settle()
        assert ended == ["cancelled"]

    run_virtual(main())


@pytest.mark.parametrize("made", [None, 3], ids=repr)
def test_a_preview_that_is_no_text_does_not_end_the_run(made: Any) -> None:
    async def f() -> None: ...

    assert isinstance(run_virtual(execution(tool(f, preview=lambda: made)).preview()), str | None)


def test_a_plain_function_that_returns_an_awaitable_is_a_preview() -> None:
    """`ToolSettings.preview` is a `Callable[..., str | Awaitable[str]]`: a lambda around a coroutine is one."""

    async def f() -> None: ...

    class Later:  # no coroutine, which would also be reported as never awaited
        def __await__(self) -> Iterator[Any]:
            yield
            return "would"

    assert run_virtual(execution(tool(f, preview=Later)).preview()) == "would"


def test_an_async_preview_that_exits_does_not_end_the_program() -> None:
    async def f() -> None: ...

    async def preview() -> str:
        raise SystemExit(3)

    assert isinstance(run_virtual(execution(tool(f, preview=preview)).preview()), str)


# --- context.py ------------------------------------------------------------------------------------------------------


def test_half_surrogates_in_progress_are_written_out() -> None:
    reports = Reports()

    async def f(ctx: ToolContext) -> None:
        ctx.progress("reading name \udcff.txt")
        await asyncio.sleep(1)

    run_virtual(outcome(f, within=context(reports)))
    msgspec.json.encode(reports.told)


def test_a_word_that_came_while_another_was_read_is_told_once() -> None:
    async def main() -> list[str]:
        progress, told = Progress(), list[str]()

        async def read() -> None:
            while True:
                told.append((await progress.get())[0])

        reader = asyncio.ensure_future(read())
        await settled()
        progress.put("one", None)
        await asyncio.sleep(0)  # the reader is about to wake up
        progress.put("two", None)
        await settled()
        reader.cancel()
        return told

    assert run_virtual(main()) in (["one", "two"], ["two"])


@given(st.lists(st.sampled_from([0.0, 0.001, 0.05, 0.0999, 0.1, 0.15]), max_size=6), st.booleans())
def test_the_last_word_is_told_if_the_call_ends_with_it(waits_s: list[float], fails: bool) -> None:
    reports = Reports()

    @tool
    async def work(ctx: ToolContext) -> None:
        for wait_s in waits_s:
            ctx.progress("a word")
            await asyncio.sleep(wait_s)
        ctx.progress("the last word", 1.0)
        if fails:
            raise ValueError

    run_virtual(outcome(work, within=context(reports)))
    assert reports.told[-1] == ("the last word", 1.0)


def test_a_thousand_words_wake_the_loop_once() -> None:
    """A tool that says a million words in one step makes a million callbacks, which nothing bounds (law 7)."""

    async def main() -> int:
        loop, progress, wakes = asyncio.get_running_loop(), Progress(), list[object]()
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **more: wakes.append(1) or wake(*args, **more)  # type: ignore[method-assign]
        for i in range(1_000):
            progress.put(str(i), None)
        del loop.call_soon_threadsafe
        await settled()
        return len(wakes)

    assert run_virtual(main()) < 10


# --- executor.py -----------------------------------------------------------------------------------------------------


class Clock(Protocol):
    def now(self) -> float: ...


class Options(TypedDict):
    deep: bool


@pytest.mark.parametrize("kind", [Clock, Options, Any], ids=["protocol", "typed dict", "any"])
def test_a_kind_that_isinstance_refuses_is_refused_with_words(kind: Any) -> None:
    def f(x: Any) -> str:
        return ""

    f.__annotations__["x"] = Injected[kind]
    with pytest.raises((UsageError, ToolDefinitionError)):
        Executor([tool(f)], LIMITS, [object()])


# --- turn.py ---------------------------------------------------------------------------------------------------------


def test_the_error_of_a_cancelled_job_is_retrieved() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(math.inf)
        finally:
            raise OSError(28, "No space left on device")

    async def main() -> None:
        jobs = [Job("read_only", None, fails_when_cancelled), Job("read_only", None, fails_when_cancelled)]
        task = asyncio.ensure_future(run_jobs(jobs, at_most=8, grace_s=1.0))
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())
