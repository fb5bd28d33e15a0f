"""A server in a process group of its own, for as long as a block lasts."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["free_port", "get", "running"]

_STOP_S = 20.0


@contextmanager
def running(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, port: int, health: str, start_s: float
) -> Iterator[None]:
    """Start `command`; the block begins when `health` answers 200, and at its end the whole group is gone.

    The process gets `env` and nothing else of ours: no keys, no proxies. What it prints is in `log`.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(process, port, health, log, time.monotonic() + start_s)
        yield
    finally:
        _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, health: str, log: Path, deadline: float) -> None:
    while True:
        with suppress(OSError, http.client.HTTPException):
            if get(port, health)[0] == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            state = "is not ready" if process.returncode is None else f"ended with {process.returncode}"
            raise RuntimeError(f"the server {state}; the end of {log}:\n" + log.read_text("utf-8", "replace")[-3000:])
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the group: its leader first, who ends the others if it can; whoever is left is killed."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def get(port: int, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of a GET on 127.0.0.1; goes around every proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
