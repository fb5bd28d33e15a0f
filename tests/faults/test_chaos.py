"""Some seeds of `python -m tests.faults.chaos`, always the same ones."""

from __future__ import annotations

import pytest

from tests.faults.chaos import violations

SEEDS = 150


@pytest.mark.parametrize("first", range(0, SEEDS, 25))
def test_random_runs_break_no_law(first: int) -> None:
    found = {seed: violations(seed) for seed in range(first, first + 25)}
    broken = [f"{problem}\n    python -m tests.faults.chaos --runs 1 --seed {seed}" for seed in found for problem in found[seed]]
    assert not broken, "\n".join(broken)
