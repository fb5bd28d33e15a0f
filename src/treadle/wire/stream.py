"""From the bytes of an answer to its frames, for every format that streams server-sent events: bounds, and what is no answer at all."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from treadle.errors import BadStream, StreamTruncated
from treadle.wire.sse import MAX_FRAME_BYTES, Frame, SSEDecoder

__all__ = ["MAX_BODY_BYTES", "AnswerReader", "excerpt"]

MAX_BODY_BYTES = 64 * 1024 * 1024

_SSE_STARTS = b"deir:"  # data, event and error, id, retry, comments; blanks and a BOM are passed over before
_OPENING_BYTES = 8
_IS_LINE = re.compile(rb":|(data|event|error|id|retry)[:\r\n]").match


class AnswerReader:
    """Reads an event stream, or the plain JSON that some servers answer in its place. No I/O.

    Memory is bounded by the longest frame (16 MiB) and the whole answer (64 MiB).

    Args:
        json_starts: How plain JSON may begin.
        hint: For `BadStream`, what to do about it; by default the error's own.

    Attributes:
        frames: How many frames there were.
        opening: The first bytes, blanks and a byte order mark aside.
    """

    def __init__(self, *, json_starts: bytes = b"{", hint: str = "") -> None:
        self.frames = 0
        self.opening = b""
        self._sse = SSEDecoder()
        self._json_starts = json_starts
        self._hint = hint
        self._json: list[bytes] | None = None
        self._received = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes end. A reader that has seen enough may stop iterating.

        Raises:
            BadStream: A bound was reached, or this is neither an event stream nor JSON.
        """
        self._received += len(data)
        if self._received > MAX_BODY_BYTES:
            raise BadStream(f"the answer is larger than {MAX_BODY_BYTES:,} bytes", hint="The server is faulty or hostile.")
        if len(self.opening) < _OPENING_BYTES:
            self._begin(data)
        if self._json is not None:
            self._json.append(data)
            return
        for frame in self._sse.feed(data):
            self.frames += 1
            yield frame
        if self._sse.overflow:
            raise BadStream(
                f"one frame of the stream is larger than {MAX_FRAME_BYTES:,} bytes", hint="The server is faulty or hostile."
            )

    def close(self) -> Iterator[Frame]:
        """The last frame, if its end is missing.

        Raises:
            BadStream: There were lines, and no frame or comment among them: this is no event stream. A stream that broke off
                before its first event is one.
        """
        has_lines = self._sse.has_lines
        for frame in self._sse.close():
            self.frames += 1
            yield frame
        if has_lines and not self.frames and self.opening and not _IS_LINE(self.opening):
            raise BadStream("the answer is not an event stream: it holds no event at all", hint=self._hint)

    def whole(self) -> bytes | None:
        """The whole answer, if it is plain JSON; None if it is a stream.

        Raises:
            BadStream, StreamTruncated: It is not one whole value.
        """
        if self._json is None:
            return None
        body = b"".join(self._json).strip(b" \t\r\n\xef\xbb\xbf")
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
        except RecursionError:
            raise BadStream("the server answered with JSON that is nested too deeply", hint=self._hint) from None
        except (msgspec.MsgspecError, UnicodeError):
            raise StreamTruncated("the answer is JSON that breaks off in the middle, or more than one JSON value") from None
        return body

    def _begin(self, data: bytes) -> None:
        begun = bool(self.opening)
        self.opening += (data if begun else data.lstrip(b" \t\r\n\xef\xbb\xbf"))[: _OPENING_BYTES - len(self.opening)]
        if begun or not self.opening:
            return
        first = self.opening[:1]
        if first in self._json_starts:
            self._json = []
        elif first == b"<":
            raise BadStream(
                "the server answered with a web page, not with a model's answer", hint=self._hint, server_said=excerpt(data)
            )
        elif first not in _SSE_STARTS:
            raise BadStream("the server's answer is neither an event stream nor JSON", hint=self._hint, server_said=excerpt(data))


def excerpt(data: bytes) -> str:
    """What a server said, for `ModelError.server_said`."""
    return data[:2000].decode("utf-8", "replace")
