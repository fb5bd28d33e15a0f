"""The one place where a tool's result is cut to what a model reads, and the way back to the rest of it.

The whole text stays in the run (`ToolMessage.full`). It is named by a reference that can be made again from the text alone, so that it
can be found in any conversation it is part of, also one that was saved, loaded and gone on with.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from treadle.values.messages import Message, ToolMessage

__all__ = ["find_result", "plain_text", "reference", "shortened"]


def reference(text: str) -> str:
    """A short name for a text: the same text has the same name."""
    return f"r{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def find_result(messages: Sequence[Message], ref: str) -> str | None:
    """The whole text that a cut result stands for; None if no message has it."""
    for message in reversed(messages):
        if isinstance(message, ToolMessage) and message.full is not None and reference(message.full) == ref:
            return message.full
    return None


def shortened(text: str, max_chars: int, *, note: str = "") -> str:
    """The text itself if it fits; else its head and tail in whole lines, and between them a line that says how much is missing.

    Never longer than `max_chars`. A line that alone is too long is cut inside.

    Args:
        note: More to say in that line, such as where the rest is.
    """
    if len(text) <= max_chars:
        return text
    left_out = f"{len(text):,} of {len(text):,} characters left out{note}"  # as long as it can get
    room = max_chars - len(f"\n[... {left_out} ...]\n")
    if room <= 0:
        return text[:max_chars]
    head, tail = text[: room * 2 // 3], text[len(text) - (room - room * 2 // 3) :]
    # Whole lines, unless that would give away more than half of what there is room for.
    head_end, tail_start = head.rfind("\n"), tail.find("\n") + 1
    head = head[:head_end] if head_end > len(head) // 2 else head
    tail = tail[tail_start:] if 0 < tail_start < len(tail) // 2 else tail
    missing = len(text) - len(head) - len(tail)
    return f"{head}\n[... {missing:,} of {len(text):,} characters left out{note} ...]\n{tail}"


def plain_text(value: object) -> str:
    """Text that JSON can carry: of no subclass, and with half surrogate pairs, as file names may hold, written out."""
    if not isinstance(value, str):
        try:
            value = str(value)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException:
            return "(its text cannot be read)"
    if type(value) is str and value.isascii():
        return value
    return str.encode(value, "utf-8", "backslashreplace").decode()
