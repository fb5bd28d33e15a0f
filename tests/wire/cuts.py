"""Cut bytes or text into pieces anywhere."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T", bytes, str)

cut_points = st.lists(st.integers(0, 4000), max_size=30)


def cut(data: T, points: list[int]) -> list[T]:
    """The data in pieces; a point past the end wraps around, so every list of points means something."""
    places = sorted({0, len(data), *(p % (len(data) + 1) for p in points)})
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]
