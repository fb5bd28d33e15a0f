"""Parameters as a JSON Schema.

The schema is plain: closed objects, a definition only where something is used twice or holds itself, no titles, the
order of the source kept. The same parameters give the same bytes in every process.
"""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import itertools
import json
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeAlias,
    TypeGuard,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import msgspec.inspect as mi

from treadle.errors import ToolDefinitionError

__all__ = ["INTEGERS", "Schema", "default_of", "draw", "is_object", "parts", "resolved"]

Schema: TypeAlias = dict[str, Any]


def draw(tool: str, parameters: Sequence[inspect.Parameter], said: Mapping[str, str]) -> Schema:
    """The schema of what a tool takes, of type object.

    Args:
        parameters: With evaluated annotations.
        said: Descriptions of those whose annotation has none.

    Raises:
        ToolDefinitionError: JSON cannot express an annotation.
    """
    drawing = _Drawing({}, {})
    properties = {p.name: _drawn(tool, p, said, drawing) for p in parameters}
    if drawing.new_models:  # pydantic names the definitions of all models together, so they come first
        drawing = _Drawing(*_pydantic_schemas(drawing.new_models))
        properties = {p.name: _drawn(tool, p, said, drawing) for p in parameters}
    schema = _object({}, properties, [p.name for p in parameters if p.default is p.empty])
    if defs := _tidied(schema, drawing.defs):
        schema["$defs"] = defs
    return schema


_KINDS: dict[type[mi.Type], Schema] = {
    mi.AnyType: {},
    mi.NoneType: {"type": "null"},
    mi.BoolType: {"type": "boolean"},
    mi.IntType: {"type": "integer"},
    mi.FloatType: {"type": "number"},
    mi.StrType: {"type": "string"},
    mi.BytesType: {"type": "string", "contentEncoding": "base64"},
    mi.ByteArrayType: {"type": "string", "contentEncoding": "base64"},
    mi.DateTimeType: {"type": "string", "format": "date-time"},
    mi.DateType: {"type": "string", "format": "date"},
    mi.TimeType: {"type": "string", "format": "time"},
    mi.TimeDeltaType: {"type": "string", "format": "duration"},
    mi.UUIDType: {"type": "string", "format": "uuid"},
    mi.DecimalType: {"type": "string", "format": "decimal"},
}
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}
_TEXT_KEYS = (mi.StrType, mi.DateType, mi.EnumType, mi.LiteralType)  # others can spell one key in several ways
INTEGERS = {"pattern": "^(0|-?[1-9][0-9]*)$"}
_TYPES = {str: "string", int: "integer", bool: "boolean"}
_Class: TypeAlias = mi.StructType | mi.TypedDictType | mi.DataclassType | mi.NamedTupleType


def _drawn(tool: str, p: inspect.Parameter, said: Mapping[str, str], drawing: _Drawing) -> Schema:
    hint = resolved(p.annotation)
    try:
        info = mi.type_info(hint)
        schema = drawing.draw(info, hint)
        copy.deepcopy(p.default)
    except Exception as error:  # whatever msgspec or the evaluation of a class's annotations says
        advice = "Write a type JSON can express: str, int, float, bool, list, dict, Literal, an Enum, a dataclass."
        if "union" in str(error):
            advice = "JSON alone must tell a union's members apart: use one type, or msgspec Structs with `tag=True`."
        elif "Can only set" in str(error):
            advice = "A bound goes on the type it bounds: `Annotated[int, ...] | None`."
        elif isinstance(error, NameError):
            advice = "Define at module level what the annotations of that class name."
        reason = str(error).partition("\n")[0]
        reason = f"`{inspect.formatannotation(p.annotation)}` cannot be offered to a model: {reason}"
        raise ToolDefinitionError(f"tool `{tool}`: parameter `{p.name}`: {reason}", hint=advice) from error
    described = isinstance(info, mi.Metadata) and "description" in _said(info)
    if p.name in said and not described:
        schema["description"] = said[p.name]
    return schema if p.default is p.empty else {**schema, **default_of(p.default)}


class _Drawing:
    """The schemas of one tool. Classes and pydantic models are in `defs`, each once."""

    def __init__(self, refs: Mapping[Any, Schema], defs: dict[str, Schema]) -> None:
        self.defs = defs
        self.new_models: list[Any] = []
        self._refs = dict(refs)

    def draw(self, t: mi.Type, hint: Any) -> Schema:
        match t:
            case mi.Metadata():
                return {**self.draw(t.type, hint), **_said(t)}
            case mi.LiteralType():
                return _choice(sorted(t.values, key=functools.partial(_place, _literals(hint))))
            case mi.EnumType() if not issubclass(t.cls, enum.Flag):
                return {**_choice([member.value for member in t.cls]), **_doc(t.cls)}
            case mi.UnionType():
                members = sorted(t.types, key=lambda member: isinstance(member, mi.NoneType))
                return {"anyOf": [self.draw(member, hint) for member in members]}
            case mi.CustomType():
                return self._custom(t.cls)
            case mi.StructType() | mi.TypedDictType() | mi.DataclassType() | mi.NamedTupleType():
                return self._class(t)
            case mi.TupleType():
                items = [self.draw(item, hint) for item in t.item_types]
                return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
            case mi.CollectionType():
                items = self.draw(t.item_type, hint)
                drawn: Schema = {"type": "array", "items": items} if items else {"type": "array"}
            case mi.DictType():
                drawn = self._dict(t, hint)
            case _ if type(t) in _KINDS:
                drawn = dict(_KINDS[type(t)])
            case _:
                raise TypeError(f"`{getattr(t, 'cls', type(t)).__name__}` is not a type JSON can express")
        for name, keyword in _BOUNDS.items():
            if (value := getattr(t, name, None)) is not None:
                drawn[keyword] = value
        for name in ("min_length", "max_length"):
            if (value := getattr(t, name, None)) is not None and "contentEncoding" not in drawn:
                drawn[name[:3] + _LENGTHS[drawn["type"]]] = value
        return drawn

    def _dict(self, t: mi.DictType, hint: Any) -> Schema:
        key = t.key_type.type if isinstance(t.key_type, mi.Metadata) else t.key_type
        names, values = self.draw(key, hint), self.draw(t.value_type, hint)
        if isinstance(key, mi.IntType):
            names = dict(INTEGERS)
        elif names and (names.pop("type", None) != "string" or not isinstance(key, _TEXT_KEYS)):
            raise TypeError("the keys of a `dict` must be `str`, `int`, `date`, or an `Enum` or `Literal` of texts")
        names.pop("description", None)
        drawn: Schema = {"type": "object", "propertyNames": names} if names else {"type": "object"}
        return {**drawn, "additionalProperties": values} if values else drawn

    def _custom(self, cls: Any) -> Schema:
        if cls in self._refs:
            return dict(self._refs[cls])
        if inspect.isclass(cls) and issubclass(cls, PurePath):
            return {"type": "string"}
        pydantic = sys.modules.get("pydantic")
        if inspect.isclass(cls) and pydantic is not None and issubclass(cls, pydantic.BaseModel):
            cast("Any", cls).model_json_schema()  # fails here, where the parameter is known
            self.new_models.append(cls)
            return {}
        raise TypeError(f"`{getattr(cls, '__name__', cls)}` is not a type JSON can express")

    def _class(self, t: Any) -> Schema:
        cls = getattr(t.cls, "__origin__", t.cls)
        if getattr(t, "array_like", False) or hasattr(cls, "__pydantic_fields__"):
            raise TypeError(f"`{cls.__name__}` is an array-like Struct or a pydantic dataclass; use an ordinary one")
        if t.cls not in self._refs:
            names = (cls.__name__ + (f"_{n}" if n > 1 else "") for n in itertools.count(1))
            name = next(name for name in names if name not in self.defs)
            self._refs[t.cls] = {"$ref": f"#/$defs/{name}"}
            self.defs[name] = {}  # keeps the name while a field draws this class again
            self.defs[name] = self._fields(t, cls)
        return dict(self._refs[t.cls])

    def _fields(self, t: _Class, cls: Any) -> Schema:
        try:
            hints = get_type_hints(cls, include_extras=True)
        except Exception:  # msgspec has read them in its own way; what is missing here is descriptions
            hints = {}
        tag_field: str | None = getattr(t, "tag_field", None)
        properties: dict[str, Schema] = {tag_field: _choice([getattr(t, "tag", None)])} if tag_field else {}
        required = list(properties)
        order = list(cls.__annotations__) if isinstance(t, mi.TypedDictType) else [field.name for field in t.fields]
        for field in sorted(t.fields, key=lambda field: order.index(field.name)):
            hint = hints.get(field.name)
            schema = self.draw(field.type, hint)
            if text := _described(hint):
                schema["description"] = text
            if field.required:
                required.append(field.encode_name)
            elif field.default_factory in (list, dict, set):
                schema.update(default_of(field.default_factory()))
            elif field.default is not msgspec.NODEFAULT:
                schema.update(default_of(field.default))
            properties[field.encode_name] = schema
        if isinstance(t, mi.NamedTupleType):
            bounds = {"minItems": len(required), "maxItems": len(properties)}
            return {"type": "array", **_doc(cls), "prefixItems": list(properties.values()), **bounds}
        return _object(_doc(cls), properties, required)


def _said(t: mi.Metadata) -> Schema:
    return cast("Schema", t.extra_json_schema) or {}  # pyright: ignore[reportUnknownMemberType]


def _object(doc: Schema, properties: dict[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", **doc, "properties": properties, "required": required, "additionalProperties": False}


def _choice(values: Iterable[Any]) -> Schema:
    choices = list(values)
    kinds: set[type[Any]] = {type(value) for value in choices}
    kind = _TYPES.get(kinds.pop()) if len(kinds) == 1 else None
    return {"type": kind, "enum": choices} if kind else {"enum": choices}


def _doc(cls: Any) -> Schema:
    text = inspect.cleandoc(cls.__doc__ or "")
    generated = text.startswith(f"{cls.__name__}(")  # dataclasses and named tuples write one
    return {"description": text} if text and not generated else {}


def _literals(hint: Any) -> list[Any]:
    """Values of every `Literal` in a hint, in the order of the source, which msgspec does not keep."""
    args = get_args(hint)
    return list(args) if get_origin(hint) is Literal else [value for arg in args for value in _literals(arg)]


def _place(values: list[Any], value: Any) -> int:
    return next((i for i, other in enumerate(values) if other == value and type(other) is type(value)), len(values))


def resolved(hint: Any) -> Any:
    """The hint with each description and bound as `msgspec.Meta`, however it was written."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        metas = [meta for meta in map(_meta, args[1:]) if meta is not None]
        return Annotated[(resolved(args[0]), *metas)] if metas else resolved(args[0])
    inner = tuple(resolved(arg) for arg in args)
    if origin is Literal or inner == args:
        return hint
    return Union[inner] if origin is types.UnionType else origin[inner]  # noqa: UP007


def _meta(said: Any) -> msgspec.Meta | None:
    """A text, a PEP 727 `Doc`, an `annotated_types` bound or a pydantic `Field`; None for anything else."""
    if isinstance(said, msgspec.Meta):
        return said
    found: dict[str, Any] = {}
    for text in (said, getattr(said, "documentation", None), getattr(said, "description", None)):
        if isinstance(text, str):
            found["description"] = text
    for part in (said, *(getattr(said, "metadata", None) or ())):  # a `Field` keeps its bounds there
        for name in (*_BOUNDS, "min_length", "max_length"):
            if isinstance(value := getattr(part, name, None), int | float | str):
                found[name] = value
    return msgspec.Meta(**found) if found else None


def _described(hint: Any) -> str | None:
    """The description a class gives one of its fields."""
    if get_origin(hint) in (Required, NotRequired):
        hint = get_args(hint)[0]
    metas = [_meta(said) for said in get_args(hint)[1:]] if get_origin(hint) is Annotated else []
    return next((meta.description for meta in metas if meta is not None and meta.description), None)


def default_of(value: Any) -> Schema:
    """The `default` keyword, if JSON can express the value."""
    try:
        encoded = msgspec.to_builtins(value, order="deterministic", str_keys=True, enc_hook=_encode_other)
        json.dumps(encoded, allow_nan=False)
    except (TypeError, ValueError, RecursionError, NotImplementedError):
        return {}
    return {"default": encoded}


def _encode_other(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    dump = getattr(value, "model_dump", None)  # a pydantic model
    if callable(dump):
        return dump(mode="json", by_alias=True)
    raise NotImplementedError


def _pydantic_schemas(models: Iterable[Any]) -> tuple[dict[Any, Schema], dict[str, Schema]]:
    from pydantic.json_schema import models_json_schema

    refs, drawn = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    return {model: ref for (model, _), ref in refs.items()}, drawn.get("$defs", {})


def parts(schema: Schema) -> Iterator[Schema]:
    """A schema and every schema in it, outermost first. Defaults and choices are values, not schemas."""
    yield schema
    for keyword, inner in list(schema.items()):
        if keyword in ("properties", "patternProperties"):
            inner = list(inner.values())
        elif keyword in ("items", "additionalProperties", "propertyNames"):
            inner = [inner] if is_object(inner) else []
        elif keyword not in ("anyOf", "oneOf", "allOf", "prefixItems"):
            continue
        for part in cast("list[Schema]", inner):
            yield from parts(part)


def _tidied(schema: Schema, defs: dict[str, Schema]) -> dict[str, Schema]:
    """Close objects, drop titles, put each definition that is used once in its place; what is left of `defs`.

    A definition that holds itself is used from there and from outside, so it stays.
    """
    roots = (schema, *defs.values())
    uses = Counter(part["$ref"] for root in roots for part in parts(root) if "$ref" in part)
    for name in (None, *defs.copy()):
        for part in parts(schema if name is None else defs.get(name, {})):
            while uses[part.get("$ref", "")] == 1:
                said = {keyword: value for keyword, value in part.items() if keyword != "$ref"}
                target = defs.pop(part["$ref"].removeprefix("#/$defs/"))
                part.clear()
                part.update(target, **said)
            part.pop("title", None)
            part.pop("discriminator", None)  # its mapping names definitions
            if "properties" in part and "patternProperties" not in part:
                part.setdefault("required", [])
                part.setdefault("additionalProperties", False)
    return defs


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return type(value) is dict
