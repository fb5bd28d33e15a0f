"""Fixtures of these tests, and what came of every test that the table names (`test_table.py`)."""

from __future__ import annotations

import pytest

from tests.providers.asking import ask, nothing_set

__all__ = ["ask", "nothing_set"]


class Outcomes:
    """What came of each test of this session, by its node id."""

    def __init__(self) -> None:
        self.by_node: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # a skip or an error of the setup comes before the call
            self.by_node[report.nodeid] = "expected to fail" if hasattr(report, "wasxfail") else report.outcome


OUTCOMES = pytest.StashKey[Outcomes]()


def pytest_configure(config: pytest.Config) -> None:
    outcomes = Outcomes()
    config.stash[OUTCOMES] = outcomes
    config.pluginmanager.register(outcomes)  # as a plugin it hears of the tests of all folders


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The table is checked when all that it names has been run."""
    items.sort(key=lambda item: item.nodeid.startswith("tests/providers/test_table.py"))


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> dict[str, str]:
    return request.config.stash[OUTCOMES].by_node
