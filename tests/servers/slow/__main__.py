"""Run the Anthropic, Chat Completions and Responses codecs on LiteLLM's proxy and on vLLM, both real.

    uv run python -m tests.servers.slow                     # both; the first time it installs them, 4 GB
    uv run python -m tests.servers.slow --only litellm      # 0.6 GB
    uv run python -m tests.servers.slow -- -k anthropic -x  # what follows -- goes to pytest

Everything is kept under ~/.cache/treadle-slow, or where `--cache` or TREADLE_SLOW_CACHE says. docs/slow-servers.md has what
this gave last.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.servers.slow.environments import LITELLM, VLLM, default_cache, prepare

REQUIREMENTS = {"litellm": LITELLM, "vllm": VLLM}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.servers.slow", description="Real servers that are too large for CI.")
    parser.add_argument("--only", choices=sorted(REQUIREMENTS), help="one server alone")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the environments are (default: %(default)s)")
    parser.add_argument("pytest_args", nargs="*", metavar="-- ...", help="arguments for pytest")
    chosen = parser.parse_args()
    cache: Path = chosen.cache.expanduser().resolve()
    # Before pytest begins, because the suite's conftest takes away the proxy that an installation may need.
    names = [chosen.only] if chosen.only else list(REQUIREMENTS)
    for name in names:
        prepare(REQUIREMENTS[name], cache)
    os.environ["TREADLE_SLOW"] = " ".join(names)
    os.environ["TREADLE_SLOW_CACHE"] = str(cache)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are ended too
    here = str(Path(__file__).parent)
    return pytest.main([here, "-v", "-o", "timeout=400", "-p", "no:cacheprovider", *chosen.pytest_args])


if __name__ == "__main__":
    sys.exit(main())
