from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.tools.builtin.visible import one_line, visible


@pytest.mark.parametrize(
    "text",
    ["", "a\tb\nc", "naïve e\u0301", "文字 かな 한글", "עברית عربي", "हिन्दी ไทย", "👍🏽 🇳🇴 ∑ │", "a\u00a0b\u3000c", "\\u{202e}"],
)
def test_ordinary_text_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    "char",
    "\0\r\x1b\x7f\x85\u00ad\u034f\u061c\u115f\u1160\u17b4\u180b\u180e\u180f\u200b\u200d\u200e\u2028\u2029\u202e\u2060\u2066\u2800"
    "\u3164\ud800\udfff\ue000\ufdd0\ufe00\ufe0f\ufeff\uffa0\uffff\U000e0001\U000e0041\U000e0100\U000e01ef\U000f0000\U0010ffff",
)
def test_what_hides_or_steers_is_written_out(char: str) -> None:
    assert visible(f"a{char}b") == f"a\\u{{{ord(char):x}}}b"


def test_the_table_has_the_categories_that_it_names() -> None:
    hiding = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) in hiding and char not in "\n\t":
            assert visible(char) != char, hex(code)
        elif unicodedata.category(char)[0] in "NPS" and char != "\u2800" and code != 0x1D159:
            assert visible(char) == char, hex(code)


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_is_left_to_write_out(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    visible(text).encode()  # no half of a surrogate pair


def test_a_name_keeps_its_joiners_and_stays_on_its_line() -> None:
    assert one_line("نمی\u200cخواهم ❤\ufe0f") == "نمی\u200cخواهم ❤\ufe0f"
    assert one_line("a\nb\tc\u202ed\x1b\u2028") == "a\\u{a}b\\u{9}c\\u{202e}d\\u{1b}\\u{2028}"
    assert one_line("a\tb", keep="\t") == "a\tb"
