"""llama.cpp's real server in this process, with the tiny model."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import treadle_tiny
from msgspec import structs

from treadle.agent.agent import Agent
from treadle.drivers.catalog import PRESETS, driver_for
from treadle.drivers.embedded import LlamaServer
from treadle.drivers.servers import Found, look_at
from treadle.errors import ConnectFailed, ContextOverflow, MissingExtra, UsageError
from treadle.policy.context import ContextPolicy
from treadle.values.events import Delta, TextDelta
from treadle.values.messages import ToolCall, UserMessage
from treadle.values.ports import Driver
from treadle.values.request import ModelInfo, ModelRequest, Options, Reply, ToolSpec

pytest.importorskip("xllamacpp")

MODEL = treadle_tiny.model_path()
NAME = "tiny-tool-caller.q8_0"
INFO = ModelInfo(
    model=NAME,
    server="llamacpp",
    window_tokens=512,
    window_source="GET /props n_ctx",
    max_window_tokens=2048,
    abilities=frozenset({"tools"}),
    loaded=True,
)


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    with LlamaServer(MODEL, n_ctx=512, n_parallel=2, n_threads=1) as server:
        yield server


def request(text: str, *tools: ToolSpec, max_tokens: int = 40) -> ModelRequest:
    options = Options(max_tokens=max_tokens, temperature=0.0)
    return ModelRequest(messages=(UserMessage(text),), tools=tools, options=options)


def ask(driver: Driver, asked: ModelRequest) -> tuple[Reply, list[Delta]]:
    async def main() -> tuple[Reply, list[Delta]]:
        async with driver.connect() as connection, connection.open(asked) as stream:
            deltas = [delta async for some in stream for delta in some]
            return stream.reply, deltas

    return asyncio.run(main())


def is_open(base_url: str) -> bool:
    parts = urlsplit(base_url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=1).close()
    except OSError:
        return False
    return True


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_it_answers_and_calls_tools(server: LlamaServer) -> None:
    assert server.driver.model == f"embedded/{NAME}"
    assert server.base_url == server.driver.base_url
    assert server.base_url.startswith("http://127.0.0.1:")
    reply, deltas = ask(server.driver, request("Hello"))
    assert reply.finish == "end"
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    weather = ToolSpec(
        name="get_weather",
        description="Current weather in a city.",
        parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    )
    reply, _ = ask(server.driver, request("What's the weather in Oslo?", weather))
    assert reply.finish == "tool_use"
    (call,) = [part for part in reply.message.content if isinstance(part, ToolCall)]
    assert (call.name, call.arguments.replace(" ", "")) == ("get_weather", '{"city":"Oslo"}')


def test_the_window_is_that_of_one_conversation(server: LlamaServer) -> None:
    assert asyncio.run(server.driver.info()) == INFO
    with pytest.raises(ContextOverflow):
        ask(server.driver, request("hello " * 300))
    reply, _ = ask(server.driver, request("hello " * 120, max_tokens=4))
    assert reply.usage.input_tokens is not None
    assert 256 < reply.usage.input_tokens < 512  # more than half: the two conversations do not share one window


def test_two_conversations_at_once(server: LlamaServer) -> None:
    async def one() -> Reply:
        async with server.driver.connect() as connection, connection.open(request("Hello")) as stream:
            async for _ in stream:
                pass
            return stream.reply

    async def main() -> list[Reply]:
        return await asyncio.gather(*(one() for _ in range(4)))

    assert [reply.finish for reply in asyncio.run(main())] == ["end"] * 4


def test_discovery_knows_the_real_server(server: LlamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found(server="llamacpp", base_url=server.base_url, models=(INFO,))
    root = server.base_url.removesuffix("/v1")
    assert asyncio.run(look_at(server.base_url)) == found
    assert asyncio.run(look_at(root + "/wrong")) == found
    assert asyncio.run(look_at(root)) == structs.replace(found, base_url=root)  # this server answers without /v1 too
    monkeypatch.setitem(PRESETS, "llamacpp", structs.replace(PRESETS["llamacpp"], base_url=server.base_url, also=()))
    for text, model in (("llamacpp", NAME), (server.base_url, NAME), (f"{server.base_url}#any", "any")):
        driver = driver_for(text)
        assert asyncio.run(driver.info()) == structs.replace(INFO, model=model)
        assert ask(driver, request("Hello", max_tokens=4))[0].finish is not None


def test_closing_frees_the_port_and_the_threads() -> None:
    with LlamaServer(MODEL, n_threads=1) as server:  # the library's own log thread exists from here on
        assert "http://127.0.0.1:" in repr(server)
    before = threads() if sys.platform == "linux" else 0
    for _ in range(2):
        with LlamaServer(MODEL, n_threads=1) as server:
            url = server.base_url
            assert is_open(url)
        assert not is_open(url)
        server.close()
        assert repr(server).endswith("not running)")
        with pytest.raises(ConnectFailed) as caught:
            ask(server.driver, request("Hello"))
        assert "keep its `with` block open" in caught.value.hint
        with pytest.raises(ConnectFailed, match="nothing answers"):
            asyncio.run(server.driver.info())
    if sys.platform == "linux":
        assert threads() <= before


def test_closing_cuts_an_open_stream_and_does_not_wait_for_it() -> None:
    async def main() -> float:
        server = LlamaServer(MODEL, n_threads=1)
        server.start()
        server.start()  # runs already
        async with server.driver.connect() as connection:
            asked = structs.replace(request("Hello", max_tokens=1500), options=Options(extra_body={"ignore_eos": True}))
            async with connection.open(asked) as stream:
                await anext(aiter(stream))
                began = time.monotonic()
                server.close()
                return time.monotonic() - began

    assert asyncio.run(main()) < 5.0  # 2.1 s; 30 s with the library's own settings


def test_a_closed_server_can_be_started_again() -> None:
    server = LlamaServer(MODEL, n_ctx=256, n_parallel=1, n_threads=1)
    with pytest.raises(UsageError, match="has not been started"):
        _ = server.base_url
    for _ in range(2):
        with server:
            assert asyncio.run(server.driver.info()).window_tokens == 256


def test_it_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaServer(MODEL, n_threads=1) as server:
        ask(server.driver, request("Hello", max_tokens=4))
    assert capfd.readouterr() == ("", "")


def test_files_that_are_no_model_are_refused_before_anything_starts(tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("GGU")
    for path, said in (
        (tmp_path / "missing.gguf", "there is no file"),
        (tmp_path, "is a directory"),
        (text, "is not a GGUF model"),
        (text / "below", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            LlamaServer(path)
        assert str(path) in caught.value.message


@pytest.mark.parametrize("size", [4, 24, 1000, 500_000])
def test_a_model_that_is_cut_short_is_a_typed_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(MODEL.read_bytes()[:size])
    with pytest.raises(UsageError, match="could not load") as caught, LlamaServer(path):
        pass
    assert "cut short" in caught.value.hint
    assert str(path) in caught.value.message


@pytest.mark.parametrize("options", [{"n_ctx": 1}, {"n_ctx": 255}, {"n_parallel": 0}, {"n_threads": 0}, {"n_gpu_layers": -2}])
def test_numbers_that_cannot_work_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        LlamaServer(MODEL, **options)  # a window of one token would end the process


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra) as caught, LlamaServer(MODEL):
        pass
    assert ".[embedded]" in caught.value.hint
    importlib.import_module("treadle.drivers.embedded")  # which loads without it


def test_a_word_that_would_crash_the_process_is_not_sent(llamacpp: LlamaServer) -> None:
    """30,000 characters without a blank end the process in llama.cpp's tokenizer; 16,000 are read."""
    agent = Agent(llamacpp.driver, options=Options(max_tokens=1), context=ContextPolicy(window_tokens=100_000))
    with pytest.raises(ContextOverflow, match="30,000 characters without a blank"):
        agent.run_sync("x" * 30_000)
    with pytest.raises(ContextOverflow, match="does not fit the window of 2,048"):  # the server says so
        agent.run_sync("x" * 16_000)
