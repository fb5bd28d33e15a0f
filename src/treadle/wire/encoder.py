"""What the encoders of every format share: messages are written once, and what is left out is said once."""

from __future__ import annotations

from treadle.errors import UsageError
from treadle.values.messages import Message
from treadle.values.request import ModelRequest, Omission

__all__ = ["IMAGES", "PART", "REASONING", "SIGNATURE", "RunEncoder"]

REASONING = "Reasoning goes back only to servers of the format that showed it."
SIGNATURE = "A signature means something only to the provider that signed."
PART = "Only servers of the format that it came in can read such a part."
IMAGES = "The format has no place for images in a result: they follow the results, as the user's."


class RunEncoder:
    """Writes the requests of one run. Messages come last in the body and are written once: a longer conversation extends the
    bytes of a shorter one, so a turn costs what is new in it.

    A format says how in `_encode`, and calls `_leave_out` where it leaves something out or puts it elsewhere.

    Attributes:
        omitted: What the last request left out and none before it did. Messages that are written anew do not say it again.
    """

    omitted: tuple[Omission, ...]
    _messages: tuple[Message, ...]
    _written: bytearray

    def __init__(self) -> None:
        self._left_out: dict[tuple[str, str], int] = {}
        self._said: set[tuple[str, str]] = set()
        self.omitted = ()
        self._messages = ()
        self._written = bytearray()
        self._restart()

    def _restart(self) -> None:
        """Forget what was written."""
        self._messages = ()
        self._written.clear()

    def encode(self, request: ModelRequest) -> bytes:
        """The request's body. The same request gives the same bytes, whatever was encoded before.

        Raises:
            UsageError: The request holds something that cannot be sent.
        """
        self.omitted = ()
        self._left_out.clear()
        try:
            body = self._encode(request)
        except UnicodeEncodeError:
            self._restart()
            raise UsageError(
                "a message, a tool or an option holds half of a surrogate pair, which no JSON can carry",
                hint="Clean the text: text.encode('utf-8', 'replace').decode().",
            ) from None
        except UsageError:
            self._restart()
            raise
        if self._left_out:
            new = {key: count for key, count in self._left_out.items() if key not in self._said}
            self._said.update(new)
            self.omitted = tuple(Omission(what=what, why=why, count=count) for (what, why), count in new.items())
        return body

    def _encode(self, request: ModelRequest) -> bytes:
        raise NotImplementedError

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
