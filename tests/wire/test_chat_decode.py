"""Law 2 (terminal proof), law 3 (text), and the wire shapes that are not about calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from treadle.errors import (
    AuthenticationFailed,
    BadStream,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    Overloaded,
    RateLimited,
    ServerError,
    StreamTruncated,
)
from treadle.values.events import Delta, TextDelta, ThinkingDelta
from treadle.values.messages import Text, Thinking
from treadle.values.request import ModelRequest, Reply
from treadle.values.usage import Usage
from treadle.wire.chat import ChatCodec, ChatDecoder
from treadle.wire.stream import MAX_BODY_BYTES


def frame(delta: dict[str, Any] | None = None, *, finish: Any = None, **more: Any) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return b"data: %s\n\n" % json.dumps({"choices": [choice], **more}).encode()


def text(value: str) -> bytes:
    return frame({"content": value})


STOP = frame(finish="stop")
DONE = b"data: [DONE]\n\n"


def decode(*chunks: bytes) -> tuple[list[Delta], Reply]:
    decoder = ChatDecoder(ModelRequest(messages=(), run_id="run", turn=3, attempt=2))
    deltas = [delta for chunk in chunks for delta in decoder.feed(chunk)]
    deltas += decoder.close()
    if decoder.error:
        raise decoder.error
    return deltas, decoder.reply


def shown(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, TextDelta))


def test_one_read_of_many_tokens_is_one_delta() -> None:
    deltas, reply = decode(text("Hel") + text("lo") + STOP + DONE)
    assert deltas == [TextDelta(turn=3, attempt=2, text="Hello")]
    assert (reply.message.content, reply.finish, reply.finish_said) == ((Text("Hello"),), "end", "stop")


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8), cut_points)
def test_deltas_come_to_the_turns_text_wherever_the_stream_is_cut(pieces: list[str], points: list[int]) -> None:
    body = b"".join(map(text, pieces)) + STOP + DONE
    deltas, reply = decode(*cut(body, points))
    thinking = "".join(d.text for d in deltas if isinstance(d, ThinkingDelta))
    assert shown(deltas) == reply.message.text
    assert thinking == reply.message.thinking
    if not "".join(pieces).lstrip().startswith("<"):
        assert reply.message.text == "".join(pieces)


class TestTerminalProof:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            text("a"),
            text("a") + DONE,
            DONE,
            b": keep-alive\n\n" + DONE,
            text("a") + frame(finish="") + DONE,
            text("a") + frame(usage={"prompt_tokens": 1, "completion_tokens": 1}) + DONE,
            text("a") + STOP[:-30],
            b'{"choices": [{"message": {"content": "a"}, "finish_re',
        ],
    )
    def test_without_a_reason_it_is_truncated(self, body: bytes) -> None:
        with pytest.raises(StreamTruncated):
            decode(body)
        with pytest.raises(StreamTruncated):
            decode(*(body[i : i + 1] for i in range(len(body))))

    def test_done_is_not_needed(self) -> None:
        assert decode(text("a") + STOP)[1].finish == "end"
        assert decode(text("a") + STOP.rstrip())[1].finish == "end"

    @pytest.mark.parametrize(
        ("said", "finish"),
        [
            ("stop", "end"),
            ("length", "length"),
            ("content_filter", "refused"),
            ("eos", "end"),
            ("model_length", "length"),
            ("what_is_this", "unknown"),
            ("tool_calls", "unknown"),  # without any call: a claim, no reason
            (7, "unknown"),
        ],
    )
    def test_reasons(self, said: Any, finish: str) -> None:
        reply = decode(text("a") + frame(finish=said))[1]
        assert (reply.finish, reply.finish_said) == (finish, str(said))

    @pytest.mark.parametrize(("said", "error"), [("error", ServerError), ("insufficient_system_resource", Overloaded)])
    def test_a_reason_that_says_the_server_failed_is_no_answer(self, said: str, error: type[ModelError]) -> None:
        decoder = ChatDecoder(ModelRequest(messages=()))
        deltas = [*decoder.feed(text("a") + frame(finish=said) + DONE), *decoder.close()]
        assert shown(deltas) == "a"
        assert type(decoder.error) is error
        assert decoder.error.retryable
        assert decoder.reply.finish is None

    def test_a_claim_of_calls_with_nothing_at_all_is_an_error(self) -> None:
        with pytest.raises(BadStream, match="sent no call"):
            decode(frame(finish="tool_calls"))

    def test_a_refusal_is_text_and_a_refusal(self) -> None:
        deltas, reply = decode(frame({"refusal": "I will not."}) + STOP)
        assert (shown(deltas), reply.finish) == ("I will not.", "refused")

    def test_a_ping_without_data_is_nothing(self) -> None:
        assert decode(b"event: ping\ndata\n\n" + text("a") + STOP)[1].message.text == "a"

    def test_a_later_reason_corrects_an_earlier_one(self) -> None:
        assert decode(STOP + frame(finish="length"))[1].finish == "length"

    @pytest.mark.parametrize(
        "more", [text("b"), frame({"reasoning": "b"}), frame({"tool_calls": [{"id": "x", "function": {"name": "f"}}]})]
    )
    def test_an_answer_that_goes_on_after_its_reason_needs_a_proper_end(self, more: bytes) -> None:
        """LiteLLM was captured sending text after the reason; a server that says `stop` on every chunk proves nothing by it."""
        body = text("a") + STOP + more
        for chunks in ([body], [body[i : i + 1] for i in range(len(body))]):
            decoder = ChatDecoder(ModelRequest(messages=()))
            for chunk in chunks:
                decoder.feed(chunk)
            assert not decoder.finished
            decoder.close(clean=False)
            assert isinstance(decoder.error, StreamTruncated)
        assert decode(body)[1].finish in ("end", "tool_use")
        assert decode(body + DONE)[1].finish in ("end", "tool_use")


class TestReasoning:
    @pytest.mark.parametrize("source", ["reasoning_content", "reasoning"])
    def test_in_its_own_field(self, source: Any) -> None:
        deltas, reply = decode(frame({source: "h"}) + frame({source: "m"}) + text("a") + STOP)
        assert deltas == [ThinkingDelta(turn=3, attempt=2, text="hm"), TextDelta(turn=3, attempt=2, text="a")]
        assert reply.message.content == (Thinking("hm", source), Text("a"))

    def test_in_both_fields_it_is_said_once(self) -> None:
        reply = decode(frame({"reasoning": "hm", "reasoning_content": "hm"}) + STOP)[1]
        assert reply.message.content == (Thinking("hm"),)

    def test_between_tags_in_the_content(self) -> None:
        body = b"".join(map(text, "<think>hm</think>\n\nParis")) + STOP
        deltas, reply = decode(*(body[i : i + 1] for i in range(len(body))))
        assert shown(deltas) == "Paris"
        assert reply.message.content == (Thinking("hm", "content", "<think>hm</think>\n\n"), Text("Paris"))

    def test_tags_are_text_once_reasoning_came_in_a_field(self) -> None:
        reply = decode(frame({"reasoning_content": "hm"}) + text("<think>x</think>") + STOP)[1]
        assert reply.message.content == (Thinking("hm"), Text("<think>x</think>"))

    def test_what_was_held_back_for_a_tag_is_given_at_the_end(self) -> None:
        deltas, reply = decode(text("<thi") + STOP)
        assert shown(deltas) == "<thi" == reply.message.text

    def test_content_parts(self) -> None:
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
        assert decode(frame({"content": parts}) + STOP)[1].message.content == (Thinking("hm"), Text("a"))


class TestOddShapes:
    """Found by looking for ways to lose or invent something."""

    CALL = {"name": "pay", "arguments": '{"n":1}'}  # noqa: RUF012

    def test_the_old_form_of_a_call_beside_the_new_one_is_the_same_call(self) -> None:
        """llama-cpp-python sends both."""
        both = {"function_call": self.CALL, "tool_calls": [{"index": 0, "id": "c", "function": self.CALL}]}
        assert [c.arguments for c in decode(frame(both, finish="stop"))[1].message.calls] == ['{"n":1}']

    def test_the_old_form_alone_beside_text(self) -> None:
        reply = decode(frame({"content": "Let me", "function_call": self.CALL}) + frame(finish="function_call"))[1]
        assert (reply.message.text, len(reply.message.calls), reply.finish) == ("Let me", 1, "tool_use")

    def test_a_refusal_beside_text(self) -> None:
        assert decode(frame({"content": "x", "refusal": "I cannot"}) + STOP)[1].finish == "refused"

    @pytest.mark.parametrize("again", [{"name": "pay"}, {"name": "pay", "arguments": ""}, CALL])
    def test_a_header_that_comes_again_is_no_new_call(self, again: Any) -> None:
        first = frame({"tool_calls": [{"index": 0, "id": "x", "function": self.CALL}]})
        reply = decode(first + frame({"tool_calls": [{"index": 0, "id": "x", "function": again}]}) + STOP)[1]
        assert [c.arguments for c in reply.message.calls] == ['{"n":1}']

    def test_arguments_as_an_object_keep_their_characters(self) -> None:
        body = b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":{"p" :"/a","p":"/b"}}}]},"finish_reason":"stop"}]}\n\n'
        assert decode(body)[1].message.calls[0].arguments == '{"p" :"/a","p":"/b"}'

    @pytest.mark.parametrize("error", ["", {}, False, 0, [], None])
    def test_an_empty_error_is_none(self, error: Any) -> None:
        assert decode(frame({"content": "a"}, error=error) + STOP)[1].message.text == "a"

    @pytest.mark.parametrize(
        "odd",
        [
            b'data: {"choices":[null]}\n\n',
            b'data: {"choices":[{"delta":""}]}\n\n',
            b'data: {"choices":[],"logprob":NaN}\n\n',
            frame({"tool_calls": []}),
            frame({"tool_calls": [{}]}),
        ],
    )
    def test_trifles_are_passed_over(self, odd: bytes) -> None:
        reply = decode(odd + text("a") + odd + STOP + b"data: [DONE] \n\n")[1]
        assert (reply.message.text, reply.finish, reply.message.calls) == ("a", "end", ())

    def test_bytes_that_are_no_utf8_become_the_replacement_character(self) -> None:
        body = b'data: {"choices":[{"delta":{"content":"caf\xe9 ok"}}]}\n\n'
        assert decode(body + STOP)[1].message.text == "caf\ufffd ok"

    def test_half_a_surrogate_pair_does_not_end_the_stream(self) -> None:
        body = b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
        decode(body + STOP)[1].message.text.encode()

    def test_text_in_a_list_and_an_index_as_text(self) -> None:
        body = b'data: {"choices":[{"index":"0","delta":{"content":["hi"]}}]}\n\n'
        assert decode(body + STOP)[1].message.text == "hi"

    def test_what_was_held_back_is_shown_before_the_error(self) -> None:
        decoder = ChatDecoder(ModelRequest(messages=()))
        deltas = decoder.feed(text("Hel") + text("lo")[:-2]) + decoder.close()
        assert shown(deltas) == "Hello" == decoder.reply.message.text
        assert isinstance(decoder.error, StreamTruncated)

    def test_a_stream_without_end_is_bounded(self) -> None:
        decoder = ChatDecoder(ModelRequest(messages=()))
        comments = b": " + b"x" * 2**20 + b"\n"
        for _ in range(70):
            decoder.feed(comments)
        assert isinstance(decoder.error, BadStream)


class TestUsage:
    @pytest.mark.parametrize(
        "body",
        [
            STOP + b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n',
            STOP + b'data: {"choices": [{"index":0,"delta":{}}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n',
            frame(finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
            b'data: {"choices": [{"delta":{}, "finish_reason":"stop", "usage": {"prompt_tokens": 5, "completion_tokens": 2}}]}\n\n',
            frame(usage={"prompt_tokens": 5, "completion_tokens": 1})
            + frame(finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
        ],
    )
    def test_wherever_it_comes(self, body: bytes) -> None:
        assert decode(body + DONE)[1].usage == Usage(input_tokens=5, output_tokens=2)

    @pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": "5"}, {"prompt_tokens": -1}, 7])
    def test_absent_is_none_and_never_zero(self, usage: Any) -> None:
        assert decode(frame(finish="stop", usage=usage))[1].usage == Usage()

    def test_details(self) -> None:
        usage = {
            "prompt_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 3},
        }
        reply = decode(frame(finish="stop", usage=usage))[1]
        assert reply.usage == Usage(input_tokens=9, cached_input_tokens=8, reasoning_tokens=3)

    @pytest.mark.parametrize(
        ("usage", "cached", "written"),
        [
            ({"prompt_cache_hit_tokens": 8}, 8, None),  # DeepSeek
            ({"cached_tokens": 8}, 8, None),  # Kimi
            ({"cached_tokens": 7, "prompt_tokens_details": {"cached_tokens": 8}}, 8, None),
            ({"cached_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0}}, 0, None),
            ({"cached_tokens": 7, "prompt_tokens_details": {"cached_tokens": "8"}}, 7, None),
            ({"prompt_tokens_details": {"cache_write_tokens": 8}}, None, 8),  # OpenRouter
        ],
    )
    def test_cached_wherever_it_is_said(self, usage: Any, cached: int | None, written: int | None) -> None:
        reply = decode(frame(finish="stop", usage=usage))[1]
        assert reply.usage == Usage(cached_input_tokens=cached, cache_creation_tokens=written)


class TestNotAStream:
    def test_plain_json_where_a_stream_was_asked_for(self) -> None:
        whole = {
            "model": "m",
            "choices": [{"message": {"content": "Hi", "tool_calls": None}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1},
        }
        body = b"\n " + json.dumps(whole).encode()
        deltas, reply = decode(*(body[i : i + 1] for i in range(len(body))))
        assert (shown(deltas), reply.finish, reply.usage, reply.model) == ("Hi", "end", Usage(input_tokens=1), "m")

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            (b"<!DOCTYPE html><title>nginx</title>", BadStream),
            (b"Internal Server Error", BadStream),
            (b'{"detail": "Not Found"}', BadStream),
            (b": keep-alive\n\n", StreamTruncated),
            (b": OPENROUTER PROCESSING\n\n: OPENROUTER PROC", StreamTruncated),
            (b"data:\n\n", StreamTruncated),
            (b"detail: not found\n", BadStream),
            (b'{"error": "nope"}', ServerError),
            (b'{"error": {"message": "slow down", "code": 429}}', RateLimited),
            (b"data: {not json}\n\n", BadStream),
            (b"data: [1]\n\n", BadStream),
            (b"data: " + b"[" * 100_000 + b"\n\n", BadStream),
        ],
    )
    def test_typed_errors(self, body: bytes, error: type[ModelError]) -> None:
        with pytest.raises(error) as caught:
            decode(body)
        assert type(caught.value) is error
        assert caught.value.hint

    def test_a_body_without_end_is_bounded(self) -> None:
        decoder = ChatDecoder(ModelRequest(messages=()))
        piece = b"{" + b" " * 2**20
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            decoder.feed(piece)
        assert decoder.done and isinstance(decoder.error, BadStream)


class TestErrorObjects:
    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (b'data: {"error": {"message": "m", "type": "BadRequestError", "code": 400}}', InvalidRequest),  # vLLM
            (b'data: {"error": {"message": "m", "code": "500"}}', ServerError),  # LiteLLM
            (b'data: {"error": {"code": 400, "type": "exceed_context_size_error"}}', ContextOverflow),  # llama.cpp
            (b'data: {"error": {"code": 401, "message": "key"}}', AuthenticationFailed),
            (b'error: {"code":500,"message":"m"}', ServerError),  # older llama.cpp
            (b'event: error\ndata: {"message":"m"}', ServerError),
            (b'data: {"error": "boom"}', ServerError),
            (b'data: {"error": {"type": ["x"], "code": {}}}', ServerError),
        ],
    )
    def test_inside_a_stream_ends_it_after_what_came_before(self, line: bytes, error: type[ModelError]) -> None:
        decoder = ChatDecoder(ModelRequest(messages=()))
        deltas = decoder.feed(text("a") + line + b"\n\n" + text("b") + STOP)
        assert shown(deltas) == "a"
        assert decoder.done and not decoder.finished
        assert type(decoder.error) is error

    def test_the_servers_words_stay_out_of_the_error_text(self) -> None:
        with pytest.raises(ServerError) as caught:
            decode(b'data: {"error": {"message": "canary"}}\n\n')
        assert "canary" not in str(caught.value) + repr(caught.value)
        assert "canary" in (caught.value.server_said or "")


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"data: ", b"\n\n", STOP, DONE, text("a"), b'{"choices":', b"[]}", b"null", b'"', b"{", b"event: error\n"]),
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v, max_size=3) | st.dictionaries(
                st.sampled_from(["choices", "delta", "content", "tool_calls", "function", "arguments", "name", "id", "index", "error", "usage", "finish_reason", "reasoning", "code"]), v, max_size=4)).map(
                lambda value: b"data: %s\n\n" % json.dumps(value).encode()),
        ),
        max_size=12,
    ).map(b"".join),
    cut_points,
)  # fmt: skip
def test_any_bytes_give_a_reply_or_a_documented_error_wherever_they_are_cut(body: bytes, points: list[int]) -> None:
    outcomes: list[Any] = []
    for chunks in ([body], cut(body, points)):
        decoder = ChatDecoder(ModelRequest(messages=()))
        deltas: list[Delta] = []
        for chunk in chunks:
            deltas += decoder.feed(chunk)
        deltas += decoder.close()
        assert decoder.finished is (decoder.error is None)
        assert shown(deltas) == decoder.reply.message.text
        outcomes.append((type(decoder.error), decoder.reply, shown(deltas)))
    assert outcomes[0] == outcomes[1]


def test_statuses() -> None:
    def error(status: int, body: bytes = b"", **headers: str) -> ModelError:
        return ChatCodec().error(status, headers, body, address="http://h/v1")

    assert type(error(429, b"", **{"Retry-After": "7"})) is RateLimited
    assert error(429, b"", **{"Retry-After": "7"}).retry_after_s == 7
    assert error(429, b"", **{"Retry-After": "soon"}).retry_after_s is None
    assert type(error(302, b"", Location="http://elsewhere")) is BadStream
    assert type(error(418)) is InvalidRequest
    assert type(error(599)) is ServerError
    assert type(error(400, b'{"error":{"param":"input_tokens"}}')) is ContextOverflow
    unkeyed = error(400, b'{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}')
    assert type(unkeyed) is AuthenticationFailed  # LiteLLM without a database (seen)
    assert "master key" in unkeyed.hint
    assert type(error(400, b"[" * 100_000)) is InvalidRequest
