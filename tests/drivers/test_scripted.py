"""The scripted driver, as a user's test would have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import run_virtual
from treadle import Agent, Limits, Overloaded, Reply, ScriptedDriver, TextDelta, UsageError, calls, tool
from treadle.values.messages import AssistantMessage, Text, Thinking
from treadle.values.ports import Driver


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Weather in a city."""
    return {"Oslo": "4 C, snow"}.get(city, "18 C")


def test_a_users_test() -> None:
    driver = ScriptedDriver([calls(("get_weather", {"city": "Oslo"}), text="I look."), "It is cold."])
    result = Agent(driver, tools=[get_weather]).run_sync("Weather?")
    assert (result.text, result.stop_reason, result.turns) == ("It is cold.", "end", 2)
    assert driver.requests[1].messages[-1].content == "4 C, snow"  # type: ignore[union-attr]
    assert isinstance(driver, Driver)


def test_errors_are_turns_too_and_are_retried() -> None:
    driver = ScriptedDriver([Overloaded("busy"), lambda request: f"attempt {request.attempt}"])

    async def main() -> str:
        return (await Agent(driver).run("Hi")).text

    assert run_virtual(main()) == "attempt 2"


def test_a_script_that_is_too_short_says_so() -> None:
    driver = ScriptedDriver([calls(("get_weather", {"city": "Oslo"}))])
    with pytest.raises(UsageError, match="the script has 1 turns"):
        Agent(driver, tools=[get_weather]).run_sync("Hi")


def test_a_reply_may_have_any_finish() -> None:
    cut = Reply(message=AssistantMessage((Text("half"),)), finish="length")
    result = Agent(ScriptedDriver([cut])).run_sync("Hi")
    assert (result.text, result.stop_reason) == ("half", "output_limit")


def test_what_was_shown_before_a_bound_is_kept() -> None:
    result = Agent(ScriptedDriver(["one two three " * 100]), limits=Limits(output_tokens_per_turn=5)).run_sync("Hi")
    assert result.stop_reason == "output_limit"
    assert result.text.startswith("one two three one")
    assert len(result.text) < 40


@given(st.text(max_size=60), st.text(max_size=20))
def test_the_deltas_come_to_the_text(text: str, thinking: str) -> None:
    async def main() -> tuple[str, str]:
        message = AssistantMessage((Thinking(thinking), Text(text)))
        async with Agent(ScriptedDriver([message])).stream("Hi") as run:
            shown = "".join([event.text async for event in run if isinstance(event, TextDelta)])
        return shown, run.result.text

    assert run_virtual(main()) == (text, text)
