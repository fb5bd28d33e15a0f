"""What runs of a program and everything it started, as `/proc` shows it. For `processes.py`, which says what this cannot find."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Generator, Iterable
from typing import NamedTuple, TypeAlias

__all__ = ["Entry", "Family", "Seen", "is_running", "listing", "names", "send"]

_NAMES = 20
_LOOKS_AT_A_STRETCH = 64  # 2 ms; whoever searches in an event loop lets others run then
_LOOKS_AHEAD = 24
_LISTED_PER_LOOK = 25  # processes in a list take as long as one look

Entry: TypeAlias = tuple[str, int]
"""A process number, and the number of its directory: a later process of the same number has another one."""


class Seen(NamedTuple):
    """A process.

    Attributes:
        state: One letter; `Z` and `X` have ended.
        started: In clock ticks since the machine was started.
        is_ending: It runs nothing of its own any more, and its memory may be gone already.
    """

    state: str
    parent: int
    group: int
    session: int
    started: int
    is_ending: bool = False


class Family:
    """What runs of a program and everything it started.

    That is: its group and its session; whoever has its mark in the environment, which stays when group, session and parents are
    gone; who was found before, by whatever sign; and who has a parent among those. What ran before the program is none of it, and
    is not looked at: on a machine with a thousand processes that makes the difference between one and ten milliseconds.

    Attributes:
        can_be_seen: There is a `/proc`.
        is_doubtful: The last search met a process without any environment. It may be one that is just becoming another program, so
            it is worth another look. After ten of those it is taken for one that really has none.
        is_restless: The last search gave up while processes that nobody had looked at yet still came and went.
    """

    def __init__(self, leader: int, mark: str, before: set[Entry]) -> None:
        self._leader = leader
        self._mark = mark.encode()
        self._strangers = before
        self._found: dict[int, Seen] = {}
        self._veiled: dict[int, int] = {}  # process numbers, and when each was started
        self._above: set[int] | None = None
        self._looks_left = 10
        self.can_be_seen = bool(before)
        self.is_doubtful = False
        self.is_restless = False

    def search(
        self, then: Callable[[int, int], object] | None = None, *, patience_s: float, limit_s: float = 0.0
    ) -> Generator[None, None, dict[int, int]]:
        """Process numbers, and the group of each. It pauses (yields) after every 2 ms of work or so.

        The list is read again until nobody new is in it, because one that had ended when it was looked at may have started
        another. It gives up when nothing of the program was seen for `patience_s`, or after `limit_s`, whichever is later.

        Args:
            then: Called at once, with number and group, for each that is found. A program that starts another and ends, again
                and again, is ended only by a signal that comes before it has done so.
        """
        found: dict[int, Seen] = {}
        others: dict[int, Seen] = {}
        entries: dict[int, Entry] = {}
        unclear: set[int] = set()
        unseen: set[int] = set()
        now = time.monotonic()
        limit, give_up = now + limit_s, now + patience_s
        work = 0
        while True:
            self.is_restless = has_missed = False
            listed = listing()
            new = listed - self._strangers - set(entries.values())
            work += 1 + len(listed) // _LISTED_PER_LOOK
            for entry in sorted(new, key=_number, reverse=True):  # the newest first: children before their parents
                if work >= _LOOKS_AT_A_STRETCH:
                    work = 0
                    yield
                work += 1
                pid = int(entry[0])
                entries[pid] = entry
                seen = look(pid)
                environment = None
                is_ours = seen is not None and _runs(seen) and self._is_known(pid, seen)
                if seen is not None and _runs(seen) and not is_ours:
                    environment = contents(f"/proc/{pid}/environ")
                    if environment:
                        is_ours = self._mark in environment
                    else:  # it has none, or has ended meanwhile, or does not show it
                        seen = look(pid)
                if seen is None or not _runs(seen) or seen.is_ending:
                    self.is_restless = has_missed = True
                    continue
                if is_ours:
                    if then is not None:
                        then(pid, seen.group)
                    self.is_restless = True
                    give_up = min(time.monotonic() + patience_s, limit)
                elif environment is None:
                    unseen.add(pid)
                elif not environment and seen.session:  # a thread of the system has no session
                    unclear.add(pid)
                (found if is_ours else others)[pid] = seen
            if has_missed:
                for pid, seen in self._next_ones(max(int(entry[0]) for entry in new)):
                    if then is not None:
                        then(pid, seen.group)
                    found[pid] = seen
                    give_up = min(time.monotonic() + patience_s, limit)
                work += _LOOKS_AHEAD
            if not self.is_restless or time.monotonic() >= max(give_up, now):
                break
        while children := {pid: seen for pid, seen in others.items() if seen.parent in found}:
            for pid, seen in children.items():
                if then is not None:
                    then(pid, seen.group)
            found |= children
            others = {pid: seen for pid, seen in others.items() if pid not in children}
        self.is_doubtful = self._looks_left > 0 and not unclear.isdisjoint(others)
        self._looks_left -= self.is_doubtful
        self._strangers.update(entries[pid] for pid in others if not (self.is_doubtful and pid in unclear))
        self._veiled.update((pid, others[pid].started) for pid in unseen if pid in others and self._may_be_ours(pid, others[pid]))
        self._found = found
        return {pid: seen.group for pid, seen in found.items()}

    def _next_ones(self, pid: int) -> Generator[tuple[int, Seen]]:
        """Those of the program that were started after one that was missed. Numbers are given out in a row, and trying the next
        ones is a hundred times faster than reading the list: fast enough to meet one that starts another and ends."""
        missing, tried = 0, 0
        while missing < _LOOKS_AHEAD and tried < 10 * _LOOKS_AHEAD:
            pid, tried = pid + 1, tried + 1
            seen = look(pid)
            missing = missing + 1 if seen is None else 0
            if seen is None or not _runs(seen) or pid in self._found:
                continue
            if self._mark in (contents(f"/proc/{pid}/environ") or b""):
                yield pid, seen

    def _is_known(self, pid: int, seen: Seen) -> bool:
        before = self._found.get(pid)
        return self._leader in (seen.group, seen.session) or (before is not None and before.started == seen.started)

    def veiled(self) -> list[int]:
        """Processes that may be the program's and whose environment the system hides, such as an `ssh-agent`.

        They have left the session, their parents have ended, and they were started by this user since the program was. They may
        also be somebody else's, so nobody ends them.
        """
        return [pid for pid, started in self._veiled.items() if (seen := look(pid)) and seen.started == started and _runs(seen)]

    def _may_be_ours(self, pid: int, seen: Seen) -> bool:
        if self._above is None:  # an orphan is given to one of these
            self._above, above = {1}, os.getpid()
            while (process := look(above)) is not None and process.parent not in self._above and process.parent:
                above = process.parent
                self._above.add(above)
        if seen.parent not in self._above or seen.session in (0, os.getsid(0)):
            return False
        for line in (contents(f"/proc/{pid}/status") or b"").splitlines():
            if line.startswith(b"Uid:"):
                return int(line.split()[1]) == os.getuid()
        return False


def _number(entry: Entry) -> int:
    return int(entry[0])


def listing() -> set[Entry]:
    """All processes; none if this system does not show them."""
    try:
        with os.scandir("/proc") as entries:
            return {(entry.name, entry.inode()) for entry in entries if entry.name.isdigit()}
    except OSError:
        return set()


def look(pid: int) -> Seen | None:
    """A process; None if it has gone."""
    text = contents(f"/proc/{pid}/stat") or b""
    fields = text[text.rfind(b")") + 2 :].split()  # its name comes before, and may hold anything
    if not fields:
        return None
    state, is_ending = fields[0].decode(), int(fields[6]) & 4 != 0  # PF_EXITING
    if int(fields[17]) > 1:  # it says how its first thread is, and others still run
        state, is_ending = ("R" if state in "ZX" else state), False
    return Seen(state, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), is_ending)


def contents(path: str) -> bytes | None:
    """A file of `/proc`; None if the process has gone, or is none of ours to look at."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return None


def names(pids: Collection[int]) -> tuple[str, ...]:
    """Their command lines; of many, the first."""
    named: Iterable[int] = list(pids)[:_NAMES]
    more = (f"and {len(pids) - _NAMES} more",) if len(pids) > _NAMES else ()
    return (*(_name(pid) for pid in named), *more)


def _name(pid: int) -> str:
    """A process's command line, or what is known of it."""
    text = (contents(f"/proc/{pid}/cmdline") or b"")[:1_000].rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    text = text or ("processes in the background" if pid < 0 else f"process {pid}")
    return text if len(text) <= 100 else f"{text[:100]}..."


def is_running(pid: int) -> bool:
    """Whether it still runs. A negative number is a group."""
    if pid < 0:
        return send(pid, 0)
    seen = look(pid)
    return seen is not None and _runs(seen)


def _runs(seen: Seen) -> bool:
    return seen.state not in "ZX"


def send(pid: int, number: int) -> bool:
    """Send a signal; whether there was anybody to take it."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # gone, or another user's
        return False
    return True
