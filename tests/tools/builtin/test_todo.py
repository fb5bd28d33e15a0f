"""The to-do list."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from treadle.errors import ToolError
from treadle.tools.builtin.todo import todo
from treadle.tools.function import InvalidArguments
from treadle.values.toolcalls import ToolResult


def call(items: list[dict[str, Any]]) -> ToolResult:
    result = asyncio.run(todo.bind(json.dumps({"items": items})).run())
    assert isinstance(result, ToolResult)
    return result


def test_the_list_is_drawn_and_what_is_left_is_counted() -> None:
    result = call([{"text": "read", "status": "done"}, {"text": "think\nhard", "status": "doing"}, {"text": "write"}])
    assert result.content == "2 of 3 left.\n[x] read\n[>] think hard\n[ ] write"
    assert result.display == "[x] read\n[>] think hard\n[ ] write"


def test_an_empty_list() -> None:
    assert call([]) == ToolResult(content="0 of 0 left.", display="(the list is empty)")


def test_too_many_items() -> None:
    with pytest.raises(ToolError, match="at most 100"):
        call([{"text": "x"}] * 101)


@pytest.mark.parametrize(
    "items", [[{"text": "x", "status": "maybe"}], [{"status": "done"}], [{"text": "x", "due": "now"}], ["x"]]
)
def test_items_of_another_shape_are_refused(items: Any) -> None:
    with pytest.raises(InvalidArguments):
        todo.bind(json.dumps({"items": items}))
