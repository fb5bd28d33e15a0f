from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from treadle.wire.think import ThinkSplitter


def split(*pieces: str) -> tuple[str, str, str]:
    splitter = ThinkSplitter()
    thinking, text = "", ""
    for piece in pieces:
        a, b = splitter.feed(piece)
        thinking, text = thinking + a, text + b
    a, b = splitter.close()
    return thinking + a, text + b, splitter.raw


@pytest.mark.parametrize(
    ("content", "thinking", "text", "raw"),
    [
        ("<think>\nhm\n</think>\n\nParis", "\nhm\n", "Paris", "<think>\nhm\n</think>\n\n"),
        ("\n <think>a</think>b", "a", "b", "\n <think>a</think>"),
        ("<think></think>b", "", "b", "<think></think>"),
        ("<think>never closed", "never closed", "", "<think>never closed"),
        ("<think>a</thin", "a</thin", "", "<think>a</thin"),
        ("<think>a</think>", "a", "", "<think>a</think>"),
        ("<thi", "", "<thi", ""),
        ("<thing>a", "", "<thing>a", ""),
        ("Use the <think>tag</think> so", "", "Use the <think>tag</think> so", ""),
        ("  plain", "", "  plain", ""),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>", "<think>a</think>"),
        ("", "", "", ""),
    ],
)
def test_only_a_tag_at_the_start_is_reasoning(content: str, thinking: str, text: str, raw: str) -> None:
    assert split(content) == (thinking, text, raw)
    assert split(*content) == (thinking, text, raw)


pieces_of_tags = st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think", ">", " ", "\n", "a", "é"])).map("".join)


@given(pieces_of_tags, cut_points)
def test_the_split_does_not_depend_on_where_pieces_are_cut(content: str, points: list[int]) -> None:
    assert split(*cut(content, points)) == split(content)


@given(pieces_of_tags)
def test_no_character_is_lost(content: str) -> None:
    _, text, raw = split(content)
    assert raw + text == content
