"""Where two requests differ, and how it is said."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.testing.matching import difference

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values)
def test_a_value_does_not_differ_from_itself(value: Any) -> None:
    assert difference(value, value) is None


@given(values, values)
def test_what_differs_is_found(one: Any, other: Any) -> None:
    if repr(one) != repr(other) and one != other:
        assert difference(one, other) is not None


@pytest.mark.parametrize(
    ("recorded", "asked", "said"),
    [
        ({"a": [1, 2]}, {"a": [1, 3]}, "`a.1` is 3; recorded was 2"),
        ({"a": 1}, {"a": 1, "b": {"c": None}}, '`b` is new: {"c": null}'),
        ({"a": [1, 2]}, {"a": [1]}, "`a.1` is gone; recorded was 2"),
        ({"a": True}, {"a": 1}, "`a` is 1; recorded was true"),
        (
            {"a": "x" * 100 + "one"},
            {"a": "x" * 100 + "two"},
            '`a` is …"xxxxxxxxxxxxxxxxxxxxtwo"; recorded was …"xxxxxxxxxxxxxxxxxxxxone"',
        ),
        ({"a": 1.0}, {"a": 1}, None),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
        ({"id": "call_0123abcd_1_0"}, {"id": "call_fedcba98_1_0"}, None),
        ({"id": "call_0123abcd_1_0"}, {"id": "call_fedcba98_1_1"}, '`id` is "call_run_1_1"; recorded was "call_run_1_0"'),
    ],
)
def test_how_it_is_said(recorded: Any, asked: Any, said: str | None) -> None:
    found = difference(recorded, asked)
    assert (found[1] if found else None) == said


def test_places_that_may_differ() -> None:
    recorded, asked = {"a": [{"b": 1, "c": 1}]}, {"a": [{"b": 2, "c": 2}], "d": 1}
    assert difference(recorded, asked, ignore=["a.0.b", "d"]) == ("a.0.c", "`a.0.c` is 2; recorded was 1")
    assert difference(recorded, asked, ignore=["a.*", "d"]) is None


def test_paths_that_may_differ_are_taken_literally_but_for_the_asterisk() -> None:
    assert difference({"a": [1]}, {"a": [2]}, ignore=["a.[0]", "a.?", "a.[!1]"]) == ("a.0", "`a.0` is 2; recorded was 1")
    assert difference({"[a]": 1}, {"[a]": 2}, ignore=["[a]"]) is None
    assert difference({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ignore=["*.c"]) is None
    assert difference({"aba": 1}, {"aba": 2}, ignore=["ab*ba"]) is not None


HIDDEN = "\uf8f0****\uf8f1"


@pytest.mark.parametrize(
    ("recorded", "asked", "same"),
    [
        (f"key {HIDDEN}.", "key abc.", True),
        (f"key {HIDDEN}.", "key .", False),
        (f"key {HIDDEN}.", "key abc", False),
        (f"{HIDDEN} and {HIDDEN}", "one and two", True),
        (f"{HIDDEN} and {HIDDEN}", "and two", False),
        (f"{HIDDEN}ab{HIDDEN}b", "xaab", False),
        (f"{HIDDEN}ab{HIDDEN}b", "abxb", False),
        (f"{HIDDEN}ab{HIDDEN}b", "xababb", True),
        ("a rule\n******\nhello", "a rule\nanything\nhello", False),
        ("charge ********", "charge somebody", False),
    ],
)
def test_where_a_secret_was_any_text_will_do_and_nowhere_else(recorded: str, asked: str, same: bool) -> None:
    assert (difference(recorded, asked) is None) is same


def test_comparing_takes_time_in_proportion() -> None:
    for one in ("/******/ code\n", f"/{HIDDEN}/ code\n", f"a{HIDDEN}"):
        began = time.process_time()
        assert difference(one * 3_000, "/x/ code\n" * 3_000 + "a" * 3_000 + "!") is not None
        assert time.process_time() - began < 5
