"""Collected only by `python -m tests.servers.slow`, which makes the environments first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from treadle_tiny import model_path

from tests.servers.slow import served
from tests.servers.slow.environments import default_cache
from tests.servers.slow.served import LiteLLM, Served
from treadle import LlamaServer

_CHOSEN = os.environ.get("TREADLE_SLOW", "").split()
if not _CHOSEN:
    collect_ignore_glob = ["test_*.py"]
_SERVERS = [name for name in ("litellm", "litellm-by-chat", "vllm") if name.split("-")[0] in _CHOSEN]


@pytest.fixture(scope="session")
def litellm(llamacpp: LlamaServer) -> Iterator[LiteLLM]:
    _skip_unless_chosen("litellm")
    with served.litellm(default_cache(), llamacpp) as models:
        yield models


@pytest.fixture(scope="session")
def vllm() -> Iterator[Served]:
    _skip_unless_chosen("vllm")
    with served.vllm(default_cache(), Path(model_path())) as model:
        yield model


@pytest.fixture(scope="session", params=_SERVERS)
def server(request: pytest.FixtureRequest) -> Served:
    if request.param == "vllm":
        return request.getfixturevalue("vllm")
    proxy: LiteLLM = request.getfixturevalue("litellm")
    return proxy.by_chat if request.param == "litellm-by-chat" else proxy.by_responses


def _skip_unless_chosen(name: str) -> None:
    if name not in _CHOSEN:
        pytest.skip(f"{name} was not chosen")
