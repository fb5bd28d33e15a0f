"""The prefix ledger: is what a server may have of a conversation in its cache still how the next request begins? If not, what moved.

A cache serves a request up to the first byte that differs from an earlier one. Compared is what makes up the prompt: the tools, the
system text and the messages, in this order, cache markers left out. See docs/prefix.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from treadle.values.request import PrefixMove
from treadle.wire.untyped import array, object_, string

__all__ = ["Following", "Ledger", "Prefix", "prefix_move"]

_CHUNK = 4_096
_ENOUGH = 40  # characters: "Hello! How can I help you today?" are 32
_SYSTEM_ROLES = ("system", "developer")

_Bytes: TypeAlias = bytes | bytearray


class Prefix(Struct):
    """What of a request a server may keep, as bytes of its JSON.

    Attributes:
        name: The field of the messages: `messages`, `input`, `contents`.
        tools: Their array; empty if there are none.
        system: The system text, where it is not among the messages.
        messages: Their items. Grows from request to request.
        end: What closes the last of them, if the format leaves it open for more.
    """

    name: str = "messages"
    tools: bytes = b""
    system: bytes = b""
    messages: bytearray = msgspec.field(default_factory=bytearray)
    end: bytes = b""

    def __len__(self) -> int:
        return len(self.tools) + len(self.system) + len(self.messages)

    def __repr__(self) -> str:
        return f"Prefix({self.name!r}, {len(self):,} bytes)"  # what is in it is the user's


class Ledger:
    """The last conversations with one model. A run that goes on with one of them is compared with how that was sent.

    Holds what runs have written, not copies: at most 8 conversations and 4 MB, the longest unused go first. What is larger than that by itself
    is not kept.
    """

    _CONVERSATIONS = 8
    _BYTES = 4_000_000

    def __init__(self) -> None:
        self._kept: list[Prefix] = []

    def add(self, prefix: Prefix) -> None:
        """Keep what was just sent, as the newest."""
        kept = [each for each in self._kept if each is not prefix]
        if len(prefix) <= self._BYTES:
            kept.append(prefix)
        while len(kept) > self._CONVERSATIONS or sum(map(len, kept)) > self._BYTES:
            del kept[0]
        self._kept = kept

    def continued(self, prefix: Prefix) -> PrefixMove | None:
        """What moved between a conversation and the first request of a run that goes on with it; None if nothing did, or if it is
        not certain which conversation that is."""
        kept = [each for each in reversed(self._kept) if each is not prefix and each.messages]
        same_head = [each for each in kept if each.tools == prefix.tools and each.system == prefix.system]
        for each in same_head:
            if prefix.messages.startswith(each.messages) or each.messages.startswith(prefix.messages):
                return None
        items = _without_system(_items(prefix))
        if not any(_role(item) in ("assistant", "model") for item in items):
            return None  # goes on with nothing
        known = [(each, _without_system(_items(each))) for each in kept if items[0] in each.messages]
        found = [each for each, before in known if _is_continued(before, items, [other for _, other in known])]
        nearest = max(found, key=lambda each: _common(each, prefix), default=None)
        return prefix_move(nearest, prefix) if nearest is not None else None


class Following:
    """The requests of one run, as a ledger sees them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_first = True
        self._moved: PrefixMove | None = None

    def sent(self, prefix: Prefix, moved: PrefixMove | None) -> None:
        """A request is sent.

        Args:
            moved: Since the request before it, of the same run.
        """
        if self._is_first:
            moved = self._ledger.continued(prefix)
        self._is_first = False
        self._moved = moved or self._moved
        self._ledger.add(prefix)

    def take(self) -> PrefixMove | None:
        """What moved since this was asked last. A request that failed was heard of by nobody."""
        moved, self._moved = self._moved, None
        return moved


def prefix_move(before: Prefix, after: Prefix, sent: int | None = None) -> PrefixMove | None:
    """What moved between two requests of a conversation; None if the one begins with the other.

    Args:
        sent: How long the first was when it was sent, if its messages have been extended since.
    """
    sent = len(before) if sent is None else sent
    kept = _common(before, after)
    if kept >= min(sent, len(after)) and before.tools == after.tools and before.system == after.system:
        return None
    if before.tools != after.tools:
        what = _tools_words(_parsed(before.tools), _parsed(after.tools))
    elif before.system != after.system:
        what = "the system text"
    else:
        what = _messages_words(after.name, _items(before), _items(after))
    lost = min(sent, len(after)) - kept
    return PrefixMove(component=what, byte=kept, lost_share=round(lost / max(len(after), 1), 4))


# Where the bytes part


def _common(before: Prefix, after: Prefix) -> int:
    """How many bytes are the same, tools first, then the system text, then messages."""
    at = _common_length(before.tools, after.tools)
    if before.tools != after.tools:
        return at
    at += _common_length(before.system, after.system)
    if before.system != after.system:
        return at
    return at + _common_length(before.messages, after.messages)


def _common_length(a: _Bytes, b: _Bytes) -> int:
    end, at = min(len(a), len(b)), 0
    while at < end and a[at : at + _CHUNK] == b[at : at + _CHUNK]:
        at += _CHUNK
    at = min(at, end)
    while at < end and a[at] == b[at]:
        at += 1
    return at


# Which conversation it is


def _is_continued(before: Sequence[bytes], after: Sequence[bytes], kept: Sequence[Sequence[bytes]]) -> bool:
    """The longer one goes on with the shorter: what was changed on the way is what is looked for.

    It begins with the same message, has most of the others, the question that was asked last, and of the model's last turn enough that
    nobody else was told the same. Greetings, examples in front and the instructions of one user among many are no evidence.

    Args:
        kept: All conversations, this one too.
    """
    if not before or len(before) >= len(after):
        return False
    there = set(after)
    if before[0] != after[0] or sum(item in there for item in before) * 2 < len(before):
        return False
    asked = max((at for at, item in enumerate(before) if not _is_model(item)), default=0)  # what the user said last
    if before[asked] not in there:
        return False
    turn = before[asked + 1 :] or before[:asked]
    turn = turn[max((at + 1 for at, item in enumerate(turn) if not _is_model(item)), default=0) :]
    said = [item for item in turn if item in there]
    for other in kept:
        same = min(len(other), len(before))
        if other[:same] != before[:same]:  # another conversation: what both have is a head that both were given
            others = set(other)
            said = [item for item in said if item not in others]
    return sum(_characters(_value(item)) for item in said) >= _ENOUGH


def _is_model(item: bytes) -> bool:
    """It is of the model's turn: what it said, or the result of a call, which has the model's own id of it."""
    fields = _value(item)
    inner = [object_(each) for field in ("content", "parts") for each in array(fields.get(field))]
    is_result = any(string(each.get("type")) in _RESULT_TYPES or "functionResponse" in each for each in (fields, *inner))
    return is_result or _role(item) in ("assistant", "model", "tool")


def _characters(value: Any) -> int:
    """Of all the texts in it, without what the format says itself."""
    if isinstance(value, str):
        return len(value)
    inner = [each for key, each in object_(value).items() if key not in ("role", "type", "status")]
    return sum(map(_characters, (*inner, *array(value))))


def _items(prefix: Prefix) -> list[bytes]:
    """The messages, each as its JSON."""
    return _parsed(b"[" + prefix.messages + prefix.end + b"]") if prefix.messages else []


def _without_system(items: Sequence[bytes]) -> list[bytes]:
    return [item for item in items if _role(item) not in _SYSTEM_ROLES]


def _role(item: bytes) -> str:
    fields = _value(item)
    return string(fields.get("role")) or ("assistant" if fields.get("type") in ("function_call", "reasoning") else "")


def _parsed(array_: bytes) -> list[bytes]:
    try:
        return [bytes(raw) for raw in msgspec.json.decode(array_, type=list[msgspec.Raw])] if array_ else []
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return []


def _fields(object__: bytes) -> dict[str, bytes]:
    return {key: bytes(raw) for key, raw in msgspec.json.decode(object__, type=dict[str, msgspec.Raw]).items()}


def _value(item: bytes) -> dict[str, Any]:
    return object_(msgspec.json.decode(item))


# What it is called


def _tools_words(before: Sequence[bytes], after: Sequence[bytes]) -> str:
    old, new = _tools(before), _tools(after)
    if not old or not new:
        return "the tools, which are new" if new else "the tools, which are gone"
    for index in range(max(len(old), len(new))):
        was, now = old[index : index + 1], new[index : index + 1]
        if was == now:
            continue
        if now and now[0][0] not in [name for name, _ in old]:
            return f"the tool `{now[0][0]}`, which is new"
        if was and was[0][0] not in [name for name, _ in new]:
            return f"the tool `{was[0][0]}`, which is gone"
        if was and now and was[0][0] == now[0][0]:
            return f"the tool `{now[0][0]}`, which changed"
        return f"the order of the tools, from `{(now or was)[0][0]}` on"
    return "the tools"


def _tools(items: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Each with its name. Gemini has one more level."""
    tools: list[tuple[str, bytes]] = []
    for item in items:
        fields = _fields(item)
        if "functionDeclarations" in fields:
            tools += _tools(_parsed(fields["functionDeclarations"]))
        else:
            value = _value(item)
            tools.append((string(value.get("name")) or string(object_(value.get("function")).get("name")), item))
    return tools


_Trail: TypeAlias = list[tuple[str, dict[str, Any]]]
"""The way to a difference: each field's name and the object that has it, outermost first."""


def _messages_words(name: str, before: Sequence[bytes], after: Sequence[bytes]) -> str:
    for index, (was, now) in enumerate(zip(before, after, strict=False)):
        if was == now:
            continue
        where = f"{name}[{index}]"
        if _role(was) in _SYSTEM_ROLES or _role(now) in _SYSTEM_ROLES:
            return "the system text"
        calls = {id: called for item in before for id, called in _calls(msgspec.json.decode(item))}
        if now in before[index + 1 :]:
            return f"{where}: {_words([('', _value(was))], calls)}, which is gone"
        if was in after[index + 1 :]:
            return f"{where}: {_words([('', _value(now))], calls)}, which is new"
        if _role(was) != _role(now):
            return f"{where}: another message"
        trail, suffix = _difference(was, now)
        return f"{where}: {_words(trail, calls)}{suffix}"
    return f"{name}[{min(len(before), len(after))}]"


def _difference(was: bytes, now: bytes) -> tuple[_Trail, str]:
    """The way to the first thing that is not as it was, byte for byte, and what became of it."""
    if was[:1] == now[:1] == b"{":
        old, new = _fields(was), _fields(now)
        for key in (*old, *new):
            if old.get(key) == new.get(key):
                continue
            if key not in old or key not in new:
                holder, suffix = (now, ", which is new") if key in new else (was, ", which is gone")
                return [(key, _value(holder))], suffix
            trail, suffix = _difference(old[key], new[key])
            return [(key, _value(now)), *trail], suffix
    elif was[:1] == now[:1] == b"[":
        old_items, new_items = _parsed(was), _parsed(now)
        for index in range(max(len(old_items), len(new_items))):
            old_item, new_item = old_items[index : index + 1], new_items[index : index + 1]
            if old_item == new_item:
                continue
            if not old_item or (old_item[0] in new_items[index + 1 :]):
                return [("", object_(msgspec.json.decode(new_item[0])))], ", which is new"
            if not new_item or (new_item[0] in old_items[index + 1 :]):
                return [("", object_(msgspec.json.decode(old_item[0])))], ", which is gone"
            return _difference(old_item[0], new_item[0])
    return [], ""


_REASONING_FIELDS = frozenset(
    {"reasoning", "reasoning_content", "thinking", "signature", "thoughtSignature", "encrypted_content"}
)
_REASONING_TYPES = frozenset({"thinking", "redacted_thinking", "reasoning"})
_ARGUMENTS = ("arguments", "input", "args")
_RESULT_TYPES = ("tool_result", "function_call_output")
_ATTACHED = frozenset(
    {"image_url", "image", "images", "source", "inlineData", "file", "file_data", "document", "input_image", "input_file"}
)


def _words(trail: _Trail, calls: dict[str, str]) -> str:
    """What stands at the end of the trail, in words: the innermost object that says what it is."""
    for at in range(len(trail) - 1, -1, -1):
        key, here = trail[at]
        kind = string(here.get("type"))
        if key in _REASONING_FIELDS or kind in _REASONING_TYPES or here.get("thought") is True:
            return "the reasoning"
        if response := object_(here.get("functionResponse")):
            here, kind = response, "tool_result"
        if kind in _RESULT_TYPES or here.get("role") == "tool":
            id = _id(here)
            called = string(here.get("name")) or string(here.get("tool_name")) or calls.get(id, "")
            return f"the result of `{called or id}`"
        if call := _call(here):
            outer = trail[max(at - 1, 0)][1]
            id = call[0] or _id(outer)  # in Chat Completions it stands beside the function
            what = "the arguments of the call" if any(each in _ARGUMENTS for each, _ in trail) else "the call"
            return f"{what}{f' `{id}`' if id else ''} of `{call[1]}`"
        if key in _ATTACHED or kind in _ATTACHED:
            return "an attachment"
    role = string(trail[0][1].get("role")) if trail else ""
    who = {"user": "the user's", "assistant": "the model's", "model": "the model's"}.get(role, "the")
    return f"{who} {'message' if len(trail) == 1 and not trail[0][0] else 'text'}"


def _call(here: dict[str, Any]) -> tuple[str, str] | None:
    """Id and name, if the object is a call."""
    inner = object_(here.get("function")) or object_(here.get("functionCall")) or here
    name = string(inner.get("name"))
    return (_id(here) or _id(inner), name) if name and any(each in inner for each in _ARGUMENTS) else None


def _id(here: dict[str, Any]) -> str:
    return next((id for field in ("call_id", "tool_call_id", "tool_use_id", "id") if (id := string(here.get(field)))), "")


def _calls(value: Any) -> list[tuple[str, str]]:
    """Every call in a message: id and name."""
    found: list[tuple[str, str]] = []
    here = object_(value)
    if call := _call(here):
        found.append(call)
    for inner in (*here.values(), *array(value)):
        if isinstance(inner, dict | list):
            found += _calls(inner)
    return found
