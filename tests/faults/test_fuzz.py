"""A short run of the fuzzer; `python -m tests.faults.fuzz --seconds 60` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fuzz import failure, made, main, targets

ITERATIONS = 300
TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_and_the_same_outcome_at_any_cut(name: str) -> None:
    for seed in range(ITERATIONS):
        found = failure(TARGETS[name], name, seed)
        if found is not None:
            data, error = found
            error.add_note(f"python -m tests.faults.fuzz --target {name} --seed {seed} --iterations 1; input: {data[:300]!r}")
            raise error


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_not_mutated_passes(name: str) -> None:
    target = TARGETS[name]
    for data in target.corpus:
        target.check(data, made(target, name, 0)[1])


def test_a_seed_names_its_input() -> None:
    assert made(TARGETS["chat"], "chat", 7)[0] == made(targets()["chat"], "chat", 7)[0]


def test_a_failure_is_saved_and_its_seed_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: object, data: bytes) -> list[object]:
        raise KeyError("not documented")

    monkeypatch.setattr("treadle.wire.sse.SSEDecoder.feed", broken)
    saved = tmp_path / "input.bin"
    assert main(["--target", "sse", "--seed", "5", "--iterations", "3", "--save", str(saved)]) == 1
    assert "--target sse --seed 5 --iterations 1" in capsys.readouterr().out
    assert saved.read_bytes() == made(TARGETS["sse"], "sse", 5)[0]


def test_a_run_without_findings_says_how_much_it_did(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--target", "think", "--iterations", "20", "--save", str(tmp_path / "x")]) == 0
    assert "20 executions" in capsys.readouterr().out
