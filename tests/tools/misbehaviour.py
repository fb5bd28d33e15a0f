"""Run agents whose tools behave badly and write what came of each to docs/misbehaving-tools.md.

    python -m tests.tools.misbehaviour           # all rows: most on a virtual clock, those marked † in processes of their own
    python -m tests.tools.misbehaviour --real    # tools that hold the event loop, on real time; writes nothing

Both exit with 1 if a run did not end as its row says, and tell which.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import io
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias
from unittest import mock

from tests.faults.row import SameWaits, of_events
from tests.harness import ByteServer, Hang, VirtualClockLoop, Wait, reply, run_virtual, settled, sse
from treadle import (
    Agent,
    ContextPlanned,
    Ended,
    Event,
    Failed,
    FunctionTool,
    HttpDriver,
    Limits,
    RunResult,
    ToolContext,
    ToolError,
    ToolFinished,
    ToolMessage,
    ToolProgress,
    ToolStarted,
    tool,
)
from treadle.cli.render import Plain
from treadle.tools import execution
from treadle.tools.builtin.processes import run_process
from treadle.tools.builtin.shell import shell_tool
from treadle.tools.execution import left_behind
from treadle.tools.threads import MAX_ABANDONED, abandoned, run_in_thread
from treadle.values.history import check_history
from treadle.values.toolcalls import ToolResult
from treadle.wire.chat import ChatCodec

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "misbehaving-tools.md"
ASYNC, PLAIN, BOTH = "`async def`", "`def`", "both"
PATIENCE_S = 20.0  # real; for what must happen soon
HUNG = 99  # exit code
HUNG_SAYS = "`run_sync` does not return"
STANDSTILL_S = 2.0  # real; longer than any grace: what has not ended by then does not end

Make: TypeAlias = Callable[["World"], Callable[..., Any]]


class World:
    """What the tools of one row share with whoever watches them.

    Attributes:
        started: The tool is at the point where it misbehaves.
        let_go: Lets threads return; the row is over.
        nap: Seconds to sleep for that nobody else sleeps for, so that a process can be found by them.
        log: What tools want to be known.
    """

    def __init__(self, nap: str = "nobody") -> None:
        self.started = threading.Event()
        self.let_go = threading.Event()
        self.released = asyncio.Event()
        self.nap = nap
        self.log: list[Any] = []
        self.agent: list[Agent] = []
        self.url = ""
        self.called = False
        self.both = threading.Barrier(2, timeout=PATIENCE_S)
        self.is_started: Callable[[], bool] = self.started.is_set
        self.now_s = 0.0  # for `perf_counter`

    def block(self, seconds: float) -> None:
        """Hold the event loop, by both clocks."""
        loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualClockLoop):
            loop._advance(seconds)
            self.now_s += seconds
        else:
            time.sleep(seconds)

    async def until_started(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.is_started():
            assert time.monotonic() < deadline, "the tool did not come to the point"
            await (asyncio.sleep(0) if isinstance(asyncio.get_running_loop(), VirtualClockLoop) else asyncio.sleep(0.005))


@dataclass(frozen=True, eq=False)
class Row:
    """A way to misbehave.

    Attributes:
        does: What the tool does: the first cell.
        forms: How it is written, and what makes the tools of the run; the model calls those named in `calls`.
        calls: By turn: names and arguments.
        settings: For `tool`.
        leaves_after_s: The reader leaves once the tool has come to the point and that much time has passed. None: it stays.
        ends: The right stop reason.
        within_s: Loop time that is enough.
        lasts: How long what survives goes on, in words.
        remark: What else there is to know.
        alone: In a process of its own, on real time.
        keeps_thread: A thread of it does not return before the row is over, so time does not wait for it to.
        script: The server's answers, where they are not the calls and then a text.
        in_run_sync: `run_sync` is what is looked at.
        prepare: Awaited before the run.
    """

    does: str
    forms: dict[str, Make]
    calls: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = ((("act", {}),),)
    settings: dict[str, Any] = field(default_factory=dict)
    limits: Limits = Limits()
    leaves_after_s: float | None = None
    ends: str = "end"
    within_s: float = 1.0
    lasts: str = ""
    remark: str = ""
    alone: bool = False
    keeps_thread: bool = False
    script: Callable[[World], list[Any]] | None = None
    in_run_sync: bool = False
    prepare: Callable[[World], Awaitable[None]] | None = None


@dataclass(frozen=True)
class Seen:
    """What came of a row.

    Attributes:
        reads: What the model reads of each call, or what it would read if it were asked again.
        lines: Of the command line, but for the first and the last.
        display_chars: Of what tools gave for the person.
        kept: Characters kept of the longest result that was cut.
        survivors: What runs after the run, and where it is listed.
        exit: How the program ended, where that is the row's matter.
    """

    ended: str = ""
    reads: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    progress: int = 0
    printed: str = ""
    took_s: float = 0.0
    display_chars: int = 0
    kept: int = 0
    survivors: tuple[str, ...] = ()
    exit: str = ""
    problems: tuple[str, ...] = ()


# Tools


class Boom(BaseException):
    """An exception outside `Exception`, as some libraries have."""


class Mute(Exception):
    """An exception that cannot be written."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Deaf:
    """A model whose dump ends the program."""

    def model_dump(self, **_: object) -> object:
        raise SystemExit(3)


def both(make: Callable[[World], Callable[..., Any]]) -> dict[str, Make]:
    """One function, called in both ways."""

    def in_loop(world: World) -> Callable[..., Any]:
        fn = make(world)

        async def act() -> Any:
            return fn()

        return act

    def in_thread(world: World) -> Callable[..., Any]:
        fn = make(world)

        def act() -> Any:
            return fn()

        return act

    return {ASYNC: in_loop, PLAIN: in_thread}


def raising(make: Callable[[], BaseException]) -> dict[str, Make]:
    def raise_it(world: World) -> Callable[[], None]:
        def fn() -> None:
            raise make()

        return fn

    return both(raise_it)


def returning(make: Callable[[], object]) -> dict[str, Make]:
    return both(lambda world: make)


def waits(world: World) -> Callable[..., Any]:
    async def act() -> None:
        world.started.set()
        await world.released.wait()

    return act


def waits_in_thread(world: World) -> Callable[..., Any]:
    def act() -> None:
        world.started.set()
        world.let_go.wait()

    return act


def waits_first(world: World) -> Callable[..., Any]:
    async def act(by: int) -> None:
        world.started.set()
        if by == 1:
            await world.released.wait()

    return act


def waits_first_in_thread(world: World) -> Callable[..., Any]:
    def act(by: int) -> None:
        world.started.set()
        if by == 1:
            world.let_go.wait()

    return act


def stubborn(world: World) -> Callable[..., Any]:
    async def act() -> None:
        world.started.set()
        while not world.released.is_set():
            try:
                await world.released.wait()
            except asyncio.CancelledError:
                pass

    return act


def cleans_up_for(seconds: float) -> Make:
    def make(world: World) -> Callable[..., Any]:
        async def act() -> None:
            world.started.set()
            try:
                await world.released.wait()
            finally:
                with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                    async with asyncio.timeout(seconds):  # `wait_for` makes a task of its own, up to Python 3.11
                        await world.released.wait()

        return act

    return make


def returns_when_cancelled(world: World) -> Callable[..., Any]:
    async def act() -> str:
        try:
            await world.released.wait()
        except asyncio.CancelledError:
            pass
        return "never mind"

    return act


def cancels_itself(world: World) -> Callable[..., Any]:
    async def act() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    return act


def raises_late(world: World) -> Callable[..., Any]:
    async def act() -> None:
        world.started.set()
        while not world.released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await world.released.wait()
        raise ValueError("too late")

    return act


def raises_late_in_thread(world: World) -> Callable[..., Any]:
    def act() -> None:
        world.started.set()
        world.let_go.wait()
        raise ValueError("too late")

    return act


async def leave_many_behind(world: World) -> None:
    """As many threads as a process may leave behind."""
    begun: list[None] = []

    def act() -> None:
        begun.append(None)
        world.let_go.wait()

    for number in range(1, MAX_ABANDONED + 1):
        task = asyncio.ensure_future(run_in_thread(act))
        while len(begun) < number:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    world.started.set()


def recursive() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def too_deep() -> None:
    too_deep()


async def answer() -> str:
    return "awaited"


def returns_coroutine(world: World) -> Callable[..., Any]:
    def act() -> Any:
        return answer()

    return act


def returns_coroutine_unawaited(world: World) -> Callable[..., Any]:
    async def act() -> Any:
        world.log.append(answer())
        return world.log[0]

    return act


def blocks_for(seconds: float) -> Make:
    def make(world: World) -> Callable[..., Any]:
        async def act() -> str:
            world.block(seconds)
            return "done"

        return act

    return make


def tells_too_much(world: World) -> Callable[..., Any]:
    async def act(ctx: ToolContext) -> None:
        for n in range(1_000_000):
            ctx.progress("still at it", n / 1_000_000)

    return act


def tells_too_much_in_thread(world: World) -> Callable[..., Any]:
    def act(ctx: ToolContext) -> None:
        for n in range(1_000_000):
            ctx.progress("still at it", n / 1_000_000)

    return act


def prints(world: World) -> Callable[[], None]:
    return lambda: print("hello")


def changes_its_default(world: World) -> Callable[..., Any]:
    async def act(items: list[str] = []) -> list[str]:  # noqa: B006 - the bad habit this is about
        items.append("more")
        return items

    return act


def changes_its_default_in_thread(world: World) -> Callable[..., Any]:
    def act(items: list[str] = []) -> list[str]:  # noqa: B006
        items.append("more")
        return items

    return act


def changes_its_arguments(world: World) -> Callable[..., Any]:
    async def act(items: list[str]) -> str:
        world.log.append(len(items))
        items.pop()
        if len(world.log) < 3:
            raise ToolError("busy", kind="network")
        return f"given {', '.join(map(str, world.log))} items"

    return act


def counts(world: World) -> Callable[..., Any]:
    async def act(by: int) -> str:
        before = len(world.log)
        await asyncio.sleep(0.1)
        world.log[:] = [None] * (before + by)
        return f"counted to {len(world.log)}"

    return act


def counts_in_thread(world: World) -> Callable[..., Any]:
    def act(by: int) -> str:
        before = len(world.log)
        with contextlib.suppress(threading.BrokenBarrierError):
            world.both.wait()
        world.log[:] = [None] * (before + by)
        return f"counted to {len(world.log)}"

    return act


def counts_alone_in_thread(world: World) -> Callable[..., Any]:
    def act(by: int) -> str:
        world.log[:] = [None] * (len(world.log) + by)
        return f"counted to {len(world.log)}"

    return act


def locks_in_two_orders(world: World) -> Callable[..., Any]:
    one, two = threading.Lock(), threading.Lock()

    def act(by: int) -> None:
        first, then = (one, two) if by == 1 else (two, one)
        with first:
            world.both.wait()
            world.started.set()
            while not then.acquire(timeout=0.01):
                if world.let_go.is_set():
                    return
            then.release()

    return act


def locks_over_await(world: World) -> Callable[..., Any]:
    lock = threading.Lock()

    async def act(by: int) -> None:
        if by == 2:
            threading.Thread(target=_two_interrupts, daemon=True).start()
        with lock:
            await asyncio.sleep(0.1)

    return act


def _two_interrupts() -> None:
    time.sleep(STANDSTILL_S / 4)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(STANDSTILL_S / 4)
    print("still there after one Ctrl-C", file=sys.__stdout__, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(PATIENCE_S)
    os._exit(99)


def starts_task(world: World) -> Callable[..., Any]:
    async def act() -> str:
        world.log.append(asyncio.create_task(world.released.wait(), name="of its own"))
        return "started"

    return act


def starts_task_in_thread(world: World) -> Callable[..., Any]:
    def act() -> str:
        work = answer()
        try:
            world.log.append(asyncio.create_task(work))
        finally:
            work.close()
        return "started"

    return act


def starts_thread(world: World) -> Callable[[], str]:
    def fn() -> str:
        threading.Thread(target=world.let_go.wait, name="of its own").start()
        return "started"

    return fn


def runs_a_loop(world: World) -> Callable[[], str]:
    def fn() -> str:
        work = answer()
        try:
            return asyncio.run(work)
        finally:
            work.close()

    return fn


def runs_sync(world: World) -> Callable[[], str]:
    return lambda: world.agent[0].run_sync("And you?", limits=Limits(max_turns=1)).text


def runs_itself(world: World) -> Callable[..., Any]:
    async def act() -> str:
        return (await world.agent[0].run("And you?")).text

    return act


def runs_for_ever_in_thread(world: World) -> Callable[..., Any]:
    def act() -> str:
        driver = HttpDriver(ChatCodec(), world.url, "m")
        return Agent(driver, retry=SameWaits(attempts=1)).run_sync("And you?").text

    return act


def goes_elsewhere(world: World) -> Callable[[], str]:
    def fn() -> str:
        os.chdir("/")
        os.environ["MISBEHAVIOUR"] = "1"
        return "gone"

    return fn


# Tools that need a process of their own


def leaves_at_once(world: World) -> Callable[[], None]:
    return lambda: os._exit(3)


def closes_files(world: World) -> Callable[[], None]:
    return lambda: os.closerange(3, 1024)


def stops_the_loop(world: World) -> Callable[..., Any]:
    async def act() -> None:
        asyncio.get_running_loop().stop()

    return act


def sleeper(world: World) -> list[str]:
    return ["sleep", world.nap]


def until_there(world: World) -> None:
    """The system shows a program under its new name a moment after it was started."""
    deadline = time.monotonic() + PATIENCE_S
    while not running(world.nap) and time.monotonic() < deadline:
        time.sleep(0.001)


def leaves_program(world: World) -> Callable[[], str]:
    def fn() -> str:
        subprocess.Popen(sleeper(world))
        until_there(world)
        return "started"

    return fn


def waits_for_program(world: World) -> Callable[..., Any]:
    def act() -> int:
        process = subprocess.Popen(sleeper(world))
        until_there(world)
        world.started.set()
        return process.wait()

    return act


def awaits_program(world: World) -> Callable[..., Any]:
    async def act() -> int:
        process = await asyncio.create_subprocess_exec(*sleeper(world))
        until_there(world)
        world.started.set()
        return await process.wait()

    return act


def forks(world: World) -> Callable[..., Any]:
    def act() -> str:
        if os.fork() == 0:
            os.execvp("sleep", sleeper(world))
        until_there(world)
        return "forked"

    return act


def forks_and_returns(world: World) -> Callable[..., Any]:
    def act() -> str:
        pid = os.fork()
        return "the child's" if pid == 0 else f"the parent's; the child ended with {os.waitpid(pid, 0)[1]}"

    return act


def multiplies(world: World) -> Callable[..., Any]:
    def act() -> str:
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,)).start()
        return "started"

    return act


# A shell may or may not come to say that something was terminated, so it says nothing.
DETACHED = "exec 2>/dev/null; sleep {nap} & setsid sleep {nap} & (setsid sh -c 'sleep {nap} & sleep {nap}' &) ; exec sleep {nap}"

# It is there under its own name before the shell ends, so that it is reported under that name.
BACKGROUND = "sleep {nap} & until grep -qs sleep /proc/$!/comm; do :; done; echo started"


def started_detached(world: World) -> Callable[[], bool]:
    """All sleepers of `DETACHED` are there."""
    return lambda: list(running(world.nap).values()).count("sleep") == 5


def runs_process(world: World) -> Callable[..., Any]:
    world.is_started = started_detached(world)

    async def act() -> str:
        result = await run_process(DETACHED.format(nap=world.nap), timeout_s=1)
        return f"timed out: {result.timed_out}"

    return act


def shell_for(timeout_s: float) -> Make:
    def make(world: World) -> Callable[..., Any]:
        world.is_started = started_detached(world)
        return shell_tool(tempfile.gettempdir(), timeout_s=timeout_s)

    return make


# Rows

FINE = sse(*reply("Fine", usage=(10, 2)))
CALL = sse(*reply(calls=[("act", {})]))


def calls_until_late(world: World) -> list[Any]:
    def answered(_: object) -> list[Any]:
        return CALL if asyncio.get_running_loop().time() < LATE - 5 else FINE

    return [[Wait(10), answered]] * 60


def never_answers_the_second(world: World) -> list[Any]:
    return [CALL, [lambda _: world.started.set(), Hang()], FINE]


TWO = ((("act", {"by": 1}), ("act", {"by": 2})),)
LATE = 125.0  # the time a tool has, and what it takes to end it
NEVER = {ASYNC: waits, PLAIN: waits_in_thread}
THREAD = "until it returns"
TASK = "until it ends. `asyncio.run` does not return before; `run_sync` and `treadle run` do"
OUTLIVES = "until the program that was started ends, also when yours has ended"
OUTLIVES_OLD_ASYNCIO = f"{OUTLIVES} (Python 3.11; from 3.12 on asyncio kills it then)"
SHORT = {"timeout_s": 0.5}


def _never() -> list[Row]:
    return [
        Row("never returns", NEVER, within_s=LATE, lasts=THREAD, keeps_thread=True),
        Row("never returns, and the reader leaves", NEVER, leaves_after_s=0, ends="cancelled", lasts=THREAD, keeps_thread=True),
        Row("never returns, and another call of its turn waits for it", {ASYNC: waits_first, PLAIN: waits_first_in_thread}, calls=TWO,
            within_s=LATE, lasts=THREAD, keeps_thread=True, remark="Exclusive, which is the default: the other one runs when its time is up."),
        Row("never returns, and the run's deadline of 60 s comes first", NEVER, limits=Limits(deadline_s=60), ends="deadline",
            within_s=61, lasts=THREAD, keeps_thread=True),
        Row("never returns, is `interactive`, and the reader leaves after two hours", NEVER, settings={"concurrency": "interactive"},
            leaves_after_s=7_200, ends="cancelled", lasts=THREAD, keeps_thread=True,
            remark="An interactive tool has no time limit unless it sets `timeout_s`, and the run's deadline stands still: a person's time counts nowhere."),
        Row(f"is called when {MAX_ABANDONED} threads were left behind", {PLAIN: counts_alone_in_thread}, calls=((("act", {"by": 1}),),),
            keeps_thread=True, lasts="until they return", prepare=leave_many_behind, remark="It was not started. `async def` tools still run."),
    ]  # fmt: skip


def _ignoring() -> list[Row]:
    return [
        Row("ignores its cancellation", {ASYNC: stubborn}, within_s=LATE, lasts=TASK),
        Row("ignores its cancellation, and the reader leaves", {ASYNC: stubborn}, leaves_after_s=0, ends="cancelled", lasts=TASK),
        Row("ignores its cancellation, time limit 0.5 s, in `run_sync`", {ASYNC: stubborn}, settings=SHORT, alone=True, in_run_sync=True,
lasts=TASK),
        Row("cleans up for 0.4 s when cancelled", {ASYNC: cleans_up_for(0.4)}, within_s=LATE),
        Row("cleans up for 10 s when cancelled", {ASYNC: cleans_up_for(10)}, within_s=LATE, lasts="until it is done"),
        Row("cleans up for 10 s when cancelled, and the reader leaves", {ASYNC: cleans_up_for(10)}, leaves_after_s=0, ends="cancelled", lasts="until it is done"),
        Row("returns a value when cancelled", {ASYNC: returns_when_cancelled}, within_s=LATE, remark="The value is dropped: the time was up."),
        Row("cancels its own task", {ASYNC: cancels_itself}),
        Row("raises long after its run has ended", {ASYNC: raises_late, PLAIN: raises_late_in_thread}, leaves_after_s=0,
            ends="cancelled", keeps_thread=True, lasts="until it raises", remark="The exception goes nowhere."),
    ]  # fmt: skip


def _raising() -> list[Row]:
    interrupt = raising(KeyboardInterrupt)
    return [
        Row("raises `SystemExit`, as `sys.exit(3)` does", raising(lambda: SystemExit(3))),
        Row("raises `KeyboardInterrupt`", {ASYNC: interrupt[ASYNC]}, alone=True, remark="It cannot be told from a Ctrl-C. The journal gets its ending, `cancelled`."),
        Row("raises `KeyboardInterrupt`", {PLAIN: interrupt[PLAIN]}),
        Row("raises `GeneratorExit`", raising(GeneratorExit)),
        Row("raises `CancelledError`", raising(asyncio.CancelledError)),
        Row("raises `StopIteration`", raising(StopIteration)),
        Row("raises `MemoryError`", raising(MemoryError)),
        Row("calls itself too often", both(lambda _: too_deep)),
        Row("raises a `BaseException` of its own", raising(Boom)),
        Row("raises an exception whose `str` fails", raising(Mute)),
        Row("raises an exception with a text of 1 MB", raising(lambda: ValueError("x" * 1_000_000))),
        Row("raises `ToolError` with a kind that does not exist", raising(lambda: ToolError("no", kind="odd"))),  # type: ignore[arg-type]
    ]  # fmt: skip


def _returning() -> list[Row]:
    return [
        Row("returns nothing", returning(lambda: None)),
        Row("returns 5 MB of text", returning(lambda: "x" * 5_000_000)),
        Row("returns 50 MB of text", returning(lambda: "x" * 50_000_000), remark="The rest is gone."),
        Row("returns what is no JSON", returning(object)),
        Row("returns a list that holds itself", returning(recursive)),
        Row("returns NaN and infinity", returning(lambda: [math.nan, math.inf])),
        Row("returns bytes", returning(lambda: b"\xff\x00")),
        Row("returns text with half a surrogate pair", returning(lambda: "name \udcff.txt")),
        Row("returns text that steers a terminal", returning(lambda: "\x1b[2J\x1b]0;owned\x07gone")),
        Row("returns a generator", returning(lambda: (n for n in range(3)))),
        Row("returns a coroutine", {ASYNC: returns_coroutine_unawaited, PLAIN: returns_coroutine}, remark="A plain `def` that returns an awaitable is awaited."),
        Row("returns a model whose `model_dump` raises `SystemExit`", returning(Deaf)),
        Row("returns a `ToolResult` with 5 MB for the person and images that are none",
            returning(lambda: ToolResult(content="ok", display="y" * 5_000_000, images=("image.png",)))),  # type: ignore[arg-type]
    ]  # fmt: skip


def _holding() -> list[Row]:
    deadlock = "Nothing of treadle can act while the event loop stands still. Use `asyncio.Lock`, or a plain `def`."
    return [
        Row("blocks the event loop for 5 s", {ASYNC: blocks_for(5)}, within_s=6),
        Row("blocks the event loop for 300 s, past its time limit", {ASYNC: blocks_for(300)}, within_s=301),
        Row("is called twice in a turn, `read_only`, and awaits while it holds a `threading.Lock`", {ASYNC: locks_over_await}, calls=TWO,
            settings={"concurrency": "read_only"}, alone=True, remark=deadlock),
        Row("is called twice in a turn, `read_only`, and takes two locks in opposite orders", {PLAIN: locks_in_two_orders}, calls=TWO,
            settings={"concurrency": "read_only"}, within_s=LATE, keeps_thread=True, lasts="until the locks are free"),
    ]  # fmt: skip


def _sharing() -> list[Row]:
    three = {"items": ["a", "b", "c"]}
    read_only = {"concurrency": "read_only"}
    racing = {ASYNC: counts, PLAIN: counts_in_thread}
    return [
        Row("is called twice in a turn and shares a counter", {ASYNC: counts, PLAIN: counts_alone_in_thread}, calls=TWO,
            remark="Exclusive, which is the default: one after the other."),
        Row("the same, and says it is `read_only`", racing, calls=TWO, settings=read_only, remark="Read-only calls run together, so a tool that lies about it loses updates."),
        Row("changes its default value, in two calls", {ASYNC: changes_its_default, PLAIN: changes_its_default_in_thread},
            calls=((("act", {}),), (("act", {}),)), remark="Every call gets a copy of its own."),
        Row("is `repeatable`, changes its arguments and fails twice", {ASYNC: changes_its_arguments}, calls=((("act", three),),),
            settings={"repeatable": True}, remark="Every attempt gets what the model wrote."),
        Row("reports its progress 1,000,000 times", {ASYNC: tells_too_much, PLAIN: tells_too_much_in_thread}),
        Row("prints", both(prints), remark="It is the program's standard output. `treadle run` sends it to standard error, so that it gets into no answer."),
        Row("changes the working directory and `os.environ`", both(goes_elsewhere), remark="It is not prevented: every later call, and your own code, sees it."),
    ]  # fmt: skip


def _starting() -> list[Row]:
    hanging = "until its own run ends; it has its own deadline, of 1 h"
    return [
        Row("starts a task and does not wait for it", {ASYNC: starts_task, PLAIN: starts_task_in_thread}, lasts="until it ends or its event loop does"),
        Row("starts a thread and does not wait for it", both(starts_thread), lasts="until it ends; Python waits for it at exit, unless it is daemon"),
        Row("calls `asyncio.run`", both(runs_a_loop)),
        Row("calls `run_sync` of its own agent", {ASYNC: both(runs_sync)[ASYNC]}),
        Row("calls `run_sync` of its own agent", {PLAIN: both(runs_sync)[PLAIN]}, script=lambda _: [CALL, FINE, FINE], alone=True),
        Row("calls `run` of its own agent, whose model calls it again, every 10 s", {ASYNC: runs_itself}, script=calls_until_late, within_s=145,
            remark="Nothing counts how deep it is: each run has bounds of its own, and the tool's time limit ends them from the outside."),
        Row("calls `run_sync` of another agent, whose model does not answer", {PLAIN: runs_for_ever_in_thread}, within_s=LATE, keeps_thread=True,
            script=never_answers_the_second, lasts=hanging, remark="The inner run goes on meanwhile, model calls included. An `async def` with `await agent.run(...)` is cancelled."),
    ]  # fmt: skip


def _processes() -> list[Row]:
    shell_call = ((("shell", {"command": DETACHED}),),)
    background = ((("shell", {"command": BACKGROUND}),),)
    return [
        Row("starts a program and does not wait for it (`subprocess.Popen`)", both(leaves_program), alone=True, lasts=OUTLIVES),
        Row("waits for a program (`Popen.wait`), longer than its time", {PLAIN: waits_for_program}, settings=SHORT, alone=True,
            lasts=OUTLIVES),
        Row("waits for a program (`Popen.wait`), and the reader leaves", {PLAIN: waits_for_program}, leaves_after_s=0, ends="cancelled", alone=True,
            lasts=OUTLIVES),
        Row("waits for a program (`asyncio.create_subprocess_exec`), longer than its time", {ASYNC: awaits_program}, settings=SHORT, alone=True,
            lasts=OUTLIVES_OLD_ASYNCIO),
        Row("forks (`os.fork`) and starts a program", {PLAIN: forks}, alone=True, lasts=OUTLIVES),
        Row("forks (`os.fork`), and both return", {PLAIN: forks_and_returns}, alone=True,
            remark="In an `async def` never do that: both processes go on with the run, on the same connection and journal, and hold each other up."),
        Row("starts a `multiprocessing.Process`", {PLAIN: multiplies}, alone=True, lasts="until it ends; Python waits for it at exit, unless it is daemon"),
        Row("calls `run_process`: five programs, some detached with `setsid` and a double fork, longer than their time", {ASYNC: runs_process}, alone=True),
        Row("calls `run_process`: the same, and the reader leaves", {ASYNC: runs_process}, leaves_after_s=0, ends="cancelled", alone=True),
        Row("is the built-in `shell`: the same five programs, longer than their time", {ASYNC: shell_for(1)}, calls=shell_call, alone=True),
        Row("is the built-in `shell`: the same, and the reader leaves", {ASYNC: shell_for(60)}, calls=shell_call, leaves_after_s=0, ends="cancelled", alone=True),
        Row("is the built-in `shell`: a program in the background", {ASYNC: shell_for(60)}, calls=background, alone=True),
    ]  # fmt: skip


def _harming() -> list[Row]:
    child = "Run such code in a process of its own: `run_process` or the built-in `shell`."
    return [
        Row("calls `os._exit(3)`", both(leaves_at_once), alone=True, remark=child),
        Row("closes every file of the program", both(closes_files), settings=SHORT, alone=True, remark=child),
        Row("stops the event loop", {ASYNC: stops_the_loop}, alone=True),
    ]  # fmt: skip


SECTIONS: dict[str, list[Row]] = {
    "Tools that never end": _never(),
    "Tools that do not let themselves be stopped": _ignoring(),
    "Tools that raise": _raising(),
    "Tools that return too much, or what nobody can read": _returning(),
    "Tools that hold the event loop, and each other": _holding(),
    "Tools that change what they share": _sharing(),
    "Tools that start tasks, threads and runs": _starting(),
    "Tools that start processes": _processes(),
    "Tools that harm the program": _harming(),
}


# Running a row


async def play(row: Row, form: str, world: World) -> Seen:
    """One run of the row, on the loop that is running."""
    loop = asyncio.get_running_loop()
    if row.keeps_thread and isinstance(loop, VirtualClockLoop):
        loop.quiescent[:] = [lambda: not world.called or world.is_started()]
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    turns = [sse(*reply(calls=_named(calls, world))) for calls in row.calls]
    events: list[Event] = []
    notes, printed = io.StringIO(), io.StringIO()
    renderer = Plain(io.StringIO(), notes, now=loop.time)
    async with ByteServer(row.script(world) if row.script else [*turns, FINE], check=False) as server:
        world.url = server.url
        agent = _agent(row, form, world, server.url)
        if row.prepare:
            await row.prepare(world)
        began, leaving = loop.time(), None
        with contextlib.redirect_stdout(printed):
            async with agent.stream("Hi") as run:
                async for event in run:
                    events.append(event)
                    if not isinstance(event, ContextPlanned):  # which names the port
                        renderer.show(event)
                    world.called |= isinstance(event, ToolStarted)
                    if isinstance(event, ToolStarted) and row.leaves_after_s is not None:
                        await world.until_started()
                        await asyncio.sleep(row.leaves_after_s)
                        began = loop.time()
                        leaving = asyncio.create_task(run.cancel())  # as Ctrl-C does; the rest is still read
            result = run.result
        took_s = loop.time() - began
        if leaving is not None:
            await leaving
        await settled()
        seen = Seen(
            ended=str(result.stop_reason),
            reads=tuple(_results(server, result)),
            lines=tuple(_tool_lines(notes.getvalue())),
            warnings=tuple(event.warning for event in events if isinstance(event, ToolFinished) and event.warning),
            progress=sum(isinstance(event, ToolProgress) for event in events),
            printed=printed.getvalue(),
            took_s=took_s,
            display_chars=sum(len(event.result.display or "") for event in events if isinstance(event, ToolFinished)),
            kept=max((len(m.full or "") for m in result.messages if isinstance(m, ToolMessage)), default=0),
            survivors=tuple(_survivors(tasks, threads, world)),
            problems=tuple(_problems(row, events, result, took_s)),
        )
    if row.alone:
        return seen  # the process ends
    world.let_go.set()
    world.released.set()
    for each in filter(asyncio.iscoroutine, world.log):
        each.close()
    await asyncio.to_thread(_joined, threads)
    await settled()
    left = [*_of_run(tasks), *abandoned(), *left_behind()]
    return _with(seen, [f"{each} is still there when the row is over" for each in left])


def _agent(row: Row, form: str, world: World, url: str) -> Agent:
    made = row.forms[form](world)
    used = made if isinstance(made, FunctionTool) else tool(made, **row.settings)
    driver = HttpDriver(ChatCodec(), url, "m")
    agent = Agent(driver, tools=[used], limits=row.limits, retry=SameWaits(), approvals="never")
    world.agent.append(agent)
    return agent


def _named(calls: Iterable[tuple[str, dict[str, Any]]], world: World) -> list[tuple[str, dict[str, Any]]]:
    """The calls, with the time that this row's programs sleep for."""
    return [(name, {k: v.format(nap=world.nap) if isinstance(v, str) else v for k, v in given.items()}) for name, given in calls]


def _results(server: ByteServer, result: RunResult) -> Iterator[str]:
    """What the model was sent of each call; or, if it was not asked again, what it would be sent."""
    sent = [m["content"] for m in server.posts[-1].json["messages"] if m["role"] == "tool"]
    yield from sent or (_as_sent(message) for message in result.messages if isinstance(message, ToolMessage))


def _as_sent(message: ToolMessage) -> str:
    return f"Error: {message.content}" if message.is_error else message.content


def _tool_lines(notes: str) -> Iterator[str]:
    lines = [line for line in notes.splitlines() if not line.startswith("> ")]
    yield from lines[:-1]


def _of_run(before: set[asyncio.Task[Any]]) -> list[str]:
    """Names of tasks that were not there, but for the server's and this one."""
    now = asyncio.all_tasks() - before - {asyncio.current_task()}
    return [task.get_name() for task in now if not task.get_name().startswith("server connection")]


def _survivors(before: set[asyncio.Task[Any]], threads_before: set[threading.Thread], world: World) -> Iterator[str]:
    listed, of_run = left_behind(), _of_run(before)
    threads = [thread.name for thread in threading.enumerate() if thread not in threads_before]
    programs = [*running(world.nap).values(), *(process.name for process in multiprocessing.active_children())]
    yield from _count(len(abandoned()), "thread", "`abandoned()`")
    yield from _count(len(listed), "task", LEFT_BEHIND)
    yield from _count(sum(name not in listed for name in of_run), "task of its own")
    yield from _count(sum(not name.startswith(("treadle-", "asyncio")) for name in threads), "thread of its own")
    yield from _count(len(programs), "process")


LEFT_BEHIND = "`left_behind()`"


def _count(number: int, what: str, where: str = "") -> Iterator[str]:
    if number:
        yield f"{number} {what}{'es' if what.endswith('ss') and number > 1 else 's' if number > 1 else ''}, {f'in {where}' if where else 'listed nowhere'}"


def running(nap: str) -> dict[int, str]:
    """Programs that were told to sleep for this long: numbers and names."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if nap.encode() in words and b"misbehaviour" not in words:
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def _joined(before: set[threading.Thread]) -> None:
    for thread in threading.enumerate():
        if thread not in before and thread is not threading.current_thread() and not thread.name.startswith("asyncio_"):
            thread.join(PATIENCE_S)


def _problems(row: Row, events: list[Event], result: RunResult, took_s: float) -> Iterator[str]:
    yield from of_events(events)
    if result.stop_reason != row.ends:
        yield f"ended with {result.stop_reason} instead of {row.ends}"
    if took_s > row.within_s and not row.alone:
        yield f"took {took_s:.1f} s, and {row.within_s:g} s are enough"
    try:
        check_history(result.messages)
    except Exception as error:
        yield f"history: {error}"


def _with(seen: Seen, problems: Iterable[str]) -> Seen:
    return Seen(**{**seen.__dict__, "problems": (*seen.problems, *problems)})


@functools.cache
def seen(row: Row, form: str) -> Seen:
    """What came of the row."""
    if row.alone:
        return alone(row, form)
    world_of: list[World] = []

    async def main() -> Seen:
        world_of.append(World())
        return await play(row, form, world_of[0])

    here, env = os.getcwd(), dict(os.environ)
    clock = SimpleNamespace(perf_counter=lambda: world_of[0].now_s)
    try:
        with mock.patch.object(execution, "time", clock):  # only what is meant to hold the loop does
            found = run_virtual(main())
    except AssertionError as error:
        return Seen(problems=(" ".join([str(error), *getattr(error, "__notes__", ())]),))
    finally:
        if os.getcwd() != here or dict(os.environ) != env:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(env)
    return found


# A process of its own


def alone(row: Row, form: str) -> Seen:
    """The row in another process: what it saw, how it ended, and what of it is left when it has."""
    nap = f"3600.{random.randrange(10**9, 10**10)}"
    command = [sys.executable, "-W", "ignore", "-m", "tests.tools.misbehaviour", "--alone", row.does, form, nap]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # no pipes: what survives would hold them open
        code = subprocess.run(command, stdout=out, stderr=err, cwd=ROOT, timeout=3 * PATIENCE_S, check=False).returncode
        said, words = (_text(file).replace(nap, "3600").splitlines() for file in (out, err))
    found = next((Seen(**json.loads(line)) for line in said if line.startswith("{")), Seen())
    found = Seen(**{name: tuple(value) if isinstance(value, list) else value for name, value in asdict(found).items()})
    notes = [line for line in said if not line.startswith("{")]
    outlived = running(nap)
    for pid in outlived:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    ends = {0: "", HUNG: HUNG_SAYS, -signal.SIGINT: "the program ends with `KeyboardInterrupt`"}
    exit_said = ends.get(code) if code in ends else f"the program ends with exit code {code}"
    if code == 1:
        exit_said = f"the program ends with {span(words[-1])}"
    outlives = row.lasts == OUTLIVES or (row.lasts == OUTLIVES_OLD_ASYNCIO and sys.version_info < (3, 12))
    wrong = () if bool(outlived) == outlives else (f"{len(outlived)} programs are left when this one has ended",)
    said_of_exit = "; ".join(filter(None, [*notes, exit_said or ""]))
    return Seen(**{**asdict(found), "exit": said_of_exit, "problems": (*found.problems, *wrong)})


def in_this_process(does: str, form: str, nap: str) -> None:
    """The other process: run the row, print what was seen, end."""
    row = next(row for rows in SECTIONS.values() for row in rows if row.does == does and form in row.forms and row.alone)
    if row.in_run_sync:
        play_sync(row, form, World(nap))
    else:
        asyncio.run(_played(row, form, nap))
    for process in multiprocessing.active_children():
        process.kill()  # the program would wait for it


async def _played(row: Row, form: str, nap: str) -> None:
    print(json.dumps(asdict(await play(row, form, World(nap)))), flush=True)


class _Watchdog:
    """A journal that ends the program if it is still there a while after the run has ended."""

    def __init__(self) -> None:
        self.ended = ""
        self.reads: list[str] = []

    async def append(self, run_id: str, fact: object) -> None:
        if isinstance(fact, ToolFinished):
            self.reads.append(_as_sent(fact.result))
        if isinstance(fact, Ended | Failed):
            self.ended = fact.stop_reason if isinstance(fact, Ended) else fact.error.kind
            threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        time.sleep(STANDSTILL_S)
        survivors = tuple(_count(len(left_behind()), "task", LEFT_BEHIND))
        print(json.dumps(asdict(Seen(ended=self.ended, reads=tuple(self.reads), survivors=survivors))), flush=True)
        os._exit(HUNG)


def play_sync(row: Row, form: str, world: World) -> None:
    """The row with `run_sync`, the server in a thread."""
    address: list[str] = []
    ready = threading.Event()

    async def serve() -> None:
        async with ByteServer([CALL, FINE]) as server:
            address.append(server.url)
            ready.set()
            await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    assert ready.wait(PATIENCE_S)
    driver, made = HttpDriver(ChatCodec(), address[0], "m"), row.forms[form](world)
    watchdog = _Watchdog()
    agent = Agent(driver, tools=[tool(made, **row.settings)], limits=row.limits, journal=watchdog)
    result = agent.run_sync("Hi")
    survivors = tuple(_count(len(left_behind()), "task", LEFT_BEHIND))
    seen = Seen(ended=str(result.stop_reason), reads=tuple(watchdog.reads), survivors=survivors)
    print(json.dumps(asdict(seen)), flush=True)
    os._exit(0)


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode()


# The page

INTRODUCTION = f"""\
# Tools that misbehave, and what comes of it

Written by `python -m tests.tools.misbehaviour`; do not edit. Each row is a tool that a model calls in a real run, with the default
limits unless it says otherwise, and what came of it. `tests/tools/test_misbehaviour.py` checks that this page is what the command writes.

In short:

- Whatever a tool raises or returns becomes a result that the model reads, and the run goes on. The exception is `KeyboardInterrupt`
  in an `async def` tool.
- A tool has {Limits().tool_timeout_s:g} s (`timeout_s`, `Limits.tool_timeout_s`), then the run goes on without it. An `async def` tool is cancelled and
  has {execution.GRACE_S:g} s to clean up. A plain `def` runs in a thread, and a thread cannot be stopped: it is left behind. It is daemon, so it does not
  delay exit; what it returns, raises or reports goes nowhere. What it *does* still happens.
- An `async def` tool that ignores its cancellation is left behind too, but it keeps its event loop: `asyncio.run` does not return while
  it runs. `run_sync` and `treadle run` do, after a second.
- When the reader leaves, the run ends within a second, and what was said about cleaning up and threads holds as well.
- What is left behind is listed by name: threads in `treadle.tools.threads.abandoned()`, tasks in `treadle.tools.execution.left_behind()`.
  What a tool starts on its own (tasks, threads, processes) is not known to treadle and listed nowhere.
- Tools share your process. One that blocks the event loop holds up everything, and one that ends the process ends it. What you do not trust
  belongs into a process of its own: of what the built-in `shell` and `run_process` start nothing was left in any row here. What can still hide
  from them is written in `src/treadle/tools/builtin/processes.py`.

How to read the tables:

- *The model reads* is the text of the result, shortened here. If the run ended before the model was asked again, it is what it would read next.
- *The person sees* is the line of `treadle run` on a pipe. `! act: …` stands for a failed call, `< act: …` for one that succeeded, with the text
  the model reads; a line that begins with `!` and names no tool is `ToolFinished.warning`.
- *The run* is its stop reason and how long it took, in loop time; where the reader leaves: how long after that. Rows marked † ran in a
  process of their own on real time, which is not given.
- *Afterwards* is what still runs when the run has ended, and where it is listed.
"""


def span(text: str) -> str:
    """Text as code, in a table."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shortest(text))
    shown = shown.replace("\n", "↵").replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def shortest(text: str) -> str:
    """Head and tail, and what a result says itself about what it leaves out."""
    said = re.search(r"\[\.\.\. .*? left out.*? \.\.\.\]", text)
    if said is not None:
        return f"{text[:20]}…\n{said[0]}\n…{text[-20:]}"
    return text if len(text) <= 240 else f"{text[:180]}… ({len(text):,} characters)"


def person_cell(seen: Seen) -> str:
    """What the person sees."""
    lines: list[str] = []
    shown = 0
    for line in seen.lines:
        mark, _, said = line.partition(": ")
        as_read = [" ".join(read.removeprefix("Error: ").split()) for read in seen.reads]
        if line.startswith("    "):
            shown += len(line) - 4 + bool(shown)
            continue
        lines.append(span(f"{mark}: …" if any(said and read.startswith(said.rstrip("…")) for read in as_read) else line))
    lines += [f"of `display` what the first 12 lines show, of {seen.display_chars:,} characters kept"] if shown else []
    lines += [f"{seen.progress} × `ToolProgress`"] if seen.progress else []
    lines += [f"prints {span(seen.printed.strip())}"] if seen.printed else []
    return "<br>".join(lines) or "–"


def run_cell(row: Row, seen: Seen) -> str:
    """How the run went on."""
    after = " after the reader left" if row.leaves_after_s is not None else ""
    took = "" if row.alone else f", {seen.took_s:.1f} s{after}"
    return "; ".join(filter(None, [f"`{seen.ended}`{took}" if seen.ended else "", seen.exit])) or "–"


def left_cell(row: Row, seen: Seen) -> str:
    """What is left, for how long, and what else there is to say."""
    left = "; ".join(seen.survivors)
    said = f"{left}; {row.lasts}" if left and row.lasts else left or ("nothing" if seen.ended else "–")
    said += f". {seen.kept:,} characters kept" if seen.kept else ""
    return ". ".join(filter(None, [said if said != "–" or not row.remark else "", row.remark]))


def cells(row: Row, form: str) -> list[str]:
    """A row's cells, from what the model reads on."""
    found = seen(row, form)
    reads = "<br>".join(map(span, found.reads)) or "–"
    return [reads, person_cell(found), run_cell(row, found), left_cell(row, found)]


def lines_of(row: Row) -> Iterator[str]:
    """One line; two where it makes a difference how the tool is written."""
    by_form = {form: cells(row, form) for form in row.forms}
    forms = list(by_form)
    if len(forms) > 1 and by_form[forms[0]] == by_form[forms[1]]:
        by_form = {BOTH: by_form[forms[0]]}
    for form, found in by_form.items():
        yield f"| {' | '.join([row.does + (' †' if row.alone else ''), form, *found])} |"


def all_rows() -> list[tuple[Row, str]]:
    return [(row, form) for rows in SECTIONS.values() for row in rows for form in row.forms]


def run_alone_rows() -> None:
    """Run all rows that have a process of their own, some at a time; `seen` then has them."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: seen(*each), [each for each in all_rows() if each[0].alone]))


def page() -> str:
    """The page."""
    run_alone_rows()
    lines = [INTRODUCTION]
    for name, rows in SECTIONS.items():
        lines += [f"## {name}", "", "| a tool that | written as | the model reads | the person sees | the run | afterwards |"]
        lines += ["|---|---|---|---|---|---|", *(line for row in rows for line in lines_of(row)), ""]
    return "\n".join(lines)


def problems() -> list[str]:
    """Every row that did not come out as it says, and how."""
    return [f"{row.does}, {form}: {problem}" for row, form in all_rows() for problem in seen(row, form).problems]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.misbehaviour", description=__doc__)
    parser.add_argument("--real", action="store_true", help="tools that hold the event loop, on real time")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        in_this_process(*asked.alone)
        return 0
    if asked.real:
        found = asyncio.run(play(Row("blocks", {ASYNC: blocks_for(1.2)}, alone=True), ASYNC, World()))
        print(*found.lines, sep="\n")
        return 0 if len(found.warnings) == 1 and not found.problems else 1
    PAGE.write_text(page(), encoding="utf-8")
    wrong = problems()
    print(f"{len(all_rows())} tools: {PAGE.name} written")
    for problem in wrong:
        print(f"BROKEN: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
