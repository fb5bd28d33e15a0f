"""Every test that leaves something running gives it a number of its own to sleep for, and looks for that number afterwards."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ToolError, UsageError
from treadle.tools.builtin import processes, processes_family
from treadle.tools.builtin.processes import ProcessResult, run_process

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for what is left in /proc")

SETTLING_S = 10.0
_numbers = itertools.count(random.randrange(10**7, 10**8))
TERM_IGNORED = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep({nap})"
DAEMON = """
import os, sys
if os.fork(): sys.exit()
os.setsid()
if os.fork(): sys.exit()
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3): os.dup2(null, fd)
os.execvp("sleep", ["sleep", "{nap}"])
"""


@pytest.fixture
def nap() -> Iterator[str]:
    """Seconds that nobody else sleeps for. Nothing that does is left when the test ends."""
    number = str(next(_numbers))
    yield number
    assert gone(number)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = census()
    yield
    deadline = time.monotonic() + SETTLING_S
    while (more := census() - before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not more


def census() -> set[str]:
    """Descriptors, children and threads of this process."""
    found = {f"thread {thread.name}" for thread in threading.enumerate()}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"descriptor {fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue  # the directory that is being listed
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(f"child {pid}" for pid in (task / "children").read_text().split())
        except FileNotFoundError:
            continue  # a thread that has just ended
    return found


def running(nap: str) -> list[int]:
    """Processes that run with this number in their command line."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and nap.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def gone(nap: str) -> bool:
    """Whether none of them runs any more; what was killed may need a moment on a busy machine."""
    deadline = time.monotonic() + SETTLING_S
    while running(nap) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not running(nap)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SETTLING_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Future[Any]) -> None:
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.fixture
def up_when_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's time is up as soon as it has printed something. So no test guesses how long it takes to get there."""

    async def wait(self: processes._Process, timeout_s: float) -> None:
        await until(lambda: self._output._total)
        self._timed_out = not self._has_exited()

    monkeypatch.setattr(processes._Process, "wait", wait)


def run(command: str | list[str], *, timeout_s: float = 30, **settings: Any) -> ProcessResult:
    return asyncio.run(run_process(command, timeout_s=timeout_s, **settings))


def refusal(command: str | list[str], **settings: Any) -> tuple[str, str]:
    with pytest.raises(ToolError) as raised:
        run(command, **settings)
    return raised.value.kind, raised.value.message


def python(code: str, nap: str = "") -> list[str]:
    return [sys.executable, "-c", code.format(nap=nap)]


# How it ends, and what it prints


@pytest.mark.parametrize(
    ("command", "exit_code", "signal_number"),
    [
        ("true", 0, None),
        (["true"], 0, None),
        ("exit 3", 3, None),
        (["sh", "-c", "exit 255"], 255, None),
        ("kill -9 $$", None, 9),
        ("kill -TERM $$", None, 15),
    ],
)
def test_the_exit_code_or_the_signal(command: str | list[str], exit_code: int | None, signal_number: int | None) -> None:
    assert run(command) == ProcessResult(exit_code=exit_code, signal=signal_number, output="")


def test_both_outputs_come_in_the_order_they_were_printed() -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done"
    expected = "".join(f"out {i}\nerr {i}\n" for i in range(1, 10))
    assert run(script).output == expected


def test_a_list_is_not_read_by_a_shell() -> None:
    assert run(["echo", "$HOME", "*", "; exit 1", "a\nb"]).output == "$HOME * ; exit 1 a\nb\n"


@pytest.mark.parametrize("script", ["-x", "+x", "--"])
def test_a_script_that_begins_with_a_dash_is_a_script(script: str) -> None:
    assert run(script).exit_code == 127


def test_characters_that_are_cut_by_a_read_come_whole_and_what_is_no_text_is_marked() -> None:
    pieces: list[str] = []
    code = r"""
        import os, select, sys
        for piece in (b"a\xe2", b"\x82", b"\xac\xff", b"\xf0\x9f", b"\x98\x80", b"\xe2\x82"):
            os.write(1, piece)
            sys.stdin.read(0)
            for _ in range(200):
                os.sched_yield()
    """
    result = run([sys.executable, "-c", textwrap.dedent(code)], on_output=pieces.append)
    assert result.output == "a€\ufffd😀\ufffd"
    assert "".join(pieces) == result.output


def test_what_it_prints_is_shown_while_it_runs(tmp_path: Path) -> None:
    """It goes on only after its first line was seen."""
    seen: list[str] = []

    def on_output(text: str) -> None:
        seen.append(text)
        (tmp_path / "go").touch()

    result = run("echo one; while ! [ -e go ]; do sleep 0.01; done; echo two", cwd=tmp_path, on_output=on_output)
    assert result.output == "one\ntwo\n"
    assert seen[0] == "one\n"


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 60))
def test_output_is_kept_whole_or_its_head_and_tail_with_the_rest_counted(chunks: list[bytes], max_bytes: int) -> None:
    output = processes._Output(max_bytes)
    for chunk in chunks:
        output.add(chunk)
    data = b"".join(chunks)
    text, left_out = asyncio.run(output.text())
    if len(data) <= max_bytes:
        assert (text, left_out) == (data.decode("utf-8", "replace"), 0)
        return
    said = f"\n[... {left_out:,} of {len(data):,} bytes left out ...]\n"
    head, tail = text.split(said)
    assert data.decode("utf-8", "replace").startswith(head)
    assert len(data) - max_bytes <= left_out <= len(data) - max_bytes + 7  # characters that were cut, at both ends
    assert len(head) + len(tail) <= max_bytes
    if data.isascii():
        assert left_out == len(data) - max_bytes
        assert (head + tail).encode() == data[: len(head)] + data[len(data) - len(tail) :]


def test_memory_is_bounded_whatever_is_printed() -> None:
    async def main() -> tuple[ProcessResult, int]:
        tracemalloc.start()
        try:
            command = "echo first; head -c 100000000 /dev/zero; echo last"
            result = await run_process(command, timeout_s=30, max_output_bytes=1_000_000)
            return result, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    result, peak = asyncio.run(main())
    assert result.exit_code == 0
    assert result.left_out_bytes == 100_000_011 - 1_000_000
    assert (result.output[:6], result.output[-6:]) == ("first\n", "\0last\n")
    assert len(result.output) < 1_000_100
    assert peak < 4_000_000


def test_a_program_that_prints_without_end_is_ended_when_its_time_is_up() -> None:
    result = run("yes", timeout_s=0.3, max_output_bytes=10_000)
    assert result.timed_out
    assert result.left_out_bytes > 0
    assert result.output.startswith("y\ny\n")


def test_what_it_has_printed_is_kept_when_its_time_is_up(nap: str, up_when_printed: None) -> None:
    result = run(f"printf 'no newline yet'; sleep {nap}")
    assert result == ProcessResult(exit_code=None, signal=15, output="no newline yet", timed_out=True)


def test_what_it_prints_when_it_is_told_to_end_is_kept(nap: str, up_when_printed: None) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("bye"))
        print("hello", flush=True)
        time.sleep({nap})
    """
    result = run(python(textwrap.dedent(code), nap))
    assert result == ProcessResult(exit_code=1, signal=None, output="hello\nbye\n", timed_out=True)


# What it is given


def test_it_reads_an_end_of_file_or_what_it_is_given() -> None:
    assert run("cat; echo end").output == "end\n"
    assert run(["cat"], stdin="two\nlines ä\n").output == "two\nlines ä\n"
    assert run(["true"], stdin="x" * 3_000_000).exit_code == 0
    assert len(run(["cat"], stdin="x" * 3_000_000).output) == 3_000_000


def test_it_runs_where_it_is_told_with_the_environment_it_is_given(tmp_path: Path) -> None:
    assert run("pwd", cwd=tmp_path).output == f"{tmp_path}\n"
    names = {line.partition("=")[0] for line in run(["/usr/bin/env"], env={"A": "1"}).output.splitlines()}
    assert names == {"A", "TREADLE_PROCESS"}


def test_a_program_that_runs_programs_is_marked_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_PROCESS", "outer")
    mark = run("echo $TREADLE_PROCESS", env={"PATH": os.environ["PATH"]}).output.split()
    assert len(mark) == 2
    assert mark[0] == "outer"


@pytest.mark.parametrize(
    ("command", "settings", "kind", "said"),
    [
        (["no-such-program"], {}, "not_found", "no directory of PATH has it"),
        (["./no-such-program"], {}, "not_found", "there is no such file"),
        (["true"], {"cwd": "/no/such/directory"}, "not_found", "/no/such/directory is no directory"),
        (["true"], {"cwd": "/dev/null"}, "not_found", "is no directory"),
        (["/etc/passwd"], {}, "permission", "not executable"),
        (["/"], {}, "permission", "not executable"),
        (["echo", "x" * 3_000_000], {}, "invalid_input", "longer than this system takes"),
        ("true " + "x" * 3_000_000, {}, "invalid_input", "longer than this system takes"),
        (["echo", "a\0b"], {}, "invalid_input", "NUL"),
        ("echo a\0b", {}, "invalid_input", "NUL"),
        (["echo", "\ud800"], {}, "invalid_input", "no program can be given"),
        (["true"], {"env": {"A=B": "1"}}, "invalid_input", "no program can be given"),
        ([], {}, "invalid_input", "empty"),
        ("", {}, "invalid_input", "empty"),
        (" \n", {}, "invalid_input", "empty"),
        (["", "x"], {}, "invalid_input", "empty"),
    ],
)
def test_what_cannot_be_started_is_told(command: str | list[str], settings: dict[str, Any], kind: str, said: str) -> None:
    found, message = refusal(command, **settings)
    assert found == kind
    assert said in message
    assert len(message) < 500


def test_a_script_without_an_interpreter_or_with_a_missing_one_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo secret-line\n")
    script.chmod(0o755)
    kind, said = refusal([str(script)])
    assert (kind, "Run it with its interpreter" in said, "secret-line" in said) == ("invalid_input", True, False)
    script.write_text("#!/no/such/interpreter\n")
    kind, said = refusal([str(script)])
    assert (kind, "interpreter" in said) == ("not_found", True)


@pytest.mark.parametrize(
    "settings", [{"timeout_s": 0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")}, {"max_output_bytes": 0}]
)
def test_a_bound_that_cannot_work_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run("true", **settings)


# What it leaves behind: nothing

LEAVERS = {
    "background": "sleep {nap} &",
    "background, output closed": "sleep {nap} >/dev/null 2>&1 &",
    "nohup": "nohup sleep {nap} &",
    "nohup, output closed": "nohup sleep {nap} >/dev/null 2>&1 &",
    "setsid": "setsid sleep {nap} &",
    "setsid, output closed": "setsid sleep {nap} >/dev/null 2>&1 &",
    "setsid twice": "setsid setsid sh -c 'setsid sleep {nap} & exit' >/dev/null 2>&1 &",
    "subshells": "(((sleep {nap} &) &) &)",
    "job control": "set -m; sleep {nap} & sleep {nap} &",
    "a daemon": f"{shlex.quote(sys.executable)} -c {shlex.quote(DAEMON)}",
    "ignores SIGTERM": f"{shlex.quote(sys.executable)} -c {shlex.quote(TERM_IGNORED)} &",
    "ignores SIGHUP and SIGTERM, in a session of its own": "setsid sh -c 'trap \"\" TERM HUP; while :; do sleep {nap}; done' &",
    "stopped": "sleep {nap} & kill -STOP $!",
    "prints without end": "sh -c 'yes {nap}' &",
    "many": "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep {nap} & done",
}


@pytest.mark.parametrize("script", LEAVERS.values(), ids=LEAVERS)
def test_nothing_is_left_when_a_program_has_exited(nap: str, script: str) -> None:
    result = run(script.replace("{nap}", nap), max_output_bytes=1_000)
    assert gone(nap)
    assert (result.exit_code, result.timed_out, result.not_ended) == (0, False, ())
    assert len(result.left_running) >= 1


@pytest.mark.parametrize("script", LEAVERS.values(), ids=LEAVERS)
def test_nothing_is_left_when_a_program_is_cancelled(nap: str, script: str) -> None:
    async def main() -> None:
        waits = f"{script.replace('{nap}', nap)}\nsleep {nap}1; : "
        task = asyncio.create_task(run_process(waits, timeout_s=60, max_output_bytes=1_000))
        await until(lambda: len(running(nap)) >= 3)  # the script, its last program and at least one that it left
        task.cancel()
        await cancelled(task)
        assert gone(nap)

    asyncio.run(main())


def test_what_left_with_a_clean_environment_is_found_by_its_parents(nap: str, tmp_path: Path) -> None:
    """They are ended first, and it ignores the signal, so that it has to be remembered."""
    code = f"trap '' TERM; touch ready; while :; do sleep {nap}; done"
    daemon = shlex.join(["env", "-i", "PATH=/usr/bin:/bin", "setsid", "sh", "-c", code])

    async def main() -> None:
        task = asyncio.create_task(run_process(f"sh -c {shlex.quote(daemon + ' & wait')} & wait", cwd=tmp_path, timeout_s=60))
        await until((tmp_path / "ready").exists)
        task.cancel()
        await cancelled(task)
        assert gone(nap)

    asyncio.run(main())


def test_the_names_of_what_was_left_are_told_and_bounded(nap: str) -> None:
    assert run(f"sleep {nap} &").left_running == (f"sleep {nap}",)
    many = run(f"for i in $(seq 25); do sleep {nap} & done").left_running
    assert len(many) == 21
    assert many[-1] == "and 5 more"
    long = run([*python("import os, time; os.fork() or time.sleep(1000)"), nap, "x" * 5_000]).left_running
    assert len(long) == 1
    assert len(long[0]) < 110


@pytest.mark.parametrize("depth", [1, 3])
def test_a_tree_of_fifty_ends_when_its_time_is_up(nap: str, depth: int, up_when_printed: None) -> None:
    script = f"for i in $(seq 50); do sleep {nap} & done; echo up; wait"
    for _ in range(depth):
        script = f"setsid sh -c {shlex.quote(script)} & wait"
    result = run(script)
    assert result.timed_out
    assert gone(nap)


def test_a_program_that_starts_another_and_ends_again_and_again_is_ended_and_told(nap: str) -> None:
    """Whoever is looked for has gone by then, and its child is in a session of its own."""
    code = """
        import os, time
        end = time.monotonic() + 8
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)
            os.setsid()
    """
    result = run([*python(textwrap.dedent(code)), nap])
    assert gone(nap)
    assert result.left_running
    assert result.not_ended == ()


def test_a_program_whose_first_thread_has_ended_is_ended(nap: str, up_when_printed: None) -> None:
    """The system shows it as ended, and its other threads run."""
    code = """
        import ctypes, threading, time
        def other():
            main.join(0.2)
            print("up", flush=True)
            time.sleep({nap})
        main = threading.main_thread()
        threading.Thread(target=other, daemon=True).start()
        ctypes.CDLL(None).pthread_exit(None)
    """
    result = run([*python(textwrap.dedent(code), nap)])
    assert result == ProcessResult(exit_code=None, signal=15, output="up\n", timed_out=True)


def test_one_whose_environment_the_system_hides_is_told(nap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ssh-agent`, say. It may be somebody else's, so it is not ended."""
    real = processes_family.contents

    def hidden(path: str) -> bytes | None:
        is_it = path.endswith("/environ") and nap.encode() in (real(path.replace("environ", "cmdline")) or b"")
        return None if is_it else real(path)

    monkeypatch.setattr(processes_family, "contents", hidden)
    result = run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(DAEMON)}; while ! pgrep -fx 'sleep {nap}'; do :; done".replace(
            "{nap}", nap
        )
    )
    left = running(nap)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (len(left), result.left_running, result.not_ended) == (1, (), (f"sleep {nap}",))


def test_programs_that_keep_starting_others_are_ended(nap: str) -> None:
    """Each ends after it has started the next one, in another session, and they are ended all the same."""
    code = """
        import os, sys, time
        for i in range(400):
            if os.fork():
                os._exit(0)
            os.setsid()
            time.sleep(0.002)
        time.sleep({nap})
    """
    run([*python(textwrap.dedent(code).replace("{nap}", nap))])
    assert gone(nap)


def test_what_ignores_the_signal_is_killed(nap: str, up_when_printed: None) -> None:
    result = run(f"trap '' TERM; echo ready; sleep {nap}")
    assert result == ProcessResult(exit_code=None, signal=9, output="ready\n", timed_out=True)


def test_a_program_that_stops_itself_is_ended(nap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(self: processes._Process, timeout_s: float) -> None:
        await until(lambda: (seen := processes_family.look(self._pid)) and seen.state == "T")
        self._timed_out = True

    monkeypatch.setattr(processes._Process, "wait", wait)
    assert run(f"kill -STOP $$; sleep {nap}") == ProcessResult(exit_code=None, signal=9, output="", timed_out=True)


def test_a_program_that_closes_its_output_goes_on(tmp_path: Path) -> None:
    result = run("exec >&- 2>&-; sleep 0.3; echo done > file", cwd=tmp_path)
    assert result.exit_code == 0
    assert (tmp_path / "file").read_text() == "done\n"


def test_what_cannot_be_ended_is_told_and_holds_up_nothing(
    nap: str, monkeypatch: pytest.MonkeyPatch, up_when_printed: None
) -> None:
    """As with another user's processes."""

    async def main() -> ProcessResult:
        return await run_process(f"echo up; exec sleep {nap}", timeout_s=60)

    with monkeypatch.context() as patch:
        patch.setattr(processes, "send", lambda pid, number: False)
        result = asyncio.run(main())
    left = running(nap)
    assert len(left) == 1
    os.kill(left[0], signal.SIGKILL)
    assert result == ProcessResult(exit_code=None, signal=None, output="up\n", timed_out=True, not_ended=(f"sleep {nap}",))


class Machine:
    """A `/proc` that changes from one look at the list to the next.

    Attributes:
        lists: What each look shows; the last one stays.
        processes: State, parent, group, session and environment by number. Who is listed and not here has gone meanwhile.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lists: list[set[int]] = []
        self.processes: dict[int, tuple[str, int, int, int, bytes | None]] = {}
        self.users: dict[int, int] = {}  # real user numbers; root if not here
        self.looked_at: list[int] = []
        monkeypatch.setattr(processes_family.os, "getuid", lambda: 1000)
        monkeypatch.setattr(processes_family, "listing", self.listing)
        monkeypatch.setattr(processes_family, "look", self.look)
        monkeypatch.setattr(processes_family, "contents", self.contents)

    def listing(self) -> set[tuple[str, int]]:
        listed = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return {(str(pid), 1000 + pid) for pid in listed}

    def look(self, pid: int) -> processes_family.Seen | None:
        self.looked_at.append(pid)
        process = self.processes.get(pid)
        return process and processes_family.Seen(*process[:4], started=pid)

    def contents(self, path: str) -> bytes | None:
        _, _, pid, name = path.split("/")
        if int(pid) not in self.processes:
            return None
        if name == "status":
            return b"Name:\tx\nUid:\t%d\t0\t0\t0\n" % self.users.get(int(pid), 0)
        assert name == "environ"
        return self.processes[int(pid)][4]


def find(family: processes_family.Family, *, patience_s: float = 60.0) -> dict[int, int]:
    """All of a search."""
    search = family.search(patience_s=patience_s, limit_s=patience_s)
    while True:
        try:
            next(search)
        except StopIteration as stop:
            return stop.value


FAR = b"PATH=/bin\0"
OURS = b"A=1\0TREADLE_PROCESS=outer MARK\0B=2\0"


def test_what_belongs_to_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    family = processes_family.Family(10, "MARK", {("1", 1001), ("2", 1002)})
    machine.processes = {
        2: ("S", 10, 10, 10, OURS),  # ran before
        10: ("Z", 2, 10, 10, None),  # the program, which has exited
        11: ("S", 1, 10, 10, FAR),  # its group
        12: ("S", 1, 12, 10, FAR),  # its session
        13: ("S", 1, 13, 13, OURS),  # its mark
        14: ("S", 13, 14, 14, FAR),  # a child of one of those
        15: ("S", 14, 15, 15, None),  # and a child of that, another user's
        16: ("Z", 1, 10, 10, OURS),  # has ended
        17: ("S", 2, 17, 17, FAR),  # not ours
        18: ("S", 10, 18, 18, FAR),  # nor is what says so: the program has exited
        19: ("S", 2, 19, 19, None),  # another user's
        20: ("I", 2, 0, 0, b""),  # a thread of the system
    }
    machine.lists = [{*machine.processes, 21}]
    assert find(family) == {11: 10, 12: 12, 13: 13, 14: 14, 15: 15}
    assert not family.is_doubtful
    assert 2 not in machine.looked_at

    # They are remembered when parents, mark and group are gone; strangers are not looked at again.
    machine.looked_at.clear()
    for pid in (11, 14, 15):
        machine.processes[pid] = ("S", 1, 30, 30, FAR)
    assert find(family) == {11: 30, 12: 12, 13: 13, 14: 30, 15: 30}
    assert not {17, 18, 19, 20} & set(machine.looked_at)


def test_what_may_belong_to_a_program_but_hides_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    family = processes_family.Family(10, "MARK", {("1", 1001)})
    machine.processes = {
        os.getpid(): ("S", 5, 5, 5, FAR),
        5: ("S", 4, 5, 5, FAR),
        4: ("S", 1, 4, 4, FAR),
        11: ("S", 1, 11, 11, None),
        12: ("S", 4, 12, 12, None),  # its orphans come to one above this process
        13: ("S", 1, 13, 13, None),  # another user's
        14: ("S", 3, 14, 14, None),  # somebody's child
        15: ("S", 1, 15, os.getsid(0), None),
        16: ("S", 1, 16, 16, FAR),
    }
    machine.users = dict.fromkeys((11, 12, 14, 15, 16), 1000)
    machine.lists = [{*machine.processes, 1}]
    assert find(family) == {}
    assert sorted(family.veiled()) == [11, 12]
    machine.processes[11] = ("Z", 1, 11, 11, None)
    del machine.processes[12]
    assert family.veiled() == []


def test_a_signal_is_sent_before_the_list_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lives until the list is read once more, as one that starts the next and ends does."""
    machine = Machine(monkeypatch)
    told: list[tuple[int, int]] = []
    family = processes_family.Family(10, "MARK", {("1", 1001)})

    def listing() -> set[tuple[str, int]]:
        pid = 11 if not machine.processes else max(machine.processes) + 1
        machine.processes = {} if (pid - 1, pid - 1) in told else {pid: ("S", 1, pid, pid, OURS)}
        if pid < 100:
            machine.processes = {}
            return {("1", 1001), (str(next(gone_before)), 7)}
        return {("1", 1001), *((str(pid), 1000 + pid) for pid in machine.processes)}

    gone_before = itertools.count(11)
    monkeypatch.setattr(processes_family, "listing", listing)
    assert list(family.search(lambda pid, group: told.append((pid, group)), patience_s=0.02)) != []
    assert family.is_restless
    assert told == []
    machine.processes = {150: ("S", 1, 150, 150, OURS)}
    for _ in family.search(lambda pid, group: told.append((pid, group)), patience_s=60.0, limit_s=60.0):
        pass
    assert told == [(151, 151)]
    assert not family.is_restless


def test_a_search_among_many_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    family = processes_family.Family(10, "MARK", {("1", 1001)})
    machine.processes = dict.fromkeys(range(1000, 4000), ("S", 1, 10, 10, OURS))
    machine.lists = [{1, *machine.processes}]
    looks = [0]
    for _ in family.search(patience_s=60.0, limit_s=60.0):
        looks.append(len(machine.looked_at))
    looks.append(len(machine.looked_at))
    assert looks[-1] == 3_000
    assert max(later - earlier for earlier, later in itertools.pairwise(looks)) <= 64


def test_of_many_only_those_that_are_named_are_asked_for_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(processes_family, "contents", lambda path: asked.append(path))
    assert processes_family.names(range(1, 3_001))[-2:] == ("process 20", "and 2980 more")
    assert len(asked) == 20


def test_a_child_of_one_that_had_ended_when_it_was_looked_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    family = processes_family.Family(10, "MARK", {("1", 1001)})
    machine.processes = {13: ("S", 1, 13, 13, OURS)}
    machine.lists = [{1, 11}, {1, 12}, {1, 13}]
    assert find(family) == {13: 13}


def test_a_number_that_is_used_again_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    family = processes_family.Family(10, "MARK", {("1", 1001), ("11", 5)})
    machine.processes = {11: ("S", 1, 11, 11, OURS)}
    machine.lists = [{1, 11}]
    assert find(family) == {11: 11}


def test_one_without_an_environment_is_looked_at_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    family = processes_family.Family(10, "MARK", {("1", 1001)})
    machine.processes = {11: ("S", 1, 11, 11, b""), 12: ("S", 1, 12, 12, b"")}
    machine.lists = [{1, 11, 12}]
    assert (find(family), family.is_doubtful) == ({}, True)
    machine.processes[11] = ("S", 1, 11, 11, OURS)
    assert (find(family), family.is_doubtful) == ({11: 11}, True)
    looks = 2
    while family.is_doubtful:
        assert find(family) == {11: 11}
        looks += 1
    assert looks == 11
    machine.looked_at.clear()
    assert find(family) == {11: 11}
    assert machine.looked_at == [11]


# Cancelling


def test_cancelled_before_it_begins_nothing_starts(nap: str) -> None:
    async def main() -> None:
        task = asyncio.create_task(run_process(["sleep", nap], timeout_s=60))
        task.cancel()
        await cancelled(task)

    asyncio.run(main())


@pytest.mark.parametrize("steps", range(1, 8))
def test_cancelled_while_it_starts(nap: str, steps: int) -> None:
    async def main() -> None:
        task = asyncio.create_task(run_process(f"sleep {nap} & sleep {nap}", timeout_s=60))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await cancelled(task)
        assert gone(nap)

    asyncio.run(main())


@pytest.mark.parametrize("delay_ms", range(0, 30, 3))
def test_cancelled_some_time_after_it_started(nap: str, delay_ms: int) -> None:
    async def main() -> None:
        task = asyncio.create_task(run_process(f"setsid sleep {nap} & (sleep {nap} &) ; sleep {nap}", timeout_s=60))
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        await cancelled(task)
        assert gone(nap)

    asyncio.run(main())


@pytest.mark.parametrize("after_steps", [0, 1, 2, 5])
def test_cancelled_twice(nap: str, after_steps: int) -> None:
    """The second one takes the grace away, and nothing is left either."""

    async def main() -> None:
        ready = asyncio.Event()
        program = python(TERM_IGNORED, nap)
        task = asyncio.create_task(run_process(program, timeout_s=60, on_output=lambda text: ready.set()))
        await ready.wait()
        task.cancel()
        for _ in range(after_steps):
            await asyncio.sleep(0)
        task.cancel()
        await cancelled(task)
        assert gone(nap)

    asyncio.run(main())


def test_cancelled_while_it_is_being_killed(nap: str, up_when_printed: None) -> None:
    """It was told to end and says so, and is cancelled in its grace."""

    async def main() -> None:
        told = asyncio.Event()
        script = f"trap 'echo told' TERM; echo up; while :; do sleep 0.01; done; : {nap}"
        task = asyncio.create_task(run_process(script, timeout_s=60, on_output=lambda text: "told" in text and told.set()))
        await told.wait()
        task.cancel()
        await cancelled(task)
        assert gone(nap)

    asyncio.run(main())


def test_cancelled_while_what_it_left_is_awaited(nap: str) -> None:
    async def main() -> None:
        exited = asyncio.Event()
        task = asyncio.create_task(run_process(f"sleep {nap} & echo x", timeout_s=60, on_output=lambda text: exited.set()))
        await exited.wait()
        for _ in range(3):
            await asyncio.sleep(0.003)
        task.cancel()
        await cancelled(task)
        assert gone(nap)

    asyncio.run(main())


def test_its_group_is_told_to_end_in_the_step_after_the_cancellation(nap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        task = asyncio.create_task(run_process(["sleep", nap], timeout_s=60))
        await until(lambda: running(nap))
        task.cancel()
        await asyncio.sleep(0)
        assert sent == [signal.SIGTERM]
        await cancelled(task)

    sent: list[int] = []
    real = processes.send

    def send(pid: int, number: int) -> bool:
        sent.append(number)
        return real(pid, number)

    monkeypatch.setattr(processes, "send", send)
    asyncio.run(main())


def test_thirty_that_run_together_are_left(nap: str) -> None:
    async def main() -> None:
        script = f"trap '' TERM; sleep {nap} & setsid sleep {nap} & sleep {nap}"
        tasks = [asyncio.create_task(run_process(script, timeout_s=60)) for _ in range(30)]
        await until(lambda: len(running(nap)) >= 120)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert gone(nap)

    asyncio.run(main())


def test_a_coroutine_that_is_closed_leaves_nothing(nap: str) -> None:
    async def main() -> None:
        call = run_process(f"setsid sleep {nap} & sleep {nap}", timeout_s=60)
        call.send(None)
        await until(lambda: len(running(nap)) >= 3)
        call.close()
        assert gone(nap)

    asyncio.run(main())


def test_a_timeout_from_outside(nap: str) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await run_process(["sleep", nap], timeout_s=60)
        assert gone(nap)

    asyncio.run(main())


def test_what_on_output_raises_ends_the_program_and_the_call(nap: str) -> None:
    def fail(text: str) -> None:
        raise LookupError(text)

    with pytest.raises(LookupError, match="hello"):
        run(f"echo hello; sleep {nap}", on_output=fail)
    assert gone(nap)


# Loops, threads, systems


def in_thread(call: Callable[[], Awaitable[Any]]) -> list[Any]:
    results: list[Any] = []

    async def main() -> Any:
        return await call()

    thread = threading.Thread(target=lambda: results.append(asyncio.run(main())))
    thread.start()
    thread.join(30)
    return results


def test_the_event_loop_may_run_in_any_thread(nap: str) -> None:
    assert in_thread(lambda: run_process("sleep " + nap, timeout_s=0.2)) == [
        ProcessResult(exit_code=None, signal=15, output="", timed_out=True)
    ]
    assert in_thread(lambda: run_process("exit 4", timeout_s=30)) == [ProcessResult(exit_code=4, signal=None, output="")]


def test_several_event_loops_at_the_same_time(nap: str) -> None:
    codes: list[int | None] = []

    async def main(number: int) -> None:
        for _ in range(2):
            results = [run_process(f"sleep {nap} & exit {number}", timeout_s=30), run_process(f"exit {number}", timeout_s=30)]
            codes.extend(result.exit_code for result in await asyncio.gather(*results))

    threads = [threading.Thread(target=lambda number=number: asyncio.run(main(number))) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(code or 0 for code in codes) == [number for number in range(4) for _ in range(4)]


def test_where_exits_cannot_be_watched_they_are_asked_for(nap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pidfd(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    assert run("echo hi; exit 3") == ProcessResult(exit_code=3, signal=None, output="hi\n")
    assert run(f"setsid sleep {nap} & kill -9 $$").signal == 9
    assert run(f"trap '' TERM; sleep {nap}", timeout_s=0.7).signal == 9
    assert gone(nap)


def test_where_there_is_no_proc_the_group_is_ended(nap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "listing", set)
    assert run("echo hi; exit 3") == ProcessResult(exit_code=3, signal=None, output="hi\n")
    assert run(f"sleep {nap} & exit 3").left_running == ("processes in the background",)
    assert gone(nap)
    assert run(f"trap '' TERM; sleep {nap} & sleep {nap}", timeout_s=0.2).timed_out
    assert gone(nap)

    async def main() -> None:
        task = asyncio.create_task(run_process(f"sleep {nap} & sleep {nap}", timeout_s=60))
        await until(lambda: len(running(nap)) >= 3)
        task.cancel()
        await cancelled(task)

    asyncio.run(main())
    assert gone(nap)


@pytest.mark.parametrize("taken_by", ["the system", "somebody else"])
def test_an_exit_status_that_somebody_else_has_collected_is_unknown(taken_by: str) -> None:
    """In a program of its own, since how children are collected is the whole process's setting."""
    code = """
        import asyncio, os, signal, sys, threading
        from treadle.tools.builtin.processes import run_process
        if sys.argv[1] == "the system":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))
        for command in ("echo hi; exit 3", "exit 3", "sleep 1000 & exit 3"):
            result = asyncio.run(run_process(command, timeout_s=30))
            assert result.exit_code is None, result
            assert result.signal is None, result
        print("fine")
    """
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), taken_by],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("fine\n", "")


def test_a_program_that_uses_it_and_is_interrupted_leaves_nothing(nap: str) -> None:
    code = f"""
        import asyncio
        from treadle.tools.builtin.processes import run_process
        asyncio.run(run_process("setsid sleep {nap} & echo ready; sleep {nap}", timeout_s=60, on_output=lambda t: print(t, flush=True)))
    """
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert gone(nap)


def test_a_hundred_in_a_row_use_no_more_than_one() -> None:
    async def main() -> None:
        await run_process("true", timeout_s=30)
        before = census()
        for number in range(100):
            result = await run_process(f"echo {number}", timeout_s=30)
            assert result.output == f"{number}\n"
        assert not census() - before

    asyncio.run(main())
