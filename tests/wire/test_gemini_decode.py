"""Gemini answers. There are no captures: every shape here is written from the documentation named in docs/protocols/gemini.md."""

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
    ModelNotFound,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    ServerError,
    StreamTruncated,
    Unsupported,
)
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import Opaque, Text, Thinking, ToolCall
from treadle.values.request import ModelRequest, Reply
from treadle.values.usage import Usage
from treadle.wire.gemini import GeminiCodec, GeminiDecoder
from treadle.wire.stream import MAX_BODY_BYTES


def chunk(*parts: Any, finish: Any = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], **more}


def frame(*parts: Any, finish: Any = None, **more: Any) -> bytes:
    return b"data: %s\r\n\r\n" % json.dumps(chunk(*parts, finish=finish, **more)).encode()


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"text": value, **more}


def call(name: str, args: Any = None, signature: str | None = None, **more: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"functionCall": {"name": name, "args": args or {}, **more}}
    return part if signature is None else {**part, "thoughtSignature": signature}


def decode(*chunks: bytes) -> tuple[list[Delta], Reply]:
    decoder = GeminiDecoder(ModelRequest(messages=(), run_id="0123456789abcdef", turn=3, attempt=2))
    deltas = [delta for piece in chunks for delta in decoder.feed(piece)]
    deltas += decoder.close()
    if decoder.error:
        raise decoder.error
    return deltas, decoder.reply


def shown(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, TextDelta))


WHOLE = (
    frame(text("Hm.", thought=True), usageMetadata={"promptTokenCount": 9}, modelVersion="gemini-2.5-flash")
    + frame(text("I "), text("look."))
    + frame(call("get_weather", {"city": "Oslo"}, "c2ln", id="fc1"), call("get_weather", {"city": "Lima"}))
    + frame(
        text("", thoughtSignature="ZW5k"),
        finish="STOP",
        usageMetadata={
            "promptTokenCount": 9,
            "cachedContentTokenCount": 4,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 2,
            "totalTokenCount": 16,
        },
    )
)


def test_a_whole_turn() -> None:
    """Golden from documentation: text generation, function calling, thinking, thought signatures."""
    deltas, reply = decode(WHOLE)
    assert deltas == [
        ThinkingDelta(turn=3, attempt=2, text="Hm."),
        TextDelta(turn=3, attempt=2, text="I look."),
        ToolCallDelta(turn=3, attempt=2, position=0, name="get_weather", arguments='{"city": "Oslo"}'),
        ToolCallDelta(turn=3, attempt=2, position=1, name="get_weather", arguments='{"city": "Lima"}'),
    ]
    assert reply.message.content == (
        Thinking("Hm.", "block", None, "gemini:"),
        Text("I look."),
        ToolCall("fc1", "get_weather", '{"city": "Oslo"}', "gemini:c2ln"),
        ToolCall("call_01234567_3_1", "get_weather", '{"city": "Lima"}'),
        Opaque("gemini", '{"text": "", "thoughtSignature": "ZW5k"}'),
    )
    assert (reply.finish, reply.finish_said, reply.model) == ("tool_use", "STOP", "gemini-2.5-flash")
    assert reply.usage == Usage(input_tokens=9, output_tokens=7, cached_input_tokens=4, reasoning_tokens=2)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_same_at_every_cut(size: int) -> None:
    pieces = [WHOLE[i : i + size] for i in range(0, len(WHOLE), size)]
    assert decode(*pieces)[1] == decode(WHOLE)[1]


def test_a_cut_stream_is_never_a_success() -> None:
    last = WHOLE.rindex(b"data: ")
    for end in range(len(WHOLE)):
        decoder = GeminiDecoder(ModelRequest(messages=()))
        decoder.feed(WHOLE[:end])
        decoder.close()
        whole = end >= len(WHOLE.rstrip())  # only the blank line is missing
        assert (decoder.error is None) is whole, end
        if not whole and end > last:
            assert isinstance(decoder.error, StreamTruncated)


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8), cut_points)
def test_deltas_come_to_the_turns_text_wherever_the_stream_is_cut(pieces: list[str], points: list[int]) -> None:
    body = b"".join(frame(text(piece)) for piece in pieces) + frame(finish="STOP")
    deltas, reply = decode(*cut(body, points))
    assert shown(deltas) == reply.message.text == "".join(pieces)


class TestSignatures:
    """Documented: neither two signed parts nor a signed and an unsigned one may be merged."""

    def test_a_signed_text_stays_a_part_of_its_own(self) -> None:
        body = frame(text("a")) + frame(text("b")) + frame(text("c", thoughtSignature="Uw==")) + frame(text("d"), finish="STOP")
        deltas, reply = decode(body)
        assert shown(deltas) == reply.message.text == "abcd"
        assert reply.message.content == (
            Text("ab"),
            Text("c"),
            Opaque("gemini", '{"text": "c", "thoughtSignature": "Uw=="}'),
            Text("d"),
        )

    def test_signed_thoughts_are_not_merged(self) -> None:
        body = frame(text("a", thought=True)) + frame(text("b", thought=True, thoughtSignature="Uw==")) + frame(
            text("c", thought=True), text("", thought=True, thoughtSignature="VA=="), finish="STOP")  # fmt: skip
        assert decode(body)[1].message.content == (
            Thinking("a", "block", None, "gemini:"),
            Thinking("b", "block", None, "gemini:Uw=="),
            Thinking("c", "block", None, "gemini:"),
            Thinking("", "block", None, "gemini:VA=="),
        )


class TestCalls:
    def test_arguments_keep_their_characters(self) -> None:
        body = b'data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"p" :"/a","n":1.0}}}]},"finishReason":"STOP"}]}\n\n'
        assert decode(body)[1].message.calls[0].arguments == '{"p" :"/a","n":1.0}'

    @pytest.mark.parametrize("function", [{"name": "f"}, {"name": "f", "args": None}, {"name": "f", "args": {}}])
    def test_a_call_may_leave_out_its_arguments(self, function: Any) -> None:
        assert decode(frame({"functionCall": function}, finish="STOP"))[1].message.calls[0].arguments == "{}"

    def test_equal_calls_are_two_and_equal_ids_are_made_two(self) -> None:
        reply = decode(frame(call("f", {"a": 1}, id="x"), call("f", {"a": 1}, id="x"), finish="STOP"))[1]
        assert [c.id for c in reply.message.calls] == ["x", "call_01234567_3_1"]

    def test_calls_of_a_cut_turn_do_not_run(self) -> None:
        assert decode(frame(call("f"), finish="MAX_TOKENS"))[1].finish == "length"

    def test_too_many(self) -> None:
        with pytest.raises(BadStream, match="tool calls"):
            decode(*[frame(*[call("f")] * 100)] * 11)


class TestTerminalProof:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            frame(text("a")),
            frame(text("a"), finish="FINISH_REASON_UNSPECIFIED"),
            frame(text("a"), finish=""),
            frame(text("a"), usageMetadata={"promptTokenCount": 1}),
            frame(text("a"), promptFeedback={"blockReason": "BLOCK_REASON_UNSPECIFIED"}),
            frame(text("a")) + b"data: [DONE]\n\n",
            b"[" + json.dumps(chunk(text("a"), finish="STOP")).encode(),
        ],
    )
    def test_without_a_reason_it_is_truncated(self, body: bytes) -> None:
        with pytest.raises(StreamTruncated):
            decode(body)
        with pytest.raises(StreamTruncated):
            decode(*(body[i : i + 1] for i in range(len(body))))

    @pytest.mark.parametrize(
        ("said", "finish"),
        [
            ("STOP", "end"),
            ("MAX_TOKENS", "length"),
            ("CONTINUATION", "length"),
            *((said, "refused") for said in ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")),
            *((said, "refused") for said in ("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR")),
            *((said, "unknown") for said in ("OTHER", "MALFORMED_FUNCTION_CALL", "TOO_MANY_TOOL_CALLS", "NEW", 7)),
        ],
    )
    def test_reasons(self, said: Any, finish: str) -> None:
        """Golden from documentation: the enum FinishReason."""
        reply = decode(frame(text("a"), finish=said))[1]
        assert (reply.finish, reply.finish_said) == (finish, str(said))

    def test_an_unknown_reason_runs_no_calls(self) -> None:
        assert decode(frame(call("f"), finish="OTHER"))[1].finish == "unknown"

    def test_a_refused_answer_has_no_content(self) -> None:
        body = b'data: {"candidates":[{"finishReason":"SAFETY","index":0,"safetyRatings":[]}]}\n\n'
        reply = decode(body)[1]
        assert (reply.finish, reply.finish_said, reply.message.content) == ("refused", "SAFETY", ())

    def test_a_blocked_prompt_is_a_refusal(self) -> None:
        body = b'data: {"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":8}}\n\n'
        reply = decode(body)[1]
        assert (reply.finish, reply.finish_said, reply.usage) == ("refused", "PROHIBITED_CONTENT", Usage(input_tokens=8))

    @pytest.mark.parametrize("parts", [[], [text("hm", thought=True)]])
    def test_a_call_that_the_server_could_not_parse_may_be_asked_for_again(self, parts: list[Any]) -> None:
        with pytest.raises(ServerError, match="could not parse") as caught:
            decode(frame(*parts, finish="MALFORMED_FUNCTION_CALL"))
        assert caught.value.retryable

    def test_an_answer_that_goes_on_after_its_reason_needs_a_proper_end(self) -> None:
        """Older models said STOP with every chunk (reported)."""
        decoder = GeminiDecoder(ModelRequest(messages=()))
        decoder.feed(frame(text("a"), finish="STOP") + frame(text("b"), finish="STOP"))
        assert not decoder.finished
        decoder.close(clean=False)
        assert isinstance(decoder.error, StreamTruncated)
        assert decode(frame(text("a"), finish="STOP"), frame(text("b"), finish="STOP"))[1].finish == "end"


class TestUsage:
    @pytest.mark.parametrize("usage", [None, {}, {"promptTokenCount": None}, {"promptTokenCount": "5"}, 7])
    def test_absent_is_none_and_never_zero(self, usage: Any) -> None:
        assert decode(frame(finish="STOP", usageMetadata=usage))[1].usage == Usage()

    def test_the_last_one_counts(self) -> None:
        body = frame(text("a"), usageMetadata={"promptTokenCount": 5, "candidatesTokenCount": 1}) + frame(
            finish="STOP", usageMetadata={"promptTokenCount": 5, "candidatesTokenCount": 3}
        )
        assert decode(body)[1].usage == Usage(input_tokens=5, output_tokens=3)

    def test_only_thoughts_before_the_cut(self) -> None:
        usage = {"promptTokenCount": 5, "thoughtsTokenCount": 30, "totalTokenCount": 35}
        reply = decode(frame(finish="MAX_TOKENS", usageMetadata=usage))[1]
        assert reply.usage == Usage(input_tokens=5, output_tokens=30, reasoning_tokens=30)

    def test_what_the_servers_own_tools_read_is_input(self) -> None:
        usage = {"promptTokenCount": 5, "toolUsePromptTokenCount": 10, "candidatesTokenCount": 2, "totalTokenCount": 17}
        assert decode(frame(finish="STOP", usageMetadata=usage))[1].usage == Usage(input_tokens=15, output_tokens=2)


class TestOddShapes:
    @pytest.mark.parametrize(
        "part",
        [
            {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}},
            {"executableCode": {"language": "PYTHON", "code": "1+1"}},
            {"futurePart": {"a": 1}, "thoughtSignature": "Uw=="},
        ],
    )
    def test_unknown_parts_are_kept(self, part: Any) -> None:
        reply = decode(frame(part, text("a"), finish="STOP"))[1]
        assert reply.message.content == (Opaque("gemini", json.dumps(part)), Text("a"))

    def test_other_candidates_are_ignored(self) -> None:
        body = b'data: {"candidates":[null,{"index":1,"content":{"parts":[{"text":"x"}]},"finishReason":"STOP"}]}\n\n'
        assert decode(body + frame(text("a"), {}, None, finish="STOP"))[1].message.content == (Text("a"),)

    @pytest.mark.parametrize("array", [True, False])
    def test_json_where_a_stream_was_asked_for(self, array: bool) -> None:
        body = [chunk(text("Hi")), chunk(finish="STOP")] if array else chunk(text("Hi"), finish="STOP")
        data = b"\n" + json.dumps(body, indent=2).encode()
        deltas, reply = decode(*(data[i : i + 1] for i in range(len(data))))
        assert (shown(deltas), reply.finish) == ("Hi", "end")

    def test_bytes_that_are_no_utf8_and_half_a_surrogate_pair(self) -> None:
        body = b'data: {"candidates":[{"content":{"parts":[{"text":"caf\xe9 \\ud83d"}]},"finishReason":"STOP"}]}\n\n'
        assert decode(body)[1].message.text == "caf\ufffd \ufffd"

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            (b"<!DOCTYPE html>", BadStream),
            (b"Internal Server Error", BadStream),
            (b'{"detail": "Not Found"}', BadStream),
            (b"[]", BadStream),
            (b"[1]", BadStream),
            (b"data: {not json}\n\n", BadStream),
            (b"data: [1]\n\n", BadStream),
            (b"data: " + b"[" * 100_000 + b"\n\n", BadStream),
            (b"[" * 100_000, ModelError),
            (b": keep-alive\n\n", StreamTruncated),
            (b"detail: not found\n", BadStream),
            (b'data: {"candidates":[{"content":{"parts":[{"functionCall":"f"}]}}]}\n\n', BadStream),
            (b'{"error": {"code": 503, "status": "UNAVAILABLE"}}', Overloaded),
            (b'[{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}]', InvalidRequest),
        ],
    )
    def test_typed_errors(self, body: bytes, error: type[ModelError]) -> None:
        with pytest.raises(error) as caught:
            decode(body)
        assert caught.value.hint

    def test_a_body_without_end_is_bounded(self) -> None:
        decoder = GeminiDecoder(ModelRequest(messages=()))
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            decoder.feed(b"{" + b" " * 2**20)
        assert decoder.done and isinstance(decoder.error, BadStream)


def status(code: int, said: str, message: str = "canary", details: Any = ()) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": said, "details": list(details)}}


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}
PER_DAY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
}
INVALID_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
ERRORS: list[tuple[dict[str, Any], type[ModelError], float | None]] = [
    # Documented: the API's troubleshooting page and google.rpc.
    (status(400, "INVALID_ARGUMENT"), InvalidRequest, None),
    (status(400, "FAILED_PRECONDITION"), InvalidRequest, None),
    (status(403, "PERMISSION_DENIED"), AuthenticationFailed, None),
    (status(404, "NOT_FOUND"), ModelNotFound, None),
    (status(429, "RESOURCE_EXHAUSTED"), RateLimited, None),
    (status(429, "RESOURCE_EXHAUSTED", details=[{}, RETRY]), RateLimited, 37.5),
    (status(429, "RESOURCE_EXHAUSTED", details=[{"retryDelay": "soon"}, 7]), RateLimited, None),
    (status(500, "INTERNAL"), ServerError, None),
    (status(503, "UNAVAILABLE"), Overloaded, None),
    (status(504, "DEADLINE_EXCEEDED"), Overloaded, None),
    # Reported: wordings that users quote.
    (status(429, "RESOURCE_EXHAUSTED", details=[PER_DAY, RETRY]), QuotaExceeded, 37.5),
    (status(400, "INVALID_ARGUMENT", details=[INVALID_KEY]), AuthenticationFailed, None),
    (
        status(
            400, "INVALID_ARGUMENT", "The input token count (1300000) exceeds the maximum number of tokens allowed (1048575)."
        ),
        ContextOverflow,
        None,
    ),
    (status(400, "INVALID_ARGUMENT", "Function calling is not enabled for models/x"), Unsupported, None),
]


@pytest.mark.parametrize(("body", "error", "wait"), ERRORS)
class TestErrors:
    def check(self, caught: ModelError, error: type[ModelError], wait: float | None) -> None:
        assert type(caught) is error
        assert caught.retry_after_s == wait
        assert caught.hint and "canary" not in str(caught) + repr(caught)

    @pytest.mark.parametrize("array", [True, False])
    def test_bodies(self, body: Any, error: type[ModelError], wait: float | None, array: bool) -> None:
        code = body["error"]["code"]
        data = json.dumps([body] if array else body).encode()
        caught = GeminiCodec("m").error(code, {}, data, address="http://h/v1beta")
        self.check(caught, error, wait)
        assert caught.status == code

    def test_inside_the_stream_after_what_came_before(self, body: Any, error: type[ModelError], wait: float | None) -> None:
        decoder = GeminiDecoder(ModelRequest(messages=()))
        deltas = decoder.feed(frame(text("a")) + b"data: %s\n\n" % json.dumps(body).encode() + frame(text("b"), finish="STOP"))
        assert shown(deltas) == "a"
        assert decoder.done and not decoder.finished and decoder.error is not None
        self.check(decoder.error, error, wait)


def test_other_answers() -> None:
    codec = GeminiCodec("m")
    assert type(codec.error(429, {"Retry-After": "7"}, b"slow", address="a")) is RateLimited
    assert (
        codec.error(429, {"Retry-After": "7"}, json.dumps(status(429, "RESOURCE_EXHAUSTED")).encode(), address="a").retry_after_s
        == 7
    )
    assert type(codec.error(302, {"Location": "http://x"}, b"", address="a")) is BadStream
    assert type(codec.error(400, {}, b"[" * 100_000, address="a")) is InvalidRequest
    assert type(codec.error(400, {}, b"[]", address="a")) is InvalidRequest


_KEYS = [
    "candidates", "content", "parts", "text", "thought", "thoughtSignature", "functionCall", "name", "args", "id", "index",
    "finishReason", "promptFeedback", "blockReason", "usageMetadata", "promptTokenCount", "error", "code", "status", "details",
]  # fmt: skip


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [b"data: ", b"\n\n", frame(finish="STOP"), frame(text("a")), WHOLE, b"data: [DONE]\n\n", b"[", b"{", b'"']
            ),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), v, max_size=4),
            ).map(lambda value: b"data: %s\n\n" % json.dumps(value).encode()),
        ),
        max_size=12,
    ).map(b"".join),
    cut_points,
)
def test_any_bytes_give_a_reply_or_a_documented_error_wherever_they_are_cut(body: bytes, points: list[int]) -> None:
    outcomes: list[Any] = []
    for chunks in ([body], cut(body, points)):
        decoder = GeminiDecoder(ModelRequest(messages=()))
        deltas: list[Delta] = []
        for piece in chunks:
            deltas += decoder.feed(piece)
        deltas += decoder.close()
        assert decoder.finished is (decoder.error is None)
        assert shown(deltas) == decoder.reply.message.text
        outcomes.append((type(decoder.error), decoder.reply, shown(deltas)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("reason", [{"a": 1}, [1], 7, True])
def test_a_reason_of_another_type_is_an_unknown_one(reason: Any) -> None:
    _, reply = decode(frame(text("Hi"), finish=reason))
    assert (reply.finish, reply.message.text) == ("unknown", "Hi")
