"""The servers: how each is started with the tiny model."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.servers.slow.environments import LITELLM, VLLM, python_of
from tests.servers.slow.processes import free_port, running
from tests.servers.slow.unquantized import unquantize
from treadle import LlamaServer

__all__ = ["LiteLLM", "Served", "litellm", "vllm"]

_WINDOW = 2048  # what the model was trained for
_START_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model on one server.

    Attributes:
        name: In the names of tests.
        model: Its name there.
    """

    name: str
    port: int
    model: str
    api_key: str

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class LiteLLM(NamedTuple):
    """What one proxy serves.

    LiteLLM goes by the name of the provider: for `openai` it translates Anthropic's format to Responses, for `hosted_vllm` to
    Chat Completions. Chat Completions and Responses it passes on either way.

    Attributes:
        by_responses: The tiny model, as one of `openai`.
        by_chat: The tiny model, as one of `hosted_vllm`.
        paced: What a test itself serves at `paced_port` of 127.0.0.1, in Chat Completions.
    """

    by_responses: Served
    by_chat: Served
    paced: Served
    paced_port: int


@contextmanager
def litellm(cache: Path, backend: LlamaServer) -> Iterator[LiteLLM]:
    """LiteLLM's proxy in front of llama.cpp."""
    port, paced_port, key = free_port(), free_port(), f"sk-{secrets.token_hex(16)}"
    models = {
        "litellm": ("openai/tiny", backend.base_url),
        "litellm-by-chat": ("hosted_vllm/tiny", backend.base_url),
        "paced": ("hosted_vllm/paced", f"http://127.0.0.1:{paced_port}/v1"),
    }
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": kind, "api_base": address, "api_key": "none"}}
            for name, (kind, address) in models.items()
        ],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    (cache / "litellm.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    environment = {
        **_environment(LITELLM, cache),
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network for prices
        "LITELLM_TELEMETRY": "False",
    }
    command = [
        str(python_of(LITELLM, cache).with_name("litellm")),
        *("--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"),
    ]
    log = cache / "litellm.log"
    with running(command, env=environment, cwd=cache, log=log, port=port, health="/health/liveliness", start_s=_START_S):
        by_responses, by_chat, paced = (Served(name=name, port=port, model=name, api_key=key) for name in models)
        yield LiteLLM(by_responses, by_chat, paced, paced_port)


@contextmanager
def vllm(cache: Path, gguf: Path) -> Iterator[Served]:
    """vLLM on the CPU, with the weights of `gguf` as float32."""
    port, key = free_port(), secrets.token_hex(16)
    directory = cache / "tiny-float32"
    unquantize(gguf, directory)
    environment = {
        **_environment(VLLM, cache),
        "VLLM_API_KEY": key,
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # Not `vllm serve`: it asks for the version of a package `vllm`, and the CPU's package has another name.
    command = [
        *(str(python_of(VLLM, cache)), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(directory), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(_WINDOW), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ]

    log = cache / "vllm.log"
    with running(command, env=environment, cwd=cache, log=log, port=port, health="/health", start_s=_START_S):
        yield Served(name="vllm", port=port, model="tiny", api_key=key)


def _environment(requirement: str, cache: Path) -> dict[str, str]:
    """What every server gets: its own programs, and a home in the cache directory for what it wants to write."""
    home = cache / "home"
    home.mkdir(parents=True, exist_ok=True)
    binaries = python_of(requirement, cache).parent
    return {"HOME": str(home), "PATH": f"{binaries}{os.pathsep}{os.defpath}", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
