"""Laws 1, 5, 6 and 8 as properties: random conversations, tools, segment boundaries, and moments of leaving."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import ByteServer, Exchange, Wait, call_chunk, finish_chunk, reply, run_virtual, settled, sse, text_chunk
from treadle import Agent, Ended, Event, Failed, GuardLimits, HttpDriver, Limits, ToolError, ToolFinished, ToolStarted, tool
from treadle.core.loop import Loop
from treadle.core.plan import Plan
from treadle.core.state import fold
from treadle.core.step import CallModel
from treadle.errors import TreadleError
from treadle.policy.context import Context, ContextPolicy
from treadle.policy.recovery import Recovery, RetryPolicy
from treadle.testing import check_events
from treadle.tools.executor import Executor
from treadle.values.events import Asked, Fact
from treadle.values.history import check_history
from treadle.values.request import ModelRequest
from treadle.values.state import State
from treadle.wire.chat import ChatCodec

# Failing tools are part of the game here; where the guard stops a run is tested elsewhere.
LIMITS = Limits(guard=GuardLimits(tool_failures=99, run_failures=99))
NAMES = ("read", "write", "fail", "nothing")

turns = st.lists(
    st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3)), max_size=4),
    max_size=3,
)


class World:
    """Tools that count what they did, and a journal."""

    def __init__(self) -> None:
        self.started: Counter[int] = Counter()
        self.facts: list[Fact] = []
        self.serial = 0

        @tool(concurrency="read_only")
        async def read(n: int, serial: int) -> str:
            """Read."""
            self.started[serial] += 1
            await asyncio.sleep(n / 10)
            return f"read {n}"

        @tool
        async def write(n: int, serial: int) -> str:
            """Write."""
            self.started[serial] += 1
            await asyncio.sleep(n / 10)
            return f"wrote {n}"

        @tool
        async def fail(n: int, serial: int) -> str:
            """Fail."""
            self.started[serial] += 1
            raise ToolError("no")

        self.tools = (read, write, fail)

    async def append(self, run_id: str, fact: Fact) -> None:
        await asyncio.sleep(0)
        self.facts.append(fact)

    def script(self, conversation: list[list[tuple[str, int]]]) -> list[Exchange]:
        exchanges: list[Exchange] = []
        for calls in conversation:
            if not calls:
                continue
            made = []
            for name, n in calls:
                made.append((name, {"n": n, "serial": self.serial}))
                self.serial += 1
            exchanges.append([Wait(0.1), *sse(text_chunk("Hm"), Wait(0.1), *reply(calls=made))])
        return [*exchanges, sse(text_chunk("Do"), Wait(0.1), text_chunk("ne"), finish_chunk())]

    def agent(self, server: ByteServer, **settings: Any) -> Agent:
        settings = {"retry": RetryPolicy(attempts=1), "limits": LIMITS, **settings}
        return Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=self.tools, journal=self, **settings)

    def check(self, events: list[Event], state: State) -> None:
        endings = [e for e in events if isinstance(e, Ended | Failed)]
        assert len(endings) <= 1
        assert not endings or events[-1] is endings[0]
        check_history(state.messages)
        assert all(times == 1 for times in self.started.values())
        started = [(e.turn, e.position) for e in self.facts if isinstance(e, ToolStarted)]
        finished = [(e.turn, e.position) for e in self.facts if isinstance(e, ToolFinished)]
        assert len(set(started)) == len(started)
        assert len(set(finished)) == len(finished)
        assert fold(self.facts) == state
        check_events(self.facts, journal=True)
        if events:
            check_events(events, whole=bool(endings))


@given(turns, st.integers(0, 30), st.sampled_from(["break", "cancel", "never"]))
@settings(max_examples=150)
def test_one_ending_a_valid_history_and_nothing_twice_whenever_the_reader_leaves(
    conversation: list[list[tuple[str, int]]], moment: int, how: str
) -> None:
    async def main() -> None:
        world = World()
        async with ByteServer(world.script(conversation), check=False) as server:
            events: list[Event] = []
            async with world.agent(server).stream("Hi") as run:
                loop = asyncio.get_running_loop()
                if how == "cancel":
                    loop.call_later(moment / 10, lambda: asyncio.ensure_future(run.cancel()))
                async for event in run:
                    events.append(event)
                    if how == "break" and len(events) > moment:
                        break
            left = loop.time()
            await settled()
            assert run.result.stop_reason in ("end", "cancelled", "tool_failures")
            if how == "never" and run.result.stop_reason != "tool_failures":
                assert run.result.stop_reason == "end"
                assert run.result.text == "Done"
            world.check(events, run.result.state)
            assert isinstance(world.facts[-1], Ended)
            for connection in server.connections:
                assert connection.client_closed_at is not None and connection.client_closed_at <= left + 0.1

    run_virtual(main())


@given(turns)
@settings(max_examples=60)
def test_a_run_carried_on_from_any_journal_prefix_ends_and_runs_nothing_twice(conversation: list[list[tuple[str, int]]]) -> None:
    async def whole() -> World:
        world = World()
        async with ByteServer(world.script(conversation), check=False) as server:
            await world.agent(server).run("Hi")
        return world

    reference = run_virtual(whole())

    async def carried_on(length: int) -> None:
        world = World()
        script = world.script(conversation)
        world.facts = reference.facts[:length]
        done = fold(world.facts)
        limits = LIMITS
        async with ByteServer(script[done.turn :], check=False) as server:
            agent = world.agent(server)

            def request(state: State, step: CallModel) -> ModelRequest:
                return ModelRequest(messages=state.messages, run_id=state.run_id, turn=step.turn)

            plan = Plan(
                drivers=(agent.driver,),
                toolbox=Executor(agent.tools, limits),
                limits=limits,
                request=request,
                recovery=Recovery(policy=RetryPolicy(attempts=1)),
                context=Context(ContextPolicy(), (agent.driver,), limits, can_read_results=False),
                journal=world,
            )
            loop = Loop(done, plan)
            await loop.drive()
        assert loop.state.stop_reason == fold(reference.facts).stop_reason
        assert loop.state.turn == fold(reference.facts).turn
        world.check([], loop.state)
        # A call that had started before the crash is not started again: its outcome is unknown, and the model is told.
        crashed = {(e.turn, e.position) for e in reference.facts[:length] if isinstance(e, ToolStarted)} - {
            (e.turn, e.position) for e in reference.facts[:length] if isinstance(e, ToolFinished)
        }
        for fact in world.facts[length:]:
            if isinstance(fact, ToolFinished) and (fact.turn, fact.position) in crashed:
                assert fact.result.is_error and fact.result.content.startswith("Outcome unknown")
            if isinstance(fact, ToolStarted):
                assert (fact.turn, fact.position) not in crashed

    for length in range(1, len(reference.facts) + 1):
        run_virtual(carried_on(length))


@given(st.integers(0, 1000))
@settings(max_examples=100)
def test_a_stream_cut_at_any_byte_gives_one_ending_and_a_valid_history(after: int) -> None:
    from tests.harness import cut, size

    async def main() -> None:
        world = World()
        whole = sse(
            text_chunk("Hm"), call_chunk(0, id="a", name="write", arguments='{"n": 1, "serial": 0}'), finish_chunk("tool_calls")
        )
        whole_size = size(whole)
        async with ByteServer(
            [cut(whole, min(after, whole_size)), sse(text_chunk("Done"), finish_chunk())], check=False
        ) as server:
            events: list[Event] = []
            async with world.agent(server).stream("Hi") as run:
                try:
                    async for event in run:
                        events.append(event)
                except TreadleError as error:
                    assert error.result == run.result
            assert isinstance(events[-1], Ended | Failed)
            assert isinstance(world.facts[0], Asked)
            if isinstance(events[-1], Failed):
                assert not world.started
            world.check(events, run.result.state)

    run_virtual(main())
