"""Paths as a model writes them: names below the workspace, or the reason why not. No I/O.

A path is relative to the workspace and has forward slashes on every system. `.` and `..` are worked out on the text, which is exact
because nothing below the workspace is ever reached through a link. What would mean something else on another file system is not
written anywhere, so that a workspace can be copied, and cannot be fooled on a disk that folds names.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import unquote

from treadle.errors import ToolError
from treadle.tools.builtin.visible import one_line

__all__ = ["is_git_name", "quoted", "split_path"]

_MAX_CHARS = 4_000
_MAX_NAMES = 100
_MAX_NAME_BYTES = 255

_DRIVE = re.compile(r"[A-Za-z]:")
_HOME = re.compile(r"~[\w.-]*(/|$)")
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³]|CONIN\$|CONOUT\$|CLOCK\$) *(\..*)?", re.I)
_SHORT_GIT = re.compile(r"GIT~[0-9]+")


def quoted(path: str) -> str:
    """A path for a message, at most about 200 characters."""
    return f"`{one_line(path if len(path) <= 200 else path[:200] + '...')}`"


def split_path(path: str, roots: Sequence[str], *, for_writing: bool = False, windows: bool = os.name == "nt") -> tuple[str, ...]:
    """The names that lead from the workspace to a path; none for the workspace itself.

    Args:
        roots: The workspace's own absolute paths, with forward slashes: an absolute path below one of them is taken too.
        for_writing: Hold it to what is safe to write on any system, and outside `.git`.
        windows: Names are Windows's: hold also what is read to them.

    Raises:
        ToolError: It leaves the workspace, or is not a path that is accepted.
    """
    if not path:
        raise ToolError("the path is empty. Write `.` for the workspace itself.", kind="invalid_input")
    if len(path) > _MAX_CHARS:
        raise ToolError(f"the path is too long: {len(path):,} characters of at most {_MAX_CHARS:,}.", kind="invalid_input")
    if "\0" in path or any("\ud800" <= char <= "\udfff" for char in path):
        raise ToolError(f"{quoted(path)} holds a character that no path can have.", kind="invalid_input")
    below = next((path[len(root) :] for root in roots if path == root or path.startswith(root + "/")), None)
    if below is None:
        _check_form(path)
    names: list[str] = []
    for name in (path if below is None else below).split("/"):
        if name == "..":
            if not names:
                raise ToolError(f"{quoted(path)} leads out of the workspace. Paths outside it are refused.", kind="permission")
            names.pop()
        elif name not in ("", "."):
            names.append(name)
    if len(names) > _MAX_NAMES or any(len(name.encode()) > _MAX_NAME_BYTES for name in names):
        said = f"at most {_MAX_NAMES} names of {_MAX_NAME_BYTES} bytes each"
        raise ToolError(f"{quoted(path)} is too deep or has a name that is too long: {said}.", kind="invalid_input")
    for name in names:
        if (for_writing or windows) and (problem := _problem(name)):
            raise ToolError(f"{quoted(path)}: {quoted(name)} {problem}. Choose another name.", kind="invalid_input")
        if for_writing and is_git_name(name):
            said = "git's own files are not written to, and names that a disk could take for `.git` neither"
            raise ToolError(f"{quoted(path)} is refused: {said}. Use git commands.", kind="permission")
    if for_writing and path.endswith(("/", "/.", "/..")):
        raise ToolError(f"{quoted(path)} names a directory. Write the path of a file.", kind="invalid_input")
    return tuple(names)


def is_git_name(name: str) -> bool:
    """Some file system takes the name for `.git`: in any case, with zero-width, full-width or combining characters, with what
    Windows drops at the end, or as its short name."""
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(char for char in plain if unicodedata.category(char) not in ("Cc", "Cf", "Mn", "Me"))
    plain = plain.partition(":")[0].rstrip(". ").upper()
    return plain == ".GIT" or _SHORT_GIT.fullmatch(plain) is not None


def _check_form(path: str) -> None:
    """Refuse what is not a relative path with forward slashes, before it is taken apart."""
    if path.startswith("/"):
        said = "is an absolute path outside the workspace. Write a path relative to the workspace, such as `src/main.py`"
    elif _DRIVE.match(path):
        said = "begins with a drive letter. Write a path relative to the workspace, such as `src/main.py`"
    elif "\\" in path:
        raise ToolError(f"{quoted(path)} has a backslash. Separate names with `/`.", kind="invalid_input")
    elif _HOME.match(path):
        said = "begins with `~`, which is not expanded. Write a path relative to the workspace, such as `src/main.py`"
    else:
        return
    raise ToolError(f"{quoted(path)} {said}.", kind="permission")


def _problem(name: str) -> str | None:
    """Why a name is not one on every system."""
    if one_line(name) != name:
        return "has a character that cannot be seen"
    if ":" in name or "\\" in name:
        return "has a `:` or a backslash, which mean something else on Windows"
    if name[-1] in ". ":
        return "ends with a dot or a space, which Windows drops"
    if _DEVICE.fullmatch(name):
        return "is a device on Windows"
    decoded = unquote(name)
    if decoded != name and (decoded in (".", "..") or any(char in decoded for char in "/\\\0")):
        return "is percent-encoded, which is not decoded"
    return None
