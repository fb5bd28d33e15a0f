"""Fold the parts of a streamed Gemini reply into one message.

Parts come whole; only pieces of text follow each other. The documentation forbids merging a signed part with any other, so
a signed piece stays a part of its own; unsigned pieces of one kind are joined. What is kept where, so that it can go back on
the very same part:

- a signed thought: `Thinking.signature`; a signed call: `ToolCall.signature`. Both begin with `MARK`, since a signature means
  nothing to another provider; a thought without a signature has the mark alone.
- a signed text: the `Text`, then an `Opaque` with the part as it came, which stands for that `Text` when it goes back.
- a part of another kind (code that the server ran, an image): an `Opaque`.
"""

from __future__ import annotations

from msgspec.structs import replace

from treadle.errors import BadStream
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import AssistantMessage, Opaque, Part, Text, Thinking, ToolCall
from treadle.wire.fold import MAX_CALLS_PER_TURN

__all__ = ["FORMAT", "MARK", "GeminiFold"]

FORMAT = "gemini"
MARK = "gemini:"


class _Pieces:
    """Text or reasoning that is being written. `signature` is None until a signature closes the part."""

    __slots__ = ("pieces", "signature", "thinking")

    def __init__(self, piece: str, *, thinking: bool, signature: str | None) -> None:
        self.pieces = [piece]
        self.thinking = thinking
        self.signature = signature


class GeminiFold:
    """Collects a reply, and the deltas to show for it; neighbouring pieces of one kind are one delta."""

    def __init__(self, *, turn: int, attempt: int, call_id_prefix: str) -> None:
        self._turn = turn
        self._attempt = attempt
        self._prefix = call_id_prefix
        self._parts: list[_Pieces | ToolCall | Opaque] = []
        self._calls = 0
        self._deltas: list[Delta] = []
        self._shown: list[str] = []
        self._showing_thinking = False

    # Writing

    def text(self, piece: str) -> None:
        """More text, unsigned."""
        self._write(piece, thinking=False, signature=None)

    def signed_text(self, piece: str, part: bytes) -> None:
        """A piece of text with a signature; `part` is the JSON it came in."""
        if piece:
            self._write(piece, thinking=False, signature="")
        self.opaque(part)

    def thought(self, piece: str, signature: str | None) -> None:
        self._write(piece, thinking=True, signature=signature)

    def call(self, id: str, name: str, arguments: str, signature: str | None) -> None:
        """A whole call. `arguments` is text of their JSON."""
        if self._calls == MAX_CALLS_PER_TURN:
            raise BadStream(
                f"more than {MAX_CALLS_PER_TURN:,} tool calls in one turn", hint="The model or its server is running wild."
            )
        self._show()
        self._deltas.append(
            ToolCallDelta(turn=self._turn, attempt=self._attempt, position=self._calls, name=name, arguments=arguments)
        )
        self._parts.append(ToolCall(id, name, arguments, None if signature is None else MARK + signature))
        self._calls += 1

    def opaque(self, part: bytes) -> None:
        """A part that only the server understands, as JSON."""
        self._parts.append(Opaque(FORMAT, part.decode("utf-8", "replace")))

    def _write(self, piece: str, *, thinking: bool, signature: str | None) -> None:
        last = self._parts[-1] if self._parts else None
        if type(last) is _Pieces and last.thinking is thinking and last.signature is signature is None:
            last.pieces.append(piece)
        else:
            self._parts.append(_Pieces(piece, thinking=thinking, signature=signature))
        if self._showing_thinking is not thinking:
            self._show()
            self._showing_thinking = thinking
        if piece:
            self._shown.append(piece)

    # Reading

    def take(self) -> list[Delta]:
        """The deltas since the last `take`."""
        self._show()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _show(self) -> None:
        shown, self._shown = self._shown, []
        if not shown:
            return
        kind = ThinkingDelta if self._showing_thinking else TextDelta
        self._deltas.append(kind(turn=self._turn, attempt=self._attempt, text="".join(shown)))

    @property
    def has_calls(self) -> bool:
        return self._calls > 0

    @property
    def empty(self) -> bool:
        return not self._parts

    @property
    def only_thoughts(self) -> bool:
        """Nothing but reasoning came, if anything."""
        return all(type(part) is _Pieces and part.thinking for part in self._parts)

    def message(self) -> AssistantMessage:
        """The message so far. Calls without an id of their own, or with one that an earlier call has, get one of ours."""
        ids: set[str] = set()
        parts: list[Part] = []
        for part in self._parts:
            if isinstance(part, ToolCall):
                if not part.id or part.id in ids:
                    part = replace(part, id=f"{self._prefix}{len(ids)}")
                ids.add(part.id)
                parts.append(part)
            elif isinstance(part, Opaque):
                parts.append(part)
            elif part.thinking:
                parts.append(Thinking("".join(part.pieces), "block", None, MARK + (part.signature or "")))
            else:
                parts.append(Text("".join(part.pieces)))
        return AssistantMessage(tuple(parts))
