"""What may go wrong with a recorded answer. Made of the recorded bytes, so that the failure looks as that server's would."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

__all__ = ["Cut", "Duplicate", "Fault", "Garbage", "Refuse", "Split", "Stall", "Status", "struck", "with_split"]

Split: TypeAlias = Literal["recorded", "whole", "bytes"] | int
"""Where an answer's bytes are cut: as they were read, not at all, everywhere, or at random places drawn from a seed."""


class Refuse(Struct, frozen=True):
    """Nobody listens at the address: `ConnectFailed`."""


class Status(Struct, frozen=True, kw_only=True):
    """The server answers with an error status in place of the answer.

    Attributes:
        code: Such as 429, 500, 503, 529.
        retry_after_s: How long it asks us to wait; the run does wait, which takes no time inside `run_virtual`.
    """

    code: int = 429
    retry_after_s: float | None = None
    body: bytes = b'{"error":{"message":"injected by the test"}}'


class Cut(Struct, frozen=True, kw_only=True):
    """The connection breaks after this many bytes of the body."""

    after_bytes: int


class Stall(Struct, frozen=True, kw_only=True):
    """After this many bytes of the body nothing comes any more. The wait is skipped: the run is told at once that it timed out."""

    after_bytes: int = 0


class Garbage(Struct, frozen=True, kw_only=True):
    """A frame that is no JSON stands after this many whole frames."""

    after_frames: int = 1


class Duplicate(Struct, frozen=True, kw_only=True):
    """This frame, counted from 0, comes twice."""

    frame: int = 0


Fault: TypeAlias = Refuse | Status | Cut | Stall | Garbage | Duplicate

_SSE_FRAME = re.compile(rb".*?(?:\r?\n\r?\n|\Z)", re.DOTALL)
_LINE = re.compile(rb".*?(?:\n|\Z)", re.DOTALL)


def struck(reads: Sequence[bytes], fault: Fault | None, content_type: str) -> list[bytes]:
    """What the reads of a body are, this fault considered."""
    match fault:
        case Cut(after_bytes=after) | Stall(after_bytes=after):
            return _until(reads, after)
        case Garbage(after_frames=after):
            frames = _frames(b"".join(reads), content_type)
            garbage = b"data: {garbage\n\n" if "event-stream" in content_type else b"{garbage\n"
            return [*frames[:after], garbage, *frames[after:]]
        case Duplicate(frame=number):
            frames = _frames(b"".join(reads), content_type)
            return [*frames[: number + 1], *frames[number:]]
        case _:
            return list(reads)


def with_split(reads: Sequence[bytes], split: Split) -> list[bytes]:
    """The same bytes, cut elsewhere."""
    if split == "recorded":
        return [each for each in reads if each]
    body = b"".join(reads)
    if split == "whole":
        return [body] if body else []
    if split == "bytes":
        return [body[n : n + 1] for n in range(len(body))]
    dice = random.Random(split)  # noqa: S311
    cuts = sorted({0, len(body), *(dice.randrange(len(body) + 1) for _ in range(1 + len(body) // 24))})
    return [body[a:b] for a, b in itertools.pairwise(cuts)]


def _until(reads: Sequence[bytes], after: int) -> list[bytes]:
    found: list[bytes] = []
    for each in reads:
        found.append(each[:after])
        after -= len(each)
        if after <= 0:
            break
    return found


def _frames(body: bytes, content_type: str) -> list[bytes]:
    if "event-stream" in content_type:
        return [found for found in _SSE_FRAME.findall(body) if found]
    if "ndjson" in content_type:
        return [found for found in _LINE.findall(body) if found]
    return [body]
