"""Run every fault of the matrix and write what came of it to docs/faults.md.

    python -m tests.faults.matrix           # all rows, on a virtual clock: some seconds
    python -m tests.faults.matrix --real    # the rows marked † again, on real time, the server in a process of its own

Both exit with 1 if a run hung, lied, repeated itself or left something behind, and say which. `--real` writes nothing: it
compares what the user saw, the requests and the executions with those of the virtual clock, and prints real times.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from tests.faults import net_rows, run_rows, wire_rows
from tests.faults.cuts import TURN, Cuts, cut_everywhere, outcome
from tests.faults.row import Row, Seen, Surface, play, seen
from tests.harness import ByteServer
from treadle import Limits, Timeouts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
SECTIONS: dict[str, list[Row]] = {**wire_rows.SECTIONS, **net_rows.SECTIONS, **run_rows.SECTIONS}
SURFACES: tuple[Surface, ...] = get_args(Surface)
REAL_LIMITS = Limits(
    deadline_s=20, timeouts=Timeouts(connect_s=2, first_token_s=2, first_token_ms_per_prompt_token=0, silence_s=2)
)

INTRODUCTION = """\
# Faults, and what a user sees of them

Written by `python -m tests.faults.matrix`; do not edit. Each row is a fault that a byte-level server on 127.0.0.1 plays once, on
a virtual clock, after which the server answers “Fine” if it is asked again (rows that say *always* or *for ever* have no such
end). The agent has its default limits and retries, two tools, and is used twice: with `run`, and with `stream`, whose default
after text was shown is to fail with that text (`on_interrupted="fail"`).

A cell gives the stop reason or the error's class, and the text in the result. Where two numbers differ they are those of `run` and
`stream`. Loop time is virtual; waits between retries, random as a rule, are half of the longest.

In every row: the run ends within its bounds, with one ending; success needs a reason to stop from the server, and its text is what
the server sent; no call ran twice, nor from a turn that was cut; the history is valid; the journal folds to the state; and no task
or socket is left. `tests/faults/test_matrix.py` checks that, and that this page is what the command writes.

Rows marked † run again on real time with the server in a process of its own: `python -m tests.faults.matrix --real`.
"""


def both(run: Any, stream: Any) -> str:
    """One cell of two numbers."""
    return f"{run}" if run == stream else f"{run} / {stream}"


def time_of(took_s: float) -> str:
    """Loop time, rounded."""
    return f"{took_s:,.0f} s" if took_s >= 10 else f"{took_s:.1f} s"


def line(row: Row, run: Seen, stream: Seen) -> str:
    """A row of the table."""
    cells = [
        row.fault + (" †" if row.real else ""),
        outcome(run),
        outcome(stream),
        both(run.requests, stream.requests),
        both(run.ran, stream.ran),
        both(time_of(run.took_s), time_of(stream.took_s)),
    ]
    return f"| {' | '.join(cells)} |"


def table(rows: Iterable[Row], problems: list[str]) -> Iterator[str]:
    """The lines of a section."""
    yield "| fault | with `run` | with `stream` | requests | tools run | loop time |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        found = {surface: attempted(row, surface) for surface in SURFACES}
        problems += [f"{row.fault}, {surface}: {problem}" for surface in SURFACES for problem in found[surface].problems]
        yield line(row, found["run"], found["stream"])


@functools.cache
def attempted(row: Row, surface: Surface) -> Seen:
    """What came of the row; also if the run left something behind or never ended."""
    try:
        return seen(row, surface)
    except AssertionError as error:
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        return Seen(type(error).__name__, "", 0, 0, 0.0, (said,))


def cut_lines(problems: list[str]) -> Iterator[str]:
    """The section on a stream cut after each of its bytes."""
    surfaces: dict[Surface, str] = {"run": "reset", "stream": "closed"}
    yield f"A captured turn of llama.cpp with two calls ({len(TURN):,} bytes and a head), cut after k bytes for every k from 0 to all of it."
    yield "With `run` the connection is reset there, with `stream` it is closed."
    yield ""
    yield "| | what the user saw | requests | tools run | cuts |"
    yield "|---|---|---|---|---|"
    for surface, end in surfaces.items():
        cuts: Cuts = cut_everywhere(end, surface)
        problems += cuts.problems
        for (said, requests, ran), times in sorted(cuts.outcomes.items()):
            yield f"| `{surface}`, {end} | {said} | {requests} | {ran} | {times:,} |"


def page() -> tuple[str, list[str]]:
    """The page, and every promise that was broken while it was written."""
    problems: list[str] = []
    lines = [INTRODUCTION]
    for name, rows in SECTIONS.items():
        lines += [f"## {name}", "", *table(rows, problems), ""]
    lines += ["## Cut after every byte", "", *cut_lines(problems)]
    return "\n".join(lines) + "\n", problems


@asynccontextmanager
async def elsewhere(row: Row) -> Any:
    """A server of this row in another process: its address, and a function that ends it and returns its requests' number."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.matrix", "--serve", row.fault, stdin=-1, stdout=-1, cwd=PAGE.parents[1]
    )
    assert server.stdin is not None
    assert server.stdout is not None
    url = json.loads(await server.stdout.readline())

    async def requests() -> int:
        out, _ = await server.communicate(b"\n")
        return int(json.loads(out))

    try:
        yield url, requests
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def serve(name: str) -> None:
    """The other process: print the address, wait for a line, print the number of requests."""
    row = next(row for row in real_rows() if row.fault == name)
    async with ByteServer(row.exchanges(), check=False) as server:
        print(json.dumps(server.url), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(len(server.posts))


def real_rows() -> list[Row]:
    return [row for rows in SECTIONS.values() for row in rows if row.real]


async def real(row: Row, surface: Surface) -> Seen:
    """The row on real time."""
    async with elsewhere(row) as (url, requests):
        found = await play(row, surface, url, REAL_LIMITS)
        return replace(found, requests=await requests())


def sample() -> list[str]:
    """Run the real sample, print it, and return what differs or is wrong."""
    problems: list[str] = []
    for row in real_rows():
        for surface in SURFACES:
            there, here = asyncio.run(real(row, surface)), seen(row, surface)
            print(f"{row.fault}, {surface}: {outcome(there)}, {there.requests} requests, {there.took_s:.2f} s", flush=True)
            problems += [f"{row.fault}, {surface}: {problem}" for problem in there.problems]
            if (there.ended, there.requests, there.ran) != (here.ended, here.requests, here.ran):
                problems.append(f"{row.fault}, {surface}: on the virtual clock {outcome(here)}, {here.requests} requests")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=__doc__)
    parser.add_argument("--real", action="store_true", help="run the sample on real time")
    parser.add_argument("--serve", metavar="FAULT", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        asyncio.run(serve(asked.serve))
        return 0
    if asked.real:
        problems = sample()
    else:
        text, problems = page()
        PAGE.write_text(text, encoding="utf-8")
        print(f"{sum(map(len, SECTIONS.values()))} rows and every cut: {PAGE.name} written")
    for problem in problems:
        print(f"BROKEN: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
