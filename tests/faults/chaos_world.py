"""The world of a chaotic run, drawn from one seed: tools and journal on one side, a server with faults on the other."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.harness import (
    Close,
    Exchange,
    Hang,
    Request,
    Reset,
    Send,
    Step,
    Wait,
    check_chat_history,
    check_prefix,
    cut,
    data_line,
    json_reply,
    reply,
    size,
    split,
    sse,
    text_chunk,
)
from treadle import (
    Compacted,
    Ended,
    Fact,
    Failed,
    PendingCall,
    Pruned,
    Replied,
    ToolContext,
    ToolError,
    approve,
    deny,
    edit,
    tool,
)

NAMES = (
    *("quick", "slow", "write", "fail", "hang", "stubborn", "boom", "leave", "tidy", "thread", "nothing"),
    *("shared", "locked", "gated", "flaky", "telling", "person"),
)
ORDINARY = ("quick", "slow", "write", "thread", "shared", "locked", "gated", "telling")
FAULTS = ("cut", "reset", "stall", "pings", "status", "garbage", "error", "slow", "length", "because", "html", "no reason")
BREAKS = ("cut", "reset", "stall", "pings", "no reason")  # after which a reply may be gone on with


class Boom(BaseException):
    """What no tool should raise."""


class World:
    """Tools that count what they did, and a journal that takes its time.

    Attributes:
        executed: How often each call ran, by the number it was given; of the repeatable tool only its first time.
        denied: Numbers of calls that may not have run.
        overlaps: Calls that ran next to one they conflict with.
        person_s: How long a person took, which no deadline counts.
        ended_at: Loop time when the journal got the ending.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.executed: Counter[int] = Counter()
        self.denied: set[int] = set()
        self.overlaps: list[str] = []
        self.person_s = 0.0
        self._locked = 0
        self._tried: set[int] = set()
        self.facts: list[Fact] = []
        self.ended_at: float | None = None
        self.released = asyncio.Event()
        self.delays = rng.choice([(None,), (0.0,), (None, 0.0, 0.01, 0.05), (0.0, 0.2)])

    async def append(self, run_id: str, fact: Fact) -> None:
        delay = self.rng.choice(self.delays)
        if delay is not None:
            await asyncio.sleep(delay)
        self.facts.append(fact)
        if isinstance(fact, Ended | Failed):
            self.ended_at = asyncio.get_running_loop().time()

    def decide(self, pending: PendingCall) -> Any:
        """An approval policy: what it says of a call depends on the call alone."""
        arguments = json.loads(pending.arguments)
        match arguments.get("n") if pending.name == "gated" else None:
            case 0:
                self.denied.add(arguments["serial"])
                return deny("not today")
            case 1:
                return edit({**arguments, "n": 2})
            case _:
                return approve

    def tools(self) -> list[Any]:
        executed, released = self.executed, self.released

        @tool(concurrency="read_only", group="lock")
        async def shared(serial: int, n: int) -> str:
            """Read what the lock guards."""
            executed[serial] += 1
            for _ in range(n):
                if self._locked:
                    self.overlaps.append(f"{serial} read beside a writer")
                await asyncio.sleep(0.1)
            return "ok"

        @tool(group="lock")
        async def locked(serial: int, n: int) -> str:
            """Write what the lock guards."""
            executed[serial] += 1
            self._locked += 1
            try:
                if self._locked > 1:
                    self.overlaps.append(f"{serial} wrote beside a writer")
                await asyncio.sleep(n / 5)
            finally:
                self._locked -= 1
            return "ok"

        @tool(preview=lambda serial, n: f"{serial} {n}")
        async def gated(serial: int, n: int) -> str:
            """Do what was allowed."""
            executed[serial] += 1
            return f"did {n}"

        @tool(repeatable=True, concurrency="read_only")
        async def flaky(serial: int, n: int) -> str:
            """Fail the first time."""
            if serial not in self._tried:
                self._tried.add(serial)
                executed[serial] += 1
                raise ToolError("no route", kind="network")
            return "ok"

        @tool(concurrency="read_only")
        async def telling(serial: int, n: int, ctx: ToolContext) -> str:
            """Say how far it is."""
            executed[serial] += 1
            for step in range(n * 20):
                ctx.progress(f"step {step}", step / (n * 20))
                await asyncio.sleep(0.02)
            return "told"

        @tool(concurrency="interactive")
        async def person(serial: int, n: int) -> str:
            """Wait for somebody."""
            executed[serial] += 1
            began = asyncio.get_running_loop().time()
            try:
                await asyncio.sleep(n * 5)
            finally:
                self.person_s += asyncio.get_running_loop().time() - began
            return "yes"

        @tool(concurrency="read_only")
        async def quick(serial: int, n: int) -> str:
            """Answer at once."""
            executed[serial] += 1
            return "ok"

        @tool(concurrency="read_only")
        async def slow(serial: int, n: int) -> str:
            """Take a while."""
            executed[serial] += 1
            await asyncio.sleep(n / 2)
            return f"after {n / 2}"

        @tool
        async def write(serial: int, n: int) -> str:
            """Change something."""
            executed[serial] += 1
            await asyncio.sleep(n / 10)
            return f"wrote {n}"

        @tool
        async def fail(serial: int, n: int) -> str:
            """Fail."""
            executed[serial] += 1
            await asyncio.sleep(n / 10)
            raise (ToolError("no"), KeyError("x"), TimeoutError(), asyncio.CancelledError())[n]

        @tool(concurrency="read_only")
        async def hang(serial: int, n: int) -> None:
            """Never return."""
            executed[serial] += 1
            await released.wait()

        @tool(concurrency="read_only")
        async def stubborn(serial: int, n: int) -> None:
            """Never return, whoever asks."""
            executed[serial] += 1
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    pass

        @tool(concurrency="read_only")
        async def boom(serial: int, n: int) -> None:
            """Raise what is no Exception."""
            executed[serial] += 1
            await asyncio.sleep(n / 10)
            raise Boom

        @tool
        async def leave(serial: int, n: int) -> None:
            """Try to end the program."""
            executed[serial] += 1
            raise SystemExit(n)

        @tool(concurrency="read_only")
        async def tidy(serial: int, n: int) -> str:
            """Take a moment to clean up when cancelled."""
            executed[serial] += 1
            try:
                await asyncio.sleep(n)
            finally:
                await asyncio.sleep(n / 10)
            return "tidy"

        @tool(concurrency="read_only")
        def thread(serial: int, n: int) -> str:
            """Run in a thread."""
            executed[serial] += 1
            if n == 3:
                raise Boom
            return "from a thread"

        usual = [quick, slow, write, fail, hang, stubborn, boom, leave, tidy, thread]
        return [*usual, shared, locked, gated, flaky, telling, person]


@dataclass(frozen=True)
class Turn:
    """What the model says in a turn, and the calls it makes."""

    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    thinking: str = ""


def conversation(rng: random.Random) -> list[Turn]:
    """Some turns with calls, each numbered, and one without."""
    serials, turns = itertools.count(), []
    names = ORDINARY if rng.random() < 0.4 else NAMES
    for number in range(rng.choice([0, 0, 1, 2, 3, 4])):
        calls = [(rng.choice(names), {"serial": next(serials), "n": rng.randrange(4)}) for _ in range(rng.randint(1, 4))]
        text = rng.choice(["", f"Turn {number}. " * rng.randint(1, 4)])
        turns.append(Turn(text, tuple(calls), rng.choice(["", "Hm. "])))
    return [*turns, Turn("Nothing more. " * rng.choice([1, 5, 20]), thinking=rng.choice(["", "So. "]))]


class Server:
    """Plays a conversation: each request is answered with the turn it asks for, or with a fault.

    Attributes:
        problems: Requests that a strict server would refuse.
        delivered: Numbers of the calls of turns that were sent whole, with a reason that lets them run.
        finished: Texts of the turns for which a reason to stop was sent.
    """

    def __init__(self, rng: random.Random, turns: list[Turn]) -> None:
        self.rng = rng
        self.turns = turns
        self.fault_rate = rng.choice([0.0, 0.2, 0.4, 0.6])
        self.problems: list[str] = []
        self.delivered: set[int] = set()
        self.finished: set[str] = set()
        self.messages: list[Any] = []
        self.facts: list[Fact] = []
        self.shortened = 0

    def answer(self, request: Request) -> Exchange:
        messages, partial = list(request.json["messages"]), ""
        if messages[-1]["role"] == "assistant":  # to be continued
            partial = messages.pop()["content"]
        try:
            check_chat_history(messages)
            shortened = sum(isinstance(fact, Pruned | Compacted) for fact in self.facts)
            if shortened == self.shortened:
                check_prefix(self.messages, messages)
            self.shortened = shortened
        except AssertionError as error:
            self.problems.append(str(error))
        self.messages = messages
        number = sum(isinstance(fact, Replied) for fact in self.facts)
        turn = self.turns[min(number, len(self.turns) - 1)]
        if not turn.text.startswith(partial):
            self.problems.append(f"asked to continue {partial!r}, and {turn.text!r} was sent")
        if self.rng.random() >= self.fault_rate:
            return self.whole(turn, partial)
        return self.faulty(turn, partial, self.rng.choice((*FAULTS, *BREAKS)))

    def whole(self, turn: Turn, partial: str, finish: str | None = None) -> list[Step]:
        thinking = "" if partial else turn.thinking
        text = turn.text[len(partial) :]
        frames: list[Any] = reply(thinking=thinking, usage=None)[:-1]
        frames += [data_line(text_chunk(text[i : i + 12])) for i in range(0, len(text), 12)]
        frames += reply(calls=turn.calls, finish=finish)[1:]
        at = next(i for i, frame in enumerate(frames) if b'"finish_reason":null' not in frame)
        frames.insert(at, self._mark(turn, runs=finish is None))
        pause = self.rng.choice([0.0, 0.0, 0.05, 1.0])
        steps = [step for frame in frames for step in (([Wait(pause)] if pause else []) + [frame])]
        return sse(*steps, done=self.rng.random() < 0.8)

    def _mark(self, turn: Turn, *, runs: bool) -> Callable[[Request], None]:
        def mark(_: Request) -> None:
            self.finished.add(turn.text)
            if runs:
                self.delivered.update(arguments["serial"] for _, arguments in turn.calls)

        return mark

    def faulty(self, turn: Turn, partial: str, fault: str) -> Exchange:
        rng, whole = self.rng, self.whole(turn, partial)
        after = rng.randint(0, size(whole))
        match fault:
            case "cut":
                return cut(whole, after, Close())
            case "reset":
                return cut(whole, after, Reset())
            case "stall":
                return cut(whole, after, Hang())
            case "pings":
                return cut(whole, after, _pings)
            case "status":
                headers = rng.choice([{}, {}, {"Retry-After": "2"}, {"Retry-After-Ms": "300"}, {"Retry-After": "90"}])
                return json_reply(
                    {"error": {"message": "no"}}, status=rng.choice([400, 404, 429, 429, 500, 503, 529]), headers=headers
                )
            case "html":
                return json_reply(b"<html>no</html>", status=rng.choice([200, 502]))
            case "garbage":
                data = rng.choice([b"data: {\xff}\n\n", b"data: [7]\n\n", b"hello\n", b"data: {\n\n"])
                data = rng.choice([data, b"%x\r\n%b\r\n" % (len(data), data), rng.randbytes(40)])
                return _inserted(rng, whole, Send(data))
            case "error":
                code = rng.choice([400, 429, 500, "503"])
                return _inserted(rng, whole, *sse({"error": {"message": "no", "code": code}}, done=False)[1:2])
            case "slow":
                steps = split(whole, rng.randint(1, 60))
                return [step for one in steps for step in ((one, Wait(0.1)) if rng.random() < 0.2 else (one,))]
            case "no reason":
                return [
                    step
                    for step in whole
                    if not (isinstance(step, Send) and b'"finish_reason":"' in step.data) and not callable(step)
                ]
            case _:
                return self.whole(turn, partial, finish=fault)


def _pings(_: Request) -> Iterator[Step]:
    while True:
        yield Send(b"8\r\n: ping\n\n\r\n")
        yield Wait(1)


def _inserted(rng: random.Random, exchange: list[Step], *steps: Step) -> list[Step]:
    at = rng.randint(1, len(exchange))
    return [*exchange[:at], *steps, *exchange[at:]]
