"""No fault of the matrix makes a run hang, lie, repeat itself or leave something behind."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.cuts import cut_everywhere
from tests.faults.matrix import PAGE, SECTIONS, SURFACES, attempted, page, real_rows
from tests.faults.row import Row, Surface

ROWS = [row for rows in SECTIONS.values() for row in rows]


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
def test_a_fault(row: Row, surface: Surface) -> None:
    assert attempted(row, surface).problems == ()


@pytest.mark.parametrize(("surface", "end"), [("run", "reset"), ("stream", "closed")])
def test_a_stream_cut_after_every_byte(surface: Surface, end: str) -> None:
    assert cut_everywhere(end, surface).problems == []


def test_the_page_is_what_the_command_writes() -> None:
    written = PAGE.read_text(encoding="utf-8").splitlines()
    now = page()[0].splitlines()
    moved = [f"\n- {a}\n+ {b}" for a, b in zip(written, now, strict=False) if a != b]
    assert written == now, "run `python -m tests.faults.matrix`" + "".join(moved[:10])


def test_every_row_has_its_own_name_and_some_are_run_on_real_time() -> None:
    assert [name for name, times in Counter(row.fault for row in ROWS).items() if times > 1] == []
    assert len(ROWS) >= 60
    assert len(real_rows()) >= 8
