r"""Text in which nothing hides. No I/O.

`visible` is for what a person reads before they approve it. Written out is what shows nothing, steers a terminal, or changes the order
in which the rest is read: the categories Cc (but line feeds and tabs), Cf, Cs, Co, Zl and Zp, variation selectors, blank letters, and
code points that are no characters. The table is fixed (Unicode 16), so that every Python shows the same. Unassigned code points stay:
a font shows a box, and later ones are new emoji. An emoji joined from several is written out at its joints. Spaces of other widths
stay: ordinary text of many languages has them.

`one_line` is for names and lines in a list that a model copies from: only what breaks a line or reverses it is written out, because
joiners and variation selectors belong to ordinary names (Persian words, emoji).

A text that holds such an escape already looks the same afterwards: both are for reading, not for reading back.
"""

from __future__ import annotations

import re

__all__ = ["one_line", "visible"]

_UNSEEN = re.compile(
    "["
    "\0-\x08\x0b-\x1f\x7f-\x9f"  # controls
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u115f\u1160\u3164\uffa0\U00016fe4"  # blank Hangul and Khitan letters
    "\u17b4\u17b5"  # Khmer vowels that are not shown
    "\u180b-\u180f\ufe00-\ufe0f"  # variation selectors
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, line separators, direction
    "\u2800"  # braille blank
    "\ud800-\uf8ff"  # halves of surrogate pairs, private use
    "\ufdd0-\ufdef\ufeff\ufff0-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 14))  # no characters
    + "\U000dfffe-\U0010ffff"  # tags, the other variation selectors, private use
    "]"
)
_BREAKS_A_LINE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The text with every character that hides or steers written as `\u{202e}`; `\n` and `\t` stay."""
    return _UNSEEN.sub(_escape, text)


def one_line(text: str, *, keep: str = "") -> str:
    r"""The text with what breaks or reverses a line written as `\u{a}`, but for the characters in `keep`."""
    return _BREAKS_A_LINE.sub(lambda found: found[0] if found[0] in keep else _escape(found), text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{{{ord(found[0]):x}}}"
