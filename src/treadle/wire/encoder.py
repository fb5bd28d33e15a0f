"""What the encoders of every format share: messages are written once, and what is left out is said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from treadle.errors import UsageError
from treadle.values.messages import Message
from treadle.values.request import ModelRequest, Omission, PrefixMove, ToolSpec
from treadle.wire.ledger import Prefix, prefix_move

__all__ = ["IMAGES", "PART", "REASONING", "SIGNATURE", "Pieces", "RunEncoder"]

REASONING = "Reasoning goes back only to servers of the format that showed it."
SIGNATURE = "A signature means something only to the provider that signed."
PART = "Only servers of the format that it came in can read such a part."
IMAGES = "The format has no place for images in a result: they follow the results, as the user's."


Pieces: TypeAlias = tuple[bytes | bytearray | memoryview, ...]

_encode = msgspec.json.Encoder().encode


class RunEncoder:
    """Writes the requests of one run. Messages come last in the body and are written once: a longer conversation extends the
    bytes of a shorter one, so a turn costs what is new in it. What is left is to copy and send the bytes.

    A format says how in `_encode`, and calls `_leave_out` where it leaves something out or puts it elsewhere.

    Attributes:
        omitted: What the last request left out and none before it did. Messages that are written anew do not say it again.
        prefix: What of the last request a server may keep. One object for all requests.
        moved: What of it was not as in the request before; None if nothing was, which costs nothing to find out.
    """

    omitted: tuple[Omission, ...]
    moved: PrefixMove | None
    prefix: Prefix
    _messages: tuple[Message, ...]
    _written: bytearray

    def __init__(self, *, name: str = "messages") -> None:
        self._left_out: dict[tuple[str, str], int] = {}
        self._said: set[tuple[str, str]] = set()
        self.omitted = ()
        self.moved = None
        self.prefix = Prefix(name=name)
        self._restart()

    def _restart(self) -> None:
        """Forget what was written."""
        self._messages = ()
        self._conversation: tuple[str, int | None] = ("", None)
        self._specs: tuple[ToolSpec, ...] | None = None
        self._written = self.prefix.messages = bytearray()
        self.prefix.tools = self.prefix.system = self.prefix.end = b""

    def encode(self, request: ModelRequest) -> bytes:
        """The request's body. The same request gives the same bytes, whatever was encoded before.

        Raises:
            UsageError: The request holds something that cannot be sent.
        """
        return b"".join(self.write(request))

    def write(self, request: ModelRequest) -> Pieces:
        """The body in pieces, good until the next call. What it costs depends on what is new; to join them is to copy all.

        Raises:
            UsageError: As `encode`.
        """
        self.omitted = ()
        self.moved = None
        self._left_out.clear()
        before, sent = replace(self.prefix), len(self.prefix)
        try:
            pieces = self._encode(request)
        except UnicodeEncodeError:
            self._restart()
            raise UsageError(
                "a message, a tool or an option holds half of a surrogate pair, which no JSON can carry",
                hint="Clean the text: text.encode('utf-8', 'replace').decode().",
            ) from None
        except UsageError:
            self._restart()
            raise
        self._messages, self._conversation = request.messages, (request.run_id, request.revision)
        if self._left_out:
            new = {key: count for key, count in self._left_out.items() if key not in self._said}
            self._said.update(new)
            self.omitted = tuple(Omission(what=what, why=why, count=count) for (what, why), count in new.items())
        now = self.prefix
        extended = before.messages is now.messages and before.tools == now.tools and before.system == now.system
        if sent and not extended:
            self.moved = prefix_move(before, now, sent)
        return pieces

    def _encode(self, request: ModelRequest) -> Pieces:
        """The body, in pieces. Writes the new messages to `_written`, and what else is of the prefix to `prefix`."""
        raise NotImplementedError

    def _known(self, request: ModelRequest, *, anew: bool = False) -> int:
        """How many of the request's messages are written; none, and all is forgotten, if they are other messages than those."""
        known, messages = len(self._messages), request.messages
        # The revision says it without a look at each of them, which would cost what the conversation is long.
        longer = request.revision is not None and self._conversation == (request.run_id, request.revision)
        longer = longer and len(messages) >= known and (known == 0 or messages[known - 1] is self._messages[-1])
        if anew or not (longer or messages[:known] == self._messages):
            self._restart()
            return 0
        return known

    def _tools(self, request: ModelRequest, declared: Callable[[ToolSpec], dict[str, Any]]) -> bytes:
        """The array of tools, written when they change; empty if there are none."""
        if self._specs is not request.tools:
            self._specs = request.tools
            self.prefix.tools = _encode([declared(tool) for tool in request.tools]) if request.tools else b""
        return self.prefix.tools

    def _add(self, item: dict[str, Any] | msgspec.Raw) -> None:
        """Write one more item, in formats where a message is one, or some."""
        written = _encode(item)
        if self._written:
            self._written += b","
        self._written += written

    def _leave_out_ttl(self, request: ModelRequest) -> None:
        if request.options.cache_ttl is not None:
            self._leave_out("cache_ttl", "Servers of this format decide by themselves how long they keep a prompt.")

    def _leave_out(self, what: str, why: str, count: int = 1) -> None:
        """Note an omission. `why` is a constant sentence: with `what` it names the omission."""
        key = (what, why)
        self._left_out[key] = self._left_out.get(key, 0) + count

    def _leave_out_choice(self, choice: str) -> None:
        """`tool_choice` without tools, which servers refuse. Where no call was demanded, nothing is lost."""
        if choice not in ("auto", "none"):
            self._leave_out("tool_choice", "The request offers no tools to choose from.")

    def _leave_out_schema(self) -> None:
        self._leave_out("output", "This server is not known to take a schema for the answer.")
