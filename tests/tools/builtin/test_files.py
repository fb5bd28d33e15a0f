from __future__ import annotations

import asyncio
import difflib
import json
import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from treadle.errors import ToolError, UsageError
from treadle.tools.builtin import files as module
from treadle.tools.builtin import files_text
from treadle.tools.builtin.files import file_tools
from treadle.tools.builtin.files_diff import unified
from treadle.tools.executor import Executor
from treadle.tools.function import FunctionTool
from treadle.values.limits import Limits
from treadle.values.messages import ToolCall
from treadle.values.toolcalls import ToolResult


def tools(root: Path) -> dict[str, FunctionTool[..., Any]]:
    return {tool.spec.name: tool for tool in file_tools(root)}


def refused(call: Any, *args: Any, **more: Any) -> ToolError:
    with pytest.raises(ToolError) as caught:
        call(*args, **more)
    return caught.value


def test_the_tools_and_how_they_run(tmp_path: Path) -> None:
    found = tools(tmp_path)
    assert list(found) == ["list_files", "read_file", "search_files", "write_file", "edit_file"]
    assert [tool.spec.name for tool in file_tools(tmp_path, read_only=True)] == ["list_files", "read_file", "search_files"]
    for name, tool in found.items():
        writes = name in ("write_file", "edit_file")
        assert tool.concurrency == ("exclusive" if writes else "read_only")
        assert tool.settings.get("group") == "files"
        assert tool.settings.get("needs_approval", False) is writes
        assert tool.settings.get("repeatable", False) is not writes
        assert ("preview" in tool.settings) is writes
        schema = tool.spec.parameters
        assert all(part["description"] for part in schema["properties"].values())
    assert found["read_file"].spec.parameters["required"] == ["path"]
    assert found["list_files"].spec.parameters["required"] == []
    assert next(iter(found["list_files"].spec.parameters["properties"])) == "path"
    with pytest.raises(UsageError):
        file_tools(tmp_path / "none")


def test_rules_see_the_path_as_it_is_in_the_workspace(tmp_path: Path) -> None:
    found = tools(tmp_path)

    def subjects(name: str, path: str) -> Any:
        call = {"write_file": {"content": ""}, "edit_file": {"old": "a", "new": "b"}, "search_files": {"pattern": "x"}}
        bound = found[name].bind(json.dumps({"path": path, **call.get(name, {})}))
        return found[name].settings["subjects"](**bound.arguments)

    for name in found:
        assert subjects(name, "docs/../src/x") == {"path": "src/x"}
        assert subjects(name, f"{tmp_path}/./docs//x") == {"path": "docs/x"}
        assert subjects(name, ".") == {"path": "."}
        assert subjects(name, "../docs/x") == {}


# list_files


def test_list(tmp_path: Path) -> None:
    listed = tools(tmp_path)["list_files"]
    assert listed() == "`.` is empty"
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "x.py").write_text("x")
    (tmp_path / "src" / "a.py").write_text("12345")
    (tmp_path / ".env").write_text("")
    (tmp_path / ".git").mkdir()
    assert listed().splitlines() == [".env (0 bytes)", ".git/", "src/"]
    assert listed("src").splitlines() == ["src/a.py (5 bytes)", "src/sub/"]
    assert listed(depth=2).splitlines() == [
        ".env (0 bytes)",
        ".git/ (not entered)",
        "src/",
        "src/a.py (5 bytes)",
        "src/sub/ (not entered)",
    ]
    assert listed(pattern="*.py").splitlines() == ["src/a.py (5 bytes)", "src/sub/x.py (1 bytes)"]
    assert listed("src", pattern="sub/*").splitlines() == ["src/sub/x.py (1 bytes)"]
    assert listed(pattern="*.py", depth=2).splitlines() == ["src/a.py (5 bytes)"]
    assert listed(pattern="*.rs") == "no file like `*.rs` in `.`"
    assert refused(listed, "src/a.py").kind == "invalid_input"
    assert "Did you mean `src/sub`?" in refused(listed, "src/sup").message


@given(st.integers(1, 30), st.integers(1, 12))
def test_a_list_is_bounded_and_says_what_is_left_out(tmp_path_factory: pytest.TempPathFactory, count: int, at_most: int) -> None:
    root = tmp_path_factory.mktemp("list")
    for number in range(count):
        (root / f"f{number:03}").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_LISTED", at_most)
        lines = tools(root)["list_files"]().splitlines()
        assert len([line for line in lines if line.startswith("f")]) == min(count, at_most)
        said = f"[{count - at_most} more are left out; list a directory below, or give a pattern]"
        assert lines[at_most:] == ([said] if count > at_most else [])
        patch.setattr(module, "_MAX_SEEN", 5)
        lines = tools(root)["list_files"]().splitlines()
        assert (lines[-1] == "[incomplete: there are too many entries]") is (count > 5)
        assert len(lines) <= at_most + 2


def test_a_pattern_that_could_fit_deeper_down_says_so(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["d"] * 25)
    deep.mkdir(parents=True)
    (deep / "x.py").write_text("")
    listed = tools(tmp_path)["list_files"]
    assert listed(pattern="*.py") == "/".join(["d"] * 25) + "/x.py (0 bytes)"
    (tmp_path / "/".join(["e"] * 42)).mkdir(parents=True)
    assert listed(pattern="*.rs").splitlines() == [
        "no file like `*.rs` in `.`",
        "[incomplete: directories go deeper than 40 levels]",
    ]


# read_file


def test_read_parts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\nfour")
    read = tools(tmp_path)["read_file"]
    assert read("a.txt") == read("a.txt", 1, 4) == read("a.txt", max_lines=9) == "one\ntwo\nthree\nfour"
    assert read("a.txt", 2, 2) == "[lines 2-3 of 4; 18 bytes in all]\ntwo\nthree\n"
    assert read("a.txt", 4) == "[lines 4-4 of 4; 18 bytes in all]\nfour"
    assert refused(read, "a.txt", 5).message == "`a.txt` has 4 lines, so it has no line 5."
    (tmp_path / "empty").write_text("")
    assert read("empty") == read("empty", 1, 5) == "[the file is empty]"


def test_read_says_how_long_a_long_text_is(tmp_path: Path) -> None:
    text = "0123456789\n" * 2_000
    (tmp_path / "a.txt").write_text(text)
    note, rest = tools(tmp_path)["read_file"]("a.txt").split("\n", 1)
    assert note == "[2,000 lines, 22,000 characters; start_line and max_lines read a part]"
    assert rest == text


def test_read_decodes_with_care(tmp_path: Path) -> None:
    read = tools(tmp_path)["read_file"]
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfh\xc3\xa9\r\n")
    assert read("bom") == "hé\r\n"
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    assert read("latin") == "[it is not all UTF-8: \ufffd stands for bytes that are not, and it cannot be edited]\ncaf\ufffd\n"
    (tmp_path / "binary").write_bytes(b"text" * 5_000 + b"\0")
    assert "binary file" in refused(read, "binary").message
    (tmp_path / "utf16").write_bytes("text".encode("utf-16"))
    assert "UTF-16" in refused(read, "utf16").message


def test_read_names_what_is_like_a_missing_name(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "README.md").write_text("x")
    read = tools(tmp_path)["read_file"]
    error = refused(read, "src/readme.md")
    assert error.kind == "not_found"
    assert error.message == "there is no `src/readme.md` in the workspace. Did you mean `src/README.md`?"
    assert "`list_files` shows what is in `src`" in refused(read, "src/zzzzzz").message
    assert "Did you mean `src`?" in refused(read, "scr/README.md").message
    assert refused(read, "src").kind == "invalid_input"
    assert "file, not a directory" in refused(read, "src/README.md/x").message


def test_a_part_is_read_without_holding_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\n" * 4_000_000)
    with peak_of_memory() as peak:
        said = tools(tmp_path)["read_file"]("a", 2, 3)
    assert said == "[lines 2-4 of 4,000,000; 8,000,000 bytes in all]\nx\nx\nx\n"
    assert peak[0] < 1_000_000
    (tmp_path / "late").write_bytes(b"x\n" * 100_000 + b"\0")
    assert "binary" in refused(tools(tmp_path)["read_file"], "late", 2, 3).message


def test_a_large_file_is_read_in_parts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_text, "MAX_FILE_BYTES", 1_000)
    lines = [f"line {number}\n" for number in range(1, 20_001)]
    (tmp_path / "big").write_text("".join(lines))
    size = (tmp_path / "big").stat().st_size
    read = tools(tmp_path)["read_file"]
    assert refused(read, "big").kind == "invalid_input"
    for start, count in ((1, 1), (1, 3), (19_999, 1), (20_000, 5), (7_000, 10)):
        wanted = lines[start - 1 : start - 1 + count]
        note = f"[lines {start}-{start + len(wanted) - 1} of a file of {size:,} bytes]"
        assert read("big", start, count) == f"{note}\n{''.join(wanted)}"
    assert "cut, because" in read("big", 5).splitlines()[0]
    assert "fewer than 20,001 lines" in refused(read, "big", 20_001, 1).message
    assert "fewer than 90,000 lines" in refused(read, "big", 90_000).message
    (tmp_path / "one-line").write_text("x" * 200_000)
    assert len(read("one-line", 1, 1)) < 1_200


@given(st.lists(st.text("ab", max_size=4), max_size=20), st.integers(1, 25), st.integers(1, 25), st.integers(1, 7))
def test_a_passage_does_not_depend_on_blocks(lines: list[str], start: int, count: int, block: int) -> None:
    data = "\n".join(lines).encode()
    passage = files_text.Passage(start, count)
    for at in range(0, len(data), block):
        if passage.is_whole:
            break
        passage.feed(data[at : at + block])
    ends = [line + b"\n" for line in data.split(b"\n")[:-1]] + data.split(b"\n")[-1:]
    assert bytes(passage.data) == b"".join(ends[start - 1 : start - 1 + count])


# write_file


def test_write(tmp_path: Path) -> None:
    write = tools(tmp_path)["write_file"]
    assert write("new/deep/a.txt", "one\ntwo\n") == ToolResult(
        content="created new/deep/a.txt: 2 lines, 8 characters",
        display="--- /dev/null\n+++ b/new/deep/a.txt\n@@ -0,0 +1,2 @@\n+one\n+two",
    )
    assert write("new/deep/a.txt", "one\nTWO") == ToolResult(
        content="replaced new/deep/a.txt: 2 lines, 7 characters",
        display="--- a/new/deep/a.txt\n+++ b/new/deep/a.txt\n@@ -1,2 +1,2 @@\n one\n-two\n+TWO\n\\ No newline at end of file",
    )
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == b"one\nTWO"
    assert "nothing was written" in write("new/deep/a.txt", "one\nTWO").content
    assert write("empty", "").content == "created empty: 0 lines, 0 characters"
    assert (tmp_path / "empty").read_bytes() == b""
    assert "file, not a directory" in refused(write, "empty/x", "y").message
    assert "is a directory" in refused(write, "new", "y").message
    assert "NUL" in refused(write, "x", "a\0b").message
    assert "surrogate" in refused(write, "x", "a\ud800b").message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def test_a_preview_shows_what_would_be_written_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tools(tmp_path)["write_file"]
    preview: Any = write.settings["preview"]
    assert preview(path="./x/../new/a", content="t\n") == "--- /dev/null\n+++ b/new/a\n@@ -0,0 +1,1 @@\n+t"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").write_bytes(b"\0\1")
    shown = preview(path="b", content="t\n")
    assert shown.startswith("(replaces a binary file, of 2 bytes; its digest: ")
    assert ")\n--- a/b\n+++ b/b\n@@ -0,0 +1,1 @@\n+t\n(digest of the new content: " in shown
    (tmp_path / "b").write_bytes(b"\0\2")
    assert preview(path="b", content="t\n") != shown
    monkeypatch.setattr(files_text, "MAX_FILE_BYTES", 10)
    (tmp_path / "c").write_text("x" * 11)
    shown = preview(path="c", content="t\n")
    assert shown.startswith("(replaces a file of 11 bytes, too large to compare, last written at ")
    os.utime(tmp_path / "c", ns=(1, 1))
    assert preview(path="c", content="t\n") != shown
    assert write("c", "t").content == "replaced c: 1 line, 1 character"
    assert "at most 10" in refused(write, "d", "x" * 11).message


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assume(not text.startswith("\ufeff"))  # a byte order mark is left out
    found = tools(tmp_path_factory.getbasetemp())
    found["write_file"]("written.txt", text)
    assert (tmp_path_factory.getbasetemp() / "written.txt").read_bytes() == text.encode()
    assert found["read_file"]("written.txt") == (text or "[the file is empty]")


# edit_file


def test_edit(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    return 1\n\ndef g():\n    return 1\n")
    edit = tools(tmp_path)["edit_file"]
    assert edit("a.py", "f():\n    return 1", "f():\n    return 2") == ToolResult(
        content="edited a.py: 1 replacement, at line 1",
        display="--- a/a.py\n+++ b/a.py\n@@ -1,5 +1,5 @@\n def f():\n-    return 1\n+    return 2\n \n def g():\n     return 1",
    )
    assert edit("a.py", "return", "yield", replace_all=True).content == "edited a.py: 2 replacements, at lines 2, 5"
    assert (tmp_path / "a.py").read_text() == "def f():\n    yield 2\n\ndef g():\n    yield 1\n"


def test_edits_that_are_refused_change_nothing(tmp_path: Path) -> None:
    text = "alpha beta\n  gamma\nalpha Delta\naaa\n"
    (tmp_path / "a").write_text(text)
    edit = tools(tmp_path)["edit_file"]
    for old, new, words in [
        ("", "x", "`old` is empty"),
        ("alpha", "alpha", "the same"),
        ("alpha", "x", "occurs 2 times in `a`, at lines 1, 3"),
        ("aa", "x", "occurs 2 times in `a`, at line 4"),
        ("beta\n    gamma", "x", "At line 1 is text that differs from it only in white space"),
        ("alpha delta", "x", "At line 3 is text that differs from it only in upper and lower case"),
        ("  gamma\nepsilon", "x", "Its first line occurs at line 2"),
        ("zeta", "x", "Read the file again and copy the text exactly"),
    ]:
        error = refused(edit, "a", old, new)
        assert words in error.message
        assert error.kind == "invalid_input"
    (tmp_path / "crlf").write_bytes(b"a\r\nb\r\n")
    assert "the same" in refused(edit, "crlf", "a\nb", "a\r\nb").message
    (tmp_path / "many").write_text("x\n" * 50)
    assert (
        "occurs more than 10 times in `many`, at lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10." in refused(edit, "many", "x", "y").message
    )
    assert refused(edit, "none", "x", "y").kind == "not_found"
    assert "NUL" in refused(edit, "a", "alpha beta", "\0").message
    assert (tmp_path / "a").read_text() == text


@pytest.mark.parametrize("data", [b"caf\xe9 x", b"x\0", "x".encode("utf-16"), b"x \xed\xa0\x80"])
def test_an_edit_does_not_touch_what_is_not_utf8(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert refused(tools(tmp_path)["edit_file"], "a", "x", "y").kind == "invalid_input"
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\r\n", "one\ntwo", "1\n2\n3", b"\xef\xbb\xbf1\r\n2\r\n3\r\n"),
        (b"one\r\ntwo\r\n", "one\r\ntwo", "1\r\n2", b"1\r\n2\r\n"),
        (b"one\r\ntwo\r\n", "one", "1\n", b"1\r\n\r\ntwo\r\n"),
        (b"one\r\ntwo\nend\n", "two\nend", "2\n3", b"one\r\n2\n3\n"),
        (b"one\r\ntwo\nend\n", "one\ntwo", "1\n2", b"1\r\n2\nend\n"),
        (b"one\rtwo", "one\rtwo", "1\n2", b"1\n2"),
        (b"x\x0cy\xe2\x80\xa8z", "y", "Y", b"x\x0cY\xe2\x80\xa8z"),
    ],
)
def test_an_edit_keeps_line_ends_and_the_byte_order_mark(tmp_path: Path, before: bytes, old: str, new: str, after: bytes) -> None:
    (tmp_path / "a").write_bytes(before)
    tools(tmp_path)["edit_file"]("a", old, new)
    assert (tmp_path / "a").read_bytes() == after


@given(
    st.text("ab\n\ufeffé\u2028 ", max_size=40),
    st.text("ab\n é", min_size=1, max_size=4),
    st.text("ab\n😀", max_size=4),
    st.booleans(),
)
def test_an_edit_is_a_replace(tmp_path_factory: pytest.TempPathFactory, text: str, old: str, new: str, replace_all: bool) -> None:
    assume(old != new)
    root = tmp_path_factory.getbasetemp()
    (root / "edited").write_bytes(text.encode())
    places = sum(text.startswith(old, at) for at in range(len(text)))
    edit = tools(root)["edit_file"]
    preview: Any = edit.settings["preview"]
    if places == 1 or (places and replace_all):
        shown = preview(path="edited", old=old, new=new, replace_all=replace_all)
        assert edit("edited", old, new, replace_all=replace_all).display == shown
        assert (root / "edited").read_bytes() == text.replace(old, new).encode()
    else:
        refused(edit, "edited", old, new, replace_all)
        assert (root / "edited").read_bytes() == text.encode()


def test_an_edit_that_would_be_too_long_is_refused_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("e" * 5_000_000)
    preview: Any = tools(tmp_path)["edit_file"].settings["preview"]
    with peak_of_memory() as peak:
        error = refused(preview, path="a", old="e", new="x" * 1_500, replace_all=True)
        assert error.message == "`a` would have 7,500,000,000 bytes; it may have 10,000,000. Nothing was changed."
        shown = preview(path="a", old="e", new="é", replace_all=True)
    assert "not all of the change is shown" in shown
    assert peak[0] < 80_000_000


def test_a_file_that_is_not_utf8_is_not_compared_as_if_it_were(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"caf\xe9\n")
    write = tools(tmp_path)["write_file"]
    preview: Any = write.settings["preview"]
    shown = preview(path="a", content="caf\\xe9\n")
    assert shown.startswith("(replaces a file that is not all UTF-8, of 5 bytes; its digest: ")
    assert "\n+caf\\xe9\n" in shown
    (tmp_path / "a").write_bytes(b"caf\xe8\n")
    assert preview(path="a", content="caf\\xe9\n") != shown
    (tmp_path / "a").write_bytes(b"same\n")
    assert preview(path="a", content="same\n") == "(no difference: a has exactly this text already)"


def test_an_edit_of_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("one")
    real = module._read_whole

    def read_and_lose(*args: Any) -> Any:
        found = real(*args)
        (tmp_path / "a").write_text("someone else's")
        return found

    monkeypatch.setattr(module, "_read_whole", read_and_lose)
    assert "changed by someone else" in refused(tools(tmp_path)["edit_file"], "a", "one", "two").message
    assert (tmp_path / "a").read_text() == "someone else's"


def test_no_message_quotes_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("top secret\nTop  Secret\n")
    edit = tools(tmp_path)["edit_file"]
    for old in ("e", "top secret Top", "TOP SECRET", "nowhere"):
        assert "secret" not in refused(edit, "a", old, "x").message.lower()


# differences


LINES = st.lists(st.sampled_from(["a", "b", "", "c d"]), max_size=30)


@given(LINES, LINES, st.booleans(), st.booleans())
def test_a_difference_can_be_applied(
    tmp_path_factory: pytest.TempPathFactory, old: list[str], new: list[str], old_end: bool, new_end: bool
) -> None:
    before = "\n".join(old) + ("\n" if old and old_end else "")
    after = "\n".join(new) + ("\n" if new and new_end else "")
    diff = unified("f", before, after)
    assert diff == unified("f", before, after)
    if before == after:
        assert diff == "--- a/f\n+++ b/f"
        return
    assert applied(before, diff) == after


def applied(before: str, diff: str) -> str:
    """What a unified diff makes of a text, by a reader of our own that checks every line it passes."""
    lines, out, at = before.split("\n"), [], 0
    lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    body = diff.split("\n")[2:]
    for number, line in enumerate(body):
        end = "" if body[number + 1 : number + 2] == ["\\ No newline at end of file"] else "\n"
        if line.startswith("@@"):
            start, count = map(int, line.split()[1][1:].split(","))
            first = start - 1 if count else start
            out += lines[at:first]
            at = first
        elif line[:1] in ("-", " "):
            assert lines[at] == line[1:] + end
            at += 1
            out += [line[1:] + end] if line[:1] == " " else []
        elif line.startswith("+"):
            out.append(line[1:] + end)
    return "".join(out + lines[at:])


def test_a_difference_is_the_standard_librarys(tmp_path: Path) -> None:
    old = [f"line {number}" for number in range(100)]
    new = [*old[:10], "new", *old[10:50], *old[53:80], "other", *old[81:]]
    ours = unified("f", "\n".join(old) + "\n", "\n".join(new) + "\n").split("\n")
    assert ours == list(difflib.unified_diff(old, new, "a/f", "b/f", lineterm=""))


def test_a_difference_is_bounded_and_still_tells_texts_apart() -> None:
    old = "".join(f"{number}\n" for number in range(50_000))
    new = "".join(f"x{number}\n" for number in range(50_000))
    diff, other = unified("f", old, new), unified("f", old + "y", new)
    assert len(diff) < 15_000
    assert diff.count("\n") <= 401
    assert "[... not all of the change is shown; 50,000 lines before, 50,000 after; digest of both texts " in diff
    assert "\n+x0\n" in diff
    assert diff.split("\n")[3:100] == other.split("\n")[3:100]
    assert diff != other
    long = unified("f", "a" * 5_000, "a" * 5_000 + "b")
    assert "more characters]" in long
    assert len(long) < 2_000
    assert long != unified("f", "a" * 5_000, "a" * 5_000 + "c")


def test_a_difference_shows_line_ends_that_change_and_what_cannot_be_seen() -> None:
    crlf = unified("f", "a\r\nb\r\n", "a\r\nc\r\n").split("\n")
    assert crlf[2:] == ["(lines end with CR LF)", "@@ -1,2 +1,2 @@", " a", "-b", "+c"]
    assert unified("f", "a\r\n", "a\n").split("\n")[3:5] == ["-a\\u{d}", "+a"]
    lines = unified("f", None, "\x1b[31m\u202e\tx\n").split("\n")
    assert lines[3] == "+\\u{1b}[31m\\u{202e}\tx"
    assert "what cannot be seen is written as \\u{...}; 0 lines before, 1 after; digest" in lines[4]


HIDDEN = "\u200b\u2060\ufeff\u00ad\u115f\u3164\ufe0f\U000e0041\U000e0100\u2800\x00\r\x7f"


@pytest.mark.parametrize("char", HIDDEN)
def test_a_difference_hides_nothing_and_is_not_the_one_of_its_escape(char: str) -> None:
    escape = f"\\u{{{ord(char):x}}}"
    diff = unified("f", "key = 1\n", f"key{char} = 1\n")
    assert f"+key{escape} = 1" in diff.split("\n")
    assert diff != unified("f", "key = 1\n", f"key{escape} = 1\n")
    assert char not in unified(f"a{char}b", None, char * 2_000)
    assert len(unified("f", None, (char * 600 + "\n") * 300)) < 14_000


def test_long_texts_are_compared_without_being_taken_apart() -> None:
    old = "x\n" * 1_000_000
    with peak_of_memory() as peak:
        diff = unified("f", old, old[:-1_000] + "y\n" + old[-1_000:])
        assert diff.split("\n")[2:] == ["@@ -999498,6 +999498,7 @@", *[" x"] * 3, "+y", *[" x"] * 3]
        unified("f", None, old)
        unified("f", "a" + old, "b" + old + "c")
    assert peak[0] < 20_000_000


@contextmanager
def peak_of_memory() -> Iterator[list[int]]:
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def test_git_takes_our_differences(tmp_path: Path) -> None:
    old = "".join(f"line {number}\n" for number in range(60))
    new = old.replace("line 5\n", "").replace("line 30\n", "a\nb\n") + "no end"
    (tmp_path / "f").write_text(old)
    try:
        done = subprocess.run(
            ["git", "apply", "-"], input=(unified("f", old, new) + "\n").encode(), cwd=tmp_path, capture_output=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("no git")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f").read_text() == new


# in a run


def test_a_model_calls_them(tmp_path: Path) -> None:
    async def main() -> None:
        executor = Executor(file_tools(tmp_path), Limits())

        async def call(name: str, arguments: str) -> Any:
            prepared: Any = executor.prepare(ToolCall("c1", name, arguments))
            return (await prepared.run(None)).result

        wrote = await call("write_file", '{"path": "a/b.txt", "content": "hi\\n"}')
        assert (wrote.content, wrote.is_error) == ("created a/b.txt: 1 line, 3 characters", False)
        assert wrote.display.startswith("--- /dev/null")
        assert (await call("read_file", '{"path": "a/b.txt"}')).content == "hi\n"
        assert (await call("list_files", "{}")).content == "a/"
        found = await call("search_files", '{"pattern": "h."}')
        assert found.content.startswith("a/b.txt:1: hi\n")
        missing = await call("read_file", '{"path": "../a"}')
        assert (missing.is_error, missing.error_kind) == (True, "permission")
        below_one: Any = executor.prepare(ToolCall("c", "read_file", '{"path": "a", "start_line": 0}'))
        assert below_one.is_error

    asyncio.run(main())
