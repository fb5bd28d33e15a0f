"""Attempts to get out of the workspace, and into `.git`. All are refused; what is outside is neither read nor changed."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ToolError
from treadle.tools.builtin import workspace as workspace_module
from treadle.tools.builtin.files import file_tools
from treadle.tools.builtin.workspace import Workspace
from treadle.values.toolcalls import ToolResult

CANARY = "canary-9f2c"
posix = pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")


class Place:
    """A workspace, and beside it what must not be reached."""

    def __init__(self, base: Path) -> None:
        self.outside = base / "outside"
        self.root = base / "ws"
        for directory in (self.outside / "inner", self.root / "src", self.root / ".git" / "hooks", self.root / "real"):
            directory.mkdir(parents=True)
        (self.outside / "secret.txt").write_text(CANARY)
        (self.outside / "inner" / "deep.txt").write_text(CANARY)
        (base / "ws-twin").mkdir()
        (base / "ws-twin" / "secret.txt").write_text(CANARY)
        (self.root / "src" / "main.py").write_text("print('hello')\n")
        (self.root / "real" / "f.txt").write_text("inside\n")
        (self.root / ".git" / "config").write_text("[core]\n")
        (self.root / ".git" / "hooks" / "pre-commit").write_text("#!/bin/sh\n")
        self.base = base
        self.tools = {tool.spec.name: tool for tool in file_tools(self.root)}
        self.before = self.snapshot()

    def snapshot(self) -> dict[str, bytes | str]:
        """All that is outside the workspace, and git's own files in it."""
        found: dict[str, bytes | str] = {}
        for path in sorted([*self.base.rglob("*")]):
            if path.is_relative_to(self.root) and ".git" not in path.parts:
                continue
            found[str(path)] = path.read_bytes() if path.is_file() else "directory"
        return found

    def call(self, name: str, *args: Any, **more: Any) -> str:
        """What the model and the person would read."""
        try:
            result = self.tools[name](*args, **more)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
        except ToolError as error:
            return f"refused ({error.kind}): {error.message}"
        return f"{result.content}\n{result.display}" if isinstance(result, ToolResult) else str(result)

    def preview(self, name: str, **arguments: Any) -> str:
        try:
            return str(self.tools[name].settings["preview"](**arguments))
        except ToolError as error:
            return f"refused ({error.kind}): {error.message}"


@pytest.fixture(params=["descriptors", "paths"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """With directories held open, and as on a system that cannot do that."""
    if request.param == "paths":
        monkeypatch.setattr(workspace_module, "_HAS_DIR_FD", False)
    elif not workspace_module._HAS_DIR_FD:
        pytest.skip("this system cannot open relative to a directory")
    return Place(tmp_path)


# Refused for every tool.
LEAVING = [
    "..",
    "../outside/secret.txt",
    "../outside",
    "../../../../../../../../etc/passwd",
    "src/../../outside/secret.txt",
    "./../outside/secret.txt",
    "src/./.././../outside/secret.txt",
    "nowhere/../../outside/secret.txt",
    "src//..//..//outside/secret.txt",
    "../ws-twin/secret.txt",
    "../ws/../outside/secret.txt",
    "/etc/passwd",
    "/",
    "//etc/passwd",
    "//server/share/x",
    "/".join(("/proc", "self", "root", "etc", "passwd")),
    "/proc/self/cwd/x",
    "/proc/self/environ",
    "/proc/self/fd/0",
    "/dev/stdin",
    "/dev/null",
    "/dev/fd/0",
    "C:x",
    "c:/windows/win.ini",
    "C:\\windows\\win.ini",
    "\\\\server\\share\\x",
    "\\\\?\\C:\\x",
    "\\\\.\\pipe\\x",
    "..\\outside\\secret.txt",
    "src\\..\\..\\outside\\secret.txt",
    "\\etc\\passwd",
    "~",
    "~/secret.txt",
    "~root/.ssh/id_rsa",
    "",
    "\0",
    "src/main.py\0.txt",
    "../outside/secret.txt\0",
    "\udc2e\udc2e/outside/secret.txt",
    "a/" * 3_000 + "x",
    "x" * 300,
    "/".join(["d"] * 101),
]

# Refused where something would be written; harmless names of files that are not there for who reads.
NOT_WRITTEN = [
    "%2e%2e/outside/secret.txt",
    "%2E%2e%2foutside%2fsecret.txt",
    "..%2foutside",
    "src/..%5c..%5coutside",
    "a%00b",
    "CON",
    "nul",
    "src/aux.txt",
    "COM1",
    "com¹.log",
    "LPT9 .txt",
    "CONIN$",
    "name.",
    "name ",
    "src./x",
    "... ",
    "...",
    "main.py::$DATA",
    "src/main.py:stream",
    "a\nb",
    "a\u202eb",
    "dir/",
    "new/.",
    ".",
]

# Names that some disk takes for `.git`.
GIT = [
    ".git/hooks/pre-commit",
    ".git/config",
    ".git",
    ".GIT/config",
    ".Git/hooks/x",
    "src/.git/config",
    "src/../.git/config",
    "./.git/hooks/post-checkout",
    ".git /config",
    ".git./config",
    ".git . ./config",
    ".git::$INDEX_ALLOCATION/config",
    "git~1/config",
    "GIT~1/hooks/x",
    "GiT~12/x",
    ".g\u200cit/config",
    ".gi\u200dt/config",
    "\ufeff.git/config",
    ".git\u2063/config",
    "\uff0e\uff47\uff49\uff54/config",
    "．git/config",
    "․git/config",
    ".g\u0131t/config",
    ".G\u0130T/config",
    ".gi\u0301t/config",
    "sub/deep/.git/hooks/pre-push",
]


def shortly(path: str) -> str:
    return ascii(path)[:50]


@pytest.mark.parametrize("path", LEAVING, ids=shortly)
def test_no_tool_takes_a_path_that_leads_out(place: Place, path: str) -> None:
    said = [
        place.call("read_file", path),
        place.call("list_files", path),
        place.call("list_files", path, depth=5),
        place.call("search_files", "canary", path),
        place.call("write_file", path, "gotcha"),
        place.call("edit_file", path, CANARY, "gotcha"),
        place.preview("write_file", path=path, content="gotcha"),
        place.preview("edit_file", path=path, old=CANARY, new="gotcha", replace_all=False),
    ]
    for answer in said:
        assert answer.startswith("refused (")
        assert CANARY not in answer
        assert str(place.base) not in answer
        assert len(answer) < 600
    assert place.snapshot() == place.before
    assert place.tools["write_file"].settings["subjects"](path=path, content="") == {}


@pytest.mark.parametrize("path", [*NOT_WRITTEN, *GIT], ids=shortly)
def test_what_is_not_a_name_everywhere_or_is_gits_is_not_written(place: Place, path: str) -> None:
    before = sorted(place.root.rglob("*"))
    said = [
        place.call("write_file", path, "gotcha"),
        place.call("edit_file", path, "core", "gotcha"),
        place.preview("write_file", path=path, content="gotcha"),
        place.preview("edit_file", path=path, old="core", new="gotcha", replace_all=True),
    ]
    assert [answer for answer in said if not answer.startswith("refused (")] == []
    assert CANARY not in place.call("read_file", path)
    assert CANARY not in place.call("list_files", path)
    assert CANARY not in place.call("search_files", "canary", path)
    assert place.snapshot() == place.before
    assert sorted(place.root.rglob("*")) == before


def link(place: Place, name: str, target: str | Path) -> None:
    (place.root / name).symlink_to(target)


def hide(make: Callable[[Place], list[str]]) -> Any:
    return pytest.param(make, id=make.__name__)


def linked_file(place: Place) -> list[str]:
    link(place, "l.txt", place.outside / "secret.txt")
    return ["l.txt", "./l.txt", "src/../l.txt"]


def linked_directory(place: Place) -> list[str]:
    link(place, "l", place.outside)
    return ["l/secret.txt", "l/inner/deep.txt", "l/new.txt", "l/inner/new.txt", "l"]


def relative_link(place: Place) -> list[str]:
    (place.root / "src" / "up").symlink_to("../../outside")
    return ["src/up/secret.txt", "src/up"]


def link_to_the_parent(place: Place) -> list[str]:
    link(place, "parent", "..")
    return ["parent/outside/secret.txt", "parent/ws/../outside/secret.txt", "parent/new.txt"]


def link_to_the_file_system(place: Place) -> list[str]:
    link(place, "all", "/")
    return [f"all{place.outside}/secret.txt", "all/etc/passwd"]


def link_through_proc(place: Place) -> list[str]:
    link(place, "self", "/proc/self/root")
    return [f"self{place.outside}/secret.txt", "self/etc/passwd"]


def link_that_dangles(place: Place) -> list[str]:
    link(place, "new.txt", place.outside / "created.txt")
    link(place, "dir", place.outside / "created")
    return ["new.txt", "dir/x.txt", "dir"]


def link_chain(place: Place) -> list[str]:
    link(place, "one", "two")
    link(place, "two", "src/three")
    (place.root / "src" / "three").symlink_to(place.outside)
    return ["one/secret.txt", "two/secret.txt", "src/three/secret.txt", "one"]


def link_to_itself(place: Place) -> list[str]:
    link(place, "loop", "loop")
    return ["loop", "loop/x"]


def link_inside(place: Place) -> list[str]:
    link(place, "alias", "src")  # leads nowhere bad; followed would be a path that approval rules do not see
    return ["alias/main.py", "alias/new.py", "alias"]


def link_into_git(place: Place) -> list[str]:
    link(place, "harmless", ".git")
    link(place, "hook.sh", ".git/hooks/pre-commit")
    return ["harmless/config", "harmless/hooks/new", "hook.sh"]


def linked_device(place: Place) -> list[str]:
    link(place, "in", "/dev/stdin")
    link(place, "zero", "/dev/zero")
    return ["in", "zero"]


def pipe(place: Place) -> list[str]:
    os.mkfifo(place.root / "pipe")
    return ["pipe", "pipe/x"]


def unix_socket(place: Place) -> list[str]:
    here = os.getcwd()
    os.chdir(place.root)  # a socket's path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("sock")
    finally:
        os.chdir(here)
    return ["sock"]


def device(place: Place) -> list[str]:
    try:
        os.mknod(place.root / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    except OSError:
        pytest.skip("only root may make a device")
    return ["zero"]


def file_as_directory(place: Place) -> list[str]:
    return ["src/main.py/x", "src/main.py/../../../outside/secret.txt"]


@posix
@pytest.mark.parametrize(
    "make",
    [
        hide(linked_file),
        hide(linked_directory),
        hide(relative_link),
        hide(link_to_the_parent),
        hide(link_to_the_file_system),
        hide(link_through_proc),
        hide(link_that_dangles),
        hide(link_chain),
        hide(link_to_itself),
        hide(link_inside),
        hide(link_into_git),
        hide(linked_device),
        hide(pipe),
        hide(unix_socket),
        hide(device),
        hide(file_as_directory),
    ],
)
def test_no_link_is_followed_and_only_files_are_opened(place: Place, make: Callable[[Place], list[str]]) -> None:
    for path in make(place):
        for answer in (
            place.call("read_file", path),
            place.call("search_files", "canary|root:|hello", path),
            place.call("write_file", path, "gotcha"),
            place.call("edit_file", path, CANARY, "gotcha"),
            place.call("edit_file", path, "hello", "gotcha"),
            place.preview("write_file", path=path, content="gotcha"),
            place.call("list_files", path),
        ):
            assert answer.startswith("refused ("), (path, answer)
            assert CANARY not in answer
            assert "root:" not in answer
    assert CANARY not in place.call("list_files", ".", depth=9)
    found = place.call("search_files", "canary|root:")
    assert CANARY not in found
    assert "[no line matches" in found
    assert (place.root / "src" / "main.py").read_text() == "print('hello')\n"
    assert place.snapshot() == place.before


@posix
def test_the_refusal_says_that_links_are_not_followed(place: Place) -> None:
    linked_directory(place)
    assert "symbolic link" in place.call("read_file", "l/secret.txt")
    assert "symbolic link" in place.call("write_file", "l/x", "y")


@posix
def test_a_hard_link_is_not_written_through(place: Place) -> None:
    os.link(place.outside / "secret.txt", place.root / "hard.txt")
    assert place.call("write_file", "hard.txt", "mine").startswith("replaced")
    assert place.snapshot() == place.before


@posix
@pytest.mark.skipif(not workspace_module._HAS_DIR_FD, reason="not safe against races on this system")
@pytest.mark.parametrize("is_file", [False, True], ids=["directory", "file"])
def test_swapping_a_name_for_a_link_meanwhile_leads_nowhere(tmp_path: Path, is_file: bool) -> None:
    """A thread swaps `real` (or `real/f.txt`) for a link to the outside and back, while every tool is used."""
    place = Place(tmp_path)
    (place.outside / "f.txt").write_text(CANARY)
    before = place.snapshot()
    target = place.root / "real" / "f.txt" if is_file else place.root / "real"
    aside = place.root / "aside"
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        evil = place.root / "evil"
        evil.symlink_to(place.outside / "f.txt" if is_file else place.outside)
        while not stop.is_set():
            try:
                os.rename(target, aside)
                os.rename(evil, target)
                os.rename(target, evil)
                os.rename(aside, target)
            except OSError:  # a write has put a file where the link was, or the other way round
                if is_file and not evil.is_symlink():
                    evil.unlink(missing_ok=True)
                    evil.symlink_to(place.outside / "f.txt")
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    refused = worked = 0
    try:
        for number in range(100):
            for answer in (
                place.call("read_file", "real/f.txt"),
                place.call("write_file", "real/f.txt", f"inside {number}\n"),
                place.call("edit_file", "real/f.txt", "inside", "within"),
                place.call("write_file", "real/new/x.txt", f"{number}"),
                place.call("list_files", "real"),
                place.call("search_files", "canary", "real") if number % 30 == 0 else "",
            ):
                assert CANARY not in answer
                assert "secret.txt" not in answer
                refused += answer.startswith("refused (")
                worked += answer.startswith(("inside", "within", "replaced"))
    finally:
        stop.set()
        thread.join(30)
    assert swaps > 10
    assert refused
    assert worked
    assert {path: data for path, data in place.snapshot().items() if "outside" in path} == {
        path: data for path, data in before.items() if "outside" in path
    }


@posix
@pytest.mark.skipif(not workspace_module._HAS_DIR_FD, reason="not safe against races on this system")
@pytest.mark.parametrize("step", ["open", "replace", "mkdir"])
@pytest.mark.parametrize("name", ["f.txt", "real"])
def test_a_link_that_comes_between_the_look_and_the_act_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, name: str
) -> None:
    """The swap happens at the worst moment: right before the system call."""
    place = Place(tmp_path)
    (place.outside / "f.txt").write_text(CANARY)
    before = place.snapshot()
    real = getattr(os, step)

    def swap_and_act(*args: Any, **more: Any) -> Any:
        target = place.root / "real" / "f.txt" if name == "f.txt" else place.root / "real"
        if not target.is_symlink() and (step != "open" or args[0] == name):
            target.rename(place.root / "aside")
            target.symlink_to(place.outside / "f.txt" if name == "f.txt" else place.outside)
        return real(*args, **more)

    for tool, *arguments in (
        ("read_file", "real/f.txt"),
        ("write_file", "real/f.txt", "gotcha"),
        ("edit_file", "real/f.txt", CANARY, "gotcha"),
        ("edit_file", "real/f.txt", "inside", "gotcha"),
        ("write_file", "real/new/deep/x.txt", "gotcha"),
        ("list_files", "real"),
        ("search_files", "canary", "real/f.txt"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, swap_and_act)
            answer = place.call(tool, *arguments)
        assert CANARY not in answer
        assert "secret.txt" not in answer
        now = place.snapshot()
        assert {path: data for path, data in now.items() if path in before} == before
        assert not [path for path in now.keys() - before.keys() if "outside" in path]
        shutil.rmtree(place.root / "real") if not (place.root / "real").is_symlink() else (place.root / "real").unlink()
        shutil.rmtree(place.root / "aside", ignore_errors=True)
        (place.root / "aside").unlink(missing_ok=True)
        (place.root / "real").mkdir()
        (place.root / "real" / "f.txt").write_text("inside\n")


@posix
def test_another_directory_in_the_workspaces_place_is_not_used(place: Place) -> None:
    place.root.rename(place.base / "moved")
    place.root.symlink_to(place.outside)
    assert "another directory has taken its place" in place.call("read_file", "secret.txt")
    assert "another directory has taken its place" in place.call("write_file", "x.txt", "y")
    place.root.unlink()
    place.root.mkdir()
    assert "another directory has taken its place" in place.call("list_files")


GOOD = [
    "a.txt",
    "with space.txt",
    "a..b",
    "..a",
    "...a",
    "übung/файл/文件.txt",
    "emoji 👩‍🚀.md",
    "e\u0301.txt",
    ".gitignore",
    ".github/workflows/x.yml",
    ".gitmodules",
    "git/config",
    "git~x",
    "x.git/config",
    "~$lock",
    "-rf",
    "--help",
    "100%.txt",
    "a%20b.txt",
    "console.log",
    "nullable.py",
    "[id]/page.tsx",
    "$HOME",
    "a;b|c&d",
    "'quoted'",
    "/".join(["deep"] * 60) + "/x.txt",
    "x" * 255,
]


@pytest.mark.parametrize("path", GOOD, ids=shortly)
def test_ordinary_names_work(place: Place, path: str) -> None:
    assert place.call("write_file", path, "some text\n").startswith("created")
    assert (place.root / path).read_text() == "some text\n"
    assert place.call("read_file", path) == "some text\n"
    assert place.call("edit_file", path, "some", "other").startswith("edited")
    assert place.call("read_file", str(place.root / path)) == "other text\n"
    assert place.call("read_file", f"src/../{path}") == "other text\n"
    assert ":1: other text" in place.call("search_files", "^other", path)
    assert place.call("list_files", os.path.dirname(path) or ".").count("(11 bytes)") == 1
    assert place.snapshot() == place.before


@posix
def test_names_that_other_systems_do_not_have_can_be_read(place: Place) -> None:
    for name in ("12:30.log", "aux.c", "a..", "ends with space "):
        (place.root / name).write_text("text")
        assert place.call("read_file", name) == "text"
    assert place.call("read_file", ".git/config") == "[core]\n"


def test_a_name_cannot_pass_for_another_line(place: Place) -> None:
    if os.name == "nt":
        pytest.skip("no such names")
    (place.root / "src" / "x\nfake.py (1 bytes)").write_text("hit")
    assert place.call("list_files", "src").splitlines() == ["src/main.py (15 bytes)", "src/x\\u{a}fake.py (1 bytes) (3 bytes)"]
    assert place.call("search_files", "hit").splitlines()[0] == "src/x\\u{a}fake.py (1 bytes):1: hit"


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 need a disk that takes any bytes")
def test_a_name_that_is_no_text_is_listed_and_not_opened(place: Place) -> None:
    Path(os.fsdecode(os.fsencode(place.root) + b"/caf\xe9")).write_text("x")
    assert "caf\\u{dce9} (1 bytes)" in place.call("list_files")
    assert place.call("read_file", "caf\udce9").startswith("refused (invalid_input)")


PIECES = st.sampled_from(
    ["..", ".", "", "src", "real", "outside", "l", "up", "ws", ".git", "%2e%2e", "\\", "C:", "~", "secret.txt", "f.txt", "\u200b"]
)


@given(st.lists(PIECES, max_size=8), st.booleans(), st.sampled_from(["/", "//", "/./", "\\"]))
def test_no_combination_of_pieces_leads_out(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], is_absolute: bool, separator: str
) -> None:
    place = shared(tmp_path_factory)
    path = ("/" if is_absolute else "") + separator.join(pieces)
    for answer in (
        place.call("read_file", path),
        place.call("list_files", path, depth=4),
        place.call("write_file", path, "gotcha"),
        place.call("edit_file", path, "c", "gotcha", replace_all=True),
    ):
        assert CANARY not in answer
    assert place.snapshot() == place.before
    if place.tools["read_file"].settings["subjects"](path=path, start_line=1, max_lines=None):
        names = Workspace(place.root).names(path)
        assert ".." not in names
        assert os.path.normpath("/".join(("ws", *names))).startswith("ws")


_shared: list[Place] = []


def shared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    if not _shared:
        place = Place(tmp_path_factory.mktemp("pieces"))
        link(place, "l", place.outside)
        (place.root / "src" / "up").symlink_to("../..")
        _shared.append(place)
    return _shared[0]


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before
