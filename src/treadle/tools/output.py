"""The answer as a value: a type's schema, and the strict way from the model's text to it."""

from __future__ import annotations

import inspect
import re
from typing import Generic, TypeVar

from treadle.errors import OutputInvalid, ToolDefinitionError, UsageError
from treadle.tools.arguments import InvalidArguments, Parameters, load_json
from treadle.tools.schema import Schema, is_object
from treadle.values.request import OutputSchema

__all__ = ["OutputType"]

T = TypeVar("T")

_MODULE = re.compile(r"\b(?:\w+\.)+(?=\w)")
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]+")


class OutputType(Generic[T]):
    """What an answer has to be.

    Formats want an object at the top, so every other type (a list, a number, a union) is sent and read as `{"value": ...}`.

    Args:
        type: Whatever a tool's parameter may be: a dataclass, a msgspec Struct, a TypedDict, a pydantic model, `list[...]`, an Enum.

    Attributes:
        name: The type's name, for people.
        schema: What the model is held to.

    Raises:
        UsageError: JSON cannot express the type.
    """

    def __init__(self, type: type[T]) -> None:
        self.name = _MODULE.sub("", inspect.formatannotation(type))
        value = inspect.Parameter("value", inspect.Parameter.KEYWORD_ONLY, annotation=type)
        try:
            self._parameters = Parameters("output", [value], {})
        except ToolDefinitionError as error:
            reason = error.message.partition("cannot be offered to a model: ")[2]
            raise UsageError(f"`{self.name}` cannot be an answer's type: {reason}", hint=error.hint) from error
        inner = _at_the_top(self._parameters.schema)
        self._is_wrapped = inner is None
        name = _NOT_IN_A_NAME.sub("_", self.name).strip("_")[:64]
        self.schema = OutputSchema(name=name or "answer", schema=inner or self._parameters.schema)

    def decode(self, text: str) -> T:
        """The value that an answer says. It is one JSON value, alone or in the only fenced block of the text.

        Raises:
            OutputInvalid: It says none, or one of another form; `problem` says what and where.
        """
        try:
            value = load_json("the answer is", _unfenced(text))
            wrapped = self._is_wrapped and is_object(value) and value.keys() == {"value"}
            return self._parameters.convert(value if wrapped else {"value": value})["value"]
        except InvalidArguments as error:
            problem = re.sub(r"`value(?:\.|(?=\[))", "`", str(error)).replace("`value`: ", "")
            raise OutputInvalid(f"the model's answer is no `{self.name}`", problem=problem) from None


def _unfenced(text: str) -> str:
    """The only fenced block of the text, or the text."""
    text = text.strip()
    parts = text.split("```", 3)
    if len(parts) != 3 or text.startswith(("{", "[", '"')):
        return text
    info, _, block = parts[1].partition("\n")
    return (block if info.strip().isalnum() or not info.strip() else parts[1]).strip()


def _at_the_top(schema: Schema) -> Schema | None:
    """The value's own schema as one that can stand alone; None if it is not an object's."""
    value, defs = schema["properties"]["value"], schema.get("$defs", {})
    while "$ref" in value:
        value = {**defs[value["$ref"].removeprefix("#/$defs/")], **{k: v for k, v in value.items() if k != "$ref"}}
    if value.get("type") != "object":
        return None
    return {**value, "$defs": defs} if defs else value
