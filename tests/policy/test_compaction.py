"""What stands for the messages that are left out: bounded, sendable, and never a reason to end a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import run_virtual
from tests.policy.test_context import Served, conversation, shortened, turn
from treadle import (
    Agent,
    Compacted,
    ConnectFailed,
    ContextPolicy,
    Limits,
    ModelInfo,
    ModelSummary,
    Room,
    RunResult,
    ScriptedDriver,
    State,
    Summary,
    UsageError,
    local_summary,
    run_to_json,
)
from treadle.core.state import apply
from treadle.values.events import Replied, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import AssistantMessage, Image, Message, Text, ToolCall, ToolMessage, UserMessage
from treadle.values.request import ModelRequest, Omission, Reply
from treadle.values.tokens import Calibration, estimate_tokens
from treadle.values.usage import Usage

MESSAGES = conversation(*(turn(n, text=f"step {n} " + "word " * 200) for n in range(30)))
POLICY = ContextPolicy(window_tokens=8_000)


def room(**settings: Any) -> Room:
    return Room(
        **{
            "driver": Served(),
            "max_chars": 2_000,
            "max_tokens": 500,
            "window_tokens": 8_000,
            "output_tokens": 10_000.0,
            "reasoning_tokens": 10_000.0,
            **settings,
        }
    )


def summed_up(messages: Sequence[Message], **settings: Any) -> str:
    summary = asyncio.run(local_summary(messages, room(**settings)))
    assert summary is not None
    return summary.text


class TestLocalSummary:
    def test_what_the_user_said_first_and_last_is_there(self) -> None:
        rules = [UserMessage(f"rule {n}: never touch {n}" + " at all" * 20) for n in range(40)]
        text = summed_up(rules)
        assert "rule 0:" in text and "rule 39:" in text
        assert "left out" in text.split("The user also said:")[1], "and that some of it is missing is said"
        assert len(text) <= 2_000

    def test_pictures_leave_a_trace(self) -> None:
        assert "[1 attachments left out]" in summed_up([UserMessage("See", (Image(b"x", "image/png"),))])

    @given(st.recursive(st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)), st.integers(1, 5_000))
    def test_any_arguments(self, value: Any, depth: int) -> None:
        deep = "[" * depth + "]" * depth
        calls = (ToolCall("a", "look", json.dumps(value)), ToolCall("b", "look", deep), ToolCall("c", "look", '{"x": "\\ud83d"}'))
        results = [ToolMessage(call.id, "look", "r") for call in calls]
        assert len(summed_up([AssistantMessage(calls), *results])) <= 2_000

    def test_each_call_has_its_own_result_though_ids_come_again(self) -> None:
        """Ids are unique within a turn; many servers begin anew with each."""
        messages: list[Message] = []
        for n in range(3):
            call = ToolCall("call_0", "look", f'{{"n": {n}}}')
            messages += [AssistantMessage((call,)), ToolMessage("call_0", "look", f"saw {n}", is_error=n == 1)]
        text = summed_up(messages)
        assert [f"look(n={n}) -> {'failed: ' if n == 1 else ''}saw {n}" in text for n in range(3)] == [True] * 3

    def test_half_a_surrogate_pair_of_a_models_arguments_can_be_saved(self) -> None:
        call = ToolCall("a", "look", '{"x": "\\ud83d"}')
        messages = conversation(
            [AssistantMessage((call,)), ToolMessage("a", "look", "r")], *(turn(n, text="word " * 200) for n in range(30))
        )
        state, _ = shortened(messages, POLICY, Served())
        run_to_json(RunResult.of(state))


class Endless:
    """A model that does not stop, in one way or another."""

    continuable = False
    schema_support = "none"
    model = "endless/model"

    def __init__(self, delta: Any) -> None:
        self.calibration = Calibration()
        self.delta = delta
        self.sent = 0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        yield self

    async def info(self) -> ModelInfo:
        return ModelInfo(model="m", server="x", window_tokens=4_000)

    @asynccontextmanager
    async def open(self, request: ModelRequest) -> AsyncIterator[Any]:
        self.request = request
        yield self

    omitted: tuple[Omission, ...] = ()
    moved = None

    @property
    def reply(self) -> Reply:
        return Reply(message=AssistantMessage((Text("Goals: some."),)))

    async def __aiter__(self) -> AsyncIterator[Any]:
        while self.sent < 100_000:
            self.sent += 1
            yield (self.delta,)


class TestModelSummary:
    @pytest.mark.parametrize(
        "delta",
        [
            TextDelta(turn=1, text="ten words of text that go on and on here "),
            ThinkingDelta(turn=1, text="ten words of text that go on and on here "),
            ToolCallDelta(turn=1, position=0, name="look", arguments="ten words of text that go on and on here "),
        ],
        ids=["text", "reasoning", "calls"],
    )
    def test_it_is_cut_at_its_bounds(self, delta: Any) -> None:
        driver = Endless(delta)
        summary = asyncio.run(ModelSummary(driver)(MESSAGES, room()))
        assert summary is not None
        assert summary.output_tokens <= 1_000 + 20
        assert summary.reasoning_tokens <= 8_192 + 20
        assert driver.sent < 2_000

    def test_what_is_left_of_the_runs_bounds_is_its_bound(self) -> None:
        driver = Endless(TextDelta(turn=1, text="ten words of text that go on and on here "))
        asyncio.run(ModelSummary(driver)(MESSAGES, room(output_tokens=50.0)))
        assert driver.sent < 10

    def test_its_time_is_bounded(self) -> None:
        class Silent(Endless):
            async def __aiter__(self) -> AsyncIterator[Any]:
                await asyncio.sleep(3_600)
                yield ()

        async def main() -> tuple[Summary | None, float]:
            return await ModelSummary(Silent(None))(MESSAGES, room()), asyncio.get_running_loop().time()

        summary, took_s = run_virtual(main())
        assert summary is not None
        assert (summary.how, took_s) == ("local_summary", pytest.approx(120, abs=1))

    @pytest.mark.parametrize(
        "text", ["word " * 40_000, "汉字" * 20_000, "0123456789" * 4_000], ids=["words", "chinese", "digits"]
    )
    def test_its_question_fits_the_window_of_the_model_that_is_asked(self, text: str) -> None:
        driver = Endless(TextDelta(turn=1, text="x"))
        asyncio.run(ModelSummary(driver)([UserMessage(text)] * 5, room()))
        assert estimate_tokens(str(driver.request.messages[0].content)) < 4_000

    @pytest.mark.parametrize("wrong", [ConnectFailed("no"), UsageError("no"), KeyError("no"), TimeoutError()], ids=str)
    def test_whatever_goes_wrong_local_summary_stands_in_and_it_is_said(self, wrong: Exception) -> None:
        async def broken(dropped: Any, room: Room) -> Summary | None:
            raise wrong

        _, facts = shortened(MESSAGES, ContextPolicy(window_tokens=8_000, compaction=broken), Served())
        [fact] = [f for f in facts if isinstance(f, Compacted)]
        assert fact.how == "local_summary"
        assert fact.problem

    def test_a_compaction_that_gives_a_text(self) -> None:
        async def text(dropped: Any, room: Room) -> Any:
            return "a summary"

        _, facts = shortened(MESSAGES, ContextPolicy(window_tokens=8_000, compaction=text), Served())
        [fact] = [f for f in facts if isinstance(f, Compacted)]
        assert fact.problem == "it gave a str, not a Summary"

    def test_a_users_summary_that_no_json_can_carry(self) -> None:
        async def half(dropped: Any, room: Room) -> Summary | None:
            return Summary(text="\ud83d", how="half")

        state, _ = shortened(MESSAGES, ContextPolicy(window_tokens=8_000, compaction=half), Served())
        run_to_json(RunResult.of(state))

    def test_a_name_is_no_driver(self) -> None:
        with pytest.raises(UsageError, match=r"Agent\("):
            ModelSummary("openai/gpt-5")  # type: ignore[arg-type]


class TestAccounting:
    FACT = Compacted(
        turn=1,
        dropped=(1,),
        summary=None,
        how="model_summary",
        tokens_before=10,
        tokens_after=5,
        usage=Usage(input_tokens=5_000, output_tokens=900),
        output_tokens=900.0,
        reasoning_tokens=70.0,
    )

    @pytest.mark.parametrize("turns", [0, 1])
    def test_what_a_summary_cost_counts_in_the_run(self, turns: int) -> None:
        state = State(run_id="r", model="m", closed=(UserMessage("a"), UserMessage("b"), UserMessage("c")))
        replied = Replied(
            turn=1, message=AssistantMessage((Text("t"),)), finish="end", usage=Usage(input_tokens=10, output_tokens=2)
        )
        for fact in [replied, self.FACT] if turns else [self.FACT, replied]:
            state = apply(state, fact)
        assert state.usage == Usage(input_tokens=5_010, output_tokens=902)
        assert (state.output_tokens, state.reasoning_tokens) == (900.0, 70.0)

    def test_it_counts_for_the_runs_bounds(self) -> None:
        writer = Endless(TextDelta(turn=1, text="ten words of text that go on and on here "))
        driver = Served(8_000, ["Fine, then."])
        agent = Agent(driver, context=ContextPolicy(compaction=ModelSummary(writer)))
        result = agent.run_sync("Go on.", history=MESSAGES, limits=Limits(output_tokens_per_run=300))
        assert result.stop_reason == "output_limit"
        assert result.state.output_tokens < 400


def test_users_messages_alone_can_be_left_out() -> None:
    messages = tuple(UserMessage(f"message {n} " + "word " * 300) for n in range(40))
    state, facts = shortened(messages, ContextPolicy(window_tokens=4_000), Served())
    assert any(isinstance(f, Compacted) for f in facts)
    assert state.closed[0] == messages[0] and state.closed[-1] == messages[-1]
    after_a_turn = conversation(turn(1), *([m] for m in messages))
    state, _ = shortened(after_a_turn, ContextPolicy(window_tokens=4_000), Served())
    assert state.closed[-1] == messages[-1]
    assert len(state.closed) < 12


def test_a_driver_for_summaries_is_asked_for_its_window() -> None:
    writer = ScriptedDriver(["Goals: x"])
    asyncio.run(ModelSummary(writer)(MESSAGES, room()))
    assert estimate_tokens(str(writer.requests[0].messages[0].content)) < 8_000
