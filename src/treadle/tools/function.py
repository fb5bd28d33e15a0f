"""Functions as tools: what a model is told of them, and one call with the arguments it wrote."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import re
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import (
    Annotated,
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    TypedDict,
    TypeVar,
    Union,
    Unpack,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from treadle.errors import ToolDefinitionError
from treadle.tools.arguments import InvalidArguments, Parameters
from treadle.tools.context import FromRun, ToolContext
from treadle.tools.docstrings import describe
from treadle.tools.threads import run_in_thread
from treadle.values.request import ToolSpec
from treadle.values.toolcalls import Concurrency

__all__ = ["BoundCall", "FunctionTool", "InvalidArguments", "ToolSettings", "as_tool", "tool"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


class ToolSettings(TypedDict, total=False):
    """How a tool is offered and run. Everything has a default.

    Attributes:
        name: What the model calls it; by default the function's name.
        description: What the model reads; by default the docstring.
        concurrency: `read_only`, `exclusive` (the default) or `interactive`.
        group: A lock, by name: read-only members share it, exclusive ones take it alone, and members of different groups run
            together. An exclusive tool without a group conflicts with every other call of its turn.
        timeout_s: Seconds a call may take; by default the run's limit, and none for an interactive tool.
        repeatable: Running it twice does no more than running it once. Only then is it called again after a failure that may
            pass, or when a run is carried on that broke off while it ran.
        needs_approval: A person is asked before it runs, unless the run's approvals say otherwise.
        preview: With the call's arguments, what it would do, as text for the person who is asked. An approved call whose preview
            has changed meanwhile does not run.
        subjects: With the call's arguments, what approval rules hold their patterns against, by argument name; by default the
            arguments as text. An argument it leaves out fits no `allow` rule and may fit any other, so that a person is asked.
        is_question: The call itself is a question to the person (`preview` is its text), and their words are its result. The
            function is never called.
    """

    name: str | None
    description: str | None
    concurrency: Concurrency
    group: str | None
    timeout_s: float | None
    repeatable: bool
    needs_approval: bool
    preview: Callable[..., str | Awaitable[str]]
    subjects: Callable[..., Mapping[str, str]]
    is_question: bool


@overload
def tool(fn: Callable[P, R], /, **settings: Unpack[ToolSettings]) -> FunctionTool[P, R]: ...
@overload
def tool(fn: None = None, /, **settings: Unpack[ToolSettings]) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(fn: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """The function as a tool: `@tool`, or `@tool(concurrency="read_only", timeout_s=30)`; see `ToolSettings`.

    Its name is the tool's name, its docstring the description, its signature the schema. Parameters are described by
    the docstring (Google, NumPy or Sphinx style) or by `Annotated[int, "How many."]`, which wins. Parameters of type
    `ToolContext` or `Injected[...]` are filled by the run and left out of the schema.

    Raises:
        ToolDefinitionError: The function cannot be offered to a model; the message names the parameter.
    """
    return functools.partial(tool, **settings) if fn is None else FunctionTool(fn, **settings)


def as_tool(fn_or_tool: Callable[..., Any]) -> FunctionTool[..., Any]:
    """The tool itself, or the function as a tool of concurrency class `exclusive`.

    Raises:
        ToolDefinitionError: It is neither, or a method without its object.
    """
    method: Any = getattr(fn_or_tool, "__func__", None)
    if isinstance(method, FunctionTool):  # a class method, from Python 3.13 on
        return cast("FunctionTool[..., Any]", method).__get__(cast("Any", fn_or_tool).__self__)
    is_tool = isinstance(fn_or_tool, FunctionTool)
    made = cast("FunctionTool[..., Any]", fn_or_tool) if is_tool else FunctionTool(fn_or_tool)
    if made.is_method:
        _refuse(made.spec.name, "it is a method without its object", f"Pass `instance.{made.spec.name}`.")
    return made


class BoundCall:
    """One call whose arguments passed every gate.

    Attributes:
        arguments: Values by parameter name, absent ones filled from the signature.
    """

    __slots__ = ("_fn", "_is_async", "arguments")

    def __init__(self, fn: Callable[..., Any], is_async: bool, arguments: dict[str, Any]) -> None:
        self._fn = fn
        self._is_async = is_async
        self.arguments = arguments

    async def run(self, injected: Mapping[str, object] = types.MappingProxyType({})) -> object:
        """What the function returns. Its exceptions come out as they are.

        `injected` are values for the parameters that the run fills.

        An async function runs here, and cancelling cancels it. Any other runs in a thread, and cancelling leaves the
        thread behind: see `treadle.tools.threads`.
        """
        if self._is_async:
            return await self._fn(**self.arguments, **injected)
        result = await run_in_thread(functools.partial(self._fn, **self.arguments, **injected))
        return await cast("Awaitable[object]", result) if inspect.isawaitable(result) else result


class FunctionTool(Generic[P, R]):
    """A function with a schema. Calling it calls the function. In a class it binds like a method.

    Attributes:
        spec: What the model sees.
        settings: As they were given; see `ToolSettings`.
        concurrency: How its calls run next to others of the same turn.
        timeout_s: Seconds a call may take; None for the run's limit.
        injected: Parameters that the run fills, with the type each is looked for by.
        is_method: It was defined in a class and has no object yet: `instance.method` is the tool to offer.
    """

    spec: ToolSpec
    settings: ToolSettings
    concurrency: Concurrency
    timeout_s: float | None
    injected: dict[str, inspect.Parameter]
    is_method: bool
    __name__: str

    def __init__(self, fn: Callable[P, R], **settings: Unpack[ToolSettings]) -> None:
        name, description, timeout_s = settings.get("name"), settings.get("description"), settings.get("timeout_s")
        concurrency: Concurrency = settings.get("concurrency", "exclusive")
        if unknown := settings.keys() - ToolSettings.__annotations__.keys():
            hint = f"There are {', '.join(ToolSettings.__annotations__)}."
            _refuse(name or "?", f"no such setting: {', '.join(sorted(unknown))}", hint)
        if isinstance(fn, type | staticmethod | classmethod) or not callable(fn):
            kind = type(cast("object", fn)).__name__
            _refuse(name or kind, f"a `{kind}` is no tool", "`@tool` goes right above a `def`, below other decorators.")
        inner = _inner(fn)
        call = inner if hasattr(inner, "__name__") else type(inner).__call__
        if name is None:
            name = cast("str", getattr(inner, "__name__", type(inner).__name__))
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
            _refuse(name[:64], "that is no tool name", "Pass `name=` with 1 to 64 letters, digits, `_` or `-`.")
        if concurrency not in get_args(Concurrency):
            _refuse(name, f"no such concurrency: {concurrency!r}", f"Choose one of {', '.join(get_args(Concurrency))}.")
        if timeout_s is not None and not timeout_s > 0:
            _refuse(name, f"timeout_s is {timeout_s}", "Write seconds above 0, or None for the run's limit.")
        if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
            _refuse(name, "it yields", "Return one value, such as a list.")
        self.is_method, parameters, self.injected = _signature(fn, call, name)
        text, said = describe(call.__doc__ or inner.__doc__, [p.name for p in parameters])
        functools.update_wrapper(self, call, updated=())
        self.__wrapped__ = self._fn = fn
        self._is_async = inspect.iscoroutinefunction(call)
        self._parameters = Parameters(name, parameters, said)
        self.spec = ToolSpec(
            name=name,
            description=text if description is None else description,
            parameters=self._parameters.schema,
        )
        self.settings = settings
        self.concurrency = concurrency
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<FunctionTool {self.spec.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._fn(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> FunctionTool[P, R]: ...
    @overload
    def __get__(
        self: FunctionTool[Concatenate[Any, Q], S], instance: object, owner: type | None = None
    ) -> FunctionTool[Q, S]: ...
    def __get__(self, instance: object, owner: type | None = None) -> FunctionTool[..., Any]:
        if instance is None or not self.is_method:
            return self
        bound: Any = copy.copy(self)
        bound.__wrapped__ = bound._fn = types.MethodType(self._fn, instance)
        bound.is_method = False
        return bound

    def bind(self, arguments: str) -> BoundCall:
        """A call with the arguments a model wrote, as JSON text.

        Raises:
            InvalidArguments: They do not fit. Nothing ran.
        """
        return BoundCall(self._fn, self._is_async, self._parameters.decode(arguments))


def _refuse(name: str, reason: str, hint: str) -> NoReturn:
    raise ToolDefinitionError(f"tool `{name}`: {reason}", hint=hint)


def _inner(fn: Any) -> Any:
    while isinstance(fn, functools.partial | FunctionTool):
        fn = cast("Any", fn).func if isinstance(fn, functools.partial) else cast("Any", fn)._fn
    return fn


def _signature(fn: Any, call: Any, name: str) -> tuple[bool, list[inspect.Parameter], dict[str, inspect.Parameter]]:
    """Whether the function lacks its object; the parameters a model may fill, their annotations evaluated; and the types of
    those that the run fills."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError, NameError) as error:
        _refuse(name, f"its signature cannot be read: {error}", "Wrap it in a function with annotations.")
    is_method = parameters[:1] != [] and parameters[0].name in ("self", "cls") and _is_bare(parameters[0])
    bound: dict[str, Any] = fn.keywords if isinstance(fn, functools.partial) else {}  # not the model's to change
    parameters = [p for p in parameters[is_method:] if p.name not in bound]
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            hint = "Write each parameter out, or take one `dict` or `list`."
            _refuse(name, f"parameter `{p.name}`: `{str(p).partition(':')[0]}` has no schema", hint)
        if p.kind is p.POSITIONAL_ONLY:
            hint = "Remove the `/`: a model passes arguments by name."
            _refuse(name, f"parameter `{p.name}`: it is positional-only", hint)
        if _is_bare(p):
            hint = f"Write `{p.name}: str`, or another type JSON can express."
            _refuse(name, f"parameter `{p.name}`: it has no type annotation", hint)
        if type(p.default).__name__ == "FieldInfo":
            hint = f"Write `{p.name}: Annotated[..., Field(...)] = value`."
            _refuse(name, f"parameter `{p.name}`: a pydantic `Field` is no default", hint)
    written_in = inspect.unwrap(getattr(call, "__func__", call))
    global_names, local_names = getattr(written_in, "__globals__", {}), _local_names(written_in)
    evaluated: list[inspect.Parameter] = []
    injected: dict[str, inspect.Parameter] = {}
    for p in parameters:
        holder = types.SimpleNamespace(__annotations__={p.name: p.annotation})
        try:
            hints = get_type_hints(holder, global_names, local_names, include_extras=True)
        except Exception as error:  # annotations are code
            hint = "Define or import what it names at module level, outside `if TYPE_CHECKING`."
            _refuse(name, f"parameter `{p.name}`: `{p.annotation}` cannot be evaluated: {error}", hint)
        kind = _filled_by_run(hints[p.name])
        if kind is None:
            evaluated.append(p.replace(annotation=hints[p.name]))
            continue
        if not _is_class(kind):
            _refuse(name, f"parameter `{p.name}`: `{kind}` is no class to look for", "Write `Injected[SomeClass]`.")
        injected[p.name] = p.replace(annotation=kind)
    return is_method, evaluated, injected


def _filled_by_run(hint: Any) -> Any:
    """The type of a parameter that the run fills; None for one that the model fills."""
    if hint is ToolContext or (get_origin(hint) in (Annotated, Union, types.UnionType) and ToolContext in get_args(hint)):
        return ToolContext
    is_marked = get_origin(hint) is Annotated and any(isinstance(said, FromRun) for said in get_args(hint)[1:])
    return get_args(hint)[0] if is_marked else None


def _is_class(kind: Any) -> bool:
    try:
        return isinstance(kind, type) and not isinstance(None, kind)
    except TypeError:  # a protocol, a TypedDict, Any
        return False


def _is_bare(p: inspect.Parameter) -> bool:
    return p.annotation is p.empty


def _local_names(fn: Any) -> dict[str, Any]:
    """Names of the scopes around a nested function: those that are being executed now, and what it closes over."""
    names: dict[str, Any] = {}
    qualname = getattr(fn, "__qualname__", "")
    frame = inspect.currentframe() if "." in qualname else None
    while frame is not None:
        if frame.f_globals is fn.__globals__ and qualname.startswith(frame.f_code.co_qualname + "."):
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False) if hasattr(fn, "__closure__") else ():
        with contextlib.suppress(ValueError):  # not assigned yet, such as the agent that the tool is for
            names[name] = cell.cell_contents
    return names
