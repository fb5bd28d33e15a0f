"""The rules that strict servers check a conversation by, as one list and one function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from treadle.errors import HistoryError
from treadle.values.events import Repaired
from treadle.values.messages import AssistantMessage, Message, Part, SystemMessage, ToolCall, ToolMessage, UserMessage
from treadle.values.openai import message_from_dict

__all__ = ["check_history", "repaired"]


def check_history(messages: Sequence[Message]) -> None:
    """Pass, or say which message breaks which rule.

    0. The calls of a turn have ids, each its own; a system message comes first or not at all.
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
            if len(set(expected)) < len(expected) or "" in expected:
                raise HistoryError(f"message {index} has calls without an id of their own")
        elif isinstance(message, SystemMessage) and index:
            raise HistoryError(f"message {index} is a system message that is not the first")
    if expected:
        raise HistoryError(f"the conversation ends without a result for the call {expected[0]!r}")


def repaired(history: Sequence[Message | Mapping[str, Any]]) -> tuple[tuple[Message, ...], list[Repaired]]:
    """The conversation in a form that strict servers accept, and what had to be mended for that.

    Missing results are filled in and say so; results in another order are put in call order; results that answer no call, or
    answer one twice, and empty assistant messages are dropped; calls of a turn that share an id, or have none, get ids of
    their own; a system message that is not the first becomes one of the user's. OpenAI-style dicts become messages.

    Raises:
        HistoryError: An item is no message, or holds something of another type than it should.
    """
    mending = _Mending()
    names: dict[str, str] = {}
    for index, item in enumerate(history):
        message = message_from_dict(item, index, names) if isinstance(item, Mapping) else item
        _check_types(index, message)
        mending.add(index, message)
    mending.close_turn()
    return tuple(mending.messages), mending.repairs


class _Mending:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.repairs: list[Repaired] = []
        self._turn = 0  # the index of the assistant message whose results are being collected
        self._calls: tuple[ToolCall, ...] = ()
        self._renamed: dict[str, list[str]] = {}  # ids as they were given -> ids as they are now, in call order
        self._results: dict[str, ToolMessage] = {}

    def add(self, index: int, message: Message) -> None:
        if isinstance(message, ToolMessage):
            self._result(index, message)
            return
        self.close_turn()
        if isinstance(message, AssistantMessage):
            if not message.content:
                self._note(index, "an empty assistant message; dropped")
                return
            message = self._with_ids(index, message)
            self._turn, self._calls, self._results = index, message.calls, {}
        elif isinstance(message, SystemMessage) and self.messages:
            self._note(index, "a system message that is not the first; sent as the user's")
            message = UserMessage(message.content)
        self.messages.append(message)

    def close_turn(self) -> None:
        for call in self._calls:
            result = self._results.get(call.id)
            if result is None:
                self._note(self._turn, f"no result followed the call {call.id!r}; one was added")
                result = ToolMessage(call.id, call.name, "No result was recorded for this call.", is_error=True)
            self.messages.append(result)
        if list(self._results) != [call.id for call in self._calls if call.id in self._results]:
            self._note(self._turn, "results were put in call order")
        self._calls, self._results, self._renamed = (), {}, {}

    def _result(self, index: int, message: ToolMessage) -> None:
        ids = self._renamed.get(message.call_id)
        if ids is None:
            self._note(index, f"a result for {message.call_id!r} answers no call before it; dropped")
        elif not ids:
            self._note(index, f"a second result for {message.call_id!r}; dropped")
        else:
            id = ids.pop(0)
            self._results[id] = message if id == message.call_id else replace(message, call_id=id)

    def _with_ids(self, index: int, message: AssistantMessage) -> AssistantMessage:
        content: list[Part] = []
        taken = {part.id for part in message.content if isinstance(part, ToolCall)}
        used: set[str] = set()
        self._renamed = {}
        for part in message.content:
            if isinstance(part, ToolCall):
                id, n = part.id, 0
                while not id or id in used:
                    id, n = f"call_{index}_{len(used) + n}", n + 1
                    if id in taken:
                        id = ""
                used.add(id)
                self._renamed.setdefault(part.id, []).append(id)
                if id != part.id:
                    self._note(index, f"a call had the id {part.id!r}, which is not its own; it got {id!r}")
                    part = replace(part, id=id)
            content.append(part)
        return AssistantMessage(tuple(content))

    def _note(self, index: int, what: str) -> None:
        self.repairs.append(Repaired(index=index, what=what))


def _check_types(index: int, message: object) -> None:
    if not isinstance(message, UserMessage | AssistantMessage | ToolMessage | SystemMessage):
        raise HistoryError(
            f"item {index} of the history is a {type(message).__name__}, which is no message",
            hint="Pass UserMessage, AssistantMessage, ToolMessage or SystemMessage, or `result.messages`.",
        )
    try:
        if msgspec.convert(msgspec.to_builtins(message), type(message)) != message:
            raise TypeError("a part is not a Text, Thinking or ToolCall")
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
        raise HistoryError(
            f"item {index} of the history, a {type(message).__name__}, does not hold what it should: {error}",
            hint="Texts are str, the content of an AssistantMessage is a tuple of Text, Thinking and ToolCall.",
        ) from None
