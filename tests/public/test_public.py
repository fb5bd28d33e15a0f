"""What users import, and what it costs them. A difference here is a decision about the API."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import treadle
import treadle.errors

SOURCE = Path(treadle.__file__)


def test_every_name_is_exported_lazily_and_typed() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    typed = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("treadle.")
        for alias in node.names
    }
    assert typed == set(treadle.__all__) - {"__version__"}
    for name in treadle.__all__:
        assert getattr(treadle, name) is not None
    assert dir(treadle) == treadle.__all__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = treadle.nonsense


ERRORS = [name for name in treadle.errors.__all__ if inspect.isclass(getattr(treadle.errors, name))]


def test_every_error_is_exported() -> None:
    from treadle import errors

    assert set(errors.__all__) <= set(treadle.__all__)
    drawn = set(re.findall(r"\b[A-Z]\w+", (errors.__doc__ or "").split("How a healthy run")[0]))
    assert set(ERRORS) <= drawn, "the tree in the docstring is whole"


@pytest.mark.parametrize("name", [n for n in ERRORS if n not in ("MissingExtra", "ModelTimeout")])
def test_every_error_has_a_hint_and_keeps_the_servers_words_to_itself(name: str) -> None:
    error_class = getattr(treadle, name)
    words = {"server_said": "canary"} if issubclass(error_class, treadle.ModelError) else {}
    error = error_class("what happened", **words)
    assert error.hint
    assert "canary" not in f"{error} {error!r}"
    assert str(error) == f"what happened\n  {error.hint}"


def test_public_structs_are_frozen() -> None:
    for name in treadle.__all__:
        value = getattr(treadle, name)
        if inspect.isclass(value) and issubclass(value, msgspec.Struct):
            assert value.__struct_config__.frozen, name


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in out.split()}


def test_importing_treadle_loads_nothing_heavy() -> None:
    heavy = {"aiohttp", "click", "rich", "xllamacpp", "pydantic", "docstring_parser", "treadle_tiny", "hypothesis"}
    assert not heavy & loaded_by("import treadle")
    assert not heavy & loaded_by("from treadle import Agent, tool, TextDelta, ModelError, UserMessage, Limits, RunResult")
    assert "asyncio" not in loaded_by("import treadle")


def distributions(name: str, seen: set[str]) -> set[str]:
    for requirement in importlib.metadata.requires(name) or ():
        needed, _, marker = requirement.partition(";")
        if "extra" in marker:
            continue
        other = re.split(r"[^A-Za-z0-9_.-]", needed.strip())[0].lower().replace("_", "-")
        try:
            importlib.metadata.distribution(other)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        if other not in seen:
            seen.add(other)
            distributions(other, seen)
    return seen


def test_the_core_installs_at_most_14_other_distributions() -> None:
    found = distributions("treadle", set())
    assert len(found) <= 14, found


def test_the_loop_can_be_read_in_one_sitting() -> None:
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (SOURCE.parent / "core").glob("*.py")}
    assert lines["loop.py"] < 200
    assert sum(lines.values()) < 800
