"""Arguments: the strict way from what a model wrote to Python values.

Decoding takes one JSON object (no text at all counts as an empty one) with no key twice, no unknown field at any
depth, no NaN, and no text where a number belongs. A whole number is taken for a float; `1.0` is not taken for an int.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import (
    Any,
    TypeGuard,
)

import msgspec

from treadle.tools.schema import INTEGERS, Schema, default_of, draw, is_object, parts, resolved

__all__ = ["InvalidArguments", "Parameters", "load_json"]


class InvalidArguments(Exception):
    """The model's arguments do not fit the tool. The message is for the model: where, and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= 1000 else message[:1000] + "...")


class Parameters:
    """What a tool takes. Everything is prepared here, because `decode` is on the path of every call.

    Attributes:
        schema: A JSON Schema of type object.
    """

    def __init__(self, tool: str, parameters: Sequence[inspect.Parameter], said: Mapping[str, str]) -> None:
        """`parameters` with evaluated annotations; `said` describes those whose annotation does not.

        Raises:
            ToolDefinitionError: JSON cannot express an annotation.
        """
        self.schema = draw(tool, parameters, said)
        fields = [_field(p) for p in parameters]
        self._struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
        self._nested = {name: schema for name, schema in self.schema["properties"].items() if _has_rules(schema)}

    def decode(self, text: str) -> dict[str, Any]:
        """Values by name, absent ones filled from the signature.

        Raises:
            InvalidArguments: For any text that does not fit, and nothing else for any text.
        """
        value = load_json("the arguments are", text if text and not text.isspace() else "{}")
        if not is_object(value):
            raise InvalidArguments("the arguments must be one JSON object")
        return self.convert(value)

    def convert(self, value: dict[str, Any]) -> dict[str, Any]:
        """`decode`, for JSON that is loaded already.

        Raises:
            InvalidArguments: As `decode`.
        """
        try:
            if not value.keys() <= self.schema["properties"].keys():
                raise InvalidArguments(_unknown("", value, self.schema["properties"]))
            if nested := self._nested.keys() & value.keys():
                rules = _Rules(self.schema.get("$defs", {}))
                for name in nested:
                    if problem := rules.broken(self._nested[name], value[name], name):
                        raise InvalidArguments(problem)
            struct = msgspec.convert(value, self._struct, str_keys=True, dec_hook=_decode_other)
        except InvalidArguments:
            raise
        except msgspec.ValidationError as error:
            raise InvalidArguments(self._explained(str(error))) from None
        except RecursionError:
            raise InvalidArguments("the value is nested too deeply") from None
        except Exception as error:  # a `__post_init__`, a validator, a list in a set
            raise InvalidArguments(f"invalid value: {type(error).__name__}: {error}") from None
        return msgspec.structs.asdict(struct)

    def _explained(self, error: str) -> str:
        """msgspec's message with the place first, as a caller would write it, and the values it could have been."""
        match = re.fullmatch(r"(.*?)(?: - at (`key` in )?`\$\.?([^`]*)`)?", error, re.S)
        said, in_key, path = match.groups() if match else (error, None, None)
        said = said.removeprefix("Object ")
        said = said[:1].lower() + said[1:]
        if said.startswith("invalid") and path:
            allowed = _Rules(self.schema.get("$defs", {})).choices(self.schema, path, in_key)
            listed = ", ".join(dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in allowed))
            said += f"; expected one of {listed}" if listed else ""
        return f"{'a key of ' if in_key else ''}`{path}`: {said}" if path else said


def _field(p: inspect.Parameter) -> Any:
    """A field of the struct that arguments become. A default that a call could change is copied for each call."""
    hint = resolved(p.annotation)
    if p.default is p.empty:
        return (p.name, hint)
    is_container = isinstance(p.default, list | dict | set | bytearray)
    if copy.deepcopy(p.default) is not p.default and (is_container or default_of(p.default)):
        return (p.name, hint, msgspec.field(default_factory=functools.partial(copy.deepcopy, p.default)))
    return (p.name, hint, p.default)  # also a marker such as `object()`, which is known by its identity


def load_json(subject: str, text: str) -> Any:
    """One JSON value, read strictly.

    Args:
        subject: How a sentence about the text begins: `the answer is`.

    Raises:
        InvalidArguments: It is none, or holds a key twice, NaN, a number without end, or half of a surrogate pair.
    """
    try:
        value = _JSON.decode(text)
        if "\\u" in text:  # may be half of a surrogate pair, which is no text
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        said = error.msg.removesuffix(" at")
        raise InvalidArguments(f"{subject} not valid JSON: {said} at character {error.pos}") from None
    except UnicodeError:
        raise InvalidArguments("a text holds half of a surrogate pair") from None
    except RecursionError:
        raise InvalidArguments(f"{subject} nested too deeply") from None
    except ValueError:
        raise InvalidArguments("there is a number that is too long") from None
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InvalidArguments(f"the key `{twice}` is there twice in one object")
    return value


def _no_constant(name: str) -> None:
    raise InvalidArguments(f"`{name}` is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InvalidArguments(f"the number `{text}` is too large")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_no_key_twice, parse_constant=_no_constant, parse_float=_finite)


def _decode_other(cls: Any, value: Any) -> Any:
    """A path or a pydantic model, which are the types msgspec leaves to us."""
    if not issubclass(cls, PurePath):
        try:
            return cls.model_validate_json(json.dumps(value), strict=True)  # strict JSON: a text is taken for a date
        except ValueError as error:
            problems: list[Any] = getattr(error, "errors", list)()
            places = [f"`{'.'.join(map(str, p['loc']))}`: {p['msg']}" for p in problems[:5]]
            raise ValueError("; ".join(places) or str(error)) from None
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    return cls(value)


def _unknown(path: str, value: dict[str, Any], known: Mapping[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in value if name not in known)
    allowed = ", ".join(f"`{name}`" for name in known) or "none"
    return f"{f'`{path}`: ' if path else ''}unknown field {names}; allowed: {allowed}"


def _is_array(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list


_JSON_TYPES = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}
_ANY = (str, int, float, bool, type(None), dict, list)


class _Rules:
    """What msgspec or pydantic let pass in one call and the schema does not: unknown fields, numbers for decimals.

    Each value is looked at once per schema, so a union that holds itself cannot make a call expensive.
    """

    def __init__(self, defs: Mapping[str, Schema]) -> None:
        self._defs = defs
        self._broken: dict[tuple[int, int], str | None] = {}
        self._fitting: dict[tuple[int, int], bool] = {}

    def broken(self, schema: Schema, value: Any, path: str) -> str | None:
        """A broken rule in words, if every reading of the value breaks one. Wrong types are left to the decoders."""
        known = (id(schema), id(value))
        if known not in self._broken:
            options = [option for option in self._options(schema) if _is_kind(option, value)]
            readings = [option for option in options if self._fits(option, value)] or options
            problems = [self._problem(option, value, path) for option in readings]
            if not options and any(option.get("format") == "decimal" for option in self._options(schema)):
                problems = [f"`{path}`: expected a finite number in quotes"]
            self._broken[known] = problems[0] if problems and None not in problems else None
        return self._broken[known]

    def _problem(self, schema: Schema, value: Any, path: str) -> str | None:
        closed = schema.get("additionalProperties") is False
        if closed and is_object(value) and not value.keys() <= schema["properties"].keys():
            return _unknown(path, value, schema["properties"])
        if schema.get("propertyNames") == INTEGERS and "-0" in value:  # beside `0` it would be one key twice
            return f"a key of `{path}`: expected an integer, got `-0`"
        problems = (self.broken(part, item, at) for part, item, at in _inside(schema, value, path))
        return next(filter(None, problems), None)

    def _fits(self, schema: Schema, value: Any) -> bool:
        known = (id(schema), id(value))
        if known not in self._fitting:
            self._fitting[known] = any(
                _is_kind(option, value)
                and value in option.get("enum", [value])
                and value == option.get("const", value)
                and (not is_object(value) or value.keys() >= set(option.get("required", ())))
                and all(self._fits(part, item) for part, item, _ in _inside(option, value, ""))
                for option in self._options(schema)
            )
        return self._fitting[known]

    def _options(self, schema: Schema) -> Iterator[Schema]:
        if "$ref" in schema:
            schema = self._defs[schema["$ref"].removeprefix("#/$defs/")]
        inner = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if inner is None:
            yield schema
        for option in inner or ():
            yield from self._options(option)

    def choices(self, schema: Schema, path: str, in_key: object) -> list[Any]:
        """Values, or keys, that a schema allows at a place such as `trip.legs[0].mode`; empty if it lists none."""
        options = list(self._options(schema))
        for step in re.findall(r"\[[^\]]*\]|[^.\[]+", path):
            key = int(step[1:-1]) if step[1:-1].isdigit() else step
            parts = [part for option in options if (part := _part(option, key))]
            options = list({id(option): option for part in parts for option in self._options(part)}.values())
        parts = [option.get("propertyNames", {}) for option in options] if in_key else options
        return [value for part in parts for value in part.get("enum", ())]


def _has_rules(schema: Schema) -> bool:
    return any(
        "properties" in part or "$ref" in part or part.get("format") == "decimal" or "propertyNames" in part
        for part in parts(schema)
    )


def _is_kind(schema: Schema, value: Any) -> bool:
    if schema.get("format") == "decimal" and isinstance(value, str):
        return "n" not in value.lower()  # NaN, Infinity
    kind = schema.get("type")  # a schema written by hand may have a list here
    return type(value) in (_JSON_TYPES.get(kind, _ANY) if isinstance(kind, str) else _ANY)


def _part(schema: Schema, key: str | int) -> Schema:
    """The schema of one field or item; empty if it has none of its own."""
    if isinstance(key, str):
        part = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    else:
        items = schema.get("prefixItems", ())
        part = items[key] if key < len(items) else schema.get("items")
    return part if is_object(part) else {}


def _inside(schema: Schema, value: Any, path: str) -> Iterator[tuple[Schema, Any, str]]:
    """Fields or items of a value that have a schema of their own: schema, value, place."""
    pairs: Iterable[tuple[str | int, Any]] = ()
    if is_object(value):
        pairs = value.items()
    elif _is_array(value):
        pairs = enumerate(value)
    for key, item in pairs:
        if part := _part(schema, key):
            yield part, item, f"{path}.{key}" if isinstance(key, str) else f"{path}[{key}]"
