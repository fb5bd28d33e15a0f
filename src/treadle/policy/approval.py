"""Which calls wait for a person, and what their answers come to.

The order is: the gates (known tool, strict arguments), the guard, then this. A call that cannot run is never asked about. No call of
a turn starts while another call of it waits. What a person approved is what they saw: a call whose preview has changed meanwhile
does not run.
"""

from __future__ import annotations

import contextlib
import fnmatch
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from msgspec.structs import replace

from treadle.errors import UsageError
from treadle.values.events import ApprovalAnswered, ApprovalRequested, Fact, Resumed
from treadle.values.messages import ToolCall, ToolMessage
from treadle.values.ports import PreparedCall, Toolbox
from treadle.values.state import OpenCall, State
from treadle.values.text import plain_text, shortened
from treadle.values.toolcalls import Approvals, Approve, Decision, Deny, Edit, PendingCall, Rule, Say

__all__ = ["answered", "changed_since", "check_approvals", "edited_note", "gate", "result_of_decision"]


def check_approvals(approvals: Approvals) -> Approvals:
    """The policy itself.

    Raises:
        UsageError: It is neither a word we know, nor rules, nor a function.
    """
    hint = 'Write "never", "always", a list of `Rule`s, or a function.'
    if inspect.iscoroutinefunction(approvals):
        hint = 'It decides at once. To ask somebody, return "ask" and resume the run with their answer.'
    elif approvals in ("never", "always") or callable(approvals):
        return approvals
    elif not isinstance(approvals, str):
        with contextlib.suppress(TypeError):  # it is nothing to go through
            rules = tuple(approvals)
            if all(type(rule) is Rule for rule in rules):
                return rules
    raise UsageError(f"approvals={approvals!r} is no approval policy", hint=hint)


async def gate(
    open_call: OpenCall, prepared: PreparedCall, approvals: Approvals, *, turn: int, position: int
) -> tuple[Fact, ...]:
    """The facts that come before the call may run; none if it may run now.

    `ApprovalRequested` alone parks the run; with `ApprovalAnswered` after it, the policy has decided in the person's place.

    Raises:
        UsageError: The approval function answered with something that is no decision about a call.
    """
    call = open_call.call
    if open_call.decision is not None:
        return ()
    said = "ask" if prepared.is_question or callable(approvals) else _verdict(prepared, call.name, approvals)
    if said == "allow":
        return ()
    pending = PendingCall(
        call_id=call.id,
        name=call.name,
        arguments=call.arguments,
        asks="question" if prepared.is_question else "approval",
        concurrency=prepared.concurrency,
        preview=None if isinstance(said, Deny) else await prepared.preview(),
    )
    if callable(approvals) and not prepared.is_question:
        said = approvals(pending)
        if said != "ask" and not _is_sound(said, Approve | Deny | Edit):
            if inspect.iscoroutine(said):
                said.close()
            raise UsageError(
                f"the approval function answered {type(said).__name__} for a call of {call.name}",
                hint='It returns `approve`, `deny("why")`, `edit({...})` or "ask".',
            )
    requested = ApprovalRequested(turn=turn, position=position, pending=pending)
    if isinstance(said, Approve | Deny | Edit):  # what a function said is a fact, so it is not asked again
        by_policy = ApprovalAnswered(turn=turn, position=position, call_id=call.id, decision=_written(said), by="policy")
        return requested, by_policy
    return (requested,)


def _verdict(prepared: PreparedCall, name: str, approvals: Approvals) -> Literal["allow", "ask"] | Deny:
    """What a policy of words or rules says; what the tool itself says, where no rule fits."""
    if approvals == "never":
        return "allow"
    if approvals == "always":
        return "ask"
    assert not callable(approvals)
    for rule in approvals:
        assert isinstance(rule, Rule)
        fits = _fits(rule, prepared, name)
        if fits:
            return Deny(rule.reason or "an approval rule says no.") if rule.action == "deny" else rule.action
        if fits is None and rule.action != "allow":
            return "ask"
    return "ask" if prepared.needs_approval else "allow"


def _fits(rule: Rule, prepared: PreparedCall, name: str) -> bool | None:
    """Whether the rule is about this call; None if that cannot be said."""
    if rule.tool is not None and not fnmatch.fnmatchcase(name, rule.tool):
        return False
    if rule.concurrency is not None and rule.concurrency != prepared.concurrency:
        return False
    if rule.tool is None and rule.concurrency == "read_only" and rule.action == "allow" and prepared.needs_approval:
        return False  # `fetch` only reads, and what it asks for leaves the house: that has to be allowed by name
    if not rule.arguments:
        return True
    subjects = prepared.subjects()
    fits: bool | None = True
    for key, pattern in rule.arguments.items():
        subject = subjects.get(key, "")
        if key not in subjects or (subject is not None and not fnmatch.fnmatchcase(subject, pattern)):
            return False
        if subject is None:
            fits = None
    return fits


def result_of_decision(open_call: OpenCall, *, max_chars: int) -> ToolMessage | None:
    """The call's result, if what was decided about it is one: a denial, or an answer to a question."""
    call = open_call.call
    match open_call.decision:
        case Deny(reason=reason):
            said = f"Denied: {reason}" if reason else "Denied, without a reason. Ask, or do something else."
            return ToolMessage(call.id, call.name, shortened(said, max_chars), is_error=True, error_kind="permission")
        case Say(text=text):
            return ToolMessage(call.id, call.name, shortened(text, max_chars))
        case _:
            return None


async def changed_since(open_call: OpenCall, prepared: PreparedCall) -> ToolMessage | None:
    """Why an approved call does not run after all: what it would do is no longer what was shown. None if it is."""
    pending, call = open_call.pending, open_call.call
    if pending is None or not isinstance(open_call.decision, Approve) or await prepared.preview() == pending.preview:
        return None
    said = "Not run: what it would do has changed since it was approved. Look at the present state, then call again."
    if open_call.started:
        said = "Outcome unknown: the call had started when the run was interrupted, and what it would do now is something else."
    return ToolMessage(call.id, call.name, said, is_error=True)


def edited_note(open_call: OpenCall, result: ToolMessage) -> ToolMessage:
    """The result of a call that ran, with the remark that its arguments were changed, if they were."""
    if not isinstance(open_call.decision, Edit):
        return result
    who = "A person" if open_call.decided_by == "person" else "The approval policy"
    ran_with = shortened(open_call.decision.arguments, 1_000)
    return replace(result, note=f"{who} changed the arguments before it ran. It ran with: {ran_with}")


def answered(state: State, decisions: Mapping[str, Decision], toolbox: Toolbox) -> tuple[Fact, ...]:
    """The facts that begin the next segment of a run: `Resumed`, then each answer.

    Raises:
        UsageError: The run cannot be resumed; or an answer is for no waiting call, does not fit what was asked, or has arguments
            that the tool would refuse. Nothing has happened then.
    """
    if not state.resumable:
        raise UsageError(
            f"the run has ended with {state.stop_reason}, so there is nothing to resume",
            hint="To go on with the conversation: agent.run(prompt, history=result.messages).",
        )
    waiting = {c.pending.call_id: (position, c) for position, c in enumerate(state.open_calls) if c.pending and c.waits}
    facts: list[Fact] = [Resumed()]
    for call_id, decision in decisions.items():
        if call_id not in waiting:
            ids = ", ".join(map(repr, waiting)) or "none"
            raise UsageError(f"no call {call_id!r} waits for an answer", hint=f"Waiting: {ids}. See `result.pending`.")
        position, open_call = waiting[call_id]
        _check_fits(decision, open_call, toolbox)
        facts.append(ApprovalAnswered(turn=state.turn, position=position, call_id=call_id, decision=_written(decision)))
    return tuple(facts)


def _check_fits(decision: object, open_call: OpenCall, toolbox: Toolbox) -> None:
    assert open_call.pending is not None
    name, asks = open_call.call.name, open_call.pending.asks
    fitting = Say | Deny if asks == "question" else Approve | Deny | Edit
    if not _is_sound(decision, fitting):
        hints = {"question": '`say("...")` or `deny("why")`', "approval": '`approve`, `deny("why")` or `edit({...})`'}
        raise UsageError(f"{decision!r} is no answer to the {asks} that {name} waits for", hint=f"Answer with {hints[asks]}.")
    if isinstance(decision, Edit):
        prepared = toolbox.prepare(ToolCall(open_call.call.id, name, decision.arguments))
        if isinstance(prepared, ToolMessage):
            raise UsageError(f"edit() for {name}: {prepared.content}", hint="Correct the arguments; the call still waits.")


def _written(decision: Decision) -> Decision:
    """The decision with text that a journal can keep: what a terminal gives may hold half a character."""
    match decision:
        case Deny(reason=reason):
            return Deny(plain_text(reason))
        case Say(text=text):
            return Say(plain_text(text))
        case _:
            return decision


def _is_sound(decision: object, fitting: Any) -> bool:
    """It is one of these, and its text is text."""
    text = getattr(decision, "reason", getattr(decision, "text", getattr(decision, "arguments", "")))
    return isinstance(decision, fitting) and isinstance(text, str)
