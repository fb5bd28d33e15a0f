"""Rows about what a reply looks like: shapes of calls, usage, reasoning, endings, and answers that are no stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults.row import Row
from tests.harness import (
    Close,
    Send,
    call_chunk,
    completion,
    data_line,
    finish_chunk,
    json_reply,
    reply,
    split,
    sse,
    text_chunk,
    thinking_chunk,
    usage_chunk,
)

CAPTURES = Path(__file__).parents[1] / "captures"
PARIS, SUM = '{"city": "Paris"}', '{"expression": "12*7"}'
CALLS = (("get_weather", {"city": "Paris"}), ("calculator", {"expression": "12*7"}))
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def recorded(server: str) -> bytes:
    """A captured event stream of two parallel calls."""
    return (CAPTURES / f"{server}--tools-auto-parallel-stream.body.sse").read_bytes()


def two(*pieces: Any, finish: str = "tool_calls", done: bool = True) -> list[Any]:
    """A stream of these pieces and a reason to stop."""
    return sse(*pieces, finish_chunk(finish), done=done)


def choice(**fields: Any) -> dict[str, Any]:
    """A chunk whose choice has these fields."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": None, **fields}]}


def _calls() -> list[Row]:
    a, b = {"name": "get_weather"}, {"name": "calculator"}
    shapes = {
        "`index` is missing": (call_chunk(None, id="a", **a, arguments=PARIS), call_chunk(None, id="b", **b, arguments=SUM)),
        "`index` is always 0": (call_chunk(0, id="a", **a, arguments=PARIS), call_chunk(0, id="b", **b, arguments=SUM)),
        "`index` is always 0, arguments in pieces": (
            call_chunk(0, id="a", **a, arguments=PARIS[:5]), call_chunk(0, arguments=PARIS[5:]),
            call_chunk(0, id="b", **b, arguments=SUM[:5]), call_chunk(0, arguments=SUM[5:]),
        ),
        "`index` begins at 1": (call_chunk(1, id="a", **a, arguments=PARIS), call_chunk(2, id="b", **b, arguments=SUM)),
        "ids are missing": (call_chunk(0, **a, arguments=PARIS), call_chunk(1, **b, arguments=SUM)),
        "ids and `index` are missing": (call_chunk(None, **a, arguments=PARIS), call_chunk(None, **b, arguments=SUM)),
        "ids are empty": (call_chunk(0, id="", **a, arguments=PARIS), call_chunk(1, id="", **b, arguments=SUM)),
        "both calls have one id": (call_chunk(0, id="x", **a, arguments=PARIS), call_chunk(1, id="x", **b, arguments=SUM)),
        "ids come with the last piece": (
            call_chunk(0, **a, arguments=PARIS[:5]), call_chunk(0, id="a", arguments=PARIS[5:]),
            call_chunk(1, **b, arguments=SUM[:5]), call_chunk(1, id="b", arguments=SUM[5:]),
        ),
        "a new id on every piece": (
            call_chunk(0, id="a1", **a, arguments=PARIS[:5]), call_chunk(0, id="a2", arguments=PARIS[5:]),
            call_chunk(1, id="b1", **b, arguments=SUM[:5]), call_chunk(1, id="b2", arguments=SUM[5:]),
        ),
        "pieces of both calls alternate": (
            call_chunk(0, id="a", **a, arguments=""), call_chunk(1, id="b", **b, arguments=""),
            call_chunk(0, arguments=PARIS[:5]), call_chunk(1, arguments=SUM[:5]),
            call_chunk(0, arguments=PARIS[5:]), call_chunk(1, arguments=SUM[5:]),
        ),
        "arguments are objects": (
            call_chunk(0, id="a", **a, arguments={"city": "Paris"}), call_chunk(1, id="b", **b, arguments={"expression": "12*7"}),
        ),
        "the name is repeated on every piece": (
            call_chunk(0, id="a", **a, arguments=PARIS[:5]), call_chunk(0, id="a", **a, arguments=PARIS[5:]),
            call_chunk(1, id="b", **b, arguments=SUM[:5]), call_chunk(1, id="b", **b, arguments=SUM[5:]),
        ),
        "both calls in one delta": (
            choice(delta={"tool_calls": [
                {"index": 0, "id": "a", "function": {**a, "arguments": PARIS}},
                {"index": 1, "id": "b", "function": {**b, "arguments": SUM}},
            ]}),
        ),
    }  # fmt: skip
    return [
        Row(f"two calls: {name}", [two(*pieces)], ran=2, real=name == "`index` is missing") for name, pieces in shapes.items()
    ]


def _recorded() -> list[Row]:
    named = {"xllamacpp-trained": "llama.cpp", "litellm": "LiteLLM", "vllm": "vLLM"}
    return [
        Row(f"two calls as recorded from {name}", [[Send(HEAD + recorded(server)), Close()]], ran=2, real=server == "litellm")
        for server, name in named.items()
    ]


def _gates() -> list[Row]:
    bad = {
        "arguments are no JSON": '{"city": Par',
        "arguments have a key twice": '{"city": "Paris", "city": "Rome"}',
        "arguments have an unknown field": '{"city": "Paris", "unit": "C"}',
        "arguments are a JSON string": '"{\\"city\\": \\"Paris\\"}"',
        "arguments are `null`": "null",
        "arguments are a list": "[]",
        "arguments are missing": "",
        "arguments have the wrong type": '{"city": 7}',
    }
    rows = [Row(name, [two(call_chunk(0, id="a", name="get_weather", arguments=text))]) for name, text in bad.items()]
    unknown = two(call_chunk(0, id="a", name="set_light", arguments="{}"))
    nameless = two(call_chunk(0, id="a", arguments=PARIS))
    return [*rows, Row("a tool that does not exist", [unknown]), Row("a call without a name", [nameless])]


def _as_text() -> list[Row]:
    call = json.dumps({"name": "get_weather", "arguments": {"city": "Paris"}})
    shapes = {
        "Hermes, Qwen": f"<tool_call>\n{call}\n</tool_call>",
        "Llama": '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "Mistral": f"[TOOL_CALLS][{call}]",
        "DeepSeek": f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{PARIS}\n```<｜tool▁call▁end｜>",
        "Kimi": f"<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{PARIS}<|tool_call_end|>",
        "GLM": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
    }
    return [Row(f"a call written as text ({name})", [sse(*reply(text))], answer=text) for name, text in shapes.items()]


def _endings() -> list[Row]:
    call = call_chunk(0, id="a", name="get_weather", arguments=PARIS)
    hello = text_chunk("Hello")
    legacy = choice(delta={"function_call": {"name": "get_weather", "arguments": PARIS}})
    refusal = choice(delta={"refusal": "I cannot help."})
    second = {"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": None}]}
    return [
        Row("`stop` with two calls", [sse(*reply(calls=CALLS, finish="stop"))], ran=2),
        Row("the old `function_call`", [two(legacy, finish="function_call")], ran=1),
        Row("`length` after text", [two(hello, finish="length")], answer=None, partial="Hello"),
        Row("`length` after a call that looks whole", [two(call, finish="length")], answer=None),
        Row("`content_filter` after text", [two(hello, finish="content_filter")], answer=None, partial="Hello"),
        Row("`content_filter` after a call", [two(call, finish="content_filter")], answer=None),
        Row("a `refusal` delta", [two(refusal, finish="stop")], answer=None, partial="I cannot help."),
        Row("an unknown reason after text", [two(hello, finish="because")], answer="Hello"),
        Row("an unknown reason after a call", [two(call, finish="because")]),
        Row("`tool_calls` without any call", [two(finish="tool_calls")], answer=None),
        Row("`tool_calls` with text and no call", [two(hello, finish="tool_calls")], answer="Hello", partial="Hello"),
        Row("`stop` and nothing else", [two(finish="stop")], answer=""),
        Row("text after the reason to stop", [sse(hello, finish_chunk(), text_chunk(" there"))], answer="Hello there"),
        Row("two reasons to stop", [sse(hello, finish_chunk(), finish_chunk("length"))], answer="Hello", partial="Hello"),
        Row("a second choice that nobody asked for", [two(hello, second, finish="stop")], answer="Hello"),
        Row("`[DONE]` missing", [two(hello, finish="stop", done=False)], answer="Hello"),
        Row("`[DONE]` without a reason to stop", [sse(hello)], partial="Hello"),
        Row("`[DONE]` and nothing else", [sse()]),
        Row("neither `[DONE]` nor a reason", [sse(hello, done=False)], partial="Hello", real=True),
        Row("a whole call, and no reason", [sse(call)]),
    ]


def _usage() -> list[Row]:
    hello, tokens = text_chunk("Hello"), {"prompt_tokens": 9, "completion_tokens": 3}
    places = {
        "in a last chunk without choices": sse(hello, finish_chunk(), usage_chunk(9, 3)),
        "next to the reason": sse(hello, {**finish_chunk(), "usage": tokens}),
        "in `choice.usage`": sse(hello, choice(finish_reason="stop", usage=tokens)),
        "growing in every chunk": sse(
            {**hello, "usage": {**tokens, "completion_tokens": 1}}, {**finish_chunk(), "usage": tokens}
        ),
        "after `[DONE]`-less end": sse(hello, finish_chunk(), usage_chunk(9, 3), done=False),
    }
    rows = [Row(f"usage {name}", [exchange], answer="Hello", usage=3) for name, exchange in places.items()]
    absent, nulls = sse(hello, finish_chunk()), sse(hello, {**finish_chunk(), "usage": None})
    odd = sse(hello, {**finish_chunk(), "usage": {"completion_tokens": "three", "prompt_tokens": -1}})
    rows.append(Row("no usage at all", [absent], answer="Hello", usage=None))
    rows.append(Row("usage is `null`", [nulls], answer="Hello", usage=None))
    return [*rows, Row("usage that is no count", [odd], answer="Hello", usage=None)]


def _reasoning() -> list[Row]:
    both = choice(delta={"reasoning_content": "Hm", "reasoning": "Hm"})
    text = text_chunk("Hello")
    shapes = {
        "in `reasoning_content`": (thinking_chunk("Hm"), text),
        "in `reasoning`": (thinking_chunk("Hm", "reasoning"), text),
        "in both fields": (both, text),
        "between `<think>` tags": (text_chunk("<think>Hm</think>\n\nHello"),),
        "between tags, cut inside them": (text_chunk("<th"), text_chunk("ink>Hm</thi"), text_chunk("nk>Hel"), text_chunk("lo")),
    }
    rows = [Row(f"reasoning {name}", [two(*pieces, finish="stop")], answer="Hello") for name, pieces in shapes.items()]
    quoted = "Write <think>like this</think>."
    return [
        *rows,
        Row("tags in the middle are text", [sse(*reply(quoted))], answer=quoted),
        Row("reasoning, then `[DONE]` without a reason", [sse(thinking_chunk("Hm"))]),
        Row("tagged reasoning that is never closed", [two(text_chunk("<think>Hm"), finish="stop")], answer=""),
    ]


def _forms() -> list[Row]:
    body = b"".join([*reply("Hello"), b"data: [DONE]\n\n"])
    parts = choice(delta={"content": [{"type": "text", "text": "Hello"}]})
    wide = [data_line(text_chunk("naïve 東京 🎉")), data_line(finish_chunk())]
    frames = {
        "lines end in CRLF": body.replace(b"\n", b"\r\n"),
        "lines end in CR": body.replace(b"\n", b"\r"),
        "no space after `data:`": body.replace(b"data: ", b"data:"),
        "a byte order mark first": b"\xef\xbb\xbf" + body,
        "comments, ids, events and pings between": body.replace(b"data: {", b": hi\nid: 7\nretry: 9\nevent: message\ndata: {"),
        "all of it in one write": body,
    }
    rows = [Row(name, [[Send(HEAD + data), Close()]], answer="Hello") for name, data in frames.items()]
    return [
        *rows,
        Row("one byte per write", [split(sse(*wide), 1)], answer="naïve 東京 🎉"),
        Row("content as a list of parts", [two(parts, finish="stop")], answer="Hello"),
        Row("a JSON completion instead of a stream", [json_reply(completion("Hello"))], answer="Hello", usage=5),
        Row("a JSON completion with two calls", [json_reply(completion(calls=CALLS))], ran=2),
        Row("a JSON completion cut in the middle", [json_reply(json.dumps(completion("Hello")).encode()[:-20])]),
        Row("JSON that is no completion", [json_reply({"hello": 1})], answer=None),
    ]


def _errors() -> list[Row]:
    hello = text_chunk("Hello")
    code400 = {"error": {"message": "bad", "type": "BadRequestError", "code": 400}}
    code500 = {"error": {"message": "died", "code": "500"}}
    limited = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
    overflow = {"error": {"message": "too long", "type": "exceed_context_size_error", "code": 400}}
    call = call_chunk(0, id="a", name="get_weather", arguments=PARIS)
    return [
        Row("an error 400 in the stream, first", [sse(code400)], answer=None),
        Row("an error 500 in the stream, first", [sse(code500)]),
        Row("a rate limit in the stream, first", [sse(limited)]),
        Row("a context overflow in the stream, first", [sse(overflow)], answer=None),
        Row("an error 400 in the stream, after text", [sse(hello, code400)], answer=None, partial="Hello"),
        Row("an error 500 in the stream, after text", [sse(hello, code500, done=False)], partial="Hello", real=True),
        Row("an error in the stream, after a whole call", [sse(call, code500)]),
        Row("an error as a field of its own", [sse(hello, b'error: {"code": 500, "message": "died"}\n\n')], partial="Hello"),
        Row("an event of the type `error`", [sse(hello, b"event: error\ndata: died\n\n")], partial="Hello"),
        Row("an error after the reason to stop", [sse(hello, finish_chunk(), code500)], partial="Hello"),
    ]


SECTIONS = {
    "Tool calls": [*_recorded(), *_calls(), *_gates(), *_as_text()],
    "Reasons to stop": _endings(),
    "Usage": _usage(),
    "Reasoning": _reasoning(),
    "Forms": _forms(),
    "Errors inside the stream": _errors(),
}
