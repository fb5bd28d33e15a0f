from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.errors import ToolError
from treadle.tools.builtin import search as module
from treadle.tools.builtin import search_worker
from treadle.tools.builtin.search import Search, search_tool
from treadle.tools.builtin.workspace import Workspace
from treadle.tools.builtin.workspace_walk import Budget
from treadle.tools.threads import abandoned

# Also one that a package has put beside this Python.
RG = shutil.which("rg", path=os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(sys.executable)])) or ""
needs_rg = pytest.mark.skipif(not RG, reason="ripgrep is not installed")


@pytest.fixture(params=[pytest.param("", id="python"), pytest.param(RG, id="rg", marks=needs_rg)])
def program(request: pytest.FixtureRequest) -> str:
    return request.param


def search(root: Path, pattern: str, path: str = ".", *, program: str, **more: Any) -> list[str]:
    budget = Budget(entries=10_000, max_bytes=10_000_000, seconds=60)
    return Search(Workspace(root), budget, pattern, program=program, **more).run(path).splitlines()


def refused(*args: Any, **more: Any) -> ToolError:
    with pytest.raises(ToolError) as caught:
        search(*args, **more)
    return caught.value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in {
        "b.py": "import os\n\nprint('Hello')\n",
        "a/x.py": "def hello():\r\n    return 'hello'\r\n",
        "a/y.txt": "hello",
        ".hidden": "hello hidden\n",
        ".gitignore": "a/\n",
        ".git/config": "hello git\n",
        "node_modules/m.js": "hello module\n",
        "-e": "hello option\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(text.encode())
    (tmp_path / "binary").write_bytes(b"hello\0")
    (tmp_path / "latin").write_bytes(b"hello caf\xe9\n")
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfhello bom\n")
    return tmp_path


def test_search(root: Path, program: str) -> None:
    assert search(root, "hello", program=program) == [
        "-e:1: hello option",
        ".hidden:1: hello hidden",
        "a/x.py:1: def hello():",
        "a/x.py:2:     return 'hello'",
        "a/y.txt:1: hello",
        "bom:1: hello bom",
        "latin:1: hello caf\ufffd",
        "[7 lines match, in 6 of 8 files in `.`]",
        "[files not searched: 1 binary]",
    ]
    assert search(root, "^hello", "a", program=program) == ["a/y.txt:1: hello", "[1 line matches, in 1 of 2 files in `a`]"]
    assert search(root, r"hello.*\($|:$", "a/x.py", program=program)[0] == "a/x.py:1: def hello():"
    assert search(root, "HELLO", "b.py", program=program) == ["[no line matches; searched 1 file in `b.py`]"]
    assert search(root, "HELLO", "b.py", ignore_case=True, program=program)[0] == "b.py:3: print('Hello')"
    assert search(root, "hello", glob="*.{py,js}", program=program)[-1] == "[2 lines match, in 1 of 2 files in `.`]"
    assert search(root, "hello", "a", glob="a/*", program=program) == ["[no line matches; searched 0 files in `a`]"]
    assert search(root, "module", "node_modules", program=program)[0] == "node_modules/m.js:1: hello module"
    assert search(root, "^$", "b.py", program=program)[0] == "b.py:2: "
    assert search(root, "(?<=def )hello", "a", program=program)[0] == "a/x.py:1: def hello():"
    assert search(root, r"(l)\1", "a/y.txt", program=program)[0] == "a/y.txt:1: hello"


def test_a_pattern_is_never_an_option(root: Path, program: str) -> None:
    for pattern in ("-e", "--files", "--pre=touch pwned", "-f/etc/passwd", "--", "-"):
        found = search(root, pattern, program=program)
        assert found[0].startswith("[no line matches")
    assert not (root / "pwned").exists()


def test_what_is_refused(root: Path, program: str) -> None:
    for pattern in ("(", "[", "*", "a{2,1}", "(?P<n>x)(?P<n>y)"):
        error = refused(root, pattern, program=program)
        assert error.kind == "invalid_input"
        assert "not a valid regular expression" in error.message
    for pattern in ("", "a\nb", "a\0", "\ud800", "x" * 1_001):
        assert refused(root, pattern, program=program).kind == "invalid_input"
    assert refused(root, "x", "nowhere", program=program).kind == "not_found"
    assert refused(root, "x", "../x", program=program).kind == "permission"


def test_many_matches_are_bounded_in_each_file_and_in_all(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        (tmp_path / name).write_text("x\n" * 70)
    found = search(tmp_path, "x", program=program)
    assert [line for line in found if "[" in line] == [
        *(f"{name}: [20 more lines match in this file]" for name in "abc"),
        "[stopped after 200 lines; there are more. Narrow the pattern, the path or the glob]",
    ]
    assert len(found) == 201
    monkeypatch.setattr(module, "_BATCH_FILES", 1)
    assert search(tmp_path, "x", program=program) == found


def test_a_long_line_is_cut_around_the_match(tmp_path: Path, program: str) -> None:
    (tmp_path / "min.js").write_text("é" * 5_000 + "needle" + "b" * 5_000 + "\n")
    line = search(tmp_path, "needle", program=program)[0]
    assert len(line) < 340
    assert line.startswith("min.js:1: ...éé")
    assert "needle" in line
    assert line.endswith("bb...")


def test_what_a_search_leaves_out_is_said(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        (tmp_path / f"f{number}").write_text("text\n" * 10)
    budget = Budget(entries=100, max_bytes=120, seconds=60)
    assert Search(Workspace(tmp_path), budget, "text", program=program).run(".").splitlines()[-2:] == [
        "[20 lines match, in 2 of 2 files in `.`]",
        "[incomplete: there is too much text. Narrow the path or the glob]",
    ]
    budget = Budget(entries=5, max_bytes=10_000, seconds=60)
    assert "[incomplete: there are too many entries. Narrow" in Search(Workspace(tmp_path), budget, "t", program=program).run(".")
    monkeypatch.setattr(module, "_MAX_FILE_BYTES", 49)
    assert search(tmp_path, "text", "f1", program=program)[-1] == "[files not searched: 1 over 50 MB]"


@needs_rg
@given(
    st.lists(
        st.sampled_from(["a", "b", "é", " ", "\\w", "\\d", "\\s", "\\b", ".", "[ab]", "[^a]", "^", "$", "(", ")", "|", "*", "+", "?",
                         "{2}", "(?i)", "(?:", "\\.", "-", "x", "_", "\\S", "\\t"]),
        min_size=1,
        max_size=6,
    ).map("".join),
    st.lists(st.text("abAé 1_.\t-x\u2028\x0c", max_size=8), max_size=8),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=40)
def test_ripgrep_and_python_find_the_same(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, lines: list[str], crlf: bool, ignore_case: bool
) -> None:
    root = tmp_path_factory.mktemp("same")
    (root / "f").write_bytes(("\r\n" if crlf else "\n").join(lines).encode())
    (root / "g").write_bytes(b"ab\na")

    def outcome(program: str) -> object:
        try:
            return search(root, pattern, program=program, ignore_case=ignore_case)
        except ToolError as error:
            return error.message

    python, rg = outcome(""), outcome(RG)
    if "not a valid regular" in str(python) and python != rg:
        return  # such as `a**`, which only ripgrep takes
    assert python == rg


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"\Afoo", ["a:1: foo bar"]),
        (r"bar\Z", ["a:1: foo bar"]),
        (r"\<b\>", ["a:3: <b>"]),
        (r"x\\Az", ["a:4: x\\Az"]),
        (r"o*+o", []),
        (r"^", ["a:1: foo bar", "a:2: bar foo", "a:3: <b>", "a:4: x\\Az"]),
    ],
)
def test_a_pattern_means_the_same_with_either_program(tmp_path: Path, program: str, pattern: str, found: list[str]) -> None:
    (tmp_path / "a").write_text("foo bar\nbar foo\n<b>\nx\\Az\n")
    assert search(tmp_path, pattern, program=program)[:-1] == found


def test_what_only_one_program_knows_is_refused_by_both(root: Path, program: str) -> None:
    assert "Write `\\b`" in refused(root, r"\b{start}x", program=program).message
    assert "not a valid" in refused(root, r"x\z", program=program).message


def test_an_answer_without_a_column_is_understood() -> None:
    said = b"3:5:[Omitted]\n2:1:4:\n4:1:9:7\n5:11:7\n5:11::\nrubbish\n"
    assert module._numbers(said) == [(2, 0, 5), (1, 0, 4), (3, 0, 9), (4, 0, 11), (4, 0, 11)]


def test_a_file_in_pieces_is_searched_as_a_whole(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {number}{' é' * (number % 50)}" for number in range(1, 400)]
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (tmp_path / "b").write_text("line b\n" + "x" * 5_000 + "line end")
    (tmp_path / "c").write_bytes(b"line c\n" * 1_000 + b"\0")
    whole = [search(tmp_path, pattern, program=program) for pattern in ("^line", "3$", "line .9")]
    monkeypatch.setattr(module, "_PIECE_BYTES", 3_000)
    assert [search(tmp_path, pattern, program=program) for pattern in ("^line", "3$", "line .9")] == whole
    assert "a: [349 more lines match in this file]" in whole[0]
    assert whole[0][-2:] == ["[400 lines match, in 2 of 2 files in `.`]", "[files not searched: 1 binary]"]
    assert [line for line in search(tmp_path, "line 39", "a", program=program) if ":397: line 397" in line]


def test_a_search_holds_little_of_a_large_file(tmp_path: Path, program: str) -> None:
    (tmp_path / "a").write_bytes(b"ab\n" * 3_000_000)
    budget = Budget(entries=10, max_bytes=100_000_000, seconds=60)
    tracemalloc.start()
    try:
        found = Search(Workspace(tmp_path), budget, "c|ab{3}", program=program).run(".")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == "[no line matches; searched 1 file in `.`]"
    assert peak < 25_000_000


def test_few_searches_run_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = search_tool(Workspace(root))
    running = most = 0
    lock = threading.Lock()
    real = Search.run

    def counted(self: Search, path: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return real(self, path)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(Search, "run", counted)

    async def main() -> None:
        waiting = [asyncio.create_task(tool("hello", "a")) for _ in range(8)]
        while not running:
            await asyncio.sleep(0)
        waiting[-1].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(done[-1], asyncio.CancelledError)
        assert all(isinstance(said, str) and said.endswith("in 2 of 2 files in `a`]") for said in done[:-1])

    asyncio.run(asyncio.wait_for(main(), 60))
    assert most == 2
    assert not module._turns


def children() -> list[str]:
    """Processes that this one started and that still run."""
    found: list[str] = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found += (task / "children").read_text().split()
    return sorted(found)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
def test_a_pattern_that_takes_for_ever_holds_nobody_up_and_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a" * 60 + "!\n")
    monkeypatch.setattr(module, "_ripgrep", lambda space: "")
    tool = search_tool(Workspace(tmp_path))
    before = children()

    async def main() -> None:
        call = asyncio.create_task(tool(r"^(a|a)+$"))
        while len(children()) == len(before):
            await asyncio.sleep(0)  # the loop goes on
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while children() != before:
            await asyncio.sleep(0)
        while any("search" in name or "lambda" in name for name in abandoned()):
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 60))
    monkeypatch.setattr(module, "SEARCH_S", 0.3)
    said = asyncio.run(asyncio.wait_for(tool(r"^(a|a)+$"), 60))
    assert said.splitlines()[-1] == "[incomplete: 0.3 s were over. Narrow the path or the glob]"
    assert children() == before


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_searches_leave_no_descriptor_open(root: Path, program: str) -> None:
    search(root, "hello", program=program)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        search(root, "hello", program=program)
        refused(root, "(", program=program)
        refused(root, "x", "nowhere", program=program)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_search_that_is_stopped_before_it_begins_starts_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_child(*args: object, **more: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module.subprocess, "Popen", no_child)
    one = Search(Workspace(root), Budget(entries=10, max_bytes=10, seconds=60), "hello", program="")
    threading.Thread(target=one.stop, args=("it was cancelled",)).run()
    assert one.run(".").splitlines()[-1] == "[incomplete: it was cancelled. Narrow the path or the glob]"


def test_an_rg_that_does_not_work_is_done_without(root: Path) -> None:
    assert search(root, "bom", program=str(root / "no-such-rg"))[0] == "bom:1: hello bom"
    if os.name == "posix":
        (root / "rg").write_text("#!/bin/sh\nexit 3\n")
        (root / "rg").chmod(0o755)
        assert search(root, "bom", program=str(root / "rg"))[0] == "bom:1: hello bom"


@pytest.mark.skipif(os.name == "nt", reason="a program is a file with a mode")
def test_an_rg_that_the_model_may_have_written_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in ("ws", "bin"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "rg").write_text("#!/bin/sh\n")
        (tmp_path / directory / "rg").chmod(0o755)
    space = Workspace(tmp_path / "ws")
    monkeypatch.setenv("PATH", str(tmp_path / "ws"))
    assert module._ripgrep(space) == ""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert module._ripgrep(space) == str(tmp_path / "bin" / "rg")
    (tmp_path / "bin" / "rg").unlink()
    (tmp_path / "bin" / "rg").symlink_to(tmp_path / "ws" / "rg")
    assert module._ripgrep(space) == ""
    monkeypatch.chdir(tmp_path / "ws")
    monkeypatch.setenv("PATH", ".")
    assert module._ripgrep(space) == ""


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_python_or_a_worker_that_the_model_may_have_written_to_is_not_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment in the workspace: its `pyvenv.cfg` and its packages are files like others."""
    base = sys._base_executable  # pyright: ignore
    venv = root / ".venv" / "bin" / "python"
    venv.parent.mkdir(parents=True)
    venv.symlink_to(base)
    (root / ".venv" / "pyvenv.cfg").write_text(f"home = {root / 'evil'}\n")
    monkeypatch.setattr(sys, "executable", str(venv))
    worker = root / "search_worker.py"
    worker.write_text("raise SystemExit(3)")
    monkeypatch.setattr(search_worker, "__file__", str(worker))
    assert module._python(Workspace(root)) == base
    assert search(root, "bom", program="")[0] == "bom:1: hello bom"
    monkeypatch.setattr(sys, "_base_executable", str(venv))
    assert "needs ripgrep here, outside the workspace" in refused(root, "x", program="").message


def test_where_the_interpreter_is_the_program_itself_it_is_not_started(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "needs ripgrep" in refused(root, "x", program="").message


def test_the_worker_alone() -> None:
    def run(pattern: str, flags: str, text: str) -> tuple[int, str, str]:
        argv = [sys.executable, "-I", "-S", "-c", module._WORKER, pattern, flags, "60"]
        done = subprocess.run(argv, input=text.encode(), capture_output=True, timeout=60)
        return done.returncode, done.stdout.decode().replace("\r\n", "\n"), done.stderr.decode()

    assert run("b", "-", "abc\n\nxéb\nB\n") == (0, "1:2:0:\n3:4:5:\n", "")
    assert run("b", "i", "B\n") == (0, "1:1:0:\n", "")
    assert run("[[a]", "-", "")[0] == 2
    code, out, _ = run("", "-", "\n" * 30_000)
    assert (code, out.count("\n")) == (0, search_worker.MAX_LINES)
