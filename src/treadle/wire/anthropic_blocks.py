"""Fold the content blocks of an Anthropic message, as they stream, into one message of ours.

The format numbers its blocks, so a piece belongs to the block its index names. Three liberties, for servers that differ:
blocks may overlap and all stop at the end (llama.cpp), a piece may name a block that never began or is of another kind (it
begins one), and text for an older block goes on in a new one, so that what was shown is always the message's text.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from treadle.errors import BadStream
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import AssistantMessage, Opaque, Part, Text, Thinking, ToolCall
from treadle.wire.fold import MAX_CALLS_PER_TURN
from treadle.wire.untyped import mended, object_, string

__all__ = ["FORMAT", "BlockFold", "loose"]

FORMAT = "anthropic"
"""The name in `Opaque.format`."""

_encode = msgspec.json.Encoder().encode


class _Written:
    """A text or reasoning block."""

    __slots__ = ("kind", "pieces", "signature")

    def __init__(self, kind: Literal["text", "thinking"]) -> None:
        self.kind = kind
        self.pieces: list[str] = []
        self.signature: str | None = None


class _Call:
    """A call block. `whole` is the input its beginning brought, which counts if no piece follows."""

    __slots__ = ("id", "name", "pieces", "position", "whole")

    def __init__(self, position: int, id: str, name: str, whole: str) -> None:
        self.position = position
        self.id = id
        self.name = name
        self.whole = whole
        self.pieces: list[str] = []


class _Other:
    """A block that only its server can read, and what was added to it: pieces of texts, and other values."""

    __slots__ = ("pieces", "raw", "values")

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.pieces: dict[str, list[str]] = {}
        self.values: dict[str, Any] = {}

    def data(self) -> str:
        """The block as JSON: as it came if nothing was added to it, else with the pieces put in their places."""
        if not self.pieces and not self.values:
            return self.raw
        fields: dict[str, Any] = msgspec.json.decode(self.raw, type=dict[str, msgspec.Raw])
        for name, pieces in self.pieces.items():
            text = "".join(pieces)
            if name != "partial_json":
                before = msgspec.json.decode(fields[name]) if name in fields else ""
                fields[name] = string(before) + text
            elif loose(text.encode())[1] is not None:
                fields["input"] = msgspec.Raw(text.encode())
        return _encode(fields | self.values).decode()


_Block: TypeAlias = _Written | _Call | _Other


class BlockFold:
    """Collects a message, and the deltas to show for it: neighbours of one kind are merged until `take` is called."""

    def __init__(self, *, turn: int, attempt: int, call_id_prefix: str) -> None:
        self._turn = turn
        self._attempt = attempt
        self._prefix = call_id_prefix
        self._blocks: list[_Block] = []
        self._by_index: dict[int | None, _Block] = {}
        self._last: dict[str, _Written] = {}  # the latest text and the latest reasoning
        self._calls: list[_Call] = []
        self._deltas: list[Delta] = []
        self._shown: list[str] | None = None  # pieces of the delta that is being merged
        self._showing: Literal["text", "thinking"] | _Call = "text"

    # Writing

    def begin(self, index: int | None, raw: bytes) -> bool:
        """A block begins, with what its beginning brings. False if it is no block."""
        text, value = loose(raw)
        block = object_(value)
        kind = block.get("type")
        if type(kind) is not str:
            return False
        if kind == "text":
            self._add(index, self._written("text"))
            self.text(index, string(block.get("text")))
        elif kind == "thinking":
            self._add(index, self._written("thinking"))
            self.thinking(index, string(block.get("thinking")))
            if "signature" in block:
                self.sign(index, string(block["signature"]))
        elif kind == "tool_use":
            self._call(index, string(block.get("id")), string(block.get("name")), _input_as_written(text))
        else:
            self._add(index, _Other(text))
        return True

    def text(self, index: int | None, piece: str) -> None:
        if piece:
            self._write(index, "text", piece)

    def thinking(self, index: int | None, piece: str) -> None:
        if piece:
            self._write(index, "thinking", piece)

    def sign(self, index: int | None, signature: str) -> None:
        """The signature of a reasoning block; a later one replaces it."""
        block = self._at(index)
        if isinstance(block, _Written) and block.kind == "thinking":
            block.signature = signature

    def arguments(self, index: int | None, piece: str) -> None:
        """More of a call's arguments, or of the input of a block of another kind."""
        block = self._at(index)
        if isinstance(block, _Other):
            self.other(index, {"partial_json": piece})
            return
        if not piece:
            return
        call = block if isinstance(block, _Call) else self._call(index, "", "", "")
        call.pieces.append(piece)
        self._show(call, piece)

    def other(self, index: int | None, delta: dict[str, Any]) -> bool:
        """A delta for a block that only its server can read: texts are appended, other values replace. False if it is none."""
        block = self._at(index)
        if not isinstance(block, _Other):
            return False
        for name, value in delta.items():
            if name == "type":
                continue
            if type(value) is str:
                block.pieces.setdefault(name, []).append(value)
            else:
                block.values[name] = value
        return True

    def end(self, index: int | None) -> None:
        """A block ends: a call's input that came with its beginning is its arguments now, if no piece came."""
        block = self._by_index.get(index)
        if isinstance(block, _Call):
            self._complete(block)

    def complete(self) -> None:
        """The message has ended, and with it every block."""
        for call in self._calls:
            self._complete(call)

    def _complete(self, call: _Call) -> None:
        if call.whole and not call.pieces:
            call.pieces.append(call.whole)
            self._show(call, call.whole)

    def _written(self, kind: Literal["text", "thinking"]) -> _Written:
        self._last[kind] = block = _Written(kind)
        return block

    def _at(self, index: int | None) -> _Block | None:
        return self._by_index.get(index) if index is not None else self._blocks[-1] if self._blocks else None

    def _add(self, index: int | None, block: _Block) -> None:
        self._blocks.append(block)
        self._by_index[index] = block

    def _call(self, index: int | None, id: str, name: str, whole: str) -> _Call:
        if len(self._calls) == MAX_CALLS_PER_TURN:
            raise BadStream(
                f"more than {MAX_CALLS_PER_TURN:,} tool calls in one turn", hint="The model or its server is running wild."
            )
        call = _Call(len(self._calls), id, name, whole)
        self._calls.append(call)
        self._add(index, call)
        self._show(call, "")
        return call

    def _write(self, index: int | None, kind: Literal["text", "thinking"], piece: str) -> None:
        block = self._at(index)
        if not isinstance(block, _Written) or block is not self._last.get(kind):
            block = self._written(kind)
            self._add(index, block)
        block.pieces.append(piece)
        self._show(kind, piece)

    # Reading

    def _show(self, what: Literal["text", "thinking"] | _Call, piece: str) -> None:
        if self._shown is None or self._showing is not what:
            self._flush()
            self._showing, self._shown = what, []
        self._shown.append(piece)

    def _flush(self) -> None:
        if self._shown is None:
            return
        text = self._shown[0] if len(self._shown) == 1 else "".join(self._shown)
        self._shown = None
        showing = self._showing
        turn, attempt = self._turn, self._attempt
        if showing == "text":
            self._deltas.append(TextDelta(turn=turn, attempt=attempt, text=text))
        elif showing == "thinking":
            self._deltas.append(ThinkingDelta(turn=turn, attempt=attempt, text=text))
        else:
            self._deltas.append(
                ToolCallDelta(turn=turn, attempt=attempt, position=showing.position, name=showing.name, arguments=text)
            )

    def take(self) -> list[Delta]:
        """The deltas since the last `take`."""
        self._flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    @property
    def empty(self) -> bool:
        return not any(not isinstance(block, _Written) or block.pieces or block.signature for block in self._blocks)

    def message(self) -> AssistantMessage:
        """The message so far. Calls without an id of their own, or with one that an earlier call has, get one of ours."""
        ids: set[str] = set()
        parts: list[Part] = []
        for block in self._blocks:
            if isinstance(block, _Call):
                id = block.id if block.id and block.id not in ids else f"{self._prefix}{block.position}"
                ids.add(id)
                parts.append(ToolCall(id, block.name, "".join(block.pieces)))
            elif isinstance(block, _Other):
                parts.append(Opaque(FORMAT, block.data()))
            elif block.kind == "text":
                if block.pieces:
                    parts.append(Text("".join(block.pieces)))
            elif block.pieces or block.signature:
                parts.append(Thinking("".join(block.pieces), "block", None, block.signature))
        return AssistantMessage(tuple(parts))


def loose(data: bytes) -> tuple[str, Any]:
    """JSON that may not be quite JSON (`mended`), and its value; None if it is none."""
    text = data.decode("utf-8", "replace")
    try:
        return text, msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    readable = mended(data)
    if readable is None:
        return text, None
    try:
        return readable.decode(), msgspec.json.decode(readable)
    except (msgspec.MsgspecError, RecursionError):
        return text, None


def _input_as_written(block: str) -> str:
    """The characters of a call's input; nothing if the block has none."""
    fields = msgspec.json.decode(block, type=dict[str, msgspec.Raw])
    written = bytes(fields.get("input", b"")).decode()
    return "" if written == "null" else written
