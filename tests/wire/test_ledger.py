"""The prefix ledger names the first byte and the component that moved between two requests, and is silent if nothing did."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from treadle.values.messages import (
    AssistantMessage,
    Image,
    Message,
    Opaque,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, Options, PrefixMove, ToolSpec
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import AnthropicDialect
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ledger import Following, Ledger, Prefix
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec

CODECS: dict[str, Codec] = {
    "chat": ChatCodec(),
    "anthropic": AnthropicCodec(AnthropicDialect(cache=True)),
    "responses": ResponsesCodec(),
    "gemini": GeminiCodec("gemini-3-pro"),
    "ollama": OllamaCodec(),
}
LIST = {"responses": "input", "gemini": "contents"}
LOOK = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {"what": {"type": "string"}}})
WRITE = ToolSpec(name="write", description="Write.", parameters={"type": "object", "properties": {}})

_THOUGHTS = (
    Thinking("Where?", "reasoning_content"),
    Thinking("Where?", "block", None, "c2c="),
    Thinking("Where?", "block", None, "gemini:sg"),
    Opaque("responses", '{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gAA="}'),
)
CHAT: tuple[Message, ...] = (
    UserMessage("What is there?"),
    AssistantMessage((*_THOUGHTS, Text("I look."), ToolCall("c1", "look", '{"what":"a"}'), ToolCall("c2", "write", "{}"))),
    ToolMessage("c1", "look", "a calm sea, and a long line of text about it"),
    ToolMessage("c2", "write", "done"),
    AssistantMessage((Text("A sea, and far out a ship that hardly moves."),)),
    UserMessage("And then?"),
)
REQUEST = ModelRequest(messages=CHAT, instructions="It is 03:57. Be brief.", tools=(LOOK, WRITE))
LATER: tuple[Message, ...] = (*CHAT, AssistantMessage((Text("Nothing."),)), UserMessage("Thanks."))


GREETING = "Hello! How can I help you today?"
SHOTS = [
    "An example",
    "What is to be said of it, at some length, so that it is clear.",
    "Another",
    "And this of the other one, as long as it.",
]


def spoken(texts: list[str]) -> tuple[Message, ...]:
    """In turn, the user first."""
    return tuple(AssistantMessage((Text(text),)) if n % 2 else UserMessage(text) for n, text in enumerate(texts))


def turn(*parts: Any) -> tuple[Message, ...]:
    return (LATER[0], AssistantMessage(parts), *LATER[2:])


CULPRITS: dict[str, tuple[ModelRequest, str]] = {
    "tool order": (replace(REQUEST, messages=LATER, tools=(WRITE, LOOK)), "the order of the tools, from `write` on"),
    "changed tool": (
        replace(REQUEST, messages=LATER, tools=(replace(LOOK, description="Look!"), WRITE)),
        "the tool `look`, which changed",
    ),
    "a time in the system text": (replace(REQUEST, messages=LATER, instructions="It is 03:58. Be brief."), "the system text"),
    "arguments written anew": (
        replace(
            REQUEST,
            messages=turn(*_THOUGHTS, Text("I look."), ToolCall("c1", "look", '{"what": "a"}'), ToolCall("c2", "write", "{}")),
        ),
        "the arguments of the call `c1` of `look`",
    ),
    "dropped reasoning": (
        replace(REQUEST, messages=turn(Text("I look."), ToolCall("c1", "look", '{"what":"a"}'), ToolCall("c2", "write", "{}"))),
        "the reasoning, which is gone",
    ),
    "pruned result": (
        replace(REQUEST, messages=(*LATER[:2], ToolMessage("c1", "look", "a calm ... it"), *LATER[3:])),
        "the result of `look`",
    ),
}
"""What is planted, and what the ledger calls it."""

OTHERS: dict[str, tuple[ModelRequest, str]] = {
    "a tool more": (replace(REQUEST, tools=(LOOK, WRITE, replace(LOOK, name="fly"))), "the tool `fly`, which is new"),
    "a tool more, in front": (replace(REQUEST, tools=(replace(LOOK, name="fly"), LOOK, WRITE)), "the tool `fly`, which is new"),
    "a tool less": (replace(REQUEST, tools=(WRITE,)), "the tool `look`, which is gone"),
    "no tools": (replace(REQUEST, tools=()), "the tools, which are gone"),
    "the user's text": (
        replace(REQUEST, messages=(UserMessage("What is here?"), *LATER[1:])),
        "the user's text",
    ),
    "the model's text": (
        replace(REQUEST, messages=(*LATER[:4], AssistantMessage((Text("No sea."),)), *LATER[5:])),
        "the model's text",
    ),
    "a turn that is gone": (replace(REQUEST, messages=(LATER[0], *LATER[4:])), ""),
}


def item_of(codec: str, component: str, body: bytes) -> Any:
    """The message of the request that the component is in."""
    place = int(component.partition("[")[2].partition("]")[0])
    assert component.startswith(LIST.get(codec, "messages"))
    return json.loads(body)[LIST.get(codec, "messages")][place]


def moved(codec: Codec, *requests: ModelRequest) -> PrefixMove | None:
    encoder = codec.encoder("gemini-3-pro")
    for request in requests:
        encoder.encode(request)
    return encoder.moved


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("culprit", CULPRITS)
@pytest.mark.parametrize("between", ["requests", "runs"])
def test_each_culprit_is_named(name: str, culprit: str, between: str) -> None:
    if (name, culprit) == ("ollama", "dropped reasoning"):
        pytest.skip("Ollama is sent no reasoning of another format: test_reasoning_that_ollama_is_sent")
    request, words = CULPRITS[culprit]
    codec = CODECS[name]
    first, second = codec.encoder("gemini-3-pro"), codec.encoder("gemini-3-pro")
    first.encode(REQUEST)
    if between == "requests":
        body = first.encode(request)
        move, before, after = first.moved, codec.encoder("gemini-3-pro"), first
        before.encode(REQUEST)
    else:
        ledger = Ledger()
        Following(ledger).sent(first.prefix, first.moved)
        body = second.encode(request)
        following = Following(ledger)
        following.sent(second.prefix, second.moved)
        move, before, after = following.take(), first, second
    assert move is not None
    assert move.component.endswith(words)
    was, now = all_of(before.prefix), all_of(after.prefix)
    assert was[: move.byte] == now[: move.byte] and was[move.byte : move.byte + 1] != now[move.byte : move.byte + 1]
    assert 0 < move.lost_share < 1
    if "[" in move.component:
        item_of(name, move.component, body)


def all_of(prefix: Prefix) -> bytes:
    return prefix.tools + prefix.system + prefix.messages


def test_reasoning_that_ollama_is_sent() -> None:
    thought = AssistantMessage((Thinking("Where?", "reasoning"), Text("There.")))
    before = ModelRequest(messages=(UserMessage("x"), thought, UserMessage("y")))
    after = replace(before, messages=(UserMessage("x"), AssistantMessage((Text("There."),)), UserMessage("y"), UserMessage("z")))
    move = moved(CODECS["ollama"], before, after)
    assert move is not None and move.component == "messages[1]: the reasoning, which is gone"


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("culprit", OTHERS)
def test_other_things_that_move(name: str, culprit: str) -> None:
    request, words = OTHERS[culprit]
    move = moved(CODECS[name], REQUEST, request)
    assert move is not None and move.component.endswith(words)


def test_where_an_attachment_moved() -> None:
    before = ModelRequest(
        messages=(UserMessage("x", (Image(b"GIF8", "image/gif"),)), AssistantMessage((Text("a"),)), UserMessage("b"))
    )
    after = replace(before, messages=(UserMessage("x", (Image(b"GIF9", "image/gif"),)), *before.messages[1:]))
    for name, codec in CODECS.items():
        move = moved(codec, before, after)
        assert move is not None and move.component == f"{LIST.get(name, 'messages')}[0]: an attachment"


def test_the_byte_and_what_is_lost() -> None:
    before = ModelRequest(messages=(UserMessage("a" * 100), AssistantMessage((Text("b"),)), UserMessage("c" * 100)))
    after = replace(before, messages=(*before.messages[:2], UserMessage("d" * 100)))
    move = moved(ChatCodec(), before, after)
    body = ChatCodec().encoder("m").encode(after).partition(b'"messages":[')[2]
    assert move is not None
    assert move.byte == body.index(b"dddd")
    assert move.lost_share == pytest.approx((len(body) - 2 - move.byte) / (len(body) - 2), abs=0.001)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("revision", [None, 0])
def test_a_conversation_that_only_grows_moves_nothing(name: str, revision: int | None) -> None:
    encoder = CODECS[name].encoder("gemini-3-pro")
    for length in (1, 4, 6, 8):
        encoder.encode(replace(REQUEST, messages=LATER[:length], revision=revision))
        assert encoder.moved is None
    encoder.encode(replace(REQUEST, messages=LATER, revision=revision, options=Options(temperature=0.5, max_tokens=5)))
    assert encoder.moved is None, "sampling options are no part of the prompt"
    encoder.encode(replace(REQUEST, messages=LATER[:4], revision=revision))
    assert encoder.moved is None, "a shorter one is in the cache, too"


@given(
    st.sampled_from(list(CODECS)),
    st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 1), st.sampled_from([None, 0, 1])), max_size=6),
)
def test_the_bytes_are_those_of_an_encoder_without_a_past(name: str, steps: list[tuple[int, bool, int, int | None]]) -> None:
    """Whatever was written before, with tools that come and go; a revision names one conversation."""
    encoder = CODECS[name].encoder("gemini-3-pro")
    for length, tools, which, revision in steps:
        changed = (UserMessage("Else."), *LATER[1:])
        messages = changed if revision == 1 or (revision is None and which) else LATER
        request = replace(REQUEST, messages=messages[:length], tools=(LOOK,) if tools else (), revision=revision)
        assert encoder.encode(request) == CODECS[name].encoder("gemini-3-pro").encode(request)


def test_messages_that_are_others_are_noticed_with_a_revision_too() -> None:
    """Two runs that nobody told apart: the last message that was written says so."""
    encoder = ChatCodec().encoder("m")
    encoder.encode(replace(REQUEST, revision=0))
    other = replace(REQUEST, messages=(UserMessage("Hello"), *LATER[1:5], UserMessage("And now?")), revision=0)
    assert encoder.encode(other) == ChatCodec().encoder("m").encode(other)


class TestRuns:
    """The first request of a run, held against the conversations that the driver has sent."""

    @staticmethod
    def told(*requests: ModelRequest, ledger: Ledger | None = None, codec: str = "chat") -> list[str | None]:
        """Each request in a run of its own."""
        ledger = ledger or Ledger()
        said: list[str | None] = []
        for request in requests:
            encoder, following = CODECS[codec].encoder("gemini-3-pro"), Following(ledger)
            encoder.encode(request)
            following.sent(encoder.prefix, encoder.moved)
            move = following.take()
            said.append(move.component if move else None)
        return said

    @pytest.mark.parametrize("codec", CODECS)
    def test_a_chat_that_goes_on(self, codec: str) -> None:
        requests = [replace(REQUEST, messages=LATER[:length]) for length in (1, 6, 8)]
        assert self.told(*requests, codec=codec) == [None, None, None]

    @pytest.mark.parametrize("codec", CODECS)
    def test_a_clock_in_the_system_text(self, codec: str) -> None:
        requests = [replace(REQUEST, messages=LATER[:n], instructions=f"It is 03:{n}.") for n in (1, 6, 8)]
        # Of a question alone nobody knows whose it was.
        assert self.told(*requests, codec=codec) == [None, None, "the system text"]

    def test_a_system_message_in_the_history(self) -> None:
        requests = [ModelRequest(messages=(SystemMessage(f"It is 03:{n}."), *LATER[:n])) for n in (6, 8)]
        for codec in CODECS:
            assert self.told(*requests, codec=codec) == [None, "the system text"]

    @pytest.mark.parametrize(
        "other",
        [
            lambda: replace(REQUEST, messages=LATER[:1], instructions="You are another agent."),  # the same question, no history
            lambda: replace(REQUEST, messages=(UserMessage("Hello"), *LATER[1:])),  # begins otherwise
            lambda: replace(
                REQUEST,
                messages=(LATER[0], AssistantMessage((Text("Sand."),)), UserMessage("Else?"), AssistantMessage((Text("No."),)),
                          UserMessage("Well"), AssistantMessage((Text("Yes."),)), UserMessage("So"), AssistantMessage((Text("?"),)), UserMessage("!")),
            ),  # the same first question, another chat
            lambda: replace(REQUEST, messages=(*LATER[:5], UserMessage("Or else?"))),  # the last question in other words
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("codec", CODECS)
    def test_another_conversation_is_no_break(self, other: Callable[[], ModelRequest], codec: str) -> None:
        assert self.told(REQUEST, other(), codec=codec) == [None, None]

    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize(
        ("mine", "theirs"),
        [
            (["Hi"], ["Hi", "Hello Ann", "What's up?"]),
            (["Hi", "Hello!", "Weather?"], ["Hi", "Hello!", "News?", "None.", "Fine."]),
            (["Hi", GREETING, "Weather?"], ["Hi", GREETING, "Weather?", "Sun.", "Fine."]),
            ([*SHOTS, "Yours"], [*SHOTS, "Mine", "As before.", "And now?"]),
        ],
    )
    def test_what_many_people_say_is_no_evidence(self, mine: list[str], theirs: list[str], codec: str) -> None:
        """One driver for the chats of many users: greetings, and examples in front of each."""
        for instructions in (("The user is Bob.", "The user is Ann."), ("Be brief.", "Be brief.")):
            requests = [
                ModelRequest(messages=spoken(t), instructions=i) for t, i in zip((mine, theirs), instructions, strict=True)
            ]
            assert self.told(*requests, codec=codec)[1] is None

    @pytest.mark.parametrize("codec", CODECS)
    def test_a_head_of_several_conversations_is_no_evidence(self, codec: str) -> None:
        """The same examples and the same question, of two users that this driver knows, and of a third that it does not."""
        ask = [ModelRequest(messages=spoken([*SHOTS, "Hi"]), instructions=f"The user is {name}.") for name in ("Bob", "Ann")]
        other = replace(ask[0], messages=spoken([*SHOTS, "Yo"]))
        third = ModelRequest(messages=spoken([*SHOTS, "Hi", "Hello", "So?"]), instructions="The user is Eve.")
        assert self.told(*ask, other, third, codec=codec)[-1] is None

    def test_examples_whose_conversation_was_forgotten(self) -> None:
        ledger = Ledger()
        self.told(*(ModelRequest(messages=spoken([*SHOTS, each])) for each in ("mine", *"abcdefgh")), ledger=ledger)
        assert self.told(ModelRequest(messages=spoken([*SHOTS, "mine", "Yes.", "So?"])), ledger=ledger) == [None]

    @pytest.mark.parametrize("codec", CODECS)
    def test_a_long_answer_is_evidence(self, codec: str) -> None:
        chat = ["Weather?", "Rain in the morning, sun from noon on, and wind.", "News?", "None.", "Fine."]
        requests = [ModelRequest(messages=spoken(chat[:n]), instructions=f"It is 03:{n}.") for n in (3, 5)]
        assert self.told(*requests, codec=codec) == [None, "the system text"]

    def test_a_history_that_was_mostly_written_anew_is_none_that_goes_on(self) -> None:
        end = ["Rain in the morning, sun from noon on, and wind.", "News?"]
        chats = [["Hi", *(f"{n} {who}" for n in range(6)), *end] for who in ("before", "anew")]
        requests = [ModelRequest(messages=spoken(chat)) for chat in (chats[0], [*chats[1], "None.", "Fine."])]
        assert self.told(*requests) == [None, None]

    def test_it_prints_no_prompt(self) -> None:
        encoder = ChatCodec().encoder("m")
        encoder.encode(replace(REQUEST, instructions="CANARY", messages=(UserMessage("CANARY"),)))
        assert "CANARY" not in repr(encoder.prefix)
        assert str(len(encoder.prefix)) in repr(encoder.prefix)

    def test_one_that_is_too_large_drives_out_no_other(self) -> None:
        ledger = Ledger()
        self.told(*(replace(REQUEST, messages=LATER[:n]) for n in (1, 6)), ledger=ledger)
        self.told(ModelRequest(messages=(UserMessage("x" * 5_000_000),)), ledger=ledger)
        assert len(ledger._kept) == 2
        assert self.told(replace(REQUEST, messages=LATER, instructions="Other."), ledger=ledger) == ["the system text"]

    def test_the_nearest_of_several(self) -> None:
        early = replace(REQUEST, messages=LATER[:1], instructions="It is 01:00.")
        late = replace(REQUEST, messages=LATER[:6], instructions="It is 02:00.")
        now = replace(REQUEST, messages=LATER, instructions="It is 02:01.")
        ledger = Ledger()
        self.told(early, late, ledger=ledger)
        assert self.told(now, ledger=ledger) == ["the system text"]
        assert self.told(replace(now, instructions="It is 01:00."), ledger=ledger) == [None]

    def test_it_keeps_few_conversations_and_few_bytes(self) -> None:
        ledger = Ledger()
        many = [ModelRequest(messages=(UserMessage(f"{n}"), *LATER[1:6])) for n in range(20)]
        self.told(*many, ledger=ledger)
        assert len(ledger._kept) == 8
        self.told(*(ModelRequest(messages=(UserMessage(f"{n}" * 500_000),)) for n in range(20)), ledger=ledger)
        assert sum(map(len, ledger._kept)) <= 4_000_000
        self.told(ModelRequest(messages=(UserMessage("x" * 5_000_000),)), ledger=ledger)
        assert sum(map(len, ledger._kept)) <= 4_000_000

    def test_a_run_that_is_under_way_keeps_its_place(self) -> None:
        ledger = Ledger()
        encoder, following = ChatCodec().encoder("m"), Following(ledger)
        for n in range(20):
            encoder.encode(replace(REQUEST, messages=LATER[:1]))
            following.sent(encoder.prefix, encoder.moved)
            self.told(ModelRequest(messages=(UserMessage(f"{n}"),)), ledger=ledger)
        assert encoder.prefix in ledger._kept

    def test_what_failed_is_told_with_the_next_request(self) -> None:
        encoder, following = ChatCodec().encoder("m"), Following(Ledger())
        for request in (REQUEST, CULPRITS["pruned result"][0], CULPRITS["pruned result"][0]):
            encoder.encode(request)
            following.sent(encoder.prefix, encoder.moved)
        assert (move := following.take()) is not None and move.component == "messages[3]: the result of `look`"
        assert following.take() is None
