from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from treadle.errors import ToolError
from treadle.tools import threads
from treadle.tools.threads import MAX_RUNNING, abandoned, run_in_thread, running_count

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


class Stop(BaseException):
    """An exception outside `Exception` that means nothing to asyncio."""


class Blocked:
    """A function that runs until it is released, and the thread it runs in."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.started = threading.Event()
        self.thread = threading.current_thread()

    def __call__(self) -> str:
        self.thread = threading.current_thread()
        self.started.set()
        assert self.release.wait(30)
        return "done"

    def finish(self) -> None:
        self.release.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


async def until_started(*calls: Blocked) -> None:
    for call in calls:
        while not call.started.is_set():
            await asyncio.sleep(0)


def test_the_result_comes_from_a_daemon_thread_of_its_own() -> None:
    def fn() -> tuple[bool, bool]:
        thread = threading.current_thread()
        return thread.daemon, thread is threading.main_thread()

    assert asyncio.run(run_in_thread(fn)) == (True, False)


def test_the_function_sees_the_callers_context_variables_and_cannot_change_them() -> None:
    def fn() -> str:
        seen = WHO.get()
        WHO.set("the thread")
        return seen

    async def main() -> tuple[str, str]:
        WHO.set("the caller")
        return await run_in_thread(fn), WHO.get()

    assert asyncio.run(main()) == ("the caller", "the caller")


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError(), Stop("x"), OSError(2, "gone")])
def test_an_exception_comes_out_as_it_is(error: BaseException) -> None:
    def fn() -> None:
        raise error

    with pytest.raises(BaseException) as raised:
        asyncio.run(run_in_thread(fn))
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError("x"),
        StopIteration(1),
        StopAsyncIteration(),
    ],
)
def test_an_exception_that_would_stop_the_program_the_task_or_a_generator_is_wrapped(error: BaseException) -> None:
    def fn() -> None:
        raise error

    with pytest.raises(RuntimeError, match=f"a function in a thread raised {type(error).__name__}") as raised:
        asyncio.run(run_in_thread(fn))
    assert raised.value.__cause__ is error


def test_calls_run_side_by_side() -> None:
    together = threading.Barrier(20)

    async def main() -> list[int]:
        return await asyncio.gather(*(run_in_thread(lambda: together.wait(30)) for _ in range(20)))

    assert sorted(asyncio.run(main())) == list(range(20))


def test_a_call_counts_as_running_until_its_result_has_arrived() -> None:
    call = Blocked()

    async def main() -> list[int]:
        task = asyncio.create_task(run_in_thread(call))
        await until_started(call)
        counts = [running_count()]
        call.finish()  # the thread has ended, and the loop does not know it yet
        counts.append(running_count())
        assert await task == "done"
        return [*counts, running_count()]

    assert asyncio.run(main()) == [1, 1, 0]


def test_cancelling_leaves_the_thread_behind_counted_and_listed_until_it_ends() -> None:
    calls = [Blocked(), Blocked()]

    async def main() -> None:
        tasks = [asyncio.create_task(run_in_thread(call)) for call in calls]
        await until_started(*calls)
        assert (running_count(), abandoned()) == (2, ())
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert (running_count(), abandoned()) == (1, (calls[0].thread.name,))
        calls[0].finish()
        assert abandoned() == ()
        calls[1].finish()
        assert await tasks[1] == "done"

    asyncio.run(main())
    assert (running_count(), abandoned()) == (0, ())


def test_what_an_abandoned_call_raises_goes_nowhere() -> None:
    call = Blocked()
    unhandled: list[object] = []

    def fn() -> None:
        call()
        raise ValueError("nobody is left to read this")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        task = asyncio.create_task(run_in_thread(fn))
        await until_started(call)
        task.cancel()
        await asyncio.wait([task])
        call.finish()
        await asyncio.sleep(0)  # the delivery is due now

    asyncio.run(main())
    gc.collect()
    assert unhandled == []


def test_a_result_that_arrives_together_with_the_cancellation_abandons_nothing() -> None:
    call = Blocked()

    async def main() -> None:
        task = asyncio.create_task(run_in_thread(call))
        await until_started(call)
        call.finish()
        await asyncio.sleep(0)  # delivered: the task is about to wake up
        assert running_count() == 0
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert (running_count(), abandoned()) == (0, ())


def test_a_coroutine_that_is_closed_abandons_its_thread() -> None:
    call = Blocked()

    async def main() -> None:
        waiting = run_in_thread(call)
        waiting.send(None)  # pyright: ignore[reportArgumentType]
        await until_started(call)
        waiting.close()
        assert (running_count(), abandoned()) == (0, (call.thread.name,))
        call.finish()

    asyncio.run(main())


def test_a_thread_that_outlives_its_loop_ends_quietly_and_no_longer_counts() -> None:
    call = Blocked()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(run_in_thread(call))
    loop.run_until_complete(until_started(call))
    assert running_count() == 1
    loop.close()
    assert running_count() == 0
    call.finish()
    assert not task.done()


def test_the_threads_name_says_what_it_runs() -> None:
    def read_the_sensor() -> str:
        return threading.current_thread().name

    assert asyncio.run(run_in_thread(read_the_sensor)).startswith("treadle-read_the_sensor-")


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_call_held_is_freed_without_the_garbage_collector(fails: bool) -> None:
    class Held:
        pass

    refs: list[weakref.ref[Held]] = []

    def fn() -> int:
        held = Held()
        refs.append(weakref.ref(held))
        if fails:
            raise ValueError
        return 1

    async def main(call: Callable[[], int]) -> None:
        try:
            await run_in_thread(call)
        except ValueError:
            pass
        for thread in threading.enumerate():
            if thread.name.startswith("treadle-fn-"):
                thread.join(30)

    gc.disable()
    try:
        asyncio.run(main(fn))
        assert refs[0]() is None
    finally:
        gc.enable()


def test_abandoned_threads_that_have_ended_are_forgotten() -> None:
    async def abandon_one() -> weakref.ref[threading.Thread]:
        call = Blocked()
        task = asyncio.create_task(run_in_thread(call))
        await until_started(call)
        task.cancel()
        await asyncio.wait([task])
        call.finish()
        return weakref.ref(call.thread)

    async def main() -> bool:
        first = await abandon_one()
        await abandon_one()
        gc.collect()
        return first() is None

    assert asyncio.run(main())


def test_importing_starts_no_thread_and_a_stuck_thread_does_not_delay_exit() -> None:
    program = """
import asyncio, threading
from treadle.tools.threads import abandoned, run_in_thread
assert threading.active_count() == 1

async def main():
    started = threading.Event()
    def stuck():
        started.set()
        threading.Event().wait()
    task = asyncio.create_task(run_in_thread(stuck))
    while not started.is_set():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

asyncio.run(main())
print(len(abandoned()))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1\n", "")


class TestPlaces:
    def test_the_process_runs_so_many_calls_and_queues_the_rest_in_order(self) -> None:
        started: list[int] = []
        release = threading.Event()

        def call(n: int) -> int:
            started.append(n)
            assert release.wait(30)
            return n

        async def main() -> list[int]:
            tasks = [asyncio.create_task(run_in_thread(functools.partial(call, n))) for n in range(MAX_RUNNING + 40)]
            while len(started) < MAX_RUNNING:
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert sorted(started) == list(range(MAX_RUNNING))
            release.set()
            return await asyncio.gather(*tasks)

        assert asyncio.run(main()) == list(range(MAX_RUNNING + 40))
        assert len(started) == MAX_RUNNING + 40

    def test_one_that_stops_waiting_takes_no_place(self) -> None:
        release = threading.Event()
        started: list[int] = []

        def call(n: int) -> None:
            started.append(n)
            assert release.wait(30)

        async def main() -> None:
            for _ in range(3):  # places would run out if one were lost
                started.clear()
                release.clear()
                running = [asyncio.create_task(run_in_thread(functools.partial(call, n))) for n in range(MAX_RUNNING)]
                while len(started) < MAX_RUNNING:
                    await asyncio.sleep(0)
                queued = [asyncio.create_task(run_in_thread(functools.partial(call, -n))) for n in range(1, 20)]
                await asyncio.sleep(0)
                for task in queued[::2]:
                    task.cancel()
                release.set()
                queued[1].cancel()
                await asyncio.gather(*running, *queued, return_exceptions=True)
                assert -1 not in started

        asyncio.run(main())

    def test_a_queue_in_a_loop_that_has_gone_holds_nobody_up(self) -> None:
        release = threading.Event()

        def held() -> None:
            assert release.wait(30)

        async def abandon_the_queue() -> None:
            for _ in range(5):
                _left.append(asyncio.ensure_future(run_in_thread(held)))
            await asyncio.sleep(0)

        async def main() -> None:
            running = [asyncio.create_task(run_in_thread(held)) for _ in range(MAX_RUNNING)]
            while running_count() < MAX_RUNNING:
                await asyncio.sleep(0)
            other = threading.Thread(target=lambda: asyncio.run(abandon_the_queue()))
            other.start()
            other.join(30)
            release.set()
            await asyncio.gather(*running)
            assert await asyncio.wait_for(run_in_thread(lambda: 1), 30) == 1

        _left: list[asyncio.Future[None]] = []
        asyncio.run(main())

    def test_beyond_so_many_left_behind_no_further_call_is_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "MAX_ABANDONED", 2)
        blocked = [Blocked(), Blocked()]

        async def main() -> None:
            tasks = [asyncio.create_task(run_in_thread(call)) for call in blocked]
            await until_started(*blocked)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with pytest.raises(ToolError, match="2 earlier calls never returned"):
                await run_in_thread(lambda: 1)
            for call in blocked:
                call.finish()
            assert await run_in_thread(lambda: 1) == 1

        asyncio.run(main())
