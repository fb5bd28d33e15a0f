"""Laws 2, 3 and 4 for Responses streams. Shapes that no capture has are written from the official SDK's types (2026-11)."""

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
    ContentRefused,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    QuotaExceeded,
    RateLimited,
    ServerError,
    StreamTruncated,
)
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import Opaque, Text, Thinking, ToolCall
from treadle.values.request import ModelRequest, Options, Reply
from treadle.values.usage import Usage
from treadle.wire.responses import ResponsesCodec, ResponsesDecoder
from treadle.wire.responses_items import MAX_ITEMS
from treadle.wire.stream import MAX_BODY_BYTES


def event(type: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (type.encode(), json.dumps({"type": type, **fields}).encode())


def added(index: int, **item: Any) -> bytes:
    return event("response.output_item.added", output_index=index, item=item)


def done(index: int, **item: Any) -> bytes:
    return event("response.output_item.done", output_index=index, item=item)


def text(piece: str, id: str = "msg_1", index: int = 0) -> bytes:
    return event("response.output_text.delta", item_id=id, output_index=index, content_index=0, delta=piece)


def arguments(piece: str, id: str = "fc_1", index: int = 0) -> bytes:
    return event("response.function_call_arguments.delta", item_id=id, output_index=index, delta=piece)


def summary(piece: str, part: int = 0) -> bytes:
    return event("response.reasoning_summary_text.delta", item_id="rs_1", output_index=0, summary_index=part, delta=piece)


def ended(type: str = "completed", **response: Any) -> bytes:
    return event(f"response.{type}", response={"id": "resp_1", "status": type, **response})


MESSAGE = added(0, type="message", id="msg_1", role="assistant", status="in_progress", content=[])
COMPLETED = ended(usage={"input_tokens": 5, "output_tokens": 2})
REASONING = {
    "id": "rs_1",
    "type": "reasoning",
    "encrypted_content": "gAAAA==",
    "summary": [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "Two."}],
}
OPENAI = b"".join(
    [
        event("response.created", response={"id": "resp_1", "status": "in_progress", "model": "gpt-x", "output": []}),
        event("response.in_progress", response={"id": "resp_1", "status": "in_progress"}),
        added(0, id="rs_1", type="reasoning", summary=[], encrypted_content="gAA"),
        event("response.reasoning_summary_part.added", item_id="rs_1", output_index=0, summary_index=0, part={"type": "summary_text", "text": ""}),
        summary("One."),
        event("response.reasoning_summary_text.done", item_id="rs_1", output_index=0, summary_index=0, text="One."),
        summary("Two.", 1),
        done(0, **REASONING),
        added(1, id="msg_1", type="message", role="assistant", status="in_progress", phase="commentary", content=[]),
        event("response.content_part.added", item_id="msg_1", output_index=1, content_index=0, part={"type": "output_text", "text": "", "annotations": []}),
        text("I ", index=1),
        text("look.", index=1),
        event("response.output_text.done", item_id="msg_1", output_index=1, content_index=0, text="I look."),
        done(1, id="msg_1", type="message", role="assistant", status="completed", phase="commentary",
             content=[{"type": "output_text", "text": "I look.", "annotations": []}]),
        added(2, id="fc_1", type="function_call", call_id="call_1", name="f", arguments=""),
        added(3, id="fc_2", type="function_call", call_id="call_2", name="f", arguments=""),
        arguments('{"a":', "fc_1", 2),
        arguments("{}", "fc_2", 3),
        arguments(" 1}", "fc_1", 2),
        done(2, id="fc_1", type="function_call", status="completed", call_id="call_1", name="f", arguments='{"a": 1}'),
        done(3, id="fc_2", type="function_call", status="completed", call_id="call_2", name="f", arguments="{}"),
        ended(
            model="gpt-x",
            usage={
                "input_tokens": 9,
                "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 1},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 3},
            },
        ),
    ]
)  # fmt: skip


def decode(*chunks: bytes, **options: Any) -> tuple[list[Delta], Reply]:
    decoder = ResponsesDecoder(ModelRequest(messages=(), run_id="run", turn=3, attempt=2, options=Options(**options)))
    deltas = [delta for chunk in chunks for delta in decoder.feed(chunk)]
    deltas += decoder.close()
    if decoder.error:
        raise decoder.error
    return deltas, decoder.reply


def shown(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, TextDelta))


def call_deltas(deltas: list[Delta]) -> dict[int, str]:
    found: dict[int, str] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            found[delta.position] = found.get(delta.position, "") + delta.arguments
    return found


class TestAWholeTurn:
    """Written from documentation: no server here encrypts reasoning."""

    @given(cut_points)
    def test_reasoning_text_and_parallel_calls(self, points: list[int]) -> None:
        deltas, reply = decode(*cut(OPENAI, points))
        assert "".join(d.text for d in deltas if isinstance(d, ThinkingDelta)) == "One.\n\nTwo."
        assert shown(deltas) == "I look."
        assert call_deltas(deltas) == {0: '{"a": 1}', 1: "{}"}
        assert (reply.finish, reply.finish_said, reply.model) == ("tool_use", "completed", "gpt-x")
        assert reply.usage == Usage(
            input_tokens=9, output_tokens=7, cached_input_tokens=8, cache_creation_tokens=1, reasoning_tokens=3
        )
        assert reply.message.content == (
            Thinking("One.\n\nTwo.", "block"),
            Opaque("responses", json.dumps(REASONING)),
            Opaque("responses", '{"id":"msg_1","type":"message","role":"assistant","status":"completed","phase":"commentary"}'),
            Text("I look."),
            Opaque("responses", '{"id":"fc_1","type":"function_call","status":"completed"}'),
            ToolCall("call_1", "f", '{"a": 1}'),
            Opaque("responses", '{"id":"fc_2","type":"function_call","status":"completed"}'),
            ToolCall("call_2", "f", "{}"),
        )

    def test_one_read_of_many_tokens_is_one_delta(self) -> None:
        deltas, reply = decode(MESSAGE + text("Hel") + text("lo") + COMPLETED)
        assert deltas == [TextDelta(turn=3, attempt=2, text="Hello")]
        assert (reply.message.content, reply.finish, reply.usage) == (
            (Text("Hello"),), "end", Usage(input_tokens=5, output_tokens=2),
        )  # fmt: skip

    def test_cut_anywhere_it_is_no_success(self) -> None:
        for end in range(len(OPENAI) - 2):  # the last frame is whole without its blank line
            with pytest.raises(StreamTruncated):
                decode(OPENAI[:end])

    def test_a_turn_that_we_cut_keeps_the_ids_beside_its_reasoning(self) -> None:
        decoder = ResponsesDecoder(ModelRequest(messages=()))
        decoder.feed(OPENAI[: OPENAI.index(b"look.")])
        assert decoder.reply.finish is None
        assert decoder.reply.message.content[2:] == (
            Opaque("responses", '{"type":"message","id":"msg_1","status":"incomplete"}'), Text("I "),
        )  # fmt: skip


class TestHowATurnEnds:
    @pytest.mark.parametrize(
        ("end", "finish", "said"),
        [
            (ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length", "max_output_tokens"),
            (ended("incomplete", incomplete_details={"reason": "content_filter"}), "refused", "content_filter"),
            (ended("incomplete", incomplete_details={"reason": "steered"}), "unknown", "steered"),
            (ended("incomplete"), "unknown", "incomplete"),
            (ended("cancelled"), "unknown", "cancelled"),
            # vLLM, captured: the event says one thing, the response in it another
            (event("response.completed", response={"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
             "length", "max_output_tokens"),
            (event("response.completed"), "end", "completed"),
        ],
    )  # fmt: skip
    def test_reasons(self, end: bytes, finish: str, said: str) -> None:
        _, reply = decode(MESSAGE + text("a") + end)
        assert (reply.finish, reply.finish_said) == (finish, said)

    def test_a_call_that_the_bound_cut_does_not_run(self) -> None:
        body = added(0, type="function_call", id="fc_1", call_id="c", name="f") + arguments('{"a"')
        _, reply = decode(body + ended("incomplete", incomplete_details={"reason": "max_output_tokens"}))
        assert (reply.finish, reply.message.calls) == ("length", (ToolCall("c", "f", '{"a"'),))
        cut_call = done(0, type="function_call", id="fc_1", call_id="c", name="f", arguments='{"a"', status="incomplete")
        assert decode(body + cut_call + COMPLETED)[1].finish == "length"

    def test_llamacpp_does_not_say_that_its_bound_cut(self) -> None:
        assert decode(MESSAGE + text("a") + COMPLETED, max_tokens=2)[1].finish == "length"
        assert decode(MESSAGE + text("a") + COMPLETED, max_tokens=3)[1].finish == "end"

    def test_a_refusal(self) -> None:
        piece = event("response.refusal.delta", item_id="msg_1", output_index=0, content_index=0, delta="I will not.")
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
        whole = done(0, **item, content=[{"type": "refusal", "refusal": "I will not."}])
        for body in (MESSAGE + piece + whole, MESSAGE + whole, whole):
            deltas, reply = decode(body + COMPLETED)
            assert (shown(deltas), reply.message.text, reply.finish) == ("I will not.", "I will not.", "refused")
            assert reply.message.content[0] == Opaque(
                "responses", json.dumps({**item, "content": [{"type": "refusal"}]}, separators=(",", ":"))
            )

    @pytest.mark.parametrize("body", [b"", b"data: [DONE]\n\n", MESSAGE + text("a"), MESSAGE + text("a") + b"data: [DONE]\n\n"])
    def test_without_a_word_on_the_end_it_is_truncated(self, body: bytes) -> None:
        with pytest.raises(StreamTruncated):
            decode(body)

    def test_nothing_is_read_after_the_end(self) -> None:
        decoder = ResponsesDecoder(ModelRequest(messages=()))
        decoder.feed(MESSAGE + text("a") + COMPLETED)
        assert decoder.done and decoder.finished
        assert decoder.feed(text("b")) == []
        decoder.close(clean=False)
        assert (decoder.error, decoder.reply.message.text) == (None, "a")


class TestItems:
    def test_no_indices_and_ends_all_together_as_llamacpp_sends_it(self) -> None:
        """Captured in part: xllamacpp--responses-tools-stream."""

        def bare(type: str, **fields: Any) -> bytes:
            return b"data: " + json.dumps({"type": f"response.{type}", **fields}).encode() + b"\n\n"

        body = bare("output_item.added", item={"type": "reasoning", "id": "rs_1", "summary": [], "content": []})
        body += bare("reasoning_text.delta", item_id="rs_1", delta="hm")
        body += bare("output_item.added", item={"type": "message", "id": "msg_1", "content": []})
        body += bare("output_text.delta", item_id="msg_1", delta="I look.")
        for n in "12":
            body += bare("output_item.added", item={"type": "function_call", "id": f"fc_{n}", "call_id": n, "name": "f"})
            body += bare("function_call_arguments.delta", item_id=f"fc_{n}", delta="{}")
        item = {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "hm"}]}
        body += bare("output_item.done", item=item)
        for n in "12":
            body += bare(
                "output_item.done", item={"type": "function_call", "id": f"fc_{n}", "call_id": n, "name": "f", "arguments": "{}"}
            )
        deltas, reply = decode(body + COMPLETED)
        assert reply.message.content == (
            Thinking("hm", "block"), Opaque("responses", json.dumps(item)), Text("I look."), ToolCall("1", "f", "{}"), ToolCall("2", "f", "{}"),
        )  # fmt: skip
        assert call_deltas(deltas) == {0: "{}", 1: "{}"}

    def test_an_item_that_has_another_id_in_each_event(self) -> None:
        body = added(0, type="function_call", id="a", call_id="c", name="f") + arguments("{", "b") + arguments("}", "d")
        body += done(0, type="function_call", id="e", call_id="c", name="f", arguments="{}")
        assert decode(body + COMPLETED)[1].message.calls == (ToolCall("c", "f", "{}"),)

    def test_two_calls_that_share_an_item_id_stay_two(self) -> None:
        body = b"".join(added(i, type="function_call", id="fc", call_id=f"c{i}", name="f") for i in (0, 1))
        body += b"".join(done(i, type="function_call", id="fc", call_id=f"c{i}", name="f", arguments=f"[{i}]") for i in (0, 1))
        calls = decode(body + COMPLETED)[1].message.calls
        assert calls == (ToolCall("c0", "f", "[0]"), ToolCall("c1", "f", "[1]"))

    def test_calls_without_an_id_or_with_one_twice_get_ours(self) -> None:
        body = b"".join(
            done(i, type="function_call", id=f"fc_{i}", call_id="c" * (i > 0), name="f", arguments="{}") for i in range(3)
        )
        ids = [call.id for call in decode(body + COMPLETED)[1].message.calls]
        assert ids == ["call_run_3_0", "c", "call_run_3_2"]

    def test_items_that_only_the_finished_response_has(self) -> None:
        call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
        message = {"type": "message", "id": "x", "content": [{"type": "output_text", "text": "Hi"}]}
        deltas, reply = decode(ended(output=[message, call]))
        assert (shown(deltas), reply.message.content) == ("Hi", (Text("Hi"), ToolCall("c", "f", "{}")))
        # the stream had the message under another id: it is not said twice
        deltas, reply = decode(MESSAGE + text("Hi") + ended(output=[message, call]))
        assert (shown(deltas), reply.message.content) == ("Hi", (Text("Hi"), ToolCall("c", "f", "{}")))

    def test_arguments_as_an_object_and_arguments_that_the_end_corrects(self) -> None:
        call: dict[str, Any] = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f"}
        assert decode(done(0, **call, arguments={"a": 1}) + COMPLETED)[1].message.calls[0].arguments == '{"a": 1}'
        corrected = added(0, **call) + arguments("{'a'") + done(0, **call, arguments='{"a":2}')
        assert decode(corrected + COMPLETED)[1].message.calls[0].arguments == '{"a":2}'

    def test_items_of_unknown_types_are_kept_as_they_came(self) -> None:
        item = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"q": "é"}}
        body = added(0, type="web_search_call", id="ws_1") + event("response.web_search_call.searching", item_id="ws_1")
        body += done(0, **item) + done(1, type="message", id="m", content=[{"type": "output_text", "text": "Hi"}])
        reply = decode(body + COMPLETED)[1]
        assert reply.message.content == (Opaque("responses", json.dumps(item)), Text("Hi"))

    def test_a_message_reads_as_it_was_shown(self) -> None:
        body = text("a", "m1", 0) + text("b", "m2", 1) + text("c", "m1", 0) + COMPLETED
        deltas, reply = decode(body)
        assert shown(deltas) == "abc" == reply.message.text

    def test_reasoning_in_both_ways_is_shown_once(self) -> None:
        also = event("response.reasoning_text.delta", item_id="rs_1", output_index=0, content_index=0, delta="raw")
        assert decode(summary("One.") + also + COMPLETED)[1].message.thinking == "One."

    def test_reasoning_that_shows_nothing_is_kept_all_the_same(self) -> None:
        item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
        assert decode(done(0, **item) + COMPLETED)[1].message.content == (Opaque("responses", json.dumps(item)),)

    def test_items_without_end_are_bounded(self) -> None:
        body = b"".join(added(i, type="function_call", id=f"fc_{i}", call_id=str(i), name="f") for i in range(MAX_ITEMS + 1))
        with pytest.raises(BadStream):
            decode(body + COMPLETED)

    def test_half_a_surrogate_pair_and_bytes_that_are_no_utf8(self) -> None:
        half = b'data: {"type":"response.output_text.delta","delta":"a\\ud83d"}\n\n'
        assert decode(half + COMPLETED)[1].message.text == "a\ufffd"
        item = b'data: {"type":"response.output_item.done","item":{"type":"function_call","name":"f","arguments":"{\\"a\\":\\"\\ud83d\xe9\\"}"}}\n\n'
        decode(item + COMPLETED)[1].message.calls[0].arguments.encode()


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": None}, {"input_tokens": "5"}, {"input_tokens": -1}, 7])
def test_absent_counts_are_none_and_never_zero(usage: Any) -> None:
    assert decode(ended(usage=usage))[1].usage == Usage()


class TestNotAStream:
    def test_plain_json_where_a_stream_was_asked_for(self) -> None:
        whole = {"object": "response", "status": "completed", "model": "m", "error": None,
                 "output": [{"type": "message", "id": "x", "content": [{"type": "output_text", "text": "Hi"}]}]}  # fmt: skip
        body = b"\n " + json.dumps(whole).encode()
        deltas, reply = decode(*(body[i : i + 1] for i in range(len(body))))
        assert (shown(deltas), reply.finish, reply.model) == ("Hi", "end", "m")

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            (b"<!DOCTYPE html><title>nginx</title>", BadStream),
            (b"Internal Server Error", BadStream),
            (b'{"detail": "Not Found"}', BadStream),
            (b'{"object": "response", "status": "queued", "output": []}', BadStream),
            (b'{"error": "nope"}', ServerError),
            (b'{"error": {"message": "slow down", "code": 429}}', RateLimited),
            (b'{"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "m"}}', RateLimited),
            (b'{"status": "completed"', StreamTruncated),
            (b": keep-alive\n", StreamTruncated),
            (b"event: response.created\n", StreamTruncated),
            (b"detail: not found\n", BadStream),
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

    def test_a_body_and_a_stream_without_end_are_bounded(self) -> None:
        for piece in (b"{" + b" " * 2**20, b": " + b"x" * 2**20 + b"\n"):
            decoder = ResponsesDecoder(ModelRequest(messages=()))
            for _ in range(MAX_BODY_BYTES // 2**20 + 1):
                decoder.feed(piece)
            assert decoder.done and isinstance(decoder.error, BadStream)


class TestErrorsInsideAStream:
    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (event("error", code="rate_limit_exceeded", message="m", param=None, sequence_number=3), RateLimited),
            (event("error", code=None, message="m"), ServerError),
            (event("error", error={"code": "insufficient_quota", "message": "m"}), QuotaExceeded),
            (event("error", code="context_length_exceeded", message="m"), ContextOverflow),
            (ended("failed", error={"code": "server_error", "message": "m"}), ServerError),
            (ended("failed", error={"code": "rate_limit_exceeded", "message": "m"}), RateLimited),
            (ended("failed", error={"code": "invalid_prompt", "message": "m"}), InvalidRequest),
            (ended("failed", error={"code": "image_too_large", "message": "m"}), InvalidRequest),
            (ended("failed", error={"code": "bio_policy", "message": "m"}), ContentRefused),
            (ended("failed", error={"code": "image_content_policy_violation", "message": "m"}), ContentRefused),
            (ended("failed", error=None), ServerError),
            (b'data: {"error": {"message": "m", "type": "BadRequestError", "code": 400}}\n\n', InvalidRequest),  # vLLM, chat
            (b'data: {"error": {"message": "m", "code": "500"}}\n\n', ServerError),  # LiteLLM, chat
            (b'data: {"error": {"code": 400, "type": "exceed_context_size_error"}}\n\n', ContextOverflow),  # llama.cpp, chat
            (b'data: {"error": {"code": 401}}\n\n', AuthenticationFailed),
            (b'error: {"code":500,"message":"m"}\n\n', ServerError),
            (b"event: error\ndata: boom\n\n", ServerError),
        ],
    )
    def test_end_it_after_what_came_before(self, line: bytes, error: type[ModelError]) -> None:
        decoder = ResponsesDecoder(ModelRequest(messages=()))
        deltas = decoder.feed(MESSAGE + text("a") + line + text("b") + COMPLETED)
        assert shown(deltas) == "a"
        assert decoder.done and not decoder.finished
        assert type(decoder.error) is error

    def test_the_servers_words_stay_out_of_the_error_text(self) -> None:
        for code in ("server_error", "bio_policy"):
            with pytest.raises(ModelError) as caught:
                decode(ended("failed", error={"code": code, "message": "canary"}))
            assert "canary" not in str(caught.value) + repr(caught.value)
            assert "canary" in (caught.value.server_said or "")


_TYPES = ["output_item.added", "output_item.done", "output_text.delta", "refusal.delta", "function_call_arguments.delta",
          "reasoning_text.delta", "reasoning_summary_text.delta", "completed", "incomplete", "failed", "created"]  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=5) | st.sampled_from(["message", "reasoning", "function_call"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "id", "call_id", "name", "arguments", "content", "summary", "text", "refusal", "status", "output", "error",
         "usage", "phase", "encrypted_content", "incomplete_details", "reason", "code"]), v, max_size=5),
)  # fmt: skip
_FIELDS = st.dictionaries(
    st.sampled_from(["item", "delta", "item_id", "output_index", "summary_index", "response", "error", "model"]),
    _VALUES,
    max_size=4,
)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"data: ", b"\n\n", MESSAGE, COMPLETED, text("a"), arguments("{}"), summary("s"), b"data: [DONE]\n\n", b"{"]),
            st.tuples(st.sampled_from(_TYPES), _FIELDS).map(lambda made: event(f"response.{made[0]}", **made[1])),
        ),
        max_size=12,
    ).map(b"".join),
    cut_points,
)  # fmt: skip
def test_any_bytes_give_a_reply_or_a_documented_error_wherever_they_are_cut(body: bytes, points: list[int]) -> None:
    outcomes: list[Any] = []
    for chunks in ([body], cut(body, points)):
        decoder = ResponsesDecoder(ModelRequest(messages=()))
        deltas: list[Delta] = []
        for chunk in chunks:
            deltas += decoder.feed(chunk)
        deltas += decoder.close()
        assert decoder.finished is (decoder.error is None)
        reply = decoder.reply
        assert shown(deltas) == reply.message.text
        assert "".join(d.text for d in deltas if isinstance(d, ThinkingDelta)) == reply.message.thinking
        ResponsesCodec().encoder("m").encode(ModelRequest(messages=(reply.message,)))  # what was read can be sent back
        outcomes.append((type(decoder.error), reply, shown(deltas), call_deltas(deltas)))
    assert outcomes[0] == outcomes[1]


def test_statuses() -> None:
    def error(status: int, body: bytes = b"") -> ModelError:
        return ResponsesCodec().error(status, {}, body, address="http://h/v1")

    assert type(error(429)) is RateLimited
    assert type(error(400, b'{"error":{"code":"context_length_exceeded"}}')) is ContextOverflow
    assert type(error(400, b'{"error":{"param":"include","message":"Encrypted content is not supported"}}')) is InvalidRequest
