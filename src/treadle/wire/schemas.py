"""JSON Schemas as providers take them: which of them may be called strict, and what Anthropic's answers can be held to."""

from __future__ import annotations

from typing import Any

from treadle.wire.untyped import array, object_

__all__ = ["closed", "is_strict"]

# OpenAI's strict mode. A schema that is not surely in the supported subset is sent with `strict: false`, which always works.
# Source: docs/protocols/responses.md.

_STRICT_KEYWORDS = {
    *("description", "title", "enum", "const", "$defs"),
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "$ref", "pattern", "format"),
    *("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
}
_STRICT_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
_MAX_DEPTH = 10


def is_strict(schema: dict[str, Any]) -> bool:
    """The schema keeps to what OpenAI's strict mode documents: closed objects, every property required, known keywords."""
    return schema.get("type") == "object" and "anyOf" not in schema and _strict(schema, 0)


def _strict(schema: Any, depth: int) -> bool:
    fields = object_(schema)
    if not fields or depth > _MAX_DEPTH or not fields.keys() <= _STRICT_KEYWORDS:
        return False
    if fields.get("format", "date") not in _STRICT_FORMATS or ("$ref" in fields and len(fields) > 1):
        return False
    kinds = array(fields.get("type")) or [fields.get("type")]
    properties = object_(fields.get("properties"))
    if "object" in kinds or properties:
        is_closed = fields.get("additionalProperties") is False
        if not is_closed or sorted(array(fields.get("required"))) != sorted(properties):
            return False
    if kinds == [None] and not fields.keys() & {"anyOf", "$ref", "enum", "const"}:
        return False  # anything at all
    if "array" in kinds and "items" not in fields:
        return False
    inner = [*properties.values(), *object_(fields.get("$defs")).values(), *array(fields.get("anyOf"))]
    if "items" in fields:
        inner.append(fields["items"])
    return all(_strict(each, depth + 1) for each in inner)


# Anthropic's `output_config.format`. Source: docs/protocols/anthropic.md.

_CLOSED_KEYWORDS = {
    *("type", "enum", "const", "anyOf", "allOf", "$defs", "definitions", "properties", "required", "additionalProperties"),
    *("items", "title", "description"),
}
_CLOSED_FORMATS = {*_STRICT_FORMATS, "uri"}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema in the keywords that Anthropic takes: objects that list their properties are closed, `oneOf` becomes `anyOf`,
    and bounds that it does not know move into the description, where the model reads them.

    What cannot be said in them stays as it is, for the server to refuse: objects with properties of any name, and recursion.
    """
    fields = dict(schema)
    if "$ref" in fields:  # it stands alone in what the official client sends
        fields = {name: fields[name] for name in ("$defs", "definitions", "$ref") if name in fields}
    if "oneOf" in fields and "anyOf" not in fields:
        fields["anyOf"] = fields.pop("oneOf")
    moved = {name: value for name, value in fields.items() if not _is_taken(name, value)}
    for name in moved:
        del fields[name]
    if moved:
        said = ", ".join(f"{name}: {value}" for name, value in moved.items())
        fields["description"] = f"{fields['description']} ({said})" if fields.get("description") else f"({said})"
    for name in ("properties", "$defs", "definitions"):
        if name in fields:
            fields[name] = {key: closed(object_(each)) for key, each in object_(fields[name]).items()}
    for name in ("anyOf", "allOf"):
        if name in fields:
            fields[name] = [closed(object_(each)) for each in array(fields[name])]
    if "items" in fields:
        fields["items"] = closed(object_(fields["items"]))
    if fields.get("properties") and not object_(fields.get("additionalProperties")):
        fields["additionalProperties"] = False
    return fields


def _is_taken(name: str, value: Any) -> bool:
    if name == "format":
        return value in _CLOSED_FORMATS
    return name in _CLOSED_KEYWORDS or name == "$ref" or (name == "minItems" and value in (0, 1))
