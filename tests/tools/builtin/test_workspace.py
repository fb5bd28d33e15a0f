from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ToolError, UsageError
from treadle.tools.builtin import workspace as module
from treadle.tools.builtin import workspace_walk
from treadle.tools.builtin.files_glob import Glob
from treadle.tools.builtin.workspace import NO_FILE, Workspace, version_of
from treadle.tools.builtin.workspace_paths import is_git_name, split_path
from treadle.tools.builtin.workspace_walk import Budget, walk

posix = pytest.mark.skipif(os.name == "nt", reason="modes and links")


@pytest.fixture(params=["descriptors", "paths"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "paths":
        monkeypatch.setattr(module, "_HAS_DIR_FD", False)


def put(root: Path, path: str, data: bytes, **more: Any) -> None:
    space = Workspace(root)
    names = space.names(path, for_writing=True)
    with space.directory(names[:-1], create=True) as here:
        here.put(names[-1], data, **more)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def test_paths_are_worked_out_on_the_text() -> None:
    roots = ("/w/s",)
    assert split_path("a/./b//c/../d/", roots) == ("a", "b", "d")
    assert split_path(".", roots) == split_path("a/..", roots) == split_path("/w/s", roots) == split_path("/w/s/", roots) == ()
    assert split_path("/w/s/a/../b", roots) == ("b",)
    for path in ("/w/s/../x", "/w/sx", "/w", "a/../../w/s/x"):
        with pytest.raises(ToolError):
            split_path(path, roots)


def test_on_windows_what_is_read_is_held_to_its_names_too() -> None:
    assert split_path("aux.c", (), windows=False) == ("aux.c",)
    for path in ("aux.c", "a:b", "a.", "C:/x"):
        with pytest.raises(ToolError):
            split_path(path, (), windows=True)
    assert split_path("C:/ws/a.txt", ("C:/ws",), windows=True) == ("a.txt",)


def test_git_names() -> None:
    assert not any(map(is_git_name, ["git", ".gitignore", ".github", "x.git", ".git-x", "git~", "git~1x", "..git"]))
    assert all(map(is_git_name, [".git", ".GiT", ".git...", "GIT~1", ".git:x", "\u200b.git", "．ｇｉｔ"]))


def test_a_workspace_is_an_existing_directory_and_not_everything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "none", tmp_path / "file", os.path.abspath(os.sep)):
        with pytest.raises(UsageError) as caught:
            Workspace(root)
        assert caught.value.hint
    assert str(tmp_path) in repr(Workspace(tmp_path))


@posix
def test_a_workspace_may_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    put(tmp_path / "link", str(tmp_path / "link" / "a.txt"), b"x")
    assert (tmp_path / "real" / "a.txt").read_bytes() == b"x"


@posix
def test_a_new_file_has_the_umasks_mode_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        put(tmp_path, "new/a.sh", b"1")
    finally:
        os.umask(old)
    path = tmp_path / "new" / "a.sh"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o4755)
    put(tmp_path, "new/a.sh", b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755  # a program's right to be someone else is not kept
    assert path.read_bytes() == b"2"
    path.chmod(0o444)
    with pytest.raises(ToolError, match="read-only") as caught:
        put(tmp_path, "new/a.sh", b"3")
    assert caught.value.kind == "permission"
    assert path.read_bytes() == b"2"
    assert os.listdir(tmp_path / "new") == ["a.sh"]


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give a file away")
def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    os.chown(tmp_path / "a", 1234, 2345)
    put(tmp_path, "a", b"2")
    found = (tmp_path / "a").stat()
    assert (found.st_uid, found.st_gid) == (1234, 2345)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, "internal", "no room"),
        (errno.EDQUOT, "internal", "no room"),
        (errno.EACCES, "permission", "no permission"),
        (errno.EROFS, "permission", "no permission"),
        (errno.EIO, "internal", "error"),
    ],
)
@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, kind: str, words: str
) -> None:
    (tmp_path / "a.txt").write_text("old text")
    before, real = open_descriptors(), getattr(os, step)
    written = 0

    def failing(*args: Any, **more: Any) -> Any:
        nonlocal written
        if step == "write" and not written:  # the first part still fits
            written += 1
            return real(args[0], bytes(args[1])[:3])
        if step == "open" and not args[1] & os.O_CREAT:
            return real(*args, **more)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing)
        with pytest.raises(ToolError) as caught:
            put(tmp_path, "a.txt", b"new text")
    assert caught.value.kind == kind
    assert words in caught.value.message
    assert "Nothing was changed." in caught.value.message
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old text"
    assert open_descriptors() == before


def test_a_file_that_changed_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    version = version_of(path.stat())
    path.write_text("three")
    for expected in (version, NO_FILE):
        with pytest.raises(ToolError, match="changed by someone else"):
            put(tmp_path, "a.txt", b"two", unless_changed_from=expected)
    assert path.read_text() == "three"
    put(tmp_path, "a.txt", b"two", unless_changed_from=version_of(path.stat()))
    path.unlink()
    with pytest.raises(ToolError, match="changed by someone else"):
        put(tmp_path, "a.txt", b"two", unless_changed_from=version)


@pytest.mark.parametrize("expected", ["given", None])
def test_a_file_that_changes_while_the_new_one_is_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: str | None
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    real = os.fsync

    def change_and_sync(fd: int) -> None:
        path.unlink()
        path.mkdir() if expected is None else path.write_text("someone else's")
        real(fd)

    monkeypatch.setattr(os, "fsync", change_and_sync)
    with pytest.raises(ToolError, match="changed by someone else" if expected else "is a directory"):
        put(tmp_path, "a.txt", b"two", unless_changed_from=version_of(path.stat()) if expected else None)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_no_directory_that_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    before = open_descriptors()

    def fail(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(ToolError, match="Nothing was changed"):
            put(tmp_path, "old/new/deep/a.txt", b"x")
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    (tmp_path / "old" / "file").write_text("")
    with pytest.raises(ToolError):
        put(tmp_path, "old/file/b/c.txt", b"x")
    space = Workspace(tmp_path)
    with pytest.raises(RuntimeError), space.directory(("new", "deep"), create=True):  # not empty any more: it stays
        (tmp_path / "new" / "other").write_text("")
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new", "old", "other"]
    assert open_descriptors() == before


def test_the_words_for_a_missing_name_take_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = module.get_close_matches

    def counted(word: str, names: list[str], **more: Any) -> list[str]:
        compared.append(len(word) * sum(map(len, names)))
        return real(word, names, **more)

    monkeypatch.setattr(module, "get_close_matches", counted)
    for number in range(300):
        (tmp_path / f"{number:03}{'ab' * 95}").write_text("")
    (tmp_path / "zReadme.md").write_text("")
    space = Workspace(tmp_path)
    for name, words in (
        ("ab" * 96, "there is no"),
        ("ZREADME.MD", "Did you mean `zReadme.md`"),
        ("zReadm.md", "Did you mean `zReadme.md`"),
    ):
        with pytest.raises(ToolError, match=words), space.file(name):
            pass
    assert max(compared) <= 1_000_000


def walked(root: Path, *, depth: int = 9, entries: int = 1_000) -> tuple[list[str], Budget]:
    space, budget = Workspace(root), Budget(entries=entries, seconds=60)
    with space.directory(()) as directory, closing(walk(directory, depth=depth, budget=budget)) as found:
        return [f"{entry.path}:{entry.kind}" for entry in found], budget


def test_a_walk_is_sorted_and_does_not_enter_gits_directory(tmp_path: Path) -> None:
    for name in ("b/x", "a/z", "a/b/c", ".git/config", "node_modules/m/index.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found, budget = walked(tmp_path)
    assert found == [
        ".git:directory",
        "a:directory",
        "a/b:directory",
        "a/b/c:file",
        "a/z:file",
        "b:directory",
        "b/x:file",
        "node_modules:directory",
    ]
    assert budget.said() == ""
    assert walked(tmp_path, depth=1)[0] == [".git:directory", "a:directory", "b:directory", "node_modules:directory"]


def test_a_walk_is_bounded_and_leaves_nothing_open(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"d{number}").mkdir()
        for name in range(5):
            (tmp_path / f"d{number}" / f"f{name}").write_text("")
    (tmp_path / "/".join(["deep"] * 50)).mkdir(parents=True)
    before = open_descriptors()
    found, budget = walked(tmp_path, depth=100)
    assert len([path for path in found if path.startswith("deep")]) == 41
    assert budget.said() == "directories go deeper than 40 levels"
    found, budget = walked(tmp_path, entries=10)
    assert len(found) == 10
    assert budget.said() == "there are too many entries"
    space, budget = Workspace(tmp_path), Budget(entries=100, seconds=60)
    with space.directory(()) as directory:
        left_early = walk(directory, depth=99, budget=budget)
        for _ in range(4):
            next(left_early)
        left_early.close()
    assert open_descriptors() == before


def test_a_walk_ends_when_it_is_stopped_or_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / name).write_text("")
    space, budget = Workspace(tmp_path), Budget(entries=100, seconds=60)
    with space.directory(()) as directory, closing(walk(directory, depth=1, budget=budget)) as found:
        next(found)
        budget.stop("it was cancelled")
        assert list(found) == []
    assert budget.said() == "it was cancelled"
    budget = Budget(entries=100, seconds=20)
    now = workspace_walk.time.monotonic()
    monkeypatch.setattr(workspace_walk.time, "monotonic", lambda: now + 21)
    with space.directory(()) as directory:
        assert list(walk(directory, depth=1, budget=budget)) == []
    assert budget.said() == "20 s were over"


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("*.py", ["a.py", "x/y/a.py", ".py"], ["a.pyc", "a.py/b"]),
        ("src/*.py", ["src/a.py"], ["a.py", "src/x/a.py", "x/src/a.py"]),
        ("src/**/*.py", ["src/a.py", "src/x/a.py", "src/x/y/a.py"], ["a.py", "lib/a.py"]),
        ("**/test_?.py", ["test_a.py", "x/test_b.py"], ["test_ab.py"]),
        ("**", ["a", "a/b"], []),
        ("*.{ts,tsx}", ["a.ts", "b/a.tsx"], ["a.js"]),
        ("{a,b}/{c,d}", ["a/c", "b/d"], ["a/b"]),
        ("[ab].txt", ["a.txt"], ["c.txt"]),
        ("./a", ["a", "x/a"], ["b"]),
        ("{a}", ["{a}"], ["a"]),
        ("A", ["A"], ["a"]),
    ],
)
def test_globs(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    glob = Glob(pattern)
    assert [path for path in fits if not glob.fits(path.split("/"))] == []
    assert [path for path in fits_not if glob.fits(path.split("/"))] == []


@pytest.mark.parametrize("pattern", ["", "x" * 501, "{a,b}" * 7])
def test_globs_that_are_refused(pattern: str) -> None:
    with pytest.raises(ToolError):
        Glob(pattern)


def test_a_glob_of_many_stars_takes_no_time() -> None:
    assert not Glob("*a" * 200 + "b").fits(["a" * 255])
    assert not Glob("**/" * 100 + "b").fits(["a"] * 100)


@given(st.text("ab*?[]{},/.!-", min_size=1, max_size=20), st.lists(st.text("ab.", min_size=1, max_size=3), max_size=4))
def test_any_text_is_a_glob(pattern: str, names: list[str]) -> None:
    assert Glob(pattern).fits(names) in (True, False)
