"""The Anthropic format, read: terminal proof, blocks, usage, errors, any bytes.

Streams here are written from the documentation (docs/protocols/anthropic.md), except where a server is named: nothing that we could
run produced redacted reasoning, server tools, `pause_turn`, refusals, cache creation or pings.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.chat_captures import merged
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
)
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import Opaque, Text, Thinking, ToolCall, UserMessage
from treadle.values.request import ModelRequest, Options, Reply
from treadle.values.usage import Usage
from treadle.wire.anthropic import AnthropicCodec, AnthropicDecoder
from treadle.wire.anthropic_requests import ANTHROPIC_API, AnthropicDialect
from treadle.wire.stream import MAX_BODY_BYTES

REQUEST = ModelRequest(messages=(), run_id="run", turn=3, attempt=2)


def event(type: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (type.encode(), json.dumps({"type": type, **fields}).encode())


def start(**usage: Any) -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": None}
    return event("message_start", message={**message, "usage": usage or {"input_tokens": 5, "output_tokens": 1}})


def block(index: int, **fields: Any) -> bytes:
    return event("content_block_start", index=index, content_block=fields)


def delta(index: int, type: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": type, **fields})


def end(index: int) -> bytes:
    return event("content_block_stop", index=index)


def text(value: str, index: int = 0) -> bytes:
    return block(index, type="text", text="") + delta(index, "text_delta", text=value) + end(index)


def stop(reason: Any = "end_turn", **usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage or {"output_tokens": 2})


def call(index: int, id: str, name: str, *pieces: str) -> bytes:
    body = b"".join(delta(index, "input_json_delta", partial_json=piece) for piece in pieces)
    return block(index, type="tool_use", id=id, name=name, input={}) + body + end(index)


PING = event("ping")
STOP = event("message_stop")


def decode(*chunks: bytes) -> tuple[list[Delta], Reply]:
    decoder = AnthropicDecoder(REQUEST)
    deltas = [delta for chunk in chunks for delta in decoder.feed(chunk)]
    deltas += decoder.close()
    if decoder.error:
        raise decoder.error
    return deltas, decoder.reply


def shown(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, TextDelta))


FOUND = {"type": "web_search_result", "url": "https://oslo.example", "title": "Oslo", "encrypted_content": "Eo8DCio="}

FULL = b"".join(
    [
        start(input_tokens=7, cache_read_input_tokens=100, cache_creation_input_tokens=20, output_tokens=1),
        PING,
        block(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="let me "),
        delta(0, "thinking_delta", thinking="see"),
        delta(0, "signature_delta", signature="EqQBCgIYAhIM=="),
        end(0),
        block(1, type="redacted_thinking", data="EmwKAhgBEgy+/=="),
        end(1),
        text("I look.", 2),
        block(3, type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        delta(3, "input_json_delta", partial_json=""),
        delta(3, "input_json_delta", partial_json='{"query" :'),
        delta(3, "input_json_delta", partial_json=' "oslo"}'),
        end(3),
        block(4, type="web_search_tool_result", tool_use_id="srvtoolu_1", content=[FOUND]),
        end(4),
        call(5, "toolu_1", "get_weather", "", '{"city" :', '"Oslo"}'),
        call(6, "toolu_2", "now"),
        stop("tool_use", output_tokens=89, output_tokens_details={"thinking_tokens": 40}),
        STOP,
    ]
)


def test_a_turn_with_everything() -> None:
    """Written from the documentation."""
    deltas, reply = decode(FULL)
    assert deltas == [
        ThinkingDelta(turn=3, attempt=2, text="let me see"),
        TextDelta(turn=3, attempt=2, text="I look."),
        ToolCallDelta(turn=3, attempt=2, position=0, name="get_weather", arguments='{"city" :"Oslo"}'),
        ToolCallDelta(turn=3, attempt=2, position=1, name="now", arguments="{}"),
    ]
    assert reply.message.content == (
        Thinking("let me see", "block", None, "EqQBCgIYAhIM=="),
        Opaque("anthropic", '{"type": "redacted_thinking", "data": "EmwKAhgBEgy+/=="}'),
        Text("I look."),
        Opaque("anthropic", '{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{"query" : "oslo"}}'),
        Opaque("anthropic", json.dumps({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [FOUND]})),
        ToolCall("toolu_1", "get_weather", '{"city" :"Oslo"}'),
        ToolCall("toolu_2", "now", "{}"),
    )
    assert reply.usage == Usage(
        input_tokens=127, output_tokens=89, cached_input_tokens=100, cache_creation_tokens=20, reasoning_tokens=40
    )
    assert (reply.finish, reply.finish_said, reply.model) == ("tool_use", "tool_use", "m")


def test_it_goes_back_as_it_came() -> None:
    message = decode(FULL)[1].message
    sent = AnthropicCodec().encoder("m").encode(ModelRequest(messages=(message,)))
    for part in message.content:
        match part:
            case Opaque(data=data):
                assert data.encode() in sent
            case ToolCall(arguments=arguments):
                assert b'"input":%s}' % arguments.encode() in sent
            case Thinking(signature=signature):
                assert b'{"type":"thinking","thinking":"let me see","signature":"%s"}' % (signature or "").encode() in sent
            case Text(text=said):
                assert said.encode() in sent


@given(cut_points)
def test_it_means_the_same_wherever_it_is_cut(points: list[int]) -> None:
    deltas, reply = decode(*cut(FULL, points))
    assert (merged(deltas), reply) == (merged(decode(FULL)[0]), decode(FULL)[1])


def test_cut_short_anywhere_it_is_no_success() -> None:
    last = FULL.index(b"}\n", FULL.rindex(b'"stop_reason"'))
    for length in range(last):
        with pytest.raises(StreamTruncated):
            decode(FULL[:length])


class TestTerminalProof:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            start() + text("a"),
            start() + text("a") + STOP,
            start() + text("a") + stop(None) + STOP,
            PING,
            b": keep-alive\n\n",
            start() + text("a") + b"data: [DONE]\n\n",
            b'{"type": "message", "content": [{"type": "text", "text": "a"}], "stop_rea',
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
            ("end_turn", "end"),
            ("stop_sequence", "end"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "refused"),
            ("pause_turn", "pause"),
            ("tool_use", "unknown"),  # without any call: a claim, no reason
            ("what_is_this", "unknown"),
            (7, "unknown"),
        ],
    )
    def test_reasons(self, said: Any, finish: str) -> None:
        reply = decode(start() + text("a") + stop(said) + STOP)[1]
        assert (reply.finish, reply.finish_said) == (finish, str(said))

    @pytest.mark.parametrize(
        ("said", "finish"),
        [
            ("end_turn", "tool_use"),
            ("pause_turn", "tool_use"),  # a call may not go back without its result
            ("max_tokens", "length"),
            ("refusal", "refused"),
            ("x", "unknown"),
        ],
    )
    def test_reasons_with_calls(self, said: str, finish: str) -> None:
        assert decode(start() + call(0, "a", "f", "{}") + stop(said) + STOP)[1].finish == finish

    def test_a_call_that_was_cut_is_kept_as_far_as_it_came(self) -> None:
        reply = decode(start() + call(0, "a", "f", '{"x": ') + stop("max_tokens") + STOP)[1]
        assert (reply.finish, reply.message.calls[0].arguments) == ("length", '{"x": ')

    def test_a_claim_of_calls_with_nothing_at_all_is_an_error(self) -> None:
        with pytest.raises(BadStream, match="sent no call"):
            decode(start() + stop("tool_use") + STOP)

    def test_an_empty_turn_is_a_turn(self) -> None:
        """Documented: two or three tokens and no content, mostly after tool results."""
        reply = decode(start() + stop() + STOP)[1]
        assert (reply.message.content, reply.finish) == ((), "end")

    def test_message_stop_is_not_needed(self) -> None:
        assert decode(start() + text("a") + stop())[1].finish == "end"
        assert decode((start() + text("a") + stop()).rstrip())[1].finish == "end"

    def test_an_answer_that_goes_on_after_its_reason_needs_a_proper_end(self) -> None:
        body = start() + text("a") + stop() + text("b", 1)
        for chunks in ([body], [body[i : i + 1] for i in range(len(body))]):
            decoder = AnthropicDecoder(REQUEST)
            for chunk in chunks:
                decoder.feed(chunk)
            assert not decoder.finished
            decoder.close(clean=False)
            assert isinstance(decoder.error, StreamTruncated)
        assert decode(body + STOP)[1].message.text == "ab"


class TestTheBoundWeSent:
    """LiteLLM in front of Responses of llama.cpp says `end_turn` or `tool_use` of a turn that `max_tokens` cut (seen)."""

    def finish(self, body: bytes, dialect: AnthropicDialect = ANTHROPIC_API, **options: Any) -> str | None:
        decoder = AnthropicCodec(dialect).decoder(ModelRequest(messages=(), options=Options(**options)))
        decoder.feed(body)
        decoder.close()
        assert decoder.error is None
        return decoder.reply.finish

    @pytest.mark.parametrize(("tokens", "finish"), [(19, "end"), (20, "length"), (23, "length")])
    def test_text(self, tokens: int, finish: str) -> None:
        assert self.finish(start() + text("a") + stop(output_tokens=tokens) + STOP, max_tokens=20) == finish

    @pytest.mark.parametrize(("tokens", "finish"), [(19, "tool_use"), (20, "length")])
    def test_calls(self, tokens: int, finish: str) -> None:
        for reason in ("tool_use", "end_turn"):
            body = start() + call(0, "a", "f", "{}") + call(1, "b", "f", '{"') + stop(reason, output_tokens=tokens)
            assert self.finish(body + STOP, max_tokens=20) == finish

    @pytest.mark.parametrize(
        ("reason", "finish"), [("stop_sequence", "end"), ("refusal", "refused"), ("pause_turn", "pause"), ("strange", "unknown")]
    )
    def test_other_reasons_are_believed(self, reason: str, finish: str) -> None:
        assert self.finish(start() + text("a") + stop(reason, output_tokens=20) + STOP, max_tokens=20) == finish

    def test_without_a_count_nothing_is_known(self) -> None:
        assert self.finish(start() + text("a") + stop(input_tokens=5) + STOP, max_tokens=1) == "end"

    @pytest.mark.parametrize(
        ("dialect", "options", "bound"),
        [
            (AnthropicDialect(), {}, 8_192),
            (AnthropicDialect(max_tokens=100), {}, 100),
            (AnthropicDialect(), {"reasoning": "low"}, 8_192 + 2_048),  # the budget is added
            (AnthropicDialect(), {"reasoning": "low", "max_tokens": 4_000}, 4_000),
            (ANTHROPIC_API, {"reasoning": "high"}, 8_192),
            (AnthropicDialect(), {"max_tokens": 50, "extra_body": {"max_tokens": 70}}, 70),
        ],
    )
    def test_it_is_the_one_in_the_body(self, dialect: AnthropicDialect, options: dict[str, Any], bound: int) -> None:
        request = ModelRequest(messages=(UserMessage("Hi"),), options=Options(**options))
        assert json.loads(AnthropicCodec(dialect).encoder("m").encode(request))["max_tokens"] == bound
        for tokens, finish in ((bound - 1, "end"), (bound, "length")):
            assert self.finish(start() + text("a") + stop(output_tokens=tokens) + STOP, dialect, **options) == finish


class TestBlocks:
    def test_pieces_say_which_block_they_belong_to(self) -> None:
        """All stops at the end, and no input at the beginning: llama.cpp (captured)."""
        body = (
            start()
            + block(0, type="text", text="")
            + delta(0, "text_delta", text="I ")
            + block(1, type="tool_use", id="a", name="f")
            + delta(1, "input_json_delta", partial_json="{")
            + block(2, type="tool_use", id="b", name="g")
            + delta(2, "input_json_delta", partial_json="{}")
            + delta(1, "input_json_delta", partial_json="}")
            + delta(0, "text_delta", text="look")
            + end(0) + end(1) + end(2) + stop("tool_use") + STOP
        )  # fmt: skip
        deltas, reply = decode(body)
        assert reply.message.content == (Text("I look"), ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}"))
        assert shown(deltas) == "I look"

    def test_blocks_that_never_began(self) -> None:
        body = delta(0, "thinking_delta", thinking="h") + delta(1, "text_delta", text="a") + stop()
        assert decode(body)[1].message.content == (Thinking("h", "block"), Text("a"))

    def test_an_index_that_is_used_again_is_another_block(self) -> None:
        reply = decode(text("a") + call(0, "x", "f", "{}") + text("b") + stop())[1]
        assert reply.message.content == (Text("a"), ToolCall("x", "f", "{}"), Text("b"))

    def test_a_whole_input_at_the_beginning_counts_if_no_piece_follows(self) -> None:
        whole = b'data: {"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"a","name":"f","input":{"x" : 1}}}\n\n'
        assert decode(whole + stop())[1].message.calls[0].arguments == '{"x" : 1}'
        pieces = delta(0, "input_json_delta", partial_json='{"x":2}')
        assert decode(whole + pieces + end(0) + stop())[1].message.calls[0].arguments == '{"x":2}'

    def test_ids_that_are_missing_or_used_twice_become_ours(self) -> None:
        calls = decode(call(0, "a", "f") + call(1, "a", "g") + call(2, "", "h") + stop())[1].message.calls
        assert [c.id for c in calls] == ["a", "call_run_3_1", "call_run_3_2"]

    def test_a_later_signature_replaces_an_earlier_one(self) -> None:
        body = block(0, type="thinking", thinking="h") + delta(0, "signature_delta", signature="a")
        reply = decode(body + delta(0, "signature_delta", signature="b") + stop())[1]
        assert reply.message.content == (Thinking("h", "block", None, "b"),)

    def test_reasoning_that_is_not_shown_keeps_its_signature(self) -> None:
        body = block(0, type="thinking", thinking="", signature="") + delta(0, "signature_delta", signature="s") + end(0)
        assert decode(body + stop())[1].message.content == (Thinking("", "block", None, "s"),)

    def test_deltas_of_a_block_we_do_not_know_are_put_into_it(self) -> None:
        body = block(0, type="compaction", content=None) + delta(0, "compaction_delta", content="so ", weight=1)
        body += delta(0, "compaction_delta", content="far", weight=2) + end(0)
        (part,) = decode(body + stop())[1].message.content
        assert part == Opaque("anthropic", '{"type":"compaction","content":"so far","weight":2}')

    @pytest.mark.parametrize(
        "odd",
        [
            event("new_event", delta="x"),
            event("new_event", index=[1], message=7),
            delta(0, "citations_delta", citation={"type": "char_location"}),
            event("content_block_stop", index=9),
            event("content_block_start", index=3, content_block=None),
            delta(8, "new_delta", text="x"),
            PING,
            b"event: ping\ndata\n\n",
            b'event: ping\ndata: {"type": "ping"}\n\n',
        ],
    )
    def test_what_we_do_not_know_is_passed_over(self, odd: bytes) -> None:
        body = odd + start() + odd + block(0, type="text", text="a") + odd + end(0) + odd + stop() + odd + STOP
        assert decode(body)[1].message.content == (Text("a"),)

    def test_pings_are_no_progress(self) -> None:
        decoder = AnthropicDecoder(REQUEST)
        decoder.feed(start() + PING * 9 + b": x\n\n" + delta(0, "text_delta", text=""))
        assert (decoder.progress, decoder.began) == (0, False)
        decoder.feed(block(0, type="thinking", thinking=""))
        assert (decoder.progress, decoder.began) == (1, False)
        decoder.feed(delta(0, "thinking_delta", thinking="h"))
        assert (decoder.progress, decoder.began) == (2, True)

    def test_a_server_running_wild_is_stopped(self) -> None:
        with pytest.raises(BadStream, match="more than 1,000 tool calls"):
            decode(b"".join(call(n, f"c{n}", "f") for n in range(1001)))


class TestUsage:
    def test_an_end_that_counts_only_the_output_leaves_the_prompt(self) -> None:
        """llama.cpp (captured)."""
        reply = decode(start(cache_read_input_tokens=9, input_tokens=1, output_tokens=0) + stop(output_tokens=15))[1]
        assert reply.usage == Usage(input_tokens=10, output_tokens=15, cached_input_tokens=9)

    def test_zeros_at_the_beginning_are_no_count(self) -> None:
        """LiteLLM (captured)."""
        zeros = {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        assert decode(start(**zeros) + stop(output_tokens=1))[1].usage == Usage(output_tokens=1)
        counted = stop(input_tokens=29, output_tokens=2, cache_read_input_tokens=68)
        assert decode(start(**zeros) + counted)[1].usage == Usage(input_tokens=97, output_tokens=2, cached_input_tokens=68)

    @pytest.mark.parametrize("usage", [None, {}, {"output_tokens": None}, {"output_tokens": "5"}, {"output_tokens": -1}, 7])
    def test_absent_is_none_and_never_zero(self, usage: Any) -> None:
        body = event("message_start", message={"usage": usage}) + text("a")
        body += event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        assert decode(body)[1].usage == Usage()

    def test_the_output_of_a_turn_that_broke_off_is_not_known(self) -> None:
        decoder = AnthropicDecoder(REQUEST)
        decoder.feed(start(input_tokens=5, output_tokens=1) + text("a"))
        decoder.close()
        assert decoder.reply.usage == Usage(input_tokens=5)


class TestNotAStream:
    def test_plain_json_where_a_stream_was_asked_for(self) -> None:
        content = [{"type": "thinking", "thinking": "h", "signature": "s"}, {"type": "text", "text": "Hi"}]
        content += [{"type": "redacted_thinking", "data": "x"}, {"type": "tool_use", "id": "a", "name": "f", "input": {"b": 1}}]
        whole = {"type": "message", "model": "m", "content": content, "stop_reason": "tool_use", "usage": {"input_tokens": 1}}
        body = b"\n " + json.dumps(whole).encode()
        deltas, reply = decode(*(body[i : i + 1] for i in range(len(body))))
        assert (shown(deltas), reply.finish, reply.usage, reply.model) == ("Hi", "tool_use", Usage(input_tokens=1), "m")
        assert [type(part) for part in reply.message.content] == [Thinking, Text, Opaque, ToolCall]
        assert reply.message.calls[0].arguments == '{"b": 1}'

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            (b"<!DOCTYPE html><title>nginx</title>", BadStream),
            (b"Internal Server Error", BadStream),
            (b'{"detail": "Not Found"}', BadStream),
            (b'{"choices": []}', BadStream),
            (b'{"type": "message", "content": 7, "stop_reason": "end_turn"}', BadStream),
            (b'{"error": "nope"}', ServerError),
            (b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}', Overloaded),
            (b"data: {not json}\n\n", BadStream),
            (b"data: [1]\n\n", BadStream),
            (b'data: {"type": "content_block_delta", "delta": 7}\n\n', BadStream),
            (b"data: " + b"[" * 100_000 + b"\n\n", BadStream),
        ],
    )
    def test_typed_errors(self, body: bytes, error: type[ModelError]) -> None:
        with pytest.raises(error) as caught:
            decode(body)
        assert type(caught.value) is error
        assert caught.value.hint

    def test_a_body_without_end_is_bounded(self) -> None:
        for piece in (b"{" + b" " * 2**20, b": " + b"x" * 2**20 + b"\n"):
            decoder = AnthropicDecoder(REQUEST)
            for _ in range(MAX_BODY_BYTES // 2**20 + 1):
                decoder.feed(piece)
            assert decoder.done and isinstance(decoder.error, BadStream)


@pytest.mark.parametrize(
    "bad", [b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"caf\xe9"}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"caf\\ud83d"}}',
            b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"caf\\ud83d"}}',
            b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"caf\xe9"}}']
)  # fmt: skip
def test_what_cannot_be_read_becomes_the_replacement_character(bad: bytes) -> None:
    assert decode(b"data: %s\n\n" % bad + stop())[1].message.text == "caf\ufffd"


ERRORS = [
    # Documented: platform.claude.com/docs/en/api/errors.
    ("invalid_request_error", "m", InvalidRequest),
    ("authentication_error", "m", AuthenticationFailed),
    ("billing_error", "m", QuotaExceeded),
    ("permission_error", "m", AuthenticationFailed),
    ("not_found_error", "model: x", ModelNotFound),
    ("request_too_large", "m", ContextOverflow),
    ("rate_limit_error", "m", RateLimited),
    ("api_error", "m", ServerError),
    ("timeout_error", "m", Overloaded),
    ("overloaded_error", "Overloaded", Overloaded),
    # Reported wordings.
    ("invalid_request_error", "prompt is too long: 213462 tokens > 200000 maximum", ContextOverflow),
    ("invalid_request_error", "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000", ContextOverflow),
    ("invalid_request_error", "Your credit balance is too low to access the Anthropic API.", QuotaExceeded),
    # Captured: vLLM, LiteLLM.
    ("NotFoundError", "The model `nope` does not exist. Valid aliases: tiny.", ModelNotFound),
    ("BadRequestError", "This model's maximum context length is 2048 tokens.", ContextOverflow),
    ("invalid_request_error", "litellm.ContextWindowExceededError: ...", ContextOverflow),
    ("who_knows", "m", ServerError),
]


class TestErrors:
    @pytest.mark.parametrize(("kind", "said", "error"), ERRORS)
    def test_inside_a_stream_it_ends_it_after_what_came_before(self, kind: str, said: str, error: type[ModelError]) -> None:
        decoder = AnthropicDecoder(REQUEST)
        body = start() + text("a") + event("error", error={"type": kind, "message": said}) + text("b", 1) + stop()
        deltas = decoder.feed(body)
        assert shown(deltas) == "a"
        assert decoder.done and not decoder.finished
        assert type(decoder.error) is error
        assert said not in str(decoder.error) or len(said) == 1
        assert said in (decoder.error.server_said or "")

    @pytest.mark.parametrize(
        "line",
        [
            b'data: {"error": {"message": "m", "code": "500"}}',  # LiteLLM's Chat shape
            b'event: error\ndata: {"message":"m"}',
            b"event: error\ndata: m",
        ],
    )
    def test_other_shapes(self, line: bytes) -> None:
        with pytest.raises(ServerError):
            decode(start() + line + b"\n\n")

    @pytest.mark.parametrize(
        ("status", "kind", "error"),
        [
            (400, "invalid_request_error", InvalidRequest),
            (401, "authentication_error", AuthenticationFailed),
            (403, "permission_error", AuthenticationFailed),
            (404, "not_found_error", ModelNotFound),
            (413, "request_too_large", ContextOverflow),
            (429, "rate_limit_error", RateLimited),
            (500, "api_error", ServerError),
            (504, "timeout_error", Overloaded),
            (529, "overloaded_error", Overloaded),
            (400, "no_db_connection", AuthenticationFailed),  # LiteLLM without a database, a wrong key (seen)
        ],
    )
    def test_statuses(self, status: int, kind: str, error: type[ModelError]) -> None:
        body = json.dumps({"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"}).encode()
        found = AnthropicCodec().error(status, {"Retry-After": "7"}, body, address="http://h/v1")
        assert type(found) is error
        assert (found.status, found.retry_after_s) == (status, 7)

    def test_a_spend_limit_is_no_rate_limit(self) -> None:
        detail = {"type": "rate_limit_error", "message": "m", "details": {"error_code": "enforced_spend_limit_reached"}}
        body = json.dumps({"type": "error", "error": detail}).encode()
        assert type(AnthropicCodec().error(429, {}, body, address="http://h/v1")) is QuotaExceeded

    def test_a_body_that_is_no_json(self) -> None:
        assert type(AnthropicCodec().error(400, {}, b"[" * 100_000, address="http://h/v1")) is InvalidRequest


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(
        ["text", "thinking", "tool_use", "redacted_thinking", "text_delta", "input_json_delta", "thinking_delta", "signature_delta",
         "end_turn", "tool_use", "max_tokens", "{}", '{"a":1}']),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "index", "delta", "text", "thinking", "signature", "partial_json", "content_block", "input", "id",
                         "name", "data", "stop_reason", "usage", "error", "message", "content", "output_tokens"]), v, max_size=5),
)  # fmt: skip
_EVENTS = st.builds(
    lambda type, index, inner, fields: event(type, **{"index": index, **inner, **fields}),
    st.sampled_from(["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "x"]),
    st.integers(0, 3) | st.none() | _VALUES,
    st.fixed_dictionaries({"delta": _VALUES, "content_block": _VALUES}) | st.just({}),
    st.dictionaries(st.sampled_from(["usage", "message", "error"]), _VALUES, max_size=1),
)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [b"data: ", b"\n\n", stop(), STOP, PING, text("a"), text("b", 1), call(1, "a", "f", "{", "}"), b'"', b"{", FULL[:700],
                 block(2, type="thinking", thinking="h"), block(2, type="redacted_thinking", data="x"), b"event: error\n",
                 delta(2, "signature_delta", signature="s"), delta(0, "text_delta", text="t"), delta(1, "input_json_delta", partial_json="}")]
            ),
            _EVENTS,
            _VALUES.map(lambda value: b"data: %s\n\n" % json.dumps(value).encode()),
        ),
        max_size=12,
    ).map(b"".join),
    cut_points,
)  # fmt: skip
def test_any_bytes_give_a_reply_or_a_documented_error_wherever_they_are_cut(body: bytes, points: list[int]) -> None:
    outcomes: list[Any] = []
    for chunks in ([body], cut(body, points)):
        decoder = AnthropicDecoder(REQUEST)
        deltas: list[Delta] = []
        for chunk in chunks:
            deltas += decoder.feed(chunk)
        deltas += decoder.close()
        reply = decoder.reply
        assert decoder.finished is (decoder.error is None)
        assert (reply.finish is not None) is (decoder.error is None)
        assert shown(deltas) == reply.message.text
        assert "".join(d.text for d in deltas if isinstance(d, ThinkingDelta)) == reply.message.thinking
        for position, made in enumerate(reply.message.calls):
            pieces = (d.arguments for d in deltas if isinstance(d, ToolCallDelta) and d.position == position)
            assert "".join(pieces) == made.arguments
        assert len({c.id for c in reply.message.calls}) == len(reply.message.calls)
        assert all(type(json.loads(part.data)) is dict for part in reply.message.content if isinstance(part, Opaque))
        json.loads(AnthropicCodec().encoder("m").encode(ModelRequest(messages=(reply.message,))))
        outcomes.append((type(decoder.error), reply, shown(deltas)))
    assert outcomes[0] == outcomes[1]
