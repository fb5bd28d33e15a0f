"""Ollama's own chat. There are no captures: every shape is written from the documentation named in docs/protocols/ollama.md."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from treadle.errors import (
    BadStream,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    RateLimited,
    ServerError,
    StreamTruncated,
    Unsupported,
)
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import Text, Thinking, ToolCall
from treadle.values.request import ModelRequest, Reply
from treadle.values.usage import Usage
from treadle.wire.ollama import OllamaCodec, OllamaDecoder
from treadle.wire.stream import MAX_BODY_BYTES


def line(content: str = "", *, done: Any = False, **more: Any) -> bytes:
    message = {"role": "assistant", "content": content}
    for name in ("thinking", "tool_calls", "images"):
        if name in more:
            message[name] = more.pop(name)
    return (
        json.dumps({"model": "qwen3", "created_at": "2026-11-01T00:00:00Z", "message": message, "done": done, **more}).encode()
        + b"\n"
    )


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"name": name, "arguments": arguments}}


STOP = line(done=True, done_reason="stop", prompt_eval_count=26, eval_count=282, total_duration=5)
WHOLE = (
    line(thinking="Hm")
    + line(thinking=".")
    + line("I ")
    + line("look.")
    + line(tool_calls=[call("get_weather", {"city": "Oslo"}), call("get_weather", {"city": "Lima"}, id="call_x1")])
    + STOP
)


def decode(*chunks: bytes) -> tuple[list[Delta], Reply]:
    decoder = OllamaDecoder(ModelRequest(messages=(), run_id="0123456789abcdef", turn=3, attempt=2))
    deltas = [delta for piece in chunks for delta in decoder.feed(piece)]
    deltas += decoder.close()
    if decoder.error:
        raise decoder.error
    return deltas, decoder.reply


def shown(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, TextDelta))


def test_a_whole_turn() -> None:
    """Golden from documentation: streaming, thinking, tool calling."""
    deltas, reply = decode(WHOLE)
    assert deltas == [
        ThinkingDelta(turn=3, attempt=2, text="Hm."),
        TextDelta(turn=3, attempt=2, text="I look."),
        ToolCallDelta(turn=3, attempt=2, position=0, name="get_weather", arguments='{"city": "Oslo"}'),
        ToolCallDelta(turn=3, attempt=2, position=1, name="get_weather", arguments='{"city": "Lima"}'),
    ]
    assert reply.message.content == (
        Thinking("Hm.", "reasoning"),
        Text("I look."),
        ToolCall("call_01234567_3_0", "get_weather", '{"city": "Oslo"}'),
        ToolCall("call_x1", "get_weather", '{"city": "Lima"}'),
    )
    assert (reply.finish, reply.finish_said, reply.model) == ("tool_use", "stop", "qwen3")
    assert reply.usage == Usage(input_tokens=26, output_tokens=282)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_same_at_every_cut(size: int) -> None:
    assert decode(*[WHOLE[i : i + size] for i in range(0, len(WHOLE), size)])[1] == decode(WHOLE)[1]


def test_a_cut_stream_is_never_a_success() -> None:
    for end in range(len(WHOLE)):
        decoder = OllamaDecoder(ModelRequest(messages=()))
        decoder.feed(WHOLE[:end])
        decoder.close()
        if end < len(WHOLE) - 1:  # only the line end is missing
            assert isinstance(decoder.error, StreamTruncated), end
        else:
            assert decoder.error is None


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8), cut_points)
def test_deltas_come_to_the_turns_text_wherever_the_stream_is_cut(pieces: list[str], points: list[int]) -> None:
    deltas, reply = decode(*cut(b"".join(map(line, pieces)) + STOP, points))
    assert shown(deltas) == reply.message.text
    if not "".join(pieces).lstrip().startswith("<"):
        assert reply.message.text == "".join(pieces)


class TestTerminalProof:
    @pytest.mark.parametrize(
        "body", [b"", line("a"), line("a", done=None), line("a", done_reason="stop"), line("a", done="true"), line("a") + b"{"]
    )
    def test_without_done_it_is_truncated(self, body: bytes) -> None:
        with pytest.raises(StreamTruncated):
            decode(body)
        with pytest.raises(StreamTruncated):
            decode(*(body[i : i + 1] for i in range(len(body))))

    @pytest.mark.parametrize(
        ("said", "finish"),
        [("stop", "end"), ("length", "length"), ("load", "unknown"), ("unload", "unknown"), ("new", "unknown")],
    )
    def test_reasons(self, said: str, finish: str) -> None:
        reply = decode(line("a", done=True, done_reason=said))[1]
        assert (reply.finish, reply.finish_said) == (finish, said)

    def test_a_server_that_says_done_and_no_reason_runs_no_calls(self) -> None:
        """The documentation's older examples end so."""
        reply = decode(line(tool_calls=[call("f", {})]) + b'{"model":"m","done":true,"eval_count":2}\n')[1]
        assert (reply.finish, reply.finish_said, reply.usage) == ("unknown", "done", Usage(output_tokens=2))

    def test_calls_of_a_cut_turn_do_not_run(self) -> None:
        assert decode(line(tool_calls=[call("f", {})]) + line(done=True, done_reason="length"))[1].finish == "length"

    def test_nothing_is_read_after_the_end(self) -> None:
        decoder = OllamaDecoder(ModelRequest(messages=()))
        decoder.feed(STOP + line("more"))
        assert decoder.done and decoder.finished
        decoder.close(clean=False)
        assert decoder.error is None and decoder.reply.message.text == ""


class TestOddShapes:
    def test_arguments_keep_their_characters(self) -> None:
        body = b'{"message":{"tool_calls":[{"function":{"index":0,"name":"f","arguments":{"p" :"/a","n":1.0}}}]},"done":true,"done_reason":"stop"}'
        assert decode(body)[1].message.calls[0].arguments == '{"p" :"/a","n":1.0}'

    def test_equal_calls_are_two(self) -> None:
        reply = decode(line(tool_calls=[call("f", {}, id="x"), call("f", {}, id="x")]) + line(tool_calls=[call("f", {})]) + STOP)[
            1
        ]
        assert [c.id for c in reply.message.calls] == ["x", "call_01234567_3_1", "call_01234567_3_2"]

    @pytest.mark.parametrize(("arguments", "kept"), [(None, "{}"), ({}, "{}"), ('{"a":1}', '{"a":1}'), ("", "{}"), ([1], "[1]")])
    def test_arguments(self, arguments: Any, kept: str) -> None:
        assert decode(line(tool_calls=[call("f", arguments)]) + STOP)[1].message.calls[0].arguments == kept

    def test_tags_in_the_content(self) -> None:
        body = b"".join(map(line, "<think>hm</think>\n\nParis")) + STOP
        assert decode(body)[1].message.content == (Thinking("hm", "content", "<think>hm</think>\n\n"), Text("Paris"))

    def test_trifles_are_passed_over(self) -> None:
        odd = b'\r\n\n{"status":"pulling"}\n' + line(images=None, tool_calls=[{}]) + line(tool_calls=None)
        assert decode(odd + line("a") + odd + STOP)[1].message.content == (Text("a"),)

    def test_bytes_that_are_no_utf8_and_half_a_surrogate_pair(self) -> None:
        body = b'{"message":{"content":"caf\xe9 \\ud83d"},"done":true,"done_reason":"stop"}\n'
        assert decode(body)[1].message.text == "caf\ufffd \ufffd"

    @pytest.mark.parametrize("usage", [{}, {"prompt_eval_count": None, "eval_count": "5"}, {"eval_count": -1}])
    def test_absent_is_none_and_never_zero(self, usage: Any) -> None:
        assert decode(line(done=True, done_reason="stop", **usage))[1].usage == Usage()

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            (b"<!DOCTYPE html>", BadStream),
            (b"Ollama is running", BadStream),
            (b'{"detail": "Not Found"}\n', BadStream),
            (line("a") + b"{not json}\n", BadStream),
            (line("a") + b"[1]\n", BadStream),
            (b'{"message":' + b"[" * 100_000 + b"\n", BadStream),
            (b'{"message":"a"}\n', BadStream),
        ],
    )
    def test_typed_errors(self, body: bytes, error: type[ModelError]) -> None:
        with pytest.raises(error) as caught:
            decode(body)
        assert type(caught.value) is error and caught.value.hint

    def test_a_stream_and_a_line_without_end_are_bounded(self) -> None:
        for piece in (b"{" + b" " * 2**20, b"{" + b" " * 2**20 + b"\n"):
            decoder = OllamaDecoder(ModelRequest(messages=()))
            for _ in range(MAX_BODY_BYTES // 2**20 + 1):
                decoder.feed(piece)
            assert decoder.done and isinstance(decoder.error, BadStream)


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "said", "error"),
        [
            # Documented: the API's page on errors.
            (400, "invalid JSON", InvalidRequest),
            (404, "model 'x' not found", ModelNotFound),
            (429, "too many requests", RateLimited),
            (500, "the model failed to generate a response", ServerError),
            (502, "cannot reach the cloud", Overloaded),
            # Reported: wordings that users quote.
            (400, "registry.ollama.ai/library/x does not support tools", Unsupported),
            (400, '"x" does not support thinking', Unsupported),
            (400, '"x" does not support chat', Unsupported),
            (500, "model requires more system memory (9.1 GiB) than is available (7.4 GiB)", Unsupported),
            (503, "server busy, please try again. maximum pending requests exceeded", Overloaded),
            (400, "the input length exceeds the context length", ContextOverflow),
        ],
    )
    def test_bodies(self, status: int, said: str, error: type[ModelError]) -> None:
        caught = OllamaCodec().error(status, {}, json.dumps({"error": said}).encode(), address="http://h")
        assert (type(caught), caught.status) == (error, status)
        assert caught.hint and said not in str(caught) + repr(caught)

    @pytest.mark.parametrize("end", [b"\n", b""])
    def test_inside_the_stream_after_what_came_before(self, end: bytes) -> None:
        """Golden from documentation: an error that occurs while streaming."""
        decoder = OllamaDecoder(ModelRequest(messages=()))
        deltas = decoder.feed(line("a") + b'{"error":"an error was encountered while running the model"}' + end)
        deltas += decoder.close()
        assert shown(deltas) == "a"
        assert decoder.done and not decoder.finished
        assert type(decoder.error) is ServerError

    def test_a_status_inside_the_stream(self) -> None:
        with pytest.raises(RateLimited):
            decode(line("a") + b'{"error":"slow down","status_code":429}\n')

    def test_it_names_what_to_do(self) -> None:
        caught = OllamaCodec().error(404, {}, b'{"error":"model \'x\' not found"}', address="http://h")
        assert "ollama pull" in caught.hint


_KEYS = [
    "message",
    "content",
    "thinking",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
    "done",
    "done_reason",
    "eval_count",
    "error",
    "status_code",
]


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"\n", b"\r\n", STOP, line("a"), WHOLE, b"{", b'"', b"[1]\n", b'{"error":"x"}\n']),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), v, max_size=4),
            ).map(lambda value: json.dumps(value).encode() + b"\n"),
        ),
        max_size=12,
    ).map(b"".join),
    cut_points,
)
def test_any_bytes_give_a_reply_or_a_documented_error_wherever_they_are_cut(body: bytes, points: list[int]) -> None:
    outcomes: list[Any] = []
    for chunks in ([body], cut(body, points)):
        decoder = OllamaDecoder(ModelRequest(messages=()))
        deltas: list[Delta] = []
        for piece in chunks:
            deltas += decoder.feed(piece)
        deltas += decoder.close()
        assert decoder.finished is (decoder.error is None)
        assert shown(deltas) == decoder.reply.message.text
        outcomes.append((type(decoder.error), decoder.reply, shown(deltas)))
    assert outcomes[0] == outcomes[1]
