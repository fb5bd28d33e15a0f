"""`output=`: what is asked of which server, what is accepted as the answer, and how often a model may try."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, assert_type

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from tests.harness import ByteServer, json_reply, reply, run_virtual, sse
from treadle import (
    Agent,
    Ended,
    Event,
    Failed,
    HttpDriver,
    InvalidRequest,
    Limits,
    ModelRequest,
    Options,
    OutputInvalid,
    Prompted,
    Retried,
    RunResult,
    ScriptedDriver,
    UsageError,
    approve,
    calls,
    run_from_json,
    run_to_json,
    tool,
)
from treadle.tools.output import OutputType
from treadle.values.history import check_history
from treadle.values.request import SchemaSupport
from treadle.wire.chat import ChatCodec


@dataclass
class City:
    """A city."""

    name: str
    people: int = 0


OSLO = '{"name": "Oslo", "people": 700000}'
SUPPORT: tuple[SchemaSupport, ...] = ("with_tools", "alone", "none")


@tool(concurrency="read_only")
async def look(what: str) -> str:
    """Look at something."""
    return f"saw {what}"


def scripted(turns: Sequence[Any], support: SchemaSupport) -> ScriptedDriver:
    driver = ScriptedDriver(turns)
    driver.schema_support = support
    return driver


def shown(request: ModelRequest) -> tuple[bool, bool, bool]:
    """Is there a schema, are there tools, do the instructions hold the form?"""
    return request.output is not None, bool(request.tools), "JSON Schema" in (request.instructions or "")


class TestWithoutTools:
    @pytest.mark.parametrize("support", SUPPORT)
    def test_the_first_answer_is_the_value(self, support: SchemaSupport) -> None:
        driver = scripted([OSLO], support)
        result = Agent(driver, instructions="Be brief.").run_sync("Where?", output=City)
        assert_type(result, RunResult[City])
        assert result.output == City("Oslo", 700000)
        assert (result.text, result.stop_reason) == (OSLO, "end")
        [request] = driver.requests
        assert shown(request) == (support != "none", False, True)
        assert (request.instructions or "").startswith("Be brief.\n\n")
        if request.output is not None:
            assert request.output.schema == OutputType(City).schema.schema
            assert request.output.name == "City"

    @pytest.mark.parametrize("support", SUPPORT)
    def test_an_answer_that_does_not_fit_is_sent_back_once(self, support: SchemaSupport) -> None:
        driver = scripted(['{"name": 3}', OSLO], support)
        result = Agent(driver).run_sync("Where?", output=City)
        assert result.output == City("Oslo", 700000)
        said = driver.requests[1].messages[-1].content
        assert isinstance(said, str)
        assert "`name`: expected `str`, got `int`" in said
        assert '"properties"' in said
        assert result.turns == 2
        assert driver.requests[1].messages[:1] == driver.requests[0].messages
        assert driver.requests[1].instructions == driver.requests[0].instructions, "the prefix does not move"

    @pytest.mark.parametrize("support", SUPPORT)
    def test_and_then_the_run_fails_with_what_is_wrong(self, support: SchemaSupport) -> None:
        driver = scripted(['{"name": 3}', "CANARY", OSLO], support)
        with pytest.raises(OutputInvalid) as caught:
            Agent(driver).run_sync("Where?", output=City)
        error = caught.value
        assert len(driver.requests) == 2
        assert error.problem == "the answer is not valid JSON: Expecting value at character 0"
        assert error.result is not None
        assert (error.result.text, error.result.output, error.result.stop_reason) == ("CANARY", None, None)
        assert "CANARY" not in str(error) + repr(error)
        check_history(error.result.messages)

    def test_without_it_nothing_is_asked(self) -> None:
        driver = scripted(["Oslo"], "with_tools")
        result = Agent(driver).run_sync("Where?")
        assert_type(result.output, None)
        assert result.output is None
        assert shown(driver.requests[0]) == (False, False, False)


class TestWithTools:
    def test_a_server_that_can_have_both_is_sent_both(self) -> None:
        driver = scripted([calls(("look", {"what": "map"})), OSLO], "with_tools")
        assert Agent(driver, tools=[look]).run_sync("Where?", output=City).output == City("Oslo", 700000)
        assert [shown(request) for request in driver.requests] == [(True, True, False)] * 2

    def test_one_that_cannot_has_its_tools_free_and_the_schema_last(self) -> None:
        driver = scripted([calls(("look", {"what": "map"})), "It is Oslo.", OSLO], "alone")
        options = Options(tool_choice="auto", temperature=0.5)
        result = Agent(driver, tools=[look], instructions="Be brief.", options=options).run_sync("Where?", output=City)
        assert result.output == City("Oslo", 700000)
        assert [shown(request) for request in driver.requests] == [
            (False, True, False),
            (False, True, False),
            (True, False, False),
        ]
        assert driver.requests[2].options == Options(temperature=0.5), "a choice among no tools is refused by strict servers"
        assert "JSON Schema" in str(driver.requests[2].messages[-1].content)
        check_history(result.messages)

    def test_a_server_without_schemas_is_asked_in_words_and_keeps_its_tools(self) -> None:
        driver = scripted(["It is Oslo.", calls(("look", {"what": "map"})), OSLO], "none")
        assert Agent(driver, tools=[look]).run_sync("Where?", output=City).output == City("Oslo", 700000)
        assert [shown(request) for request in driver.requests] == [(False, True, False)] * 3

    @pytest.mark.parametrize("support", SUPPORT)
    def test_an_answer_in_the_form_needs_no_second_phase(self, support: SchemaSupport) -> None:
        driver = scripted([f"```json\n{OSLO}\n```"], support)
        assert Agent(driver, tools=[look]).run_sync("Where?", output=City).output == City("Oslo", 700000)
        assert len(driver.requests) == 1

    @pytest.mark.parametrize(("support", "turns"), [("with_tools", 2), ("alone", 3), ("none", 3)])
    def test_one_round_of_correction(self, support: SchemaSupport, turns: int) -> None:
        driver = scripted(["no"] * 9, support)
        with pytest.raises(OutputInvalid):
            Agent(driver, tools=[look]).run_sync("Where?", output=City)
        assert len(driver.requests) == turns

    @pytest.mark.parametrize("support", SUPPORT)
    def test_the_events_say_so(self, support: SchemaSupport) -> None:
        async def main() -> list[Event]:
            async with Agent(scripted(["no", OSLO, OSLO], support), tools=[look]).stream("Where?", output=City) as run:
                events = [event async for event in run]
            assert_type(run.result, RunResult[City])
            assert run.result.output == City("Oslo", 700000)
            return events

        [prompted] = [event for event in asyncio.run(main()) if isinstance(event, Prompted)]
        assert prompted.why == "output"

    def test_a_run_that_waits_goes_on_with_it(self) -> None:
        agent = Agent(scripted([calls(("look", {"what": "map"})), OSLO], "with_tools"), tools=[look], approvals="always")
        waits = agent.run_sync("Where?", output=City)
        assert (waits.stop_reason, waits.output) == ("waiting_approval", None)
        loaded = run_from_json(run_to_json(waits))

        async def main() -> RunResult[City]:
            return await agent.resume(loaded, {"call_0": approve}, output=City)

        assert asyncio.run(main()).output == City("Oslo", 700000)

    def test_a_failed_run_may_be_tried_again(self) -> None:
        agent = Agent(scripted(["no", "no", OSLO], "alone"))
        with pytest.raises(OutputInvalid) as caught:
            agent.run_sync("Where?", output=City)
        failed = caught.value.result
        assert failed is not None

        async def main() -> RunResult[City]:
            return await agent.resume(failed, output=City)

        assert asyncio.run(main()).output == City("Oslo", 700000)


class TestBounds:
    def test_a_run_stopped_by_a_bound_has_no_value(self) -> None:
        result = Agent(scripted(["no", OSLO], "alone")).run_sync("Where?", output=City, limits=Limits(max_turns=1))
        assert (result.stop_reason, result.output) == ("max_turns", None)

    def test_a_refused_schema_is_left_out(self) -> None:
        """Servers say in too many ways that they know no schemas: after a 400 the model is asked in words."""

        async def main() -> tuple[RunResult[City], list[Any], list[Event]]:
            refusal = json_reply({"error": {"message": "response_format is not supported", "code": 400}}, status=400)
            async with ByteServer([refusal, sse(*reply(OSLO))]) as server:
                driver = HttpDriver(ChatCodec(), server.url, "m")
                events: list[Event] = []
                async with Agent(_Alone(driver)).stream("Where?", output=City) as run:
                    events += [event async for event in run]
                return run.result, [post.json for post in server.posts], events

        result, posts, events = run_virtual(main())
        assert result.output == City("Oslo", 700000)
        assert [type(event) for event in events if isinstance(event, Retried)] == [Retried]
        assert posts[0]["messages"] == posts[1]["messages"]
        assert "response_format" not in posts[1]

    def test_an_error_that_was_not_the_schemas_ends_the_run(self) -> None:
        driver = scripted([InvalidRequest("no such option", status=400)] * 3, "alone")
        with pytest.raises(InvalidRequest):
            Agent(driver).run_sync("Where?", output=City)
        assert [shown(request)[0] for request in driver.requests] == [True, False]

    def test_another_model_is_asked_as_it_can(self) -> None:
        first = scripted([InvalidRequest("no", status=400)], "none")
        second = scripted([OSLO], "alone")
        from treadle import Failure, Switch

        def switch(failure: Failure) -> Switch:
            return Switch(failure.driver + 1)

        result = Agent(first, fallback=[second], strategy=switch).run_sync("Where?", output=City)
        assert result.output == City("Oslo", 700000)
        assert shown(second.requests[0]) == (True, False, True)

    def test_the_last_event_of_a_failure(self) -> None:
        async def main() -> list[Event]:
            events: list[Event] = []
            with pytest.raises(OutputInvalid):
                async with Agent(scripted(["no", "no"], "none")).stream("Where?", output=City) as run:
                    async for event in run:
                        events.append(event)
            return events

        last = asyncio.run(main())[-1]
        assert isinstance(last, Failed)
        assert last.error.kind == "OutputInvalid"
        assert not isinstance(last, Ended)


class _Alone:
    """A driver that takes a schema, whatever its codec says."""

    schema_support: SchemaSupport = "alone"

    def __init__(self, driver: HttpDriver) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(Struct, frozen=True):
    x: int
    y: int = 0


class Book(TypedDict):
    title: str


class Model(pydantic.BaseModel):
    year: int = pydantic.Field(ge=1900)


class Tree(Struct):
    name: str
    inner: list[Tree] = []


class TestTypes:
    @pytest.mark.parametrize(
        ("type", "text", "value"),
        [
            (City, '{"name": "Oslo"}', City("Oslo")),
            (Point, '{"x": 1}', Point(1)),
            (Book, '{"title": "t"}', {"title": "t"}),
            (Model, '{"year": 1999}', Model(year=1999)),
            (dict[str, int], '{"a": 1}', {"a": 1}),
            (Tree, '{"name": "a", "inner": [{"name": "b"}]}', Tree("a", [Tree("b")])),
            (list[City], '{"value": [{"name": "Oslo"}]}', [City("Oslo")]),
            (list[City], '[{"name": "Oslo"}]', [City("Oslo")]),
            (int, '{"value": 3}', 3),
            (int, " 3\n", 3),
            (bool, "true", True),
            (Colour, '{"value": "red"}', Colour.RED),
            (Literal["a", "b"], '{"value": "b"}', "b"),
            (City | None, '{"value": null}', None),
            (list[Book], 'Here:\n```json\n[{"title": "t"}]\n```\nDone.', [{"title": "t"}]),
        ],
    )
    def test_values(self, type: Any, text: str, value: Any) -> None:
        wanted = OutputType[Any](type)
        assert wanted.decode(text) == value
        assert wanted.schema.schema["type"] == "object", "formats want an object at the top"

    @pytest.mark.parametrize(
        ("type", "text", "problem"),
        [
            (City, "", "the answer is not valid JSON: Expecting value at character 0"),
            (City, "[]", "expected `object`, got `array`"),
            (City, '{"name": "a", "name": "b"}', "the key `name` is there twice in one object"),
            (City, '{"name": "a", "size": 1}', "unknown field `size`; allowed: `name`, `people`"),
            (City, '{"people": 3}', "missing required field `name`"),
            (City, OSLO + OSLO, "the answer is not valid JSON: Extra data at character 34"),
            (City, f"```\n{OSLO}\n```\n```\n{OSLO}\n```", "the answer is not valid JSON: Expecting value at character 0"),
            (list[City], '[{"nam": "Oslo"}]', "`[0]`: unknown field `nam`; allowed: `name`, `people`"),
            (list[City], '{"value": [{"name": 1}]}', "`[0].name`: expected `str`, got `int`"),
            (Colour, '"green"', 'invalid enum value \'green\'; expected one of "red", "blue"'),
            (Model, '{"year": 1}', "Input should be greater than or equal to 1900"),
        ],
    )
    def test_problems_are_said_as_the_model_sees_its_answer(self, type: Any, text: str, problem: str) -> None:
        with pytest.raises(OutputInvalid) as caught:
            OutputType[Any](type).decode(text)
        assert problem in caught.value.problem

    @given(st.text())
    def test_any_text_is_a_value_or_a_problem(self, text: str) -> None:
        try:
            OutputType(City).decode(text)
        except OutputInvalid as error:
            assert error.problem

    @given(st.lists(st.builds(City, st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**63), 2**63 - 1))))
    def test_what_fits_comes_back(self, cities: list[City]) -> None:
        text = json.dumps([{"name": city.name, "people": city.people} for city in cities])
        assert OutputType(list[City]).decode(text) == cities

    def test_a_type_json_cannot_express(self) -> None:
        with pytest.raises(UsageError, match="`Event` cannot be an answer's type: `Event` is not a type JSON can express"):
            Agent(scripted([], "none")).run_sync("Where?", output=asyncio.Event)
