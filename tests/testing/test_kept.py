"""What a recording may not do to a run: hide a secret badly, or change which tools are called when it is played."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.harness import (
    ByteServer,
    Close,
    Exchange,
    Send,
    data_line,
    finish_chunk,
    reply,
    run_virtual,
    sse,
    text_chunk,
)
from tests.harness.chat import call_chunk
from tests.testing.world import agent_of, facts, played, recorded, watched
from treadle import Document, HttpDriver, ToolFinished, UserMessage, tool
from treadle.testing import Cassette, CassetteError, RequestDiffers
from treadle.testing.scrub import TAKEN_OUT
from treadle.testing.tape import read_tape
from treadle.values.request import ModelInfo
from treadle.wire.chat import ChatCodec
from treadle.wire.ollama import OllamaCodec

SECRET = 'ca"n\\ary/sé & <99>'


@tool(concurrency="read_only")
async def get_user_settings(what: str) -> str:
    """Settings."""
    return f"dark mode for {what}"


@tool(concurrency="read_only")
async def find_user(user_id: str) -> str:
    """Find."""
    return f"{user_id} is Ann"


def lines(*values: Any) -> Exchange:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
    return [Send(head), *(Send(json.dumps(value).encode() + b"\n") for value in values), Close()]


def results(events: list[Any]) -> list[str]:
    return [event.result.content for event in events if isinstance(event, ToolFinished)]


def test_a_tool_whose_name_looks_like_an_id_is_played(tmp_path: Path) -> None:
    tools = [get_user_settings]
    exchanges = [sse(*reply(calls=[("get_user_settings", {"what": "user_preferences_1"})])), sse(*reply("Dark."))]
    events, _ = recorded(exchanges, ChatCodec(), tmp_path / "c", tools=tools)
    again, outcome = played(tmp_path / "c", run={"tools": tools})
    assert (facts(again), outcome) == (facts(events), "end")
    assert results(again) == ["dark mode for user_preferences_1"]


def test_a_tools_arguments_are_played_as_they_were(tmp_path: Path) -> None:
    call = {"function": {"name": "find_user", "arguments": {"user_id": "user-507f1f77bcf86cd799439011"}}}
    done = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    asks = lines({"model": "m", "message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}, done)
    says = lines({"model": "m", "message": {"role": "assistant", "content": "Ann"}, "done": False}, done)
    recorded([asks, says], OllamaCodec(), tmp_path / "c", tools=[find_user])
    again, outcome = played(tmp_path / "c", run={"tools": [find_user]})
    assert (results(again), outcome) == (["user-507f1f77bcf86cd799439011 is Ann"], "end")


@pytest.mark.parametrize("secret", ["get_user_settings", "user_settings", "tool_calls", "arguments"])
def test_a_secret_that_is_a_tools_name_or_a_word_of_the_protocol_is_not_cut_out(
    secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_KEY", secret)
    exchanges = [sse(*reply(calls=[("get_user_settings", {"what": "a"})])), sse(*reply("Dark."))]
    with pytest.raises(CassetteError, match="the name of a tool or of an argument, or is a word"):
        recorded(exchanges, ChatCodec(), tmp_path / "c", tools=[get_user_settings])
    assert not (tmp_path / "c").exists()


def test_the_servers_address_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "c"
    token = "gateway-token-of-path"

    class Telling(HttpDriver):
        async def info(self) -> ModelInfo:
            return ModelInfo(model=f"m-{token}", server="vllm", window_source=f"GET {self.base_url}/models, {token}")

    async def main() -> None:
        async with ByteServer([sse(*reply("Fine."))], check_history=False) as server:
            address = server.url.removesuffix("/v1")
            driver = Telling(ChatCodec(), f"{address}/{token}/v1", f"models/{token}")
            with Cassette(path, model=driver, record="all", secrets=[token]) as recording:
                await recording.info()
                await watched(recording, tools=[])

    run_virtual(main())
    written = path.read_text(encoding="utf-8")
    assert token not in written
    assert "127.0.0.1" not in written
    assert (read_tape(path).info or ModelInfo(model="", server="")).window_source is not None
    assert TAKEN_OUT.fullmatch(read_tape(path).served_model.removeprefix("models/"))

    async def play() -> str:
        with Cassette(path, model=f"http://10.0.0.5/v1#models/{token}", record="none", secrets=[token]) as driver:
            return (await watched(driver, tools=[]))[1]

    assert run_virtual(play()) == "end"


def pieces(text: str) -> list[str]:
    middle = len(text) // 2
    return [text[:middle], text[middle:]]


def in_a_field_we_do_not_read() -> Exchange:
    frames = [{"choices": [{"index": 0, "delta": {"reasoning_details": [{"text": piece}]}}]} for piece in pieces(SECRET)]
    return sse(*map(data_line, frames), *reply("Fine."))


def in_arguments() -> Exchange:
    one, other = pieces(json.dumps({"what": SECRET}))
    return sse(call_chunk(0, id="a", name="look", arguments=one), call_chunk(0, arguments=other), finish_chunk("tool_calls"))


def in_arguments_of_calls_that_take_turns() -> Exchange:
    one, other = pieces(json.dumps({"what": SECRET}))
    begin, end = pieces(json.dumps({"what": "a"}))
    return sse(
        call_chunk(0, id="a", name="look", arguments=one),
        call_chunk(1, id="b", name="look", arguments=begin),
        call_chunk(0, arguments=other),
        call_chunk(1, arguments=end),
        finish_chunk("tool_calls"),
    )


def in_arguments_that_were_cut() -> Exchange:
    one, other = pieces(json.dumps({"what": SECRET})[:-1])
    return sse(call_chunk(0, id="a", name="look", arguments=one), call_chunk(0, arguments=other), finish_chunk("length"))


def before_an_error() -> Exchange:
    return sse(*map(text_chunk, pieces(SECRET)), data_line({"error": {"message": "boom", "code": 400}}))


def in_data_of_several_lines() -> Exchange:
    value = json.dumps({"x": "".join(f"\\u{ord(c):04x}" for c in SECRET)}).replace("\\\\u", "\\u")
    return sse(b"data: {\ndata: " + value[1:].encode() + b"\n\n", *reply("Fine."))


def in_an_error_as_nobody_spells_it() -> Exchange:
    body = ('{"error": "no: ' + "".join(f"\\u{ord(c):04x}" for c in SECRET) + '"}').encode()
    return [Send(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)]


@pytest.mark.parametrize(
    "written",
    [
        in_a_field_we_do_not_read,
        in_arguments,
        in_arguments_of_calls_that_take_turns,
        in_arguments_that_were_cut,
        before_an_error,
        in_data_of_several_lines,
        in_an_error_as_nobody_spells_it,
    ],
)
def test_a_secret_that_cannot_be_taken_out_is_not_written(written: Any, tmp_path: Path) -> None:
    with pytest.raises(CassetteError, match="spelled out in pieces"):
        recorded(
            [written(), sse(*reply("Fine."))][: 1 if "error" in written.__name__ else 2],
            ChatCodec(),
            tmp_path / "c",
            secrets=[SECRET],
        )
    assert not (tmp_path / "c").exists()


def test_an_error_of_a_server_in_go(tmp_path: Path) -> None:
    body = json.dumps({"error": f"bad credential {SECRET}"}, ensure_ascii=False)
    body = body.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    data = body.encode()
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
    _, outcome = recorded([[Send(head + data)]], ChatCodec(), tmp_path / "c", tools=[], secrets=[SECRET])
    told = json.loads(b"".join(read_tape(tmp_path / "c").exchanges[0].answer.reads))["error"]
    assert TAKEN_OUT.sub("X", told) == "bad credential X"
    assert played(tmp_path / "c", run={"tools": []})[1] == outcome


@pytest.mark.parametrize("before", [b"", b"1", b"12"])
def test_a_secret_in_a_document_that_was_attached(before: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c"
    document = Document(data=before + b"config: " + SECRET.encode() + b" and more", media_type="application/pdf", name="x.pdf")

    async def main() -> None:
        async with ByteServer([sse(*reply("Fine."))], check_history=False) as server:
            with Cassette(
                path, model=HttpDriver(ChatCodec(), server.url, "m", name="test/m"), record="all", secrets=[SECRET]
            ) as driver:
                await agent_of(driver, tools=[]).run("And?", history=[UserMessage("Read it.", (document,))])

    run_virtual(main())
    written = path.read_text(encoding="utf-8")
    (packed,) = re.findall(r"base64,([^\"]+)", written)
    begins, ends = (part.rstrip("=") for part in TAKEN_OUT.split(packed))
    assert (before + b"config: ").startswith(base64.b64decode(begins[: len(begins) // 4 * 4]))
    assert len(base64.b64decode(ends[-(len(ends) // 4 * 4) :] + "==")) < len(b" and more") + 6


def test_a_secret_in_base64_that_stands_in_lines(tmp_path: Path) -> None:
    prompt = base64.encodebytes(b"x" * 50 + SECRET.encode()).decode()
    with pytest.raises(CassetteError, match="cannot be taken out"):
        recorded([sse(*reply("Fine."))], ChatCodec(), tmp_path / "c", tools=[], prompt=prompt, secrets=[SECRET])


def test_a_key_in_our_own_address(tmp_path: Path) -> None:
    class Mine(ChatCodec):
        path = "/chat?key=word&token=anything&v=1"

    recorded([sse(*reply("Fine."))], Mine(), tmp_path / "c", tools=[])
    assert "word" not in (tmp_path / "c").read_text()
    assert "anything" not in (tmp_path / "c").read_text()

    async def play(path: str) -> str:
        class Played(ChatCodec):
            pass

        Played.path = path
        with Cassette(tmp_path / "c", model=HttpDriver(Played(), "http://127.0.0.1:9", "m"), record="none") as driver:
            return (await watched(driver, tools=[]))[1]

    assert run_virtual(play("/chat?key=no&token=something-else&v=1")) == "end"
    with pytest.raises(RequestDiffers):
        run_virtual(play("/chat?key=none&token=something-else&v=2"))


def test_a_variable_that_only_this_machine_has_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "Use the model gpt-4o-mini, please."
    recorded([sse(*reply("Fine."))], ChatCodec(), tmp_path / "c", tools=[], prompt=prompt)
    monkeypatch.setenv("CACHE_KEY", "gpt-4o-mini")
    assert played(tmp_path / "c", run={"tools": [], "prompt": prompt})[1] == "end"
    with pytest.raises(RequestDiffers) as raised:
        played(tmp_path / "c", run={"tools": [], "prompt": "gpt-4o-mini is to be used."})
    assert "gpt-4o-mini is" not in str(raised.value)


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        ("Delete ****** please", "Delete everything please"),
        ("charge user_12345678 now", "charge somebody else now"),
        ("a \uf8f0 b \uf8f1 c", "a \uf8f0 else \uf8f1 c"),
    ],
)
def test_nothing_that_a_user_writes_is_a_wildcard(prompt: str, other: str, tmp_path: Path) -> None:
    recorded([sse(*reply("Fine."))], ChatCodec(), tmp_path / "c", tools=[], prompt=prompt)
    assert played(tmp_path / "c", run={"tools": [], "prompt": prompt})[1] == "end"
    with pytest.raises(RequestDiffers):
        played(tmp_path / "c", run={"tools": [], "prompt": other})
