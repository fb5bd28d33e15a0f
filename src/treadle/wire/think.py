"""Reasoning inside the text: `<think> ... </think>` at the very start of a reply.

Only there: a tag anywhere else is text that talks about tags. Blanks before the opening and after the closing tag belong
to neither side's text; `raw` keeps every character, so that the reply can go back to the server as it came.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["ThinkSplitter"]

_OPEN, _CLOSE = "<think>", "</think>"
_BLANKS = " \t\r\n"
_MAX_BLANKS = 64  # before an opening tag; a model that loops on line ends must not be held back, nor looked at anew each time


class ThinkSplitter:
    """Split content into reasoning and text: `feed` pieces cut anywhere, then `close`.

    Holds back at most a tag's worth of characters, or blanks.

    Attributes:
        raw: What was fed up to where the text begins, when there was reasoning.
        passing: From here on everything is text; callers may skip `feed`.
    """

    def __init__(self) -> None:
        self.passing = False
        self.raw = ""
        self._state: Literal["before", "inside", "after"] = "before"
        self._held = ""
        self._raw: list[str] = []

    def feed(self, piece: str) -> tuple[str, str]:
        """Reasoning and text that are certain now; the reasoning comes first."""
        if self.passing:
            return "", piece
        thinking = ""
        held = self._held + piece
        if self._state == "before":
            start = held.lstrip(_BLANKS)
            if not start.startswith(_OPEN):
                if _OPEN.startswith(start) and len(held) <= _MAX_BLANKS + len(_OPEN):
                    self._held = held
                    return "", ""
                self.passing = True
                self._held = ""
                return "", held
            self._state = "inside"
            cut = len(held) - len(start) + len(_OPEN)
            self._raw.append(held[:cut])
            held = held[cut:]
        if self._state == "inside":
            thinking, tag, rest = held.partition(_CLOSE)
            if not tag:
                keep = _overlap(held, _CLOSE)
                thinking, self._held = held[: len(held) - keep], held[len(held) - keep :]
                self._raw.append(thinking)
                return thinking, ""
            self._raw += (thinking, tag)
            self._state = "after"
            held = rest
        text = held.lstrip(_BLANKS)
        self._raw.append(held[: len(held) - len(text)])
        self._held = ""
        if text:
            self.passing = True
            self.raw = "".join(self._raw)
        return thinking, text

    def close(self) -> tuple[str, str]:
        """What was held back, now that nothing follows."""
        if self.passing:
            return "", ""
        held, self._held = self._held, ""
        self.passing = True
        if self._state == "before":
            return "", held
        self._raw.append(held)
        self.raw = "".join(self._raw)
        return held, ""


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of `text` that could begin `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
