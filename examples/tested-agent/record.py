"""Record the cassettes again, with the tiny model on a real llama.cpp server that lives as long as this program:

uv run python examples/tested-agent/record.py
"""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from treadle_tiny import model_path

from treadle import LlamaServer

with LlamaServer(model_path(), n_ctx=2048, n_threads=1) as server:
    address = urlsplit(server.base_url)
    environment = {**os.environ, "LLAMA_ARG_HOST": str(address.hostname), "LLAMA_ARG_PORT": str(address.port)}
    command = [sys.executable, "-m", "pytest", "-q", "--treadle-record=all"]
    sys.exit(subprocess.run(command, cwd=Path(__file__).parent, env=environment).returncode)  # noqa: S603
