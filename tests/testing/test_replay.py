"""A cassette gives what the server gave: compared with the same run on a real connection, format by format and fault by fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import (
    ByteServer,
    Close,
    Exchange,
    Hang,
    Reset,
    Send,
    call_chunk,
    data_line,
    finish_chunk,
    json_reply,
    reply,
    run_virtual,
    sse,
    text_chunk,
    usage_chunk,
)
from tests.laws.test_every_wire import WIRES, Turn
from tests.testing.world import facts, played, recorded, watched
from treadle import Ended, HttpDriver, Limits, Replied, Retried, TextDelta, Timeouts, ToolFinished
from treadle.testing import (
    Cassette,
    CassetteError,
    Cut,
    Duplicate,
    Garbage,
    NotPlayed,
    NotRecorded,
    Refuse,
    RequestDiffers,
    Stall,
    Status,
    check_events,
)
from treadle.testing.tape import codec_from, described, read_tape
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.anthropic_requests import ANTHROPIC_API
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import LLAMACPP
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec

STORY = [
    Turn("I look. ", "Where? ", (("look", {"what": "a"}), ("look", {"what": "ü—日"}))),
    Turn("Half ", broken=True),
    Turn("All of it: 日本."),
]
SPLITS: list[Any] = ["recorded", "whole", "bytes", 1, 2, 3]


@pytest.mark.parametrize("wire", WIRES)
def test_every_format_at_every_split(wire: str, tmp_path: Path) -> None:
    codec, written = WIRES[wire]
    path = tmp_path / "story.json"
    events, outcome = recorded([written(turn, n) for n, turn in enumerate(STORY)], codec, path)
    assert outcome == "end"
    assert sum(isinstance(event, Retried) for event in events) == 1
    for split in SPLITS:
        again, same = played(path, split=split)
        assert (facts(again), same) == (facts(events), outcome), split
        check_events(again)


def test_reads_are_played_as_they_came(tmp_path: Path) -> None:
    events, _ = recorded(
        [sse(text_chunk("one "), text_chunk("two "), text_chunk("three"), finish_chunk())], ChatCodec(), tmp_path / "c"
    )
    shown = [event.text for event in events if isinstance(event, TextDelta)]
    reads = read_tape(tmp_path / "c").exchanges[0].answer.reads
    assert len(reads) == 5
    assert len([e for e in played(tmp_path / "c", split="whole")[0] if isinstance(e, TextDelta)]) == 1
    assert "".join(shown) == "one two three"


ERRORS: dict[str, Exchange] = {
    "429 with Retry-After": json_reply({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "2"}),
    "401": json_reply({"error": {"message": "bad key"}}, status=401),
    "400 with an overflow": json_reply({"error": {"code": "context_length_exceeded", "message": "too long"}}, status=400),
    "an error in the stream": sse(text_chunk("Hm"), data_line({"error": {"message": "boom", "code": 500}})),
    "a web page": [Send(b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n<html>no</html>")],
    "JSON in place of a stream": json_reply({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "model": "m"}),
    "no reason to stop": sse(text_chunk("Hm")),
    "cut by length": sse(text_chunk("Hm"), call_chunk(0, id="a", name="look", arguments='{"what": "a"}'), finish_chunk("length")),
    "no ids": sse(call_chunk(0, name="look", arguments='{"what": "a"}'), finish_chunk("tool_calls")),
    "usage": sse(text_chunk("Hm"), finish_chunk(), usage_chunk(3, 4)),
    "a reset": sse(text_chunk("Hm"), Reset()),
    "an end without the end of the body": [*sse(text_chunk("Hm"), done=False)[:-1], Close()],
    "silence": sse(text_chunk("Hm"), Hang()),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_no_plain_answer_comes_out_the_same(case: str, tmp_path: Path) -> None:
    limits = Limits(timeouts=Timeouts(silence_s=5))
    events, outcome = recorded(
        [ERRORS[case], sse(text_chunk("Fine"), finish_chunk())][: 1 if outcome_is_final(case) else 2],
        ChatCodec(),
        tmp_path / "c",
        limits=limits,
    )
    again, same = played(tmp_path / "c", run={"limits": limits})
    assert same == outcome
    assert facts(again) == facts(events)
    assert [type(e) for e in again if not isinstance(e, TextDelta)] == [type(e) for e in events if not isinstance(e, TextDelta)]


def outcome_is_final(case: str) -> bool:
    return case in ("401", "400 with an overflow", "a web page", "JSON in place of a stream", "cut by length", "usage")


LONG = [
    text_chunk("Hello "),
    text_chunk("wörld"),
    call_chunk(0, id="a", name="look", arguments='{"what": "a"}'),
    finish_chunk("tool_calls"),
]


def cut_on_the_wire(after: int) -> Exchange:
    """The stream, broken off in the middle of its chunked body."""
    body = b"".join(data_line(chunk) for chunk in LONG)[:after]
    head = sse(done=False)[0]
    return [head, *([Send(b"%x\r\n%b\r\n" % (len(body), body))] if body else []), Close()]


def test_a_cut_is_the_cut_of_a_real_connection(tmp_path: Path) -> None:
    done = sse(text_chunk("Done"), finish_chunk())
    recorded([sse(*LONG), done], ChatCodec(), tmp_path / "c")
    size = len(b"".join(data_line(chunk) for chunk in LONG))

    async def on_the_wire(after: int) -> Any:
        again = [] if after >= size - 2 else [sse(*LONG)]  # only the blank line is missing: the turn is whole
        async with ByteServer([cut_on_the_wire(after), *again, done]) as server:
            return await watched(HttpDriver(ChatCodec(), server.url, "m", name="test/m"))

    attempts: set[int] = set()
    for after in range(0, size + 1, 3):
        events, outcome = run_virtual(on_the_wire(after))
        again, same = played(tmp_path / "c", faults={0: Cut(after_bytes=after)})
        assert (facts(again), same) == (facts(events), outcome), after
        attempts.add(sum(isinstance(event, Retried) for event in again))
    assert attempts == {0, 1}  # a cut after the reason to stop takes nothing away


def fine(tmp_path: Path) -> Path:
    path = tmp_path / "fine.json"
    call = reply(calls=[("look", {"what": "a"})])
    recorded([sse(*call), sse(*reply("It is fine."))], ChatCodec(), path)
    return path


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Refuse(), "ConnectFailed"),
        (Status(code=429, retry_after_s=30), "RateLimited"),
        (Status(code=503), "Overloaded"),
        (Status(code=500), "ServerError"),
        (Cut(after_bytes=40), "StreamTruncated"),
        (Stall(), "ModelTimeout"),
        (Stall(after_bytes=400), "ModelTimeout"),
    ],
)
def test_a_fault_strikes_once_and_the_next_attempt_gets_the_answer(fault: Any, kind: str, tmp_path: Path) -> None:
    path = fine(tmp_path)
    for exchange in (0, 1):
        events, outcome = played(path, faults={exchange: fault})
        (retried,) = [event for event in events if isinstance(event, Retried)]
        assert (outcome, retried.error.kind, retried.turn) == ("end", kind, exchange + 1)
        check_events(events)


def test_a_run_that_ends_of_a_fault_need_not_ask_for_the_rest(tmp_path: Path) -> None:
    for exchange in (0, 1):
        events, outcome = played(fine(tmp_path), faults={exchange: Garbage(after_frames=1)})
        assert outcome == "BadStream"
        check_events(events)


def test_waits_for_a_busy_server_take_no_time_and_are_as_long_as_it_asks(tmp_path: Path) -> None:
    events, outcome = played(fine(tmp_path), faults={1: [Status(code=429, retry_after_s=30), Refuse(), Status(code=529)]})
    assert outcome == "end"
    assert next(event.wait_s for event in events if isinstance(event, Retried)) == 30


def test_a_frame_that_comes_twice_is_what_a_server_may_do(tmp_path: Path) -> None:
    events, outcome = played(fine(tmp_path), faults={1: Duplicate(frame=1)})
    texts = [event.message.text for event in events if isinstance(event, Replied)]
    assert (outcome, texts) == ("end", ["", "It isIt is fine."])  # both halves were sent, the first of them twice
    check_events(events)


def test_a_request_that_differs_fails_and_names_the_place(tmp_path: Path) -> None:
    path = fine(tmp_path)

    async def main() -> None:
        with Cassette(path, model="test/m", record="none") as driver:
            await watched(driver, prompt="What is b, and why is it what it is, after all that was said of it?")

    with pytest.raises(RequestDiffers) as raised:
        run_virtual(main())
    assert raised.value.path == "messages.1.content"
    assert str(raised.value) == (
        "the request is not the recorded one (exchange 0 of fine.json): `messages.1.content` is "
        '"What is b, and why is it what it is, after all that was said"…; recorded was "What is a?"\n'
        "  If the change is meant, record it again with the real server: pytest --treadle-record=all, for this test."
    )


def test_places_that_may_differ_can_be_named(tmp_path: Path) -> None:
    path = fine(tmp_path)
    _, outcome = played(path, run={"prompt": "What is b?"}, ignore=["messages.1.content"])
    assert outcome == "end"
    assert played(path, run={"instructions": "Be long."}, ignore=["messages.*.content"])[1] == "end"


def test_what_is_left_over_fails_the_test(tmp_path: Path) -> None:
    path = fine(tmp_path)
    with pytest.raises(NotPlayed, match=r"2 of 2 exchanges of fine.json were not asked for: 0, 1"):
        with Cassette(path, model="test/m", record="none"):
            pass
    with pytest.raises(NotPlayed, match="1 of 2"):
        played(path, run={"limits": Limits(max_turns=1)})
    with pytest.raises(NotPlayed, match="faults for the exchanges 0 never struck"):
        played(path, faults={0: [Duplicate(frame=99), Refuse()]})
    with pytest.raises(CassetteError, match="a fault is for exchange 5"):
        played(path, faults={5: Refuse()})


def test_one_request_too_many(tmp_path: Path) -> None:
    path = fine(tmp_path)

    async def main() -> None:
        with Cassette(path, model="test/m", record="none") as driver:
            assert (await watched(driver))[1] == "end"
            assert (await watched(driver))[1] == "NotRecorded"

    with pytest.raises(NotRecorded, match="all of them were played"):
        run_virtual(main())


def test_two_runs_side_by_side_each_get_their_answers(tmp_path: Path) -> None:
    import asyncio

    path = tmp_path / "two.json"

    async def record() -> None:
        async with ByteServer([sse(*reply("for a")), sse(*reply("for b"))]) as server:
            with Cassette(path, model=HttpDriver(ChatCodec(), server.url, "m", name="test/m"), record="all") as driver:
                await watched(driver, prompt="a")
                await watched(driver, prompt="b")

    async def play() -> list[Any]:
        with Cassette(path, model="test/m", record="none") as driver:
            return await asyncio.gather(watched(driver, prompt="b"), watched(driver, prompt="a"))

    run_virtual(record())
    runs = run_virtual(play())
    assert [event.message.text for events, _ in runs for event in events if isinstance(event, Replied)] == ["for b", "for a"]


def test_ids_that_we_make_ourselves_are_no_difference(tmp_path: Path) -> None:
    call = sse(call_chunk(0, name="look", arguments='{"what": "a"}'), finish_chunk("tool_calls"))
    recorded([call, sse(*reply("Fine."))], ChatCodec(), tmp_path / "c")
    sent = json.dumps(json.loads((tmp_path / "c").read_text())["exchanges"][1]["request"]["json"])
    assert '"call_' in sent
    events, outcome = played(tmp_path / "c")
    assert outcome == "end"
    assert any(isinstance(event, ToolFinished) for event in events)
    assert isinstance(events[-1], Ended)


@pytest.mark.parametrize(
    "codec",
    [
        ChatCodec(),
        ChatCodec(LLAMACPP),
        AnthropicCodec(),
        AnthropicCodec(ANTHROPIC_API),
        ResponsesCodec(),
        GeminiCodec("gemini-2.5-flash"),
        OllamaCodec(),
        OllamaCodec(num_ctx=8192),
    ],
)
def test_a_codec_comes_back_from_its_description(codec: Any) -> None:
    made = codec_from(json.loads(json.dumps(described(codec))))
    assert type(made) is type(codec)
    assert vars(made) == vars(codec)
    assert made.path == codec.path


def test_a_codec_of_your_own_is_passed_with_its_driver(tmp_path: Path) -> None:
    class Mine(ChatCodec):
        path = "/mine"

    path = tmp_path / "c"
    recorded([sse(*reply("Fine."))], Mine(), path)
    assert read_tape(path).codec is None
    with pytest.raises(CassetteError, match="a wire format of your own"):
        played(path)

    async def main() -> str:
        with Cassette(path, model=HttpDriver(Mine(), "http://127.0.0.1:1/v1", "m"), record="none") as driver:
            return (await watched(driver))[1]

    assert run_virtual(main()) == "end"
