"""The one rule of which calls of a turn run together, proved without time: a test ends the running jobs in every order there is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import run_virtual, settled
from treadle.tools.turn import conflict, run_jobs
from treadle.values.ports import Job
from treadle.values.toolcalls import Concurrency

CLASSES = ("R", "Ra", "Rb", "X", "Xa", "Xb", "I")  # a class letter, then the group
NAMES: dict[str, Concurrency] = {"R": "read_only", "X": "exclusive", "I": "interactive"}
LARGE = 100

# The rule, written out a second time: which classes may run beside each one.
BESIDE = {
    "R": {"R", "Ra", "Rb", "Xa", "Xb"},
    "Ra": {"R", "Ra", "Rb", "Xb"},
    "Rb": {"R", "Ra", "Rb", "Xa"},
    "X": set[str](),
    "Xa": {"R", "Rb", "Xb"},
    "Xb": {"R", "Ra", "Xa"},
    "I": set[str](),
}


def together(a: str, b: str) -> bool:
    return b in BESIDE[a]


def job(kind: str, start: Callable[[], Awaitable[None]]) -> Job:
    return Job(NAMES[kind[0]], kind[1:] or None, start)


class Turn:
    """Calls of a turn that end when the test says so, and the law held against them at every start and every pause.

    Args:
        instant: Calls that end where they start, without an await.
    """

    def __init__(self, kinds: Sequence[str], at_most: int, instant: Collection[int] = ()) -> None:
        self.kinds = kinds
        self.at_most = at_most
        self.instant = instant
        self.running: dict[int, asyncio.Future[None]] = {}
        self.ended: set[int] = set()
        self.began: list[int] = []
        self.cancelled: set[int] = set()
        self.known: set[int] = set()  # ended before what happens now began

    def jobs(self) -> list[Job]:
        return [job(kind, self._starter(index)) for index, kind in enumerate(self.kinds)]

    def _starter(self, index: int) -> Callable[[], Awaitable[None]]:
        async def start() -> None:
            self._check_start(index)
            self.began.append(index)
            if index in self.instant:
                self.ended.add(index)
                return
            self.running[index] = asyncio.get_running_loop().create_future()
            try:
                await self.running[index]
            except asyncio.CancelledError:
                self.cancelled.add(index)
                raise
            finally:
                del self.running[index]
                self.ended.add(index)

        return start

    def end(self, index: int, error: Exception | None = None) -> None:
        self.known.add(index)
        waiter = self.running[index]
        waiter.set_result(None) if error is None else waiter.set_exception(error)

    def waits_for(self, index: int, ended: Collection[int]) -> list[int]:
        """Earlier calls that it must not overtake."""
        return [i for i in range(index) if i not in ended and not together(self.kinds[i], self.kinds[index])]

    def _check_start(self, index: int) -> None:
        assert index not in self.began, "started twice"
        assert not self.waits_for(index, self.ended), "overtook a call it conflicts with"
        assert len(self.running) < self.at_most, "over the bound"
        # Among calls that could start, the bound is given out in call order.
        waiting = [i for i in range(index) if i not in self.began]
        assert not [i for i in waiting if not self.waits_for(i, self.known)], "served out of turn"

    def check_pause(self) -> None:
        """Nothing more can happen until a call ends."""
        self.known = set(self.ended)
        for a, b in itertools.combinations(self.running, 2):
            assert together(self.kinds[a], self.kinds[b]), "two conflicting calls at once"
        if any(self.kinds[i] in ("I", "X") for i in self.running):
            assert len(self.running) == 1
        if len(self.running) < self.at_most:
            waiting = [i for i in range(len(self.kinds)) if i not in self.began]
            assert not [i for i in waiting if not self.waits_for(i, self.ended)], "waited without a reason"

    def check_end(self) -> None:
        everyone = list(range(len(self.kinds)))
        assert sorted(self.ended) == sorted(self.began) == everyone
        assert not self.cancelled


Step = tuple[int, ...]  # calls that end between two pauses
Options = Callable[[Sequence[int]], list[Step]]


def singles(running: Sequence[int]) -> list[Step]:
    return [(i,) for i in running]


def any_set(running: Sequence[int]) -> list[Step]:
    return [chosen for size in range(1, len(running) + 1) for chosen in itertools.permutations(running, size)]


async def play(turn: Turn, choose: Callable[[int, list[int]], Step]) -> None:
    """Run one turn; at pause number n, `choose` says which of the running calls end."""
    task = asyncio.ensure_future(run_jobs(turn.jobs(), at_most=turn.at_most, grace_s=1.0))
    for pause in itertools.count():
        await settled()
        if task.done():
            break
        turn.check_pause()
        assert turn.running, "stuck"
        for index in choose(pause, sorted(turn.running)):
            turn.end(index)
    task.result()
    turn.check_end()


class Path:
    """Follows a prefix, then takes the first option and notes the others in `todo`."""

    def __init__(self, prefix: tuple[Step, ...], options: Options, todo: list[tuple[Step, ...]]) -> None:
        self.prefix = prefix
        self.options = options
        self.todo = todo
        self.taken: list[Step] = []

    def __call__(self, at: int, running: list[int]) -> Step:
        if at < len(self.prefix):
            step = self.prefix[at]
        else:
            step, *others = self.options(running)
            self.todo.extend((*self.taken, other) for other in others)
        self.taken.append(step)
        return step


async def explore(kinds: Sequence[str], at_most: int, options: Options, instant: Collection[int] = ()) -> int:
    """Play every schedule of one turn. How many there are."""
    count = 0
    todo: list[tuple[Step, ...]] = [()]
    while todo:
        await play(Turn(kinds, at_most, instant), Path(todo.pop(), options, todo))
        count += 1
    return count


async def explore_all(n: int, at_most: int, options: Options) -> int:
    """Play every schedule of every turn of `n` calls. How many schedules there are."""
    return sum([await explore(kinds, at_most, options) for kinds in itertools.product(CLASSES, repeat=n)])


# --- the rule --------------------------------------------------------------------------------------------------------


def test_the_rule_is_the_table_and_looks_the_same_from_both_sides() -> None:
    async def start() -> None: ...

    for a, b in itertools.product(CLASSES, repeat=2):
        assert conflict(job(a, start), job(b, start)) is not together(a, b), (a, b)
        assert together(a, b) is together(b, a), (a, b)


def test_a_group_is_a_name_and_an_empty_one_is_a_group_too() -> None:
    async def start() -> None: ...

    empty, named = Job("exclusive", "", start), Job("exclusive", "a", start)
    assert not conflict(empty, named)
    assert conflict(empty, empty)
    assert not conflict(empty, Job("read_only", None, start))
    assert conflict(Job("interactive", "a", start), Job("read_only", "b", start)), "a group makes no person faster"


@pytest.mark.parametrize(
    ("n", "at_most", "schedules"),
    [
        (1, 1, 7), (1, 2, 7), (1, 3, 7), (1, LARGE, 7),
        (2, 1, 49), (2, 2, 68), (2, 3, 68), (2, LARGE, 68),
        (3, 1, 343), (3, 2, 702), (3, 3, 816), (3, LARGE, 816),
        (4, 1, 2401), (4, 2, 7380), (4, 3, 10638), (4, LARGE, 11580),
    ],
)  # fmt: skip
def test_every_turn_of_up_to_four_calls_in_every_order_of_ending(n: int, at_most: int, schedules: int) -> None:
    # The number is here so that a test that explores less is noticed.
    assert run_virtual(explore_all(n, at_most, singles)) == schedules


@pytest.mark.parametrize(("at_most", "schedules"), [(1, 343), (2, 1420), (3, 2218), (LARGE, 2218)])
def test_every_turn_of_three_calls_with_several_ending_at_once(at_most: int, schedules: int) -> None:
    assert run_virtual(explore_all(3, at_most, any_set)) == schedules


@given(st.lists(st.sampled_from(CLASSES), min_size=5, max_size=8), st.sampled_from([1, 2, 3, 4, 8, LARGE]), st.data())
def test_longer_turns(kinds: list[str], at_most: int, data: st.DataObject) -> None:
    instant = data.draw(st.sets(st.integers(0, len(kinds) - 1), max_size=3))

    def choose(_: int, running: list[int]) -> Step:
        return tuple(data.draw(st.lists(st.sampled_from(running), min_size=1, unique=True)))

    run_virtual(play(Turn(kinds, at_most, instant), choose))


@pytest.mark.parametrize("at_most", [1, 2, LARGE])
def test_calls_that_start_and_end_at_once(at_most: int) -> None:
    async def main() -> None:
        for kinds in itertools.product(CLASSES, repeat=3):
            for size in range(1, 4):
                for instant in itertools.combinations(range(3), size):
                    await explore(kinds, at_most, singles, instant)

    run_virtual(main())


def test_nothing_to_run() -> None:
    run_virtual(run_jobs([], at_most=1, grace_s=1.0))


def test_jobs_that_are_equal_are_not_the_same_job() -> None:
    ran: list[int] = []

    async def start() -> None:
        ran.append(1)
        await asyncio.sleep(0)

    for at_most in (1, 8):
        jobs = [Job("read_only", None, start), Job("read_only", None, start)]
        assert jobs[0] == jobs[1]
        run_virtual(run_jobs(jobs, at_most=at_most, grace_s=1.0))
    assert ran == [1, 1, 1, 1]


# --- endings that are none -------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


async def advanced(turn: Turn, pauses: int) -> asyncio.Task[None]:
    """The turn in its pause number `pauses`, the first running call ended in each one before."""
    task = asyncio.ensure_future(run_jobs(turn.jobs(), at_most=turn.at_most, grace_s=1.0))
    await settled()
    for _ in range(pauses):
        if turn.running:
            turn.end(min(turn.running))
        await settled()
    return task


@pytest.mark.parametrize("at_most", [1, 2, LARGE])
def test_a_job_that_raises_cancels_those_that_run_and_starts_no_more(at_most: int) -> None:
    async def main() -> None:
        for kinds in itertools.product(CLASSES, repeat=3):
            for pauses, place in itertools.product(range(3), repeat=2):
                turn = Turn(kinds, at_most)
                task = await advanced(turn, pauses)
                if place >= len(turn.running):
                    for i in sorted(turn.running):
                        turn.end(i)
                    task.cancel()
                    await asyncio.wait([task])
                    continue
                began, (failing, others) = list(turn.began), _parted(sorted(turn.running), place)
                turn.end(failing, Broken(failing))
                with pytest.raises(Broken, match=str(failing)):
                    await task
                assert turn.began == began
                assert turn.cancelled == set(others)
                assert not turn.running

    run_virtual(main())


def _parted(running: list[int], place: int) -> tuple[int, list[int]]:
    return running[place], running[:place] + running[place + 1 :]


@pytest.mark.parametrize("at_most", [1, 2, LARGE])
def test_cancelled_it_cancels_those_that_run_and_starts_no_more(at_most: int) -> None:
    async def main() -> None:
        for kinds in itertools.product(CLASSES, repeat=3):
            for pauses in range(3):
                turn = Turn(kinds, at_most)
                task = await advanced(turn, pauses)
                began, running = list(turn.began), set(turn.running)
                task.cancel("leave")
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert turn.began == began
                assert turn.cancelled == running
                assert not turn.running

    run_virtual(main())


@pytest.mark.parametrize("count", [1, 2])
def test_cancelled_before_it_began_it_starts_nothing(count: int) -> None:
    async def main() -> None:
        turn = Turn(["R"] * count, 8)
        task = asyncio.ensure_future(run_jobs(turn.jobs(), at_most=8, grace_s=1.0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert turn.began == []

    run_virtual(main())


def test_jobs_that_clean_up_are_waited_for_and_those_that_take_too_long_are_not() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: list[tuple[str, float]] = []

        async def run(name: str, cleaning_s: float) -> None:
            try:
                await loop.create_future()
            finally:
                await asyncio.sleep(cleaning_s)
                ended.append((name, loop.time()))

        async def fail() -> None:
            await asyncio.sleep(10)
            raise Broken

        jobs = [job("R", lambda: run("tidy", 0.3)), job("R", fail), job("R", lambda: run("slow", 5.0))]
        with pytest.raises(Broken):
            await run_jobs(jobs, at_most=8, grace_s=0.5)
        assert (loop.time(), ended) == (10.5, [("tidy", 10.3)])
        await asyncio.sleep(10)
        assert ended == [("tidy", 10.3), ("slow", 15.0)]

    run_virtual(main())


def test_of_two_errors_at_once_one_comes_out_and_the_other_is_not_reported_to_the_loop() -> None:
    """Two calls that meet the same full disk."""

    async def fail() -> None:
        await asyncio.sleep(1)
        raise Broken

    async def main() -> None:
        with pytest.raises(Broken):
            await run_jobs([job("R", fail), job("R", fail)], at_most=8, grace_s=1.0)

    run_virtual(main())


def test_cancelled_twice_it_waits_no_longer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def stubborn() -> None:
            with pytest.raises(asyncio.CancelledError):
                await loop.create_future()
            await asyncio.sleep(100)

        task = asyncio.ensure_future(run_jobs([job("R", stubborn), job("R", stubborn)], at_most=8, grace_s=50.0))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.time() == 2
        await asyncio.sleep(200)  # the jobs end by themselves

    run_virtual(main())
