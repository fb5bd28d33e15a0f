"""Run a program, and leave nothing of it behind.

However a call of `run_process` ends (the program exits, its time is up, the task is cancelled, once or twice, an exception), the
program and all that it started are gone afterwards:

- It runs in a session of its own. What is left is told to end (SIGTERM), has a quarter of a second to do so, then is killed.
- On Linux also what has left that session (`setsid`, daemons): it is found in `/proc`, by its parents or by a variable that the
  program's environment is marked with (`processes_family.py`). What starts another and ends, again and again, is run after for up
  to two seconds. What can hide: a process that has left the session, whose parent has ended before either was seen, and that has
  cleared or overwritten its environment, or does not let it be read (`ssh-agent`; `PR_SET_DUMPABLE`), unless this is root. The
  latter is told in `not_ended`, not ended: it may be somebody else's.
- A server that runs already and is only asked to start something starts it as its own: `tmux`, `systemd-run --user`, `at`, `crontab`.
  Nothing shows who asked, so that is neither ended nor told.
- On macOS what has left the process group is not found. Windows has another way (`taskkill /T /F`), and nobody has tried it yet.
- What another user owns (`sudo`) or another machine or container runs (`ssh`, `docker run -d`) is out of reach. The first is told.
- If this program is killed itself, or ends on a SIGTERM that it does not handle, nobody is left to end what it was running.

Background processes that keep the output open do not hold up the call: once the program has exited they have a moment to print.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, TypeAlias

from msgspec import Struct

from treadle.errors import ToolError, UsageError
from treadle.tools.builtin.processes_family import Family, is_running, listing, names, send
from treadle.tools.threads import run_in_thread

__all__ = ["ProcessResult", "run_process"]

_GRACE_S = 0.25  # from SIGTERM to SIGKILL. With the next one it is less than a cancelled tool has before it is left behind
_DYING_S = 0.1  # from SIGKILL until the system has taken the process down
_PATIENCE_S = 0.05  # with processes that come and go too fast to be looked at, which are somebody else's as a rule
_CHASE_PATIENCE_S = 0.25
_CHASE_S = 2.0  # for a program that starts another and ends, again and again
_LAST_CHASE_S = 0.05
_LINGER_S = 0.2  # from the program's exit, for what it left running to print its last words and close the output
_POLL_S = 0.02
_DOUBT_S = 0.005
_CHUNK_BYTES = 65_536  # what a pipe holds
_MARKER = "TREADLE_PROCESS"

_Then: TypeAlias = Callable[[int, int], object]


class ProcessResult(Struct, frozen=True, kw_only=True):
    """How a program ended, and what it printed.

    Attributes:
        exit_code: None if a signal ended it, or if it is not known.
        signal: The number of the signal that ended it; None if it exited.
        output: Standard output and standard error in the order they came, as UTF-8 (what is not comes as U+FFFD), escape
            sequences and all. If it was too long: head and tail, and between them a line that says how much is missing.
        left_out_bytes: How much of the output is missing in the middle.
        timed_out: Its time was up, so it was ended, with everything it had started.
        left_running: Command lines of what still ran when the program had exited. It was ended.
        not_ended: Command lines of what could not be ended, because it is another user's or stuck in the system; and of what may
            still run of it, because it hides whose it is.
    """

    exit_code: int | None
    signal: int | None
    output: str
    left_out_bytes: int = 0
    timed_out: bool = False
    left_running: tuple[str, ...] = ()
    not_ended: tuple[str, ...] = ()


async def run_process(
    command: str | Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float,
    max_output_bytes: int = 10_000_000,
    on_output: Callable[[str], object] | None = None,
) -> ProcessResult:
    """Run a program to its end. See the module for what is left of it: nothing.

    A cancellation tells everything to end at once, and takes at most 0.4 s, or two more for a program that keeps starting others. A
    second one kills what it finds at once. The event loop may run in any thread. It is held up while the program starts and
    later, for some milliseconds at a time, however many processes there are. Only a second cancellation, or
    closing the coroutine, holds it up for all of its search: 0.1 s for three thousand processes.

    Args:
        command: A list is a program and its arguments. A text is a script for `sh -c`.
        cwd: Where it runs; None for the current directory.
        env: Its whole environment; None for this process's, secrets included. `TREADLE_PROCESS` is added.
        stdin: What it reads; None for nothing, so that it reads an end of file.
        timeout_s: Seconds until it is ended.
        max_output_bytes: How much of the output is kept: two thirds from its beginning, one from its end. A program that prints
            more is not held up by it, and ends on its own or when its time is up.
        on_output: Called in the event loop with each piece of output as it comes. What it raises ends the program and the call.

    Raises:
        ToolError: It could not be started: `not_found`, `permission`, or `invalid_input` for a command that the system does not
            take. The message tells a model which.
        UsageError: A bound is not a positive number.
    """
    if not 0 < timeout_s < math.inf or max_output_bytes <= 0:
        wrong = f"run_process(timeout_s={timeout_s!r}, max_output_bytes={max_output_bytes!r}) cannot work"
        raise UsageError(wrong, hint="Both are finite numbers above 0.")
    mark = uuid.uuid4().hex
    outer = os.environ.get(_MARKER)  # whoever runs us has to find our programs too
    marked = {**(os.environ if env is None else env), _MARKER: f"{outer} {mark}" if outer else mark}
    before = listing()
    popen, read_end = _start(command, cwd, marked, stdin)
    process = _Process(popen, read_end, Family(popen.pid, mark, before), _Output(max_output_bytes), on_output)
    try:
        process.watch()
        try:
            await process.wait(timeout_s)
        except asyncio.CancelledError:
            await process.end()
            raise
        await process.end()
        process.read_rest()
    finally:
        process.close()
    return await process.result()


def _start(
    command: str | Sequence[str], cwd: str | os.PathLike[str] | None, env: Mapping[str, str], stdin: str | None
) -> tuple[subprocess.Popen[bytes], int]:
    """The started program, and the end to read its output from. Nothing is awaited, so nothing can be cancelled halfway.

    `asyncio.create_subprocess_exec` starts programs the same way. But what it does around that ends the program alone, not its
    group, and in Python 3.11 waits for whoever keeps the output open.
    """
    in_shell = isinstance(command, str)
    is_windows = sys.platform == "win32"
    if not command or not (command if in_shell else command[0]).strip():
        raise ToolError("the command is empty. Name a program to run.", kind="invalid_input")
    if cwd is not None and not os.path.isdir(cwd):
        raise ToolError(f"{os.fspath(cwd)} is no directory, so nothing can run there.", kind="not_found")
    argv = list(command) if not in_shell else ["/bin/sh", "-c", "--", command]  # `--`: a script may begin with a dash
    read_end, write_end = os.pipe()
    try:
        with _input(stdin) as source:
            process = subprocess.Popen(  # noqa: S603 - to run what it is told is what this is for
                command if is_windows and in_shell else argv,
                shell=is_windows and in_shell,
                stdin=source,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                start_new_session=True,
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0,
            )
    except (OSError, ValueError) as error:
        os.close(read_end)
        raise _refused(error, argv[0]) from None
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return process, read_end


@contextmanager
def _input(text: str | None) -> Generator[int | IO[bytes]]:
    """What a program reads. A file and not a pipe: nobody has to feed it, and a program that does not read holds up nothing."""
    if text is None:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "replace"))
        file.seek(0)
        yield file


def _refused(error: OSError | ValueError, program: str) -> ToolError:
    """Why a program could not be started, in words for a model. Only the program is named: arguments may hold secrets."""
    program = program if len(program) <= 200 else f"{program[:200]}..."
    if isinstance(error, ValueError):  # a NUL character, half a surrogate pair, a variable's name with `=` in it
        said = "the command or its environment holds a character that no program can be given, such as NUL. Remove it."
        return ToolError(said, kind="invalid_input")
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            where = "there is no such file, or the interpreter its first line names is missing"
            said = f"{program} was not found: {where if '/' in program else 'no directory of PATH has it'}."
            return ToolError(f"{said} Check the name, or use what is installed.", kind="not_found")
        case errno.EACCES | errno.EPERM:
            said = f"{program} may not be run: it is not executable. Run it with its interpreter, or make it executable."
            return ToolError(said, kind="permission")
        case errno.ENOEXEC:
            said = f"{program} is no program for this machine, or a script without a first line that names its interpreter."
            return ToolError(f"{said} Run it with its interpreter.", kind="invalid_input")
        case errno.E2BIG:
            said = "the command is longer than this system takes. Put the data in a file, or run it in parts."
            return ToolError(said, kind="invalid_input")
        case _:
            return ToolError(f"the system did not start {program}: {error.strerror}. Try again later.", kind="internal")


class _Process:
    """A started program, its output, and everything it started."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        read_end: int,
        family: Family,
        output: _Output,
        on_output: Callable[[str], object] | None,
    ) -> None:
        self._popen = popen
        self._pid = popen.pid
        self._read_end = read_end
        self._family = family
        self._output = output
        self._on_output = on_output
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = self._loop.create_future()  # or on_output failed
        self._closed: asyncio.Future[None] = self._loop.create_future()  # the output has ended
        self._failure: Exception | None = None
        self._watched: list[int] = []
        self._reader: asyncio.Task[None] | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._pidfd: int | None = None
        self._is_over = False  # by itself, and not because it was ended
        self._is_ended = False
        self._has_fled = False  # to the end, others of it were found
        self._status_is_known = True
        self._timed_out = False
        self._left_running: tuple[str, ...] = ()
        self._not_ended: tuple[str, ...] = ()

    def watch(self) -> None:
        """Begin to read, and to wait for the exit.

        The exit is seen without collecting the exit status (that is what the file descriptor is for), so the program's number
        stays taken, and with it the group's, until everything has been ended. No signal can reach a stranger. Where that is not
        possible (no pidfd, no `/proc`) the status is asked for every 20 ms.
        """
        if sys.platform == "win32":
            self._reader = self._loop.create_task(self._read_in_threads())
        else:
            os.set_blocking(self._read_end, False)
            self._watch(self._read_end, self._read)
        if self._family.can_be_seen:
            with suppress(AttributeError, OSError):
                self._pidfd = os.pidfd_open(self._pid)
        if self._pidfd is not None:
            self._watch(self._pidfd, self._see_exit)
        else:
            self._ask()

    async def wait(self, timeout_s: float) -> None:
        """Until it has exited, and has had a moment to close its output; or until its time is up."""
        await asyncio.wait([self._exited], timeout=timeout_s)
        self._timed_out = not self._exited.done() and not self._has_exited()
        if not self._timed_out:
            await asyncio.wait([self._closed], timeout=_LINGER_S)
            self._is_over = True

    async def end(self) -> None:
        """Tell everything that is left to end, and kill what has not after the grace. Output is read meanwhile."""
        found = await self._searched(patience_s=_PATIENCE_S)
        while not found and self._family.is_doubtful:
            await asyncio.sleep(_DOUBT_S)
            found = await self._searched(patience_s=_PATIENCE_S)
        if self._is_over:
            self._left_running = names(found)
        left: list[int] = []
        if found:
            for _ in self._send(signal.SIGTERM, found):
                await asyncio.sleep(0)
            await self._wait_for(found, _GRACE_S, every_s=0.01)
        if found or self._family.is_restless:  # else there is nobody to start anything
            killed = await self._kill()
            if self._is_over and killed and not found:
                self._left_running = ("processes that kept starting others",)
            left = await self._wait_for(killed, _DYING_S, every_s=0.002)
            if self._family.is_restless and self._has_fled:
                self._not_ended = ("processes that keep starting others",)
        self._is_ended = True
        self._not_ended += names([*left, *self._family.veiled()])

    def read_rest(self) -> None:
        """What was printed and not read yet. Whoever could not be ended may still be printing, so no more than any pipe holds."""
        for _ in range(64):
            if self._closed.done() or self._reader is not None or not self._read():
                break

    def close(self) -> None:
        """Kill what is left, and give everything back to the system. Waits 20 ms at most, besides the search for what is left."""
        if not self._is_ended:
            self._kill_at_once()
        if not self._loop.is_closed():
            for fd in self._watched:
                self._loop.remove_reader(fd)
        if self._poll is not None:
            self._poll.cancel()
        if self._reader is not None:
            self._reader.cancel()
        for fd in (self._read_end, self._pidfd):
            if fd is not None:
                os.close(fd)
        for _ in range(20):  # what was killed just now may need a moment
            if self._collected():
                return
            time.sleep(0.001)
        threading.Thread(target=self._popen.wait, name=f"treadle-exit-{self._pid}", daemon=True).start()

    async def result(self) -> ProcessResult:
        if self._failure is not None:
            raise self._failure
        status = self._popen.returncode if self._status_is_known else None
        text, left_out = await self._output.text()
        return ProcessResult(
            exit_code=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            output=text,
            left_out_bytes=left_out,
            timed_out=self._timed_out,
            left_running=self._left_running,
            not_ended=self._not_ended,
        )

    # Output

    def _watch(self, fd: int, then: Callable[[], object]) -> None:
        self._loop.add_reader(fd, then)
        self._watched.append(fd)

    def _unwatch(self, fd: int) -> None:
        self._watched.remove(fd)
        self._loop.remove_reader(fd)

    def _read(self) -> bool:
        """One piece of the output; whether there may be more at once."""
        try:
            data = os.read(self._read_end, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._take(data)
        if not data:
            _wake(self._closed)
            if self._read_end in self._watched:
                self._unwatch(self._read_end)
        return bool(data)

    async def _read_in_threads(self) -> None:
        """For Windows, where an event loop cannot watch a pipe like this one."""
        while data := await run_in_thread(partial(os.read, self._read_end, _CHUNK_BYTES)):
            self._take(data)
        self._take(b"")
        _wake(self._closed)

    def _take(self, data: bytes) -> None:
        self._output.add(data)
        if self._on_output is None or self._failure is not None:
            return
        try:
            if text := self._decode(data, not data):
                self._on_output(text)
        except Exception as error:
            self._failure = error
            _wake(self._exited)
            _wake(self._closed)

    # The exit

    def _see_exit(self) -> None:
        if self._pidfd in self._watched:
            self._unwatch(self._pidfd)
        _wake(self._exited)

    def _ask(self) -> None:
        if self._collected():
            _wake(self._exited)
        else:
            self._poll = self._loop.call_later(_POLL_S, self._ask)

    def _has_exited(self) -> bool:
        if self._pidfd is None:
            return self._collected()
        try:
            return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _collected(self) -> bool:
        """Collect the exit status, so that no zombie stays; whether that is done."""
        if sys.platform == "win32" or self._popen.returncode is not None:
            return self._popen.poll() is not None
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:  # signals of children are ignored here, or somebody else has collected it
            self._popen.returncode, self._status_is_known = 0, False
            return True
        if pid:
            self._popen.returncode = os.waitstatus_to_exitcode(status)
        return pid != 0

    # What it started

    def _search(self, then: _Then | None = None, **bounds: float) -> Generator[None, None, dict[int, int]]:
        """What runs of it: process numbers and the group of each. Where there is no `/proc`, the group as one, negative."""
        if self._family.can_be_seen:
            return (yield from self._family.search(then, **bounds))
        if sys.platform == "win32":
            found = {} if self._has_exited() else {self._pid: self._pid}
        else:
            found = {-self._pid: self._pid} if is_running(-self._pid) else {}
        if then is not None:
            for pid, group in found.items():
                then(pid, group)
        return found

    async def _searched(self, then: _Then | None = None, **bounds: float) -> dict[int, int]:
        search = self._search(then, **bounds)
        while True:
            try:
                next(search)
            except StopIteration as stop:
                return stop.value
            await asyncio.sleep(0)

    def _send(self, number: int, found: Mapping[int, int]) -> Generator[None]:
        """Send a signal to the group at once, so that nobody forks away from it, then to who has left the group.

        It pauses now and then: to wake and end thousands takes the system a while.
        """
        if sys.platform == "win32":
            _end_tree(self._pid)
            return
        if self._pid in found.values():
            send(-self._pid, number)
        sent = 0
        for pid, group in found.items():
            if group != self._pid:
                sent += send(pid, number)
                if sent % 64 == 63:
                    yield

    async def _wait_for(self, pids: Collection[int], limit_s: float, *, every_s: float) -> list[int]:
        """Wait until they have ended; those that still run after `limit_s`."""
        left, until = list(pids), self._loop.time() + limit_s
        looks = 0
        while left and self._loop.time() < until:  # for one after the other: what comes behind costs no looks meanwhile
            if not is_running(left[-1]):
                left.pop()
                looks += 1
                if looks % 64 == 0:
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(every_s)
        still: list[int] = []
        for pid in left:
            looks += 1
            if looks % 64 == 0:
                await asyncio.sleep(0)
            if is_running(pid):
                still.append(pid)
        return still

    async def _kill(self) -> Collection[int]:
        """Kill all that is left. Who was sent the signal cannot start anything more, so it is done when nobody new is found."""
        killed: dict[int, int] = {}
        until = self._loop.time() + _CHASE_S
        while True:
            left_s = max(0.0, until - self._loop.time())
            found = await self._searched(self._killer(), patience_s=min(_CHASE_PATIENCE_S, left_s), limit_s=left_s)
            is_known = killed.keys() >= found.keys()
            killed |= found
            if (is_known and not self._family.is_restless and not self._family.is_doubtful) or self._loop.time() >= until:
                break
            if self._family.is_restless and is_known:
                break  # strangers come and go
            if self._family.is_doubtful:
                await asyncio.sleep(_DOUBT_S)
        self._has_fled = not is_known
        return killed

    def _kill_at_once(self) -> None:
        """The same, where nothing can be awaited. Holds up the event loop, so it does not run after anybody for long."""
        found = _exhausted(self._search(patience_s=0.0))
        for _ in self._send(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL, found):
            pass
        killed: set[int] = set()
        until = time.monotonic() + _LAST_CHASE_S
        while True:
            left_s = max(0.0, until - time.monotonic())
            found = _exhausted(self._search(self._killer(), patience_s=min(_DOUBT_S, left_s), limit_s=left_s))
            is_done = killed.issuperset(found) and not self._family.is_doubtful
            killed.update(found)
            if is_done or time.monotonic() >= until:
                break
            if self._family.is_doubtful:
                time.sleep(0.001)
        self._is_ended = True

    def _killer(self) -> _Then:
        """Kills one at once; for the first that is in the program's group, the whole group, so that nobody forks away from it."""
        is_group_told = False

        def kill(pid: int, group: int) -> None:
            nonlocal is_group_told
            if sys.platform == "win32":
                _end_tree(self._pid)
                return
            if group == self._pid and not is_group_told:
                is_group_told = True
                send(-self._pid, signal.SIGKILL)
            send(pid, signal.SIGKILL)

        return kill


def _exhausted(search: Generator[None, None, dict[int, int]]) -> dict[int, int]:
    while True:
        try:
            next(search)
        except StopIteration as stop:
            return stop.value


class _Output:
    """The beginning and the end of a stream of any length."""

    def __init__(self, max_bytes: int) -> None:
        self._tail_bytes = max_bytes // 3
        self._head_bytes = max_bytes - self._tail_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        self._total += len(data)
        room = self._head_bytes - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._tail_bytes + _CHUNK_BYTES:  # seldom, since it copies
            self._cut()

    def _cut(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._tail_bytes)]

    async def text(self) -> tuple[str, int]:
        """The text, and how many bytes are missing in it. Others run meanwhile: ten megabytes of what is no text take 0.4 s."""
        self._cut()
        decode = codecs.getincrementaldecoder("utf-8")("replace")
        if self._total == len(self._head) + len(self._tail):
            return await _decoded(decode, self._head) + await _decoded(decode, self._tail) + decode.decode(b"", True), 0
        # A character that is cut belongs to what is missing.
        head = await _decoded(decode, self._head)
        cut_off = len(decode.getstate()[0])
        while cut_off < 4 and self._tail and 0x80 <= self._tail[0] < 0xC0:
            del self._tail[0]
        missing = self._total - len(self._head) - len(self._tail) + cut_off
        decode.reset()
        tail = await _decoded(decode, self._tail) + decode.decode(b"", True)
        return f"{head}\n[... {missing:,} of {self._total:,} bytes left out ...]\n{tail}", missing


async def _decoded(decoder: codecs.IncrementalDecoder, data: bytearray) -> str:
    pieces: list[str] = []
    for start in range(0, len(data), _CHUNK_BYTES):
        if start:
            await asyncio.sleep(0)
        pieces.append(decoder.decode(bytes(data[start : start + _CHUNK_BYTES])))
    return "".join(pieces)


def _end_tree(pid: int) -> None:
    """The Windows way. Nobody has tried it yet."""
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, timeout=5, check=False)  # noqa: S603, S607


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
