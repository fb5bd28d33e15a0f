"""The rules that strict servers check a conversation by, as one list and one function."""

from __future__ import annotations

from collections.abc import Sequence

from treadle.errors import HistoryError
from treadle.values.messages import AssistantMessage, Message, ToolMessage

__all__ = ["check_history"]


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
