"""Laws 1, 5 and 6 across segments: runs that wait for people, answered in any order, in another process, or broken off anywhere."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import ByteServer, Exchange, finish_chunk, reply, run_virtual, sse, text_chunk
from treadle import (
    Agent,
    ApprovalAnswered,
    ApprovalRequested,
    Asked,
    Ended,
    Fact,
    Failed,
    HttpDriver,
    Limits,
    PendingCall,
    Replied,
    Resumed,
    RetryPolicy,
    RunResult,
    ToolContext,
    ToolFinished,
    ToolStarted,
    approve,
    deny,
    edit,
    run_from_json,
    run_to_json,
    say,
    tool,
)
from treadle.core.state import fold
from treadle.testing import check_events
from treadle.tools.builtin.person import ask_user
from treadle.values.history import check_history
from treadle.values.limits import GuardLimits
from treadle.wire.chat import ChatCodec

LIMITS = Limits(guard=GuardLimits(tool_failures=99, run_failures=99))

# What a person will say to the call: how, and in which round of answering.
calls = st.tuples(
    st.sampled_from(["read", "write", "grouped", "ask_user"]), st.sampled_from(["approve", "deny", "edit"]), st.integers(0, 2)
)
turns = st.lists(st.lists(calls, min_size=1, max_size=4), min_size=1, max_size=3)


class World:
    def __init__(self, conversation: list[list[tuple[str, str, int]]]) -> None:
        self.ran: Counter[int] = Counter()
        self.facts: list[Fact] = []
        self.plans: dict[int, tuple[str, str, int]] = dict(enumerate(call for turn in conversation for call in turn))
        self.conversation = conversation

        @tool(concurrency="read_only")
        async def read(serial: int) -> str:
            """Read."""
            self.ran[serial] += 1
            await asyncio.sleep(1)
            return f"read {serial}"

        @tool(needs_approval=True, preview=lambda serial: f"write {serial}")
        async def write(serial: int) -> str:
            """Write."""
            self.ran[serial] += 1
            await asyncio.sleep(1)
            return f"wrote {serial}"

        @tool(group="g", needs_approval=True)
        async def grouped(serial: int, ctx: ToolContext) -> str:
            """Write in a group."""
            self.ran[serial] += 1
            ctx.progress("half", 0.5)
            await asyncio.sleep(1)
            return f"grouped {serial}"

        self.tools = (read, write, grouped, ask_user)

    async def append(self, run_id: str, fact: Fact) -> None:
        await asyncio.sleep(0)
        self.facts.append(fact)

    def script(self, *, after_turn: int = 0) -> list[Exchange]:
        exchanges: list[Exchange] = []
        serial = 0
        for turn in self.conversation:
            made = []
            for name, _, _ in turn:
                made.append((name, {"question": str(serial)} if name == "ask_user" else {"serial": serial}))
                serial += 1
            exchanges.append(sse(*reply(calls=made)))
        return [*exchanges, sse(text_chunk("Done"), finish_chunk())][after_turn:]

    def agent(self, server: ByteServer) -> Agent:
        driver = HttpDriver(ChatCodec(), server.url, "m")
        return Agent(driver, tools=self.tools, journal=self, limits=LIMITS, retry=RetryPolicy(attempts=1))

    def serial(self, pending: PendingCall) -> int:
        arguments = json.loads(pending.arguments)
        return int(arguments.get("question", arguments.get("serial")))

    def answers(self, pending: tuple[PendingCall, ...], round: int) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for call in pending:
            name, how, when = self.plans[self.serial(call)]
            if when <= round:
                given[call.call_id] = {
                    "approve": say("yes") if name == "ask_user" else approve,
                    "deny": deny("no"),
                    "edit": say("well") if name == "ask_user" else edit({"serial": self.serial(call) + 1000}),
                }[how]
        return given

    async def to_the_end(self, agent: Agent, result: RunResult) -> RunResult:
        """Answer until there is nothing to answer, through JSON each time."""
        for round in range(3 * len(self.plans) + 3):
            if result.stop_reason != "waiting_approval":
                return result
            check_history(result.messages)
            assert result.pending
            loaded = run_from_json(run_to_json(result))
            assert loaded == result
            result = await agent.resume(loaded, self.answers(result.pending, round % 3))
        raise AssertionError("it waits for ever")

    def check(self, result: RunResult, *, expect_all: bool) -> None:
        assert (result.stop_reason, result.text) == ("end", "Done")
        check_history(result.messages)
        assert fold(self.facts) == result.state
        assert all(times == 1 for times in self.ran.values()), self.ran
        allowed: set[int] = set()
        for serial, (name, how, _) in self.plans.items():
            if name == "read" or (name != "ask_user" and how == "approve"):
                allowed.add(serial)
            elif name != "ask_user" and how == "edit":
                allowed.add(serial + 1000)
        assert set(self.ran) == allowed if expect_all else set(self.ran) <= allowed
        self.check_facts()

    def check_facts(self) -> None:
        check_events(self.facts, journal=True)
        waiting: set[tuple[int, int]] = set()
        asked_before: set[tuple[int, int]] = set()
        endings = 0
        running = True
        for fact in self.facts:
            assert running or isinstance(fact, Resumed), f"{fact} after an ending"
            match fact:
                case Ended() | Failed():
                    endings, running = endings + 1, False
                case Resumed():
                    running = True
                    asked_before, waiting = waiting, set()
                case ApprovalRequested(turn=turn, position=position):
                    assert (turn, position) not in waiting
                    waiting.add((turn, position))
                    asked_before.discard((turn, position))
                case ApprovalAnswered(turn=turn, position=position):
                    (waiting if (turn, position) in waiting else asked_before).remove((turn, position))
                case ToolStarted():
                    assert not waiting and not {(fact.turn, p) for t, p in asked_before if t == fact.turn}, "one waits"
                case _:
                    pass


@given(turns)
@settings(max_examples=150)
def test_whoever_answers_what_and_when_each_call_runs_as_decided_and_once(conversation: list[list[tuple[str, str, int]]]) -> None:
    async def main() -> None:
        world = World(conversation)
        async with ByteServer(world.script(), check_prefix=True) as server:
            agent = world.agent(server)
            result = await world.to_the_end(agent, await agent.run("Hi"))
        world.check(result, expect_all=True)
        assert len(server.posts) == len(conversation) + 1  # waiting costs no model turn

    run_virtual(main())


@given(turns)
@settings(max_examples=40)
def test_a_run_that_broke_off_anywhere_is_resumed_to_the_same_end(conversation: list[list[tuple[str, str, int]]]) -> None:
    async def whole() -> World:
        world = World(conversation)
        async with ByteServer(world.script()) as server:
            agent = world.agent(server)
            await world.to_the_end(agent, await agent.run("Hi"))
        return world

    reference = run_virtual(whole())

    async def resumed(length: int) -> None:
        world = World(conversation)
        world.facts = reference.facts[:length]
        state = fold(world.facts)
        if state.stop_reason == "end":
            return
        # What ran before the crash has run.
        started = {(f.turn, f.position) for f in world.facts if isinstance(f, ToolStarted)}
        finished = {(f.turn, f.position) for f in world.facts if isinstance(f, ToolFinished)}
        world.ran.update(json.loads(f.arguments)["serial"] for f in world.facts if isinstance(f, ToolStarted))
        async with ByteServer(world.script(after_turn=state.turn)) as server:
            agent = world.agent(server)
            result = await world.to_the_end(agent, await agent.resume(run_from_json(run_to_json(RunResult.of(state)))))
        world.check(result, expect_all=started == finished)
        for fact in world.facts[length:]:
            if isinstance(fact, ToolFinished) and (fact.turn, fact.position) in started - finished:
                assert fact.result.content.startswith("Outcome unknown")
            assert not isinstance(fact, Asked)
            if isinstance(fact, Replied):
                assert fact.turn > state.turn

    for length in range(1, len(reference.facts)):
        run_virtual(resumed(length))
