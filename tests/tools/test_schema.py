from __future__ import annotations

import datetime
import enum
import inspect
import json
import math
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
    Union,
)

import annotated_types
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ToolDefinitionError
from treadle.tools.arguments import InvalidArguments, Parameters

Json = dict[str, Any]
REQUIRED = inspect.Parameter.empty


def parameters(said: Mapping[str, str] | None = None, /, **signature: Any) -> Parameters:
    """Parameters from hints, or from pairs of hint and default."""
    made: list[inspect.Parameter] = []
    for name, hint in signature.items():
        hint, default = hint if isinstance(hint, tuple) else (hint, REQUIRED)
        kind = inspect.Parameter.KEYWORD_ONLY
        made.append(inspect.Parameter(name, kind, annotation=hint, default=default))
    return Parameters("lookup", made, said or {})


def closed(required: Sequence[str] | None = None, /, **properties: Json) -> Json:
    names = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def refused(made: Parameters, text: str) -> str:
    with pytest.raises(InvalidArguments) as raised:
        made.decode(text)
    return str(raised.value)


class Unit(enum.Enum):
    """How to measure."""

    METRIC = "metric"
    IMPERIAL = "imperial"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


@dataclass
class Leg:
    """One part of a trip."""

    mode: Literal["train", "bus"]
    km: Annotated[float, "Length."] = 1.5
    ticket: Path = Path("ticket.txt")
    notes: list[str] = field(default_factory=list)


@dataclass
class Other:
    y: int


class Options(TypedDict, total=False):
    zoom: Required[Annotated[int, "How near."]]
    angle: float


class Place(TypedDict):
    name: str
    code: NotRequired[int]


class Point(NamedTuple):
    x: int
    y: int = 2


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Tree(TypedDict):
    kids: dict[str, Tree]


class Cat(msgspec.Struct, tag=True, rename="camel"):
    name: str
    life_count: int = 9


class Dog(msgspec.Struct, tag=True):
    name: str


class Fork(msgspec.Struct, tag=True):
    hand: Literal["left", "right"]
    next: Fork | Knife | None = None


class Knife(msgspec.Struct, tag=True):
    hand: Literal["left", "right"]
    next: Fork | Knife | None = None


class Row(msgspec.Struct, array_like=True):
    x: int


T = TypeVar("T")


@dataclass
class Box(Generic[T]):
    item: T


class Address(pydantic.BaseModel):
    """Where."""

    street: str
    title: str = "home"


class Person(pydantic.BaseModel):
    home: Address
    work: Address | None = None
    born: datetime.date


class Employee(pydantic.BaseModel):
    boss: Employee | None = None
    leg: Leg | None = None


@dataclass
class Household:
    people: list[Address]
    guest: Address | None = None
    main: Address = field(default_factory=lambda: Address(street="x"))


class Aliased(pydantic.BaseModel):
    first_name: str = pydantic.Field(alias="firstName")
    age: int = 3


class Open(pydantic.BaseModel, extra="allow"):
    x: int


class Add(pydantic.BaseModel):
    op: Literal["add"]
    left: Annotated[Add | Mul, pydantic.Field(discriminator="op")] | int
    right: Annotated[Add | Mul, pydantic.Field(discriminator="op")] | int


class Mul(pydantic.BaseModel):
    op: Literal["mul"]
    left: Annotated[Add | Mul, pydantic.Field(discriminator="op")] | int
    right: Annotated[Add | Mul, pydantic.Field(discriminator="op")] | int


class Texts(pydantic.BaseModel):
    items: list[str]
    first: int = 0


class Numbers(pydantic.BaseModel):
    items: list[int]
    last: int = 0


class Short(pydantic.BaseModel):
    kind: Literal["short"] = "short"
    size: Literal["s", "m"] = "s"
    name: str


class Long(pydantic.BaseModel):
    kind: Literal["long"] = "long"
    size: Literal["l", "xl"] = "l"
    name: str = ""
    length: int
    depth: int = 0


class Pet(pydantic.BaseModel):
    kind: Literal["cat"]


class Fish(pydantic.BaseModel):
    kind: Literal["fish"]


class Owner(pydantic.BaseModel):
    pet: Annotated[Pet | Fish, pydantic.Field(discriminator="kind")]
    either: Texts | Numbers | None = None
    other: Short | Long | None = None


class Numbered(pydantic.RootModel[list[int]]):
    pass


@pydantic.dataclasses.dataclass
class PydanticData:
    x: int


class Uncallable(pydantic.BaseModel):
    back: Callable[[], int]


# In the test module, `Leg` is taken: a model of the same name must not take its place.
Namesake = pydantic.create_model("Leg", miles=(int, ...), spare=(Optional[Address], None))


TEXT: Json = {"type": "string"}
INT: Json = {"type": "integer"}
NULL: Json = {"type": "null"}
ADDRESS: Json = {
    "description": "Where.",
    "properties": {"street": TEXT, "title": {"default": "home", "type": "string"}},
    "required": ["street"],
    "type": "object",
    "additionalProperties": False,
}
LEG: Json = {
    "type": "object",
    "description": "One part of a trip.",
    "properties": {
        "mode": {"type": "string", "enum": ["train", "bus"]},
        "km": {"type": "number", "description": "Length.", "default": 1.5},
        "ticket": {"type": "string", "default": "ticket.txt"},
        "notes": {"type": "array", "items": TEXT, "default": []},
    },
    "required": ["mode"],
    "additionalProperties": False,
}


# --- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, TEXT),
        (int, INT),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, NULL),
        (Any, {}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (datetime.datetime, {"type": "string", "format": "date-time"}),
        (datetime.date, {"type": "string", "format": "date"}),
        (datetime.time, {"type": "string", "format": "time"}),
        (datetime.timedelta, {"type": "string", "format": "duration"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (Decimal, {"type": "string", "format": "decimal"}),
        (Path, TEXT),
        (PurePosixPath, TEXT),
        (NewType("Id", int), INT),
        (Unit, {"type": "string", "enum": ["metric", "imperial"], "description": "How to measure."}),
        (Level, {"type": "integer", "enum": [1, 2]}),
        (Literal["z", "a"], {"type": "string", "enum": ["z", "a"]}),
        (Literal["z", 1, None], {"enum": ["z", 1, None]}),
        (Literal[True], {"type": "boolean", "enum": [True]}),
        (Optional[Literal["z", "a"]], {"anyOf": [{"type": "string", "enum": ["z", "a"]}, NULL]}),
        (None | int, {"anyOf": [INT, NULL]}),
        (int | str, {"anyOf": [INT, TEXT]}),
        (Union[list[int], str], {"anyOf": [{"type": "array", "items": INT}, TEXT]}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": INT}),
        (Sequence[int], {"type": "array", "items": INT}),
        (set[str], {"type": "array", "items": TEXT}),
        (tuple[int, ...], {"type": "array", "items": INT}),
        (tuple[int, str], {"type": "array", "prefixItems": [INT, TEXT], "minItems": 2, "maxItems": 2}),
        (dict, {"type": "object"}),
        (dict[str, Any], {"type": "object"}),
        (dict[str, int], {"type": "object", "additionalProperties": INT}),
        (
            dict[Unit, int],
            {"type": "object", "propertyNames": {"enum": ["metric", "imperial"]}, "additionalProperties": INT},
        ),
        (
            dict[int, str],
            {
                "type": "object",
                "propertyNames": {"pattern": "^(0|-?[1-9][0-9]*)$"},
                "additionalProperties": TEXT,
            },
        ),
        (Annotated[str, "A name."], {"type": "string", "description": "A name."}),
        (Annotated[str, SimpleNamespace(documentation="A name.")], {"type": "string", "description": "A name."}),
        (Annotated[int, 5], INT),
        (list[Annotated[str, "A tag."]], {"type": "array", "items": {"type": "string", "description": "A tag."}}),
        (Annotated[int, msgspec.Meta(ge=1, title="noise")], {"type": "integer", "minimum": 1}),
        (Annotated[int, annotated_types.Interval(ge=0, le=9)], {"type": "integer", "minimum": 0, "maximum": 9}),
        (
            Annotated[str, pydantic.Field(description="A code.", min_length=2, pattern="^[a-z]+$")],
            {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "description": "A code."},
        ),
        (Annotated[list[int], msgspec.Meta(max_length=3)], {"type": "array", "items": INT, "maxItems": 3}),
        (Annotated[int, msgspec.Meta(ge=0)] | None, {"anyOf": [{"type": "integer", "minimum": 0}, NULL]}),
        (Leg, LEG),
        (list[Leg], {"type": "array", "items": LEG}),
        (Optional[Leg], {"anyOf": [LEG, NULL]}),
        (
            Options,
            closed(["zoom"], zoom={"type": "integer", "description": "How near."}, angle={"type": "number"}),
        ),
        (Place, closed(["name"], name=TEXT, code=INT)),
        (
            Point,
            {"type": "array", "prefixItems": [INT, {"type": "integer", "default": 2}], "minItems": 1, "maxItems": 2},
        ),
        (Box[int], closed(item=INT)),
        (
            Cat | Dog,
            {
                "anyOf": [
                    closed(
                        ["type", "name"],
                        type={"type": "string", "enum": ["Cat"]},
                        name=TEXT,
                        lifeCount={"type": "integer", "default": 9},
                    ),
                    closed(type={"type": "string", "enum": ["Dog"]}, name=TEXT),
                ]
            },
        ),
        (Address, ADDRESS),
        (dict[str, Address], {"type": "object", "additionalProperties": ADDRESS}),
        (Numbered, {"type": "array", "items": INT}),
        (
            Open,
            {"type": "object", "properties": {"x": INT}, "required": ["x"], "additionalProperties": True},
        ),
    ],
)
def test_the_schema_of_a_type(hint: Any, schema: Json) -> None:
    assert json.dumps(parameters(x=hint).schema, sort_keys=True) == json.dumps(closed(x=schema), sort_keys=True)


def test_fields_and_choices_keep_the_order_of_the_source() -> None:
    schema = parameters(place=Options, unit=Unit, many=list[Literal["z", "a"]]).schema["properties"]
    assert list(schema["place"]["properties"]) == ["zoom", "angle"]
    assert schema["unit"]["enum"] == ["metric", "imperial"]
    assert schema["many"]["items"]["enum"] == ["z", "a"]


def test_a_signature_keeps_its_order_and_says_its_defaults() -> None:
    made = parameters(
        {"city": "The city.", "unit": "Which.", "days": "never said"},
        city=str,
        unit=(Unit, Unit.METRIC),
        days=(Annotated[int, "How many."], 3),
        where=(Path | None, None),
        leg=(Leg | None, Leg("bus")),
    )
    assert json.dumps(made.schema) == json.dumps(
        closed(
            ["city"],
            city={"type": "string", "description": "The city."},
            unit={"type": "string", "enum": ["metric", "imperial"], "description": "Which.", "default": "metric"},
            days={"type": "integer", "description": "How many.", "default": 3},
            where={"anyOf": [TEXT, NULL], "default": None},
            leg={
                "anyOf": [LEG, NULL],
                "default": {"mode": "bus", "km": 1.5, "ticket": "ticket.txt", "notes": []},
            },
        )
    )


def test_no_parameters() -> None:
    assert parameters().schema == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert parameters().decode("") == {}


@pytest.mark.parametrize("default", [object(), math.inf, math.nan, [math.inf], complex(1, 1)])
def test_a_default_that_json_cannot_express_is_not_in_the_schema_and_is_still_used(default: object) -> None:
    made = parameters(x=(float, default))
    assert made.schema == closed([], x={"type": "number"})
    value = made.decode("{}")["x"]
    assert value is default or value == default


def test_a_description_of_the_parameter_wins_over_that_of_its_class() -> None:
    assert parameters({"x": "The first part."}, x=Leg).schema == closed(x={**LEG, "description": "The first part."})


def test_what_is_used_once_is_in_place_and_what_is_used_twice_is_a_definition() -> None:
    assert parameters({"b": "The second."}, a=Leg, b=list[Leg], c=Unit, d=Unit).schema == {
        **closed(
            a={"$ref": "#/$defs/Leg"},
            b={"type": "array", "items": {"$ref": "#/$defs/Leg"}, "description": "The second."},
            c={"type": "string", "enum": ["metric", "imperial"], "description": "How to measure."},
            d={"type": "string", "enum": ["metric", "imperial"], "description": "How to measure."},
        ),
        "$defs": {"Leg": LEG},
    }


def test_what_holds_itself_is_a_definition() -> None:
    node = closed(["value"], value=INT, children={"type": "array", "items": {"$ref": "#/$defs/Node"}, "default": []})
    assert parameters(x=Node).schema == {**closed(x={"$ref": "#/$defs/Node"}), "$defs": {"Node": node}}


def test_definitions_of_pydantic_models_are_hoisted() -> None:
    person = {
        "properties": {
            "home": {"$ref": "#/$defs/Address"},
            "work": {"anyOf": [{"$ref": "#/$defs/Address"}, NULL], "default": None},
            "born": {"format": "date", "type": "string"},
        },
        "required": ["home", "born"],
        "type": "object",
        "additionalProperties": False,
    }
    assert parameters(x=Person).schema == {**closed(x=person), "$defs": {"Address": ADDRESS}}
    assert parameters(x=Person, y=list[Person]).schema == {
        **closed(x={"$ref": "#/$defs/Person"}, y={"type": "array", "items": {"$ref": "#/$defs/Person"}}),
        "$defs": {"Address": ADDRESS, "Person": person},
    }


def test_a_dataclass_may_hold_pydantic_models() -> None:
    ref = {"$ref": "#/$defs/Address"}
    household = closed(
        ["people"], people={"type": "array", "items": ref}, guest={"anyOf": [ref, NULL], "default": None}, main=ref
    )
    made = parameters(x=Household)
    assert made.schema == {**closed(x=household), "$defs": {"Address": ADDRESS}}
    street = Address(street="y")
    assert made.decode('{"x": {"people": [{"street": "y"}], "guest": {"street": "y"}}}') == {
        "x": Household([street], street, Address(street="x"))
    }
    wrong = '{"x": {"people": [{"street": 1}]}}'
    assert refused(made, wrong) == "`x.people[0]`: `street`: Input should be a valid string"


def test_a_pydantic_model_is_filled_by_alias() -> None:
    made = parameters(x=(Aliased, Aliased(firstName="A")))
    name = {"type": "string"}
    model = {
        "properties": {"firstName": name, "age": {"default": 3, "type": "integer"}},
        "required": ["firstName"],
        "type": "object",
        "additionalProperties": False,
        "default": {"firstName": "A", "age": 3},
    }
    assert made.schema == closed([], x=model)
    assert made.decode('{"x": {"firstName": "B"}}') == {"x": Aliased(firstName="B")}
    assert refused(made, '{"x": {"first_name": "B"}}') == "`x`: unknown field `first_name`; allowed: `firstName`, `age`"


def test_models_and_classes_of_one_name_stay_apart() -> None:
    made = parameters(a=Namesake, b=Namesake, c=Leg, d=Leg)
    assert {name: part["$ref"] for name, part in made.schema["properties"].items()} == {
        "a": "#/$defs/Leg",
        "b": "#/$defs/Leg",
        "c": "#/$defs/Leg_2",
        "d": "#/$defs/Leg_2",
    }
    assert made.schema["$defs"]["Leg_2"] == LEG
    assert made.schema["$defs"]["Leg"]["required"] == ["miles"]


def test_a_class_that_holds_another_of_its_name() -> None:
    outer = make_dataclass("Leg", [("inner", Leg), ("again", Optional["Leg"])], namespace={"__module__": __name__})
    made = parameters(a=outer, b=outer, c=Leg)
    assert made.schema["properties"]["a"] == made.schema["properties"]["b"] == {"$ref": "#/$defs/Leg"}
    assert made.schema["properties"]["c"] == {"$ref": "#/$defs/Leg_2"}
    assert made.schema["$defs"]["Leg_2"] == LEG
    assert list(made.schema["$defs"]["Leg"]["properties"]) == ["inner", "again"]


def test_every_reference_has_its_definition_and_every_definition_a_use() -> None:
    made = parameters(a=Employee, b=Owner, c=Add, d=Tree, e=Node, f=Person, g=Leg, h=Box[Leg], i=Box[int])
    text = json.dumps(made.schema)
    used = re.findall(r'"\$ref": "#/\$defs/([^"]+)"', text)
    assert set(used) == set(made.schema["$defs"])
    assert all(used.count(name) > 1 for name in used)
    assert '"discriminator"' not in text


def test_the_bytes_are_the_same_in_every_process() -> None:
    program = (
        "import json; from tests.tools import test_schema as t;"
        "made = t.parameters(a=t.Person, b=t.Tree, c=(set[str], {'x', 'y', 'z'}), d=(t.Leg | None, None), e=t.Owner,"
        " f=(frozenset[t.Unit], frozenset(t.Unit)), g=t.Literal['z', 'a', 1], h=t.Leg);"
        "print(json.dumps(made.schema))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1] != ""


class Lonely:
    pass


@pytest.mark.parametrize(
    ("hint", "reason", "advice"),
    [
        (complex, "`complex` is not a type JSON can express", "Write a type JSON can express"),
        (object, "`object` is not a type JSON can express", "Write a type JSON can express"),
        (Lonely, "`Lonely` is not a type JSON can express", "Write a type JSON can express"),
        (Callable[[], int], "`Callable` is not a type JSON can express", "Write a type"),
        (Iterable[int], "`Iterable` is not a type JSON can express", "Write a type"),
        (pydantic.HttpUrl, "`HttpUrl` is not a type JSON can express", "Write a type"),
        (Mode, "`Mode` is not a type JSON can express", "Write a type"),
        (Mixed, "Enums must contain either all str or all int values", "Write a type"),
        (memoryview, "is not a type JSON can express", "Write a type"),
        (Row, "`Row` is an array-like Struct or a pydantic dataclass", "Write a type"),
        (PydanticData, "`PydanticData` is an array-like Struct or a pydantic dataclass", "Write a type"),
        (Uncallable, "Cannot generate a JsonSchema for core_schema.CallableSchema", "Write a type"),
        (dict[float, int], "the keys of a `dict` must be", "Write a type"),
        (dict[tuple[int, int], int], "the keys of a `dict` must be", "Write a type"),
        (dict[Level, int], "the keys of a `dict` must be", "Write a type"),
        (list[Leg | Other], "more than one dataclass", "JSON alone must tell a union's members apart"),
        (Address | Person, "more than one custom type", "JSON alone must tell a union's members apart"),
        (str | Unit, "more than one str-like type", "JSON alone must tell a union's members apart"),
        (str | Path, "may not contain any additional types", "JSON alone must tell a union's members apart"),
        (Annotated[int | None, msgspec.Meta(ge=0)], "Can only set `ge`", "`Annotated[int, ...] | None`"),
    ],
)
def test_a_type_that_json_cannot_express_is_refused_by_name(hint: Any, reason: str, advice: str) -> None:
    with pytest.raises(ToolDefinitionError) as raised:
        parameters(fine=int, broken=hint)
    assert raised.value.message.startswith("tool `lookup`: parameter `broken`: `")
    assert "cannot be offered to a model: " in raised.value.message
    assert reason in raised.value.message
    assert "\n" not in raised.value.message
    assert advice in raised.value.hint


def test_a_class_whose_annotations_cannot_be_read_is_refused() -> None:
    class Local:
        pass

    @dataclass
    class Holder:
        local: Local

    with pytest.raises(ToolDefinitionError) as raised:
        parameters(x=Holder)
    assert "name 'Local' is not defined" in raised.value.message
    assert raised.value.hint == "Define at module level what the annotations of that class name."


# --- decoding --------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "text": (str, st.text()),
    "whole": (int, st.integers()),
    "real": (float, st.floats(allow_nan=False, allow_infinity=False)),
    "flag": (bool, st.booleans()),
    "raw": (bytes, st.binary()),
    "maybe": (int | None, st.none() | st.integers()),
    "either": (int | str, st.integers() | st.text()),
    "moment": (datetime.datetime, st.datetimes(timezones=st.just(datetime.UTC))),
    "day": (datetime.date, st.dates()),
    "clock": (datetime.time, st.times()),
    "span": (datetime.timedelta, st.timedeltas(datetime.timedelta(-9999), datetime.timedelta(9999))),
    "id": (uuid.UUID, st.uuids()),
    "price": (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    "prices": (list[Decimal | None], st.lists(st.none() | st.decimals(allow_nan=False, allow_infinity=False))),
    "path": (Path, st.text("abc/.", min_size=1).map(Path)),
    "unit": (Unit, st.sampled_from(Unit)),
    "level": (Level, st.sampled_from(Level)),
    "choice": (Literal["z", 1, None], st.sampled_from(["z", 1, None])),
    "many": (list[int], st.lists(st.integers())),
    "few": (set[str], st.sets(st.text())),
    "pair": (tuple[int, str], st.tuples(st.integers(), st.text())),
    "counts": (dict[str, int], st.dictionaries(st.text(), st.integers())),
    "by_number": (dict[int, str], st.dictionaries(st.integers(), st.text())),
    "by_unit": (dict[Unit, int], st.dictionaries(st.sampled_from(Unit), st.integers())),
    "leg": (
        Leg,
        st.builds(Leg, st.sampled_from(["train", "bus"]), st.floats(0, 9), st.just(Path("t")), st.lists(st.text())),
    ),
    "place": (Place, st.fixed_dictionaries({"name": st.text()}, optional={"code": st.integers()})),
    "point": (Point, st.builds(Point, st.integers(), st.integers())),
    "node": (
        Node,
        st.recursive(
            st.builds(Node, st.integers()),
            lambda nodes: st.builds(Node, st.integers(), st.lists(nodes, max_size=3)),
            max_leaves=5,
        ),
    ),
    "animal": (Cat | Dog, st.builds(Cat, st.text(), st.integers()) | st.builds(Dog, st.text())),
    "box": (Box[int], st.builds(Box, st.integers())),
    "person": (
        Person,
        st.builds(
            Person,
            home=st.builds(Address, street=st.text()),
            work=st.none() | st.builds(Address, street=st.text(), title=st.text()),
            born=st.dates(),
        ),
    ),
    "people": (list[Address] | None, st.none() | st.lists(st.builds(Address, street=st.text()))),
}
ALL = parameters(**{name: (hint, None) for name, (hint, _) in EVERYTHING.items()})
VALUES = st.fixed_dictionaries({}, optional={name: values for name, (_, values) in EVERYTHING.items()})
SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


def encoded(value: Any) -> str:
    def other(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else json.loads(value.model_dump_json())

    return msgspec.json.encode(value, enc_hook=other).decode()


@given(VALUES)
def test_encoded_values_decode_to_equal_values(values: dict[str, Any]) -> None:
    decoded = ALL.decode(encoded(values))
    assert decoded == {name: values.get(name) for name in EVERYTHING}
    assert [type(decoded[name]) for name in values] == [type(value) for value in values.values()]


@given(VALUES, st.data())
def test_any_text_decodes_or_is_invalid_arguments(values: dict[str, Any], data: st.DataObject) -> None:
    text = encoded(values)
    start, end = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
    insert = data.draw(st.text('{}[]":,0123456789.eE-truefalsn\\u \ud800\x00', max_size=6) | st.text(max_size=6))
    try:
        ALL.decode(text[:start] + insert + text[end:])
    except InvalidArguments as error:
        assert str(error)


JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("name"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*EVERYTHING, "nowhere"]), JSON, max_size=3))
def test_any_json_object_decodes_or_is_invalid_arguments(value: dict[str, Any]) -> None:
    try:
        ALL.decode(json.dumps(value))
    except InvalidArguments as error:
        assert str(error)


def objects(value: Any) -> Iterator[Json]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


NESTED = parameters(
    leg=Leg,
    legs=list[Leg],
    place=Place,
    maybe=Options | None,
    by_name=dict[str, Leg],
    node=Node,
    tree=Tree,
    animal=Cat | Dog,
    boxes=tuple[Box[int], Point],
    person=Person,
    people=list[Address],
    employee=Employee | None,
    add=Add,
    owner=Owner,
    prices=list[Box[Decimal]],
)
NESTED_VALUE: Json = {
    "leg": {"mode": "bus", "km": 2},
    "legs": [{"mode": "bus"}, {"mode": "train", "notes": ["a"]}],
    "place": {"name": "x"},
    "maybe": {"zoom": 1},
    "by_name": {"a.b": {"mode": "bus"}, "type": {"mode": "bus"}},
    "node": {"value": 1, "children": [{"value": 2, "children": [{"value": 3}]}]},
    "tree": {"kids": {"a.kids.b": {"kids": {}}, "a": {"kids": {"b": {"kids": {}}}}}},
    "animal": {"type": "Cat", "name": "x", "lifeCount": 2},
    "boxes": [{"item": 1}, [1, 2]],
    "person": {"home": {"street": "x"}, "work": {"street": "y", "title": "z"}, "born": "2000-01-01"},
    "people": [{"street": "x"}],
    "employee": {"boss": {"boss": {"leg": {"mode": "bus"}}}},
    "add": {"op": "add", "left": {"op": "mul", "left": 1, "right": 2}, "right": {"op": "add", "left": 1, "right": 2}},
    "owner": {"pet": {"kind": "fish"}, "either": {"items": ["a"]}},
    "prices": [{"item": "1.50"}],
}


def places(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all objects; list items count as their list."""
    if isinstance(value, dict):
        yield at
        for name, inner in value.items():
            yield from places(inner, (*at, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*at, str(index)))


def at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def is_open(path: tuple[str, ...]) -> bool:
    """Whether the object's keys are data."""
    return path == ("by_name",) or (path[:1] == ("tree",) and path[-1] == "kids")


CLOSED_PLACES = [path for path in places(NESTED_VALUE) if not is_open(path)]


def test_the_nested_value_is_valid() -> None:
    assert len(CLOSED_PLACES) == 32
    assert set(NESTED.decode(json.dumps(NESTED_VALUE))) == set(NESTED_VALUE)


@pytest.mark.parametrize("path", CLOSED_PLACES, ids=".".join)
@given(st.text() | st.sampled_from(["_", "a", "b", "kids", "first", "last", "0", "type", "life_count"]), SCALARS)
def test_an_unknown_field_is_refused_anywhere(path: tuple[str, ...], name: str, item: Any) -> None:
    value = json.loads(json.dumps(NESTED_VALUE))
    place = at(value, path)
    known = {"first", "title", "boss", "leg", "km", "ticket", "notes", "code", "angle", "children"} | set(place)
    if name in known or (name == "last" and path == ("owner", "either")):
        return
    place[name] = item
    assert "nknown field `" in refused(NESTED, json.dumps(value))


@given(st.data())
def test_a_key_that_is_there_twice_is_refused_anywhere(data: st.DataObject) -> None:
    made = parameters(x=Any, y=(dict[str, Any], None))
    value = {"x": data.draw(st.dictionaries(st.text(), JSON, min_size=1, max_size=3))}
    chosen = data.draw(st.sampled_from([found for found in objects(value) if found]))
    name = data.draw(st.sampled_from(list(chosen)))

    class Twice(dict[str, Any]):
        def items(self) -> Any:
            return [*super().items(), (name, data.draw(JSON))]

    def rebuilt(value: Any) -> Any:
        if isinstance(value, list):
            return [rebuilt(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind = Twice if value is chosen else dict
        return kind({key: rebuilt(item) for key, item in value.items()})

    assert f"the key `{name}` is there twice"[:900] in refused(made, json.dumps(rebuilt(value)))


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "{}", " {} \n"])
def test_no_text_is_an_empty_object(text: str) -> None:
    assert parameters(x=(int, 1)).decode(text) == {"x": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "the arguments must be one JSON object"),
        ("[]", "the arguments must be one JSON object"),
        ('"{}"', "the arguments must be one JSON object"),
        ("{'x': 1}", "not valid JSON: Expecting property name enclosed in double quotes at character 1"),
        ('{"x": 1', "not valid JSON: Expecting ',' delimiter at character 7"),
        ('{"x": 1,}', "not valid JSON: "),
        ('{"x": 1} {"x": 2}', "not valid JSON: Extra data at character 9"),
        ('```json\n{"x": 1}\n```', "not valid JSON: Expecting value at character 0"),
        ('{"x": 01}', "not valid JSON: "),
        ('{"x": "\n"}', "not valid JSON: Invalid control character at character 7"),
        ("\ufeff{}", "not valid JSON: "),
        ('{"x": NaN}', "`NaN` is not a JSON value"),
        ('{"x": -Infinity}', "`-Infinity` is not a JSON value"),
        ('{"x": 1e999}', "the number `1e999` is too large"),
        ('{"x": ' + "1" * 5000 + "}", "a number that is too long"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"x": ' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"x": "\\ud800"}', "half of a surrogate pair"),
        ('{"x": {"\\uDFFF": 1}}', "half of a surrogate pair"),
        ('{"x": 1, "\\u0078": 2}', "the key `x` is there twice in one object"),
    ],
)
def test_text_that_is_not_one_strict_json_object_is_refused(text: str, message: str) -> None:
    assert message in refused(parameters(x=Any), text)


def test_a_surrogate_pair_is_a_character() -> None:
    assert parameters(x=str).decode('{"x": "\\ud83d\\ude00"}') == {"x": "😀"}


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, "1"),
        (int, 1.0),
        (int, 1.5),
        (int, True),
        (int, None),
        (float, "1"),
        (float, True),
        (bool, 1),
        (bool, "true"),
        (str, 1),
        (str, None),
        (Decimal, 1.5),
        (Decimal, 1),
        (Decimal, "NaN"),
        (Decimal, "-Infinity"),
        (Decimal | None, 1.5),
        (list[Decimal], [1.5]),
        (Box[Decimal] | None, {"item": 1.5}),
        (dict[str, Decimal], {"a": 1.5}),
        (datetime.date, 0),
        (datetime.datetime, 0),
        (datetime.timedelta, 1),
        (uuid.UUID, "x"),
        (Path, 1),
        (Level, 1.0),
        (Level, True),
        (Literal[1], True),
        (list[int], {}),
        (list[int], "[]"),
        (tuple[int, str], [1]),
        (tuple[int, str], [1, "a", 2]),
        (Point, []),
        (Point, [1, 2, 3]),
        (Point, {"x": 1}),
        (dict[str, int], [["a", 1]]),
        (dict[int, str], {"x": ""}),
        (dict[int, str], {"01": ""}),
        (dict[int, str], {"-0": ""}),
        (dict[int, str], {"1.0": ""}),
        (Leg, "bus"),
        (Leg, {}),
        (Leg, {"mode": "plane"}),
        (Leg, {"mode": "bus", "km": "far"}),
        (Cat, {"type": "Cat", "name": "x", "life_count": 1}),
        (Cat | Dog, {"name": "x"}),
        (Cat | Dog, {"type": "Bird", "name": "x"}),
        (Address, {"street": 1}),
        (Person, {"home": {"street": "x"}, "born": 0}),
        (set[Any], [[]]),
    ],
)
def test_a_value_of_another_type_is_refused(hint: Any, value: Any) -> None:
    assert refused(parameters(x=hint), json.dumps({"x": value}))


@pytest.mark.parametrize(
    ("hint", "value", "decoded"),
    [
        (float, 1, 1.0),
        (float, -0.0, -0.0),
        (int, 10**300, 10**300),
        (int | float, 1, 1),
        (set[int], [1, 1], {1}),
        (Decimal, "1.50", Decimal("1.50")),
        (datetime.datetime, "2000-01-01T00:00:00", datetime.datetime(2000, 1, 1)),
        (Any, {"a": [{"b": None}]}, {"a": [{"b": None}]}),
        (dict, {"anything": 1}, {"anything": 1}),
        (dict[str, Any], {"-0": 1, "0": 2}, {"-0": 1, "0": 2}),
        (Open, {"x": 1, "y": 2}, Open.model_validate({"x": 1, "y": 2})),
    ],
)
def test_what_is_taken_for_a_type(hint: Any, value: Any, decoded: Any) -> None:
    (taken,) = parameters(x=hint).decode(json.dumps({"x": value})).values()
    assert (taken, type(taken)) == (decoded, type(decoded))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "missing required field `legs`"),
        ({"city": "x"}, "unknown field `city`; allowed: `legs`, `unit`, `person`, `by_unit`, `price`"),
        ({"legs": 1}, "`legs`: expected `array`, got `int`"),
        ({"legs": [1]}, "`legs[0]`: expected `object`, got `int`"),
        ({"legs": [{}]}, "`legs[0]`: missing required field `mode`"),
        ({"legs": [{"mode": "bus", "km": "far"}]}, "`legs[0].km`: expected `float`, got `str`"),
        (
            {"legs": [{"mode": "plane"}]},
            """`legs[0].mode`: invalid enum value 'plane'; expected one of "train", "bus\"""",
        ),
        (
            {"legs": [{"mode": "bus", "speed": 1, "km": 1, "to": 1}]},
            "`legs[0]`: unknown field `speed`, `to`; allowed: `mode`, `km`, `ticket`, `notes`",
        ),
        ({"legs": [], "unit": "feet"}, """`unit`: invalid enum value 'feet'; expected one of "metric", "imperial\""""),
        (
            {"legs": [], "by_unit": {"feet": 1}},
            """a key of `by_unit`: invalid enum value 'feet'; expected one of "metric", "imperial\"""",
        ),
        (
            {"legs": [], "person": {"home": {"street": 1}}},
            "`person`: `home.street`: Input should be a valid string; `born`: Field required",
        ),
        (
            {"legs": [], "person": {"home": {"street": "x", "zip": 1}, "born": "2000-01-01"}},
            "`person.home`: unknown field `zip`; allowed: `street`, `title`",
        ),
        ({"legs": [], "price": 1.5}, "`price`: expected a finite number in quotes"),
    ],
)
def test_messages_name_the_place_and_what_was_expected(value: Any, message: str) -> None:
    made = parameters(
        legs=list[Leg],
        unit=(Unit, Unit.METRIC),
        person=(Person | None, None),
        by_unit=(dict[Unit, int], {}),
        price=(Decimal, Decimal(1)),
    )
    assert refused(made, json.dumps(value)) == message


def test_a_message_is_bounded_whatever_the_model_wrote() -> None:
    made = parameters(x=Literal["a"])
    for text in ('{"x": "%s"}' % ("y" * 100_000), '{"%s": 1}' % ("y" * 100_000), '{"x": 1%s.0e999}' % ("1" * 100_000)):
        assert len(refused(made, text)) <= 1003


@dataclass
class Fussy:
    x: int

    def __post_init__(self) -> None:
        if self.x == 1:
            raise ValueError("1 is taken")
        if self.x == 2:
            raise KeyError("nobody expects this")


def test_what_a_class_raises_is_for_the_model() -> None:
    made = parameters(x=list[Fussy])
    assert made.decode('{"x": [{"x": 0}]}') == {"x": [Fussy(0)]}
    assert refused(made, '{"x": [{"x": 1}]}') == "`x[0]`: 1 is taken"
    assert refused(made, '{"x": [{"x": 2}]}') == "invalid value: KeyError: 'nobody expects this'"


def test_no_field_is_dropped_when_a_union_could_be_read_in_two_ways() -> None:
    made = parameters(x=Owner)
    pet = {"kind": "cat"}
    assert made.decode(json.dumps({"x": {"pet": pet, "either": {"items": [], "last": 1}}}))
    # `last` belongs to `Numbers` and the items to `Texts`: pydantic would take `Texts` and drop it.
    ambiguous = {"items": ["a"], "last": 1}
    assert "unknown field `last`" in refused(made, json.dumps({"x": {"pet": pet, "either": ambiguous}}))


@pytest.mark.parametrize(
    "other",
    [
        {"name": "x", "depth": 1},  # `depth` is known to `Long`, which needs a `length`
        {"name": "x", "length": 1, "kind": "short"},
        {"name": "x", "length": 1, "size": "s"},
        {"name": "x", "length": 1, "color": 1},
    ],
)
def test_a_field_is_known_only_to_a_member_of_a_union_that_fits(other: Json) -> None:
    assert "unknown field" in refused(parameters(x=Owner), json.dumps({"x": {"pet": {"kind": "cat"}, "other": other}}))


def test_a_union_that_holds_itself_costs_no_more_than_its_size() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = {"left": deep, "right": deep, "op": "mul"}
        deep["right"] = 1
    wrong = {"left": deep, "right": 1, "op": "add", "sum": 1}
    assert "unknown field `sum`" in refused(parameters(x=Add), json.dumps({"x": wrong}))
    deep = "no number"
    for _ in range(60):
        deep = {"left": deep, "right": 1, "op": "mul"}
    assert refused(parameters(x=Add), json.dumps({"x": deep}))
    deep = {"type": "Fork", "hand": "none"}
    for _ in range(60):
        deep = {"type": "Fork", "hand": "left", "next": deep}
    allowed = '`: invalid enum value \'none\'; expected one of "left", "right"'
    assert refused(parameters(x=Fork | Knife), json.dumps({"x": deep})) == f"`x{'.next' * 60}.hand{allowed}"


def test_defaults_come_from_the_signature_and_are_not_shared() -> None:
    marker, tags, leg = object(), ["a", {"b": 1}], Leg("bus")
    model = (Address | None, Address(street="x"))
    made = parameters(a=(list[Any], tags), b=(Leg, leg), c=(Any, marker), d=(str, "x"), e=model)
    first, second = made.decode(""), made.decode("{}")
    assert first == second == {"a": tags, "b": leg, "c": marker, "d": "x", "e": Address(street="x")}
    assert first["c"] is marker
    first["a"][1]["b"] = 2
    first["b"].notes.append("changed")
    first["e"].street = "changed"
    assert made.decode("") == second
    assert (tags, leg) == (["a", {"b": 1}], Leg("bus"))
