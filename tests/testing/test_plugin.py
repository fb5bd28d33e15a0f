"""The plugin, as pytest itself loads it: in a process of its own, in a directory of a user's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from treadle import LlamaServer

MODEL = "llamacpp/tiny-tool-caller.q8_0"
ONE_TEST = """
from treadle import Agent, Options

def test_it(cassette):
    agent = Agent(cassette("oslo", model="llamacpp/tiny-tool-caller.q8_0"), options=Options(temperature=0.0, max_tokens=20))
    assert agent.run_sync("Hello").stop_reason is not None
"""


class Project:
    """A directory with tests."""

    def __init__(self, path: Path, server: LlamaServer) -> None:
        self.path = path
        where = urlsplit(server.base_url)
        self.server = {"LLAMA_ARG_HOST": str(where.hostname), "LLAMA_ARG_PORT": str(where.port)}

    def write(self, text: str, name: str = "test_it.py") -> None:
        (self.path / name).write_text(text)

    def pytest(self, *arguments: str, online: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        usual = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")} | {"COLUMNS": "1000"}
        nowhere = {"LLAMA_ARG_HOST": "127.0.0.1", "LLAMA_ARG_PORT": "9"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *arguments]
        settings = usual | (self.server if online else nowhere) | environment
        return subprocess.run(command, cwd=self.path, env=settings, capture_output=True, text=True, timeout=60)

    def passes(self, *arguments: str, **settings: object) -> None:
        done = self.pytest(*arguments, **settings)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stdout + done.stderr

    def fails(self, *arguments: str, **settings: object) -> str:
        done = self.pytest(*arguments, **settings)  # type: ignore[arg-type]
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def project(tmp_path: Path, llamacpp: LlamaServer) -> Iterator[Project]:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    yield Project(tmp_path, llamacpp)


def test_it_is_an_entry_point() -> None:
    assert [each.value for each in entry_points(group="pytest11", name="treadle")] == ["treadle.testing.plugin"]


def test_loading_it_loads_next_to_nothing() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import treadle.testing.plugin; "
        "print(*sorted(set(sys.modules) - before)); import treadle.testing; print('aiohttp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, heavy = done.stdout.splitlines()
    assert loaded.split() == ["treadle", "treadle.testing", "treadle.testing.plugin"]
    assert heavy == "False"


def test_an_older_pytest_loads_it() -> None:
    """Every suite of an environment loads it. Played here without what pytest 7 and pluggy 1.2 brought."""
    code = (
        "import pytest\n"
        "real = pytest.hookimpl\n"
        "def old(function=None, hookwrapper=False, optionalhook=False, tryfirst=False, trylast=False, specname=None):\n"
        "    return real(function, hookwrapper=hookwrapper, optionalhook=optionalhook, tryfirst=tryfirst, trylast=trylast)\n"
        "pytest.hookimpl = old\n"
        "for name in ('StashKey', 'Stash', 'Parser', 'CallInfo', 'TestReport', 'FixtureRequest'):\n"
        "    vars(pytest).pop(name, None)\n"
        "import treadle.testing.plugin\n"
        "print('loaded')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "loaded\n", done.stderr


def test_a_suite_without_agents_notices_nothing(project: Project) -> None:
    project.write("import sys\n\ndef test_it():\n    assert not {'aiohttp', 'asyncio', 'msgspec'} & set(sys.modules)\n")
    project.passes("-p", "no:timeout", "-p", "no:hypothesispytest", "-p", "no:anyio")


def test_recorded_once_then_offline(project: Project) -> None:
    project.write(ONE_TEST)
    said = project.fails(CI="true")
    assert "NotRecorded: there is no cassette oslo.json in cassettes/" in said
    assert "pytest --treadle-record=once" in said
    project.passes(online=True)
    file = project.path / "cassettes" / "oslo.json"
    first = file.read_bytes()
    assert os.listdir(file.parent) == ["oslo.json"]
    project.passes(CI="1")
    project.passes(online=True)
    assert file.read_bytes() == first
    project.passes("--treadle-record=all", online=True)
    assert file.read_bytes() != first  # the server's own ids are others


def test_a_test_that_fails_writes_nothing(project: Project) -> None:
    project.write(ONE_TEST + "    assert False\n")
    project.fails(online=True)
    assert not (project.path / "cassettes").exists()


def test_what_was_changed_is_named(project: Project) -> None:
    project.write(ONE_TEST)
    project.passes(online=True)
    bye = ONE_TEST.replace('"Hello"', '"Bye"')
    project.write(bye, "test_changed.py")
    swallowing = bye.replace("    assert agent", "    try:\n        agent").replace(" is not None", "")
    project.write(swallowing + "    except Exception:\n        pass\n", "test_swallowed.py")
    project.write(ONE_TEST.replace("    assert agent", "    return\n    assert agent"), "test_left.py")
    project.write(ONE_TEST.replace("llamacpp/", "ollama/"), "test_other.py")
    said = project.fails("-rfE", "--tb=line")
    assert "1 failed, 3 passed, 2 errors" in said or "2 failed, 3 passed, 2 errors" in said
    for name, words in {
        "FAILED test_changed.py": 'RequestDiffers: the request is not the recorded one (exchange 0 of oslo.json): `messages.0.content` is "Bye"; recorded was "Hello"',
        "ERROR test_swallowed.py": "RequestDiffers",
        "ERROR test_left.py": "NotPlayed: 1 of 1 exchanges of oslo.json were not asked for: 0",
        "FAILED test_other.py": "was recorded with 'llamacpp/tiny-tool-caller.q8_0', and the test asks for 'ollama/tiny-tool-caller.q8_0'",
    }.items():
        assert any(line.startswith(name) for line in said.splitlines()), said
        assert words in said, said


def test_a_request_around_the_cassette_fails_the_test(project: Project) -> None:
    project.write(
        "from treadle import Agent\n\ndef test_it(cassette):\n    try:\n"
        '        Agent("http://127.0.0.1:9/v1#m").run_sync("Hi")\n    except Exception:\n        pass\n'
    )
    said = project.fails()
    assert "NetworkBlocked: the test tried to reach http://127.0.0.1:9/v1" in said
    assert 'cassette("NAME", model=...)' in said


def test_a_whole_suite_can_be_kept_offline(project: Project) -> None:
    project.write("import pytest\n\n@pytest.fixture(autouse=True)\ndef no_network(treadle_offline):\n    pass\n", "conftest.py")
    project.write("import socket\n\ndef test_it():\n    socket.create_connection(('192.0.2.1', 80), timeout=1)\n")
    assert "NetworkBlocked: the test tried to reach 192.0.2.1:80" in project.fails()
    project.write(ONE_TEST)
    project.passes(online=True)  # what records may
    project.passes()


def test_names_and_secrets(project: Project) -> None:
    project.write("import pytest\n\n@pytest.fixture\ndef treadle_secrets():\n    return ['Hello there']\n", "conftest.py")
    project.write(
        "import pytest\nfrom treadle import Agent, Options\n\n@pytest.mark.parametrize('n', ['a/b', '../c', 'a-b', 'a:b'])\n"
        "def test_it(cassette, n):\n"
        f"    agent = Agent(cassette(model='{MODEL}'), options=Options(max_tokens=5))\n"
        "    agent.run_sync('Hello there')\n"
    )
    project.passes(online=True)
    names = sorted(os.listdir(project.path / "cassettes"))
    assert len(names) == 4  # the names of three differ only in characters that no file's name should hold
    assert "test_it.test_it-a-b.json" in names
    assert all(re.fullmatch(r"test_it\.test_it-(\.\.-c-[0-9a-f]{8}|a-b(-[0-9a-f]{8})?)\.json", name) for name in names)
    assert "Hello there" not in "".join((project.path / "cassettes" / name).read_text() for name in names)
    project.passes()
