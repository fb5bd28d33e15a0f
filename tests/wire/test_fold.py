"""Law 4: no call merged, none invented."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from treadle.errors import BadStream
from treadle.values.events import ToolCallDelta
from treadle.values.messages import Text, Thinking, ToolCall
from treadle.values.request import ModelRequest
from treadle.wire.chat import ChatDecoder
from treadle.wire.fold import MAX_CALLS_PER_TURN, ReplyFold


class Dialect(NamedTuple):
    """How a server writes its calls down."""

    index: str  # proper, zero, missing
    ids: str  # unique, missing, empty, same, late, every_piece, new_each_piece
    arguments: str  # pieces, object
    order: str  # sequential, interleaved
    repeats_name: bool

    @property
    def ambiguous(self) -> bool:
        """Shapes that nobody could take apart; the rules for them are at the top of wire/fold.py."""
        if self.order == "sequential":
            return False
        return self.index != "proper" and self.ids != "every_piece"


dialects = st.builds(
    Dialect,
    st.sampled_from(["proper", "zero", "missing"]),
    st.sampled_from(["unique", "missing", "empty", "same", "late", "every_piece", "new_each_piece"]),
    st.sampled_from(["pieces", "object"]),
    st.sampled_from(["sequential", "interleaved"]),
    st.booleans(),
).filter(lambda d: not d.ambiguous)

arguments = st.dictionaries(
    st.sampled_from("abc"),
    st.text(max_size=8) | st.integers() | st.none() | st.dictionaries(st.just("}"), st.just("{")),
    max_size=3,
)
calls = st.lists(st.tuples(st.sampled_from(["f", "g", "get_weather"]), arguments), min_size=1, max_size=5)


def pieces(dialect: Dialect, position: int, name: str, args: dict[str, Any], points: list[int]) -> list[dict[str, Any]]:
    """One call as the pieces a server with this dialect sends."""
    text = json.dumps(args)
    if dialect.arguments == "object" or (dialect.repeats_name and dialect.order == "interleaved"):
        values: list[Any] = [args if dialect.arguments == "object" else text]
    else:
        values = cut(text, points)
    out: list[dict[str, Any]] = []
    for n, value in enumerate(values):
        piece: dict[str, Any] = {"function": {"arguments": value}}
        if n == 0 or dialect.repeats_name:
            piece["function"]["name"] = name
        if dialect.index != "missing":
            piece["index"] = position if dialect.index == "proper" else 0
        first, last = n == 0, n == len(values) - 1
        match dialect.ids:
            case "unique" if first:
                piece["id"] = f"id{position}"
            case "same" if first:
                piece["id"] = "id"
            case "empty":
                piece["id"] = ""
            case "late" if last:
                piece["id"] = f"id{position}"
            case "every_piece":
                piece["id"] = f"id{position}"
            case "new_each_piece" if not dialect.repeats_name:
                piece["id"] = f"id{position}-{n}"
            case _:
                pass
        out.append(piece)
    return out


@given(calls, dialects, cut_points, cut_points, st.randoms())
def test_every_dialect_gives_the_calls_that_were_made(
    made: list[tuple[str, dict[str, Any]]], dialect: Dialect, points: list[int], chunk_points: list[int], rng: Any
) -> None:
    streams = [pieces(dialect, i, name, args, points) for i, (name, args) in enumerate(made)]
    sent: list[dict[str, Any]] = []
    if dialect.ids == "same" and dialect.index != "proper":  # two equal calls are then a repetition: see the rules
        assume(len({json.dumps(call) for call in made}) == len(made))
    if dialect.order == "interleaved":
        sent += [stream.pop(0) for stream in streams]  # headers in order; the rest in any order
        while any(streams):
            sent.append(rng.choice([s for s in streams if s]).pop(0))
    else:
        sent += [piece for stream in streams for piece in stream]
    frames = [{"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in sent]
    frames.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = b"".join(b"data: %s\n\n" % json.dumps(frame).encode() for frame in frames)

    decoder = ChatDecoder(ModelRequest(messages=(), run_id="run"))
    deltas = [delta for chunk in cut(body, chunk_points) for delta in decoder.feed(chunk)] + decoder.close()

    reply = decoder.reply
    assert [(c.name, json.loads(c.arguments)) for c in reply.message.calls] == made
    assert reply.finish == "tool_use"
    ids = [c.id for c in reply.message.calls]
    assert all(ids) and len(set(ids)) == len(ids)
    if dialect.ids in ("unique", "late", "every_piece"):
        assert ids == [f"id{i}" for i in range(len(made))]
    shown = ["" for _ in made]
    for delta in deltas:
        assert isinstance(delta, ToolCallDelta)
        shown[delta.position] += delta.arguments
    assert shown == [c.arguments for c in reply.message.calls]


def fold() -> ReplyFold:
    return ReplyFold(turn=1, attempt=1, call_id_prefix="ours_")


@pytest.mark.parametrize(
    ("sent", "made"),
    [
        # vLLM (captured): two entries of one index in one delta, the name without arguments first
        ([(0, "x", "f", None), (0, "", "", "{"), (0, "", "", "}")], [("x", "f", "{}")]),
        # Ollama's shape: every call index 0, whole, ids differ
        ([(0, "a", "f", "{}"), (0, "b", "f", "{}")], [("a", "f", "{}"), ("b", "f", "{}")]),
        # nothing but names
        ([(0, "a", "f", ""), (1, "b", "f", "")], [("a", "f", ""), ("b", "f", "")]),
        ([(0, "", "f", ""), (0, "", "g", "")], [("ours_0", "f", ""), ("ours_1", "g", "")]),
        # the listed ambiguity: one call, not two
        ([(0, "", "f", ""), (0, "", "f", "")], [("ours_0", "f", "")]),
        # a header sent twice, then its arguments
        ([(0, "a", "f", ""), (0, "a", "f", '{"x":1}')], [("a", "f", '{"x":1}')]),
        # an id alone opens a call; its name follows
        ([(0, "a", "", None), (0, "", "f", "{}")], [("a", "f", "{}")]),
        ([(0, "a", "f", "{}"), (0, "b", "", None), (0, "", "g", "{}")], [("a", "f", "{}"), ("b", "g", "{}")]),
        # nothing at all is no call
        ([(0, "", "", None), (None, "", "", "")], []),
        # the same id for two calls: both run, the second under an id of ours
        ([(0, "a", "f", "{}"), (1, "a", "g", "{}")], [("a", "f", "{}"), ("ours_1", "g", "{}")]),
        # a header that comes again, empty or whole
        ([(0, "a", "f", "{}"), (0, "a", "f", "")], [("a", "f", "{}")]),
        ([(0, "a", "f", "{}"), (0, "a", "f", "{}")], [("a", "f", "{}")]),
        ([(0, "", "f", "{}"), (0, "", "f", None)], [("ours_0", "f", "{}")]),
        ([(0, "", "f", "{}"), (0, "", "f", "{}")], [("ours_0", "f", "{}"), ("ours_1", "f", "{}")]),
        # brackets inside text do not count
        (
            [(0, "", "f", '{"a": "}'), (0, "", "f", '\\"{"}'), (0, "", "f", "{}")],
            [("ours_0", "f", '{"a": "}\\"{"}'), ("ours_1", "f", "{}")],
        ),
        # arguments for a call that is complete make it invalid rather than a call of its own
        ([(0, "a", "f", "{}"), (0, "", "", "{}")], [("a", "f", "{}{}")]),
    ],
)
def test_shapes(sent: list[tuple[Any, str, str, str | None]], made: list[tuple[str, str, str]]) -> None:
    folded = fold()
    for piece in sent:
        folded.call(*piece)
    assert folded.message().calls == tuple(ToolCall(*call) for call in made)


def test_parts_keep_their_order() -> None:
    folded = fold()
    folded.thinking("hm", "reasoning")
    folded.content("I will ")
    folded.call(0, "a", "f", "{}")
    folded.content("and ")
    folded.content("then")
    assert folded.message().content == (
        Thinking("hm", "reasoning"), Text("I will "), ToolCall("a", "f", "{}"), Text("and then"),
    )  # fmt: skip


def test_a_flood_of_calls_is_bounded() -> None:
    folded = fold()
    with pytest.raises(BadStream):
        for n in range(MAX_CALLS_PER_TURN + 1):
            folded.call(n, str(n), "f", "{}")
    assert len(folded.message().calls) == MAX_CALLS_PER_TURN
