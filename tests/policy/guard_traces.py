"""Labelled traces of runs, honest and stuck, and what the guard makes of each.

`python -m tests.policy.guard_traces` writes docs/guard.md from them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treadle.policy import guard
from treadle.values.events import StopReason
from treadle.values.limits import GuardLimits
from treadle.values.messages import ToolCall, ToolMessage
from treadle.values.state import Progress

DOC = Path(__file__).parents[2] / "docs" / "guard.md"


@dataclass(frozen=True)
class Step:
    """A call and what its tool would answer.

    Attributes:
        changes: The tool is not read-only, so a success may have changed something.
        ran: The arguments passed and the tool exists.
    """

    tool: str
    arguments: str
    result: str
    fails: bool = False
    changes: bool = False
    ran: bool = True


Turn = list[Step]


@dataclass(frozen=True)
class Outcome:
    """Calls count from 1. A call that nothing ran for, because the guard refused it, is in `refused`."""

    told: tuple[int, ...]
    refused: tuple[int, ...]
    stopped: StopReason | None
    calls: int


@dataclass(frozen=True)
class Trace:
    """A run's calls, turn by turn.

    Attributes:
        kind: `honest` must never be refused or stopped; `stuck` must be stopped; `left` is stuck in a way that only the
            bounds on turns and tokens end; `price` may be honest, and is refused all the same.
        expected: For `honest`: calls that may be told. For `price`: calls that are refused. For `stuck`: the first call told, the first refused (None if
            there is none), the call after which the run is stopped, and its reason.
    """

    kind: Literal["honest", "stuck", "left", "price"]
    name: str
    turns: list[Turn]
    expected: Any = ()


def look(tool: str, result: str, **arguments: Any) -> Step:
    """A call of a read-only tool."""
    return Step(tool, json.dumps(arguments), result)


def do(tool: str, result: str, **arguments: Any) -> Step:
    """A call of a tool that may change something."""
    return Step(tool, json.dumps(arguments), result, changes=True)


def fail(tool: str, said: str, *, changes: bool = False, **arguments: Any) -> Step:
    """A call that fails."""
    return Step(tool, json.dumps(arguments), said, fails=True, changes=changes)


def nothing_ran(tool: str, said: str, arguments: str) -> Step:
    """A call of an unknown tool, or with arguments that fail a gate."""
    return Step(tool, arguments, said, fails=True, ran=False)


def alone(*steps: Step) -> list[Turn]:
    """One call a turn."""
    return [[step] for step in steps]


def play(trace: Trace, limits: GuardLimits = GuardLimits()) -> Outcome:
    """What the guard does, if the model goes on as the trace says whatever it is told.

    As the loop does it: first all calls of a turn are looked at, then those that may run do.
    """
    progress = Progress()
    told: list[int] = []
    refused: list[int] = []
    number = 0
    for turn, steps in enumerate(trace.turns, 1):
        running: list[tuple[int, Step, ToolCall]] = []
        for step in steps:
            number += 1
            call = ToolCall(f"c{number}", step.tool, step.arguments)
            said = guard.refusal(progress, call, limits, turn=turn)
            if said is not None:
                refused.append(number)
                result = ToolMessage(call.id, call.name, said[1], is_error=True)
                progress = guard.after(progress, call, result, turn=turn, changes=False, refused=said[0])
            else:
                running.append((number, step, call))
        running.sort(key=lambda item: item[1].ran)  # where nothing can run, the result is there at once
        for place, step, call in running:
            result = ToolMessage(call.id, call.name, step.result, is_error=step.fails)
            result = guard.note(progress, call, result, limits, turn=turn)
            if result.note:
                told.append(place)
            progress = guard.after(progress, call, result, turn=turn, changes=step.changes and step.ran, refused=None)
        if reason := guard.stopped(progress, limits):
            return Outcome(tuple(told), tuple(refused), reason, number)
    return Outcome(tuple(told), tuple(refused), None, number)


def _edit(n: int) -> Step:
    return do("edit", "ok", path="a.py", change=n)


HONEST = [
    Trace(
        "honest",
        "polling a value that changes",
        alone(*[look("job_status", f"{n * 10} %", job=7) for n in range(11)]),
    ),
    Trace(
        "honest",
        "polling a value that changes slowly",
        alone(
            *[
                look("job_status", said, job=7)
                for said in ("queued", "queued", "running", "running", "packing", "packing", "done")
            ]
        ),
    ),
    Trace(
        "honest",
        "polling: three times the same, then a wait, then done",
        alone(
            *[look("job_status", said, job=7) for said in ("running", "running", "running")],
            do("sleep", "(done)", seconds=30),
            look("job_status", "done", job=7),
        ),
        expected=(3,),
    ),
    Trace(
        "honest",
        "waiting with a tool, then polling, ten times over",
        [
            [step]
            for n in range(10)
            for step in (do("sleep", "(done, no output)", seconds=30), look("job_status", f"{n * 10} %", job=7))
        ],
    ),
    Trace(
        "honest",
        "scrolling a page and looking at it, ten times over",
        [[step] for n in range(10) for step in (do("press_key", "ok", key="PageDown"), look("read_screen", f"screen {n}"))],
    ),
    Trace(
        "honest",
        "edit, test, edit: the tests fail in the same way eight times",
        [[step] for n in range(8) for step in (_edit(n), do("run_tests", "1 failed: test_a"))],
    ),
    Trace(
        "honest",
        "edit, test, edit, with tests that are read-only",
        [[step] for n in range(8) for step in (_edit(n), look("run_tests", "1 failed: test_a"))],
    ),
    Trace(
        "honest",
        "edit, test, edit, with a test tool that reports failing tests as an error",
        [[step] for n in range(8) for step in (_edit(n), fail("run_tests", "exit code 1: 1 failed: test_a", changes=True))],
    ),
    Trace(
        "honest",
        "paging through a file by offset",
        alone(*[look("read_file", f"lines {n}", path="log.txt", offset=n * 100) for n in range(30)]),
    ),
    Trace(
        "honest",
        "paging with a cursor that the tool keeps",
        alone(*[do("next_page", f"page {n}") for n in range(12)]),
    ),
    Trace(
        "honest",
        "paging through a file whose pages look the same",
        alone(*[look("read_file", "0 0 0 0", path="zeros.txt", offset=n) for n in range(12)]),
    ),
    Trace(
        "honest",
        "a flaky tool that works at the third try, three times over",
        alone(
            *[
                step
                for n in range(3)
                for step in (fail("fetch", "timeout", n=n), fail("fetch", "timeout", n=n), look("fetch", "page", n=n))
            ]
        ),
    ),
    Trace(
        "honest",
        "the same search after every edit",
        [[step] for n in range(8) for step in (look("search", "a.py:3", text="old"), _edit(n))],
    ),
    Trace(
        "honest",
        "eight copies of one call in one turn",
        [[look("weather", "rain", city="Oslo")] * 8, [look("weather", "sun", city="Lima")]],
    ),
    Trace(
        "honest",
        "two copies of one call in two turns",
        [[look("weather", "rain", city="Oslo")] * 2] * 2,
    ),
    Trace(
        "honest",
        "alternating between two tools whose results change",
        [[step] for n in range(10) for step in (look("cpu", f"{n} %"), look("memory", f"{n * 3} MB"))],
    ),
    Trace(
        "honest",
        "reading a file again after each write",
        [
            [step]
            for n in range(8)
            for step in (do("write_file", "written", path="a.txt", text=str(n)), look("read_file", "text", path="a.txt"))
        ],
    ),
    Trace(
        "honest",
        "ten different searches that find nothing",
        alone(*[look("search", "no matches", text=f"name_{n}") for n in range(10)]),
    ),
    Trace(
        "honest",
        "writing ten files, each with the same answer",
        alone(*[do("write_file", "written", path=f"{n}.txt", text="x") for n in range(10)]),
    ),
    Trace(
        "honest",
        "a clean status after each commit",
        [[step] for n in range(8) for step in (do("commit", "ok", message=f"part {n}"), look("status", "clean"))],
    ),
    Trace(
        "honest",
        "appending one line twice",
        alone(do("append", "ok", line="---"), do("append", "ok", line="---"), do("append", "ok", line="end")),
    ),
    Trace(
        "honest",
        "arguments that are wrong twice, then right",
        alone(
            nothing_ran("move", "invalid arguments: `to` is missing", "{}"),
            nothing_ran("move", "invalid arguments: `to`: expected `str`", '{"to": 3}'),
            do("move", "moved", to="a"),
        ),
    ),
    Trace(
        "honest",
        "a name that does not exist, then the right one",
        alone(nothing_ran("grep", "there is no tool named 'grep'. Tools: search.", "{}"), look("search", "a.py:3", text="x")),
    ),
    Trace(
        "honest",
        "a tool that fails now and then in a long run",
        [[step] for n in range(10) for step in (fail("fetch", "HTTP 404", n=n), look("fetch", "page", n=-n))],
    ),
    Trace(
        "honest",
        "six paths tried in one turn, none of which exists; then the right one",
        [
            [fail("read_file", f"no such file: {n}", path=f"{n}") for n in range(6)],
            [look("list", "src")],
            [look("read_file", "text", path="src/0")],
        ],
        expected=(3, 4, 5, 6),
    ),
    Trace(
        "honest",
        "three paths tried in one turn, none of which exists; then the right one",
        [[fail("read_file", f"no such file: {n}", path=f"{n}") for n in range(3)], [look("read_file", "text", path="src/0")]],
        expected=(3,),
    ),
    Trace(
        "honest",
        "a fan-out of twenty reads of which two fail",
        [
            [
                fail("read_file", "no such file", path=str(n)) if n in (4, 11) else look("read_file", f"text {n}", path=str(n))
                for n in range(20)
            ],
            [look("read_file", "text", path="4.txt"), look("read_file", "text", path="11.txt")],
        ],
    ),
    Trace(
        "honest",
        "150 different reads, then the first one again",
        alone(*[look("read_file", f"text {n}", path=str(n)) for n in range(150)], look("read_file", "text 0", path="0")),
    ),
    Trace(
        "honest",
        "one read at the start, the middle and the end of a run that writes",
        alone(
            look("read_file", "plan", path="plan.md"),
            _edit(1),
            look("read_file", "plan", path="plan.md"),
            _edit(2),
            look("read_file", "plan", path="plan.md"),
            _edit(3),
            look("read_file", "plan", path="plan.md"),
        ),
    ),
]

_A = look("read_file", "text", path="a.txt")
_B = look("list", "a.txt", path=".")
_C = look("search", "a.txt:1", text="x")
_ROUNDS = 12

STUCK = [
    Trace("stuck", "the same call with the same result", alone(*[_A] * _ROUNDS), (3, 4, 6, "loop_detected")),
    Trace(
        "stuck",
        "the same write with the same result",
        alone(*[do("write_file", "written", path="a.txt", text="x")] * _ROUNDS),
        (3, 4, 6, "loop_detected"),
    ),
    Trace(
        "stuck",
        "a poll whose value never changes",
        alone(*[look("job_status", "queued", job=7)] * _ROUNDS),
        (3, 4, 6, "loop_detected"),
    ),
    Trace("stuck", "two read-only calls in turns, A-B-A-B", alone(*[_A, _B] * _ROUNDS), (5, 7, 11, "loop_detected")),
    Trace("stuck", "two read-only calls together, turn after turn", [[_A, _B]] * _ROUNDS, (5, 7, 12, "loop_detected")),
    Trace("stuck", "three read-only calls in turns, A-B-C", alone(*[_A, _B, _C] * _ROUNDS), (7, 10, 15, "tool_failures")),
    Trace(
        "stuck",
        "the same arguments with their keys in another order",
        alone(
            *[
                Step("search", text, "none")
                for text in ('{"a": 1, "b": [2, {"c": 3, "d": 4}]}', '{"b": [2, {"d": 4, "c": 3}], "a": 1}')
            ]
            * _ROUNDS
        ),
        (3, 4, 6, "loop_detected"),
    ),
    Trace(
        "stuck",
        "the same arguments with other blanks and escapes",
        alone(*[Step("search", text, "none") for text in ('{"a":"é"}', '{ "a" : "\\u00e9" }', '\n{"a":\t"é"}')] * _ROUNDS),
        (3, 4, 6, "loop_detected"),
    ),
    Trace(
        "stuck",
        "one call twice in every turn",
        [[_A, _A]] * _ROUNDS,
        (5, 7, 12, "loop_detected"),
    ),
    Trace(
        "stuck",
        "the same search between different reads",
        alone(*[step for n in range(_ROUNDS) for step in (_C, look("read_file", "text", path=str(n)))]),
        (5, 7, 11, "loop_detected"),
    ),
    Trace(
        "stuck",
        "the same call that fails in the same way",
        alone(*[fail("fetch", "HTTP 404", url="x")] * _ROUNDS),
        (3, 4, 6, "loop_detected"),
    ),
    Trace(
        "stuck",
        "the same call that fails in different ways",
        alone(*[fail("fetch", f"error at {n}", url="x") for n in range(_ROUNDS)]),
        (3, 4, 6, "tool_failures"),
    ),
    Trace(
        "stuck",
        "different calls of one tool, all of which fail",
        alone(*[fail("fetch", "HTTP 404", url=str(n)) for n in range(_ROUNDS)]),
        (3, 4, 6, "tool_failures"),
    ),
    Trace(
        "stuck",
        "a tool that does not exist",
        alone(*[nothing_ran("grep", "there is no tool named 'grep'", json.dumps({"n": n})) for n in range(_ROUNDS)]),
        (3, 4, 6, "tool_failures"),
    ),
    Trace(
        "stuck",
        "arguments that are never valid",
        alone(*[nothing_ran("move", f"invalid arguments at {n}", '{"to": ' * n) for n in range(_ROUNDS)]),
        (3, 4, 6, "tool_failures"),
    ),
    Trace(
        "stuck",
        "a write that fails between two equal reads",
        [[step] for n in range(_ROUNDS) for step in (_A, fail("edit", f"no match for {n}", changes=True, n=n))],
        (5, 7, 11, "loop_detected"),
    ),
    Trace(
        "stuck",
        "two tools in turns, both of which fail",
        alone(*[step for n in range(_ROUNDS) for step in (fail("fetch", "HTTP 404", n=n), fail("search", "no index", n=n))]),
        (5, None, 6, "tool_failures"),
    ),
    Trace(
        "stuck",
        "six different tools, one after the other, all of which fail",
        alone(*[fail(f"tool_{n}", "no network") for n in range(_ROUNDS)]),
        (None, None, 6, "tool_failures"),
    ),
]

LEFT = [
    Trace(
        "left",
        "two changing tools in turns, each with the same result",
        alone(*[do("turn_on", "ok"), do("turn_off", "ok")] * 20),
    ),
    Trace("left", "a loop of more than 64 different calls", alone(*[look("read_file", "x", path=str(n)) for n in range(70)] * 4)),
    Trace(
        "left",
        "a result that differs each time by a time stamp",
        alone(*[look("status", f"queued at 12:00:{n:02d}") for n in range(40)]),
    ),
]

PRICE = [
    Trace(
        "price",
        "a poll that would have been done at its fourth look, with nothing between the looks",
        alone(*[look("job_status", said, job=7) for said in ("running", "running", "running", "done")]),
        expected=(4,),
    ),
    Trace(
        "price",
        "undoing four steps, each with the same answer",
        alone(*[do("undo", "ok")] * 4),
        expected=(4,),
    ),
]

TRACES = [*HONEST, *STUCK, *PRICE, *LEFT]


def is_false_positive(trace: Trace, outcome: Outcome) -> bool:
    """An honest run that was refused or stopped, or told something where nothing is to be said."""
    return bool(outcome.refused or outcome.stopped or set(outcome.told) - set(trace.expected))


def false_positives() -> list[str]:
    return [trace.name for trace in HONEST if is_false_positive(trace, play(trace))]


_RULES = """# The guard: runs that get nowhere

A run whose tools keep failing, or that makes the same call over and over, is told so, then refused, then stopped by name. The rules
are in `src/treadle/policy/guard.py`; the numbers are `Limits(guard=GuardLimits(...))`.

**Repeats.** A call repeats when the same tool is called with the same arguments (blanks and the order of keys do not matter) and gives
the same result, while nothing changed in between. Something changed when another call that is not read-only succeeded. Copies of a
call in one turn count once. The third time the model reads `This call has now given the same result 3 times`; the fourth and
fifth are not run, and the result says so; the sixth ends the run: `loop_detected`.

**Failures.** A call fails when its tool raises or times out, does not exist, or its arguments are not valid. The third failure in a row of one
tool says so in its result; the next call of that tool is refused, and the one after that may try again. Six failures in a row of any
tools, refusals included, end the run: `tool_failures`. If several tools fail in turns, that bound can come before anything was refused.

**Text.** A streamed text or reasoning whose last 6,000 characters are one piece of at most 200 characters, repeated exactly, is cut:
`loop_detected`, with what had arrived. A table or list of that length whose rows are all the same is cut as well.

What the guard does not see, the bounds on turns, tokens and time end: see the last table.
"""


def document() -> str:
    wrong = false_positives()
    lines = [
        _RULES,
        "## What it does with labelled traces",
        "",
        f"Each row is a test ({len(TRACES)} traces). Calls count from 1, and the model is taken to ignore what it is told. "
        "Written by `python -m tests.policy.guard_traces`.",
        "",
        f"**Honest: {len(HONEST)} traces, {len(wrong)} false positives**" + (f" ({'; '.join(wrong)})." if wrong else "."),
        "",
        *_table(HONEST),
        "",
        f"**Stuck: {len(STUCK)} traces.**",
        "",
        *_table(STUCK),
        "",
        f"**The price: {len(PRICE)} traces.** What may have been honest and looks the same as being stuck. A tool that waits inside, or "
        "whose answer says what it did, is never taken for it.",
        "",
        *_table(PRICE),
        "",
        f"**Left to the other bounds: {len(LEFT)} traces.** Changing tools may have had an effect each time, and a result that differs "
        "is news.",
        "",
        *_table(LEFT),
        "",
    ]
    return "\n".join(lines)


def _table(traces: list[Trace]) -> list[str]:
    rows = ["| the run | calls | told at | refused at | ends |", "|---|---|---|---|---|"]
    for trace in traces:
        outcome = play(trace)
        ending = f"`{outcome.stopped}` after call {outcome.calls}" if outcome.stopped else "goes on"
        rows.append(f"| {trace.name} | {outcome.calls} | {_listed(outcome.told)} | {_listed(outcome.refused)} | {ending} |")
    return rows


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "–"


if __name__ == "__main__":
    DOC.write_text(document(), encoding="utf-8")
    print(f"{DOC.name}: {len(TRACES)} traces, {len(false_positives())} false positives among {len(HONEST)} honest ones")
