"""Calls that wait for a person: nothing starts, the run is data, an answer carries it on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.harness import ByteServer, Exchange, reply, run_virtual, sse
from treadle import (
    Agent,
    ApprovalAnswered,
    ApprovalRequested,
    Asked,
    Ended,
    Event,
    Fact,
    HttpDriver,
    Limits,
    PendingCall,
    Replied,
    Resumed,
    Rule,
    RunResult,
    ToolError,
    ToolFinished,
    ToolStarted,
    UsageError,
    approve,
    deny,
    edit,
    event_from_json,
    event_to_json,
    run_from_json,
    run_to_json,
    say,
    tool,
)
from treadle.core.state import fold
from treadle.policy.recovery import RetryPolicy
from treadle.tools.builtin.person import ask_user
from treadle.values.history import check_history
from treadle.wire.chat import ChatCodec

ran: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


files = {"a.txt": "old"}


def diff(path: str, text: str) -> str:
    return f"{path}: {files.get(path)} -> {text}"


@tool(needs_approval=True, preview=diff, subjects=lambda path, text: {"path": path.removeprefix("./")})
async def write(path: str, text: str) -> str:
    """Write a file."""
    ran.append(("write", path, text))
    return f"wrote {path}"


@tool(concurrency="read_only")
async def look(what: str) -> str:
    """Look."""
    ran.append(("look", what))
    return f"saw {what}"


TOOLS = (write, look, ask_user)
WRITE = ("write", {"path": "a.txt", "text": "new"})
LOOK = ("look", {"what": "x"})


class Seen:
    """A run and what its server was asked."""

    def __init__(self) -> None:
        self.results: list[RunResult] = []
        self.facts: list[Fact] = []
        self.requests: list[Any] = []

    @property
    def result(self) -> RunResult:
        return self.results[-1]

    @property
    def tool_texts(self) -> list[str]:
        return [m["content"] for m in self.requests[-1]["messages"] if m["role"] == "tool"]


def play(exchanges: Sequence[Exchange], *answers: Callable[[RunResult], Any], **settings: Any) -> Seen:
    """A run that is resumed with each of `answers`; every result goes through JSON in between."""

    async def main() -> Seen:
        seen = Seen()
        async with ByteServer(exchanges, check_prefix=True) as server:
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=TOOLS, retry=RetryPolicy(attempts=1), **settings)

            async def watch(running: Any) -> None:
                async with running:
                    async for event in running:
                        if isinstance(event, Fact):
                            assert event_from_json(event_to_json(event)) == event
                            seen.facts.append(event)
                check_history(running.result.messages)
                assert fold(seen.facts) == running.result.state
                seen.results.append(run_from_json(run_to_json(running.result)))
                assert seen.result == running.result

            await watch(agent.stream("Hi"))
            for answer in answers:
                await watch(agent.resume_stream(seen.result, answer(seen.result)))
            seen.requests = [request.json for request in server.posts]
        return seen

    return run_virtual(main())


def all_with(decision: Any) -> Callable[[RunResult], Any]:
    return lambda result: {pending.call_id: decision for pending in result.pending}


class TestWaiting:
    def test_a_gated_call_parks_the_run_and_starts_no_call_of_its_turn(self) -> None:
        seen = play([sse(*reply(calls=[LOOK, WRITE]))])
        assert ran == []
        assert seen.result.stop_reason == "waiting_approval"
        assert seen.result.pending == (
            PendingCall(
                call_id="call_1", name="write", arguments='{"path": "a.txt", "text": "new"}', preview="a.txt: old -> new"
            ),
        )
        assert [type(f) for f in seen.facts] == [Asked, Replied, ApprovalRequested, Ended]

    def test_approved_it_runs_with_the_others_and_the_run_goes_on(self) -> None:
        seen = play([sse(*reply(calls=[LOOK, WRITE])), sse(*reply("Done"))], all_with(approve))
        assert ran == [("look", "x"), ("write", "a.txt", "new")]
        assert (seen.result.text, seen.result.stop_reason, seen.result.pending) == ("Done", "end", ())
        assert seen.tool_texts == ["saw x", "wrote a.txt"]
        kinds = [type(f) for f in seen.facts]
        assert kinds[3:6] == [Ended, Resumed, ApprovalAnswered]
        assert kinds.count(ToolStarted) == kinds.count(ToolFinished) == 2

    def test_a_denial_and_its_reason_reach_the_model_and_nothing_runs(self) -> None:
        seen = play([sse(*reply(calls=[WRITE])), sse(*reply("Oh"))], all_with(deny("the file is mine")))
        assert ran == []
        assert seen.tool_texts == ["Error: Denied: the file is mine"]
        finished = [f for f in seen.facts if isinstance(f, ToolFinished)]
        assert [f.refused for f in finished] == ["denied"]
        assert not any(isinstance(f, ToolStarted) for f in seen.facts)

    def test_an_edited_call_runs_with_the_new_arguments_and_the_history_says_so(self) -> None:
        seen = play([sse(*reply(calls=[WRITE])), sse(*reply("Done"))], all_with(edit({"path": "b.txt", "text": "mine"})))
        assert ran == [("write", "b.txt", "mine")]
        said = 'A person changed the arguments before it ran. It ran with: {"path":"b.txt","text":"mine"}'
        assert seen.tool_texts == [f"wrote b.txt\n[{said}]"]
        assert said in str(seen.result.messages)
        # The model's own words go back as it wrote them.
        assert seen.requests[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == WRITE[1].__repr__().replace("'", '"')
        assert [f.arguments for f in seen.facts if isinstance(f, ToolStarted)] == ['{"path":"b.txt","text":"mine"}']

    def test_while_an_answer_is_missing_it_goes_on_waiting(self) -> None:
        calls = [WRITE, ("write", {"path": "b.txt", "text": "new"})]
        seen = play([sse(*reply(calls=calls)), sse(*reply("Done"))], lambda r: {"call_1": approve}, lambda r: {"call_0": approve})
        assert [r.stop_reason for r in seen.results] == ["waiting_approval", "waiting_approval", "end"]
        assert [p.call_id for p in seen.results[1].pending] == ["call_0"]
        assert ran == [("write", "a.txt", "new"), ("write", "b.txt", "new")]

    def test_what_is_still_waiting_is_asked_again_as_it_is_now_and_by_the_policy_of_now(self) -> None:
        async def main() -> tuple[RunResult, RunResult]:
            async with ByteServer([sse(*reply(calls=[WRITE])), sse(*reply("Done"))]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=TOOLS)
                waiting = await agent.run("Hi")
                files["a.txt"] = "changed by somebody"
                again = await agent.resume(waiting)
                return again, await agent.resume(again, approvals="never")

        try:
            again, last = run_virtual(main())
        finally:
            files["a.txt"] = "old"
        assert [p.preview for p in again.pending] == ["a.txt: changed by somebody -> new"]
        assert (last.stop_reason, ran) == ("end", [("write", "a.txt", "new")])

    def test_a_resumed_run_that_is_cancelled_before_it_began_has_an_ending_and_goes_on_waiting(self) -> None:
        async def main() -> tuple[list[Event], RunResult, RunResult]:
            async with ByteServer([sse(*reply(calls=[WRITE])), sse(*reply("Done"))]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=TOOLS)
                waiting = await agent.run("Hi")
                running = agent.resume_stream(waiting, {"call_0": approve})
                await running.cancel()
                events = [event async for event in running]
                return events, running.result, await agent.resume(running.result)

        events, cancelled, last = run_virtual(main())
        assert [type(e) for e in events] == [Ended]
        assert cancelled.stop_reason == "cancelled"
        assert last.stop_reason == "waiting_approval"
        assert ran == []

    def test_what_would_happen_must_be_what_was_approved(self) -> None:
        def meanwhile(result: RunResult) -> Any:
            files["a.txt"] = "changed by somebody"
            return all_with(approve)(result)

        try:
            seen = play([sse(*reply(calls=[WRITE])), sse(*reply("Oh"))], meanwhile)
        finally:
            files["a.txt"] = "old"
        assert ran == []
        assert "has changed since it was approved" in seen.tool_texts[0]

    def test_a_call_that_cannot_run_is_never_asked_about(self) -> None:
        calls = [("write", {"path": "a.txt"}), ("nothing", {})]
        seen = play([sse(*reply(calls=calls)), sse(*reply("Oh"))])
        assert seen.result.stop_reason == "end"
        assert not any(isinstance(f, ApprovalRequested) for f in seen.facts)

    def test_a_persons_time_counts_in_no_deadline(self) -> None:
        @tool
        async def slow() -> str:
            """Take 6 s."""
            await asyncio.sleep(6)
            return "ok"

        async def main() -> tuple[RunResult, RunResult]:
            exchanges = [sse(*reply(calls=[("slow", {})])), sse(*reply(calls=[WRITE])), sse(*reply(calls=[("slow", {})]))]
            async with ByteServer(exchanges) as server:
                limits = Limits(deadline_s=10)
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=(write, slow), limits=limits)
                first = await agent.run("Hi")
                await asyncio.sleep(3_000)
                return first, await agent.resume(run_from_json(run_to_json(first)), {"call_0": approve})

        first, second = run_virtual(main())
        assert first.state.elapsed_s == pytest.approx(6, abs=0.5)
        assert ran == [("write", "a.txt", "new")]  # however long the person took, there was time left for this
        assert second.stop_reason == "deadline"  # but what ran before counts


class TestQuestions:
    ASK = ("ask_user", {"question": "Which colour?", "options": ["red", "blue"]})

    def test_a_question_parks_and_the_answer_is_its_result(self) -> None:
        seen = play([sse(*reply(calls=[self.ASK, LOOK])), sse(*reply("Done"))], all_with(say("green")))
        (pending,) = seen.results[0].pending
        assert (pending.asks, pending.preview) == ("question", "Which colour?\n1. red\n2. blue")
        assert seen.tool_texts == ["green", "saw x"]

    @pytest.mark.parametrize("approvals", ["never", "always", (Rule(action="allow"),), lambda pending: approve])
    def test_no_policy_answers_it(self, approvals: Any) -> None:
        seen = play([sse(*reply(calls=[self.ASK]))], approvals=approvals)
        assert seen.result.pending[0].asks == "question"

    def test_it_may_be_left_unanswered(self) -> None:
        seen = play([sse(*reply(calls=[self.ASK])), sse(*reply("Oh"))], all_with(deny("you decide")))
        assert seen.tool_texts == ["Error: Denied: you decide"]


class TestPolicies:
    def outcome(self, approvals: Any, *calls: tuple[str, Any]) -> Seen:
        ran.clear()
        return play([sse(*reply(calls=calls or [WRITE, LOOK])), sse(*reply("Done"))], approvals=approvals)

    def test_never_asks_nothing(self) -> None:
        assert self.outcome("never").result.stop_reason == "end"
        assert len(ran) == 2

    def test_always_asks_about_every_call(self) -> None:
        assert [p.name for p in self.outcome("always").result.pending] == ["write", "look"]

    def test_by_class(self) -> None:
        rules = [Rule(action="ask", concurrency="read_only"), Rule(action="allow", concurrency="exclusive")]
        assert [p.name for p in self.outcome(rules).result.pending] == ["look"]

    def test_reading_that_asks_is_not_allowed_by_its_class_alone(self) -> None:
        made = tool(needs_approval=True, concurrency="read_only")(look.__wrapped__)

        async def main(rules: list[Rule]) -> RunResult:
            async with ByteServer([sse(*reply(calls=[LOOK])), sse(*reply("Done"))]) as server:
                return await Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[made], approvals=rules).run("Hi")

        assert run_virtual(main([Rule(action="allow", concurrency="read_only")])).stop_reason == "waiting_approval"
        assert run_virtual(main([Rule(action="allow", tool="look")])).stop_reason == "end"

    def test_by_tool_and_argument_pattern(self) -> None:
        rules = [Rule(action="allow", tool="write", arguments={"path": "docs/*"})]
        inside, outside = ("write", {"path": "./docs/a", "text": ""}), ("write", {"path": "src/a", "text": ""})
        assert self.outcome(rules, inside).result.stop_reason == "end"
        assert [p.call_id for p in self.outcome(rules, inside, outside).result.pending] == ["call_1"]
        assert ran == []

    def test_a_pattern_for_something_the_tool_does_not_show_fits_nothing(self) -> None:
        rules = [Rule(action="allow", arguments={"text": "*"})]
        assert self.outcome(rules, WRITE).result.stop_reason == "waiting_approval"

    @pytest.mark.parametrize("action", ["deny", "ask"])
    def test_where_a_rule_may_fit_a_person_is_asked_before_a_later_rule_allows(self, action: Any) -> None:
        rules = [Rule(action=action, arguments={"text": "secret*"}), Rule(action="allow")]
        assert [p.name for p in self.outcome(rules).result.pending] == ["write"]  # `look` has no such argument

    def test_a_tool_that_cannot_say_what_it_acts_on_is_asked_about(self) -> None:
        def unknown(path: str, text: str) -> Any:
            raise KeyError(path)

        made = tool(needs_approval=True, subjects=unknown)(write.__wrapped__)
        ran.clear()
        rules = [Rule(action="deny", arguments={"path": "x"}), Rule(action="allow", arguments={"path": "*"})]

        async def main() -> RunResult:
            async with ByteServer([sse(*reply(calls=[WRITE]))]) as server:
                return await Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[made], approvals=rules).run("Hi")

        assert run_virtual(main()).stop_reason == "waiting_approval"

    def test_the_first_rule_that_fits_decides(self) -> None:
        rules = [Rule(action="deny", tool="wr*", reason="read only today"), Rule(action="allow")]
        seen = self.outcome(rules)
        assert seen.tool_texts == ["Error: Denied: read only today", "saw x"]
        answered = [f for f in seen.facts if isinstance(f, ApprovalAnswered)]
        assert [(f.decision, f.by) for f in answered] == [(deny("read only today"), "policy")]

    def test_a_function_decides_or_lets_a_person(self) -> None:
        def decide(call: PendingCall) -> Any:
            assert call.preview == ("a.txt: old -> new" if call.name == "write" else None)
            return {"write": edit({"path": "c", "text": "t"}), "look": approve}[call.name]

        seen = self.outcome(decide)
        assert ran == [("write", "c", "t"), ("look", "x")]
        assert "It ran with" in seen.tool_texts[0]
        assert self.outcome(lambda call: "ask").result.stop_reason == "waiting_approval"
        assert self.outcome(lambda call: deny()).result.stop_reason == "end"
        assert ran == []

    def test_a_function_that_answers_nonsense_ends_the_run_and_runs_nothing(self) -> None:
        with pytest.raises(UsageError, match="answered bool for a call of write"):
            self.outcome(lambda call: True)
        assert ran == []

    def test_a_function_that_fails_runs_nothing(self) -> None:
        def fail(call: PendingCall) -> Any:
            raise KeyError("x")

        with pytest.raises(KeyError):
            self.outcome(fail)
        assert ran == []

    @pytest.mark.parametrize("approvals", ["sometimes", ["never"], [Rule], [object()]])
    def test_what_is_no_policy_is_refused_at_once(self, approvals: Any) -> None:
        with pytest.raises(UsageError, match="is no approval policy"):
            Agent("ollama/x", approvals=approvals)


class TestAnswers:
    def refused(self, decisions: Any, *calls: tuple[str, Any]) -> UsageError:
        with pytest.raises(UsageError) as caught:
            play([sse(*reply(calls=calls or [WRITE]))], lambda result: decisions)
        assert ran == []
        return caught.value

    def test_an_unknown_call(self) -> None:
        error = self.refused({"call_9": approve})
        assert "no call 'call_9' waits" in error.message
        assert "Waiting: 'call_0'" in error.hint

    def test_arguments_that_the_tool_would_refuse(self) -> None:
        error = self.refused({"call_0": edit({"path": 1})})
        assert "edit() for write: invalid arguments" in error.message

    @pytest.mark.parametrize("decision", [say("yes"), True, "approve", None])
    def test_an_answer_that_is_none(self, decision: Any) -> None:
        assert "is no answer to the approval" in self.refused({"call_0": decision}).message

    def test_approving_a_question(self) -> None:
        error = self.refused({"call_0": approve}, TestQuestions.ASK)
        assert "is no answer to the question" in error.message

    def test_a_run_that_has_ended(self) -> None:
        with pytest.raises(UsageError, match="nothing to resume"):
            play([sse(*reply("Done"))], lambda result: {})

    def test_edit_wants_json(self) -> None:
        with pytest.raises(UsageError, match="cannot be written as JSON"):
            edit({"x": object()})


class TestGuard:
    def test_denials_are_no_fault_of_the_tool_but_six_in_a_row_end_the_run(self) -> None:
        calls = [sse(*reply(calls=[("write", {"path": f"f{n}", "text": ""})])) for n in range(6)]
        seen = play(calls, *[all_with(deny("no"))] * 6)
        assert seen.result.stop_reason == "tool_failures"
        assert not any(isinstance(f, ToolFinished) and f.refused == "failures" for f in seen.facts)


class TestBrokenOff:
    def test_a_failed_run_is_resumed_where_it_failed(self) -> None:
        async def main() -> tuple[RunResult, list[Any]]:
            exchanges = [sse(*reply(calls=[LOOK])), sse(status=500), sse(*reply("Done"))]
            async with ByteServer(exchanges, check_prefix=True) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=TOOLS, retry=RetryPolicy(attempts=1))
                with pytest.raises(Exception) as caught:
                    await agent.run("Hi")
                result = await agent.resume(run_from_json(run_to_json(caught.value.result)))
                return result, [post.json["messages"] for post in server.posts]

        result, requests = run_virtual(main())
        assert (result.text, result.stop_reason) == ("Done", "end")
        assert requests[1] == requests[2]
        assert ran == [("look", "x")]

    def test_a_started_call_is_not_started_again_unless_it_is_repeatable(self) -> None:
        begun: list[str] = []

        @tool
        async def pay() -> str:
            """Pay."""
            begun.append("pay")
            await asyncio.sleep(1000)
            return "paid"

        @tool(repeatable=True)
        async def read() -> str:
            """Read."""
            begun.append("read")
            await asyncio.sleep(1000 if begun.count("read") == 1 else 0)
            return "read"

        async def main(called: Any) -> list[Any]:
            name = called.spec.name
            async with ByteServer([sse(*reply(calls=[(name, {})])), sse(*reply("Done"))]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[called])
                async with agent.stream("Hi") as running:
                    async for event in running:
                        if isinstance(event, ToolStarted):
                            await asyncio.sleep(1)
                            break
                await agent.resume(running.result)
                return [m["content"] for m in server.posts[-1].json["messages"] if m["role"] == "tool"]

        assert "Outcome unknown" in run_virtual(main(pay))[0]
        assert run_virtual(main(read)) == ["read"]
        assert begun == ["pay", "read", "read"]


class TestData:
    def test_a_newer_run_is_refused(self) -> None:
        seen = play([sse(*reply(calls=[WRITE]))])
        newer = run_to_json(seen.result).replace(b'"schema":1', b'"schema":2')
        with pytest.raises(UsageError, match="schema 2"):
            run_from_json(newer)

    @pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"run_id": 1}'])
    def test_what_is_no_run_is_refused(self, data: bytes) -> None:
        with pytest.raises(UsageError, match="not a run"):
            run_from_json(data)


def test_asked_in_one_process_and_answered_in_another(tmp_path: Any) -> None:
    """Two interpreters that share a file and a server."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, pathlib, sys
        from treadle import Agent, HttpDriver, approve, run_from_json, run_to_json, tool
        from treadle.wire.chat import ChatCodec

        url, saved, log = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])

        @tool(needs_approval=True)
        def pay(amount: int) -> str:
            \"\"\"Pay.\"\"\"
            log.write_text(f"paid {amount}")
            return "paid"

        async def main():
            agent = Agent(HttpDriver(ChatCodec(), url, "m"), tools=[pay])
            if not saved.exists():
                result = await agent.run("Pay 5")
                saved.write_bytes(run_to_json(result))
            else:
                result = run_from_json(saved.read_bytes())
                result = await agent.resume(result, {call.call_id: approve for call in result.pending})
            print(result.stop_reason, result.text)

        asyncio.run(main())
    """)
    )
    saved, log = tmp_path / "run.json", tmp_path / "log.txt"

    async def main() -> list[str]:
        async with ByteServer([sse(*reply(calls=[("pay", {"amount": 5})])), sse(*reply("Paid."))]) as server:
            said = []
            for _ in range(2):
                command = [sys.executable, str(script), server.url, str(saved), str(log)]
                process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
                out, _ = await process.communicate()
                said.append(out.decode().strip())
                if len(said) == 1:
                    assert not log.exists()
            return said

    assert asyncio.run(main()) == ["waiting_approval", "end Paid."]
    assert log.read_text() == "paid 5"


class TestToolRetries:
    def play(self, *, repeatable: bool, failures: int, kind: Any = "network", **settings: Any) -> tuple[list[Event], float]:
        attempts: list[int] = []

        @tool(repeatable=repeatable)
        async def flaky() -> str:
            """Fail a few times."""
            attempts.append(1)
            if len(attempts) <= failures:
                raise ToolError("no route", kind=kind)
            return "ok"

        async def main() -> tuple[list[Event], float]:
            async with ByteServer([sse(*reply(calls=[("flaky", {})])), sse(*reply("Done"))]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[flaky], **settings)
                async with agent.stream("Hi") as running:
                    events = [event async for event in running]
                return events, running.result.state.retries

        events, retries = run_virtual(main())
        self.attempts = len(attempts)
        return events, retries

    def test_only_a_repeatable_tool_is_called_again(self) -> None:
        events, retries = self.play(repeatable=True, failures=2)
        assert (self.attempts, retries) == (3, 2)
        names = [type(e).__name__ for e in events if "Tool" in type(e).__name__ and isinstance(e, Fact)]
        assert names == ["ToolStarted", "ToolRetried", "ToolRetried", "ToolFinished"]
        self.play(repeatable=False, failures=2)
        assert self.attempts == 1

    @pytest.mark.parametrize("kind", ["not_found", "permission", "invalid_input", "internal"])
    def test_only_what_may_pass_is_tried_again(self, kind: Any) -> None:
        self.play(repeatable=True, failures=9, kind=kind)
        assert self.attempts == 1

    def test_attempts_and_the_runs_one_budget_bound_it(self) -> None:
        self.play(repeatable=True, failures=99)
        assert self.attempts == 4
        self.play(repeatable=True, failures=99, retry=RetryPolicy(run_budget=1))
        assert self.attempts == 2
