"""Foreign text on a screen."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from treadle.cli.text import boxed, exact, harmless, is_diff, pretty_json, shown_call

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@given(st.text())
def test_harmless_text_has_nothing_that_steers(text: str) -> None:
    clean = harmless(text)
    assert all(char in "\n\t" or unicodedata.category(char) != "Cc" for char in clean)
    assert not set(clean) & set(_BIDI)


@given(st.text())
def test_exact_text_is_all_to_be_seen(text: str) -> None:
    assert all(char in "\n\t" or char.isprintable() for char in exact(text))


@given(st.text(alphabet=st.characters() | st.sampled_from("\n\t\r\x1b世 ")), st.integers(20, 60))
def test_a_box_cannot_be_left(text: str, width: int) -> None:
    rows, _ = boxed(text, width)
    for row in rows:
        assert row.plain.startswith("│ ")
        assert "\n" not in row.plain
        assert cell_len(row.plain) <= width


def test_what_is_left_out_is_counted() -> None:
    rows, left_out = boxed("\n".join(map(str, range(100))), 40, max_rows=12)
    assert (len(rows), left_out) == (12, 89)
    assert rows[8].plain == "│ … 89 more lines …"


def test_invisible_characters_are_written_out() -> None:
    assert exact("a\u00a0b\u200bc\u3164d\ufe0fe\x1b[2K") == "a\\u00a0b\\u200bc\\u3164d\\ufe0fe\\u001b[2K"
    assert exact("plain text, é 世 ✓\n\t") == "plain text, é 世 ✓\n\t"


def test_a_call_on_a_line() -> None:
    assert shown_call("f", '{"a": 1, "b": "x\u202ey"}') == 'f(a=1, b="x\N{REPLACEMENT CHARACTER}y")'
    assert shown_call("f", '{"a": ') == 'f {"a":'
    assert pretty_json("{") == "{"


def test_a_diff_is_known_by_its_head() -> None:
    assert is_diff("--- a/x\n+++ b/x\n@@")
    assert not is_diff("a list:\n- one\n+ two")
