"""`apply`: the only code that changes a run's state. Pure, so that a journal folds to the same state for ever."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from treadle.policy import guard
from treadle.policy.pruning import pruned
from treadle.values.events import (
    ApprovalAnswered,
    ApprovalRequested,
    Asked,
    Compacted,
    ContextPlanned,
    Discarded,
    Ended,
    Fact,
    Failed,
    Omitted,
    PrefixMoved,
    Prompted,
    Pruned,
    Repaired,
    Replied,
    Resumed,
    Retried,
    ToolFinished,
    ToolProgress,
    ToolRetried,
    ToolStarted,
)
from treadle.values.messages import Message, ToolMessage
from treadle.values.state import OpenCall, State

__all__ = ["apply", "begin", "fold"]

# A reply cut by `length` may hold half an argument that happens to parse; a reason nobody knows may mean the same.
_NOT_WHOLE = {
    "length": "Not run: the reply was cut before its end, so this call may be incomplete.",
    "refused": "Not run: the reply was ended by a refusal.",
    "unknown": "Not run: the server gave an unknown reason for ending the reply, so this call may be incomplete.",
}


def begin(fact: Asked) -> State:
    """The state of a run that has just been asked."""
    return State(run_id=fact.run_id, model=fact.model, closed=fact.messages)


def apply(state: State, fact: Fact) -> State:
    """The state after a fact."""
    if isinstance(fact, Replied):
        why = _NOT_WHOLE.get(fact.finish)
        calls = tuple(
            OpenCall(call, result=_quoted(call.id, call.name, why, call.arguments) if why else None)
            for call in fact.message.calls
        )
        progress = guard.not_run(state.progress, turn=fact.turn) if calls and fact.finish == "unknown" else state.progress
        return _close(
            replace(
                state,
                progress=progress,
                closed=(*state.closed, fact.message) if fact.message.content else state.closed,
                open_calls=calls,
                turn=fact.turn,
                text=fact.message.text,
                called=bool(fact.message.calls),
                last_usage=fact.usage if fact.cut is None else None,
                counted_messages=len(state.closed) + bool(fact.message.content),
                # After a change of ours the cache had to miss; that says nothing about the next turn.
                is_cold=fact.usage.cached_input_tokens == 0 and state.last_usage is not None,
                overflowed=False,
                finish=fact.finish,
                usage=fact.usage if state.usage is None else state.usage + fact.usage,
                cache=state.cache.after(fact.usage),
                cut=fact.cut,
                attempt=0,
                attempts_on_driver=0,
                shown_as=0,
                wait_s=0.0,
                continues=None,
                output_tokens=state.output_tokens + fact.output_tokens,
                reasoning_tokens=state.reasoning_tokens + fact.reasoning_tokens,
            )
        )
    if isinstance(fact, ToolStarted):
        return _with_call(state, fact.position, started=True, changes=fact.changes)
    if isinstance(fact, ToolFinished):
        return _close(_finished(state, fact))
    if isinstance(fact, ToolRetried):
        return replace(state, retries=state.retries + 1)
    if isinstance(fact, ApprovalRequested):
        return _with_call(state, fact.position, pending=fact.pending, stale=False)
    if isinstance(fact, ApprovalAnswered):
        return _with_call(state, fact.position, decision=fact.decision, decided_by=fact.by)
    if isinstance(fact, Resumed):
        # An attempt that broke off was shown under its number, so the next one has another.
        attempt = state.attempt + (state.stop_reason != "waiting_approval")
        calls = tuple(replace(call, stale=True) if call.waits else call for call in state.open_calls)
        fresh = replace(state, stop_reason=None, error=None, partial=None, continues=None, shown_as=0, wait_s=0.0)
        # What was learnt of a server in the segment before may not be true of the one that is asked now.
        fresh = replace(fresh, last_usage=None, is_cold=True, overflowed=False, schema_refused=False, output_asks=0)
        return replace(fresh, attempt=attempt, attempts_on_driver=0, driver=0, open_calls=calls)
    if isinstance(fact, Retried):
        return replace(
            state,
            attempt=state.attempt + 1,
            attempts_on_driver=state.attempts_on_driver + 1 if fact.driver == state.driver else 0,
            shown_as=0 if fact.continues is None else fact.attempt,
            retries=state.retries + 1,
            wait_s=fact.wait_s,
            driver=fact.driver,
            continues=fact.continues,
            last_usage=state.last_usage if fact.driver == state.driver else None,
            is_cold=state.is_cold or fact.driver != state.driver,
            overflowed=fact.driver == state.driver and (state.overflowed or fact.error.kind == "ContextOverflow"),
            output_asks=state.output_asks if fact.driver == state.driver else 0,
            schema_refused=fact.schema_refused or (state.schema_refused and fact.driver == state.driver),
            output_tokens=state.output_tokens + fact.output_tokens,
            reasoning_tokens=state.reasoning_tokens + fact.reasoning_tokens,
        )
    if isinstance(fact, Discarded):
        return replace(state, continues=None, shown_as=0)  # what was shown is void, the part that was to be gone on from too
    if isinstance(fact, Pruned):
        return replace(state, closed=pruned(state.closed, fact), revision=state.revision + 1, last_usage=None)
    if isinstance(fact, Compacted):
        return _compacted(state, fact)
    if isinstance(fact, PrefixMoved):
        return replace(state, cache=state.cache.broken(fact.component, fact.lost_tokens))
    if isinstance(fact, Prompted):
        asked = replace(state, closed=(*state.closed, fact.message), finish=None, cut=None)
        return replace(asked, output_asks=state.output_asks + 1) if fact.why == "output" else replace(asked, prompted=True)
    if isinstance(fact, Ended):
        elapsed_s = state.elapsed_s + fact.elapsed_s
        return replace(state, stop_reason=fact.stop_reason, partial=fact.partial, elapsed_s=elapsed_s)
    if isinstance(fact, Failed):
        return replace(state, error=fact.error, partial=fact.partial)
    assert isinstance(fact, Asked | Repaired | Omitted | ContextPlanned | ToolProgress), f"no rule for {type(fact).__name__}"
    return state


def fold(facts: list[Fact]) -> State:
    """The state that a journal comes to. Its first fact is `Asked`."""
    first, *rest = facts
    assert isinstance(first, Asked)
    state = begin(first)
    for fact in rest:
        state = apply(state, fact)
    return state


def _with_call(state: State, position: int, **changes: Any) -> State:
    calls = list(state.open_calls)
    calls[position] = replace(calls[position], **changes)
    return replace(state, open_calls=tuple(calls))


def _compacted(state: State, fact: Compacted) -> State:
    gone = set(fact.dropped)
    kept: list[Message] = []
    for index, message in enumerate(state.closed):
        if index == fact.dropped[0] and fact.summary is not None:
            kept.append(fact.summary)
        if index not in gone:
            kept.append(message)
    usage = state.usage
    if fact.usage is not None:
        usage = fact.usage if usage is None else usage + fact.usage
    return replace(
        state,
        closed=tuple(kept),
        originals=state.originals + tuple(state.closed[index] for index in fact.dropped),
        revision=state.revision + 1,
        last_usage=None,
        usage=usage,
        output_tokens=state.output_tokens + fact.output_tokens,
        reasoning_tokens=state.reasoning_tokens + fact.reasoning_tokens,
    )


def _finished(state: State, fact: ToolFinished) -> State:
    open_call = state.open_calls[fact.position]
    progress = guard.after(
        state.progress,
        open_call.to_run,
        fact.result,
        turn=fact.turn,
        changes=open_call.started and open_call.changes,
        refused=fact.refused,
    )
    return replace(_with_call(state, fact.position, result=fact.result), progress=progress)


def _close(state: State) -> State:
    """When the last call of a turn has its result, all of them join the conversation, in call order."""
    results = tuple(call.result for call in state.open_calls if call.result is not None)
    if len(results) < len(state.open_calls) or not results:
        return state
    return replace(state, closed=state.closed + results, open_calls=())


def _quoted(call_id: str, name: str, why: str, arguments: str) -> ToolMessage:
    return ToolMessage(call_id, name, f"{why} Its arguments as received: {arguments[:500]}", is_error=True)
