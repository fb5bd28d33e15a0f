"""Fold the pieces of a streamed reply into one message.

Which call does a piece of a call belong to? Servers disagree on `index` (missing, or 0 for every call) and on ids (missing,
late, empty, the same for two calls, a new one on every piece), so both are hints. The rules, in order:

1. A piece that holds no id, name or arguments is nothing.
2. It may continue a call whose index does not differ and whose id does not differ, where an absent index or id differs from
   none. Of several such calls: the one with exactly this id, else the one written to last.
3. If there is none, a call with the same index (or, without an index, the last call) is the candidate all the same; but a
   piece with another id than its candidate continues it only if it brings arguments and no name, and the candidate's
   arguments are not complete yet (servers that invent an id per piece). Otherwise it begins a new call.
4. A piece with a name begins a new call if its candidate has another name. With the same name it repeats a header, and adds
   to the candidate what arguments it brings, if it brings none or the candidate's are not complete yet; a piece that brings
   the candidate's own id and its very arguments once more is a repetition too, and adds nothing. Else it begins a new call.
5. Arguments given as an object are complete at once.

Names are taken whole: no server was seen to cut one. Calls keep the order in which they began.

Ambiguous, and decided as said: two calls of the same tool with empty arguments, or with the same id and the same arguments,
under one index (rule 4) are one call;
pieces of several unfinished calls interleaved under one index without ids all go to the call written to last, whose
arguments then fail the strict parse and are refused, not run.
"""

from __future__ import annotations

from typing import Any, Literal

from treadle.errors import BadStream
from treadle.values.events import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from treadle.values.messages import AssistantMessage, Part, Text, Thinking, ToolCall
from treadle.wire.think import ThinkSplitter

__all__ = ["MAX_CALLS_PER_TURN", "ReplyFold"]

MAX_CALLS_PER_TURN = 1_000


class _Pieces:
    """A text or reasoning part that is being written."""

    __slots__ = ("pieces", "source", "splitter")

    def __init__(self, source: str, splitter: ThinkSplitter | None = None) -> None:
        self.source = source
        self.pieces: list[str] = []
        self.splitter = splitter


class _Call:
    """A call that is being written."""

    __slots__ = ("_depth", "_escaped", "_in_text", "_scanned", "arguments", "id", "index", "name", "position")

    def __init__(self, index: Any, position: int) -> None:
        self.index = index
        self.position = position
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self._scanned = 0
        self._depth = 0
        self._in_text = self._escaped = False

    def complete(self) -> bool:
        """The arguments are a whole JSON object, by its brackets. Looks at each piece once, however often it is asked."""
        for piece in self.arguments[self._scanned :]:
            for char in piece:
                if self._in_text:
                    self._in_text = self._escaped or char != '"'
                    self._escaped = char == "\\" and not self._escaped
                elif char == '"':
                    self._in_text = True
                elif char in "{[":
                    self._depth += 1
                elif char in "}]":
                    self._depth -= 1
        self._scanned = len(self.arguments)
        return bool(self.arguments) and self._depth <= 0 and not self._in_text and self.arguments[-1].rstrip().endswith("}")


class ReplyFold:
    """Collects a reply, and the deltas to show for it.

    Deltas of one kind that follow each other are merged until `take` is called, so a burst costs one event.
    """

    def __init__(self, *, turn: int, attempt: int, call_id_prefix: str) -> None:
        self._turn = turn
        self._attempt = attempt
        self._prefix = call_id_prefix
        self._parts: list[_Pieces | _Call] = []
        self._calls: list[_Call] = []
        self._written: _Call | None = None
        self._splitter = ThinkSplitter()
        self._deltas: list[Delta] = []
        self._shown: list[str] = []  # pieces of the delta that is being merged
        self._showing: Literal["text", "thinking"] | _Call = "text"

    # Writing

    def take_tags_for_text(self) -> None:
        self._splitter.passing = True

    def content(self, piece: str) -> None:
        """More of the message's content, which may begin with reasoning between tags."""
        splitter = self._splitter
        if splitter.passing:
            self.text(piece)
            return
        thinking, text = splitter.feed(piece)
        if thinking:
            self._write(thinking, "thinking", "content")
        if text:
            self._end_tagged()
            self.text(text)

    def text(self, piece: str) -> None:
        """More text, taken as it is."""
        parts = self._parts
        last = parts[-1] if parts else None
        if type(last) is _Pieces and last.source == "text" and self._showing == "text":
            last.pieces.append(piece)  # the hot path: one token of text after another
            self._shown.append(piece)
        else:
            self._write(piece, "text", "text")

    def thinking(self, piece: str, source: str) -> None:
        """More reasoning, from a field of its own. Then tags in the content are text."""
        self.flush()
        self._write(piece, "thinking", source)

    def call(self, index: Any, id: str, name: str, arguments: str | None) -> None:
        """A piece of a call; see the rules at the top. `arguments` is text of their JSON, or None."""
        if not (id or name or arguments):
            return
        self.flush()
        if id and name and arguments and self._is_repeated(index, id, name, arguments):
            return
        call = self._candidate(index, id, name, arguments)
        if call is None:
            if len(self._calls) == MAX_CALLS_PER_TURN:
                raise BadStream(
                    f"more than {MAX_CALLS_PER_TURN:,} tool calls in one turn", hint="The model or its server is running wild."
                )
            call = _Call(index, len(self._calls))
            self._calls.append(call)
            self._parts.append(call)
        self._written = call
        call.id = call.id or id
        call.name = call.name or name
        if arguments:
            call.arguments.append(arguments)
        if self._showing is not call:
            self._show()
            self._showing = call
        self._shown.append(arguments or "")

    def flush(self) -> None:
        """Give up what was held back for an opening tag: something else than content follows."""
        if self._splitter.passing:
            return
        thinking, text = self._splitter.close()
        if thinking:
            self._write(thinking, "thinking", "content")
        self._end_tagged()
        if text:
            self.text(text)

    def _write(self, piece: str, kind: Literal["text", "thinking"], source: str) -> None:
        last = self._parts[-1] if self._parts else None
        if type(last) is not _Pieces or last.source != source:
            last = _Pieces(source, self._splitter if source == "content" else None)
            self._parts.append(last)
        last.pieces.append(piece)
        if self._showing != kind:
            self._show()
            self._showing = kind
        self._shown.append(piece)

    def _end_tagged(self) -> None:
        """Keep the exact characters of tagged reasoning even where it was empty."""
        if self._splitter.raw and not self._parts:
            self._parts.append(_Pieces("content", self._splitter))

    def _is_repeated(self, index: Any, id: str, name: str, arguments: str) -> bool:
        last = self._written
        if last is not None and None not in (index, last.index) and index != last.index:
            return False
        return (
            last is not None and (last.id, last.name) == (id, name) and "".join(last.arguments) == arguments and last.complete()
        )

    def _candidate(self, index: Any, id: str, name: str, arguments: str | None) -> _Call | None:
        """The call this piece continues, or None if it begins one."""
        last = self._written
        if last is None:
            return None
        if not (id or name) and (index is None or last.index is None or index == last.index):
            return last  # the hot path: one piece of the arguments after another
        alike = [c for c in (*self._calls, last) if index is None or c.index is None or c.index == index]
        if not alike:
            return None
        alike.reverse()
        call = next((c for c in alike if id and c.id == id), None)
        call = call or next((c for c in alike if not id or not c.id), None)
        if call is None:
            call = alike[0]
            if name or not arguments or call.complete():
                return None
        if name and call.name and (name != call.name or (arguments and call.complete())):
            return None
        return call

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
        text = shown[0] if len(shown) == 1 else "".join(shown)
        showing = self._showing
        if showing == "text":
            self._deltas.append(TextDelta(turn=self._turn, attempt=self._attempt, text=text))
        elif showing == "thinking":
            self._deltas.append(ThinkingDelta(turn=self._turn, attempt=self._attempt, text=text))
        else:
            self._deltas.append(
                ToolCallDelta(
                    turn=self._turn, attempt=self._attempt, position=showing.position, name=showing.name, arguments=text
                )
            )

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    @property
    def empty(self) -> bool:
        return not self._parts

    def message(self) -> AssistantMessage:
        """The message so far. Calls without an id of their own, or with one that an earlier call has, get one of ours."""
        ids: set[str] = set()
        parts: list[Part] = []
        for part in self._parts:
            if isinstance(part, _Call):
                id = part.id if part.id and part.id not in ids else f"{self._prefix}{part.position}"
                ids.add(id)
                parts.append(ToolCall(id, part.name, "".join(part.arguments)))
            elif part.source == "text":
                parts.append(Text("".join(part.pieces)))
            else:
                raw = part.splitter.raw or None if part.splitter else None
                parts.append(Thinking("".join(part.pieces), part.source, raw))  # pyright: ignore[reportArgumentType]
        return AssistantMessage(tuple(parts))
