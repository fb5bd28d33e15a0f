"""`output=` on the real llama.cpp server with the tiny model, which by itself knows nothing of forms. Not skipped anywhere.

In Chat Completions the server decodes by the schema's grammar, so even this model answers in the form, whatever it means to say. In
the Anthropic format llama.cpp ignores a schema, so the model is asked in words, and cannot do it: then the run has to say so.
"""

from __future__ import annotations

import asyncio
import enum
import json
from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest

from treadle import Agent, LlamaServer, Options, OutputInvalid, Prompted, Replied, ToolFinished, tool
from treadle.drivers.http import HttpDriver
from treadle.values.history import check_history
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.responses import ResponsesCodec

EXACT = Options(temperature=0.0, max_tokens=300)
PARIS = "What's the weather in Paris?"


class Sky(enum.Enum):
    CLEAR = "clear"
    CLOUDY = "cloudy"


@dataclass
class Wind:
    force: Literal[1, 2, 3]
    gusts: bool


@dataclass
class Weather:
    sky: Sky
    warm: bool
    degrees: Literal[-1, 0, 18]
    winds: list[Wind]


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Get the weather for a city"""
    return "18 C, sunny"


def is_weather(value: Any) -> bool:
    return (
        isinstance(value, Weather)
        and isinstance(value.sky, Sky)
        and type(value.warm) is bool
        and value.degrees in (-1, 0, 18)
        and all(wind.force in (1, 2, 3) and type(wind.gusts) is bool for wind in value.winds)
    )


class TestHeldByGrammar:
    @pytest.mark.parametrize("options", [EXACT, *(Options(temperature=1.2, seed=seed, max_tokens=300) for seed in range(3))])
    def test_the_first_answer_is_in_the_form(self, llamacpp: LlamaServer, options: Options) -> None:
        result = Agent(llamacpp.driver, options=options).run_sync(PARIS, output=Weather)
        assert is_weather(result.output)
        assert result.turns == 1
        assert json.loads(result.text).keys() == {field.name for field in fields(Weather)}

    def test_a_value_that_is_no_object(self, llamacpp: LlamaServer) -> None:
        result = Agent(llamacpp.driver, options=EXACT).run_sync("Is it warm in Paris?", output=bool)
        assert type(result.output) is bool
        assert json.loads(result.text) == {"value": result.output}

    def test_with_tools_the_model_may_call_them_first_and_is_held_last(self, llamacpp: LlamaServer) -> None:
        async def main() -> None:
            agent = Agent(llamacpp.driver, tools=[get_weather], options=EXACT)
            async with agent.stream(PARIS, output=Weather) as run:
                events = [event async for event in run]
            assert [event.result.content for event in events if isinstance(event, ToolFinished)] == ["18 C, sunny"]
            assert [event.finish for event in events if isinstance(event, Replied)] == ["tool_use", "end", "end"]
            assert [event.why for event in events if isinstance(event, Prompted)] == ["output"]
            assert is_weather(run.result.output)
            assert run.result.stop_reason == "end"
            check_history(run.result.messages)

        asyncio.run(main())


@pytest.mark.parametrize("codec", [AnthropicCodec(), ResponsesCodec()], ids=["anthropic", "responses"])
@pytest.mark.parametrize("tools", [(), (get_weather,)], ids=["without tools", "with tools"])
class TestAskedInWords:
    """Formats in which llama.cpp ignores a schema. Whoever runs a model that can write JSON gets a value here, too."""

    def test_a_model_that_cannot_is_not_believed(self, llamacpp: LlamaServer, codec: Any, tools: Any) -> None:
        driver = HttpDriver(codec, llamacpp.base_url, "tiny")
        with pytest.raises(OutputInvalid) as caught:
            Agent(driver, tools=tools, options=EXACT).run_sync(PARIS, output=bool)
        result = caught.value.result
        assert result is not None
        assert result.output is None
        assert caught.value.problem
        assert caught.value.problem not in result.text
        check_history(result.messages)
        asked = [message for message in result.messages if getattr(message, "origin", None) == "run"]
        assert len(asked) == (2 if tools else 1), "the form, where it was not in the instructions, and one correction"
        assert all('"boolean"' in str(message.content) for message in asked)
