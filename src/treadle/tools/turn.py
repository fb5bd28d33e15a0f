"""Which calls of a turn run together: one fair rule.

A job starts as soon as no earlier job that it conflicts with is unfinished, and fewer than the bound are running. What does not
conflict may overtake; nothing can be overtaken by what conflicts with it, so nobody starves.

| conflicts? | read-only | read-only in G | exclusive | exclusive in G | interactive |
|---|---|---|---|---|---|
| read-only | no | no | yes | no | yes |
| read-only in G | | no | yes | if in the same group | yes |
| exclusive | | | yes | yes | yes |
| exclusive in G | | | | if in the same group | yes |
| interactive | | | | | yes |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from treadle.values.ports import Job

__all__ = ["conflict", "run_jobs"]


def conflict(a: Job, b: Job) -> bool:
    """The two may not run at the same time."""
    if "interactive" in (a.concurrency, b.concurrency):
        return True
    if a.concurrency == b.concurrency == "read_only":
        return False
    if any(job.concurrency == "exclusive" and job.group is None for job in (a, b)):
        return True
    return a.group == b.group


async def run_jobs(jobs: Sequence[Job], *, at_most: int, grace_s: float) -> None:
    """Run the jobs of one turn, given in call order. Cancelled, or when one raises, it cancels those that run and gives them
    `grace_s` to end."""
    if len(jobs) == 1:
        await jobs[0].start()
        return
    unfinished = list(jobs)
    running: dict[asyncio.Future[None], Job] = {}
    started: set[int] = set()
    try:
        while unfinished:
            for index, job in enumerate(unfinished):
                if len(running) >= at_most:
                    break
                if id(job) not in started and not any(conflict(earlier, job) for earlier in unfinished[:index]):
                    started.add(id(job))
                    running[asyncio.ensure_future(job.start())] = job
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                finished = running.pop(task)
                unfinished = [job for job in unfinished if job is not finished]
                task.result()
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_forget)
        if running:
            await asyncio.wait(running, timeout=grace_s)


def _forget(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()  # the error that cancelled it is the one to tell
