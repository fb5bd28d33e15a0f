"""The pytest plugin: fixtures `cassette` and `treadle_offline`, option `--treadle-record`. Loaded by pytest itself, so it loads little."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from treadle.testing.cassette import Cassette

__all__ = ["cassette", "treadle_offline", "treadle_secrets"]

_LONGEST = 120  # characters of a file's name, without its ending

_raised: dict[str, str] = {}  # by a test's id: the class's name, empty if the test passed; absent if it was not run

# Every suite of an environment loads this, so nothing at its top level may need a new pytest.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("treadle").addoption(
        "--treadle-record",
        choices=("none", "once", "all"),
        default=None,
        help="none: only play cassettes; once: record those that are missing; all: record anew. "
        "By default once, and none where the variable CI is set.",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    yield
    if call.when == "call" and "treadle_offline" in getattr(item, "fixturenames", ()):
        _raised[item.nodeid] = call.excinfo.typename if call.excinfo is not None else ""


@pytest.fixture
def treadle_secrets() -> Iterable[str]:
    """What no cassette may hold. Override it in a conftest.py; keys that are sent or in the environment are known without."""
    return ()


@pytest.fixture
def treadle_offline(request: pytest.FixtureRequest) -> Generator[None]:
    """The test fails if treadle sends a request that no cassette answers, or if anything connects to another machine."""
    from treadle.testing import guard
    from treadle.testing.errors import NetworkBlocked

    blocked = guard.begin()
    try:
        yield
    finally:
        guard.end(blocked)
        raised = _raised.pop(request.node.nodeid, "")
    if blocked and raised != NetworkBlocked.__name__:
        raise NetworkBlocked(blocked[0])


@pytest.fixture
def cassette(
    request: pytest.FixtureRequest, treadle_offline: None, treadle_secrets: Iterable[str]
) -> Generator[Callable[..., Any]]:
    """Makes drivers that play recorded answers: `cassette("oslo", model="ollama/qwen3:8b")`.

    The file is `cassettes/NAME.json` beside the test's file; without a name it has those of the test's file and the test. Where characters had to be
    replaced, a few digits tell it from others. The other arguments are those of
    `treadle.testing.Cassette`. A test that records may reach the network; every other is kept from it, as by `treadle_offline`. When
    the test has passed, what was recorded is written, and what was to be played must have been played.
    """
    from treadle.testing import guard
    from treadle.testing.cassette import Cassette

    used: list[Cassette] = []
    recording = ExitStack()

    def make(name: str | None = None, **settings: Any) -> Any:
        path = Path(cast(Any, request).path if hasattr(request, "path") else cast(Any, request).fspath)
        settings["record"] = settings.get("record") or request.config.getoption("--treadle-record")
        settings["secrets"] = (*treadle_secrets, *settings.get("secrets", ()))
        made = Cassette(path.parent / "cassettes" / f"{_file_name(name or _name_of(request.node.nodeid, path))}.json", **settings)
        if made.records:
            recording.enter_context(guard.lifted())
        used.append(made)
        return made.start()

    with recording:
        yield make
    if _passed(request):
        for each in used:
            each.finish()


def _passed(request: pytest.FixtureRequest) -> bool:
    """The test itself passed. If it did not, what it says comes first."""
    return _raised.get(request.node.nodeid) == ""


def _name_of(nodeid: str, path: Path) -> str:
    """Of `tests/test_a.py::TestB::test_c[d]`: `test_a.TestB-test_c-d`."""
    test, bracket, parameters = nodeid.partition("::")[2].partition("[")
    return f"{path.stem}.{test.replace('::', '-')}" + (f"-{parameters.removesuffix(']')}" if bracket else "")


def _file_name(name: str) -> str:
    clean = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:_LONGEST]
    if clean == name:
        return clean
    return f"{clean or 'cassette'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
