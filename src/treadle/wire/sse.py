"""Server-sent events, from bytes.

Follows the WHATWG HTML standard, section 9.2.6 (event stream interpretation), read 2026-11: lines end in LF, CRLF or CR;
one leading BOM is dropped; the space after the colon is optional; several `data` lines join with LF; comments, ids and
unknown fields are passed over. Bytes are split at line ends before anything is decoded, so no character can be cut.

Two liberties, both for servers that exist: a line `error: {...}` (older llama.cpp) counts as an event of type `error`, and
`close` gives back a last frame that lacks its blank line, for the codec to judge.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["MAX_FRAME_BYTES", "Frame", "SSEDecoder"]

MAX_FRAME_BYTES = 16 * 1024 * 1024

Frame: TypeAlias = tuple[str, bytes]
"""Event type (empty when the server named none) and data."""

_BOM = b"\xef\xbb\xbf"


class SSEDecoder:
    """Cut a byte stream into frames: `feed` chunks cut anywhere, then `close` once.

    Time is linear in the bytes fed however they are cut; memory is bounded by `max_frame_bytes`.

    Attributes:
        overflow: A frame grew past `max_frame_bytes`. Frames before it were given; nothing more will be.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.overflow = False
        self._max = max_frame_bytes
        self._max_held = max_frame_bytes + len(b"data: ") + 1
        self._tail: list[bytes] = []  # pieces of the unfinished last line
        self._size = 0  # bytes held for the unfinished frame, one more for each of its lines
        self._tail_size = 0
        self._data: list[bytes] = []
        self._event = ""
        self._first_line = True
        self._skip_lf = False  # the last chunk ended in CR: a LF right after it belongs to the same line end

    @property
    def has_lines(self) -> bool:
        """At least one whole line has been read."""
        return not self._first_line

    def feed(self, data: bytes) -> list[Frame]:
        """The frames these bytes complete."""
        if self.overflow:
            return []
        if self._skip_lf and data:
            self._skip_lf = False
            if data[0] == 10:
                data = data[1:]
        if b"\r" in data:
            self._skip_lf = data[-1] == 13
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        if len(lines) == 1:
            if data:
                self._tail.append(data)
                self._tail_size += len(data)
                self._check()
            return []
        if self._tail:
            self._tail.append(lines[0])
            lines[0] = b"".join(self._tail)
        last = lines.pop()
        self._tail = [last] if last else []
        self._tail_size = len(last)
        if self._first_line:
            self._first_line = False
            if len(lines[0]) > self._max_held:
                self.overflow = True
                return []
            lines[0] = lines[0].removeprefix(_BOM)

        frames: list[Frame] = []
        pending, held = self._data, self._max_held
        for line in lines:
            if self._size + len(line) > held:  # the same bound as for a line that is still coming, so that cuts do not matter
                self.overflow = True
                break
            if line[:6] == b"data: ":
                pending.append(line[6:])
                self._size += len(line) - 5
            elif not line:
                if pending:
                    frame = pending[0] if len(pending) == 1 else b"\n".join(pending)
                    if len(frame) > self._max:
                        self.overflow = True
                        break
                    frames.append((self._event, frame))
                    pending.clear()
                    self._size = 0
                self._event = ""
            else:
                self._field(line)
        if not self.overflow:
            self._check()
        return frames

    def close(self) -> list[Frame]:
        """The frame that the end of the stream left without its blank line, if any."""
        frames = self.feed(b"\n") if self._tail else []
        return frames + self.feed(b"\n\n")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"error":
            self._event = "error"
            self._data.append(value)
            self._size += len(value) + 1

    def _check(self) -> None:
        if self._size + self._tail_size > self._max_held:
            self.overflow = True
            self._tail.clear()
            self._data.clear()
