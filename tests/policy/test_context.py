"""Shortening a conversation: it ends, keeps what has to stay, never parts a call from its results, and says what it did."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from treadle import (
    Compacted,
    ContextFloorExceedsWindow,
    ContextPlanned,
    ContextPolicy,
    Document,
    Fact,
    Image,
    Limits,
    ModelInfo,
    ModelSummary,
    Options,
    Pruned,
    Room,
    ScriptedDriver,
    Summary,
    UsageError,
    local_summary,
    sliding_window,
)
from treadle.core.state import apply
from treadle.policy.context import Context, droppable
from treadle.policy.prompt_tokens import message_tokens
from treadle.policy.pruning import pays
from treadle.values.history import check_history
from treadle.values.messages import (
    AssistantMessage,
    Message,
    Opaque,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, ToolSpec
from treadle.values.state import State
from treadle.values.text import find_result, reference


class Served(ScriptedDriver):
    """A model whose server says how large its window is, or does not."""

    def __init__(self, window: int | None = None, turns: Any = ()) -> None:
        super().__init__(turns)
        self.window = window
        self.asked = 0

    async def info(self) -> ModelInfo:
        self.asked += 1
        return ModelInfo(model="m", server="scripted", window_tokens=self.window, window_source="GET /props n_ctx")


def request_of(state: State, **settings: Any) -> ModelRequest:
    return ModelRequest(messages=state.messages, turn=state.turn + 1, **settings)


def shortened(
    messages: tuple[Message, ...], policy: ContextPolicy, driver: Any, *, turn: int = 3, **settings: Any
) -> tuple[State, list[Fact]]:
    """Everything that is done before the next request: the state after it, and the facts."""
    state = State(run_id="r", model="m", closed=messages, turn=turn)
    context = Context(policy, (driver,), Limits(), can_read_results=settings.pop("can_read_results", True))
    facts: list[Fact] = []

    async def main() -> State:
        now = state
        while new := await context.before(now, request_of(now, **settings), 0):
            assert len(facts) < 4 * len(messages) + 10, "it goes on for ever"
            for fact in new:
                now = apply(now, fact)
                facts.append(fact)
        return now

    return asyncio.run(main()), facts


words = st.text(st.sampled_from("abc \n0{}日é"), max_size=40)
lengths = st.sampled_from([0, 1, 40, 700, 2_500, 9_000])


@st.composite
def texts(draw: Any) -> str:
    return (draw(words) or "x") + "word " * (draw(lengths) // 5)


@st.composite
def turns(draw: Any) -> list[Message]:
    calls = draw(st.integers(0, 3))
    parts: list[Any] = [Text(draw(texts()))]
    if draw(st.booleans()):
        parts.insert(0, draw(st.sampled_from([Thinking("hm " * 50), Opaque("anthropic", "{}")])))
    parts += [ToolCall(f"call_{n}", "look", '{"what": "%s"}' % ("a" * draw(lengths))) for n in range(calls)]
    results = [ToolMessage(f"call_{n}", "look", draw(texts()), is_error=draw(st.booleans())) for n in range(calls)]
    return [AssistantMessage(tuple(parts)), *results]


@st.composite
def users(draw: Any) -> list[Message]:
    attachments = draw(st.sampled_from([(), (Image(b"x", "image/png"),), (Document(b"x" * 900, "application/pdf"),)]))
    origin = draw(st.sampled_from(["user", "user", "run", "summary"]))
    return [UserMessage(draw(texts()), attachments, pinned=draw(st.integers(0, 5)) == 0, origin=origin)]


@st.composite
def histories(draw: Any) -> tuple[Message, ...]:
    messages: list[Message] = [SystemMessage(draw(texts()))] if draw(st.booleans()) else []
    messages.append(UserMessage(draw(texts())))
    for block in draw(st.lists(st.one_of(turns(), turns(), turns(), users()), max_size=14)):
        messages += block
    return tuple(messages)


class LongSummary:
    """A compaction that ignores its room."""

    async def __call__(self, dropped: Any, room: Room) -> Summary | None:
        return Summary(text="y" * 100_000, how="long")


policies = st.builds(
    ContextPolicy,
    window_tokens=st.sampled_from([None, 60, 300, 1_000, 2_048, 4_096, 30_000]),
    unknown_window_tokens=st.sampled_from([2_000, 20_000]),
    compact_at=st.sampled_from([0.7, 0.8, 1.0]),
    compact_to=st.sampled_from([0.1, 0.5, 0.6]),
    keep_turns=st.integers(1, 6),
    prune=st.sampled_from(["when_it_pays", "at_threshold", "never"]),
    compaction=st.sampled_from([local_summary, sliding_window, LongSummary()]),
)


@settings(max_examples=1_000, deadline=None)
@given(
    histories(),
    policies,
    st.sampled_from([None, 200, 2_000, 10_000]),
    st.sampled_from([None, 100, 5_000]),
    st.sampled_from(["", "Be brief.", "rules " * 900]),
    st.booleans(),
)
def test_it_ends_and_keeps_what_has_to_stay(
    messages: tuple[Message, ...],
    policy: ContextPolicy,
    window: int | None,
    max_tokens: int | None,
    instructions: str,
    with_tools: bool,
) -> None:
    check_history(messages)
    tools = (ToolSpec(name="look", description="look " * 200, parameters={"type": "object"}),) if with_tools else ()
    state = State(run_id="r", model="m", closed=messages, turn=3)
    context = Context(policy, (Served(window),), Limits(), can_read_results=True)
    people = [m for m in messages if isinstance(m, UserMessage) and m.origin == "user"]
    stays = {m.content for m in messages if isinstance(m, UserMessage) and m.pinned} | {people[0].content, people[-1].content}
    last = max((i for i, m in enumerate(messages) if isinstance(m, AssistantMessage)), default=None)
    facts: list[Fact] = []

    def made(now: State) -> ModelRequest:
        return ModelRequest(
            messages=now.messages,
            turn=4,
            instructions=instructions,
            tools=tools,
            options=Options(max_tokens=max_tokens),
        )

    def size(now: State) -> float:
        return sum(message_tokens(m) for m in now.closed)

    async def main() -> State:
        now = state
        while new := await context.before(now, made(now), 0):
            for fact in new:
                assert len(facts) < 4 * len(messages) + 10, "it goes on for ever"
                facts.append(fact)
                before, now = size(now), apply(now, fact)
                if isinstance(fact, Pruned | Compacted):
                    assert size(now) < before, "every step makes it smaller"
                    assert fact.tokens_after < fact.tokens_before
                check_history(now.messages)
                kept = {m.content for m in now.messages if isinstance(m, UserMessage)}
                assert stays <= kept
                assert [m for m in now.messages if isinstance(m, SystemMessage)] == [
                    m for m in messages if isinstance(m, SystemMessage)
                ]
                if last is not None:
                    assert messages[last] in now.messages, "the last turn stays"
        return now

    try:
        now = asyncio.run(main())
    except ContextFloorExceedsWindow as error:
        event("floor")
        assert error.window_tokens is not None
        assert sum(error.floor.values()) > error.window_tokens * 0.99
        assert list(error.floor.values()) == sorted(error.floor.values(), reverse=True)
        return
    event(f"{sum(isinstance(f, Pruned) for f in facts)} pruned, {sum(isinstance(f, Compacted) for f in facts)} compacted")
    assert [m for m in messages if m not in now.originals and m not in now.messages and not isinstance(m, ToolMessage)] == []
    for message in messages:
        if isinstance(message, ToolMessage) and message.is_error and message not in now.originals:
            assert message in now.messages, "errors are never cut"


def turn(n: int, *, result: str = "r", text: str = "t") -> list[Message]:
    return [AssistantMessage((Text(text), ToolCall(f"c{n}", "look", f'{{"n": {n}}}'))), ToolMessage(f"c{n}", "look", result)]


def conversation(*blocks: list[Message]) -> tuple[Message, ...]:
    return (UserMessage("Do it."), *(message for block in blocks for message in block))


LONG = "line of some words\n" * 300  # 5,700 characters


class TestWindow:
    def test_a_small_conversation_asks_nobody(self) -> None:
        driver = Served(100_000)
        _, facts = shortened(conversation(turn(1)), ContextPolicy(), driver)
        assert (facts, driver.asked) == ([], 0)

    def test_the_server_is_asked_once_and_named(self) -> None:
        driver = Served(100_000)
        _, facts = shortened(conversation(turn(1, result=LONG * 3)), ContextPolicy(), driver)
        assert facts == [ContextPlanned(turn=4, model=driver.model, window_tokens=100_000, source="GET /props n_ctx")]
        assert driver.asked == 1

    def test_a_setting_is_asked_of_nobody(self) -> None:
        driver = Served(100_000)
        _, [fact] = shortened(conversation(turn(1, result=LONG * 3)), ContextPolicy(window_tokens=50_000), driver)
        assert isinstance(fact, ContextPlanned)
        assert (fact.window_tokens, fact.source, driver.asked) == (50_000, "setting", 0)

    def test_an_unknown_window_has_a_default_and_a_warning(self) -> None:
        _, [fact] = shortened(conversation(turn(1, result=LONG * 3)), ContextPolicy(), Served(None))
        assert isinstance(fact, ContextPlanned)
        assert (fact.window_tokens, fact.source) == (32_768, "default")
        assert "ContextPolicy(window_tokens=...)" in (fact.warning or "")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"compact_at": 0.4},
            {"compact_to": 0},
            {"window_tokens": 0},
            {"keep_turns": 0},
            {"prune_to_chars": 2_000},
            {"prune_at": 2},
        ],
    )
    def test_a_policy_that_cannot_work(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="cannot work"):
            ContextPolicy(**wrong)


class TestPruning:
    def test_old_results_are_cut_once_and_still_readable(self) -> None:
        messages = conversation(*(turn(n, result=f"{n}\n{LONG}") for n in range(12)))
        policy = ContextPolicy(window_tokens=14_000, keep_turns=5)
        state, facts = shortened(messages, policy, Served())
        [fact] = [f for f in facts if isinstance(f, Pruned)]
        assert fact.results == (2, 4, 6, 8, 10, 12, 14)
        for index in fact.results:
            cut = state.closed[index]
            assert isinstance(cut, ToolMessage)
            assert len(cut.content) <= 500
            assert cut.full == messages[index].content
            assert f'read_result(ref="{reference(cut.full)}")' in cut.content
            assert find_result(state.messages, reference(cut.full)) == messages[index].content
        assert state.closed[15:] == messages[15:], "recent results stay"
        assert fact.tokens_before - fact.tokens_after > 5_000
        again, none = shortened(state.closed, policy, Served())
        assert [f for f in none if isinstance(f, Pruned)] == []
        assert again.closed == state.closed

    def test_it_has_to_pay_for_the_cache_it_breaks(self) -> None:
        """Two long results at the start of a long conversation: cutting them has the rest of it read again."""
        old = [turn(n, result=LONG) for n in range(2)]
        rest = [turn(n, text="word " * 800) for n in range(2, 30)]
        policy = ContextPolicy(window_tokens=100_000)
        _, warm = shortened(conversation(*old, *rest), policy, Served(), turn=10)
        assert not any(isinstance(f, Pruned) for f in warm)
        _, threshold = shortened(conversation(*old, *rest), replace(policy, prune="at_threshold", prune_at=0.2), Served())
        assert any(isinstance(f, Pruned) for f in threshold)

    def test_a_cold_cache_costs_nothing(self) -> None:
        assert pays(reclaimed_tokens=1, rewritten_tokens=1_000_000, expected_turns=1, is_cold=True)
        assert not pays(reclaimed_tokens=0, rewritten_tokens=0, expected_turns=9, is_cold=True)

    @given(st.floats(1, 1e6), st.floats(0, 1e6), st.integers(0, 100))
    def test_more_turns_to_come_never_speak_against_it(self, reclaimed: float, rewritten: float, turns: int) -> None:
        now = pays(reclaimed_tokens=reclaimed, rewritten_tokens=rewritten, expected_turns=turns, is_cold=False)
        later = pays(reclaimed_tokens=reclaimed, rewritten_tokens=rewritten, expected_turns=turns + 1, is_cold=False)
        assert later or not now

    def test_the_same_cut_gives_the_same_bytes(self) -> None:
        messages = conversation(*(turn(n, result=LONG) for n in range(12)))
        policy = ContextPolicy(window_tokens=12_000)
        assert shortened(messages, policy, Served())[0].closed == shortened(messages, policy, Served())[0].closed


class TestCompaction:
    MESSAGES = conversation(*(turn(n, text=f"step {n} " + "word " * 200) for n in range(30)))
    POLICY = ContextPolicy(window_tokens=8_000)

    def test_the_oldest_turns_become_a_summary(self) -> None:
        state, facts = shortened(self.MESSAGES, self.POLICY, Served())
        [fact] = [f for f in facts if isinstance(f, Compacted)]
        assert state.closed[0] == self.MESSAGES[0]
        assert state.closed[1] == fact.summary
        assert fact.summary is not None and fact.summary.origin == "summary"
        assert "look(n=3) -> r" in fact.summary.content
        assert state.closed[2:] == self.MESSAGES[-len(state.closed) + 2 :]
        assert state.originals == self.MESSAGES[1 : len(state.originals) + 1]
        assert fact.tokens_after <= 4_000 + 800
        assert fact.how == "local_summary"

    def test_a_second_compaction_takes_the_first_summary_in(self) -> None:
        state, _ = shortened(self.MESSAGES, self.POLICY, Served())
        longer = state.closed + tuple(m for n in range(30, 60) for m in turn(n, text=f"step {n} " + "word " * 200))
        again, _ = shortened(longer, self.POLICY, Served())
        assert [m.origin for m in again.closed if isinstance(m, UserMessage)] == ["user", "summary"]
        assert "look(n=3)" in str(again.closed[1].content), "what the first one said is in the second"

    def test_nothing_may_stand_for_it(self) -> None:
        state, [_, fact] = shortened(self.MESSAGES, replace(self.POLICY, compaction=sliding_window), Served())
        assert isinstance(fact, Compacted)
        assert (fact.summary, fact.how) == (None, "sliding_window")
        assert [m for m in state.closed if isinstance(m, UserMessage)] == [self.MESSAGES[0]]

    def test_a_model_writes_it(self) -> None:
        writer = ScriptedDriver(["Goals: do it.\nOpen steps: step 31."], model="cheap/model")
        state, facts = shortened(self.MESSAGES, replace(self.POLICY, compaction=ModelSummary(writer)), Served())
        [fact] = [f for f in facts if isinstance(f, Compacted)]
        assert fact.how == "model_summary"
        assert "Open steps: step 31." in str(state.closed[1].content)
        [asked] = writer.requests
        assert "step 3 word" in str(asked.messages[0].content)
        assert asked.tools == ()
        assert fact.output_tokens > 0

    @pytest.mark.parametrize("turns", [[], [AssistantMessage((Thinking("hm"),))]], ids=["error", "nothing said"])
    def test_a_model_that_cannot_is_stood_in_for(self, turns: list[Any]) -> None:
        from treadle import ServerError

        writer = ScriptedDriver(turns or [ServerError("down", status=500)])
        _, facts = shortened(self.MESSAGES, replace(self.POLICY, compaction=ModelSummary(writer)), Served())
        [fact] = [f for f in facts if isinstance(f, Compacted)]
        assert fact.how == "local_summary"

    def test_the_runs_own_model_writes_it_by_default(self) -> None:
        driver = Served(8_000, ["Goals: all of them."])
        state, _ = shortened(self.MESSAGES, ContextPolicy(compaction=ModelSummary()), driver)
        assert "Goals: all of them." in str(state.closed[1].content)

    def test_it_does_not_happen_again_at_once(self) -> None:
        """After a compaction there is room for many turns, or the prefix would move with each of them."""
        state, _ = shortened(self.MESSAGES, self.POLICY, Served())
        longer = state.closed + tuple(m for n in range(30, 35) for m in turn(n, text=f"step {n} " + "word " * 200))
        assert [f for f in shortened(longer, self.POLICY, Served())[1] if not isinstance(f, ContextPlanned)] == []


class TestFloor:
    def test_it_is_listed(self) -> None:
        with pytest.raises(ContextFloorExceedsWindow) as caught:
            shortened(
                (UserMessage("first " * 1_000), UserMessage("keep " * 900, pinned=True), *turn(1), UserMessage("last " * 200)),
                ContextPolicy(window_tokens=1_200),
                Served(),
                instructions="rules " * 500,
                tools=(ToolSpec(name="look", description="look " * 300, parameters={"type": "object"}),),
            )
        error = caught.value
        assert list(error.floor) == [
            "the user's first request",
            "pinned messages",
            "instructions",
            "1 tools",
            "the user's last request",
            "the last turn",
        ]
        assert "the user's first request 1," in str(error)
        assert error.hint

    def test_an_assumed_window_ends_no_run(self) -> None:
        state, facts = shortened((UserMessage("first " * 9_000),), ContextPolicy(unknown_window_tokens=2_000), Served(None))
        assert len(state.closed) == 1
        assert [type(f) for f in facts] == [ContextPlanned]


def test_calls_stay_with_their_results() -> None:
    messages = conversation(*(turn(n) for n in range(8)))
    assert droppable(messages, 5) == (1, 2, 3, 4, 5, 6)
    assert droppable(messages, 1) == tuple(range(1, 15))
    assert droppable((UserMessage("a"), UserMessage("b")), 1) == ()
