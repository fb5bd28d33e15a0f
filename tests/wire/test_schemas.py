"""Schemas as providers take them. That `closed` is what Anthropic's own client sends: tests/conformance/test_anthropic_sdk.py."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.wire.schemas import closed


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        (obj(a={"type": "string"}), {**obj(a={"type": "string"}), "additionalProperties": False}),
        ({**obj(a={"type": "null"}), "additionalProperties": True}, {**obj(a={"type": "null"}), "additionalProperties": False}),
        ({"type": "integer", "minimum": 1, "maximum": 9}, {"type": "integer", "description": "(minimum: 1, maximum: 9)"}),
        (
            {"type": "string", "description": "A name.", "maxLength": 8},
            {"type": "string", "description": "A name. (maxLength: 8)"},
        ),
        ({"type": "string", "format": "path"}, {"type": "string", "description": "(format: path)"}),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 3},
            {"type": "array", "items": {"type": "integer"}, "description": "(minItems: 3)"},
        ),
        ({"oneOf": [obj(a={"const": 1})]}, {"anyOf": [{**obj(a={"const": 1}), "additionalProperties": False}]}),
        ({"$ref": "#/$defs/A", "description": "x"}, {"$ref": "#/$defs/A"}),
        # What cannot be said in closed objects goes as it is: the server refuses it, and the run asks in words.
        ({"type": "object", "additionalProperties": {"type": "integer"}},) * 2,
        ({"type": "object"},) * 2,
    ],
)
def test_closed(schema: dict[str, Any], written: dict[str, Any]) -> None:
    before = repr(schema)
    assert closed(schema) == written
    assert repr(schema) == before, "a schema is not changed, but written anew"
    assert closed(written) == written
