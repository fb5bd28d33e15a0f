"""Tests of agents without a model: recorded answers, faults, virtual time, and the rules that a run's events keep.

    from treadle.testing import Cassette, check_events

With pytest the fixtures `cassette` and `treadle_offline` are there by themselves (docs/testing-agents.md). Names are loaded when they
are first used: importing this loads no HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.testing.cassette import Cassette as Cassette
    from treadle.testing.clock import run_virtual as run_virtual
    from treadle.testing.errors import BrokenEvents as BrokenEvents
    from treadle.testing.errors import CassetteError as CassetteError
    from treadle.testing.errors import NetworkBlocked as NetworkBlocked
    from treadle.testing.errors import NotPlayed as NotPlayed
    from treadle.testing.errors import NotRecorded as NotRecorded
    from treadle.testing.errors import RequestDiffers as RequestDiffers
    from treadle.testing.faults import Cut as Cut
    from treadle.testing.faults import Duplicate as Duplicate
    from treadle.testing.faults import Fault as Fault
    from treadle.testing.faults import Garbage as Garbage
    from treadle.testing.faults import Refuse as Refuse
    from treadle.testing.faults import Stall as Stall
    from treadle.testing.faults import Status as Status
    from treadle.testing.grammar import check_events as check_events
    from treadle.testing.guard import offline as offline

_EXPORTS = {
    "treadle.testing.cassette": ("Cassette",),
    "treadle.testing.clock": ("run_virtual",),
    "treadle.testing.errors": (
        "BrokenEvents",
        "CassetteError",
        "NetworkBlocked",
        "NotPlayed",
        "NotRecorded",
        "RequestDiffers",
    ),
    "treadle.testing.faults": (
        "Cut",
        "Duplicate",
        "Fault",
        "Garbage",
        "Refuse",
        "Stall",
        "Status",
    ),
    "treadle.testing.grammar": ("check_events",),
    "treadle.testing.guard": ("offline",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'treadle.testing' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
