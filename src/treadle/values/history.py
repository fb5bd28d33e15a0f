"""The rules that strict servers check a conversation by, as one list and one function."""

from __future__ import annotations

from collections.abc import Sequence

from treadle.errors import HistoryError
from treadle.values.events import Repaired
from treadle.values.messages import AssistantMessage, Message, SystemMessage, ToolCall, ToolMessage, UserMessage

__all__ = ["check_history", "repaired"]


def check_history(messages: Sequence[Message]) -> None:
    """Pass, or say which message breaks which rule.

    1. Every call of an assistant message is followed, before anything else, by exactly one result each, in call order.
    2. A result answers a call of the assistant message before it.
    3. An assistant message is not empty.

    Raises:
        HistoryError: Names the message's index and the rule.
    """
    expected: list[str] = []
    for index, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if not expected or message.call_id != expected[0]:
                raise HistoryError(
                    f"message {index} is a result for the call {message.call_id!r}, which is not the next open call"
                )
            expected.pop(0)
            continue
        if expected:
            raise HistoryError(f"message {index} comes before the result of the call {expected[0]!r}")
        if isinstance(message, AssistantMessage):
            if not message.content:
                raise HistoryError(f"message {index} is an empty assistant message")
            expected = [call.id for call in message.calls]
    if expected:
        raise HistoryError(f"the conversation ends without a result for the call {expected[0]!r}")


def repaired(history: Sequence[Message]) -> tuple[tuple[Message, ...], list[Repaired]]:
    """The conversation in a form that strict servers accept, and what had to be mended for that.

    Missing results are filled in and say so; results in another order are put in call order; results that answer no call, or
    answer one twice, and empty assistant messages are dropped.

    Raises:
        HistoryError: An item is no message at all.
    """
    mended: list[Message] = []
    repairs: list[Repaired] = []
    calls: tuple[ToolCall, ...] = ()
    results: dict[str, ToolMessage] = {}
    call_index = 0

    def close() -> None:
        for call in calls:
            result = results.get(call.id)
            if result is None:
                repairs.append(Repaired(index=call_index, what=f"no result followed the call {call.id!r}; one was added"))
                result = ToolMessage(call.id, call.name, "No result was recorded for this call.", is_error=True)
            mended.append(result)
        if list(results) != [call.id for call in calls if call.id in results]:
            repairs.append(Repaired(index=call_index, what="results were put in call order"))

    for index, message in enumerate(history):
        if isinstance(message, ToolMessage):
            if all(call.id != message.call_id for call in calls):
                repairs.append(Repaired(index=index, what=f"a result for {message.call_id!r} answers no call before it; dropped"))
            elif message.call_id in results:
                repairs.append(Repaired(index=index, what=f"a second result for {message.call_id!r}; dropped"))
            else:
                results[message.call_id] = message
            continue
        close()
        calls, results, call_index = (), {}, index
        if isinstance(message, AssistantMessage):
            if not message.content:
                repairs.append(Repaired(index=index, what="an empty assistant message; dropped"))
                continue
            calls = message.calls
        elif not isinstance(message, UserMessage | SystemMessage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HistoryError(
                f"item {index} of the history is a {type(message).__name__}, which is no message",
                hint="Pass UserMessage, AssistantMessage, ToolMessage or SystemMessage, or `result.messages`.",
            )
        mended.append(message)
    close()
    return tuple(mended), repairs
