"""One call, run as a run would run it, without a run."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

from treadle.tools.execution import Execution
from treadle.tools.executor import Executor
from treadle.tools.function import as_tool
from treadle.values.limits import Limits
from treadle.values.messages import Message, ToolCall, UserMessage
from treadle.values.ports import CallContext
from treadle.values.toolcalls import Outcome

__all__ = ["LIMITS", "Reports", "context", "execution", "outcome"]

LIMITS = Limits()


class Reports:
    """What a call told of its progress, and when by the loop's clock."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float | None]] = []
        self.at_s: list[float] = []

    async def __call__(self, text: str, fraction: float | None) -> None:
        self.told.append((text, fraction))
        self.at_s.append(asyncio.get_running_loop().time())


def context(
    report: Any = None, *, deadline: float = math.inf, messages: tuple[Message, ...] = (UserMessage("go"),)
) -> CallContext:
    return CallContext(
        run_id="run1", turn=3, position=2, deadline=deadline, messages=lambda: messages, report=report or Reports()
    )


def execution(
    fn: Any, arguments: dict[str, Any] | None = None, limits: Limits = LIMITS, resources: Sequence[object] = ()
) -> Execution:
    tool = as_tool(fn)
    prepared = Executor([tool], limits, resources).prepare(ToolCall("c1", tool.spec.name, json.dumps(arguments or {})))
    assert isinstance(prepared, Execution), prepared
    return prepared


async def outcome(
    fn: Any,
    arguments: dict[str, Any] | None = None,
    *,
    limits: Limits = LIMITS,
    resources: Sequence[object] = (),
    within: CallContext | None = None,
) -> Outcome:
    return await execution(fn, arguments, limits, resources).run(within or context())
