"""The output items of a Responses reply, folded into one message and the deltas to show for it.

Which item does an event belong to? Servers disagree on ids and indices (llama.cpp sends no indices, some gateways give an
item another id in each event), so, in order: the open item with exactly this id; the open item at this `output_index`; the
last open item of this kind, unless both have an index and they differ; else a new one.

What is final wins for a call's arguments, what was shown wins for text: a final text that goes on from what was streamed
adds the rest, any other is passed over. The finished response adds only items that the stream did not bring.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
from msgspec import Struct

from treadle.errors import BadStream
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import AssistantMessage, Opaque, Part, Text, Thinking, ToolCall
from treadle.wire.untyped import array, mended, object_, string

__all__ = ["FORMAT", "MAX_ITEMS", "ItemsFold", "WrittenItem"]

FORMAT = "responses"
MAX_ITEMS = 1_000

_CONTENTS = {"message": {"content"}, "function_call": {"call_id", "name", "arguments"}}
"""What parts of ours hold of an item. The rest of it is its head."""


class WrittenItem(Struct, gc=False):
    """An item as it is written, as far as it is looked at."""

    type: Any = None
    id: Any = None
    call_id: Any = None
    name: Any = None
    arguments: msgspec.Raw = msgspec.Raw()  # text in JSON; an object from some, kept as it is written
    content: Any = None
    summary: Any = None


_decode_item = msgspec.json.Decoder(WrittenItem).decode


class _Item:
    __slots__ = (
        "arguments", "call_id", "done", "head", "id", "index", "kind", "length", "name", "order", "part", "pieces", "position",
        "raw", "refusal", "said", "tail", "way",
    )  # fmt: skip

    def __init__(self, kind: str, order: int, id: str = "", index: int | None = None) -> None:
        self.kind = kind
        self.order = order
        self.id = id
        self.index = index
        self.call_id = self.name = ""
        self.position = 0
        self.pieces: list[str] = []  # shown at this item's place
        self.said: list[str] = []  # all that was streamed for it
        self.length = 0
        self.arguments: str | None = None  # as the finished item has them
        self.raw = ""  # the finished item, as it was written
        self.head: dict[str, Any] = {}
        self.done = self.refusal = False
        self.way = ""
        self.part: Any = None
        self.tail: _Item | None = None  # where late pieces go, so that the message reads in the order it was shown


class ItemsFold:
    """Collects a reply. Deltas of one kind that follow each other are merged until `take` is called."""

    def __init__(self, *, turn: int, attempt: int, call_id_prefix: str) -> None:
        self._turn = turn
        self._attempt = attempt
        self._prefix = call_id_prefix
        self._items: list[_Item] = []
        self._of_kind: defaultdict[str, list[_Item]] = defaultdict(list)
        self._by_id: dict[str, _Item] = {}
        self._by_index: dict[int, _Item] = {}
        self._written_at = {"message": -1, "reasoning": -1}
        self._deltas: list[Delta] = []
        self._shown: list[str] = []
        self._showing: str | _Item = ""
        self.empty = True
        self.refused = False

    # Writing

    def added(self, raw: bytes, index: Any) -> None:
        item = _read(raw)
        kind, id = string(item.type), string(item.id)
        if not kind:
            return
        known = self._by_id.get(id)
        call_id = string(item.call_id)
        if known is None or known.kind != kind or known.done or (call_id and known.call_id not in ("", call_id)):
            known = self._new(kind, id, index)
        self._name(known, item)

    def text(self, id: Any, index: Any, piece: str, *, refusal: bool = False) -> None:
        item = self._find("message", id, index)
        item.refusal = item.refusal or refusal
        self.refused = self.refused or refusal
        self._write(item, piece)

    def thinking(self, id: Any, index: Any, piece: str, *, way: str, part: Any = None) -> None:
        """More reasoning. An item that shows both its text and a summary of it is shown the way it began."""
        item = self._find("reasoning", id, index)
        if not item.way:
            item.way, item.part = way, part
        if item.way != way:
            return
        if part != item.part:
            item.part = part
            self._write(item, "\n\n")
        self._write(item, piece)

    def arguments(self, id: Any, index: Any, piece: str) -> None:
        item = self._find("function_call", id, index)
        item.said.append(piece)
        item.length += len(piece)
        self._show(item, piece)

    def done(self, raw: bytes, index: Any) -> None:
        """An item is whole."""
        item = _read(raw)
        kind, id, call_id = string(item.type), string(item.id), string(item.call_id)
        if not kind:
            return
        known = self._by_id.get(id)
        if known is not None and known.kind == kind and (not call_id or known.call_id in ("", call_id)):
            if known.done:
                return  # said twice
        else:
            open_ = [each for each in self._of_kind[kind] if not each.done]
            known = next((each for each in open_ if call_id and each.call_id == call_id), None)
            known = known or next((each for each in open_ if _same_index(each, index) and not _differs(each, call_id)), None)
        self._finish(known or self._new(kind, id, index), item, raw)

    def final(self, output: list[bytes]) -> None:
        """The items of the finished response: those that the stream did not bring, or not whole."""
        seen: defaultdict[str, int] = defaultdict(int)
        for raw in output:
            item = _read(raw)
            kind = string(item.type)
            if not kind:
                continue
            nth, seen[kind] = seen[kind], seen[kind] + 1
            known = self._of_kind[kind][nth] if nth < len(self._of_kind[kind]) else self._new(kind, string(item.id), None)
            if not known.done:
                self._finish(known, item, raw)

    def _new(self, kind: str, id: str, index: Any) -> _Item:
        if len(self._items) >= MAX_ITEMS:
            raise BadStream(f"more than {MAX_ITEMS:,} items in one turn", hint="The model or its server is running wild.")
        item = _Item(kind, len(self._items), id, index if type(index) is int else None)
        self._items.append(item)
        if kind == "function_call":
            item.position = len(self._of_kind[kind])
        self._of_kind[kind].append(item)
        if id:
            self._by_id[id] = item
        if item.index is not None:
            self._by_index[item.index] = item
        return item

    def _find(self, kind: str, id: Any, index: Any) -> _Item:
        id = string(id)
        item = self._by_id.get(id)
        if item is not None and item.kind == kind and not item.done:
            return item
        item = self._by_index.get(index) if type(index) is int else None
        if item is not None and item.kind == kind and not item.done:
            return item
        of_kind = self._of_kind[kind]
        if of_kind and not of_kind[-1].done and _same_index(of_kind[-1], index):
            return of_kind[-1]
        item = self._new(kind, id, index)
        if kind == "function_call":
            self._show(item, "")
        return item

    def _name(self, item: _Item, written: WrittenItem) -> None:
        if item.kind == "function_call":
            item.call_id = item.call_id or string(written.call_id)
            if not item.name:
                self._flush()  # what was shown before was shown without it, wherever the bytes were cut
                item.name = string(written.name)
            self._show(item, "")

    def _finish(self, item: _Item, written: WrittenItem, raw: bytes) -> None:
        item.done = True
        self.empty = False
        item.raw = raw.decode("utf-8", "replace")
        item.head = {k: v for k, v in _object(raw).items() if v is not None and k not in _CONTENTS.get(item.kind, ())}
        if item.kind == "message":
            said = ""
            for part in map(object_, array(written.content)):
                refusal = string(part.get("refusal"))
                item.refusal = item.refusal or bool(refusal)
                said += refusal or string(part.get("text"))
            self.refused = self.refused or item.refusal
            self._rest(item, said or string(written.content))
        elif item.kind == "reasoning":
            way = {"summary": (written.summary, "\n\n"), "text": (written.content, "")}
            for name in (item.way,) if item.way else ("summary", "text"):
                parts, between = way[name]
                if said := between.join(string(object_(part).get("text")) for part in array(parts)):
                    self._rest(item, said)
                    break
        elif item.kind == "function_call":
            self._name(item, written)
            arguments = _arguments(written.arguments)
            if arguments is not None:
                item.arguments = arguments
                streamed = "".join(item.said)
                if arguments.startswith(streamed) and arguments != streamed:
                    self._show(item, arguments[len(streamed) :])

    def _rest(self, item: _Item, said: str) -> None:
        """Text that only the finished item has."""
        if len(said) > item.length and said.startswith("".join(item.said)):
            self._write(item, said[item.length :])

    def _write(self, item: _Item, piece: str) -> None:
        item.said.append(piece)
        item.length += len(piece)
        place = item.tail or item
        if place.order < self._written_at[item.kind]:
            place = item.tail = _Item(item.kind, len(self._items))
            place.refusal, place.way = item.refusal, item.way
            if len(self._items) >= 2 * MAX_ITEMS:
                raise BadStream("the items of the answer are interleaved without end", hint="The server is faulty or hostile.")
            self._items.append(place)
        self._written_at[item.kind] = place.order
        place.pieces.append(piece)
        self._show("text" if item.kind == "message" else "thinking", piece)

    # Showing

    def _show(self, what: str | _Item, piece: str) -> None:
        self.empty = False
        if self._showing != what:
            self._flush()
            self._showing = what
        self._shown.append(piece)

    def take(self) -> list[Delta]:
        """The deltas since the last `take`."""
        self._flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _flush(self) -> None:
        shown, self._shown = self._shown, []
        if not shown:
            return
        text, what, turn, attempt = "".join(shown), self._showing, self._turn, self._attempt
        if isinstance(what, _Item):
            delta = ToolCallDelta(turn=turn, attempt=attempt, position=what.position, name=what.name, arguments=text)
            self._deltas.append(delta)
        elif what == "text":
            self._deltas.append(TextDelta(turn=turn, attempt=attempt, text=text))
        else:
            self._deltas.append(ThinkingDelta(turn=turn, attempt=attempt, text=text))

    # Reading

    @property
    def has_calls(self) -> bool:
        return bool(self._of_kind["function_call"])

    @property
    def has_cut_call(self) -> bool:
        return any(item.head.get("status") == "incomplete" for item in self._of_kind["function_call"])

    def message(self) -> AssistantMessage:
        """The message so far. Reasoning and items of unknown types are kept as they were written; of a message or a call the
        head is kept too where the server may ask for it: beside encrypted reasoning, and with a `phase` or a refusal."""
        encrypted = any(item.head.get("encrypted_content") for item in self._of_kind["reasoning"])
        ids: set[str] = set()
        parts: list[Part] = []
        for item in self._items:
            text = "".join(item.pieces)
            if item.kind == "message":
                if text:
                    head = _known(item) if encrypted or "phase" in item.head or item.refusal else {}
                    if item.refusal:
                        head = {"type": "message", **head, "content": [{"type": "refusal"}]}
                    parts += _head(head)
                    parts.append(Text(text))
            elif item.kind == "function_call":
                if encrypted:
                    parts += _head(_known(item))
                id = item.call_id if item.call_id and item.call_id not in ids else f"{self._prefix}{item.position}"
                ids.add(id)
                parts.append(ToolCall(id, item.name, "".join(item.said) if item.arguments is None else item.arguments))
            else:
                if text:
                    parts.append(Thinking(text, "block"))
                if item.raw:
                    parts.append(Opaque(FORMAT, item.raw))
        return AssistantMessage(tuple(parts))


def _read(raw: bytes) -> WrittenItem:
    try:
        return _decode_item(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        try:
            return _decode_item(mended(raw) or b"{}")
        except (msgspec.MsgspecError, RecursionError):
            return WrittenItem()


def _object(raw: bytes) -> dict[str, Any]:
    for data in (raw, mended(raw) or b"{}"):
        try:
            return object_(msgspec.json.decode(data))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            continue
    return {}


def _arguments(raw: msgspec.Raw) -> str | None:
    """The text of the arguments; None if the item has none."""
    text = bytes(raw).decode("utf-8", "replace")
    if text[:1] == '"':
        try:
            return msgspec.json.decode(text, type=str)
        except (msgspec.MsgspecError, UnicodeError):
            return msgspec.json.decode(mended(text.encode()) or b'""', type=str)
    return None if text in ("", "null") else text


def _known(item: _Item) -> dict[str, Any]:
    """The head of an item, also of one that was cut."""
    if item.head or not item.id:
        return item.head
    return {"type": item.kind, "id": item.id, "status": "incomplete"}


def _head(head: dict[str, Any]) -> list[Part]:
    return [Opaque(FORMAT, msgspec.json.encode(head).decode())] if head else []


def _same_index(item: _Item, index: Any) -> bool:
    return item.index is None or type(index) is not int or item.index == index


def _differs(item: _Item, call_id: str) -> bool:
    return bool(call_id) and item.call_id not in ("", call_id)
