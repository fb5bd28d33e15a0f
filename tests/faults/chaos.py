"""Seeded random runs against everything at once: faults on the wire, odd tools, a slow journal, and readers who leave.

    python -m tests.faults.chaos --runs 2000             # a seed from the clock
    python -m tests.faults.chaos --runs 1 --seed 12345   # one run again, exactly

Each run has a conversation, a server that plays it with faults, tools, policies and a reader, all drawn from one seed, and is
checked against the laws when it is over. A violation prints its seed and the command that repeats it; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from typing import Any

from tests.faults.chaos_world import Server, World, conversation
from tests.faults.row import of_deltas, of_events, of_facts, of_grammar, shown
from tests.harness import ByteServer, run_virtual, settled
from treadle import (
    Agent,
    AssistantMessage,
    ContextPolicy,
    Ended,
    Event,
    Failed,
    HttpDriver,
    Limits,
    Message,
    RetryPolicy,
    Run,
    RunResult,
    Text,
    Timeouts,
    ToolCall,
    ToolMessage,
    TreadleError,
    UserMessage,
    local_summary,
    sliding_window,
)
from treadle.core.state import fold
from treadle.values.history import check_history
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import Dialect

TIMEOUTS = Timeouts(connect_s=2, first_token_s=6, first_token_ms_per_prompt_token=0, silence_s=5)
LEAVING = ("stays", "stays", "is slow", "breaks", "cancels", "is cancelled", "times out", "drops")
ALWAYS_WATCHED = ("is slow", "breaks", "cancels", "drops")
CLOSED_WITHIN_S = 0.1
GRACE_S = 1.0
JOURNAL_S = 0.5  # what the journal may add to it
LONGEST_S = 600.0  # without a deadline: every attempt that the budget allows, each as slow as the timeouts let it be


class Policy(RetryPolicy, frozen=True):
    """A policy whose random numbers come from the seed."""

    seed: int = 0

    def wait_s(self, *, attempt: int, retry_after_s: float | None, jitter: float) -> float | None:
        jitter = random.Random(f"{self.seed} {attempt}").random()
        return super().wait_s(attempt=attempt, retry_after_s=retry_after_s, jitter=jitter)


class Reader:
    """Uses an agent in one of the ways there are, and may leave.

    Attributes:
        left_at: Loop time when it left a run that had not ended; None if it stayed.
        over_at: Loop time when it had control again.
        result: None if it was never to be had.
    """

    def __init__(self, rng: random.Random, history: list[Message]) -> None:
        self.history = history
        self.how = rng.choice(LEAVING)
        self.watches = self.how in ALWAYS_WATCHED or rng.random() < 0.5
        self.at_event = rng.randrange(20)
        self.at_s = rng.choice([0.0, rng.uniform(0, 2), rng.uniform(0, 2), rng.uniform(0, 20)])
        self.on_interrupted: Any = rng.choice(["fail", "restart", "restart", "continue", "continue"])
        self.events: list[Event] = []
        self.result: RunResult | None = None
        self.left_at: float | None = None
        self.over_at = 0.0
        self.cancelling: list[asyncio.Future[None]] = []

    def __str__(self) -> str:
        return f"{'stream' if self.watches else 'run'}, {self.how}, on_interrupted={self.on_interrupted}"

    async def use(self, agent: Agent) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(self._watch(agent) if self.watches else self._run(agent))
        if self.how == "is cancelled":
            loop.call_later(self.at_s, self._cancel_task, task)
        try:
            async with asyncio.timeout(self.at_s if self.how == "times out" else None):
                await task
        except TimeoutError:
            self.left_at = self.at_s
        except asyncio.CancelledError:
            assert self.how == "is cancelled", "a cancellation that nobody asked for"
        self.over_at = loop.time()

    async def _run(self, agent: Agent) -> None:
        try:
            self.result = await agent.run("Hi", history=self.history, on_interrupted=self.on_interrupted)
        except TreadleError as error:
            self.result = error.result

    async def _watch(self, agent: Agent) -> None:
        run = agent.stream("Hi", history=self.history, on_interrupted=self.on_interrupted)
        if self.how == "drops":
            await self._read(run)
            return
        try:
            async with run:
                if self.how == "cancels":
                    asyncio.get_running_loop().call_later(self.at_s, self._cancel_run, run)
                await self._read(run)
        finally:
            self.result = run.result

    async def _read(self, run: Run) -> None:
        try:
            async for event in run:
                self.events.append(event)
                if self.how == "is slow":
                    await asyncio.sleep(0.3)
                if self.how in ("breaks", "drops") and len(self.events) > self.at_event:
                    self._leave()
                    return
        except TreadleError:
            pass  # the result has it

    def _leave(self) -> None:
        if self.left_at is None and not (self.events and isinstance(self.events[-1], Ended | Failed)):
            self.left_at = asyncio.get_running_loop().time()

    def _cancel_task(self, task: asyncio.Task[None]) -> None:
        if not task.done():
            self._leave()
            task.cancel()

    def _cancel_run(self, run: Run) -> None:
        self._leave()
        self.cancelling.append(asyncio.ensure_future(run.cancel()))


def limits(rng: random.Random) -> Limits:
    return Limits(
        max_turns=rng.choice([2, *[50] * 5]),
        output_tokens_per_turn=rng.choice([30, *[32_768] * 6]),
        reasoning_tokens_per_turn=rng.choice([0, *[32_768] * 5]),
        on_reasoning_limit=rng.choice(["stop", "answer"]),
        deadline_s=rng.choice([3.0, 30.0, *[3600.0] * 6]),
        parallel_tools=rng.choice([1, 2, 8]),
        tool_timeout_s=rng.choice([0.7, 3.0]),
        timeouts=TIMEOUTS,
    )


def too_long(rng: random.Random) -> tuple[list[Message], ContextPolicy]:
    """Every other time a conversation so far that has to be shortened, or does not fit at all; each of its texts is there once."""
    history: list[Message] = []
    for n in range(rng.choice([0, 0, 8, 30])):
        words = f"in {n} " + " ".join(
            rng.choice(["some", "words", "that", "make", "it", "long"]) for _ in range(rng.choice([20, 300]))
        )
        history.append(UserMessage(f"ask {words}", pinned=rng.random() < 0.05))
        call = ToolCall(f"old_{n}", "look", "{}")
        history += [AssistantMessage((Text(f"say {words}"), call)), ToolMessage(call.id, "look", f"saw {words * 3}")]
    window = rng.choice([700, 2_000, 4_000, 12_000])
    compaction = rng.choice([local_summary, sliding_window])
    return history, ContextPolicy(window_tokens=window, keep_turns=rng.choice([1, 5]), compaction=compaction)


async def one(seed: int) -> list[str]:
    """One run, and what was wrong with it."""
    rng = random.Random(seed)
    history, context = too_long(random.Random(f"{seed} context"))
    world, reader, bounds = World(random.Random(f"{seed} world")), Reader(rng, history), limits(rng)
    script = Server(random.Random(f"{seed} server"), conversation(rng))
    script.facts = world.facts
    policy = Policy(
        attempts=rng.choice([1, 3, 4, 4]),
        run_budget=rng.choice([1, 10, 10]),
        first_wait_s=rng.choice([0.0, 0.5]),
        max_wait_s=4,
        seed=seed,
    )
    dialect = Dialect(continues=rng.choice([None, {}, {}]))
    async with ByteServer([[script.answer]] * 80, check=False, check_history=False) as server:
        agent = Agent(
            HttpDriver(ChatCodec(dialect), server.url, "m"),
            tools=world.tools(),
            limits=bounds,
            retry=policy,
            journal=world,
            approvals=world.decide,
            context=context,
        )
        try:
            await reader.use(agent)
            await settled()
            await asyncio.sleep(GRACE_S + 1)
            found = [*script.problems, *of_run(world, script, reader, bounds), *of_connections(server, reader)]
        finally:
            world.released.set()
            await settled()
    return [f"{problem} ({reader})" for problem in found]


def of_run(world: World, script: Server, reader: Reader, bounds: Limits) -> list[str]:
    """What is wrong with the run itself."""
    if not world.facts:
        return [] if reader.left_at is not None else ["a run without a single fact"]
    state, result, found = fold(world.facts), reader.result, []
    found += of_facts(world.facts, sum(world.executed.values()), result or RunResult.of(state))
    found += [f"call {serial} ran {times} times" for serial, times in world.executed.items() if times > 1]
    found += [f"call {serial} was denied and ran" for serial in world.executed.keys() & world.denied]
    found += world.overlaps
    found += [f"call {serial} of a turn that was cut ran" for serial in world.executed.keys() - script.delivered]
    try:
        check_history(state.messages)
    except TreadleError as error:
        found.append(f"history: {error}")
    texts = [message.text for message in state.messages if isinstance(message, AssistantMessage) and message.text]
    if len(set(texts)) < len(texts):
        found.append(f"a text is twice in the history: {max(texts, key=texts.count)[:60]!r}")
    left = reader.left_at is not None
    found += of_deltas(reader.events) if left else of_events(reader.events)
    found += of_grammar(world.facts, reader.events, whole=not left)
    if result is None and reader.how not in ("drops", "is cancelled", "times out"):
        found.append("no result")
    text = RunResult.of(state).text
    if state.stop_reason == "end" and text not in script.finished:
        found.append(f"success with {text!r}, for which no reason to stop was sent")
    if not any(turn.text.startswith(text) for turn in script.turns):
        found.append(f"{text!r} was shown and never sent")
    if reader.watches and not left and state.partial is not None:
        seen = shown(reader.events).get(state.turn + 1, "")
        if seen != state.partial.text:
            found.append(f"{seen!r} was shown of the last turn, and {state.partial.text!r} is kept")
    deadline_s = bounds.deadline_s + world.person_s
    latest = min(deadline_s, LONGEST_S) if not left else min(deadline_s, reader.left_at or 0.0)
    if world.ended_at is None or world.ended_at > latest + GRACE_S + JOURNAL_S:
        found.append(f"ended at {world.ended_at}, and {latest + GRACE_S:.1f} s was its bound")
    if left and reader.over_at > (reader.left_at or 0.0) + GRACE_S + JOURNAL_S:
        found.append(f"left at {reader.left_at} s and let go at {reader.over_at} s")
    return found


def of_connections(server: ByteServer, reader: Reader) -> list[str]:
    """Connections that outlived the run, or the reader by too much."""
    found = [f"connection {line.record.number} is still open" for line in server._lines if not line.over]
    if reader.left_at is not None:
        for connection in server.connections:
            late_s = (connection.client_closed_at or 0.0) - reader.left_at
            if late_s > CLOSED_WITHIN_S:
                found.append(f"connection {connection.number} was closed {late_s:.2f} s after the reader left")
    return found


def violations(seed: int) -> list[str]:
    """What one seed breaks; empty as a rule."""
    try:
        return run_virtual(one(seed))
    except AssertionError as error:
        return [" ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])]
    except Exception as error:
        return [f"{type(error).__name__} came out of the run: {error}"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="of the first run; the others count on from it")
    asked = parser.parse_args()
    first = int(time.time()) if asked.seed is None else asked.seed
    began, broken = time.monotonic(), 0
    for done in range(asked.runs):
        if sys.stderr.isatty() and done % 20 == 0:
            print(f"\r{done} of {asked.runs}", end="", file=sys.stderr)
        found = violations(first + done)
        broken += bool(found)
        for problem in found:
            print(f"seed {first + done}: {problem}")
        if found:
            print(f"    python -m tests.faults.chaos --runs 1 --seed {first + done}", flush=True)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    print(f"{asked.runs} runs, {broken} violations, {time.monotonic() - began:.1f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
