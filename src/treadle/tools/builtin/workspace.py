"""A directory that a model may work in, and nothing outside it.

Below the workspace no symbolic link is followed, at any place in a path. Where the system can open a name relative to an open
directory (Linux, macOS), each name on the way is opened from the one before it, so swapping a directory for a link while a path
is walked does not lead out either. Hard links cannot be told apart from files: one that leads to a file outside is read as what it
is; a write gives the name a new file and leaves the other one alone. What is mounted below the workspace belongs to it, bind mounts too:
whoever mounts decides.

The workspace is known again by its device and inode, and by when it was made where the system says that. On Linux it does not: a
directory that is made right after the workspace was removed may get its inode, and is then taken for it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from treadle.errors import ToolError, UsageError
from treadle.tools.builtin.workspace_paths import quoted, split_path

__all__ = ["NO_FILE", "Directory", "Kind", "Workspace", "kind_of", "version_of"]

NO_FILE: tuple[int, ...] = ()
"""The version of a file that does not exist."""

_NEARBY = 2_000  # names looked at for those like a missing one
_NEARBY_WORK = 1_000_000  # characters of the one times those of the others: a tenth of a second

_HAS_DIR_FD = {os.open, os.stat, os.mkdir, os.rmdir, os.unlink, os.rename} <= os.supports_dir_fd and os.scandir in os.supports_fd
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY_FLAGS = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_DIRECTORY", 0)
# O_NONBLOCK: opening a pipe that took a file's place must not wait for a writer.
_FILE_FLAGS = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_BINARY", 0)
_NAME_SURROGATE = 0x2000_0000  # a Windows reparse point that stands for another name: a link, a junction, a mount point

Kind = Literal["file", "directory", "link", "other"]


class Directory:
    """An open directory in the workspace. Names are single ones, and none is followed if it is a link. Close it.

    Args:
        fd: Its descriptor, which is this object's to close; None where the system cannot open relative to one.
        path: Where it is, absolute.
        names: Where it is in the workspace.
        is_new: It was made when it was opened.
    """

    def __init__(self, fd: int | None, path: str, names: tuple[str, ...], *, is_new: bool = False) -> None:
        self._fd = fd
        self._path = path
        self.names = names
        self.is_new = is_new

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def where(self, name: str) -> str:
        """The path of a name in it, relative to the workspace."""
        return "/".join((*self.names, name))

    def _at(self, name: str) -> str:
        return name if self._fd is not None else os.path.join(self._path, name)

    def stat(self, name: str) -> os.stat_result:
        """Of the name itself, not of what it points to.

        Raises:
            OSError: As the system says.
        """
        return os.stat(self._at(name), dir_fd=self._fd, follow_symlinks=False)

    def kind(self, name: str) -> Kind | None:
        """None for what is not there or cannot be looked at."""
        try:
            return kind_of(self.stat(name))
        except OSError:
            return None

    def child(self, name: str, *, create: bool = False) -> Directory:
        """The directory of that name.

        Raises:
            ToolError: There is none, or it cannot be opened.
        """
        names, path, is_new = (*self.names, name), os.path.join(self._path, name), False
        try:
            if create and self.kind(name) is None:
                with suppress(FileExistsError):
                    os.mkdir(self._at(name), dir_fd=self._fd)
                    is_new = True
            if self._fd is not None:
                return Directory(os.open(name, _DIRECTORY_FLAGS, dir_fd=self._fd), path, names, is_new=is_new)
            # Windows. Not safe against a link that takes the directory's place after this look; not tested there.
            if kind_of(self.stat(name)) != "directory":
                raise NotADirectoryError(errno.ENOTDIR, "no directory")
        except OSError as error:
            raise self._refused(name, error, wanted="directory") from None
        return Directory(None, path, names, is_new=is_new)

    def remove_empty(self, name: str) -> None:
        """Remove the directory of that name, if it is one and empty."""
        with suppress(OSError):
            os.rmdir(self._at(name), dir_fd=self._fd)

    def open_file(self, name: str) -> BinaryIO:
        """A regular file, to read.

        Raises:
            ToolError: There is none, it is something else, or it cannot be opened.
        """
        try:
            if kind_of(self.stat(name)) != "file":  # before it is opened: opening a device may act on it
                raise OSError(errno.EINVAL, "no file")
            fd = os.open(self._at(name), _FILE_FLAGS, dir_fd=self._fd)
        except OSError as error:
            raise self._refused(name, error, wanted="file") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise self._refused(name, OSError(errno.EINVAL, "no file"), wanted="file")
            return os.fdopen(fd, "rb")
        except BaseException:
            os.close(fd)
            raise

    def scan(self, at_most: int) -> tuple[list[os.DirEntry[str]], bool]:
        """Its entries, sorted by name, and whether that is all of them."""
        try:
            with os.scandir(self._path if self._fd is None else self._fd) as found:
                entries = list(islice(found, at_most + 1))
        except OSError as error:
            raise failure(error, "/".join(self.names) or ".") from None
        is_all = len(entries) <= at_most
        return sorted(entries[:at_most], key=lambda entry: os.fsencode(entry.name)), is_all

    def put(self, name: str, data: bytes, *, unless_changed_from: tuple[int, ...] | None = None) -> None:
        """Give the name this content, in one step: the old file whole, or the new one whole.

        A new file has the mode that the process's umask gives; one that takes another's place has that one's mode, and its owner
        where that may be set. Access lists and extended attributes are not carried over.

        Args:
            unless_changed_from: `version_of` the file that is to be replaced, or `NO_FILE`. Looked at before the new content is
                written, and again right before it takes the name; a change between that look and the next system call is not seen.

        Raises:
            ToolError: It did not work, and what was there is as it was.
        """
        where = self.where(name)
        temp = f".treadle-{secrets.token_hex(8)}.tmp"
        try:
            old = self._replaceable(name, unless_changed_from)
            fd = os.open(self._at(temp), _NEW_FLAGS, 0o666 if old is None else 0o600, dir_fd=self._fd)
            try:
                try:
                    if old is not None:
                        _take_after(fd, old)
                    _write_all(fd, data)
                finally:
                    os.close(fd)
                self._replaceable(name, unless_changed_from)
                os.replace(self._at(temp), self._at(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(self._at(temp), dir_fd=self._fd)
                raise
        except OSError as error:
            raise failure(error, where, note=" Nothing was changed.") from None

    def _replaceable(self, name: str, expected: tuple[int, ...] | None) -> os.stat_result | None:
        """What has the name, if it may be replaced; None for nothing."""
        where = self.where(name)
        try:
            old = self.stat(name)
        except FileNotFoundError:
            old = None
        if old is not None and (kind := kind_of(old)) != "file":
            raise _wrong_kind(where, kind, wanted="file")
        if old is not None and not old.st_mode & 0o222:
            raise ToolError(f"{quoted(where)} is read-only, so it was not changed.", kind="permission")
        if expected is not None and (NO_FILE if old is None else version_of(old)) != expected:
            raise ToolError(f"{quoted(where)} was changed by someone else meanwhile. Read it again.", kind="invalid_input")
        return old

    def _refused(self, name: str, error: OSError, *, wanted: Literal["file", "directory"]) -> ToolError:
        """Why a name could not be opened: what it is, or what is there instead."""
        where, kind = self.where(name), self.kind(name)
        if kind is not None and kind != wanted:
            return _wrong_kind(where, kind, wanted=wanted)
        if kind is None and isinstance(error, FileNotFoundError):
            like = self._names_like(name)
            hint = f"Did you mean {' or '.join(like)}?" if like else f"`list_files` shows what is in {self._said()}."
            return ToolError(f"there is no {quoted(where)} in the workspace. {hint}", kind="not_found")
        return failure(error, where)

    def _said(self) -> str:
        return quoted("/".join(self.names)) if self.names else "the workspace"

    def _names_like(self, name: str) -> list[str]:
        try:
            entries, _ = self.scan(_NEARBY)
        except ToolError:
            return []
        wanted = name.casefold()
        names = {entry.name.casefold(): entry.name for entry in entries}
        # Far shorter or longer ones are never like it. Comparing takes up to the product of two lengths.
        near = [other for other in names if 3 * len(other) >= len(wanted) and 3 * len(wanted) >= len(other) and other != wanted]
        work = accumulate(len(wanted) * len(other) for other in near)
        near = [other for other, done in zip(near, work, strict=True) if done <= _NEARBY_WORK]
        like = [*([wanted] if wanted in names else []), *get_close_matches(wanted, near, n=3)][:3]
        return [quoted(self.where(names[other])) for other in like]


class Workspace:
    """A directory, and what may be done below it. Holds nothing open between calls; any thread may use it.

    Raises:
        UsageError: There is no such directory, or it is the whole file system.
    """

    def __init__(self, root: str | Path) -> None:
        given = os.path.abspath(root)
        self._path = os.path.realpath(given)
        try:
            found = os.stat(self._path)
        except OSError as error:
            hint = "Create it, or pass the directory that the model may work in."
            raise UsageError(f"the workspace {given} cannot be used: {error.strerror}", hint=hint) from None
        if not stat.S_ISDIR(found.st_mode):
            raise UsageError(f"the workspace {given} is not a directory", hint="Pass the directory that the model may work in.")
        if os.path.dirname(self._path) == self._path:
            hint = "Pass one directory that the model may work in."
            raise UsageError("the whole file system cannot be the workspace", hint=hint)
        self._identity = _identity(found)
        self._roots = tuple(dict.fromkeys(Path(path).as_posix() for path in (self._path, given)))

    def __repr__(self) -> str:
        return f"<Workspace {self._path}>"

    def names(self, path: str, *, for_writing: bool = False) -> tuple[str, ...]:
        """The names that lead to a path; see `split_path`."""
        return split_path(path, self._roots, for_writing=for_writing)

    def subjects(self, path: str, **others: object) -> Mapping[str, str]:
        """What approval rules are held against: the path inside the workspace. Nothing for one that is refused, so that no rule
        that allows can fit it. Takes the rest of a call's arguments, and leaves them out."""
        try:
            return {"path": "/".join(self.names(path)) or "."}
        except ToolError:
            return {}

    def contains(self, program: str) -> bool:
        """A program's file is in the workspace, where a model may have written it."""
        return Path(os.path.realpath(program)).is_relative_to(self._path) or Path(os.path.abspath(program)).is_relative_to(
            self._path
        )

    @contextmanager
    def directory(self, names: tuple[str, ...], *, create: bool = False) -> Generator[Directory, None, None]:
        """The directory that the names lead to, open inside the block.

        Args:
            create: Make what is missing on the way. If the block fails, what was made and is empty is removed again.

        Raises:
            ToolError: It is not there, or something on the way is no directory.
        """
        here = self._open_root()
        made: list[tuple[str, ...]] = []
        try:
            for name in names:
                below = here.child(name, create=create)
                here.close()
                here = below
                if here.is_new:
                    made.append(here.names)
            yield here
        except BaseException:
            here.close()
            for new in reversed(made):
                with suppress(ToolError), self.directory(new[:-1]) as above:
                    above.remove_empty(new[-1])
            raise
        finally:
            here.close()

    @contextmanager
    def file(self, path: str) -> Generator[BinaryIO, None, None]:
        """A regular file, open to read inside the block.

        Raises:
            ToolError: The path is refused, or there is no such file.
        """
        names = self.names(path)
        if not names:
            raise _wrong_kind(".", "directory", wanted="file")
        with self.directory(names[:-1]) as here, here.open_file(names[-1]) as file:
            yield file

    def _open_root(self) -> Directory:
        """By its path each time, so that nothing stays open; its identity says that it is still the same directory."""
        fd = None
        try:
            if _HAS_DIR_FD:
                fd = os.open(self._path, _DIRECTORY_FLAGS)
            found = os.stat(self._path) if fd is None else os.fstat(fd)
            if _identity(found) == self._identity:
                return Directory(fd, self._path, ())
        except OSError:
            pass
        if fd is not None:
            os.close(fd)
        raise ToolError("the workspace is gone, or another directory has taken its place. Tell the user.", kind="not_found")


def version_of(found: os.stat_result) -> tuple[int, ...]:
    """Changes when a file is written to or another takes its place."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _identity(found: os.stat_result) -> tuple[float, ...]:
    return (found.st_dev, found.st_ino, getattr(found, "st_birthtime", 0))


def failure(error: OSError, where: str, *, note: str = "") -> ToolError:
    """The system's refusal in words for the model."""
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ToolError(f"no permission for {quoted(where)}.{note}", kind="permission")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return ToolError(f"the disk has no room for {quoted(where)}.{note} Tell the user.")
        case errno.ENAMETOOLONG:
            return ToolError(f"{quoted(where)} has a name that is too long for this disk.{note}", kind="invalid_input")
        case errno.ENOENT:
            return ToolError(f"{quoted(where)} is no longer there.{note}", kind="not_found")
        case _:
            return ToolError(f"{quoted(where)}: {error.strerror or 'the system refused'}.{note}")


def _wrong_kind(where: str, kind: Kind, *, wanted: Literal["file", "directory"]) -> ToolError:
    match kind:
        case "link":
            said = "is a symbolic link. Links are not followed: use the path of what it points to, if that is in the workspace"
            return ToolError(f"{quoted(where)} {said}.", kind="permission")
        case "directory":
            return ToolError(f"{quoted(where)} is a directory. `list_files` shows what is in it.", kind="invalid_input")
        case "file":
            return ToolError(f"{quoted(where)} is a file, not a directory.", kind="invalid_input")
        case "other":
            said = f"is neither a file nor a directory (a pipe, a socket or a device), so it is no {wanted} to use"
            return ToolError(f"{quoted(where)} {said}.", kind="invalid_input")


def kind_of(found: os.stat_result) -> Kind:
    """What a name stands for, by what `stat` says of the name itself."""
    if stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) & _NAME_SURROGATE:
        return "link"
    if stat.S_ISDIR(found.st_mode):
        return "directory"
    return "file" if stat.S_ISREG(found.st_mode) else "other"


def _take_after(fd: int, old: os.stat_result) -> None:
    """Give an open file the owner and the mode of another, as far as that is allowed."""
    if hasattr(os, "fchown"):
        new = os.fstat(fd)
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            with suppress(OSError):
                os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, old.st_mode & 0o777)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.fsync(fd)
