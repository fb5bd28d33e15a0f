"""A driver that plays a list of turns: for tests of tools and agents, without a server, a model or time."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from msgspec.structs import replace

from treadle.errors import ModelError, UsageError
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import AssistantMessage, Part, Text, Thinking, ToolCall
from treadle.values.request import ModelInfo, ModelRequest, Omission, Reply, SchemaSupport
from treadle.values.tokens import Calibration

__all__ = ["ScriptedDriver", "ScriptedTurn", "calls"]

ScriptedTurn: TypeAlias = str | AssistantMessage | Reply | ModelError
"""A text, a message, a whole reply with its finish and usage, or an error to raise in its place."""


def calls(*made: tuple[str, Mapping[str, Any]], text: str = "") -> AssistantMessage:
    """A turn that calls tools: `calls(("get_weather", {"city": "Oslo"}))`. Ids are `call_0`, `call_1`, ..."""
    parts = [ToolCall(f"call_{n}", name, json.dumps(dict(arguments))) for n, (name, arguments) in enumerate(made)]
    return AssistantMessage((*([Text(text)] if text else []), *parts))


class ScriptedDriver:
    """Answers each request with the next turn of a script, streamed word by word.

        driver = ScriptedDriver([calls(("get_weather", {"city": "Oslo"})), "It is cold."])
        result = Agent(driver, tools=[get_weather]).run_sync("Weather?")
        assert driver.requests[1].messages[-1].content == "4 C, snow"

    Args:
        turns: In the order of the requests. A function is given the request and returns the turn.

    Attributes:
        requests: What was asked, in order.
    """

    continuable = False
    schema_support: SchemaSupport = "none"

    def __init__(
        self, turns: Iterable[ScriptedTurn | Callable[[ModelRequest], ScriptedTurn]], *, model: str = "scripted/model"
    ) -> None:
        self.model = model
        self.calibration = Calibration()
        self.requests: list[ModelRequest] = []
        self._turns = list(turns)

    def __repr__(self) -> str:
        return f"ScriptedDriver({len(self.requests)} of {len(self._turns)} turns played)"

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[ScriptedDriver]:
        yield self

    async def info(self) -> ModelInfo:
        return ModelInfo(model=self.model, server="scripted")

    @asynccontextmanager
    async def open(self, request: ModelRequest) -> AsyncGenerator[_ScriptedReply]:
        """The next turn.

        Raises:
            UsageError: There is none: the agent asks more often than the script expects.
            ModelError: The turn is this error.
        """
        number = len(self.requests)
        self.requests.append(request)
        if number >= len(self._turns):
            raise UsageError(f"the script has {number} turns, and a further one is asked for", hint="Add it to the script.")
        turn = self._turns[number]
        turn = turn(request) if callable(turn) else turn
        if isinstance(turn, ModelError):
            raise turn
        yield _ScriptedReply(turn, request)


class _ScriptedReply:
    omitted: tuple[Omission, ...] = ()
    moved = None

    def __init__(self, turn: str | AssistantMessage | Reply, request: ModelRequest) -> None:
        message = AssistantMessage((Text(turn),)) if isinstance(turn, str) else turn
        if isinstance(message, AssistantMessage):
            message = Reply(message=message, finish="tool_use" if message.calls else "end")
        self._whole = message
        self._request = request
        self._at_end = False
        self._shown: list[Part] = []

    @property
    def reply(self) -> Reply:
        return self._whole if self._at_end else Reply(message=AssistantMessage(tuple(self._shown)))

    async def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        turn, attempt, position = self._request.turn, self._request.attempt, 0
        for part in self._whole.message.content:
            if isinstance(part, Text | Thinking):
                kind = TextDelta if isinstance(part, Text) else ThinkingDelta
                self._shown.append(replace(part, text=""))
                for piece in re.findall(r"\s*\S+\s*$|\s*\S+|\s+", part.text):
                    last = self._shown[-1]
                    assert isinstance(last, Text | Thinking)
                    self._shown[-1] = replace(last, text=last.text + piece)
                    yield (kind(turn=turn, attempt=attempt, text=piece),)
            elif isinstance(part, ToolCall):
                yield (ToolCallDelta(turn=turn, attempt=attempt, position=position, name=part.name, arguments=part.arguments),)
                position += 1
                self._shown.append(part)
        self._at_end = True
