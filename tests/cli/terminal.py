"""The command in a terminal of its own, a scripted model server beside it, and a hand that types."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from tests.harness import ByteServer, Exchange, reply, sse

TOOLS = '''
import asyncio, pathlib, time
from treadle import ToolContext, ToolResult, tool

def diff(path: str, text: str) -> str:
    old = pathlib.Path(path).read_text() if pathlib.Path(path).exists() else ""
    lines = [f"--- a/{path}", f"+++ b/{path}", "@@ -1,1 +1,1 @@"]
    return "\\n".join(lines + ["-" + l for l in old.splitlines()] + ["+" + l for l in text.splitlines()])

@tool(needs_approval=True, preview=diff)
def write(path: str, text: str) -> ToolResult:
    """Write a file."""
    shown = diff(path, text)
    pathlib.Path(path).write_text(text)
    return ToolResult(content=f"wrote {path}", display=shown)

@tool(needs_approval=True, preview=lambda command: "$ " + command)
def shell(command: str) -> str:
    """Run a command."""
    with open("ran.txt", "a") as file:
        file.write(command + "\\n")
    return "ran it"

@tool(needs_approval=True)
def pay(amount: int, to: str = "Bob") -> str:
    """Pay."""
    with open("paid.txt", "a") as file:
        file.write(f"{amount} to {to}\\n")
    return "paid"

@tool
async def slow(ctx: ToolContext) -> str:
    """Take an hour."""
    ctx.progress("half of it", 0.5)
    await asyncio.sleep(3600)

@tool
async def ticks(ctx: ToolContext) -> str:
    """Tell that it runs."""
    while True:
        ctx.progress("tick")
        await asyncio.sleep(0.05)

@tool
async def deaf(ctx: ToolContext) -> str:
    """Take an hour, come what may."""
    ctx.progress("cannot hear")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@tool
async def blocks() -> str:
    """Hold up the loop for an hour."""
    print("blocked", flush=True)
    time.sleep(3600)

@tool
async def stubborn() -> str:
    """Hold up the loop for ever."""
    print("blocked", flush=True)
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass
'''

_ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

# `start_new_session` makes the session; a terminal becomes its own only from within.
_TAKE_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Server:
    """A scripted server in a thread."""

    def __init__(self, url: str, server: ByteServer) -> None:
        self.url = url
        self._server = server

    @property
    def requests(self) -> list[Any]:
        return [post.json for post in self._server.posts]

    @property
    def tool_texts(self) -> list[str]:
        """What the model was told by tools, in its last request."""
        return [m["content"] for m in self.requests[-1]["messages"] if m["role"] == "tool"]

    def options(self, *more: str, tools: Sequence[str] = ("write",)) -> list[str]:
        named = [word for name in tools for word in ("--tool", f"mytools.py:{name}")]
        return ["--model", f"{self.url}#m", *named, *more]


@contextlib.contextmanager
def serving(
    *turns: Exchange | str | tuple[str, dict[str, Any]] | list[tuple[str, dict[str, Any]]], check_prefix: bool = True
) -> Generator[Server]:
    """Serve these turns: a text, a call or several, or an exchange."""
    exchanges = [_exchange(turn) for turn in turns]
    loop = asyncio.new_event_loop()
    begun: list[ByteServer] = []
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with ByteServer(exchanges, check_prefix=check_prefix) as server:
            begun.append(server)
            ready.set()
            await over.wait()

    failure: list[BaseException] = []

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            failure.append(error)
        finally:
            loop.close()
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10) and begun
    try:
        yield Server(begun[0].url, begun[0])
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
    if failure:
        raise failure[0]


def _exchange(turn: Any) -> Exchange:
    if isinstance(turn, str):
        return sse(*reply(turn))
    if isinstance(turn, tuple) and len(turn) == 2 and isinstance(turn[0], str):
        return sse(*reply(calls=[turn]))
    if isinstance(turn, list) and all(isinstance(call, tuple) and isinstance(call[0], str) for call in turn):
        return sse(*reply(calls=turn))
    return turn


class Screen:
    """A process with a terminal, 100 columns wide.

    Attributes:
        raw: All that it wrote to the terminal.
    """

    def __init__(self, arguments: Sequence[str], cwd: Path, *, stdout: Path | None = None, **environment: str) -> None:
        self.raw = ""
        self._at = 0
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        command = [sys.executable, "-c", _TAKE_TERMINAL, sys.executable, "-m", "treadle.cli", *arguments]
        env = {**os.environ, "TERM": "xterm-256color", **environment}
        for name in ("EDITOR", "VISUAL", "NO_COLOR", "COLUMNS", "LINES"):
            if name not in environment:
                env.pop(name, None)
        with contextlib.ExitStack() as files:
            out: Any = slave if stdout is None else files.enter_context(stdout.open("wb"))
            self._process = subprocess.Popen(
                command, cwd=cwd, stdin=slave, stdout=out, stderr=slave, env=env, start_new_session=True
            )
        os.close(slave)

    @property
    def text(self) -> str:
        """What was written, without colours and cursor movements, lines ended as usual."""
        return _ANSI.sub("", self.raw).replace("\r\n", "\n")

    def expect(self, text: str, *, within_s: float = 20.0) -> str:
        """Wait until this text has come, after what was expected before; what came up to its end."""
        until = time.monotonic() + within_s
        while (found := self.text.find(text, self._at)) < 0:
            if not self._read(until):
                raise AssertionError(f"{text!r} did not come; there was:\n{self.text[self._at :]}")
        start, self._at = self._at, found + len(text)
        return self.text[start : self._at]

    def type(self, text: str, *, enter: bool = True) -> None:
        os.write(self._master, (text + ("\n" if enter else "")).encode())

    def ctrl(self, letter: str) -> None:
        os.write(self._master, bytes([ord(letter.upper()) - 64]))

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def end(self, *, within_s: float = 20.0) -> int:
        """Its exit code, when it has ended."""
        until = time.monotonic() + within_s
        while self._read(until):
            pass
        code = self._process.wait(max(0.1, until - time.monotonic()))
        assert "Traceback" not in self.text
        return code

    def _read(self, until: float) -> bool:
        """Whether there was more, or may be."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # Linux's way to say that the other side is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._master)
