"""The guard in the loop, over bytes on a real socket: what the model is told, what runs, how the run ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness import ByteServer, Exchange, call_chunk, finish_chunk, reply, run_virtual, sse
from treadle import (
    Agent,
    Ended,
    Event,
    HttpDriver,
    Limits,
    RunResult,
    ToolError,
    ToolFinished,
    ToolMessage,
    ToolStarted,
    tool,
)
from treadle.core.state import fold
from treadle.values.events import Fact
from treadle.values.history import check_history
from treadle.wire.chat import ChatCodec

FINE = sse(*reply("Fine"))
SAME_3 = "[This call has now given the same result 3 times. Calling it again will change nothing.]"
REFUSED = (
    "Error: refused: this exact call has given the same result 3 times and nothing has changed since. "
    "Use the result you have, call something else, or answer."
)

ran: list[str] = []
facts: list[Fact] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()
    facts.clear()


@tool(concurrency="read_only")
async def read(path: str, lines: int = 10) -> str:
    """Read a file."""
    ran.append(path)
    return f"text of {path}"


@tool(concurrency="read_only")
async def progress() -> str:
    """How far the job is."""
    ran.append("progress")
    return f"{len(ran) * 10} %"


@tool
async def edit(change: int) -> str:
    """Change a file."""
    ran.append(f"edit {change}")
    return "ok"


@tool
async def fetch(n: int) -> str:
    """Fetch a page."""
    ran.append(f"fetch {n}")
    raise ToolError(f"HTTP 404 for {n}")


class _Memory:
    async def append(self, run_id: str, fact: Fact) -> None:
        facts.append(fact)


def turn(*calls: tuple[str, Any]) -> Exchange:
    return sse(*reply(calls=list(calls)))


def play(*script: Exchange, limits: Limits = Limits()) -> tuple[RunResult, list[str], list[Event]]:
    """The result, what the model was told as each call's result, and the events."""

    async def main() -> tuple[RunResult, list[str], list[Event]]:
        async with ByteServer(script, check_prefix=True) as server:
            driver = HttpDriver(ChatCodec(), server.url, "m")
            agent = Agent(driver, tools=[read, progress, edit, fetch], limits=limits, journal=_Memory())
            events: list[Event] = []
            async with agent.stream("Hi") as run:
                async for event in run:
                    events.append(event)
            last = server.posts[-1].json["messages"]
            return run.result, [message["content"] for message in last if message["role"] == "tool"], events

    result, told, events = run_virtual(main())
    check_history(result.messages)
    assert fold(facts) == result.state, "a journal folds to the same state, the guard's counts included"
    return result, told, events


def finished(events: list[Event]) -> list[ToolFinished]:
    return [e for e in events if isinstance(e, ToolFinished)]


class TestLoops:
    def test_told_refused_stopped(self) -> None:
        result, told, events = play(*[turn(("read", {"path": "a"}))] * 6)
        assert result.stop_reason == "loop_detected"
        assert told == ["text of a", "text of a", f"text of a\n{SAME_3}", REFUSED, REFUSED]
        assert [bool(e.refused) for e in finished(events)] == [False, False, False, True, True, True]
        assert sum(isinstance(e, ToolStarted) for e in events) == 3
        assert ran == ["a"] * 3
        assert events[-1] == Ended(stop_reason="loop_detected")

    def test_a_model_that_listens_goes_on(self) -> None:
        result, told, _ = play(*[turn(("read", {"path": "a"}))] * 4, turn(("read", {"path": "b"})), FINE)
        assert (result.stop_reason, result.text) == ("end", "Fine")
        assert told[3:] == [REFUSED, "text of b"]

    def test_after_a_change_the_same_call_is_news(self) -> None:
        steps = [step for n in range(8) for step in (turn(("read", {"path": "a"})), turn(("edit", {"change": n})))]
        result, told, _ = play(*steps, FINE)
        assert result.stop_reason == "end"
        assert told == ["text of a", "ok"] * 8

    def test_polling_a_value_that_changes(self) -> None:
        result, told, _ = play(*[turn(("progress", {}))] * 10, FINE)
        assert result.stop_reason == "end"
        assert told == [f"{n} %" for n in range(10, 101, 10)]

    def test_the_same_arguments_in_other_words(self) -> None:
        spellings = ['{"path": "a", "lines": 5}', '{"lines":5,"path":"a"}', '{ "path": "\\u0061", "lines": 5 }']
        script = [sse(call_chunk(0, id=f"c{n}", name="read", arguments=spellings[n % 3]), finish_chunk()) for n in range(6)]
        result, _, _ = play(*script)
        assert (result.stop_reason, ran) == ("loop_detected", ["a"] * 3)

    def test_copies_in_one_turn_all_run_and_count_once(self) -> None:
        result, told, _ = play(turn(*[("read", {"path": "a"})] * 8), FINE)
        assert (result.stop_reason, told) == ("end", ["text of a"] * 8)

    def test_copies_of_a_refused_call_do_not_run(self) -> None:
        result, _, _ = play(*[turn(*[("read", {"path": "a"})] * 2)] * 6)
        assert result.stop_reason == "loop_detected"
        assert ran == ["a"] * 6, "two in each of three turns"

    def test_two_read_only_calls_in_turns(self) -> None:
        script = [turn(("read", {"path": "ab"[n % 2]})) for n in range(11)]
        result, told, _ = play(*script)
        assert result.stop_reason == "loop_detected"
        assert told[4:6] == [f"text of a\n{SAME_3}", f"text of b\n{SAME_3}"]
        assert told[6:] == [REFUSED] * 4
        assert len(ran) == 6


class TestFailures:
    def test_different_failing_calls_of_one_tool(self) -> None:
        result, told, events = play(*[turn(("fetch", {"n": n})) for n in range(6)])
        assert result.stop_reason == "tool_failures"
        assert told == [
            "Error: HTTP 404 for 0",
            "Error: HTTP 404 for 1",
            "Error: HTTP 404 for 2\n[fetch has now failed 3 times in a row. Try another way, or say what does not work.]",
            "Error: refused: fetch has failed 3 times in a row. Do something else first: another tool, or tell the user what "
            "does not work.",
            "Error: HTTP 404 for 4\n[fetch has now failed 3 times in a row. Try another way, or say what does not work.]",
        ]
        assert [bool(e.refused) for e in finished(events)] == [False, False, False, True, False, True]
        assert ran == ["fetch 0", "fetch 1", "fetch 2", "fetch 4"]

    def test_a_tool_that_does_not_exist(self) -> None:
        result, told, events = play(*[turn(("grep", {"n": n})) for n in range(6)])
        assert result.stop_reason == "tool_failures"
        assert told[0] == "Error: there is no tool named 'grep'. Tools: edit, fetch, progress, read."
        assert told[2].endswith("[grep has now failed 3 times in a row. Try another way, or say what does not work.]")
        assert told[3].startswith("Error: refused: grep has failed 3 times in a row.")
        assert not any(isinstance(e, ToolStarted) for e in events)

    def test_arguments_that_are_never_valid(self) -> None:
        result, told, _ = play(*[turn(("edit", {"change": f"x{n}"})) for n in range(6)])
        assert (result.stop_reason, ran) == ("tool_failures", [])
        assert told[0].startswith("Error: invalid arguments: `change`")
        assert told[3].startswith("Error: refused: edit has failed 3 times in a row.")

    def test_a_model_that_does_something_else_may_try_again(self) -> None:
        script = [turn(("fetch", {"n": n})) for n in range(4)]
        result, told, _ = play(*script, turn(("read", {"path": "a"})), turn(("fetch", {"n": 9})), FINE)
        assert result.stop_reason == "end"
        assert told[-1].startswith("Error: HTTP 404 for 9")

    def test_failures_of_one_turn_are_read_before_the_run_ends_for_them(self) -> None:
        """Six paths guessed in one turn are one attempt: the model has not seen a single failure yet."""
        result, told, _ = play(turn(*[("fetch", {"n": n}) for n in range(6)]), turn(("read", {"path": "a"})), FINE)
        assert result.stop_reason == "end"
        assert told[-1] == "text of a"

    def test_a_success_clears_the_count_of_the_run(self) -> None:
        script = [turn(("fetch" if n % 3 else "read", {"n": n} if n % 3 else {"path": str(n)})) for n in range(9)]
        result, _, _ = play(*script, FINE)
        assert result.stop_reason == "end"

    def test_calls_that_were_not_run_for_a_cut_are_no_failures_of_the_tool(self) -> None:
        cut = sse(*reply(calls=[("read", {"path": "a"})], finish="new_reason"))
        result, told, _ = play(*[cut] * 5, turn(("read", {"path": "a"})), FINE)
        assert result.stop_reason == "end"
        assert told[-1] == "text of a"

    def test_a_server_that_never_says_why_it_stops_is_not_asked_for_ever(self) -> None:
        cut = sse(*reply(calls=[("read", {"path": "a"})], finish="new_reason"))
        result, _, _ = play(*[cut] * 6)
        assert result.stop_reason == "tool_failures"


def test_what_the_model_is_told_is_in_the_messages_too() -> None:
    result, _, _ = play(*[turn(("read", {"path": "a"}))] * 3, FINE)
    last = result.messages[-2]
    assert isinstance(last, ToolMessage)
    assert (last.content, last.note, last.is_error) == ("text of a", SAME_3[1:-1], False)


def test_a_new_run_begins_with_a_clean_slate() -> None:
    async def main() -> None:
        script = [turn(("read", {"path": "a"}))] * 2 + [FINE]
        async with ByteServer(script * 4) as server:
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[read])
            history: Any = ()
            for _ in range(4):
                result = await agent.run("Hi", history=history)
                assert result.stop_reason == "end"
                history = result.messages
            assert ran == ["a"] * 8

    run_virtual(main())
