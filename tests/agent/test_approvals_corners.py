"""Corners of execution and approval that a review found: crashes between facts, previews that move, words that are no text."""

from __future__ import annotations

import asyncio
import enum
import gc
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from tests.harness import ByteServer, Exchange, reply, run_virtual, sse
from treadle import (
    Agent,
    ApprovalRequested,
    Ended,
    Fact,
    Failed,
    HttpDriver,
    Limits,
    PendingCall,
    Rule,
    RunResult,
    ToolError,
    ToolFinished,
    ToolStarted,
    UsageError,
    approve,
    deny,
    edit,
    run_from_json,
    run_to_json,
    say,
    tool,
)
from treadle.core.state import fold
from treadle.policy.recovery import RetryPolicy
from treadle.tools.builtin.person import ask_user
from treadle.wire.chat import ChatCodec

ran: list[Any] = []
DONE = sse(*reply("Done"))
FAR_S = 500.0


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@tool(needs_approval=True)
async def pay(n: int = 1) -> str:
    """Pay."""
    ran.append(n)
    return "paid"


@tool(concurrency="read_only")
async def look(what: str) -> str:
    """Look."""
    ran.append(what)
    return "saw"


def asked_for(*calls: tuple[str, Any]) -> Exchange:
    return sse(*reply(calls=list(calls)))


def agent_of(server: ByteServer, *tools: Any, **settings: Any) -> Agent:
    settings.setdefault("retry", RetryPolicy(attempts=1))
    return Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=tools, **settings)


def results_sent(server: ByteServer) -> list[str]:
    return [m["content"] for m in server.posts[-1].json["messages"] if m["role"] == "tool"]


def answer_all(result: RunResult, decision: Any) -> dict[str, Any]:
    return {pending.call_id: decision for pending in result.pending}


class Journal:
    """Keeps facts; `before` sees each first, and may wait or raise."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.before: Callable[[Fact], Any] | None = None

    async def append(self, run_id: str, fact: Fact) -> None:
        await asyncio.sleep(0)
        if self.before is not None:
            await self.before(fact)
        self.facts.append(fact)


class TestAResumedRunHasOneEndingToo:
    """Law 1. Until `Resumed` is accepted the state is the ended one of the segment before, and then every ending is dropped."""

    async def waiting(self, server: ByteServer, journal: Journal) -> tuple[Agent, RunResult]:
        agent = agent_of(server, pay, journal=journal)
        return agent, await agent.run("Hi")

    def test_when_the_journal_takes_nothing(self) -> None:
        async def refuse(fact: Fact) -> None:
            raise ConnectionError("gone")

        async def main() -> list[Any]:
            journal = Journal()
            async with ByteServer([asked_for(("pay", {}))], check=False) as server:
                agent, result = await self.waiting(server, journal)
                journal.before = refuse
                events: list[Any] = []

                async def read() -> None:
                    async with agent.resume_stream(result, {"call_0": approve}) as running:
                        async for event in running:
                            events.append(event)

                with pytest.raises(ConnectionError):
                    await asyncio.wait_for(read(), FAR_S)
                return events

        assert isinstance(run_virtual(main())[-1], Failed)

    def test_when_its_time_is_up_before_the_journal_took_the_first_fact(self) -> None:
        async def slowly(fact: Fact) -> None:
            await asyncio.sleep(20)

        async def main() -> list[Any]:
            journal = Journal()
            async with ByteServer([asked_for(("pay", {}))], check=False) as server:
                agent, result = await self.waiting(server, journal)
                journal.before = slowly
                async with agent.resume_stream(result, {"call_0": approve}, limits=Limits(deadline_s=5)) as running:
                    return await asyncio.wait_for(_read(running), FAR_S)

        (ending,) = run_virtual(main())
        assert isinstance(ending, Ended)
        assert ending.stop_reason == "deadline"

    def test_when_it_is_cancelled_before_its_first_step(self) -> None:
        async def main() -> list[Any]:
            async with ByteServer([asked_for(("pay", {}))], check=False) as server:
                agent, result = await self.waiting(server, Journal())
                running = agent.resume_stream(result, {"call_0": approve})
                reader = asyncio.ensure_future(_read(running))
                await asyncio.sleep(0)
                await running.cancel()
                return await asyncio.wait_for(reader, FAR_S)

        (ending,) = run_virtual(main())
        assert isinstance(ending, Ended)
        assert ending.stop_reason == "cancelled"

    def test_its_result_is_not_that_of_the_segment_before(self) -> None:
        async def main() -> None:
            async with ByteServer([asked_for(("pay", {}))], check=False) as server:
                agent, result = await self.waiting(server, Journal())
                async with agent.resume_stream(result, {"call_0": approve}) as running:
                    with pytest.raises(UsageError, match="not ended yet"):
                        _ = running.result

        run_virtual(main())


async def _read(running: Any) -> list[Any]:
    return [event async for event in running]


class TestWhatWasApprovedIsWhatRuns:
    def test_a_preview_that_an_earlier_call_of_the_turn_has_changed(self) -> None:
        files = {"a": "old"}

        @tool(needs_approval=True, preview=lambda path, text: f"{files[path]} -> {text}")
        async def write(path: str, text: str) -> str:
            """Write."""
            ran.append((files[path], text))
            files[path] = text
            return "ok"

        async def main() -> None:
            script = [asked_for(("write", {"path": "a", "text": "one"}), ("write", {"path": "a", "text": "two"})), DONE]
            async with ByteServer(script) as server:
                agent = agent_of(server, write)
                result = await agent.run("Hi")
                assert [p.preview for p in result.pending] == ["old -> one", "old -> two"]
                await agent.resume(result, answer_all(result, approve))

        run_virtual(main())
        assert ran == [("old", "one")]  # "one -> two" was shown to nobody

    def test_a_change_in_the_part_of_a_long_preview_that_was_left_out(self) -> None:
        body = {"text": "x" * 11_500 + "SAFE" + "y" * 6_500}

        @tool(needs_approval=True, preview=lambda: body["text"])
        async def send() -> str:
            """Send."""
            ran.append(body["text"][11_500:11_504])
            return "sent"

        async def main() -> None:
            async with ByteServer([asked_for(("send", {})), DONE]) as server:
                agent = agent_of(server, send)
                result = await agent.run("Hi")
                body["text"] = body["text"].replace("SAFE", "EVIL")
                await agent.resume(result, answer_all(result, approve))

        run_virtual(main())
        assert ran == []

    def test_a_preview_that_changes_its_arguments(self) -> None:
        def shown(items: list[str]) -> str:
            return f"delete {items.pop()}, then {items}"

        @tool(needs_approval=True, preview=shown)
        async def delete(items: list[str]) -> str:
            """Delete."""
            ran.append(list(items))
            return "ok"

        async def main() -> None:
            async with ByteServer([asked_for(("delete", {"items": ["a", "b"]})), DONE]) as server:
                agent = agent_of(server, delete)
                result = await agent.run("Hi")
                await agent.resume(result, answer_all(result, approve))

        run_virtual(main())
        assert ran == [["a", "b"]]

    def test_a_call_that_is_made_again_has_its_arguments_again(self) -> None:
        @tool(repeatable=True)
        async def send(items: list[str]) -> str:
            """Send."""
            ran.append(list(items))
            while items:
                items.pop(0)
                if len(ran) == 1:
                    raise ToolError("no route", kind="network")
            return "ok"

        async def main() -> None:
            async with ByteServer([asked_for(("send", {"items": ["a", "b"]})), DONE]) as server:
                await agent_of(server, send, retry=RetryPolicy()).run("Hi")

        run_virtual(main())
        assert ran == [["a", "b"], ["a", "b"]]

    def test_a_saved_run_whose_questions_are_not_about_its_calls_is_refused(self) -> None:
        async def main() -> bytes:
            async with ByteServer([asked_for(("pay", {"n": 1}))]) as server:
                return run_to_json(await agent_of(server, pay).run("Hi"))

        run = json.loads(run_virtual(main()))
        for part, field, value in [
            ("pending", "arguments", '{"n": 0}'),
            ("pending", "name", "look"),
            ("call", "arguments", "{}"),
        ]:
            forged = json.loads(json.dumps(run))
            forged["open_calls"][0][part][field] = value
            with pytest.raises(UsageError, match="not a run"):
                run_from_json(json.dumps(forged))


class TestADenialByTheRules:
    def test_a_crash_between_the_two_facts_of_it_leaves_no_question_to_a_person(self) -> None:
        rules = [Rule(action="deny", tool="pay", reason="never")]

        async def main() -> RunResult:
            journal = Journal()
            async with ByteServer([asked_for(("pay", {})), DONE]) as server:
                await agent_of(server, pay, journal=journal, approvals=rules).run("Hi")
            # Were `ApprovalAnswered` alone enough, there would be no such moment.
            cut = next((n for n, f in enumerate(journal.facts, start=1) if isinstance(f, ApprovalRequested)), 2)
            broken_off = RunResult.of(fold(journal.facts[:cut]))
            async with ByteServer([DONE], check=False) as server:
                return await agent_of(server, pay, approvals=rules).resume(broken_off)

        result = run_virtual(main())
        assert (result.stop_reason, result.pending, ran) == ("end", (), [])


class TestPolicies:
    def ran_with(self, approvals: Any, *tools: Any, call: tuple[str, Any] = ("pay", {"n": 1})) -> RunResult:
        async def main() -> RunResult:
            async with ByteServer([asked_for(call), DONE], check=False) as server:
                return await agent_of(server, *(tools or (pay,)), approvals=approvals).run("Hi")

        return run_virtual(main())

    def test_rules_from_a_generator_are_not_lost(self) -> None:
        self.ran_with((rule for rule in [Rule(action="deny", tool="*")]), look, call=("look", {"what": "x"}))
        assert ran == []

    @pytest.mark.parametrize("approvals", [None, 5, Rule(action="deny")])
    def test_what_is_no_policy_is_a_typed_error(self, approvals: Any) -> None:
        with pytest.raises(UsageError, match="no approval policy"):
            Agent("ollama/x", approvals=approvals)

    @pytest.mark.parametrize(
        "fields",
        [
            {"concurrency": "readonly"},
            {"tool": ""},
            {"tool": 5},
            {"arguments": None},
            {"arguments": "x"},
            {"arguments": {"v": 3}},
        ],
    )
    def test_a_rule_that_can_never_fit_is_refused(self, fields: Any) -> None:
        with pytest.raises(UsageError):
            Rule(action="deny", **fields)

    def test_arguments_as_text_are_as_the_model_writes_them(self) -> None:
        class Mode(enum.Enum):
            ALL = "all"

        @tool
        async def wipe(mode: Mode, force: bool, amount: float) -> str:
            """Wipe."""
            ran.append(mode)
            return "ok"

        call = ("wipe", {"mode": "all", "force": True, "amount": 5})
        for pattern in ({"mode": "all"}, {"force": "true"}, {"amount": "5"}):
            self.ran_with([Rule(action="deny", arguments=pattern)], wipe, call=call)
            assert ran == [], pattern

    @pytest.mark.parametrize("subject", [["x"], 5])
    def test_subjects_that_are_no_text_cannot_be_said(self, subject: Any) -> None:
        made = tool(subjects=lambda what: {"what": subject})(look.__wrapped__)
        result = self.ran_with([Rule(action="deny", arguments={"what": "x"})], made, call=("look", {"what": "x"}))
        assert (result.stop_reason, ran) == ("waiting_approval", [])

    def test_an_async_function_is_refused_without_a_warning(self) -> None:
        async def decide(pending: PendingCall) -> Any:
            return deny()

        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with pytest.raises(UsageError):
                self.ran_with(decide)
            gc.collect()
        assert [str(warning.message) for warning in warned] == []

    def test_a_function_is_asked_once_about_a_call(self) -> None:
        quota = [1]

        def decide(pending: PendingCall) -> Any:
            if not quota[0]:
                return deny("quota")
            quota[0] -= 1
            return approve

        async def main() -> None:
            async with ByteServer([asked_for(("pay", {"n": 1}), ("pay", {"n": 2})), DONE]) as server:
                await agent_of(server, pay, approvals=decide).run("Hi")

        run_virtual(main())
        assert ran == [1]

    def test_an_edit_by_a_function_is_not_said_to_be_a_persons_nor_to_have_run_when_it_did_not(self) -> None:
        async def main() -> str:
            async with ByteServer([asked_for(("pay", {"n": 1})), DONE]) as server:
                await agent_of(server, pay, approvals=lambda pending: edit({"bad": 1})).run("Hi")
                return results_sent(server)[0]

        said = run_virtual(main())
        assert "It ran with" not in said
        assert "A person" not in said


class TestAnswers:
    def answered(self, decision: Any, *calls: tuple[str, Any]) -> tuple[RunResult, list[str]]:
        async def main() -> tuple[RunResult, list[str]]:
            async with ByteServer([asked_for(*calls), DONE], check=False) as server:
                agent = agent_of(server, pay, ask_user)
                result = await agent.run("Hi")
                result = await agent.resume(result, {result.pending[0].call_id: decision})
                result = run_from_json(run_to_json(result))
                if result.pending:
                    result = await agent.resume(result, answer_all(result, approve))
                return result, results_sent(server)

        return run_virtual(main())

    ASK = ("ask_user", {"question": "?"})

    @pytest.mark.parametrize("decision", [deny(None), deny(object())])  # type: ignore[arg-type]
    def test_a_reason_that_is_no_text_is_refused_or_harmless(self, decision: Any) -> None:
        try:
            result, _ = self.answered(decision, ("pay", {"n": 1}), ("pay", {"n": 2}))
        except UsageError as error:
            assert "is no answer" in error.message
        else:
            assert result.stop_reason == "end"

    @pytest.mark.parametrize("text", [42, None])
    def test_words_that_are_no_text_are_refused(self, text: Any) -> None:
        with pytest.raises(UsageError, match="is no answer"):
            self.answered(say(text), self.ASK)

    @pytest.mark.parametrize(("decision", "call"), [(deny("\udcff"), ("pay", {"n": 1})), (say("\udcff"), ASK)])
    def test_half_a_character_from_a_terminal_does_not_stick_the_run_for_ever(self, decision: Any, call: Any) -> None:
        assert self.answered(decision, call, ("pay", {"n": 2}))[0].stop_reason == "end"

    @pytest.mark.parametrize(
        ("decision", "call"), [(deny("x" * 10**6), ("pay", {"n": 1})), (say("x" * 10**6), ASK)], ids=["deny", "say"]
    )
    def test_what_a_person_says_is_bounded_like_any_result(self, decision: Any, call: Any) -> None:
        _, sent = self.answered(decision, call)
        assert len(sent[0]) < 20_000

    def test_so_is_the_note_about_an_edited_call(self) -> None:
        async def main() -> str:
            async with ByteServer([asked_for(("look", {"what": "a"})), DONE]) as server:
                agent = agent_of(server, look, approvals="always")
                result = await agent.run("Hi")
                await agent.resume(result, {"call_0": edit({"what": "x" * 10**6})})
                return results_sent(server)[0]

        assert len(run_virtual(main())) < 20_000


class TestGuard:
    def rounds(self, calls: Sequence[tuple[str, Any]], decisions: Sequence[Any]) -> list[str]:
        async def main() -> list[str]:
            async with ByteServer([*map(asked_for, calls), DONE], check=False) as server:
                agent = agent_of(server, look, approvals="always")
                result = await agent.run("Hi")
                for decision in decisions:
                    result = await agent.resume(result, answer_all(result, decision))
                return results_sent(server)

        return run_virtual(main())

    def test_it_does_not_refuse_what_a_person_put_in_a_calls_place(self) -> None:
        same = ("look", {"what": "y"})
        said = self.rounds([same, same, same, ("look", {"what": "x"})], [approve, approve, approve, edit({"what": "y"})])
        assert not said[-1].startswith("Error: refused")
        assert not (said[-1].startswith("Error: refused") and "It ran with" in said[-1])

    def test_it_does_not_say_that_a_denied_call_gave_a_result(self) -> None:
        said = self.rounds([("look", {"what": "y"})] * 4, [approve, deny("not now"), deny("later")])
        assert ran == ["y"]
        assert "has given the same result 3 times" not in said[-1]


class TestRetries:
    def test_parallel_tools_do_not_overdraw_the_one_budget(self) -> None:
        @tool(repeatable=True, concurrency="read_only")
        async def flaky(n: int) -> str:
            """Fail."""
            await asyncio.sleep(1)
            raise ToolError("no route", kind="network")

        async def main() -> int:
            async with ByteServer([asked_for(*[("flaky", {"n": n}) for n in range(8)]), DONE]) as server:
                agent = agent_of(server, flaky, retry=RetryPolicy(run_budget=2), journal=Journal())
                return (await agent.run("Hi")).state.retries

        assert run_virtual(main()) == 2

    def test_a_started_call_is_not_said_not_to_have_run(self) -> None:
        value = {"v": 0}

        @tool(needs_approval=True, repeatable=True, preview=lambda: f"{value['v']} -> 1")
        async def put() -> str:
            """Put."""
            value["v"] = 1
            await asyncio.sleep(1000)
            return "ok"

        async def main() -> str:
            async with ByteServer([asked_for(("put", {})), DONE]) as server:
                agent = agent_of(server, put)
                result = await agent.run("Hi")
                async with agent.resume_stream(result, {"call_0": approve}) as running:
                    async for event in running:
                        if isinstance(event, ToolStarted):
                            await asyncio.sleep(1)
                            break
                await agent.resume(running.result)
                return results_sent(server)[0]

        assert not run_virtual(main()).startswith("Error: Not run")


class TestTime:
    def test_a_run_whose_time_is_up_starts_no_call(self) -> None:
        async def main() -> RunResult:
            async with ByteServer([asked_for(("pay", {"n": 1}), ("pay", {"n": 2}))]) as server:
                agent = agent_of(server, pay)
                result = await agent.run("Hi")
                late = RunResult.of(replace(result.state, elapsed_s=50.0))
                return await agent.resume(late, answer_all(late, approve), limits=Limits(deadline_s=10))

        result = run_virtual(main())
        assert (result.stop_reason, ran) == ("deadline", [])
        assert not any(call.started for call in result.state.open_calls)

    def test_a_preview_cannot_swallow_the_cancelling_of_its_run(self) -> None:
        async def stubborn() -> str:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                await asyncio.sleep(10)
            return "x"

        @tool(needs_approval=True, preview=stubborn)
        async def put() -> str:
            """Put."""
            return "ok"

        async def main() -> tuple[float, bool]:
            loop = asyncio.get_running_loop()
            async with ByteServer([asked_for(("put", {}))]) as server:
                task = asyncio.ensure_future(agent_of(server, put).run("Hi"))
                await asyncio.sleep(5)
                began = loop.time()
                task.cancel()
                await asyncio.wait([task])
                took_s, was_cancelled = loop.time() - began, task.cancelled()
                await asyncio.sleep(20)
                return took_s, was_cancelled

        took_s, was_cancelled = run_virtual(main())
        assert was_cancelled
        assert took_s <= 1.0


class TestJournalOfABrokenRun:
    def test_an_ending_is_not_appended_to_a_journal_that_has_no_beginning(self) -> None:
        async def refuse_the_first(fact: Fact) -> None:
            if not isinstance(fact, Failed):
                raise ConnectionError("gone")

        async def main() -> list[Fact]:
            journal = Journal()
            journal.before = refuse_the_first
            async with ByteServer([], check=False) as server:
                with pytest.raises(ConnectionError):
                    await agent_of(server, pay, journal=journal).run("Hi")
            return journal.facts

        assert run_virtual(main()) == []  # a lone `Failed` cannot be folded

    def test_nor_a_second_ending_to_one_whose_segment_did_not_begin(self) -> None:
        async def refuse_resumed(fact: Fact) -> None:
            if not isinstance(fact, Failed):
                raise ConnectionError("gone")

        async def main() -> list[Fact]:
            journal = Journal()
            async with ByteServer([asked_for(("pay", {}))], check=False) as server:
                agent = agent_of(server, pay, journal=journal)
                result = await agent.run("Hi")
                journal.before = refuse_resumed
                with pytest.raises(ConnectionError):
                    await agent.resume(result, {"call_0": approve})
            return journal.facts

        facts = run_virtual(main())
        assert [type(f) for f in facts].count(Ended) + [type(f) for f in facts].count(Failed) == 1
        assert not any(isinstance(f, ToolFinished) for f in facts)
