"""The file: what is written, what never is, and when."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import ByteServer, Send, data_line, finish_chunk, json_reply, reply, run_virtual, sse, text_chunk
from tests.testing.world import facts, played, recorded, watched
from treadle import HttpDriver, Options, ScriptedDriver
from treadle.testing import Cassette, CassetteError, NotRecorded, Refuse, RequestDiffers
from treadle.testing.faults import with_split
from treadle.testing.scrub import TAKEN_OUT
from treadle.testing.tape import Answer, Exchange, Sent, Tape, read_tape, write_tape
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.gemini import GeminiCodec


def test_what_a_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "cassettes" / "a.json"
    recorded([sse(text_chunk("Grüß dich"), finish_chunk())], ChatCodec(), path, tools=[])
    value = json.loads(path.read_text(encoding="utf-8"))
    frames = [data_line(text_chunk("Grüß dich")), data_line(finish_chunk()), b"data: [DONE]\n\n"]
    assert value == {
        "treadle_cassette": 1,
        "model": "test/m",
        "served_model": "m",
        "codec": {"name": "chat"},
        "info": None,
        "exchanges": [
            {
                "request": {
                    "method": "POST",
                    "path": "/chat/completions",
                    "headers": {"accept": "text/event-stream", "content-type": "application/json"},
                    "json": {
                        "model": "m",
                        "stream": True,
                        "stream_options": {"include_usage": True},
                        "messages": [
                            {"role": "system", "content": "Be brief."},
                            {"role": "user", "content": "What is a?"},
                        ],
                    },
                },
                "answer": {
                    "status": 200,
                    "headers": {"content-type": "text/event-stream"},
                    "reads": [frame.decode() for frame in frames],
                    "end": "clean",
                },
            }
        ],
    }
    assert "Grüß dich" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_recording_twice_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recorded([sse(*reply(calls=[("look", {"what": "a"})])), sse(*reply("Fine."))], ChatCodec(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bytes_that_are_no_text_are_kept_as_they_were(tmp_path: Path) -> None:
    body = data_line(text_chunk("日本")) + data_line(finish_chunk())
    middle = body.index("日".encode()) + 1
    exchange: list[Any] = [
        Send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)),
        Send(body[:middle]),
        Send(body[middle:]),
    ]
    events, outcome = recorded([exchange], ChatCodec(), tmp_path / "c")
    assert outcome == "end"
    assert read_tape(tmp_path / "c").exchanges[0].answer.reads == [body[:middle], body[middle:]]
    assert [list(each) for each in json.loads((tmp_path / "c").read_text())["exchanges"][0]["answer"]["reads"]] == [
        ["base64"],
        ["base64"],
    ]
    assert facts(played(tmp_path / "c")[0]) == facts(events)


@given(st.lists(st.binary(max_size=20), max_size=5), st.binary(max_size=30), st.integers())
def test_any_bytes_come_back_from_a_file_and_from_every_split(reads: list[bytes], body: bytes, seed: int) -> None:
    exchange = Exchange(
        request=Sent(method="POST", path="/x", headers={}, body=body),
        answer=Answer(status=200, headers={}, reads=reads, end="left"),
    )
    tape = Tape(model="m", served_model="m", codec=None, exchanges=[exchange])
    with tempfile.TemporaryDirectory() as directory:
        write_tape(tape, Path(directory) / "c.json")
        (again,) = read_tape(Path(directory) / "c.json").exchanges
    assert again.answer == exchange.answer
    try:
        assert repr(json.loads(again.request.body)) == repr(json.loads(body))
    except ValueError:
        assert again.request.body == body
    for split in ("recorded", "whole", "bytes", seed):
        assert b"".join(with_split(reads, split)) == b"".join(reads)
        assert all(with_split(reads, split))


KEY = 'zq8-Key/with+odd="signs"'[:21]
COOKIE, CUSTOM, NAMED, IN_ENV, REQUEST_ID = (
    "cookie-canary-1",
    "custom-canary-22",
    "named canary 333",
    "env-canary-4444",
    "reqid-canary-55555",
)
ACCOUNT = "org-A1b2C3d4E5f6G7h8I9j0K1l2"
SHAPED = ("sk-proj-abcdefghijklmnop1234", "AIzaSyA1234567890abcdefghijklmnopqrstuvw", "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH")


@pytest.mark.parametrize(
    "codec", [ChatCodec(), AnthropicCodec(), GeminiCodec("m")], ids=["authorization", "x-api-key", "x-goog-api-key"]
)
@pytest.mark.parametrize("status", [200, 400])
def test_no_secret_is_ever_written(codec: Any, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries in every place where a secret can be, and a search of the file for each, in every spelling."""
    monkeypatch.setenv("SOME_SERVICE_API_KEY", IN_ENV)
    secrets = [KEY, COOKIE, CUSTOM, NAMED, IN_ENV, REQUEST_ID, ACCOUNT, *SHAPED]
    said = " ".join([KEY, CUSTOM, NAMED, IN_ENV, *SHAPED, f"https://h/x?key={COOKIE}&alt=1", f"Bearer {COOKIE}"])
    headers = {
        "set-cookie": f"session={COOKIE}",
        "x-request-id": REQUEST_ID,
        "openai-organization": ACCOUNT,
        "cf-ray": REQUEST_ID,
        "retry-after": "1",
    }
    answer: dict[str, Any] = {
        "error": {"message": f"no, {ACCOUNT}: {said}"},
        "request_id": REQUEST_ID,
        "organization": CUSTOM,
        "echo": json.dumps(said),
    }
    exchange = (
        json_reply(answer, status=400, headers=headers)
        if status == 400
        else sse(
            data_line({"type": "ping", "said": said, "request_id": REQUEST_ID}), data_line({"error": answer}), headers=headers
        )
    )
    path = tmp_path / "c.json"
    recorded(
        [exchange] * 9 if status == 200 else [exchange],
        codec,
        path,
        api_key=KEY,
        headers={"api-key": CUSTOM, "Cookie": COOKIE},
        secrets=[NAMED],
        prompt=f"My secrets: {said}",
        tools=[],
        options=Options(extra_headers={"X-Mine": CUSTOM}),
    )
    written = path.read_text(encoding="utf-8")
    unescaped = "".join(strings(json.loads(written)))
    for secret in secrets:
        for text in (written, unescaped, unescaped.encode().decode("unicode_escape", "replace")):
            for spelled in (
                secret,
                quote(secret),
                quote(secret, safe=""),
                json.dumps(secret)[1:-1],
                base64.b64encode(secret.encode()).decode(),
            ):
                assert spelled not in text, secret
    assert f"My secrets: {TAKEN_OUT.search(written)[0][:1]}" in written  # type: ignore[index]
    assert ("retry-after" in written) is True
    # The lengths are those of what was there, so reads and frames are where they were.
    assert len(b"".join(read_tape(path).exchanges[0].answer.reads)) == sum(
        len(each) for each in read_tape(path).exchanges[0].answer.reads
    )


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [each for key, item in value.items() for each in (key, *strings(item))]
    if isinstance(value, list):
        return [each for item in value for each in strings(item)]
    return [f"{value}\n"]


def test_a_scrubbed_request_still_matches_when_it_is_played(tmp_path: Path) -> None:
    path = tmp_path / "c"
    prompt = "The key is named canary 333."
    recorded([sse(*reply("Fine."))], ChatCodec(), path, secrets=[NAMED], prompt=prompt)
    assert NAMED not in path.read_text()
    assert played(path, run={"prompt": prompt}, secrets=[NAMED])[1] == "end"
    # Elsewhere the secret is another one, or none that anybody knows of.
    assert played(path, run={"prompt": "The key is something else."})[1] == "end"
    with pytest.raises(RequestDiffers):
        played(path, run={"prompt": "The key was something else."})


def test_a_secret_that_the_model_spells_out_in_pieces_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(CassetteError, match="spelled out in pieces"):
        recorded([sse(text_chunk("It is named can"), text_chunk("ary 333."), finish_chunk())], ChatCodec(), path, secrets=[NAMED])
    assert not path.exists()


def test_when_it_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    monkeypatch.delenv("CI", raising=False)
    assert Cassette(path, model="m").records
    assert not Cassette(path, model="m", faults={0: Refuse()}).records
    assert not Cassette(path, model="m", split="bytes").records
    monkeypatch.setenv("CI", "true")
    assert not Cassette(path, model="m").records
    assert Cassette(path, model="m", record="once").records
    path.touch()
    assert not Cassette(path, model="m", record="once").records
    assert Cassette(path, model="m", record="all").records
    assert not Cassette(path, model="m", record="none").records


def test_a_block_that_fails_writes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with ByteServer([sse(*reply("Fine."))]) as server:
            with Cassette(tmp_path / "c", model=HttpDriver(ChatCodec(), server.url, "m"), record="all") as driver:
                await watched(driver)
                raise KeyError("an assertion of the test")

    with pytest.raises(KeyError):
        run_virtual(main())
    assert not (tmp_path / "c").exists()


def test_what_it_says_of_itself_when_it_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(NotRecorded, match=r"no cassette c\.json(.|\n)*--treadle-record=once"):
        played(path)
    for text in (
        "",
        "[]",
        "{}",
        '{"treadle_cassette": 1}',
        '{"treadle_cassette": 1, "model": "m", "served_model": "m", "codec": {}, "exchanges": [{}]}',
    ):
        path.write_text(text)
        with pytest.raises(CassetteError, match=r"c\.json is no cassette|wire format is None"):
            played(path)
    path.write_text('{"treadle_cassette": 2}')
    with pytest.raises(CassetteError, match="version 2, and this treadle knows 1"):
        played(path)
    recorded([sse(*reply("Fine."))], ChatCodec(), path)
    with pytest.raises(CassetteError, match="was recorded with 'test/m', and the test asks for 'other/m'"):
        with Cassette(path, model="other/m", record="none"):
            pass
    with pytest.raises(CassetteError, match="nothing was recorded"):
        with Cassette(path, model="ollama/m", record="all"):
            pass


def test_only_what_goes_over_http_can_be_recorded(tmp_path: Path) -> None:
    async def main() -> None:
        with Cassette(tmp_path / "c", model=ScriptedDriver(["Hi"]), record="all") as driver:
            assert (await watched(driver))[1] == "CassetteError"

    with pytest.raises(CassetteError, match="nothing was recorded"):
        run_virtual(main())


def test_its_driver_says_what_was_asked(tmp_path: Path) -> None:
    recorded([sse(*reply("Fine."))], ChatCodec(), tmp_path / "c")

    async def main() -> None:
        cassette = Cassette(tmp_path / "c", model="test/m", record="none")
        with cassette as driver:
            await watched(driver)
            assert repr(driver) == "ReplayDriver('test/m', 1 of 1 exchanges played)"
            assert (await driver.info()).model == "m"
        assert [request.messages[-1].content for request in cassette.requests] == ["What is a?"]

    run_virtual(main())
