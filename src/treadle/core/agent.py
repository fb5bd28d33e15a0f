"""`Agent`: a model, its tools and its rules, and the three ways to run it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from treadle.core.loop import Loop
from treadle.core.plan import Plan
from treadle.core.run import Run
from treadle.core.state import begin
from treadle.core.step import CallModel
from treadle.errors import ToolDefinitionError, UsageError
from treadle.policy.recovery import OnInterrupted, Recovery, RetryPolicy, Strategy, retry_then_switch
from treadle.tools.executor import Executor
from treadle.tools.function import FunctionTool, as_tool
from treadle.values.events import Asked, Event
from treadle.values.history import repaired
from treadle.values.limits import Limits
from treadle.values.messages import Message, UserMessage
from treadle.values.ports import Driver, Journal
from treadle.values.request import ModelRequest, Options
from treadle.values.state import RunResult, State

__all__ = ["Agent"]


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
        fallback: Models to go on with, in this order, when the first cannot be reached or cannot do it.
        retry: How often a failed call is made again.
        strategy: Decides what follows a failure; by default retry, then the next model, then end.
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
        fallback: Iterable[str | Driver] = (),
        retry: RetryPolicy = RetryPolicy(),
        strategy: Strategy = retry_then_switch,
        journal: Journal | None = None,
    ) -> None:
        self.driver: Driver = _driver(model)
        self.fallback: tuple[Driver, ...] = tuple(_driver(each) for each in fallback)
        self.tools: tuple[FunctionTool[..., Any], ...] = tuple(as_tool(each) for each in tools)
        self.instructions = instructions
        self.options = options
        self.limits = limits
        self._retry = retry
        self._strategy = strategy
        self._journal = journal
        self._specs = tuple(each.spec for each in self.tools)
        names = [spec.name for spec in self._specs]
        for name in names:
            if names.count(name) > 1:
                raise ToolDefinitionError(f"two tools are named {name!r}", hint="Give one another name: @tool(name=...).")

    def __repr__(self) -> str:
        return f"Agent({self.driver.model!r}, tools=[{', '.join(spec.name for spec in self._specs)}])"

    async def run(
        self,
        prompt: str,
        *,
        history: Sequence[Message] = (),
        options: Options | None = None,
        limits: Limits | None = None,
        on_interrupted: OnInterrupted = "restart",
    ) -> RunResult:
        """The whole run, when only its outcome matters. The same path as `stream`, with nobody watching.

        Args:
            prompt: What the user says.
            history: The conversation so far: `result.messages` of an earlier run.
            on_interrupted: What to do when the model's answer breaks off: `restart` it, `fail`, or `continue` from what
                had come where the server can.

        Raises:
            ModelError: A model call failed; `error.result` has what came before it.
            HistoryError: The history is one that no server would accept.
        """
        loop = self._begin(prompt, history, options, limits, on_interrupted)(None)
        await loop.drive()
        return RunResult.of(loop.state)

    def stream(
        self,
        prompt: str,
        *,
        history: Sequence[Message] = (),
        options: Options | None = None,
        limits: Limits | None = None,
        on_interrupted: OnInterrupted = "fail",
    ) -> Run:
        """The run as it happens: `async with agent.stream(...) as run`, then iterate it. See `Run`.

        With `on_interrupted="restart"` an answer that breaks off is begun anew, announced by `Discarded`: drop what was
        drawn of that attempt. The default is to fail with the partial text, because not every reader can take text back.
        """
        return Run(self._begin(prompt, history, options, limits, on_interrupted))

    def run_sync(
        self,
        prompt: str,
        *,
        history: Sequence[Message] = (),
        options: Options | None = None,
        limits: Limits | None = None,
        on_interrupted: OnInterrupted = "restart",
    ) -> RunResult:
        """`run`, for code without an event loop.

        Raises:
            UsageError: There is a running event loop (a notebook, an async function): await `run` there.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.run(prompt, history=history, options=options, limits=limits, on_interrupted=on_interrupted))
        raise UsageError("run_sync was called inside a running event loop", hint="Use `await agent.run(...)` there.")

    def _begin(
        self,
        prompt: str,
        history: Sequence[Message],
        options: Options | None,
        limits: Limits | None,
        on_interrupted: OnInterrupted,
    ) -> Callable[[Callable[[Sequence[Event]], None] | None], Loop]:
        messages, repairs = repaired((*history, UserMessage(prompt)))
        limits, options = limits or self.limits, options or self.options
        asked = Asked(run_id=os.urandom(8).hex(), model=self.driver.model, messages=messages)

        def request(state: State, step: CallModel) -> ModelRequest:
            return ModelRequest(
                messages=state.messages,
                instructions=self.instructions,
                tools=self._specs,
                options=options,
                run_id=state.run_id,
                turn=step.turn,
                attempt=step.attempt,
                continues=state.continues,
                timeouts=limits.timeouts,
            )

        plan = Plan(
            drivers=(self.driver, *self.fallback),
            toolbox=Executor(self.tools, limits),
            limits=limits,
            request=request,
            recovery=Recovery(policy=self._retry, strategy=self._strategy, on_interrupted=on_interrupted),
            journal=self._journal,
        )
        return lambda watch: Loop(begin(asked), plan, (asked, *repairs), watch)


def _driver(model: str | Driver) -> Driver:
    if isinstance(model, str):
        from treadle.drivers.catalog import driver_for  # loads the HTTP client

        return driver_for(model)
    return model
