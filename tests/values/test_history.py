"""Histories: the rules, their repair, and what a strict server makes of the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import ByteServer, check_chat_history, reply, run_virtual, sse
from treadle import (
    Agent,
    Asked,
    AssistantMessage,
    Ended,
    Event,
    HistoryError,
    HttpDriver,
    Message,
    ModelRequest,
    Repaired,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    TreadleError,
    UserMessage,
)
from treadle.values.history import check_history, repaired
from treadle.wire.chat import ChatCodec
from treadle.wire.chat_requests import ChatEncoder
from treadle.wire.dialects import Dialect

ids = st.sampled_from(["a", "b", "c", "d"])
texts = st.text(max_size=5)
sources: Any = st.sampled_from(["reasoning_content", "reasoning", "content"])
calls = st.builds(
    ToolCall, ids, st.sampled_from(["look", "write", "", "no such name!"]), st.sampled_from(["{}", '{"n": 1}', "{", "", "3"])
)
parts = st.builds(Text, texts) | st.builds(Thinking, texts, sources, st.none() | texts) | calls


def _own_ids(content: Sequence[Any]) -> AssistantMessage:
    seen = {part.id: part for part in content if isinstance(part, ToolCall)}
    return AssistantMessage(tuple(part for part in content if not isinstance(part, ToolCall) or seen[part.id] is part))


users = st.builds(UserMessage, texts)
assistants = st.lists(parts, max_size=4).map(_own_ids)
results = st.builds(ToolMessage, ids, st.just("look"), texts, is_error=st.booleans())
histories = st.lists(users | assistants | results, max_size=12)


@st.composite
def valid_histories(draw: st.DrawFn) -> list[Message]:
    messages: list[Message] = [SystemMessage(draw(texts))] if draw(st.booleans()) else []
    for item in draw(st.lists(users | assistants.filter(lambda message: message.content != ()), max_size=8)):
        messages.append(item)
        if isinstance(item, AssistantMessage):
            messages += [ToolMessage(call.id, call.name, draw(texts), is_error=draw(st.booleans())) for call in item.calls]
    return messages


def sent(messages: Sequence[Message], instructions: str | None = None) -> list[dict[str, Any]]:
    """What a request with these messages holds, as a strict server sees it."""
    body = ChatEncoder("m", Dialect()).encode(ModelRequest(messages=tuple(messages), instructions=instructions))
    return json.loads(body)["messages"]


class TestAnyHistory:
    @given(histories)
    def test_repaired_it_passes(self, history: list[Message]) -> None:
        messages, repairs = repaired(history)
        check_history(messages)
        assert all(0 <= repair.index < len(history) and repair.what for repair in repairs)

    @given(histories)
    def test_repairing_twice_changes_nothing(self, history: list[Message]) -> None:
        messages, _ = repaired(history)
        assert repaired(messages) == (messages, [])

    @given(histories)
    def test_it_is_mended_if_and_only_if_it_is_broken(self, history: list[Message]) -> None:
        messages, repairs = repaired(history)
        try:
            check_history(history)
        except HistoryError:
            assert repairs
            assert messages != tuple(history)
        else:
            assert (messages, repairs) == (tuple(history), [])

    @given(valid_histories())
    def test_a_valid_one_is_left_as_it_is(self, history: list[Message]) -> None:
        check_history(history)
        assert repaired(history) == (tuple(history), [])

    @given(histories)
    def test_what_was_said_is_kept(self, history: list[Message]) -> None:
        """Repairs add and drop results and drop empty turns; no other message is changed, dropped or moved."""
        messages, _ = repaired(history)
        kept = [message for message in history if not isinstance(message, ToolMessage) and message != AssistantMessage(())]
        assert [message for message in messages if not isinstance(message, ToolMessage)] == kept
        added = [m for m in messages if isinstance(m, ToolMessage) and m not in history]
        assert all(message.is_error and "No result was recorded" in message.content for message in added)

    @given(histories, st.none() | st.just("Be brief."))
    def test_a_strict_server_takes_it(self, history: list[Message], instructions: str | None) -> None:
        messages, _ = repaired([*history, UserMessage("Hi")])
        check_chat_history(sent(messages, instructions))

    @given(valid_histories())
    def test_a_strict_server_takes_a_valid_one(self, history: list[Message]) -> None:
        check_chat_history(sent(repaired([*history, UserMessage("Hi")])[0]))


CALL_A, CALL_B = ToolCall("a", "look", "{}"), ToolCall("b", "look", "{}")
ASKED = UserMessage("Hi")
CALLED = AssistantMessage((CALL_A, CALL_B))
A, B = ToolMessage("a", "look", "saw a"), ToolMessage("b", "look", "saw b")
MISSING_A, MISSING_B = (ToolMessage(id, "look", "No result was recorded for this call.", is_error=True) for id in "ab")
SAID = AssistantMessage((Text("Done"),))


@pytest.mark.parametrize(
    ("history", "messages", "repairs"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param([ASKED, CALLED, A, B, SAID], [ASKED, CALLED, A, B, SAID], [], id="valid"),
        pytest.param(
            [ASKED, CALLED, A],
            [ASKED, CALLED, A, MISSING_B],
            [(1, "no result followed the call 'b'; one was added")],
            id="a result is missing at the end",
        ),
        pytest.param(
            [ASKED, CALLED, B, ASKED],
            [ASKED, CALLED, MISSING_A, B, ASKED],
            [(1, "no result followed the call 'a'; one was added")],
            id="a result is missing in the middle",
        ),
        pytest.param(
            [ASKED, CALLED],
            [ASKED, CALLED, MISSING_A, MISSING_B],
            [(1, "no result followed the call 'a'; one was added"), (1, "no result followed the call 'b'; one was added")],
            id="all results are missing",
        ),
        pytest.param(
            [ASKED, CALLED, B, A], [ASKED, CALLED, A, B], [(1, "results were put in call order")], id="results in another order"
        ),
        pytest.param(
            [ASKED, CALLED, A, A, B], [ASKED, CALLED, A, B], [(3, "a second result for 'a'; dropped")], id="a second result"
        ),
        pytest.param(
            [ASKED, A], [ASKED], [(1, "a result for 'a' answers no call before it; dropped")], id="a result without a call"
        ),
        pytest.param(
            [CALLED, A, ASKED, B],
            [CALLED, A, MISSING_B, ASKED],
            [
                (0, "no result followed the call 'b'; one was added"),
                (3, "a result for 'b' answers no call before it; dropped"),
            ],
            id="a result that comes too late",
        ),
        pytest.param(
            [ASKED, AssistantMessage(()), ASKED], [ASKED, ASKED], [(1, "an empty assistant message; dropped")], id="an empty turn"
        ),
        pytest.param(
            [AssistantMessage(()), A],
            [],
            [(0, "an empty assistant message; dropped"), (1, "a result for 'a' answers no call before it; dropped")],
            id="a result after an empty turn",
        ),
        pytest.param(
            [CALLED, A, B, CALLED, A, B], [CALLED, A, B, CALLED, A, B], [], id="the ids of one turn again in a later one"
        ),
    ],
)
def test_each_repair(history: list[Message], messages: list[Message], repairs: list[tuple[int, str]]) -> None:
    assert repaired(history) == (tuple(messages), [Repaired(index=index, what=what) for index, what in repairs])


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([ASKED, A], "message 1 is a result for the call 'a'"),
        ([CALLED, B, A], "message 1 is a result for the call 'b'"),
        ([CALLED, A, ASKED], "message 2 comes before the result of the call 'b'"),
        ([CALLED, A], "ends without a result for the call 'b'"),
        ([ASKED, AssistantMessage(())], "message 1 is an empty assistant message"),
    ],
)
def test_the_checker_names_the_message(history: list[Message], said: str) -> None:
    with pytest.raises(HistoryError, match=said):
        check_history(history)


class TestWhatAStrictServerRefuses:
    """Shapes that pass the rules of results and are refused by strict servers all the same."""

    @pytest.mark.parametrize(
        "history",
        [
            pytest.param([AssistantMessage((CALL_A, CALL_A)), A, A], id="one id for two calls of a turn"),
            pytest.param([AssistantMessage((CALL_A, CALL_A)), A], id="one id for two calls of a turn, one result"),
            pytest.param([AssistantMessage((ToolCall("", "look", "{}"),)), ToolMessage("", "look", "x")], id="an empty id"),
            pytest.param([ASKED, SystemMessage("Be brief.")], id="a system message that is not the first"),
            pytest.param([SystemMessage("One."), SystemMessage("Two.")], id="two system messages"),
            pytest.param([AssistantMessage((Text(""),))], id="a turn of empty text"),
            pytest.param([AssistantMessage((Thinking("hm"),))], id="a turn of reasoning alone"),
            pytest.param([AssistantMessage((ToolCall("a", "", "{"),)), A], id="no name, and arguments that are no JSON"),
            pytest.param([AssistantMessage((ToolCall("a", "x" * 200 + "/é", "[]"),)), A], id="a name that is none"),
        ],
    )
    def test_is_repaired_or_refused(self, history: list[Message]) -> None:
        try:
            messages, _ = repaired([*history, ASKED])
        except HistoryError as error:
            assert any(f" {index} " in error.message for index in range(len(history)))
            return
        check_chat_history(sent(messages))
        assert repaired(messages) == (messages, [])

    def test_a_system_message_next_to_the_agents_instructions(self) -> None:
        messages, _ = repaired([SystemMessage("Be brief."), ASKED])
        check_chat_history(sent(messages, "Be kind."))

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(AssistantMessage("Done"), id="a turn whose content is a text"),  # type: ignore[arg-type]
            pytest.param(UserMessage(None), id="a question that is None"),  # type: ignore[arg-type]
            pytest.param(UserMessage([{"type": "text", "text": "Hi"}]), id="a question in parts"),  # type: ignore[arg-type]
            pytest.param(AssistantMessage((ToolCall("a", "look", {"n": 1}),)), id="arguments as an object"),  # type: ignore[arg-type]
            pytest.param(AssistantMessage(({"type": "text", "text": "Hi"},)), id="a part that is a dict"),  # type: ignore[arg-type]
        ],
    )
    def test_a_message_with_the_wrong_types_in_it_is_refused_with_its_index(self, message: Message) -> None:
        with pytest.raises(HistoryError, match=r"\b1\b"):
            repaired([ASKED, message, ASKED])


@pytest.mark.parametrize("item", [None, "Hi", 3, Text("Hi"), CALL_A, [ASKED], UserMessage])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_what_is_no_message_is_refused_with_its_index(item: Any, index: int) -> None:
    history: list[Any] = [ASKED, SAID, ASKED, SAID]
    history.insert(index, item)
    with pytest.raises(HistoryError, match=rf"item {index} of the history is a {type(item).__name__}") as caught:
        repaired(history)
    assert caught.value.hint


def ask(history: Sequence[Message], prompt: str = "Go on", **settings: Any) -> tuple[list[Event], list[Any]]:
    """The events of a run with this history, and the messages it sent."""

    async def main() -> tuple[list[Event], list[Any]]:
        async with ByteServer([sse(*reply("Fine"))]) as server:
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), **settings)
            async with agent.stream(prompt, history=history) as run:
                events = [event async for event in run]
            return events, server.posts[0].json["messages"]

    return run_virtual(main())


class TestRun:
    def test_repairs_are_told_right_after_the_run_began(self) -> None:
        events, messages = ask([A, ASKED, CALLED, B, B, AssistantMessage(())])
        asked = events[0]
        assert isinstance(asked, Asked)
        assert events[1:5] == [
            Repaired(index=0, what="a result for 'a' answers no call before it; dropped"),
            Repaired(index=4, what="a second result for 'b'; dropped"),
            Repaired(index=2, what="no result followed the call 'a'; one was added"),
            Repaired(index=5, what="an empty assistant message; dropped"),
        ]
        assert not any(isinstance(event, Repaired) for event in events[5:])
        assert asked.messages == (ASKED, CALLED, MISSING_A, B, UserMessage("Go on"))
        assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
        assert events[-1] == Ended(stop_reason="end")

    def test_a_valid_history_is_not_mentioned(self) -> None:
        events, _ = ask([ASKED, CALLED, A, B, SAID])
        assert not any(isinstance(event, Repaired) for event in events)

    def test_the_next_run_needs_no_repair(self) -> None:
        async def main() -> None:
            async with ByteServer([sse(*reply("One")), sse(*reply("Two"))], check_prefix=True) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"))
                first = await agent.run("Go on", history=[ASKED, CALLED, B])
                assert repaired(first.messages) == (first.messages, [])
                assert (await agent.run("More", history=first.messages)).text == "Two"

        run_virtual(main())

    @given(histories)
    def test_any_history_is_sent_in_a_form_that_the_server_takes(self, history: list[Message]) -> None:
        events, messages = ask(history)
        check_chat_history(messages)
        assert isinstance(events[0], Asked)
        repairs = repaired([*history, UserMessage("Go on")])[1]
        assert events[1 : 1 + len(repairs)] == repairs
        assert events[-1] == Ended(stop_reason="end")

    def test_what_is_no_message_fails_before_anything_is_sent(self) -> None:
        async def main() -> None:
            async with ByteServer() as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"))
                history: Any = [ASKED, ("assistant", "Done")]
                with pytest.raises(HistoryError, match="item 1 of the history is a tuple"):
                    await agent.run("Hi", history=history)
                assert server.requests == []

        run_virtual(main())

    @pytest.mark.parametrize(
        "history", [[UserMessage("\udcff")], [AssistantMessage((CALL_A,)), ToolMessage("a", "look", "caf\udce9.txt")]]
    )
    def test_half_a_surrogate_pair_is_sent_somehow_or_refused_by_name(self, history: list[Message]) -> None:
        """File names may hold one; JSON in UTF-8 cannot."""
        try:
            ask(history)
        except TreadleError as error:
            assert error.hint
