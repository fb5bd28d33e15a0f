from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import run_virtual, settled
from treadle.errors import ToolDefinitionError, UsageError
from treadle.tools.context import FromRun, Injected, Progress, ToolContext
from treadle.tools.executor import Executor
from treadle.tools.function import FunctionTool, tool
from treadle.values.limits import Limits
from treadle.values.messages import AssistantMessage, Text, ToolCall, ToolMessage, UserMessage

from .calls import LIMITS, Reports, context, execution, outcome


class Database:
    def __init__(self, name: str = "db") -> None:
        self.name = name


class Replica(Database):
    pass


class Mailer:
    pass


def said(fn: Any, arguments: dict[str, Any] | None = None, resources: Sequence[object] = (), within: Any = None) -> str:
    made = run_virtual(outcome(fn, arguments, resources=resources, within=within))
    assert not made.result.is_error, made.result.content
    return made.result.content


# --- what the model does not see -------------------------------------------------------------------------------------


@tool
async def find_async(name: str, db: Injected[Database], ctx: ToolContext, most: int = 5) -> str:
    """Find a name."""
    return f"{name} {db.name} {most} {ctx.call_id}"


@tool
def find_plain(name: str, db: Injected[Database], ctx: ToolContext, most: int = 5) -> str:
    """Find a name."""
    return f"{name} {db.name} {most} {ctx.call_id}"


@tool
def find_by_keyword(ctx: ToolContext, name: str, *, most: int = 5, db: Injected[Database]) -> str:
    """Find a name."""
    return f"{name} {db.name} {most} {ctx.call_id}"


@tool
def find_marked(name: str, db: Annotated[Database, FromRun(), "the database"], ctx: Injected[ToolContext], most: int = 5) -> str:
    """Find a name."""
    return f"{name} {db.name} {most} {ctx.call_id}"


class Finder:
    @tool
    async def find_method(self, name: str, db: Injected[Database], ctx: ToolContext, most: int = 5) -> str:
        """Find a name."""
        return f"{name} {db.name} {most} {ctx.call_id}"

    @tool
    def find_plain_method(self, name: str, db: Injected[Database], ctx: ToolContext, most: int = 5) -> str:
        """Find a name."""
        return f"{name} {db.name} {most} {ctx.call_id}"

    def __call__(self, name: str, db: Injected[Database], ctx: ToolContext, most: int = 5) -> str:
        """Find a name."""
        return f"{name} {db.name} {most} {ctx.call_id}"


async def with_extra(extra: str, name: str, db: Injected[Database], ctx: ToolContext, most: int = 5) -> str:
    """Find a name."""
    return f"{name} {db.name} {most} {ctx.call_id}"


def evaluated_now() -> FunctionTool[..., Any]:
    """The tool, from a module whose annotations are values and not text."""
    names: dict[str, Any] = {"Injected": Injected, "Database": Database, "ToolContext": ToolContext, "__name__": __name__}
    source = '''
def find_now(name: str, db: Injected[Database], ctx: ToolContext, most: int = 5) -> str:
    """Find a name."""
    return f"{name} {db.name} {most} {ctx.call_id}"
'''
    exec(compile(source, "now.py", "exec", dont_inherit=True), names)
    assert names["find_now"].__annotations__["ctx"] is ToolContext
    return tool(names["find_now"])


FINDERS = [
    find_async,
    find_plain,
    find_by_keyword,
    find_marked,
    Finder().find_method,
    Finder().find_plain_method,
    tool(Finder(), name="find"),
    tool(functools.partial(with_extra, extra="x"), name="find"),
    evaluated_now(),
]


@pytest.mark.parametrize("find", FINDERS, ids=lambda find: find.spec.name)
def test_what_the_run_fills_is_not_in_the_schema_and_is_filled(find: FunctionTool[..., Any]) -> None:
    name, most = {"type": "string"}, {"type": "integer", "default": 5}
    properties = {"name": name, "most": most}
    assert find.spec.parameters == {
        "type": "object",
        "properties": properties,
        "required": ["name"],
        "additionalProperties": False,
    }
    assert {name: p.annotation for name, p in find.injected.items()} == {"db": Database, "ctx": ToolContext}
    assert find.spec.description == "Find a name."
    assert said(find, {"name": "Ada", "most": 2}, [Database("main")]) == "Ada main 2 c1"


@pytest.mark.parametrize("find", FINDERS, ids=lambda find: find.spec.name)
@pytest.mark.parametrize("field", ["db", "ctx"])
def test_the_model_cannot_fill_it(find: FunctionTool[..., Any], field: str) -> None:
    executor = Executor([find], LIMITS, [Database()])
    refused = executor.prepare(ToolCall("c1", find.spec.name, f'{{"name": "Ada", "{field}": {{"name": "mine"}}}}'))
    assert isinstance(refused, ToolMessage)
    assert (refused.is_error, refused.error_kind) == (True, "invalid_input")
    assert refused.content.startswith("invalid arguments: ")
    assert f"unknown field `{field}`" in refused.content


def test_a_tool_may_have_no_other_parameters() -> None:
    @tool
    def who(ctx: ToolContext) -> str:
        return ctx.run_id

    assert who.spec.parameters == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert said(who) == "run1"


def test_a_partial_that_has_the_value_leaves_nothing_to_fill() -> None:
    find = tool(functools.partial(with_extra, extra="x", db=Database("own")), name="find")
    assert {name: p.annotation for name, p in find.injected.items()} == {"ctx": ToolContext}
    assert said(find, {"name": "Ada"}) == "Ada own 5 c1"


def test_called_directly_it_takes_its_values_like_any_function() -> None:
    """So a tool is tested without a run."""

    async def main() -> str:
        ctx = ToolContext(context(), "call", math.inf, Progress())
        assert find_plain("Ada", Database("test"), ctx, most=1) == "Ada test 1 call"
        assert Finder().find_plain_method("Ada", db=Database("test"), ctx=ctx) == "Ada test 5 call"
        return await find_async("Ada", db=Database("test"), ctx=ctx)

    assert run_virtual(main()) == "Ada test 5 call"


@pytest.mark.parametrize("annotation", ["Database | None", "dict[str, int]", "int | str"])
def test_what_is_no_class_cannot_be_looked_for(annotation: str) -> None:
    def find(db: Any) -> str:
        return ""

    find.__annotations__["db"] = f"Injected[{annotation}]"
    with pytest.raises(ToolDefinitionError, match="is no class to look for") as raised:
        tool(find)
    assert raised.value.hint == "Write `Injected[SomeClass]`."


def test_a_context_is_never_offered_to_the_model() -> None:
    """Where it cannot be filled the tool is refused, so no model is ever asked for one."""
    for annotation in ("list[ToolContext]", "Injected"):

        def find(ctx: Any) -> str:
            return ""

        find.__annotations__["ctx"] = annotation
        with pytest.raises(ToolDefinitionError, match="parameter `ctx`"):
            tool(find)


# --- what it is filled from ------------------------------------------------------------------------------------------


def test_the_first_resource_that_fits_is_taken() -> None:
    first, second = Database("first"), Database("second")
    assert said(find_async, {"name": "x"}, [Mailer(), first, second]) == "x first 5 c1"
    assert said(find_async, {"name": "x"}, [second, first]) == "x second 5 c1"


def test_an_instance_of_a_subclass_fits_and_one_of_a_base_class_does_not() -> None:
    @tool
    def read(db: Injected[Replica]) -> str:
        return db.name

    assert said(find_async, {"name": "x"}, [Replica("replica"), Database("main")]) == "x replica 5 c1"
    assert said(read, resources=[Database("main"), Replica("replica")]) == "replica"
    with pytest.raises(UsageError):
        Executor([read], LIMITS, [Database("main")])


def test_the_very_object_is_passed_even_one_that_is_false() -> None:
    @tool
    def count(log: Injected[list]) -> str:  # type: ignore[type-arg]
        log.append("seen")
        return str(len(log))

    log: list[str] = []
    assert said(count, resources=[log]) == "1"
    assert log == ["seen"]


def test_several_parameters_of_one_type_get_the_same_object() -> None:
    @tool
    def same(a: Injected[Database], b: Injected[Database]) -> bool:
        return a is b

    assert said(same, resources=[Database(), Database()]) == "true"


@pytest.mark.parametrize("resources", [[], [Mailer()], [Database]], ids=["none", "another", "the class itself"])
def test_a_resource_that_is_missing_is_told_before_the_run_begins(resources: list[object]) -> None:
    with pytest.raises(UsageError, match="tool `find_async`: nothing fits its parameter `db`") as raised:
        Executor([find_async], LIMITS, resources)
    assert raised.value.hint == "Pass a Database to the agent or the run: resources=[...]."


def test_a_context_needs_no_resource() -> None:
    @tool
    def who(ctx: ToolContext) -> str:
        return ctx.run_id

    Executor([who], LIMITS)


# --- the context -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
def test_the_context_names_the_call_and_shows_the_conversation(is_async: bool) -> None:
    seen: list[object] = []
    messages = (UserMessage("hello"), AssistantMessage((Text("hi"),)))

    def look(ctx: ToolContext) -> None:
        seen.extend([ctx.run_id, ctx.turn, ctx.position, ctx.call_id, ctx.messages])

    async def look_async(ctx: ToolContext) -> None:
        look(ctx)

    said(look_async if is_async else look, within=context(messages=messages))
    assert seen == ["run1", 3, 2, "c1", messages]


def test_the_conversation_is_asked_for_when_it_is_read() -> None:
    asked: list[int] = []

    def ask() -> tuple[UserMessage, ...]:
        asked.append(1)
        return ()

    def look(ctx: ToolContext) -> str:
        return ctx.run_id

    said(look, within=context(messages=()))
    ctx = context()
    said(look, within=type(ctx)(run_id="r", turn=1, position=0, deadline=9.0, messages=ask, report=Reports()))
    assert not asked


@pytest.mark.parametrize(
    ("settings", "deadline", "left_s"),
    [
        ({}, math.inf, 120.0),
        ({"timeout_s": 5.0}, math.inf, 5.0),
        ({}, 100.0, 90.0),
        ({"timeout_s": 5.0}, 11.0, 1.0),
        ({}, 10.0, 0.0),
        ({}, 4.0, 0.0),
        ({"concurrency": "interactive"}, math.inf, math.inf),
        ({"concurrency": "interactive", "timeout_s": 7.0}, math.inf, 7.0),
        ({"concurrency": "interactive"}, 100.0, 90.0),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
def test_the_time_that_is_left(settings: dict[str, Any], deadline: float, left_s: float, is_async: bool) -> None:
    def plain(ctx: ToolContext) -> float:
        left.append(ctx.time_left_s)
        return 0

    async def look(ctx: ToolContext) -> float:
        left.append(ctx.time_left_s)
        await asyncio.sleep(0.5)
        left.append(ctx.time_left_s)
        return 0

    async def main() -> None:
        await asyncio.sleep(10)
        await outcome(tool(look if is_async else plain, **settings), within=context(deadline=deadline))

    left: list[float] = []
    run_virtual(main())
    assert left == ([left_s, max(0.0, left_s - 0.5)] if is_async else [left_s])


# --- progress --------------------------------------------------------------------------------------------------------


def test_words_are_told_in_order_while_the_call_runs() -> None:
    reports = Reports()

    @tool
    async def work(ctx: ToolContext) -> str:
        for step in range(4):
            ctx.progress(f"step {step}", step / 4)
            await asyncio.sleep(1)
        return "done"

    async def main() -> None:
        await outcome(work, within=context(reports))
        count = len(reports.told)
        await asyncio.sleep(100)
        assert len(reports.told) == count, "told after the call had ended"

    run_virtual(main())
    assert reports.told == [("step 0", 0.0), ("step 1", 0.25), ("step 2", 0.5), ("step 3", 0.75)]
    assert reports.at_s == [0, 1, 2, 3]


def test_at_most_ten_a_second_and_the_latest_wins() -> None:
    reports = Reports()

    @tool
    async def work(ctx: ToolContext) -> None:
        for step in range(256):
            ctx.progress(str(step))
            await asyncio.sleep(1 / 128)

    run_virtual(outcome(work, within=context(reports)))
    steps = [int(text) for text, _ in reports.told]
    assert steps == sorted(set(steps))
    assert 15 <= len(steps) <= 21, "two seconds"
    assert all(later - earlier > 0.0999 for earlier, later in zip(reports.at_s, reports.at_s[1:], strict=False))
    # What is told is what was said last by then.
    for step, at_s in zip(steps, reports.at_s, strict=True):
        assert -1e-6 <= at_s - step / 128 <= 1 / 128 + 1e-6


@given(st.lists(st.sampled_from([0.0, 0.001, 0.05, 0.0999, 0.1, 0.15, 1.0]), min_size=1, max_size=40))
def test_no_rhythm_of_words_breaks_the_rule(waits_s: list[float]) -> None:
    reports = Reports()
    put_s: list[float] = []

    @tool
    async def work(ctx: ToolContext) -> None:
        for step, wait_s in enumerate(waits_s):
            put_s.append(asyncio.get_running_loop().time())
            ctx.progress(str(step))
            await asyncio.sleep(wait_s)
        await asyncio.sleep(1)

    run_virtual(outcome(work, within=context(reports)))
    steps = [int(text) for text, _ in reports.told]
    assert steps == sorted(steps)
    assert steps[-1] == len(waits_s) - 1, "the last word is told, if there is time to"
    assert all(later - earlier > 0.0999 for earlier, later in zip(reports.at_s, reports.at_s[1:], strict=False))
    for step, at_s in zip(steps, reports.at_s, strict=True):
        assert put_s[step] <= at_s <= put_s[step] + 0.1001


def test_words_of_a_thread_are_told_while_it_runs() -> None:
    class Seen(Reports):
        async def __call__(self, text: str, fraction: float | None) -> None:
            await super().__call__(text, fraction)
            heard[int(text)].set()

    heard = [threading.Event() for _ in range(3)]
    reports = Seen()

    @tool
    def work(ctx: ToolContext) -> str:
        for step in range(3):
            ctx.progress(str(step), step)
            assert heard[step].wait(30)
        return "done"

    made = asyncio.run(outcome(work, within=context(reports)))
    assert (made.result.content, reports.told) == ("done", [("0", 0.0), ("1", 1.0), ("2", 1.0)])


def test_words_of_many_threads_of_one_tool() -> None:
    reports = Reports()

    @tool
    def work(ctx: ToolContext) -> str:
        threads = [threading.Thread(target=lambda: [ctx.progress("x", 0.5) for _ in range(200)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return "done"

    assert run_virtual(outcome(work, within=context(reports))).result.content == "done"
    assert set(reports.told) <= {("x", 0.5)}


@pytest.mark.parametrize(
    ("text", "fraction", "told"),
    [
        ("x" * 1_000, None, ("x" * 1_000, None)),
        ("x" * 1_001, None, ("x" * 1_000, None)),
        ("", 0, ("", 0.0)),
        ("x", -0.5, ("x", 0.0)),
        ("x", 1.5, ("x", 1.0)),
        ("x", math.inf, ("x", 1.0)),
        ("x", -math.inf, ("x", 0.0)),
        ("x", math.nan, ("x", 0.0)),
        ("x", True, ("x", 1.0)),
        (42, 1, ("42", 1.0)),
    ],
)
def test_words_are_bounded(text: str, fraction: float | None, told: tuple[str, float | None]) -> None:
    reports = Reports()

    @tool
    async def work(ctx: ToolContext) -> None:
        ctx.progress(text, fraction)
        await asyncio.sleep(1)

    run_virtual(outcome(work, within=context(reports)))
    assert reports.told == [told]
    assert type(reports.told[0][1]) in (float, type(None))


@pytest.mark.parametrize("ends", ["returns", "raises", "times out", "is cancelled"])
def test_words_after_the_call_has_ended_go_nowhere(ends: str) -> None:
    reports = Reports()
    contexts: list[ToolContext] = []

    @tool(timeout_s=10)
    async def work(ctx: ToolContext) -> None:
        contexts.append(ctx)
        ctx.progress("one")
        await asyncio.sleep(1)
        if ends == "raises":
            raise ValueError
        if ends != "returns":
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        prepared = execution(work)
        task = asyncio.ensure_future(prepared.run(context(reports)))
        await asyncio.sleep(5)
        if ends == "is cancelled":
            task.cancel()
        await asyncio.wait([task])
        contexts[0].progress("two")
        await settled()
        await asyncio.sleep(10)

    run_virtual(main())
    assert reports.told == [("one", None)]


def test_words_after_the_loop_has_closed_go_nowhere() -> None:
    contexts: list[ToolContext] = []

    @tool
    async def work(ctx: ToolContext) -> None:
        contexts.append(ctx)

    run_virtual(outcome(work))
    contexts[0].progress("too late", 1.0)
    assert contexts[0].time_left_s >= 0
    assert contexts[0].messages == (UserMessage("go"),)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_call_that_says_nothing_reports_nothing(is_async: bool) -> None:
    reports = Reports()

    def plain(ctx: ToolContext) -> str:
        return ctx.call_id

    async def work(ctx: ToolContext) -> str:
        await asyncio.sleep(3)
        return ctx.call_id

    assert said(work if is_async else plain, within=context(reports)) == "c1"
    assert reports.told == []


def test_a_slow_report_holds_up_no_tool() -> None:
    """The tool goes on while its last word is being written down, and later words wait their turn."""
    ended_s: list[float] = []

    class Slow(Reports):
        async def __call__(self, text: str, fraction: float | None) -> None:
            await super().__call__(text, fraction)
            await asyncio.sleep(2)

    reports = Slow()

    @tool
    async def work(ctx: ToolContext) -> None:
        for step in range(10):
            ctx.progress(str(step))
            await asyncio.sleep(0.5)
        ended_s.append(asyncio.get_running_loop().time())

    run_virtual(outcome(work, within=context(reports)))
    assert ended_s == [5.0]
    assert [text for text, _ in reports.told] == sorted({text for text, _ in reports.told})
    assert reports.told[0] == ("0", None)


def test_words_do_not_move_the_timeout() -> None:
    @tool(timeout_s=2.0)
    async def work(ctx: ToolContext) -> None:
        while True:
            ctx.progress("still here")
            await asyncio.sleep(0.03)

    async def main() -> tuple[str, float]:
        made = await outcome(work)
        return made.result.content, asyncio.get_running_loop().time()

    text, ended_s = run_virtual(main())
    assert text.startswith("timed out after 2 s")
    assert ended_s == pytest.approx(2.0, abs=1e-6)


def test_progress_is_not_a_word_before_it_is_read() -> None:
    async def main() -> list[tuple[str, float | None]]:
        progress = Progress()
        progress.put("one", None)
        progress.put("two", 0.5)
        first = await progress.get()
        waiting = asyncio.ensure_future(progress.get())
        await settled()
        assert not waiting.done(), "nothing new"
        progress.put("three", None)
        return [first, await waiting]

    assert run_virtual(main()) == [("two", 0.5), ("three", None)]


def test_a_limit_of_the_run_is_the_time_of_a_tool_that_has_none() -> None:
    left: list[float] = []

    @tool
    async def look(ctx: ToolContext) -> None:
        left.append(ctx.time_left_s)

    run_virtual(outcome(look, limits=Limits(tool_timeout_s=7.5)))
    assert left == [7.5]
