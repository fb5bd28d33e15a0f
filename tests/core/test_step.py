from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from treadle.core.step import CallModel, CallTools, next_step
from treadle.values.events import Ended, ErrorRecord
from treadle.values.limits import Limits
from treadle.values.messages import AssistantMessage, Text, ToolCall, ToolMessage, UserMessage
from treadle.values.state import OpenCall, State

ASKED = State(run_id="r", model="m", closed=(UserMessage("hi"),))
SAID = replace(ASKED, closed=(*ASKED.closed, AssistantMessage((Text("a"),))), turn=1, finish="end")
CALL = ToolCall("a", "f", "{}")
CALLED = replace(
    ASKED, closed=(*ASKED.closed, AssistantMessage((CALL,))), turn=1, finish="tool_use", open_calls=(OpenCall(CALL),)
)
ANSWERED = replace(CALLED, closed=(*CALLED.closed, ToolMessage("a", "f", "x")), open_calls=())


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (ASKED, CallModel(1)),
        (SAID, Ended(stop_reason="end")),
        (replace(SAID, finish="refused"), Ended(stop_reason="refused")),
        (replace(SAID, finish="length"), Ended(stop_reason="output_limit")),
        (replace(SAID, finish="unknown"), Ended(stop_reason="end")),
        (replace(SAID, finish="pause"), CallModel(2)),
        (CALLED, CallTools(1, CALLED.open_calls)),
        (ANSWERED, CallModel(2)),
        (replace(ANSWERED, finish="unknown", called=True), CallModel(2)),
        (replace(ANSWERED, finish="unknown", called=False), Ended(stop_reason="end")),
        (replace(ANSWERED, finish="length"), Ended(stop_reason="output_limit")),
        (replace(ANSWERED, turn=3), Ended(stop_reason="max_turns")),
        (replace(CALLED, turn=3), CallTools(3, CALLED.open_calls)),
        (replace(SAID, turn=3), Ended(stop_reason="end")),
        (replace(SAID, stop_reason="end"), None),
        (replace(ASKED, error=ErrorRecord(kind="k", message="m", hint="h")), None),
    ],
)
def test_the_whole_policy(state: State, step: Any) -> None:
    assert next_step(state, Limits(max_turns=3)) == step
