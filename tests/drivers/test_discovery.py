"""What is said of a server: by its own answers, and when it is not there.

Answers of llama.cpp, vLLM and LiteLLM are captured. Those of Ollama, LM Studio and llama.cpp's router are written
from their documentation (docs.ollama.com/api; lmstudio.ai/docs/developer/rest/endpoints; tools/server/README.md of
llama.cpp; read 2026-11) and have not been captured.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from treadle.drivers import servers
from treadle.drivers.catalog import PRESETS, driver_for
from treadle.drivers.discovery import DiscoveredDriver, discover, explain_for, http_driver, label, pick
from treadle.drivers.servers import Found, look_at
from treadle.errors import BadStream, ConnectFailed, ModelError, ModelNotFound
from treadle.values.messages import UserMessage
from treadle.values.ports import Driver
from treadle.values.request import ModelInfo, ModelRequest

CAPTURES = Path(__file__).parent.parent / "captures"
VLLM = json.loads((CAPTURES / "vllm--models.body.json").read_bytes())
LITELLM = json.loads((CAPTURES / "litellm--models.body.json").read_bytes())
PROPS = json.loads((CAPTURES / "xllamacpp--props.body.json").read_bytes())
# The part that matters of what the same server answered; tests/servers/ asks the real one.
LLAMACPP = {
    "object": "list",
    "data": [
        {
            "id": "tiny",
            "object": "model",
            "owned_by": "llamacpp",
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "meta": {"n_ctx": 2048, "n_ctx_train": 2048},
        }
    ],
}
TINY = ModelInfo(
    model="tiny",
    server="llamacpp",
    window_tokens=2048,
    window_source="GET /props n_ctx",
    max_window_tokens=2048,
    abilities=frozenset({"tools"}),
    loaded=True,
)

OLLAMA_MODELS = {
    "object": "list",
    "data": [
        {"id": "qwen3:8b", "object": "model", "created": 1, "owned_by": "library"},
        {"id": "llama3.2:latest", "object": "model", "created": 1, "owned_by": "library"},
        {"id": "nomic-embed-text:latest", "object": "model", "created": 1, "owned_by": "library"},
    ],
}
OLLAMA_PS = {"models": [{"name": "llama3.2:latest", "model": "llama3.2:latest", "size": 1, "context_length": 4096}]}
OLLAMA_SHOW = {
    "qwen3:8b": {
        "parameters": 'stop    "<|im_end|>"\ntemperature    0.6',
        "capabilities": ["completion", "tools", "thinking"],
        "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960},
    },
    "llama3.2:latest": {
        "parameters": 'stop    "<|eot_id|>"',
        "capabilities": ["completion", "tools"],
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
    },
    "nomic-embed-text:latest": {
        "parameters": "num_ctx                        8192",
        "capabilities": ["embedding"],
        "model_info": {"general.architecture": "nomic-bert", "nomic-bert.context_length": 2048},
    },
}
LMSTUDIO = {
    "object": "list",
    "data": [
        {
            "id": "text-embedding-nomic-embed-text-v1.5",
            "object": "model",
            "type": "embeddings",
            "state": "loaded",
            "max_context_length": 2048,
            "loaded_context_length": 2048,
        },
        {
            "id": "qwen2-vl-7b-instruct",
            "object": "model",
            "type": "vlm",
            "state": "not-loaded",
            "max_context_length": 32768,
        },
        {
            "id": "qwen/qwen3-4b",
            "object": "model",
            "type": "llm",
            "state": "loaded",
            "max_context_length": 131072,
            "loaded_context_length": 12918,
            "capabilities": ["tool_use"],
        },
    ],
}

FIELDS = [
    *(
        "data",
        "id",
        "object",
        "owned_by",
        "status",
        "value",
        "meta",
        "n_ctx",
        "max_model_len",
        "model_alias",
        "is_sleeping",
    ),
    *(
        "default_generation_settings",
        "modalities",
        "vision",
        "chat_template_caps",
        "supports_tool_calls",
        "architecture",
    ),
    *(
        "output_modalities",
        "input_modalities",
        "version",
        "models",
        "model",
        "context_length",
        "capabilities",
        "parameters",
    ),
    *("model_info", "general.architecture", "remote_host", "state", "type", "loaded_context_length"),
    *("key", "loaded_instances", "config", "max_context_length", "trained_for_tool_use", "n_ctx_train"),
]
PATHS = [
    "GET /v1/models",
    "GET /props",
    "GET /api/version",
    "GET /api/ps",
    "POST /api/show",
    "GET /api/v0/models",
    "GET /api/v1/models",
]
LISTS = [OLLAMA_MODELS, LLAMACPP, VLLM, LITELLM]

Answer = Any
Routes = dict[str, Answer]


class Server:
    """Answers `METHOD /path` with JSON, or with what a coroutine makes of the request; 404 otherwise."""

    def __init__(self, routes: Routes, default: Answer = None) -> None:
        self.routes = routes
        self.default = default
        self.asked: list[str] = []
        self.keys: set[str | None] = set()
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.rel_url}")
        self.keys.add(request.headers.get("Authorization"))
        answer = self.routes.get(f"{request.method} {request.path}", self.default)
        if callable(answer):
            return await answer(request)
        return web.json_response({"error": "not found"}, status=404) if answer is None else web.json_response(answer)


@asynccontextmanager
async def serving(routes: Routes, default: Answer = None) -> AsyncIterator[Server]:
    server = Server(routes, default)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


async def show(request: web.Request) -> web.Response:
    found = OLLAMA_SHOW.get((await request.json())["model"])
    return web.json_response(found) if found else web.json_response({"error": "model not found"}, status=404)


OLLAMA: Routes = {
    "GET /v1/models": OLLAMA_MODELS,
    "GET /api/version": {"version": "0.12.6"},
    "GET /api/ps": OLLAMA_PS,
    "POST /api/show": show,
}
LLAMACPP_ROUTES: Routes = {"GET /v1/models": LLAMACPP, "GET /props": PROPS}


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every preset at an address where nothing listens, whatever runs on this machine."""
    held: list[socket.socket] = []
    for name, preset in list(PRESETS.items()):
        for variable in (*preset.address_env, preset.key_env):
            if variable:
                monkeypatch.delenv(variable, raising=False)
        taken = socket.socket()
        taken.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused, and nobody else gets the port
        held.append(taken)
        port = taken.getsockname()[1]
        monkeypatch.setitem(PRESETS, name, structs.replace(preset, base_url=f"http://127.0.0.1:{port}/v1", also=()))
    yield
    for taken in held:
        taken.close()


def move(monkeypatch: pytest.MonkeyPatch, name: str, *urls: str) -> None:
    monkeypatch.setitem(PRESETS, name, structs.replace(PRESETS[name], base_url=urls[0], also=urls[1:]))


def found_at(routes: Routes, default: Answer = None, **options: Any) -> tuple[Found | None, Server]:
    async def main() -> tuple[Found | None, Server]:
        async with serving(routes, default) as server:
            return await look_at(server.url, **options), server

    return asyncio.run(main())


async def call(driver: Driver) -> None:
    request = ModelRequest(messages=(UserMessage("Hello"),))
    async with driver.connect() as connection, connection.open(request) as stream:
        async for _ in stream:
            pass


# What each server says


def test_llamacpp_tells_the_window_of_one_slot() -> None:
    found, server = found_at(LLAMACPP_ROUTES)
    assert found == Found(server="llamacpp", base_url=server.url, models=(TINY,))
    assert server.asked == ["GET /v1/models", "GET /props"]


def test_llamacpp_is_known_by_its_props_alone() -> None:
    found, server = found_at({"GET /props": PROPS})
    assert found == Found(server="llamacpp", base_url=server.url, models=(structs.replace(TINY, max_window_tokens=None),))


def test_llamacpp_without_props_still_has_a_window() -> None:
    found, _ = found_at({"GET /v1/models": LLAMACPP})
    assert found is not None
    expected = structs.replace(TINY, window_source="GET /v1/models meta.n_ctx", abilities=frozenset())
    assert found.models == (expected,)


def test_llamacpp_sees_and_sleeps_as_it_says() -> None:
    props = {**PROPS, "modalities": {"vision": True}, "is_sleeping": True}
    found, _ = found_at({"GET /v1/models": LLAMACPP, "GET /props": props})
    assert found is not None
    assert found.models == (structs.replace(TINY, abilities=frozenset({"tools", "vision"}), loaded=False),)


def test_a_llamacpp_router_is_not_made_to_load_anything() -> None:
    """Documented, not captured."""
    entries = [
        {"id": "org/a:Q4", "owned_by": "llamacpp", "status": {"value": "unloaded"}},
        {"id": "org/b:Q4", "owned_by": "llamacpp", "status": {"value": "loaded"}, "meta": {"n_ctx": 4096}},
        {
            "id": "d",
            "owned_by": "llamacpp",
            "status": {"value": "unloaded"},
            "architecture": {"output_modalities": ["decisions"]},
        },
    ]
    found, server = found_at({"GET /v1/models": {"object": "list", "data": entries}, "GET /props": PROPS})
    assert found is not None
    assert [(m.model, m.loaded, m.window_tokens) for m in found.models] == [
        ("org/a:Q4", False, None),
        ("org/b:Q4", True, 2048),
    ]
    assert server.asked == ["GET /v1/models", "GET /props?model=org/b:Q4&autoload=false"]
    assert pick(found) == found.models[1]


def test_vllm_tells_its_window_with_its_models() -> None:
    found, server = found_at({"GET /v1/models": VLLM})
    info = ModelInfo(model="tiny", server="vllm", window_tokens=2048, window_source="GET /v1/models max_model_len", loaded=True)
    assert found == Found(server="vllm", base_url=server.url, models=(info,))
    assert server.asked == ["GET /v1/models"]


def test_vllms_adapters_have_the_window_of_their_model() -> None:
    """From vLLM's source, not captured."""
    adapters = [{"id": "mine", "owned_by": "vllm", "parent": "tiny"}, {"id": "lost", "owned_by": "vllm", "parent": "gone"}]
    found, _ = found_at({"GET /v1/models": {"object": "list", "data": [*adapters, *VLLM["data"]]}})
    assert found is not None
    assert [(m.model, m.window_tokens) for m in found.models] == [("mine", 2048), ("lost", None), ("tiny", 2048)]


def test_a_server_that_nobody_knows_has_models_and_no_more() -> None:
    found, server = found_at({"GET /v1/models": LITELLM})
    models = tuple(ModelInfo(model=name, server="openai-compatible") for name in ("tiny", "tiny-small-ctx", "dead"))
    assert found == Found(server="openai-compatible", base_url=server.url, models=models)


def test_ollama_tells_a_window_only_where_it_will_keep_it() -> None:
    """Documented, not captured. What a model was trained for is not the window it is served with."""
    found, server = found_at(OLLAMA)
    assert found == Found(
        server="ollama",
        base_url=server.url,
        models=(
            ModelInfo(
                model="qwen3:8b",
                server="ollama",
                window_source="nobody: only the 40,960 tokens that the model can have are known",
                max_window_tokens=40960,
                abilities=frozenset({"tools", "thinking"}),
                loaded=False,
            ),
            ModelInfo(
                model="llama3.2:latest",
                server="ollama",
                window_tokens=4096,
                window_source="GET /api/ps context_length",
                max_window_tokens=131072,
                abilities=frozenset({"tools"}),
                loaded=True,
            ),
            ModelInfo(
                model="nomic-embed-text:latest",
                server="ollama",
                window_tokens=2048,
                window_source="POST /api/show parameters num_ctx",
                max_window_tokens=2048,
                abilities=frozenset({"embedding"}),
                loaded=False,
            ),
        ),
    )


def test_what_ollamas_model_file_sets_goes_before_what_is_loaded() -> None:
    """Documented, not captured: a request that names no window gets the file's, and the model is loaded anew for it."""

    async def show_file(_: web.Request) -> web.Response:
        return web.json_response({**OLLAMA_SHOW["llama3.2:latest"], "parameters": "num_ctx    8192"})

    found, _ = found_at({**OLLAMA, "POST /api/show": show_file}, only="llama3.2")
    assert found is not None
    said = found.models[1]
    assert (said.window_tokens, said.window_source, said.loaded) == (8192, "POST /api/show parameters num_ctx", True)


def test_ollamas_cloud_models_have_all_they_were_trained_for() -> None:
    """Documented, not captured."""

    async def show_cloud(_: web.Request) -> web.Response:
        info = {"general.architecture": "gptoss", "gptoss.context_length": 131072}
        return web.json_response({"remote_host": "https://ollama.com:443", "model_info": info, "capabilities": ["completion"]})

    found, _ = found_at({**OLLAMA, "POST /api/show": show_cloud})
    assert found is not None
    assert found.models[0].window_tokens == 131072


def test_ollama_without_a_model_is_known_by_its_version() -> None:
    """Documented, not captured; the list is null then."""
    found, server = found_at({**OLLAMA, "GET /v1/models": {"object": "list", "data": None}})
    assert found == Found(server="ollama", base_url=server.url, models=())


def test_one_model_is_asked_for_alone_when_only_it_matters() -> None:
    found, server = found_at(OLLAMA, only="llama3.2")
    assert found is not None
    assert found.models[1].window_tokens == 4096
    assert server.asked.count("POST /api/show") == 1


def test_lm_studio_says_what_is_loaded_and_for_how_much() -> None:
    """Documented, not captured. It answers paths that it does not know with 200 and an error."""
    listed = {"data": [{"id": e["id"], "object": "model", "owned_by": "organization_owner"} for e in LMSTUDIO["data"]]}
    unknown = {"error": "Unexpected endpoint or method. (GET /). Returning 200 anyway"}
    for models in (listed, {"data": [{"id": "x", "object": "model"}]}):
        found, server = found_at({"GET /v1/models": models, "GET /api/v0/models": LMSTUDIO}, default=unknown)
        assert found == Found(
            server="lmstudio",
            base_url=server.url,
            models=(
                ModelInfo(
                    model="text-embedding-nomic-embed-text-v1.5",
                    server="lmstudio",
                    window_tokens=2048,
                    window_source="GET /api/v0/models loaded_context_length",
                    max_window_tokens=2048,
                    abilities=frozenset({"embedding"}),
                    loaded=True,
                ),
                ModelInfo(
                    model="qwen2-vl-7b-instruct",
                    server="lmstudio",
                    window_source="nobody: only the 32,768 tokens that the model can have are known",
                    max_window_tokens=32768,
                    abilities=frozenset({"vision"}),
                    loaded=False,
                ),
                ModelInfo(
                    model="qwen/qwen3-4b",
                    server="lmstudio",
                    window_tokens=12918,
                    window_source="GET /api/v0/models loaded_context_length",
                    max_window_tokens=131072,
                    abilities=frozenset({"tools"}),
                    loaded=True,
                ),
            ),
        )
        assert pick(found) == found.models[2]


LMSTUDIO_V1 = {
    "models": [
        {"type": "embedding", "key": "nomic", "loaded_instances": [], "max_context_length": 2048},
        {
            "type": "llm",
            "key": "openai/gpt-oss-20b",
            "loaded_instances": [{"id": "openai/gpt-oss-20b", "config": {"context_length": 16384, "parallel": 4}}],
            "max_context_length": 131072,
            "capabilities": {"vision": False, "trained_for_tool_use": True},
        },
        {
            "type": "llm",
            "key": "qwen/qwen3-vl",
            "loaded_instances": [
                {"id": "qwen/qwen3-vl:2", "config": {"context_length": 8192}},
                {"id": "mine", "config": {"context_length": 4096}},
            ],
            "max_context_length": 262144,
            "capabilities": {"vision": True, "trained_for_tool_use": True},
        },
    ]
}


def test_lm_studio_since_0_4_names_each_loaded_instance_with_its_own_window() -> None:
    """Documented (lmstudio.ai/docs/developer/rest/list), not captured."""
    found, _ = found_at(
        {"GET /v1/models": {"data": [{"id": "x"}]}, "GET /api/v1/models": LMSTUDIO_V1, "GET /api/v0/models": LMSTUDIO}
    )
    assert found is not None
    assert found.server == "lmstudio"
    assert [(m.model, m.window_tokens, m.max_window_tokens, m.loaded) for m in found.models] == [
        ("nomic", None, 2048, False),
        ("openai/gpt-oss-20b", 16384, 131072, True),
        ("qwen/qwen3-vl:2", 8192, 262144, True),
        ("mine", 4096, 262144, True),
        ("qwen/qwen3-vl", 4096, 262144, True),  # either may answer
    ]
    assert found.models[1].window_source == "GET /api/v1/models loaded_instances.config.context_length"
    assert [sorted(m.abilities) for m in found.models[:3]] == [["embedding"], ["tools"], ["tools", "vision"]]
    assert pick(found) == found.models[1]


def test_a_wrong_path_is_mended_where_the_usual_one_answers() -> None:
    async def main() -> None:
        async with serving(LLAMACPP_ROUTES) as server:
            root = server.url.removesuffix("/v1")
            for wrong in (root, root + "/api", root + "/v1/foo/"):
                assert await look_at(wrong) == Found(server="llamacpp", base_url=server.url, models=(TINY,))

    asyncio.run(main())


# Hostile and broken answers

NUMBERS: list[Any] = [None, True, -1, 0, 1.5, 2**63, "4096", [], {}]


@pytest.mark.parametrize("value", [*NUMBERS, "<html>", [[]], {"data": 1}, {"data": {}}, {"models": 1}, {"error": "no"}])
def test_answers_of_the_wrong_type_are_no_server(value: Any) -> None:
    found, _ = found_at({}, default=value)
    assert found is None or found.models == ()


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    "routes",
    [LLAMACPP_ROUTES, OLLAMA, {"GET /v1/models": VLLM}, {"GET /api/v0/models": LMSTUDIO}, {"GET /api/v1/models": LMSTUDIO_V1}],
)
def test_fields_of_the_wrong_type_are_left_out(routes: Routes, value: Any) -> None:
    def spoiled(part: Any) -> Any:
        if isinstance(part, dict):
            kept = (
                "id",
                "data",
                "models",
                "owned_by",
                "object",
                "model",
                "state",
                "default_generation_settings",
                "key",
                "loaded_instances",
            )
            return {k: spoiled(v) if k in kept else value for k, v in part.items()}
        return [spoiled(each) for each in part] if isinstance(part, list) else part

    found, _ = found_at({k: v if callable(v) else spoiled(v) for k, v in routes.items()})
    assert found is not None
    assert [m for m in found.models if m.window_source != "POST /api/show parameters num_ctx" and m.window_tokens] == []


def test_names_that_cannot_be_shown_are_left_out() -> None:
    names = ["", "x" * 301, "a\x1b[2Jb", "line\nline", 7, None, {"a": 1}, "good"]
    found, _ = found_at({"GET /v1/models": {"data": [{"id": name} for name in names] + ["x", None]}})
    assert found is not None
    assert [m.model for m in found.models] == ["good"]


def test_long_lists_are_cut() -> None:
    found, _ = found_at({"GET /v1/models": {"data": [{"id": str(n)} for n in range(5000)]}})
    assert found is not None
    assert len(found.models) == 200


async def html(_: web.Request) -> web.Response:
    return web.Response(text="<html>It works</html>", content_type="text/html")


async def deep(_: web.Request) -> web.Response:
    return web.Response(text="[" * 100_000, content_type="application/json")


async def huge(_: web.Request) -> web.Response:
    return web.Response(body=b'{"data": ["' + b"x" * 2**23 + b'"]}', content_type="application/json")


async def redirected(_: web.Request) -> web.Response:
    raise web.HTTPFound("/elsewhere")


async def cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize("answer", [html, deep, huge, redirected, cut])
def test_what_is_no_answer_is_no_server(answer: Callable[[web.Request], Awaitable[web.Response]]) -> None:
    found, _ = found_at({}, default=answer, timeout_s=5.0)
    assert found is None


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


@pytest.mark.parametrize("answer", [endless, silent])
def test_an_answer_without_end_takes_no_longer_than_allowed(answer: Callable[..., Any]) -> None:
    began = time.monotonic()
    assert found_at({}, default=answer, timeout_s=0.2)[0] is None
    found, _ = found_at({**OLLAMA, "POST /api/show": answer}, timeout_s=0.2)
    assert time.monotonic() - began < 2.0
    assert found is not None  # what was learnt by then
    assert [m.window_tokens for m in found.models] == [None, 4096, None]


def test_a_key_that_cannot_be_sent_is_no_crash() -> None:
    assert found_at(LLAMACPP_ROUTES, api_key="a\r\nb")[0] is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["loaded", "library", "llamacpp"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(PATHS), ANYTHING), st.sampled_from([None, *({"GET /v1/models": m} for m in LISTS)]))
def test_no_answer_raises(answers: dict[str, Any], listed: Routes | None) -> None:
    async def get_json(url: str, **_: Any) -> Any:
        path = url.removeprefix("http://x").partition("?")[0]
        return {**answers, **(listed or {})}.get(f"POST {path}" if "show" in path else f"GET {path}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "get_json", get_json)
        found = asyncio.run(look_at("http://x/v1"))
    if found is not None:
        pick(found)
        assert msgspec.json.encode(found)


# Finding


def test_every_preset_is_asked_at_once_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving({}, silent) as one, serving({}, endless) as two, serving(LLAMACPP_ROUTES) as three:
            move(monkeypatch, "ollama", one.url)
            move(monkeypatch, "vllm", two.url)
            move(monkeypatch, "llamacpp", "http://127.0.0.1:1/v1", three.url)
            began = time.monotonic()
            found, tried = await discover(timeout_s=0.3)
            assert time.monotonic() - began < 1.0
            assert found == [Found(server="llamacpp", base_url=three.url, models=(TINY,))]
            assert tried == [
                f"Ollama at {one.url}",
                f"LM Studio at {PRESETS['lmstudio'].base_url}",
                f"vLLM at {two.url}",
                "llama.cpp at http://127.0.0.1:1/v1",
                f"llama.cpp at {three.url}",
            ]

    asyncio.run(main())


def test_a_bad_variable_is_told_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "ftp://x")
    found, tried = asyncio.run(discover())
    assert found == []
    assert tried[0] == "Ollama: OLLAMA_HOST does not hold the address of a server"
    assert len(tried) == sum(preset.local for preset in PRESETS.values())


def test_keys_go_to_their_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(OLLAMA) as one, serving({"GET /v1/models": VLLM}) as two:
            move(monkeypatch, "ollama", one.url)
            move(monkeypatch, "vllm", two.url)
            monkeypatch.setenv("VLLM_API_KEY", "secret")
            await discover()
            assert (one.keys, two.keys) == ({None}, {"Bearer secret"})

    asyncio.run(main())


def test_a_loaded_model_comes_first_then_one_with_tools() -> None:
    def best(*models: ModelInfo) -> str | None:
        picked = pick(Found(server="x", base_url="http://x/v1", models=models))
        return picked.model if picked else None

    def model(name: str, *abilities: str, loaded: bool | None = None) -> ModelInfo:
        return ModelInfo(model=name, server="x", abilities=frozenset(abilities), loaded=loaded)

    assert best() is None
    assert best(model("e", "embedding", loaded=True)) is None
    assert best(model("text-embedding-3"), model("bge-reranker")) is None
    assert best(model("a"), model("b")) == "a"
    assert best(model("a"), model("b", "tools")) == "b"
    assert best(model("a", "tools", loaded=False), model("b", loaded=True)) == "b"
    assert best(model("a", loaded=True), model("b", "tools", loaded=True)) == "b"
    assert best(model("a", loaded=False), model("b")) == "b"


def test_a_label_is_what_gets_the_model_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found(server="vllm", base_url=PRESETS["vllm"].base_url, models=())
    assert label(found, "a/b") == "vllm/a/b"
    assert label(structs.replace(found, server="openai-compatible"), "m") == f"{found.base_url}#m"
    assert label(structs.replace(found, base_url="http://x/v1"), "m") == "http://x/v1#m"


# Drivers that find


def test_local_is_the_best_of_what_runs_and_stays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving({**OLLAMA, "GET /api/ps": {"models": []}}) as one, serving(LLAMACPP_ROUTES) as two:
            move(monkeypatch, "ollama", one.url)
            move(monkeypatch, "llamacpp", two.url)
            driver = driver_for("local")
            assert isinstance(driver, DiscoveredDriver)
            async with driver.connect():
                asked = len(two.asked)
            async with driver.connect():
                assert len(two.asked) == asked  # found once
            resolved = await driver.resolve()
            assert (driver.model, resolved.model, resolved.base_url) == ("local", "llamacpp/tiny", two.url)
            assert await driver.info() == TINY

    asyncio.run(main())


def test_what_failed_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        driver = driver_for("llamacpp")
        with pytest.raises(ConnectFailed):
            await driver.info()
        async with serving(LLAMACPP_ROUTES) as server:
            move(monkeypatch, "llamacpp", server.url)
            assert await driver.info() == TINY

    asyncio.run(main())


def test_a_bare_address_serves_its_first_chat_model() -> None:
    async def main() -> None:
        async with serving({"GET /v1/models": LITELLM}) as server:
            driver = driver_for(server.url.removesuffix("/v1") + "/")
            assert isinstance(driver, DiscoveredDriver)
            assert (await driver.resolve()).model == f"{server.url}#tiny"

    asyncio.run(main())


def test_nothing_found_says_where_and_what_to_start() -> None:
    async def main() -> None:
        with pytest.raises(ConnectFailed) as caught:
            async with driver_for("local").connect():
                pass
        for preset in PRESETS.values():
            assert (f"{preset.title} at {preset.base_url}" in caught.value.message) == preset.local
        for command in (
            "`ollama serve`",
            "`lms server start --port",
            "`vllm serve NAME --port",
            "`llama-server -m FILE",
            "treadle demo",
        ):
            assert command in caught.value.hint

    asyncio.run(main())


def test_the_server_asked_for_is_missing_and_another_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(LLAMACPP_ROUTES) as server:
            move(monkeypatch, "llamacpp", server.url)
            for text in ("vllm", PRESETS["vllm"].base_url):
                with pytest.raises(ConnectFailed) as caught:
                    await call(driver_for(text))
                assert PRESETS["vllm"].base_url in caught.value.message
                assert f"Found llama.cpp at {server.url} serving tiny: use --model llamacpp/tiny." in caught.value.hint

    asyncio.run(main())


def test_a_server_with_nothing_to_talk_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving({**OLLAMA, "GET /v1/models": {"object": "list", "data": None}}) as server:
            move(monkeypatch, "ollama", server.url)
            with pytest.raises(ModelNotFound) as caught:
                await call(driver_for("ollama"))
            assert caught.value.message == f"no chat model is served: Ollama at {server.url}"
            assert "`ollama pull NAME`" in caught.value.hint

    asyncio.run(main())


def test_a_named_model_of_a_server_with_two_usual_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving({"GET /v1/models": VLLM}) as other, serving(LLAMACPP_ROUTES) as right:
            move(monkeypatch, "llamacpp", other.url, right.url)
            for name, url in (("anything", right.url), ("tiny", right.url)):
                driver = DiscoveredDriver(f"llamacpp/{name}", provider="llamacpp", name=name)
                resolved = await driver.resolve()
                assert (resolved.model, resolved.base_url) == (f"llamacpp/{name}", url)
            assert await driver_for("llamacpp/anything").info() == structs.replace(TINY, model="anything")
        move(monkeypatch, "llamacpp", "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
        with pytest.raises(ConnectFailed, match=r"http://127\.0\.0\.1:1/v1") as caught:
            await call(driver_for("llamacpp/tiny"))
        assert "`llama-server -m FILE --port 1`" in caught.value.hint

    asyncio.run(main())


# Explaining


def explained(url: str, error: ModelError, model: str = "m") -> str:
    return asyncio.run(explain_for(url, model=model)(error))


def test_a_refused_connection_names_the_command_that_starts_the_server() -> None:
    refused = ConnectFailed("refused")
    assert explained(PRESETS["ollama"].base_url, refused) == "Nothing listens there. To start Ollama: `ollama serve`."
    port = PRESETS["vllm"].base_url.split(":")[2].removesuffix("/v1")
    assert explained(PRESETS["vllm"].base_url, refused, "a/b").endswith(f"`vllm serve a/b --port {port}`.")
    assert explained("http://127.0.0.1:1/v1", refused) == ""  # the error's own hint says as much


def test_a_command_to_paste_holds_nothing_but_a_name() -> None:
    hint = explained(PRESETS["vllm"].base_url, ConnectFailed("refused"), "x; rm -rf ~`")
    assert "`vllm serve NAME --port" in hint
    assert "rm" not in hint


def test_a_model_that_is_not_there_is_answered_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        missing = {"error": {"message": "model 'qwen3:80b' not found", "type": "not_found_error"}}

        async def not_found(_: web.Request) -> web.Response:
            return web.json_response(missing, status=404)

        async with serving({**OLLAMA, "POST /v1/chat/completions": not_found, "POST /api/chat": not_found}) as server:
            move(monkeypatch, "ollama", server.url)
            for name in ("ollama/qwen3:80b", "chat+ollama/qwen3:80b"):
                with pytest.raises(ModelNotFound) as caught:
                    await call(driver_for(name))
                assert caught.value.hint == (
                    "Ollama answers at that address; its models: qwen3:8b, llama3.2:latest, nomic-embed-text:latest. "
                    "Did you mean qwen3:8b? To get this one: `ollama pull qwen3:80b`."
                )
            with pytest.raises(ModelNotFound) as caught:  # 404: an address of which only the compatible side can be reached
                await call(driver_for("ollama/qwen3:8b"))
            assert "put `chat+` in front of the name" in caught.value.hint

    asyncio.run(main())


def test_many_models_are_not_all_listed() -> None:
    async def main() -> None:
        async with serving({"GET /v1/models": {"data": [{"id": f"model-{n}"} for n in range(20)]}}) as server:
            hint = await explain_for(server.url, model="other")(ModelNotFound("404"))
            assert hint.startswith("A model server answers at that address; its models: model-0, model-1,")
            assert "model-5 and 14 more." in hint

    asyncio.run(main())


def test_a_wrong_path_is_answered_with_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(LLAMACPP_ROUTES) as server:
            url = server.url.removesuffix("/v1") + "/api"
            with pytest.raises(ModelNotFound) as caught:
                await call(driver_for(url + "#tiny"))
            assert caught.value.hint == f"llama.cpp answers at {server.url}: use that address."
            # A page instead of an answer, and a model server elsewhere.
            move(monkeypatch, "llamacpp", server.url)
            async with serving({}, html) as page:
                hint = await explain_for(page.url)(BadStream("html"))
                assert hint.startswith("What answers there lists no models: is it a model server? Found llama.cpp")

    asyncio.run(main())


def test_nothing_is_explained_that_is_as_it_should_be() -> None:
    async def main() -> None:
        async with serving(LLAMACPP_ROUTES) as server:
            assert await explain_for(server.url, model="tiny")(ModelNotFound("404")) == ""
            assert await explain_for(server.url, model="x")(BadStream("html")) == ""

    asyncio.run(main())


def test_an_explanation_takes_less_than_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving({}, silent) as one, serving({}, endless) as two:
            for name, server in (("ollama", one), ("lmstudio", two), ("vllm", one), ("llamacpp", two)):
                move(monkeypatch, name, server.url)
            began = time.monotonic()
            await explain_for(two.url)(ConnectFailed("refused"))
            assert time.monotonic() - began < 1.0

    asyncio.run(main())


# Asking about one model


def test_a_driver_knows_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(OLLAMA) as server:
            move(monkeypatch, "ollama", server.url)
            info = await driver_for("ollama/llama3.2").info()
            assert (info.model, info.window_tokens, info.loaded) == ("llama3.2", 4096, True)
            assert (info.max_window_tokens, info.window_on_request) == (131072, True)
            compatible = await driver_for("chat+ollama/llama3.2").info()
            assert compatible == structs.replace(info, window_on_request=False), "it has no field for a window"
            unknown = await driver_for("ollama/other").info()
            assert unknown == ModelInfo(model="other", server="ollama", window_on_request=True)
            resolved = await driver_for("ollama").resolve()
            assert (resolved.model, resolved.codec.path) == ("ollama/llama3.2:latest", "/api/chat")
            assert (await driver_for(server.url).resolve()).codec.path == "/api/chat", "its name is the same"
        with pytest.raises(ConnectFailed) as caught:
            await http_driver(server.url, "m").info()
        assert caught.value.hint.endswith("`ollama serve`.")

    asyncio.run(main())
