"""Settings of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from treadle_tiny import model_path

from treadle import LlamaServer

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A shell with a proxy, a key or another server's address must not change what the tests see.
for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OLLAMA_HOST", "TREADLE_MODEL"):
    os.environ.pop(name, None)
    os.environ.pop(name.lower(), None)


@pytest.fixture(scope="session")
def llamacpp() -> Iterator[LlamaServer]:
    """The real llama.cpp server with the tiny model: 2 slots of 2,048 tokens."""
    with LlamaServer(model_path(), n_ctx=2048, n_parallel=2, n_threads=1) as server:
        yield server
