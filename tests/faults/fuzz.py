"""Mutation fuzzing of every decoder: `python -m tests.faults.fuzz --seconds 60 [--seed N] [--target NAME] [--save FILE]`.

The oracle is "only documented errors, and the same outcome wherever the bytes are cut". A failure prints the seed of its iteration
and saves its input; `--seed N --iterations 1 --target NAME` plays that iteration again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tests.conformance.chat_captures import REQUEST, body, cases, merged, status
from tests.wire import test_anthropic_decode, test_gemini_decode, test_ollama_decode, test_responses_decode
from treadle.errors import BadStream, HistoryError, ModelError
from treadle.tools.function import FunctionTool, InvalidArguments, tool
from treadle.values.events import Delta
from treadle.values.history import check_history, repaired
from treadle.values.messages import (
    AssistantMessage,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
    messages_from_json,
    messages_to_json,
)
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.chat_errors import error_from_object, error_from_response
from treadle.wire.codec import Codec
from treadle.wire.fold import MAX_CALLS_PER_TURN, ReplyFold
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec
from treadle.wire.sse import SSEDecoder
from treadle.wire.think import ThinkSplitter

# --- mutations -------------------------------------------------------------------------------------------------------

_TOKENS: list[bytes] = [
    *(
        b"data: ",
        b"data:",
        b"\n\n",
        b"\r\n",
        b"\r",
        b"\n",
        b": keep-alive\n\n",
        b"event: error\n",
        b"error: ",
        b"[DONE]",
        b"data: [DONE]\n\n",
    ),
    *(b"\xef\xbb\xbf", b"\xef", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xe2\x80\xa8", "é漢😀".encode()),
    *(
        b'"',
        b"\\",
        b"\\u",
        b"\\ud800",
        b"\\udc00",
        b"\\ud83d\\ude00",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"true",
        b"{}",
        b"[]",
    ),
    *(b"0", b"-0", b"-1", b"1e999", b"1e-999", b"1.0", b"9" * 25, b"9" * 5000, b"NaN", b"Infinity"),
    *(b"[" * 3000, b'{"a":' * 3000, b"[" * 200 + b"]" * 200),
    *(b"<think>", b"</think>", b"<thi", b"<", b"<html>", b" ", b"   "),
    *(b'"content":', b'"tool_calls":', b'"index":', b'"id":', b'"function":', b'"arguments":', b'"finish_reason":', b'"delta":'),
    *(b'"error":', b'"usage":', b'"choices":', b'"reasoning":', b'"message":', b'"type":', b'"code":', b'"refusal":', b'"role":'),
    *(b'"stop"', b'"length"', b'"tool_calls"', b'"content_filter"', b'"function_call"', b'"prompt_progress":', b'"processed":'),
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        10**25,
        "",
        "x",
        "stop",
        "tool_calls",
        "{}",
        '{"a": 1}',
        "<think>",
        "é漢😀",
        "0",
        "500",
        429,
    ),
    *([], {}, [None], [[]], [{}], {"a": 1}, {"text": "x"}, [{"type": "text", "text": "x"}], {"error": {"message": "x"}}, ["x"]),
]


def mutated(data: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """The data with a few changes of any kind; sometimes none."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        data = rng.choice(_MUTATIONS)(data, corpus, rng)[:200_000]
    return data


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randint(0, len(data))


def _flip(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _insert(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.choice((0, len(data), _place(data, rng), _place(data, rng)))
    return data[:at] + rng.choice(_TOKENS) + data[at:]


def _overwrite(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at, token = _place(data, rng), rng.choice(_TOKENS)
    return data[:at] + token + data[at + len(token) :]


def _delete(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 8, 64, 512)) :]


def _repeat(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at, size = _place(data, rng), rng.choice((1, 8, 64, 512))
    return data[:at] + data[at : at + size] * rng.randint(1, 5) + data[at:]


def _truncate(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _splice(data: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(corpus)
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _random(_: bytes, __: Sequence[bytes], rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 60))


def _swap_lines(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    lines = data.split(b"\n\n")
    rng.shuffle(lines)
    return b"\n\n".join(lines)


def _change_json(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    """Another value somewhere in one JSON document of the data, which stays JSON."""
    lines = data.split(b"\n")
    places = [n for n, line in enumerate(lines) if b"{" in line or b"[" in line]
    if not places:
        return data
    at = rng.choice(places)
    head, mark, rest = (b"data: ", b"", lines[at][6:]) if lines[at].startswith(b"data: ") else (b"", b"", lines[at])
    try:
        value = json.loads(rest)
    except (ValueError, RecursionError):
        return data
    lines[at] = head + mark + json.dumps(_changed(value, rng), ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace")
    return b"\n".join(lines)


def _changed(value: Any, rng: random.Random) -> Any:
    if not value or not isinstance(value, dict | list) or rng.random() < 0.15:
        return rng.choice(_VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.15:
            return value + [value[at]] * rng.randint(1, 3)
        if choice < 0.25:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    key = rng.choice(list(value))
    choice = rng.random()
    if choice < 0.1:
        return {name: item for name, item in value.items() if name != key}
    if choice < 0.2:
        return {**value, rng.choice(["index", "id", "error", "usage", "content", "x", "n", "reasoning"]): rng.choice(_VALUES)}
    return {**value, key: _changed(value[key], rng)}


_MUTATIONS: list[Callable[[bytes, Sequence[bytes], random.Random], bytes]] = [
    *(_flip, _insert, _insert, _overwrite, _delete, _repeat, _truncate, _splice, _random, _swap_lines),
    *(_change_json, _change_json, _change_json, _change_json),
]


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """The data cut at random places; now and then byte by byte."""
    if len(data) < 2000 and rng.random() < 0.2:
        return [data[i : i + 1] for i in range(len(data))]
    places = sorted({0, len(data), *(rng.randint(0, len(data)) for _ in range(rng.choice((1, 2, 10, 40))))})
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


# --- targets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A decoder. `check` raises whatever it finds: an assertion of its own, or an error that is not documented."""

    corpus: Sequence[bytes]
    check: Callable[[bytes, random.Random], None]


def _frames(chunks: Sequence[bytes], max_frame_bytes: int) -> Any:
    decoder = SSEDecoder(max_frame_bytes)
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    frames += decoder.close()
    return decoder.overflow, frames


def check_sse(data: bytes, rng: random.Random) -> None:
    for bound in (50, 10_000_000):
        whole, cut = _frames([data], bound), _frames(pieces(data, rng), bound)
        assert whole == cut, f"frames depend on the cuts:\n  {whole}\n  {cut}"


def _thought(chunks: Sequence[str]) -> Any:
    splitter = ThinkSplitter()
    parts = [splitter.feed(chunk) for chunk in chunks] + [splitter.close()]
    thinking, text = ("".join(part[side] for part in parts) for side in (0, 1))
    return thinking, text, splitter.raw


def check_think(data: bytes, rng: random.Random) -> None:
    text = data.decode("utf-8", "replace")
    thinking, said, raw = whole = _thought([text])
    assert whole == _thought([piece.decode("utf-16") for piece in pieces16(text, rng)])
    assert raw + said == text if raw else said == text
    assert thinking in raw


def pieces16(text: str, rng: random.Random) -> list[bytes]:
    """The text cut at random characters."""
    places = sorted({0, len(text), *(rng.randint(0, len(text)) for _ in range(10))})
    return [text[a:b].encode("utf-16") for a, b in zip(places, places[1:], strict=False)]


def _decoded(chunks: Sequence[bytes]) -> Any:
    decoder = ChatCodec().decoder(REQUEST)
    deltas: list[Delta] = []
    for chunk in chunks:
        deltas += decoder.feed(chunk)
    deltas += decoder.close()
    reply = decoder.reply
    assert (decoder.error is None) == (reply.finish is not None), "a reply is either whole or has an error"
    assert decoder.error is None or (isinstance(decoder.error, ModelError) and decoder.error.hint)
    shown = merged(deltas)
    assert "".join(text for kind, text in shown if kind == "text") == reply.message.text, "deltas are not the text"
    assert "".join(text for kind, text in shown if kind == "thinking") == reply.message.thinking, "deltas are not the reasoning"
    by_call: dict[str, str] = {}
    for kind, text in shown:
        if kind.startswith("call "):
            by_call[kind.split(" ")[1]] = by_call.get(kind.split(" ")[1], "") + text
    assert list(by_call.values()) == [call.arguments for call in reply.message.calls], "deltas are not the arguments"
    assert len({call.id for call in reply.message.calls}) == len(reply.message.calls), "two calls have one id"
    error = decoder.error
    return (
        [item for item in shown if not item[0].startswith("call ")],
        by_call,
        msgspec.json.encode(reply),
        error and (type(error).__name__, error.message, error.status, error.retry_after_s),
    )


def check_chat(data: bytes, rng: random.Random) -> None:
    whole, cut = _decoded([data]), _decoded(pieces(data, rng))
    assert whole == cut, f"the outcome depends on the cuts:\n  {whole}\n  {cut}"


def _bodies(kind: str) -> list[bytes]:
    folder = Path(__file__).parents[1] / "captures"
    return [path.read_bytes() for path in sorted(folder.glob(f"*{kind}*.body.*"))]


def check_codec(codec: Codec) -> Callable[[bytes, random.Random], None]:
    """A reply or a typed error, the same wherever the bytes are cut."""

    def outcome(chunks: Sequence[bytes]) -> Any:
        decoder = codec.decoder(REQUEST)
        deltas: list[Delta] = []
        for chunk in chunks:
            deltas += decoder.feed(chunk)
        deltas += decoder.close()
        reply, error = decoder.reply, decoder.error
        assert (error is None) == (reply.finish is not None), "a reply is either whole or has an error"
        assert error is None or (isinstance(error, ModelError) and error.hint)
        said = "".join(text for kind, text in merged(deltas) if kind == "text")
        assert said == reply.message.text, "deltas are not the text"
        return said, msgspec.json.encode(reply), error and (type(error).__name__, error.message, error.status)

    def check(data: bytes, rng: random.Random) -> None:
        whole, cut = outcome([data]), outcome(pieces(data, rng))
        assert whole == cut, f"the outcome depends on the cuts:\n  {whole}\n  {cut}"

    return check


def check_fold(data: bytes, rng: random.Random) -> None:
    """Pieces of a reply in any order: the data only makes the choices."""
    dice = random.Random(data)
    fold = ReplyFold(turn=1, attempt=1, call_id_prefix="call_")
    deltas: list[Delta] = []
    try:
        for _ in range(dice.choice((5, 30, 200)) if dice.random() < 0.99 else 3000):
            match dice.randrange(8):
                case 0:
                    fold.content(dice.choice(["<think>", "</think>", "a", " ", "\n", "<", "think>", "é"]))
                case 1:
                    fold.text("t")
                case 2:
                    fold.thinking("r", dice.choice(["reasoning", "reasoning_content"]))
                case 3 if dice.random() < 0.1:
                    fold.flush()
                case 4:
                    deltas += fold.take()
                case _:
                    fold.call(
                        dice.choice([None, 0, 0, 1, 2, "0", 1.0, -1, [], {}, True]),
                        dice.choice(["", "", "a", "b", str(dice.randrange(2000))]),
                        dice.choice(["", "", "look", "write"]),
                        dice.choice([None, "", "{", "}", "{}", '{"a":1}', '"', "\\", "[", "x"]),
                    )
    except BadStream:
        assert len(fold.message().calls) == MAX_CALLS_PER_TURN
    fold.flush()
    shown = merged(deltas + fold.take())
    message = fold.message()
    assert "".join(text for kind, text in shown if kind == "text") == message.text
    assert "".join(text for kind, text in shown if kind == "thinking") == message.thinking
    assert "".join(text for kind, text in shown if kind.startswith("call ")) or not any(call.arguments for call in message.calls)
    ids = [call.id for call in message.calls]
    assert all(ids)
    assert len(set(ids)) == len(ids)


_HEADERS = ["Retry-After", "Retry-After-Ms", "Date", "Location"]
_HEADER_VALUES = [
    *("5", "-1", "nan", "inf", "1e400", "", "soon", "9" * 400, "Sat, 21 Nov 2026 10:00:00 GMT", "Sat, 21 Nov 2026 10:00:00"),
    *("Sat, 99 Nov 2026", "Mon, 01 Jan 0001 00:00:00 -2359", "Fri, 31 Dec 9999 23:59:59 +2359", "²", "é", "0x10", "1_0", "\x00"),
]


def _check_error(error: ModelError) -> None:
    assert isinstance(error, ModelError), error
    assert error.hint
    assert error.message
    assert error.server_said is None or len(error.server_said) <= 2000
    assert error.retry_after_s is None or 0 <= error.retry_after_s < float("inf"), error.retry_after_s


def check_errors(data: bytes, rng: random.Random) -> None:
    canary = b"canary-5d1f"
    at = _place(data, rng)
    said = data[:at] + canary + data[at:]
    code = rng.choice(
        (201, 204, 301, 307, 400, 401, 402, 403, 404, 408, 413, 418, 422, 429, 499, 500, 501, 502, 503, 504, 529, 599, 999)
    )
    headers = {name: rng.choice(_HEADER_VALUES) for name in _HEADERS if rng.random() < 0.5}
    for sent in (data, said):
        error = error_from_response(code, headers, sent, address="http://server/v1")
        _check_error(error)
        assert canary.decode() not in f"{error} {error!r}", "the server's words are in the error's text"
    try:
        parsed = msgspec.json.decode(data)  # as the decoder of a stream reads it
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        parsed = data[:2000].decode("utf-8", "replace")
    for detail in (parsed, parsed.get("error") if isinstance(parsed, dict) else rng.choice(_VALUES), rng.choice(_VALUES)):
        _check_error(error_from_object(detail))


@dataclass
class Leg:
    """Part of a trip."""

    mode: Literal["train", "bus"]
    days: int = 1
    note: str | None = None


class Tree(msgspec.Struct):
    """Holds itself."""

    name: str
    inner: list[Tree] = []


def _tools() -> list[FunctionTool[..., Any]]:
    @tool
    async def plain(city: str, days: int = 1, exact: bool = False, share: float = 0.5) -> str:
        """Scalars."""
        return ""

    @tool
    async def nested(legs: list[Leg], when: date | None = None, names: dict[str, int] | None = None) -> str:
        """Classes in lists."""
        return ""

    @tool
    async def bounded(n: Annotated[int, msgspec.Meta(ge=0, le=9)], text: Annotated[str, msgspec.Meta(max_length=5)] = "") -> str:
        """Bounds."""
        return ""

    @tool
    async def recursive(tree: Tree, more: Any = None) -> str:
        """A tree."""
        return ""

    return [plain, nested, bounded, recursive]


TOOLS = _tools()


def check_arguments(data: bytes, rng: random.Random) -> None:
    text = (
        data.decode("utf-8", rng.choice(("replace", "surrogateescape", "surrogatepass", "ignore")))
        if _is_text(data)
        else data.decode("latin-1")
    )
    for each in TOOLS:
        try:
            bound = each.bind(text)
        except InvalidArguments as error:
            assert str(error)
            assert len(str(error)) <= 1010
        else:
            value = json.loads(text) if text.strip() else {}
            assert isinstance(value, dict), "accepted something that is no JSON object"
            assert bound.arguments.keys() >= value.keys()


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def check_messages(data: bytes, rng: random.Random) -> None:
    sources: list[bytes | str] = [data, data.decode("utf-8", "surrogatepass") if _is_text(data) else data.decode("latin-1")]
    for source in sources:
        try:
            messages = messages_from_json(source)
        except HistoryError as error:
            assert error.hint
            continue
        assert messages_from_json(messages_to_json(messages)) == messages
        try:
            mended, _ = repaired(messages)
        except HistoryError:
            continue
        check_history(mended)
        assert repaired(mended) == (mended, [])


def _captures(*, errors: bool) -> list[bytes]:
    bodies = [body(case)[:6000] for case in cases() if (status(case) != 200) is errors]
    return sorted(set(bodies), key=lambda each: (len(each), each))


def _conversations() -> list[bytes]:
    call = ToolCall("a", "look", '{"n": 1}')
    thought = Thinking("hm", "content", "<think>hm</think>")
    every = (
        SystemMessage("Be brief."),
        UserMessage("Hi é😀"),
        AssistantMessage((thought, Text("Looking."), call, ToolCall("b", "look", "{"))),
        ToolMessage("a", "look", "saw", full="saw all", note="again"),
        ToolMessage("b", "look", "no", is_error=True),
        AssistantMessage((Text("Done"),)),
    )
    return [messages_to_json(every), messages_to_json(every[:3]), messages_to_json(every[3:]), b"[]", b'[{"role":"user"}]']


_ARGUMENTS = [
    *(b'{"city": "Oslo"}', b'{"city": "Oslo", "days": 2, "exact": true, "share": 1}', b"{}", b"", b'{"n": 3, "text": "abc"}'),
    *(b'{"legs": [{"mode": "bus"}, {"mode": "train", "days": 2, "note": null}], "when": "2026-01-01", "names": {"a": 1}}',),
    *(b'{"tree": {"name": "a", "inner": [{"name": "b", "inner": []}]}, "more": [1, {"x": null}]}', b'{"n": 1, "n": 2}'),
]
_ERRORS = [
    *(
        b'{"error":{"message":"x","type":"exceed_context_size_error","code":400,"n_ctx":512}}',
        b'{"error":"busy"}',
        b"Bad Gateway",
    ),
    *(
        b'{"object":"error","message":"maximum context length is 4096","code":400}',
        b"<html>502</html>",
        b'{"detail":[{"loc":[1]}]}',
    ),
    *(
        b'{"error":{"code":"insufficient_quota"}}',
        b'{"error":{"code":"429","message":null}}',
        b'[{"error":{"code":429}}]',
        b"null",
    ),
]
_THOUGHTS = [
    b"<think>\nhm\n</think>\n\nYes",
    b"<think></think>",
    b" \n<think>a</think> b",
    b"<think>no end",
    b"text <think>x</think>",
    b"<th",
]


def targets() -> dict[str, Target]:
    answers = _captures(errors=False)
    return {
        "sse": Target(answers, check_sse),
        "think": Target(_THOUGHTS, check_think),
        "fold": Target([b"", b"x"], check_fold),
        "chat": Target(answers, check_chat),
        "anthropic": Target([*_bodies("anthropic"), test_anthropic_decode.FULL], check_codec(AnthropicCodec())),
        "responses": Target([*_bodies("responses"), test_responses_decode.OPENAI], check_codec(ResponsesCodec())),
        "gemini": Target([test_gemini_decode.WHOLE], check_codec(GeminiCodec("m"))),
        "ollama": Target([test_ollama_decode.WHOLE], check_codec(OllamaCodec())),
        "errors": Target([*_captures(errors=True), *_ERRORS], check_errors),
        "arguments": Target(_ARGUMENTS, check_arguments),
        "messages": Target(_conversations(), check_messages),
    }


# --- running ---------------------------------------------------------------------------------------------------------


def made(target: Target, name: str, seed: int) -> tuple[bytes, random.Random]:
    """The input of one iteration, which its seed names, and the dice for checking it."""
    rng = random.Random(f"{name} {seed}")
    return mutated(rng.choice(target.corpus), target.corpus, rng), rng


def failure(target: Target, name: str, seed: int) -> tuple[bytes, BaseException] | None:
    """What one iteration found, with its input; None if nothing."""
    data, rng = made(target, name, seed)
    try:
        target.check(data, rng)
    except Exception as error:
        return data, error
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--iterations", type=int, help="for each target, instead of --seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the first iteration; each further one adds 1")
    parser.add_argument("--target", choices=sorted(targets()), help="only this one")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failure.bin"), help="where the input of a failure goes")
    parser.add_argument("--keep-going", action="store_true", help="count failures by kind instead of stopping at the first")
    options = parser.parse_args(arguments)
    chosen = {name: target for name, target in targets().items() if options.target in (None, name)}
    found: dict[str, int] = {}
    for name, target in chosen.items():
        began, seed = time.perf_counter(), options.seed
        while True:
            taken_s = time.perf_counter() - began
            if seed - options.seed >= options.iterations if options.iterations else taken_s > options.seconds / len(chosen):
                break
            if result := failure(target, name, seed):
                data, error = result
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                found[kind] = found.get(kind, 0) + 1
                if found[kind] == 1:
                    options.save.write_bytes(data)
                    print(
                        f"FAILED {kind}: {str(error)[:300]}\n  --target {name} --seed {seed} --iterations 1; input saved to {options.save}"
                    )
                if not options.keep_going:
                    traceback.print_exception(error)
                    return 1
            seed += 1
        done = seed - options.seed
        print(f"{name:10} {done:9,} executions, {done / max(taken_s, 1e-9):8,.0f} a second, seeds {options.seed} to {seed - 1}")
    for kind, times in found.items():
        print(f"{times} times: {kind}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
