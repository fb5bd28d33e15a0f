"""No tool makes a run end otherwise than its row says, and the page for users is what was seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.tools.misbehaviour import ASYNC, PAGE, PLAIN, Row, all_rows, page, run_alone_rows, running, seen

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for what is left in /proc")

ROWS = all_rows()


@pytest.fixture(scope="module")
def _alone() -> None:
    run_alone_rows()


def found(does: str, form: str = ASYNC) -> tuple[Row, str]:
    return next((row, each) for row, each in ROWS if row.does.startswith(does) and each == form)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(("row", "form"), ROWS, ids=[f"{row.does}, {form}" for row, form in ROWS])
def test_a_tool(row: Row, form: str) -> None:
    assert seen(row, form).problems == ()


@pytest.mark.usefixtures("_alone")
def test_the_page_is_what_the_command_writes() -> None:
    written = PAGE.read_text(encoding="utf-8").splitlines()
    now = page().splitlines()
    moved = [f"\n- {a}\n+ {b}" for a, b in zip(written, now, strict=False) if a != b]
    assert written == now, "run `python -m tests.tools.misbehaviour`" + "".join(moved[:10])


def test_every_row_can_be_told_from_the_others() -> None:
    names = Counter((row.does, form) for row, form in ROWS)
    assert [name for name, times in names.items() if times > 1] == []
    assert len(ROWS) >= 100


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(("row", "form"), [each for each in ROWS if "run_process" in each[0].does or "`shell`" in each[0].does])
def test_the_built_in_ways_to_run_a_program_leave_nothing_behind(row: Row, form: str) -> None:
    assert seen(row, form).survivors == ()
    assert seen(row, form).reads != ()


@pytest.mark.parametrize(
    ("does", "form", "survivors"),
    [
        ("never returns", ASYNC, ()),
        ("never returns", PLAIN, ("1 thread, in `abandoned()`",)),
        ("ignores its cancellation", ASYNC, ("1 task, in `left_behind()`",)),
        ("returns 50 MB", ASYNC, ()),
    ],
)
def test_what_is_left_behind_is_listed(does: str, form: str, survivors: tuple[str, ...]) -> None:
    assert seen(*found(does, form)).survivors == survivors


def test_what_remarks_say_of_a_row_is_so() -> None:
    assert seen(*found("is `repeatable`, changes its arguments")).reads == ("given 3, 3, 3 items",)
    assert seen(*found("changes its default value")).reads == ('["more"]', '["more"]')
    assert seen(*found("returns 50 MB")).kept == 10_000_000
    assert seen(*found("ignores its cancellation, time limit")).exit == ""


def test_nobody_sleeps_for_a_time_that_was_not_given() -> None:
    assert running("3600.987654321987") == {}
