"""Endless repetition inside one streamed text: `the same line the same line the same line ...`"""

from __future__ import annotations

__all__ = ["RepetitionGuard"]

_LOOK_EVERY = 1_000
_SPAN = 6_000
_LEAST_REPEATS = 30


class RepetitionGuard:
    """Watches one text as it grows. Costs some nanoseconds a character.

    It fires when the last 6,000 characters are one piece of at most 200 characters, repeated exactly. Tables, code and lists
    of numbers vary; a model that is stuck does not. Blanks alone are left to the token bound.
    """

    def __init__(self) -> None:
        self._tail = ""
        self._since = 0

    def add(self, text: str) -> bool:
        """Take in more text; True when it has become endless."""
        self._tail += text
        self._since += len(text)
        if self._since < _LOOK_EVERY:
            return False
        self._since = 0
        self._tail = self._tail[-_SPAN:]
        return len(self._tail) == _SPAN and self._is_periodic()

    def _is_periodic(self) -> bool:
        tail = self._tail
        probe = tail[-_SPAN // _LEAST_REPEATS :]
        before = tail.rfind(probe, 0, _SPAN - 1)
        period = _SPAN - len(probe) - before
        return 0 < period <= _SPAN // _LEAST_REPEATS and tail[period:] == tail[:-period] and not tail.isspace()
