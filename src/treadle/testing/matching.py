"""Whether a request is the recorded one, and where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any, cast

from treadle.testing.scrub import TAKEN_OUT

__all__ = ["difference"]

_OUR_CALL_ID = re.compile(r"\bcall_[0-9a-f]{8}_(\d+)_(\d+)\b")  # made of the run's id, where the server gave the call none
_SHOWN = 60  # characters of a value; what is before the first difference of two texts is left out
_MISSING = object()


def difference(recorded: Any, asked: Any, *, ignore: Iterable[str] = ()) -> tuple[str, str] | None:
    """The first difference of two JSON values: its path, and a sentence. None if there is none.

    Objects are compared without regard to the order of their keys. Ids that we made for calls are compared without the run they
    were made in. Where a secret was taken out of the recorded one any text will do: it may be another one here, or none that is known.

    Args:
        ignore: Paths that may differ, as `messages.0.content`; `*` stands for any step or steps, everything else for itself.
    """
    return _differs(recorded, asked, (), tuple(ignore))


def _differs(recorded: Any, asked: Any, at: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[str, str] | None:
    path = ".".join(at)
    if any(_fits(path, pattern.split("*"), least=0) for pattern in ignore):
        return None
    steps = _steps(recorded, asked)
    if steps is not None:
        return next((found for step, one, other in steps if (found := _differs(one, other, (*at, step), ignore))), None)
    if isinstance(recorded, str) and isinstance(asked, str):
        recorded, asked = _OUR_CALL_ID.sub(r"call_run_\1_\2", recorded), _OUR_CALL_ID.sub(r"call_run_\1_\2", asked)
        if _fits(asked, TAKEN_OUT.split(recorded), least=1):
            return None
    if type(recorded) is type(asked) and recorded == asked:
        return None
    if {type(recorded), type(asked)} == {int, float} and recorded == asked:
        return None
    if recorded is _MISSING:
        return path, f"`{path}` is new: {_shown(asked)}"
    if asked is _MISSING:
        return path, f"`{path}` is gone; recorded was {_shown(recorded)}"
    same = _common(recorded, asked)
    return path, f"`{path}` is {_shown(asked, same)}; recorded was {_shown(recorded, same)}"


def _fits(text: str, parts: list[str], *, least: int) -> bool:
    """The text is these parts, with anything between two of them, of at least so many characters. Linear: no part is looked for twice."""
    first, *rest = parts
    if not rest:
        return text == first
    *middle, last = rest
    end = len(text) - len(last)
    if not text.startswith(first) or not text.endswith(last):
        return False
    at = len(first)
    for part in middle:
        found = text.find(part, at + least, end)
        if found < 0:
            return False
        at = found + len(part)
    return at + least <= end


def _steps(recorded: Any, asked: Any) -> list[tuple[str, Any, Any]] | None:
    """What two objects or two arrays hold, side by side; None if they are neither."""
    if isinstance(recorded, list) and isinstance(asked, list):
        both = zip_longest(cast("list[Any]", recorded), cast("list[Any]", asked), fillvalue=_MISSING)
        return [(str(n), one, other) for n, (one, other) in enumerate(both)]
    if isinstance(recorded, dict) and isinstance(asked, dict):
        one, other = cast("dict[str, Any]", recorded), cast("dict[str, Any]", asked)
        return [(key, one.get(key, _MISSING), other.get(key, _MISSING)) for key in dict.fromkeys((*one, *other))]
    return None


def _common(recorded: Any, asked: Any) -> int:
    """How many characters two texts begin with alike, less a few that help to find the place."""
    if not (isinstance(recorded, str) and isinstance(asked, str)):
        return 0
    same = next((n for n, (a, b) in enumerate(zip(recorded, asked, strict=False)) if a != b), min(len(recorded), len(asked)))
    return same - 20 if same > 30 else 0


def _shown(value: Any, start: int = 0) -> str:
    if isinstance(value, str):
        cut = value[start : start + _SHOWN]
        before, after = "…" if start else "", "…" if len(value) > start + _SHOWN else ""
        return f"{before}{json.dumps(cut, ensure_ascii=False)}{after}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
