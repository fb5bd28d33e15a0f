"""`Agent`: a model, its tools and its rules, and the three ways to run it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

from treadle.agent.eventloop import run_in_own_event_loop
from treadle.agent.preview import next_request, without_models
from treadle.agent.run import Run
from treadle.core.loop import Loop
from treadle.core.plan import Plan
from treadle.core.state import apply, begin
from treadle.core.step import CallModel
from treadle.errors import OutputInvalid, ToolDefinitionError, UsageError
from treadle.policy.approval import answered, check_approvals
from treadle.policy.context import Context, ContextPolicy
from treadle.policy.output import after_answer, shaped, value_of
from treadle.policy.recovery import OnInterrupted, Recovery, RetryPolicy, Strategy, retry_then_switch
from treadle.tools.executor import Executor
from treadle.tools.function import FunctionTool, as_tool
from treadle.tools.output import OutputType
from treadle.values.events import Asked, Event, Prompted
from treadle.values.history import repaired
from treadle.values.limits import Limits
from treadle.values.messages import Message, UserMessage
from treadle.values.outgoing import HttpRequest
from treadle.values.ports import Driver, Journal
from treadle.values.request import ModelRequest, Options
from treadle.values.state import RunResult, State
from treadle.values.toolcalls import Approvals, Decision

__all__ = ["Agent", "RunSettings"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=None)
else:
    from typing import TypeVar

    T = TypeVar("T")

_Start: TypeAlias = Callable[[Callable[[Sequence[Event]], None] | None], Loop]


class RunSettings(TypedDict, total=False):
    """What one run may bring. What it does not bring is as the agent has it.

    Attributes:
        history: The conversation so far: `result.messages` of an earlier run, or OpenAI-style dicts.
        options: Sampling and request options.
        limits: Bounds.
        resources: Objects for tool parameters declared `Injected[...]`; they come before the agent's.
        approvals: Which calls wait for a person.
        on_interrupted: What to do when the model's answer breaks off. `restart` begins it anew, announced by `Discarded`: drop what
            was drawn of that attempt; the default of `run`, which nobody watches. `fail` ends the run with the partial text; the
            default of `stream`, because not every reader can take text back. `continue` goes on from what had come, where the
            server can.
    """

    history: Sequence[Message | Mapping[str, Any]]
    options: Options
    limits: Limits
    resources: Sequence[object]
    approvals: Approvals
    on_interrupted: OnInterrupted


class Agent:
    """A model with tools. Immutable; makes no connection until it runs; safe to share between tasks.

        agent = Agent("ollama/qwen3:8b", tools=[get_weather], instructions="Be brief.")
        result = await agent.run("Weather in Oslo and Lima?")

    Args:
        model: `provider/name` (`ollama/qwen3:8b`), `local` (find a running server), `URL#model`, a URL (its first
            model), or a driver.
        tools: Functions, with or without the `tool` decorator; one without is `exclusive`.
        instructions: The system text.
        options: Sampling and request options, for every run that does not bring its own.
        limits: Bounds, for every run that does not bring its own.
        resources: Objects for tool parameters declared `Injected[...]`.
        approvals: Which calls wait for a person; by default those of tools that say so.
        fallback: Models to go on with, in this order, when the first cannot be reached or cannot do it.
        retry: How often a failed call is made again.
        strategy: Decides what follows a failure; by default retry, then the next model, then end.
        context: When a conversation that grows is shortened to fit the model's window, and how.
        journal: Where facts are kept before anybody sees them.

    Raises:
        UsageError: The model's name cannot be understood, or a function cannot be a tool.
    """

    def __init__(
        self,
        model: str | Driver,
        *,
        tools: Iterable[FunctionTool[..., Any] | Callable[..., Any]] = (),
        instructions: str | None = None,
        options: Options = Options(),
        limits: Limits = Limits(),
        resources: Iterable[object] = (),
        approvals: Approvals = (),
        fallback: Iterable[str | Driver] = (),
        retry: RetryPolicy = RetryPolicy(),
        strategy: Strategy = retry_then_switch,
        context: ContextPolicy = ContextPolicy(),
        journal: Journal | None = None,
    ) -> None:
        self.driver: Driver = _driver(model)
        self.fallback: tuple[Driver, ...] = tuple(_driver(each) for each in fallback)
        self.tools: tuple[FunctionTool[..., Any], ...] = tuple(as_tool(each) for each in tools)
        self.instructions = instructions
        self.options = options
        self.limits = limits
        self.approvals: Approvals = check_approvals(approvals)
        self._resources = tuple(resources)
        self._retry = retry
        self._strategy = strategy
        self._context = context
        self._journal = journal
        self._specs = tuple(each.spec for each in self.tools)
        names = [spec.name for spec in self._specs]
        for name in names:
            if names.count(name) > 1:
                raise ToolDefinitionError(f"two tools are named {name!r}", hint="Give one another name: @tool(name=...).")

    def __repr__(self) -> str:
        return f"Agent({self.driver.model!r}, tools=[{', '.join(spec.name for spec in self._specs)}])"

    async def run(self, prompt: str, *, output: type[T] | None = None, **settings: Unpack[RunSettings]) -> RunResult[T]:
        """The whole run, when only its outcome matters. The same path as `stream`, with nobody watching. See `RunSettings`.

        Args:
            output: The type the answer has to be, which `result.output` then is: a dataclass, a msgspec Struct, a TypedDict, a
                pydantic model, `list[...]`, ... Servers that can be held to a schema are; an answer that does not fit is sent back
                once. (A union or a `Literal` works too, and type checkers refuse it here: put it into a dataclass.)

        Raises:
            ModelError: A model call failed; `error.result` has what came before it.
            OutputInvalid: The answer does not fit `output`.
            UsageError: A setting or the history cannot work.
        """
        return await _driven(self._begin(prompt, output, {"on_interrupted": "restart", **settings}))

    def stream(self, prompt: str, *, output: type[T] | None = None, **settings: Unpack[RunSettings]) -> Run[T]:
        """The run as it happens: `async with agent.stream(...) as run`, then iterate it. See `run`, `Run` and `RunSettings`."""
        return Run(self._begin(prompt, output, settings))

    def run_sync(self, prompt: str, *, output: type[T] | None = None, **settings: Unpack[RunSettings]) -> RunResult[T]:
        """`run`, for code without an event loop.

        Raises:
            UsageError: There is a running event loop (a notebook, an async function): await `run` there.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return run_in_own_event_loop(self.run(prompt, output=output, **settings))
        raise UsageError("run_sync was called inside a running event loop", hint="Use `await agent.run(...)` there.")

    async def resume(
        self,
        run: RunResult,
        decisions: Mapping[str, Decision] = MappingProxyType({}),
        *,
        output: type[T] | None = None,
        **settings: Unpack[RunSettings],
    ) -> RunResult[T]:
        """Carry on a run that waits for a person (`result.pending`), or that broke off, here or in another process.

            result = await agent.resume(result, {"call_1": approve, "call_2": deny("not on a Friday")})

        Args:
            decisions: By call id: `approve`, `deny("why")`, `edit({...})`, and `say("...")` to a question. While one is missing
                the run goes on waiting, and nothing of its turn starts.
            output, settings: Those of the run are not kept in it; pass them again. A history has no place here.

        Raises:
            UsageError: There is nothing to resume, or an answer fits no waiting call. Nothing has happened then.
            ModelError: As `run`.
        """
        return await _driven(self._resumed(run, decisions, output, {"on_interrupted": "restart", **settings}))

    def resume_stream(
        self,
        run: RunResult,
        decisions: Mapping[str, Decision] = MappingProxyType({}),
        *,
        output: type[T] | None = None,
        **settings: Unpack[RunSettings],
    ) -> Run[T]:
        """`resume`, as it happens."""
        return Run(self._resumed(run, decisions, output, settings))

    async def next_request(
        self, prompt: str | RunResult[Any], *, driver: Driver | None = None, output: Any = None, **settings: Unpack[RunSettings]
    ) -> HttpRequest:
        """The request that `run(prompt)` would send first, or `resume(result)` next, byte for byte. Nothing is sent to a model.

            print(await agent.next_request("Weather in Oslo?", history=result.messages))

        A server that has to be looked for is, and one may be asked about its window. What depends on a model's words, such as a
        retry, cannot be told before.

        Args:
            prompt: A prompt, or the result of a run that broke off.
            driver: One of `agent.fallback`, to see what it would be sent; by default the agent's own model.

        Raises:
            UsageError: As `run`; or the driver cannot say what it sends, a resumed run does not call a model next, or a model would
                first have to sum up a conversation that is too long.
            ModelError: No server was found.
        """
        plan = self._plan(output, settings, without_models(self._context))
        if isinstance(prompt, str):
            messages, _ = repaired((*settings.get("history", ()), UserMessage(prompt)))
            state = begin(Asked(run_id=os.urandom(8).hex(), model=self.driver.model, messages=messages))
        else:
            if settings.get("history"):
                raise UsageError("a resumed run has its history already", hint="Leave `history` out.")
            state = prompt.state
            for fact in answered(state, {}, plan.toolbox):
                state = apply(state, fact)
        return await next_request(plan, state, driver)

    def _begin(self, prompt: str, output: Any, settings: RunSettings) -> _Start:
        messages, repairs = repaired((*settings.get("history", ()), UserMessage(prompt)))
        asked = Asked(run_id=os.urandom(8).hex(), model=self.driver.model, messages=messages)
        plan = self._plan(output, settings)
        return lambda watch: Loop(begin(asked), plan, (asked, *repairs), watch)

    def _resumed(self, run: RunResult, decisions: Mapping[str, Decision], output: Any, settings: RunSettings) -> _Start:
        if settings.get("history"):
            raise UsageError("a resumed run has its history already", hint="Leave `history` out.")
        plan = self._plan(output, settings)
        first = answered(run.state, decisions, plan.toolbox)
        return lambda watch: Loop(run.state, plan, first, watch)

    def _plan(self, output: Any, settings: RunSettings, context: ContextPolicy | None = None) -> Plan:
        limits, options = settings.get("limits", self.limits), settings.get("options", self.options)

        drivers = (self.driver, *self.fallback)
        wanted = OutputType(output) if output is not None else None
        can_read_results = any(spec.name == "read_result" for spec in self._specs)
        looks_after = Context(context or self._context, drivers, limits, can_read_results=can_read_results)

        def request(state: State, step: CallModel) -> ModelRequest:
            made = ModelRequest(
                messages=state.messages,
                instructions=self.instructions,
                tools=self._specs,
                options=options,
                run_id=state.run_id,
                revision=state.revision,
                turn=step.turn,
                attempt=step.attempt,
                continues=state.continues,
                window_tokens=looks_after.window_tokens(step.driver),
                timeouts=limits.timeouts,
            )
            return shaped(made, wanted, drivers[step.driver].schema_support, state) if wanted is not None else made

        def after(state: State) -> Prompted | OutputInvalid | None:
            support = drivers[state.driver].schema_support
            return after_answer(state, wanted, support, has_tools=bool(self._specs)) if wanted is not None else None

        return Plan(
            drivers=drivers,
            toolbox=Executor(self.tools, limits, (*settings.get("resources", ()), *self._resources)),
            limits=limits,
            request=request,
            recovery=Recovery(policy=self._retry, strategy=self._strategy, on_interrupted=settings.get("on_interrupted", "fail")),
            context=looks_after,
            after_answer=after,
            value_of=lambda state: value_of(state, wanted),
            approvals=check_approvals(settings["approvals"]) if "approvals" in settings else self.approvals,
            journal=self._journal,
        )


async def _driven(start: _Start) -> RunResult[Any]:
    loop = start(None)
    await loop.drive()
    return loop.result


def _driver(model: str | Driver) -> Driver:
    if isinstance(model, str):
        from treadle.drivers.catalog import driver_for  # loads the HTTP client

        return driver_for(model)
    return model
