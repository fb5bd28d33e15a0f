from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import pytest

from treadle.errors import ToolDefinitionError
from treadle.tools.function import BoundCall, FunctionTool, InvalidArguments, as_tool, tool
from treadle.values.request import ToolSpec

if TYPE_CHECKING:
    from decimal import Decimal

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
INT: Json = {"type": "integer"}


def closed(required: list[str] | None = None, /, **properties: Json) -> Json:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def call(made: FunctionTool[..., Any], arguments: str) -> object:
    return asyncio.run(made.bind(arguments).run())


def refusal(define: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(ToolDefinitionError) as raised:
        define()
    return raised.value.message, raised.value.hint


@tool
def add(a: int, b: int = 1) -> int:
    """The sum of two numbers.

    Args:
        a: The first.
    """
    return a + b


@tool(concurrency="read_only", timeout_s=2.5)
async def weather(city: Annotated[str, "Where."], unit: Literal["c", "f"] = "c") -> str:
    """Weather in a city."""
    await asyncio.sleep(0)
    return f"{city} {unit}"


class Counter:
    def __init__(self) -> None:
        self.total = 0

    @tool
    def count(self, by: int = 1) -> int:
        """Count on."""
        self.total += by
        return self.total

    @tool(name="wait_for", concurrency="interactive")
    async def wait(self, seconds: float) -> float:
        return self.total + seconds

    @classmethod
    @tool(concurrency="read_only")
    def kind(cls, plural: bool) -> str:
        return cls.__name__ + ("s" if plural else "")

    @staticmethod
    @tool
    def twice(x: int) -> int:
        return 2 * x

    borrowed = add

    def plain(self, by: int) -> int:
        """Count, plainly."""
        self.total += by
        return self.total


class Greeter:
    """Greets."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, name: str) -> str:
        return f"{self.word} {name}"


class AsyncGreeter(Greeter):
    async def __call__(self, name: str) -> str:
        """Greets later."""
        return f"{self.word} {name}"


# --- what the model sees ---------------------------------------------------------------------------------------------


def test_a_function_becomes_a_tool() -> None:
    parameters = closed(["a"], a={"type": "integer", "description": "The first."}, b={"type": "integer", "default": 1})
    assert add.spec == ToolSpec(name="add", description="The sum of two numbers.", parameters=parameters)
    assert (add.concurrency, add.timeout_s) == ("exclusive", None)


def test_settings_are_kept() -> None:
    unit = {"type": "string", "enum": ["c", "f"], "default": "c"}
    parameters = closed(["city"], city={"type": "string", "description": "Where."}, unit=unit)
    assert weather.spec == ToolSpec(name="weather", description="Weather in a city.", parameters=parameters)
    assert (weather.concurrency, weather.timeout_s) == ("read_only", 2.5)

    @tool(name="Plus-1", description="Adds.")
    def plus(a: int) -> int:
        """Not this text.

        :param a: But this one.
        """
        return a + 1

    assert plus.spec == ToolSpec(
        name="Plus-1", description="Adds.", parameters=closed(a={"type": "integer", "description": "But this one."})
    )


def test_a_tool_still_is_its_function() -> None:
    assert add(2, b=3) == 5
    assert asyncio.run(weather("Oslo")) == "Oslo c"
    assert (add.__name__, add.__doc__ is not None, add.__module__) == ("add", True, __name__)
    assert add.__wrapped__(1) == 2
    assert repr(add) == "<FunctionTool add>"


def test_a_tool_can_be_made_again_with_other_settings() -> None:
    again = tool(add, name="sum", concurrency="read_only")
    assert again.spec == ToolSpec(name="sum", description=add.spec.description, parameters=add.spec.parameters)
    assert call(again, '{"a": 1}') == 2
    assert add.spec.name == "add"


def test_as_tool_wraps_functions_and_passes_tools() -> None:
    def plain(x: int) -> int:
        return x

    made = as_tool(plain)
    assert made.spec == ToolSpec(name="plain", description="", parameters=closed(x=INT))
    assert made.concurrency == "exclusive"
    assert as_tool(add) is add


def test_a_method_binds_its_object() -> None:
    counter, other = Counter(), Counter()
    made = as_tool(counter.count)
    assert made.spec == ToolSpec(
        name="count", description="Count on.", parameters=closed([], by={"type": "integer", "default": 1})
    )
    assert call(made, '{"by": 2}') == 2
    assert (counter.count(), Counter.count(counter, 2), counter.total, other.total) == (3, 5, 5, 0)
    assert (counter.wait.spec.name, counter.wait.concurrency) == ("wait_for", "interactive")
    assert call(as_tool(counter.wait), '{"seconds": 1}') == 6.0
    assert call(as_tool(counter.plain), '{"by": 1}') == 6
    assert as_tool(counter.plain).spec.description == "Count, plainly."


def test_class_methods_static_methods_and_borrowed_tools() -> None:
    class Special(Counter):
        pass

    assert call(as_tool(Special.kind), '{"plural": true}') == "Specials"
    assert call(as_tool(Special().kind), '{"plural": false}') == "Special"
    assert call(as_tool(Counter().twice), '{"x": 2}') == 4
    assert Counter().borrowed is add


def test_a_class_method_may_come_as_a_method_of_a_tool() -> None:
    from types import MethodType

    kind = vars(Counter)["kind"].__func__
    made = as_tool(MethodType(kind, Counter))
    assert made.concurrency == "read_only"
    assert call(made, '{"plural": true}') == "Counters"


def test_a_partial_hides_what_it_binds() -> None:
    def query(db: object, table: str, limit: int = 5, *, schema: str = "public") -> list[object]:
        """Query."""
        return [db, table, limit, schema]

    db = object()
    made = as_tool(functools.partial(functools.partial(query, db), limit=9))
    assert made.spec == ToolSpec(
        name="query",
        description="Query.",
        parameters=closed(["table"], table=TEXT, schema={"type": "string", "default": "public"}),
    )
    assert call(made, '{"table": "t"}') == [db, "t", 9, "public"]
    with pytest.raises(InvalidArguments, match="unknown field `limit`"):
        made.bind('{"table": "t", "limit": 1}')


def test_callable_objects() -> None:
    made = as_tool(Greeter("Hello"))
    assert made.spec == ToolSpec(name="Greeter", description="Greets.", parameters=closed(name=TEXT))
    assert call(made, '{"name": "you"}') == "Hello you"
    later = tool(AsyncGreeter("Hello"), name="greet")
    assert later.spec == ToolSpec(name="greet", description="Greets later.", parameters=closed(name=TEXT))
    assert call(later, '{"name": "you"}') == "Hello you"
    assert call(as_tool(functools.partial(AsyncGreeter("Hi"))), '{"name": "you"}') == "Hi you"


def test_wrapped_functions_keep_the_signature_of_what_they_wrap() -> None:
    def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        return wrapper

    @tool
    @logged
    def local(x: int) -> int:
        """Doc."""
        return -x

    @tool
    @logged
    async def local_async(x: int) -> int:
        return -x

    cached = as_tool(functools.lru_cache(add.__wrapped__))
    assert local.spec == ToolSpec(name="local", description="Doc.", parameters=closed(x=INT))
    assert call(local, '{"x": 1}') == -1
    assert call(local_async, '{"x": 1}') == -1
    assert (cached.spec, call(cached, '{"a": 1}')) == (add.spec, 2)


# --- annotations -----------------------------------------------------------------------------------------------------


@dataclass
class Leg:
    km: float


def test_annotations_may_name_what_is_local_to_the_function_around() -> None:
    @dataclass
    class Stop:
        name: str

    class Model(pydantic.BaseModel):
        stop: Stop | None = None

    Stops = list[Stop]

    @tool
    def travel(stop: Stop, stops: Stops, model: Model | None, leg: Leg) -> object:
        return stop, leg

    class Agency:
        Price = int

        @tool
        def sell(self, price: Price, stop: Stop) -> object:
            return price, stop

    trip = call(travel, '{"stop": {"name": "x"}, "stops": [], "model": null, "leg": {"km": 1}}')
    assert trip == (Stop("x"), Leg(1.0))
    assert call(as_tool(Agency().sell), '{"price": 1, "stop": {"name": "x"}}') == (1, Stop("x"))


def test_a_local_name_of_a_caller_is_not_mistaken_for_one_of_the_functions_own() -> None:
    def outer() -> Callable[..., Any]:
        Leg = int

        def inner(leg: Leg) -> object:  # type: ignore[valid-type]
            return leg, Leg

        return inner

    inner = outer()

    def somewhere_else() -> FunctionTool[..., Any]:
        Leg = str  # noqa: F841
        return as_tool(inner)

    assert somewhere_else().spec.parameters == closed(leg=INT)


def test_a_local_name_of_a_caller_does_not_hide_a_global_one() -> None:
    def outer() -> Callable[..., Any]:
        def inner(leg: Leg) -> object:
            return leg

        return inner

    inner = outer()

    def somewhere_else() -> FunctionTool[..., Any]:
        Leg = str  # noqa: F841
        return as_tool(inner)

    assert somewhere_else().spec.parameters == closed(leg=closed(km={"type": "number"}))


def test_names_are_looked_up_where_the_wrapped_function_was_written() -> None:
    @functools.lru_cache
    def ride(leg: Leg) -> object:
        return leg

    assert as_tool(ride).spec.parameters == closed(leg=closed(km={"type": "number"}))


def test_the_return_annotation_may_name_anything() -> None:
    @tool
    def fn(x: int) -> NoSuchThing:  # type: ignore[name-defined]  # noqa: F821
        return x

    assert fn.spec.parameters == closed(x=INT)


# --- what cannot be a tool -------------------------------------------------------------------------------------------


def bare(x, y: int = 1):  # type: ignore[no-untyped-def]
    return x


def star(x: int, *rest: int) -> None: ...


def stars(x: int, **rest: int) -> None: ...


def slash(x: int, /) -> None: ...


def unknown(x: int, y: list[NoSuchThing]) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def hidden(x: Decimal) -> None: ...


def complex_number(x: int, y: complex) -> None: ...


def field_default(x: int = pydantic.Field(3, ge=1)) -> None: ...


def numbers(n: int) -> Iterator[int]:
    yield n


async def later_numbers(n: int) -> AsyncIterator[int]:
    yield n


@pytest.mark.parametrize(
    ("fn", "message", "hint"),
    [
        (
            bare,
            "tool `bare`: parameter `x`: it has no type annotation",
            "Write `x: str`, or another type JSON can express.",
        ),
        (
            star,
            "tool `star`: parameter `rest`: `*rest` has no schema",
            "Write each parameter out, or take one `dict` or `list`.",
        ),
        (
            stars,
            "tool `stars`: parameter `rest`: `**rest` has no schema",
            "Write each parameter out, or take one `dict` or `list`.",
        ),
        (
            slash,
            "tool `slash`: parameter `x`: it is positional-only",
            "Remove the `/`: a model passes arguments by name.",
        ),
        (
            unknown,
            "tool `unknown`: parameter `y`: `list[NoSuchThing]` cannot be evaluated: name 'NoSuchThing' is not defined",
            "Define or import what it names at module level, outside `if TYPE_CHECKING`.",
        ),
        (
            hidden,
            "tool `hidden`: parameter `x`: `Decimal` cannot be evaluated: name 'Decimal' is not defined",
            "Define or import what it names at module level, outside `if TYPE_CHECKING`.",
        ),
        (
            complex_number,
            "tool `complex_number`: parameter `y`: `complex` cannot be offered to a model: "
            "`complex` is not a type JSON can express",
            "Write a type JSON can express: str, int, float, bool, list, dict, Literal, an Enum, a dataclass.",
        ),
        (
            field_default,
            "tool `field_default`: parameter `x`: a pydantic `Field` is no default",
            "Write `x: Annotated[..., Field(...)] = value`.",
        ),
        (numbers, "tool `numbers`: it yields", "Return one value, such as a list."),
        (later_numbers, "tool `later_numbers`: it yields", "Return one value, such as a list."),
        (
            lambda: 1,
            "tool `<lambda>`: that is no tool name",
            "Pass `name=` with 1 to 64 letters, digits, `_` or `-`.",
        ),
        (
            Counter.count,
            "tool `count`: it is a method without its object",
            "Pass `instance.count`.",
        ),
        (
            Counter.plain,
            "tool `plain`: it is a method without its object",
            "Pass `instance.plain`.",
        ),
        (3, "tool `int`: a `int` is no tool", "`@tool` goes right above a `def`, below other decorators."),
        (Greeter, "tool `type`: a `type` is no tool", "`@tool` goes right above a `def`, below other decorators."),
        (
            staticmethod(slash),
            "tool `staticmethod`: a `staticmethod` is no tool",
            "`@tool` goes right above a `def`, below other decorators.",
        ),
    ],
)
def test_what_cannot_be_a_tool_is_refused_and_the_way_out_is_named(fn: Any, message: str, hint: str) -> None:
    assert refusal(lambda: as_tool(fn)) == (message, hint)


def test_a_signature_that_cannot_be_read() -> None:
    message, hint = refusal(lambda: as_tool(dict.fromkeys))
    assert message.startswith("tool `fromkeys`: ")
    assert hint


@pytest.mark.parametrize("name", ["", "a b", "naïve", "x" * 65, "a.b", "a\n"])
def test_names_that_servers_refuse_are_refused(name: str) -> None:
    message, hint = refusal(lambda: tool(name=name)(lambda: 1))
    assert message == f"tool `{name[:64]}`: that is no tool name"
    assert hint == "Pass `name=` with 1 to 64 letters, digits, `_` or `-`."


@pytest.mark.parametrize("name", ["x", "x" * 64, "A-b_9"])
def test_names_that_servers_take(name: str) -> None:
    assert tool(name=name)(lambda: 1).spec.name == name


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(timeout_s: float) -> None:
    message, hint = refusal(lambda: tool(name="x", timeout_s=timeout_s)(lambda: 1))
    assert message == f"tool `x`: timeout_s is {timeout_s}"
    assert hint == "Write seconds above 0, or None for the run's limit."


def test_an_unknown_concurrency_is_refused() -> None:
    message, hint = refusal(lambda: tool(name="x", concurrency="parallel")(lambda: 1))  # type: ignore[call-overload]
    assert message == "tool `x`: no such concurrency: 'parallel'"
    assert hint == "Choose one of read_only, exclusive, interactive."


# --- calls -----------------------------------------------------------------------------------------------------------


def test_a_call_holds_its_values() -> None:
    bound = add.bind('{"a": 1}')
    assert isinstance(bound, BoundCall)
    assert bound.arguments == {"a": 1, "b": 1}


def test_arguments_that_do_not_fit_are_refused_before_anything_runs() -> None:
    ran: list[int] = []

    @tool
    def record(x: int) -> None:
        ran.append(x)

    for arguments in ('{"x": "1"}', '{"x": 1, "y": 1}', '{"x": 1, "x": 2}', "{}", "x", '{"x": 1'):
        with pytest.raises(InvalidArguments):
            record.bind(arguments)
    assert ran == []


def test_an_async_function_runs_in_the_loop_and_any_other_in_a_thread() -> None:
    @tool
    async def here() -> str:
        return threading.current_thread().name

    @tool
    def there() -> str:
        return threading.current_thread().name

    async def main() -> tuple[object, object]:
        return await here.bind("").run(), await there.bind("").run()

    in_loop, in_thread = asyncio.run(main())
    assert in_loop == threading.main_thread().name
    assert str(in_thread).startswith("treadle-there-")


def test_a_call_may_run_more_than_once() -> None:
    bound = Counter().count.bind('{"by": 2}')
    assert [asyncio.run(bound.run()), asyncio.run(bound.run())] == [2, 4]


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError(), Stop()])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_function_raises_comes_out_as_it_is(error: BaseException, is_async: bool) -> None:
    def fail() -> None:
        raise error

    async def fail_later() -> None:
        raise error

    fn: Callable[[], object] = fail_later if is_async else fail
    with pytest.raises(type(error)) as raised:
        call(as_tool(fn), "")
    assert raised.value is error


def test_cancelling_a_call_cancels_an_async_function() -> None:
    seen: list[str] = []

    @tool
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        task = asyncio.create_task(wait.bind("").run())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert seen == ["cancelled"]


def test_the_awaitable_that_a_plain_function_returns_is_awaited() -> None:
    async def later(x: int) -> int:
        return -x

    def now(x: int) -> Awaitable[int]:
        return later(x)

    assert call(as_tool(now), '{"x": 1}') == -1


def test_importing_the_decorator_loads_nothing_heavy_and_starts_nothing() -> None:
    program = (
        "import sys, threading; from treadle.tools.function import tool;"
        "tool(lambda: 1, name='x').bind('');"
        "heavy = {'pydantic', 'docstring_parser', 'jsonschema', 'aiohttp', 'annotated_types'} & set(sys.modules);"
        "assert not heavy, heavy; assert threading.active_count() == 1"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_tool_may_name_what_is_assigned_after_it() -> None:
    """As a tool does that calls its own agent."""

    @tool
    def again(n: int) -> int:
        return later + n

    later = 2
    assert again(1) == 3
    assert again.spec.name == "again"
