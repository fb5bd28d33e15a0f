"""A function's signature as a JSON Schema, and the strict way back from what a model wrote to Python values.

The schema is plain: closed objects, a definition only where something is used twice or holds itself, no titles, the
order of the source kept. The same signature gives the same bytes in every process. Decoding is stricter than JSON
libraries are: one object, no key twice, no unknown field at any depth, no NaN, no text where a number belongs. A whole
number is taken for a float; `1.0` is not taken for an int.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec
import msgspec.inspect as mi

from treadle.errors import ToolDefinitionError

__all__ = ["InvalidArguments", "Parameters", "signature"]

Schema: TypeAlias = dict[str, Any]

_REF = "#/$defs/"


class InvalidArguments(Exception):
    """The model's arguments do not fit the tool. The message is what the model reads: where, and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= 1000 else message[:1000] + "...")


# --- the signature ---------------------------------------------------------------------------------------------------


def signature(fn: Callable[..., Any], name: str, *, method: bool) -> list[inspect.Parameter]:
    """The parameters a model may fill, annotations evaluated. `method`: the first one is left out.

    Raises:
        ToolDefinitionError: One of them cannot be filled by name, or has no annotation that can be evaluated.
    """
    try:
        parameters = list(inspect.signature(fn).parameters.values())[method:]
    except (TypeError, ValueError, NameError) as error:
        raise ToolDefinitionError(
            f"tool `{name}`: its signature cannot be read: {error}", hint="Wrap it in a function with annotations."
        ) from error
    if isinstance(fn, functools.partial):  # what it binds is not the model's to change
        parameters = [p for p in parameters if p.name not in fn.keywords]
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            _refuse(name, p.name, f"`{p}` has no schema", "Write each parameter out, or take one `dict` or `list`.")
        if p.kind is p.POSITIONAL_ONLY:
            _refuse(name, p.name, "it is positional-only", "Remove the `/`: a model passes arguments by name.")
        if p.annotation is p.empty:
            _refuse(name, p.name, "it has no type annotation", f"Write `{p.name}: str`, or another type JSON can express.")
        if type(p.default).__name__ == "FieldInfo":
            _refuse(
                name, p.name, "a pydantic `Field` is no default", f"Write `{p.name}: Annotated[T, Field(...)] = value`."
            )
    plain = _plain(fn)
    holder = types.SimpleNamespace(__annotations__={p.name: p.annotation for p in parameters})
    try:
        hints = get_type_hints(holder, getattr(plain, "__globals__", {}), _local_names(plain), include_extras=True)
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise ToolDefinitionError(
            f"tool `{name}`: an annotation cannot be evaluated: {error}",
            hint="Define or import the name at module level, outside `if TYPE_CHECKING`.",
        ) from error
    return [p.replace(annotation=hints[p.name]) for p in parameters]


def _refuse(name: str, parameter: str, reason: str, hint: str) -> NoReturn:
    raise ToolDefinitionError(f"tool `{name}`: parameter `{parameter}`: {reason}", hint=hint)


def _plain(fn: Any) -> Any:
    """The function in whose scope the annotations were written."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if not isinstance(fn, types.FunctionType | types.MethodType):
        fn = getattr(type(fn), "__call__", fn)
    return inspect.unwrap(getattr(fn, "__func__", fn))


def _local_names(fn: Any) -> dict[str, Any]:
    """Names of the scopes around a nested function: of those that are being executed now, and what it closes over."""
    names: dict[str, Any] = {}
    qualname = getattr(fn, "__qualname__", "")
    frame = sys._getframe() if "." in qualname else None  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_globals is fn.__globals__ and qualname.startswith(frame.f_code.co_qualname + "."):
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    if getattr(fn, "__closure__", None):
        names.update(inspect.getclosurevars(fn).nonlocals)
    return names


# --- the schema ------------------------------------------------------------------------------------------------------

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
_KEYS = (mi.AnyType, mi.StrType, mi.IntType, mi.DateType, mi.EnumType, mi.LiteralType)


def _resolved(hint: Any) -> Any:
    """The hint with each description and bound as `msgspec.Meta`, however it was written."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        metas = [meta for meta in map(_meta, args[1:]) if meta is not None]
        return Annotated[(_resolved(args[0]), *metas)] if metas else _resolved(args[0])
    inner = tuple(_resolved(arg) for arg in args) if origin is not Literal else args
    if inner == args:
        return hint
    return Union[inner] if origin is Union or origin is types.UnionType else origin[inner]


def _meta(said: Any) -> msgspec.Meta | None:
    """A text, PEP 727 `Doc`, `annotated_types` bound or pydantic `Field` as msgspec has it; None for anything else."""
    if isinstance(said, msgspec.Meta):
        return said
    found: dict[str, Any] = {}
    for text in (said, getattr(said, "documentation", None), getattr(said, "description", None)):
        if isinstance(text, str):
            found.setdefault("description", text)
    for part in (said, *(getattr(said, "metadata", None) or ())):  # a `Field` keeps its bounds in `metadata`
        for name in (*_BOUNDS, "min_length", "max_length"):
            if isinstance(value := getattr(part, name, None), int | float | str):
                found[name] = value
    return msgspec.Meta(**found) if found else None


class _Drawing:
    """Schemas of one signature. Classes and pydantic models are drawn once, in `defs`."""

    def __init__(self, models: Mapping[Any, Schema], defs: dict[str, Schema]) -> None:
        self.defs = defs
        self._refs = dict(models)
        self.unknown_models: list[Any] = []

    def draw(self, t: mi.Type, hint: Any) -> Schema:
        match t:
            case mi.Metadata():
                return {**self.draw(t.type, hint), **(t.extra_json_schema or {})}
            case mi.LiteralType():
                return _choice(sorted(t.values, key=functools.partial(_place, _literals(hint))))
            case mi.EnumType():
                return {**_choice([member.value for member in t.cls]), **_doc(t.cls)}
            case mi.UnionType():
                members = sorted(t.types, key=lambda member: isinstance(member, mi.NoneType))
                return {"anyOf": [self.draw(member, hint) for member in members]}
            case mi.CustomType():
                return self._custom(t.cls)
            case mi.StructType() | mi.TypedDictType() | mi.DataclassType() | mi.NamedTupleType():
                return self._class(t)
            case mi.CollectionType():
                items = self.draw(t.item_type, hint)
                drawn = {"type": "array", **({"items": items} if items else {})}
            case mi.TupleType():
                items = [self.draw(item, hint) for item in t.item_types]
                return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
            case mi.DictType():
                drawn = self._dict(t, hint)
            case _:
                if type(t) not in _KINDS:
                    raise TypeError(f"`{type(t).__name__}` is not a type JSON can express")
                drawn = dict(_KINDS[type(t)])
        for name, keyword in _BOUNDS.items():
            if (value := getattr(t, name, None)) is not None:
                drawn[keyword] = value
        for name in ("min_length", "max_length"):
            if (value := getattr(t, name, None)) is not None and "contentEncoding" not in drawn:
                drawn[name[:3] + _LENGTHS[drawn["type"]]] = value
        return drawn

    def _dict(self, t: mi.DictType, hint: Any) -> Schema:
        key = t.key_type.type if isinstance(t.key_type, mi.Metadata) else t.key_type
        if not isinstance(key, _KEYS):
            raise TypeError("a `dict` here needs keys of type `str`, `int`, `date`, an `Enum` or a `Literal`")
        names = self.draw(key, hint)
        kind = names.pop("type", None)
        values = self.draw(t.value_type, hint)
        return {
            "type": "object",
            **({"propertyNames": names} if names and kind == "string" else {}),
            **({"additionalProperties": values} if values else {}),
        }

    def _custom(self, cls: Any) -> Schema:
        if cls in self._refs:
            return dict(self._refs[cls])
        if _is_model(cls):
            self.unknown_models.append(cls)
            return {}
        if isinstance(cls, type) and issubclass(cls, PurePath):
            return {"type": "string"}
        raise TypeError(f"`{getattr(cls, '__name__', cls)}` is not a type JSON can express")

    def _class(self, t: mi.StructType | mi.TypedDictType | mi.DataclassType | mi.NamedTupleType) -> Schema:
        cls: Any = getattr(t.cls, "__origin__", t.cls)
        if t.cls not in self._refs:
            if getattr(t, "array_like", False) or hasattr(cls, "__pydantic_fields__"):
                raise TypeError(f"`{cls.__name__}` is an array-like Struct or a pydantic dataclass: use an ordinary one")
            name = cls.__name__ + ("_2" if cls.__name__ in self.defs else "")
            while name in self.defs:
                name = f"{cls.__name__}_{int(name.rpartition('_')[2]) + 1}"
            self._refs[t.cls] = {"$ref": _REF + name}
            self.defs[name] = {}  # holds the name while a field draws this class again
            self.defs[name] = self._fields(t, cls)
        return dict(self._refs[t.cls])

    def _fields(self, t: Any, cls: Any) -> Schema:
        try:
            hints = get_type_hints(cls, include_extras=True)
        except NameError:
            hints = {}
        fields: Sequence[mi.Field] = t.fields
        if isinstance(t, mi.TypedDictType):
            fields = sorted(fields, key=functools.partial(_place_of_field, list(cls.__annotations__)))
        drawn: dict[str, Schema] = {}
        if getattr(t, "tag_field", None):
            drawn[t.tag_field] = _choice([t.tag])
        required = list(drawn)
        for field in fields:
            hint = hints.get(field.name)
            drawn[field.encode_name] = schema = self.draw(field.type, hint)
            for said in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
                if (meta := _meta(said)) is not None and meta.description:
                    schema["description"] = meta.description
            if field.required:
                required.append(field.encode_name)
            elif field.default_factory in (list, dict, set):
                schema.update(_default(field.default_factory()))
            elif field.default is not msgspec.NODEFAULT:
                schema.update(_default(field.default))
        if isinstance(t, mi.NamedTupleType):
            items = list(drawn.values())
            return {"type": "array", **_doc(cls), "prefixItems": items, "minItems": len(required), "maxItems": len(items)}
        return {"type": "object", **_doc(cls), "properties": drawn, "required": required, "additionalProperties": False}
