"""docs/providers.md says what the tests show, and nothing else."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.providers.providers import PROVIDERS
from tests.providers.table import ABILITIES, HERE, MORE, NO, NOTES, PAGE, is_slow, needs_sdk, nodes_of, page, shown_by
from treadle.drivers.catalog import PRESETS

ROOT = PAGE.parents[1]
NAMED = sorted({node for provider in PROVIDERS for ability in ABILITIES for node in nodes_of(provider, ability)})
PLAIN = [node for node in NAMED if not is_slow(node) and not needs_sdk(node)]
SDKS = {
    "tests/conformance/test_anthropic_sdk.py": "anthropic",
    "tests/conformance/test_openai_sdk.py": "openai",
    "tests/wire/test_responses_encode.py": "openai",
    "tests/wire/test_gemini_encode.py": "google.genai",
    "tests/wire/test_ollama_encode.py": "ollama",
}


def file_of(node: str) -> str:
    return node.partition("::")[0]


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package it is in
        return False


def test_the_page_is_what_the_command_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.providers.table"


def test_every_provider_has_a_row_and_every_row_all_cells() -> None:
    named = {provider.model.rpartition("+")[2].partition("/")[0] for provider in PROVIDERS.values()} - {"URL#m"}
    assert named == set(PRESETS)
    for cells in MORE.values():
        assert cells.keys() <= ABILITIES.keys()
    assert {*NO, *NOTES} <= {(provider, ability) for provider in PROVIDERS for ability in ABILITIES}
    assert not NO.keys() & NOTES.keys()


def test_every_cell_has_a_test_of_the_plain_suite() -> None:
    for provider in PROVIDERS:
        for ability in ABILITIES:
            assert any(node in PLAIN for node in nodes_of(provider, ability)), (provider, ability)


def test_a_cell_that_is_no_ability_is_shown_by_nothing_stronger_than_a_script() -> None:
    for provider, ability in NO:
        assert [shown_by(provider, node) for node in nodes_of(provider, ability)] == ["documented"], (provider, ability)


def test_every_test_named_exists(request: pytest.FixtureRequest) -> None:
    collected = {item.nodeid for item in request.session.items}
    elsewhere = {file_of(node) for node in PLAIN if node not in collected}
    if elsewhere:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *sorted(elsewhere)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, env=os.environ, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        collected |= set(done.stdout.splitlines())
    assert [node for node in PLAIN if node not in collected] == []
    for node in NAMED:
        assert function_of(node) is not None, node


def function_of(node: str) -> ast.AST | None:
    """The test in its file's source: for those that only another suite collects."""
    path, *names = node.partition("[")[0].split("::")
    here: ast.AST | None = ast.parse(Path(ROOT, path).read_text(encoding="utf-8"))
    for name in names:
        body = getattr(here, "body", [])
        here = next((each for each in body if getattr(each, "name", None) == name), None)
    return here


def test_what_needs_an_sdk_says_so() -> None:
    for node in NAMED:
        if needs_sdk(node):
            assert f'importorskip("{SDKS[file_of(node)]}' in Path(ROOT, file_of(node)).read_text(encoding="utf-8"), node


def test_every_test_of_this_folder_is_in_the_table() -> None:
    tree = ast.parse(Path(ROOT, HERE).read_text(encoding="utf-8"))
    tests = {each.name for each in tree.body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")}
    assert tests - {"test_schemas_here_are_what_providers_are_sent"} == set(ABILITIES.values())


def test_every_test_named_was_run_and_passed(request: pytest.FixtureRequest, outcomes: dict[str, str]) -> None:
    """In a run of the whole suite all of them; otherwise those that this run chose. It comes last (`conftest.py`)."""
    options = request.config.option
    is_chosen = bool(options.keyword or options.markexpr or options.deselect or options.lf) or any(
        "::" in each for each in request.config.args
    )
    ran = {file_of(node) for node in outcomes}
    due = [node for node in NAMED if not is_slow(node) and (not needs_sdk(node) or is_installed(SDKS[file_of(node)]))]
    due = [node for node in due if node in outcomes or (file_of(node) in ran and not is_chosen)]
    assert {node: outcomes.get(node, "not run") for node in due if outcomes.get(node) != "passed"} == {}
    asked = {Path(each).resolve() for each in request.config.args}
    if asked & {ROOT, ROOT / "tests"} and not is_chosen:
        assert [node for node in PLAIN if node not in outcomes] == []
