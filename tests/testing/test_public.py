"""What `treadle.testing` offers."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import msgspec
import pytest

import treadle.testing
from treadle import TreadleError
from treadle.testing import errors


def test_its_names() -> None:
    assert treadle.testing.__all__ == [
        "BrokenEvents",
        "Cassette",
        "CassetteError",
        "Cut",
        "Duplicate",
        "Fault",
        "Garbage",
        "NetworkBlocked",
        "NotPlayed",
        "NotRecorded",
        "Refuse",
        "RequestDiffers",
        "Stall",
        "Status",
        "check_events",
        "offline",
        "run_virtual",
    ]
    tree = ast.parse(Path(treadle.testing.__file__).read_text(encoding="utf-8"))
    typed = {
        a.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing" for a in node.names
    }
    assert typed - {None} == set(treadle.testing.__all__)
    for name in treadle.testing.__all__:
        value = getattr(treadle.testing, name)
        assert name == "Fault" or inspect.getdoc(value)
        if inspect.isclass(value) and issubclass(value, msgspec.Struct):
            assert value.__struct_config__.frozen
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = treadle.testing.nonsense


def test_every_error_says_whose_move_it_is() -> None:
    made = [errors.NotRecorded("x"), errors.NotPlayed("x"), errors.RequestDiffers("x", path="a"), errors.NetworkBlocked("h:1")]
    for error in [*made, errors.CassetteError("x")]:
        assert isinstance(error, TreadleError)
        assert error.hint != TreadleError.default_hint
