from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import gc
import itertools
import json
import math
import threading
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import run_virtual, settled
from treadle.errors import ToolError, ToolErrorKind
from treadle.tools import execution as execution_module
from treadle.tools.context import Injected, ToolContext
from treadle.tools.execution import GRACE_S, Leftovers, left_behind
from treadle.tools.executor import Executor
from treadle.tools.function import tool
from treadle.tools.threads import abandoned
from treadle.values.limits import Limits
from treadle.values.messages import Image, ToolCall, ToolMessage
from treadle.values.ports import Job
from treadle.values.text import reference
from treadle.values.toolcalls import Outcome, ToolResult

from .calls import LIMITS, context, execution, outcome

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


class Stop(BaseException):
    """An exception outside `Exception` that means nothing to asyncio."""


def returning(value: object) -> Callable[[], Coroutine[Any, Any, object]]:
    async def f() -> Any:
        return value

    return f


def raising(error: BaseException, *, in_thread: bool = False) -> Callable[[], object]:
    async def f() -> str:
        raise error

    def plain() -> str:
        raise error

    plain.__name__ = "f"
    return plain if in_thread else f


def result(fn: Any, *, limits: Limits = LIMITS) -> Outcome:
    made = run_virtual(outcome(fn, limits=limits))
    msgspec.json.encode(made)  # as the journal will
    return made


def message(content: str, kind: ToolErrorKind | None = None, **more: Any) -> ToolMessage:
    return ToolMessage("c1", "f", content, is_error=kind is not None, error_kind=kind, **more)


# --- what comes back -------------------------------------------------------------------------------------------------


class Point(pydantic.BaseModel):
    x: int
    y: int


@dataclasses.dataclass
class Pair:
    a: int
    b: list[str]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n", "as it is\n"),
        ("", ""),
        (None, "(done, no output)"),
        (True, "true"),
        (0, "0"),
        (1.5, "1.5"),
        (2**70, "1180591620717411303424"),
        (math.nan, "null"),
        ([1, "zwei", None], '[1,"zwei",null]'),
        ({"a": {"b": [1]}}, '{"a":{"b":[1]}}'),
        ({1: "a"}, '{"1":"a"}'),
        (Pair(1, ["x"]), '{"a":1,"b":["x"]}'),
        (Point(x=1, y=2), '{"x":1,"y":2}'),
        ([Point(x=1, y=2)], '[{"x":1,"y":2}]'),
        (b"\xff", '"/w=="'),
        ("\u00e9\U0001f600\0", "\u00e9\U0001f600\0"),
    ],
)
def test_the_model_reads_text_as_it_is_and_the_rest_as_json(value: object, text: str) -> None:
    assert result(returning(value)) == Outcome(result=message(text))
    assert result(returning(ToolResult(content=value))) == Outcome(result=message(text))


@pytest.mark.parametrize("in_thread", [True, False])
def test_a_result_for_two_readers(in_thread: bool) -> None:
    made = ToolResult(content={"ok": 1}, images=(Image("image/png", "QUJD"),), display="for you", details={"ms": 3, "at": (1, 2)})
    fn = (lambda: made) if in_thread else returning(made)
    assert result(tool(fn, name="f")) == Outcome(
        result=message('{"ok":1}', images=(Image("image/png", "QUJD"),), display="for you"),
        details={"ms": 3, "at": [1, 2]},
    )


def test_a_result_may_say_that_it_is_an_error() -> None:
    made = result(returning(ToolResult(content="exit 1", display="red", details=[1], is_error=True)))
    assert made == Outcome(result=message("exit 1", "internal", display="red"), details=[1])


def test_images_may_come_in_a_list_and_an_empty_display_is_one() -> None:
    image = Image("image/png", "QUJD")
    made = result(returning(ToolResult(content="", images=[image, image], display="")))  # type: ignore[arg-type]
    assert (made.result.images, made.result.display) == ((image, image), "")


@pytest.mark.parametrize("details", [0, False, "", [], {}])
def test_details_that_are_false_are_details(details: object) -> None:
    assert result(returning(ToolResult(content="x", details=details))).details == details


def test_details_are_a_copy() -> None:
    """What the tool does to them later does not reach the event."""
    details = {"n": [1]}
    made = result(returning(ToolResult(content="x", details=details)))
    details["n"].append(2)
    assert made.details == {"n": [1]}


def test_details_that_are_too_large_are_cut_and_become_text() -> None:
    made = result(returning(ToolResult(content="x", details={"log": "y" * 1_000_000})))
    assert isinstance(made.details, str)
    assert len(made.details) <= LIMITS.tool_result_chars
    assert made.details.startswith('{"log":"yyy')
    assert "characters left out" in made.details
    assert made.result == message("x")


def test_display_is_bounded_like_content() -> None:
    made = result(returning(ToolResult(content="x", display="line\n" * 100_000)))
    assert made.result.display is not None
    assert len(made.result.display) <= LIMITS.tool_result_chars
    assert made.result.display.startswith("line\n")
    assert made.result.full is None


class Recursive(list[Any]):
    def __init__(self) -> None:
        self.append(self)


class Dumps:
    def __init__(self, dump: Any) -> None:
        self.model_dump = dump


def fails(**_: object) -> object:
    raise ValueError("no dump")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "object"),
        ([object()], "list"),
        ((x for x in "ab"), "generator"),
        ({(1, 2): 3}, "dict"),
        (Recursive(), "Recursive"),
        (int, "type"),
        (threading.Lock(), "lock"),
        (Dumps(3), "Dumps"),
        (Dumps(fails), "Dumps"),
        (Dumps(lambda mode: object()), "Dumps"),
        (types.SimpleNamespace(a=1), "SimpleNamespace"),
    ],
)
def test_a_result_that_json_cannot_express_is_an_error_that_says_so(value: object, kind: str) -> None:
    made = result(returning(value))
    assert made.result.content.startswith(f"the tool ran, but its result (a {kind}) cannot be written as JSON: ")
    assert (made.result.is_error, made.result.error_kind, made.details) == (True, "internal", None)


@pytest.mark.parametrize("details", [object(), {"a": {object()}}, Recursive()], ids=["object", "set", "loop"])
def test_details_that_json_cannot_express_stop_nothing(details: object) -> None:
    made = result(returning(ToolResult(content="fine", details=details)))
    assert (made.result.content, made.result.is_error) == ("fine", False)
    assert str(made.details).startswith("(details that cannot be written as JSON")


# --- long results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["x" * 5_000_000, "line\n" * 1_000_000, "\U0001f600" * 5_000_000, "\udc80" * 1_000_000, json.dumps(list(range(700_000)))],
    ids=["one line", "lines", "wide", "half surrogates", "json"],
)
def test_five_megabytes(text: str) -> None:
    made = result(returning(text)).result
    whole = text.replace("\udc80", "\\udc80")
    assert made.full == whole
    assert len(made.content) <= 16_000
    assert made.content[:1_000] == whole[:1_000]
    assert made.content[-1_000:] == whole[-1_000:]
    assert f"of {len(whole):,} characters left out ...]" in made.content


def test_the_whole_of_a_long_value_is_kept_as_json() -> None:
    value = {str(i): "v" * 100 for i in range(1_000)}
    made = result(returning(value)).result
    assert made.full is not None
    assert json.loads(made.full) == value
    assert len(made.content) <= 16_000


def test_more_than_is_kept_is_gone_and_the_count_still_tells() -> None:
    limits = Limits(tool_result_chars=200, tool_result_kept_chars=1_000)
    made = result(returning("a" * 5_000), limits=limits).result
    assert made.full == "a" * 1_000
    assert "of 5,000 characters left out" in made.content


@pytest.mark.parametrize(("size", "is_cut"), [(199, False), (200, False), (201, True)])
def test_what_just_fits_is_not_kept_twice(size: int, is_cut: bool) -> None:
    made = result(returning("a" * size), limits=Limits(tool_result_chars=200)).result
    assert made.full == ("a" * size if is_cut else None)
    assert size - 10 < len(made.content) <= 200


@given(st.integers(1, 300), st.integers(0, 300), st.text(st.characters() | st.characters(categories=["Cs"]), max_size=400))
def test_every_bound_holds(most: int, kept: int, text: str) -> None:
    limits = Limits(tool_result_chars=most, tool_result_kept_chars=kept)
    made = result(returning(ToolResult(content=text, display=text, details=[text.encode("utf-8", "replace")])), limits=limits)
    assert len(made.result.content) <= most
    assert len(made.result.display or "") <= most
    assert len(made.result.full or "") <= kept
    assert not isinstance(made.details, str) or len(made.details) <= most


def test_a_long_error_is_cut_and_kept_too() -> None:
    for error in (ToolError("x" * 50_000), ValueError("x" * 50_000)):
        made = result(raising(error)).result
        assert len(made.content) <= 16_000
        assert made.full is not None
        assert made.full.endswith("x" * 50_000)
        assert made.is_error


def test_the_model_is_told_how_to_read_on_if_it_can() -> None:
    @tool
    def read_result(ref: str) -> str:
        return ref

    async def main() -> ToolMessage:
        executor = Executor([tool(returning("x" * 50_000)), read_result], LIMITS)
        prepared = executor.prepare(ToolCall("c1", "f", "{}"))
        assert not isinstance(prepared, ToolMessage)
        return (await prepared.run(context())).result

    made = run_virtual(main())
    assert f'; read_result(ref="{reference("x" * 50_000)}") has them ...]' in made.content
    assert len(made.content) <= 16_000
    assert "read_result" not in result(returning("x" * 50_000)).result.content


def test_half_surrogates_are_written_out() -> None:
    """A file name may hold them, and JSON in UTF-8 may not."""
    made = result(returning(ToolResult(content="name \udcff.txt", display="\ud800")))
    assert (made.result.content, made.result.display) == ("name \\udcff.txt", "\\ud800")
    assert result(raising(ToolError("no file \udcff"))).result.content == "no file \\udcff"
    assert result(raising(ValueError("\udcff"))).result.content == "ValueError: \\udcff"


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_thread", [True, False])
@pytest.mark.parametrize("kind", ["not_found", "timeout", "network", "permission", "invalid_input", "rate_limited", "internal"])
def test_a_tool_error_says_its_kind_and_when_to_come_back(kind: ToolErrorKind, in_thread: bool) -> None:
    error = ToolError("Try the other door.", hint="not for the model", kind=kind, retry_after_s=2.5)
    made = result(raising(error, in_thread=in_thread))
    assert made == Outcome(result=message("Try the other door.", kind), retry_after_s=2.5)


def test_a_tool_error_is_internal_unless_it_says_so() -> None:
    assert result(raising(ToolError("no"))) == Outcome(result=message("no", "internal"))


@pytest.mark.parametrize("in_thread", [True, False])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("slow"), "timeout"),
        (TimeoutError("slow"), "timeout"),
        (PermissionError(13, "Permission denied"), "permission"),
        (FileNotFoundError(2, "No such file"), "not_found"),
        (ConnectionRefusedError(111, "refused"), "network"),
        (ConnectionResetError("reset"), "network"),
        (BrokenPipeError("pipe"), "network"),
        (OSError(28, "No space left"), "internal"),
        (ValueError("bad"), "internal"),
        (KeyError("k"), "internal"),
        (RecursionError("deep"), "internal"),
        (MemoryError("none"), "internal"),
        (AssertionError(), "internal"),
        (Stop("base"), "internal"),
        (ExceptionGroup("two", [ValueError(1), TypeError(2)]), "internal"),
        (BaseExceptionGroup("two", [ValueError(1), Stop(2)]), "internal"),
    ],
)
def test_any_exception_is_an_outcome_with_its_type_words_and_kind(
    error: BaseException, kind: ToolErrorKind, in_thread: bool
) -> None:
    made = result(raising(error, in_thread=in_thread))
    assert made == Outcome(result=message(f"{type(error).__name__}: {error}", kind))


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit("x"), StopAsyncIteration("x"), asyncio.CancelledError("x")])
def test_an_async_tool_cannot_stop_the_program_the_task_or_a_generator(error: BaseException) -> None:
    assert result(raising(error)) == Outcome(result=message(f"{type(error).__name__}: {error}", "internal"))


def test_a_stop_iteration_of_an_async_tool_is_what_python_makes_of_it() -> None:
    assert result(raising(StopIteration(5))) == Outcome(
        result=message("RuntimeError: coroutine raised StopIteration", "internal")
    )


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt("x"),
        GeneratorExit("x"),
        StopIteration("x"),
        StopAsyncIteration("x"),
        asyncio.CancelledError("x"),
    ],
)
def test_neither_can_a_plain_one(error: BaseException) -> None:
    said = f"RuntimeError: a function in a thread raised {type(error).__name__}: {error}"
    assert result(raising(error, in_thread=True)) == Outcome(result=message(said, "internal"))


def test_ctrl_c_in_an_async_tool_ends_the_program() -> None:
    """It is the person's, wherever the program happens to be."""
    with pytest.raises(KeyboardInterrupt):
        run_virtual(outcome(raising(KeyboardInterrupt())))


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError("cannot")


class NoText(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]


class Vain(Exception):
    def __init__(self) -> None:
        self.args = (Unreadable(),)


@pytest.mark.parametrize("error", [Unreadable(), NoText(), Vain()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("in_thread", [True, False])
def test_an_exception_whose_words_cannot_be_read(error: Exception, in_thread: bool) -> None:
    made = result(raising(error, in_thread=in_thread))
    assert made == Outcome(result=message(f"{type(error).__name__}: (its text cannot be read)", "internal"))


def test_a_cancellation_inside_the_tool_is_its_own_business() -> None:
    async def f() -> str:
        task = asyncio.ensure_future(asyncio.get_running_loop().create_future())
        asyncio.get_running_loop().call_later(1, task.cancel)
        return await task

    assert result(f) == Outcome(result=message("CancelledError: ", "internal"))


def test_a_tool_that_cancels_its_own_task() -> None:
    async def f() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)
        return "never"

    assert result(f).result.error_kind == "internal"


# --- time ------------------------------------------------------------------------------------------------------------


async def timed(fn: Any, limits: Limits = LIMITS) -> tuple[Outcome, float]:
    return await outcome(fn, limits=limits), asyncio.get_running_loop().time()


async def forever() -> str:
    await asyncio.get_running_loop().create_future()
    return "never"


@pytest.mark.parametrize(
    ("settings", "limits", "timeout_s", "words"),
    [
        ({}, Limits(), 120.0, "120 s"),
        ({}, Limits(tool_timeout_s=7.5), 7.5, "7.5 s"),
        ({"timeout_s": 0.25}, Limits(), 0.25, "0.25 s"),
        ({"timeout_s": 600}, Limits(tool_timeout_s=1), 600.0, "600 s"),
        ({"concurrency": "interactive", "timeout_s": 5.0}, Limits(), 5.0, "5 s"),
    ],
)
def test_a_tool_has_so_much_time(settings: dict[str, Any], limits: Limits, timeout_s: float, words: str) -> None:
    made, ended_s = run_virtual(timed(tool(forever, name="f", **settings), limits))
    assert made == Outcome(result=message(f"timed out after {words}. It may have taken effect.", "timeout"))
    assert ended_s == timeout_s


def test_an_interactive_tool_has_all_the_time_of_a_person() -> None:
    async def f() -> str:
        await asyncio.sleep(7_000)
        return "yes"

    made, ended_s = run_virtual(timed(tool(f, concurrency="interactive"), Limits(tool_timeout_s=1)))
    assert (made.result.content, ended_s) == ("yes", 7_000)


@pytest.mark.parametrize("takes_s", [4.9, 5.1])
def test_just_in_time_and_just_too_late(takes_s: float) -> None:
    async def f() -> str:
        await asyncio.sleep(takes_s)
        return "done"

    made, ended_s = run_virtual(timed(tool(f, timeout_s=5)))
    assert made.result.is_error is (takes_s > 5)
    assert ended_s == min(takes_s, 5)


def test_a_plain_tool_that_hangs_is_left_in_its_thread() -> None:
    release = threading.Event()
    threads: list[threading.Thread] = []

    def f() -> str:
        threads.append(threading.current_thread())
        assert release.wait(30)
        return "late"

    async def main() -> tuple[Outcome, tuple[str, ...]]:
        asyncio.get_running_loop().quiescent.clear()  # type: ignore[attr-defined]
        return await outcome(tool(f, timeout_s=5)), abandoned()

    try:
        made, left = run_virtual(main())
        assert made == Outcome(result=message("timed out after 5 s. It may have taken effect.", "timeout"))
        assert any(name.startswith("treadle-f-") for name in left)
    finally:
        release.set()
        for thread in threads:
            thread.join(30)


def test_a_tool_that_is_out_of_time_may_clean_up() -> None:
    cleaned: list[float] = []

    async def f() -> str:
        try:
            return await forever()
        finally:
            await asyncio.sleep(0.4)
            cleaned.append(asyncio.get_running_loop().time())

    made, ended_s = run_virtual(timed(tool(f, timeout_s=5)))
    assert made.result.error_kind == "timeout"
    assert (cleaned, ended_s) == ([5.4], 5.4)


@pytest.mark.parametrize("ends", ["returns", "raises", "exits"])
def test_what_a_tool_says_after_its_time_is_not_heard(ends: str) -> None:
    async def f() -> str:
        try:
            return await forever()
        except asyncio.CancelledError:
            if ends == "raises":
                raise ValueError("late") from None
            if ends == "exits":
                raise SystemExit(1) from None
            return "late"

    made, _ = run_virtual(timed(tool(f, timeout_s=5)))
    assert made == Outcome(result=message("timed out after 5 s. It may have taken effect.", "timeout"))


def test_a_tool_that_ignores_its_cancellation_is_left_behind_listed_and_forgotten_when_it_ends() -> None:
    async def f() -> str:
        try:
            return await forever()
        except asyncio.CancelledError:
            await asyncio.sleep(50)
            raise ValueError("nobody hears this") from None

    async def main() -> None:
        made, ended_s = await timed(tool(f, timeout_s=5))
        assert (made.result.error_kind, ended_s) == ("timeout", 5 + GRACE_S)
        assert left_behind() == ("treadle-f",)
        await asyncio.sleep(100)
        assert left_behind() == ()

    run_virtual(main())


# --- leaving ---------------------------------------------------------------------------------------------------------


def test_cancelled_from_outside_it_leaves_at_once_and_its_tool_is_settled_later() -> None:
    cleaned: list[float] = []

    async def f() -> str:
        try:
            return await forever()
        finally:
            await asyncio.sleep(0.3)
            cleaned.append(asyncio.get_running_loop().time())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = Executor([tool(f)], LIMITS)
        prepared = executor.prepare(ToolCall("c1", "f", "{}"))
        assert not isinstance(prepared, ToolMessage)
        task = asyncio.ensure_future(prepared.run(context()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.time() == 1
        assert cleaned == []
        await executor.settle()
        assert (cleaned, loop.time()) == ([1.3], 1.3)
        await executor.settle()  # nothing is left
        assert loop.time() == 1.3
        assert left_behind() == ()

    run_virtual(main())


@pytest.mark.parametrize("in_thread", [True, False])
@pytest.mark.parametrize("what", ["the call", "the tool's task"])
def test_a_call_cancelled_before_its_tool_began_runs_nothing_and_leaves_nothing(what: str, in_thread: bool) -> None:
    ran: list[int] = []

    async def f() -> None:
        ran.append(1)

    def plain() -> None:
        ran.append(1)

    def cancelled_task(loop: Any, coro: Any, **more: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **more)
        task.cancel()
        return task

    async def main() -> None:
        executor = Executor([tool(plain if in_thread else f, name="f")], LIMITS)
        prepared = executor.prepare(ToolCall("c1", "f", "{}"))
        assert not isinstance(prepared, ToolMessage)
        task = asyncio.ensure_future(prepared.run(context()))
        if what == "the call":
            task.cancel()
        else:
            asyncio.get_running_loop().set_task_factory(cancelled_task)
        await asyncio.wait([task])
        asyncio.get_running_loop().set_task_factory(None)
        assert task.cancelled() or task.result() == Outcome(result=message("CancelledError: ", "internal"))
        await executor.settle()
        assert ran == []

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_virtual(main())  # which fails on coroutines never awaited, and on tasks left
        gc.collect()


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("kind", ["plain", "async", "reporting"])
def test_a_cancellation_at_any_turn_of_the_loop_leaves_nothing(turns: int, kind: str) -> None:
    def plain() -> str:
        return "done"

    async def f() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        return "done"

    async def reporting(ctx: ToolContext) -> str:
        for _ in range(3):
            ctx.progress("x")
            await asyncio.sleep(0)
        return "done"

    async def main() -> None:
        made = tool({"plain": plain, "async": f, "reporting": reporting}[kind], name="f")
        executor = Executor([made], LIMITS)
        prepared = executor.prepare(ToolCall("c1", "f", "{}"))
        assert not isinstance(prepared, ToolMessage)
        task = asyncio.ensure_future(prepared.run(context()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.result().result.content == "done"
        await executor.settle()
        assert left_behind() == ()

    run_virtual(main())


def test_cancelled_while_a_tool_that_is_out_of_time_cleans_up() -> None:
    async def f() -> str:
        try:
            return await forever()
        finally:
            await asyncio.sleep(0.4)

    async def main() -> None:
        task = asyncio.ensure_future(outcome(tool(f, timeout_s=1)))
        await asyncio.sleep(1.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left_behind() == ("treadle-f",)
        await asyncio.sleep(1)
        assert left_behind() == ()

    run_virtual(main())


def test_settling_waits_for_many_at_once() -> None:
    async def ending(after_s: float) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            await asyncio.sleep(after_s)
            raise ValueError("nobody hears this") from None

    async def main() -> None:
        loop, leftovers = asyncio.get_running_loop(), Leftovers()
        await leftovers.settle()
        tasks = [loop.create_task(ending(after_s)) for after_s in (0.1, 0.2, 0.3, 5.0)]
        await settled()
        for task in tasks:
            leftovers.add(task)
        await Leftovers().settle()
        assert loop.time() == 0
        await leftovers.settle()
        assert loop.time() == GRACE_S
        assert left_behind() == (tasks[-1].get_name(),)
        await asyncio.sleep(10)
        assert left_behind() == ()

    run_virtual(main())


def test_the_jobs_of_a_turn_share_the_bound_of_the_run() -> None:
    running: list[int] = []
    most: list[int] = []

    async def start() -> None:
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(1)
        running.pop()

    async def main() -> float:
        await Executor([], Limits(parallel_tools=3)).run_in_turn([Job("read_only", None, start) for _ in range(7)])
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 3
    assert max(most) == 3


# --- gates -----------------------------------------------------------------------------------------------------------


def test_an_unknown_tool_is_answered_with_the_names_there_are() -> None:
    executor = Executor([tool(forever, name="b"), tool(forever, name="a")], LIMITS)
    assert executor.prepare(ToolCall("c1", "c", "{}")) == ToolMessage(
        "c1", "c", "there is no tool named 'c'. Tools: a, b.", is_error=True, error_kind="not_found"
    )
    made = Executor([], LIMITS).prepare(ToolCall("c1", "c" * 1_000, "{}"))
    assert isinstance(made, ToolMessage)
    assert made.content == f"there is no tool named {'c' * 64!r}. Tools: none."


@pytest.mark.parametrize("arguments", ["", "{", '{"x": "no"}', '{"x": 1, "x": 2}', '{"x": 1, "y": 2}', "[]", "{} {}"])
def test_arguments_that_do_not_fit_run_nothing(arguments: str) -> None:
    def f(x: int) -> str:
        raise AssertionError("ran")

    made = Executor([tool(f)], LIMITS).prepare(ToolCall("c1", "f", arguments))
    assert isinstance(made, ToolMessage)
    assert made.content.startswith("invalid arguments: ")
    assert made.content.endswith(f"Nothing ran. Arguments as received: {arguments}")
    assert (made.is_error, made.error_kind) == (True, "invalid_input")


def test_what_a_call_says_of_itself() -> None:
    async def f(x: int, y: str = "b") -> None: ...

    plain = execution(f, {"x": 1})
    assert (plain.concurrency, plain.group, plain.repeatable, plain.needs_approval, plain.is_question) == (
        "exclusive", None, False, False, False,
    )  # fmt: skip
    assert plain.subjects() == {"x": "1", "y": "b"}
    assert run_virtual(plain.preview()) is None
    made = tool(
        f,
        concurrency="read_only",
        group="files",
        repeatable=True,
        needs_approval=True,
        is_question=True,
        subjects=lambda x, y: {"both": f"{x}{y}"},
    )
    other = execution(made, {"x": 1})
    assert (other.concurrency, other.group, other.repeatable, other.needs_approval, other.is_question) == (
        "read_only", "files", True, True, True,
    )  # fmt: skip
    assert other.subjects() == {"x": None, "y": None, "both": "1b"}


def test_subjects_that_fail_cannot_be_said() -> None:
    async def f(x: int, y: str = "b") -> None: ...

    assert execution(tool(f, subjects=lambda x, y: {"x": str(1 // x)}), {"x": 0}).subjects() == {"x": None, "y": None}


# --- previews --------------------------------------------------------------------------------------------------------


def preview(make: Callable[..., Any], limits: Limits = LIMITS) -> str | None:
    async def f(x: int, ctx: ToolContext) -> None: ...

    return run_virtual(execution(tool(f, preview=make), {"x": 2}, limits).preview())


async def preview_async(x: int) -> str:
    await asyncio.sleep(1)
    return f"would do {x}"


def preview_refusing(x: int) -> str:
    raise ToolError(f"there is no {x}")


async def preview_broken(x: int) -> str:
    raise Unreadable


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda x: f"would do {x}", "would do 2"),
        (preview_async, "would do 2"),
        (preview_refusing, "(it would fail: there is no 2)"),
        (lambda x: {}[x], "(no preview: KeyError: 2)"),
        (preview_broken, "(no preview: Unreadable: (its text cannot be read))"),
        (lambda x: "name \udcff", "name \\udcff"),
    ],
)
def test_a_preview_is_text_whatever_happens(make: Callable[..., Any], text: str) -> None:
    assert preview(make) == text


def test_a_preview_has_the_time_of_a_call() -> None:
    async def slow(x: int) -> str:
        return await forever()

    assert preview(slow) == "(no preview: TimeoutError: )"


def test_a_preview_is_bounded() -> None:
    text = preview(lambda x: "line\n" * 100_000)
    assert text is not None
    assert len(text) <= 16_000


# --- tools that hold up the loop -------------------------------------------------------------------------------------


class Stopwatch:
    """Real time, as the tool says it passes."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def block(self, for_s: float) -> None:
        self.now_s += for_s


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    made = Stopwatch()
    monkeypatch.setattr(execution_module, "time", made)
    return made


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("steps_s", [[1.0], [0.5, 3.25, 0.5], [0.0, 0.0, 1.5]])
def test_an_async_tool_that_holds_up_the_loop_is_told_on(watch: Stopwatch, steps_s: list[float], fails: bool) -> None:
    async def f() -> str:
        for index, step_s in enumerate(steps_s):
            if index:
                await asyncio.sleep(0.01)
            watch.block(step_s)
        if fails:
            raise ToolError("no", kind="network", retry_after_s=1)
        return "done"

    made = result(f)
    assert made.warning is not None
    assert made.warning.startswith(f"f held up the whole program for {max(steps_s):.1f} s: ")
    assert made.result == (message("no", "network") if fails else message("done"))
    assert made.retry_after_s == (1 if fails else None)


@pytest.mark.parametrize("steps_s", [[0.99], [0.9] * 20, []])
def test_many_short_steps_hold_up_nothing(watch: Stopwatch, steps_s: list[float]) -> None:
    async def f() -> str:
        for step_s in steps_s:
            watch.block(step_s)
            await asyncio.sleep(0)
        return "done"

    assert result(f) == Outcome(result=message("done"))


def test_waiting_is_not_holding_up(watch: Stopwatch) -> None:
    async def f() -> str:
        asyncio.get_running_loop().call_later(1, watch.block, 50)  # somebody else's
        await asyncio.sleep(2)
        return "done"

    assert result(f).warning is None


def test_a_plain_tool_may_take_its_time(watch: Stopwatch) -> None:
    def f() -> str:
        watch.block(50)
        return "done"

    # Starting a thread is a step of the loop; what runs in it is none. Here the two clocks cannot be told apart until it has started.
    go = threading.Event()

    def g() -> str:
        assert go.wait(30)
        return f()

    async def main() -> Outcome:
        task = asyncio.ensure_future(outcome(tool(g, name="f")))
        for _ in range(5):
            await asyncio.sleep(0)
        go.set()
        return await task

    assert run_virtual(main()) == Outcome(result=message("done"))


# --- the tool's coroutine is run as asyncio would run it -------------------------------------------------------------


class Awaitable3:
    """Not a coroutine: an object with `__await__`, that waits three times."""

    def __await__(self) -> Iterator[Any]:
        for _ in range(3):
            yield
        return "three"


async def waits_for_a_future() -> str:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()
    loop.call_later(1, future.set_result, "future")
    return await future


async def waits_for_a_future_that_fails() -> str:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()
    loop.call_later(1, future.set_exception, ValueError("from the future"))
    try:
        return await future
    except ValueError as error:
        return str(error)


async def waits_for_tasks() -> str:
    return " ".join(await asyncio.gather(waits_for_a_future(), asyncio.ensure_future(waits_for_a_future())))


async def waits_in_a_group() -> str:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(waits_for_a_future()) for _ in range(2)]
    return tasks[0].result()


async def fails_later() -> str:
    await asyncio.sleep(1)
    raise ValueError("member")


async def a_group_that_fails() -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(forever())
            group.create_task(fails_later())
    except ExceptionGroup as errors:
        return str(errors.exceptions[0])
    return "none"


async def a_timeout_of_its_own() -> str:
    try:
        async with asyncio.timeout(1):
            await forever()
    except TimeoutError:
        task = asyncio.current_task()
        assert task is not None
        return f"late {task.cancelling()}"
    return "never"


async def timeouts_within_timeouts() -> str:
    said: list[str] = []
    try:
        async with asyncio.timeout(2):
            try:
                async with asyncio.timeout(1):
                    await forever()
            except TimeoutError:
                said.append("inner")
            await forever()
    except TimeoutError:
        said.append("outer")
    return " ".join(said)


async def cancels_a_task_inside() -> str:
    task = asyncio.ensure_future(forever())
    await asyncio.sleep(1)
    task.cancel("stop it")
    try:
        return await task
    except asyncio.CancelledError:
        return "cancelled"


async def swallows_a_cancellation_of_its_own() -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        task.uncancel()
    await asyncio.sleep(1)
    return f"went on {task.cancelling()}"


async def awaits_an_object() -> str:
    return await Awaitable3()


async def keeps_its_context() -> str:
    WHO.set("tool")
    await asyncio.sleep(0)
    seen = WHO.get()
    await asyncio.sleep(1)
    return f"{seen} {WHO.get()} {await asyncio.create_task(reads_the_context())}"


async def reads_the_context() -> str:
    return WHO.get()


async def iterates() -> str:
    async def numbers() -> Any:
        for i in range(3):
            await asyncio.sleep(0.1)
            yield i

    return str([i async for i in numbers()])


async def waits_with_locks() -> str:
    lock, event, queue = asyncio.Lock(), asyncio.Event(), asyncio.Queue[str](1)
    asyncio.get_running_loop().call_later(1, event.set)
    async with lock:
        await event.wait()
        await queue.put("q")
    return await queue.get() + await asyncio.wait_for(asyncio.to_thread(str, 1), 5)


async def shields() -> str:
    inner = asyncio.ensure_future(waits_for_a_future())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(inner), 0.5)
    return await inner


async def does_not_wait() -> str:
    return "at once"


STEPS: list[tuple[Callable[[], Awaitable[str]], str]] = [
    (waits_for_a_future, "future"),
    (waits_for_a_future_that_fails, "from the future"),
    (waits_for_tasks, "future future"),
    (waits_in_a_group, "future"),
    (a_group_that_fails, "member"),
    (a_timeout_of_its_own, "late 0"),
    (timeouts_within_timeouts, "inner outer"),
    (cancels_a_task_inside, "cancelled"),
    (swallows_a_cancellation_of_its_own, "went on 0"),
    (awaits_an_object, "three"),
    (keeps_its_context, "tool tool tool"),
    (iterates, "[0, 1, 2]"),
    (waits_with_locks, "q1"),
    (shields, "future"),
    (does_not_wait, "at once"),
]


@pytest.mark.parametrize(("fn", "text"), STEPS, ids=lambda value: getattr(value, "__name__", None))
def test_an_async_tool_behaves_as_it_does_in_a_task(fn: Callable[[], Coroutine[Any, Any, str]], text: str) -> None:
    async def as_task() -> tuple[str, float]:
        return await asyncio.create_task(fn()), asyncio.get_running_loop().time()

    async def as_tool() -> tuple[str, float]:
        made = await outcome(tool(fn, name="f"))
        return made.result.content, asyncio.get_running_loop().time()

    assert run_virtual(as_tool()) == run_virtual(as_task())
    assert run_virtual(as_tool())[0] == text
    assert WHO.get() == "nobody"


def test_a_tool_sees_the_callers_context_and_cannot_change_it() -> None:
    async def main() -> tuple[str, str]:
        WHO.set("caller")
        made = await outcome(reads_then_writes)
        return made.result.content, WHO.get()

    async def reads_then_writes() -> str:
        seen = WHO.get()
        WHO.set("tool")
        return seen

    assert run_virtual(main()) == ("caller", "caller")


def test_a_shielded_part_is_finished_before_the_cancellation_goes_on() -> None:
    """As structured libraries do it: catch, wait on, and only then let it through."""
    said: list[str] = []

    async def f() -> str:
        part = asyncio.ensure_future(asyncio.sleep(0.3))
        try:
            await asyncio.shield(part)
        except asyncio.CancelledError as error:
            said.append(f"caught {error.args}")
            await part
            said.append(f"finished at {asyncio.get_running_loop().time():g}")
            raise
        return "never"

    made, ended_s = run_virtual(timed(tool(f, timeout_s=0.1)))
    assert made.result.error_kind == "timeout"
    assert (said, ended_s) == (["caught ()", "finished at 0.3"], 0.3)


def test_every_exception_thrown_in_reaches_the_place_that_waits() -> None:
    """A future that fails throws into the tool, many times over."""

    async def f() -> str:
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        for index, kind in enumerate(itertools.islice(itertools.cycle([ValueError, KeyError, Stop]), 9)):
            future: asyncio.Future[str] = loop.create_future()
            loop.call_later(1, future.set_exception, kind(index))
            try:
                await future
            except (ValueError, KeyError, Stop) as error:
                seen.append(f"{type(error).__name__}{error}")
            await asyncio.sleep(0)
        return " ".join(seen)

    assert result(f).result.content == "ValueError0 KeyError1 Stop2 ValueError3 KeyError4 Stop5 ValueError6 KeyError7 Stop8"


def test_a_tool_that_yields_to_the_loop_what_it_must_not() -> None:
    class Wrong:
        def __await__(self) -> Iterator[Any]:
            try:
                yield "not a future"
            except RuntimeError as error:
                return str(error)[:25]

    async def f() -> str:
        return await Wrong()

    assert result(f).result.content == "Task got bad yield: 'not "


def test_a_tool_that_still_waits_when_its_loop_is_closed() -> None:
    """Its `finally` runs, and nobody is told twice."""
    ended: list[str] = []

    async def f() -> str:
        try:
            return await forever()
        finally:
            ended.append("finally")

    loop = asyncio.new_event_loop()
    task = loop.create_task(outcome(f))
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    for other in asyncio.all_tasks(loop):
        other.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert ended == ["finally"]


def test_what_a_tool_started_and_left_is_not_ours_to_end() -> None:
    left: list[asyncio.Task[str]] = []

    async def f() -> str:
        left.append(asyncio.create_task(waits_for_a_future()))
        return "done"

    async def main() -> str:
        made = await outcome(f)
        return made.result.content + " " + await left[0]

    assert run_virtual(main()) == "done future"


def test_a_plain_function_that_returns_an_awaitable_is_awaited_and_timed() -> None:
    def f(x: int) -> Any:
        return asyncio.wait_for(forever(), 3) if x else does_not_wait()

    assert run_virtual(outcome(f, {"x": 0})).result.content == "at once"
    assert run_virtual(outcome(f, {"x": 1})).result.error_kind == "timeout"


def test_many_calls_at_once_keep_apart() -> None:
    class Shelf:
        pass

    @tool
    async def f(x: int, shelf: Injected[Shelf], ctx: ToolContext) -> int:
        ctx.progress(str(x))
        await asyncio.sleep(x % 7)
        return x

    async def main() -> list[str]:
        executor = Executor([f], LIMITS, [Shelf()])
        prepared = [executor.prepare(ToolCall(f"c{i}", "f", f'{{"x": {i}}}')) for i in range(200)]
        outcomes = await asyncio.gather(*(p.run(context()) for p in prepared if not isinstance(p, ToolMessage)))
        await settled()
        return [f"{o.result.call_id} {o.result.content}" for o in outcomes]

    assert run_virtual(main()) == [f"c{i} {i}" for i in range(200)]
