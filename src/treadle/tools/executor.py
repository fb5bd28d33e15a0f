"""The tools of a run, and the gates and rules of running them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from treadle.errors import UsageError
from treadle.tools.context import ToolContext
from treadle.tools.execution import GRACE_S, Execution, Leftovers
from treadle.tools.function import FunctionTool, InvalidArguments
from treadle.tools.turn import run_jobs
from treadle.values.limits import Limits
from treadle.values.messages import ToolCall, ToolMessage
from treadle.values.ports import Job

__all__ = ["Executor"]

_READ_RESULT = "read_result"


class Executor:
    """The tools of a run. See `treadle.values.ports.Toolbox`.

    Args:
        resources: What parameters declared `Injected[...]` are filled from, the first that fits.

    Raises:
        UsageError: A tool needs a resource that is not there.
    """

    def __init__(self, tools: Iterable[FunctionTool[..., Any]], limits: Limits, resources: Sequence[object] = ()) -> None:
        self._tools = {tool.spec.name: tool for tool in tools}
        self._limits = limits
        self._leftovers = Leftovers()
        self._injected = {name: _filled(tool, resources) for name, tool in self._tools.items() if tool.injected}

    def prepare(self, call: ToolCall) -> Execution | ToolMessage:
        """What to run; or, for an unknown tool or arguments that fail a gate, the result that says so."""
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join(sorted(self._tools)) or "none"
            said = f"there is no tool named {call.name[:64]!r}. Tools: {names}."
            return ToolMessage(call.id, call.name, said, is_error=True, error_kind="not_found")
        try:
            bound = tool.bind(call.arguments)
        except InvalidArguments as error:
            said = f"invalid arguments: {error}. Nothing ran. Arguments as received: {call.arguments[:500]}"
            return ToolMessage(call.id, call.name, said, is_error=True, error_kind="invalid_input")
        return Execution(
            call,
            tool,
            bound,
            self._injected.get(call.name, {}),
            self._limits,
            self._leftovers,
            can_read_result=_READ_RESULT in self._tools,
        )

    async def run_in_turn(self, jobs: Sequence[Job]) -> None:
        """Run one turn's jobs, given in call order; `treadle.tools.turn` has the rule. Cancelled, it cancels the jobs; `settle`
        then waits for their tools."""
        await run_jobs(jobs, at_most=self._limits.parallel_tools, grace_s=GRACE_S)

    async def settle(self) -> None:
        """Give the tools of a cancelled run a moment to clean up. What still runs then is left behind."""
        await self._leftovers.settle()


def _filled(tool: FunctionTool[..., Any], resources: Sequence[object]) -> dict[str, object]:
    """Values for the parameters that the run fills, but for the context of each call."""
    filled: dict[str, object] = {}
    for name, parameter in tool.injected.items():
        kind = parameter.annotation
        if kind is ToolContext:
            continue
        fitting = [resource for resource in resources if isinstance(resource, kind)]
        if not fitting and parameter.default is not parameter.empty:
            continue
        if not fitting:
            raise UsageError(
                f"tool `{tool.spec.name}`: nothing fits its parameter `{name}`",
                hint=f"Pass a {kind.__name__} to the agent or the run: resources=[...].",
            )
        filled[name] = fitting[0]
    return filled
