from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treadle.values.messages import AssistantMessage, Message, SystemMessage, Text, ToolMessage, UserMessage
from treadle.values.text import find_result, reference, shortened

NOTE = '; read_result(ref="r12345678") has them'
NO_ROOM = len("\n[... 100,000 of 100,000 characters left out ...]\n")

# Any character, half surrogates and the marker's own letters among them; lines of any length, also none and huge ones.
CHARS = st.characters() | st.characters(categories=["Cs"]) | st.sampled_from("\n\r\n\n[.] ,0")
TEXTS = st.builds(lambda piece, times: piece * times, st.text(CHARS, min_size=1, max_size=80), st.integers(1, 300))
SIZES = st.integers(0, 400) | st.integers(0, 20_000)


def parts(cut: str, text: str, note: str = "") -> list[tuple[str, int, str]]:
    """Head, number of missing characters and tail, at each place that could be the line that says so."""
    said = re.escape(f" of {len(text):,} characters left out{note}")
    found: list[tuple[str, int, str]] = []
    for match in re.finditer(rf"\n\[\.\.\. (?=([\d,]+){said} \.\.\.\]\n)", cut):
        line = f"\n[... {match[1]} of {len(text):,} characters left out{note} ...]\n"
        found.append((cut[: match.start()], int(match[1].replace(",", "")), cut[match.start() + len(line) :]))
    return found


def only(cut: str, text: str, note: str = "") -> tuple[str, int, str]:
    (found,) = parts(cut, text, note)
    return found


@given(TEXTS, SIZES, st.sampled_from(["", NOTE, "\n"]))
@example("x" * 100_000, 0, "")
@example("x" * 100_000, 1, NOTE)
@example("x" * 100_000, 30, NOTE)
@example("x" * 100_000, NO_ROOM, "")
@example("x" * 100_000, NO_ROOM + 1, "")
@example("\n" * 100_000, 30, "")
@example("\n" * 100_000, 1_000, NOTE)
@example("\udc80" * 5_000, 2_000, "")
def test_it_fits_and_what_it_says_is_true(text: str, max_chars: int, note: str) -> None:
    cut = shortened(text, max_chars, note=note)
    assert len(cut) <= max_chars
    if len(text) <= max_chars:
        assert cut == text
        return
    longest = len(f"\n[... {len(text):,} of {len(text):,} characters left out{note} ...]\n")
    if max_chars <= longest:
        assert cut == text[:max_chars], "no room to say so"
        return
    true = [
        (head, missing, tail)
        for head, missing, tail in parts(cut, text, note)
        if text.startswith(head) and text.endswith(tail) and len(head) + missing + len(tail) == len(text) and missing > 0
    ]
    assert true, "no line in it says how much is missing"
    # At most half of the room is given up for whole lines.
    assert any(len(head) + len(tail) >= (max_chars - longest) // 2 - 1 for head, _, tail in true)


@given(TEXTS, SIZES)
def test_cutting_again_changes_nothing(text: str, max_chars: int) -> None:
    cut = shortened(text, max_chars)
    assert shortened(cut, max_chars) == cut


@given(st.lists(st.text(st.characters(exclude_characters="\n["), max_size=20), min_size=30, max_size=300), st.booleans())
def test_short_lines_are_whole_lines(lines: list[str], ends_with_newline: bool) -> None:
    text = "\n".join(lines) + "\n" * ends_with_newline
    room = 200
    max_chars = room + len(f"\n[... {len(text):,} of {len(text):,} characters left out ...]\n")
    cut = shortened(text, max_chars)
    if cut == text:
        return
    head, _, tail = only(cut, text)
    assert text.startswith(head + "\n")
    assert text.endswith("\n" + tail)
    assert len(head) > room * 2 // 3 - 22
    assert len(tail) > room // 3 - 22


def test_a_log_keeps_its_first_and_last_lines() -> None:
    def lines(first: int, last: int) -> str:
        return "".join(f"line {i}\n" for i in range(first, last + 1))

    cut = shortened(lines(0, 999), 150)
    assert cut == lines(0, 8) + "[... 8,801 of 8,890 characters left out ...]\n" + lines(997, 999)


def test_one_huge_line_is_cut_inside() -> None:
    text = "a" * 50_000 + "b" * 50_000
    head, missing, tail = only(shortened(text, 16_000), text)
    assert set(head) == {"a"}
    assert set(tail) == {"b"}
    assert len(head) + missing + len(tail) == 100_000
    assert len(head) + len(tail) == 16_000 - NO_ROOM
    assert len(head) == (16_000 - NO_ROOM) * 2 // 3


def test_a_short_first_line_does_not_cost_the_long_second_one() -> None:
    text = "title\n" + "x" * 100_000 + "\nend"
    head, _, tail = only(shortened(text, 3_000), text)
    assert len(head) > 1_900
    assert len(tail) > 900


def test_the_note_is_in_the_line_that_says_how_much_is_missing() -> None:
    text = "x" * 10_000
    cut = shortened(text, 500, note=NOTE)
    assert f"of 10,000 characters left out{NOTE} ...]\n" in cut
    assert only(cut, text, NOTE)
    assert shortened("short", 500, note=NOTE) == "short"


@pytest.mark.parametrize("max_chars", range(NO_ROOM + 3))
def test_without_room_to_say_so_it_is_the_beginning(max_chars: int) -> None:
    text = "abcdefghij" * 10_000
    cut = shortened(text, max_chars)
    if max_chars <= NO_ROOM:
        assert cut == text[:max_chars]
    else:
        head, missing, tail = only(cut, text)
        assert (len(head) + len(tail), missing) == (max_chars - NO_ROOM, 100_000 - (max_chars - NO_ROOM))


def test_a_text_one_too_long_says_so_too() -> None:
    text = "x" * 1_001
    assert shortened(text, 1_001) == text
    _, missing, _ = only(shortened(text, 1_000), text)
    assert missing > 0


# --- the way back ----------------------------------------------------------------------------------------------------


def tool_message(full: str | None, content: str = "cut") -> ToolMessage:
    return ToolMessage("c1", "look", content, full=full)


@given(st.lists(st.text(CHARS, max_size=50), unique=True, max_size=20))
def test_every_text_is_found_by_its_reference(texts: list[str]) -> None:
    messages: list[Message] = [UserMessage("x"), *(tool_message(text) for text in texts), AssistantMessage((Text("done"),))]
    for text in texts:
        assert find_result(messages, reference(text)) == text


@given(st.text(CHARS, max_size=200))
def test_a_reference_is_short_plain_and_made_from_the_text_alone(text: str) -> None:
    assert re.fullmatch(r"r[0-9a-f]{8}", reference(text))
    assert reference(text) == reference("".join(list(text)))


def test_a_reference_stays_what_it_was() -> None:
    """Saved conversations hold it."""
    assert (reference(""), reference("treadle"), reference("\udc80")) == ("r00000000", "raaa73d57", "r6530d5fb")


def test_what_was_not_cut_is_not_found() -> None:
    messages = [SystemMessage("whole"), UserMessage("whole"), tool_message(None, "whole")]
    assert find_result(messages, reference("whole")) is None
    assert find_result([], reference("whole")) is None
    assert find_result([tool_message("whole")], "") is None
    assert find_result([tool_message("whole")], reference("whole").upper()) is None
    assert find_result([tool_message("whole")], reference("whole")) == "whole"
