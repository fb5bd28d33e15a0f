"""Keeping a test from the network: no request of treadle's to anybody, no connection of anybody's to another machine.

Watched with an audit hook (PEP 578), which sees every connection that this process makes through Python's sockets, whichever library
makes it. Treadle announces its own requests to the same hook, so that a model server on this machine counts, too. Other connections
to this machine are let through: a test's own servers and databases are its own matter. What a library does with sockets of its own,
in C or Rust, no audit hook sees.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from treadle.testing.errors import NetworkBlocked

__all__ = ["begin", "end", "is_lifted", "lifted", "offline"]


class _Guard:
    """The one hook of this process. It cannot be taken away again, so it is switched off and on."""

    def __init__(self) -> None:
        self.hooked = False
        self.lifted = 0
        self.blocked: list[list[str]] = []  # one list for each block that is open

    def watch(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.blocked or self.lifted:
            return
        if event == "treadle.request":
            address = str(args[0]).partition("?")[0]
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = _remote(args[1])
        elif event == "socket.getnameinfo":
            address = _remote(args[0])
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            address = _remote((args[0], args[1] if len(args) > 1 else 0))
        else:
            return
        if address:
            for each in self.blocked:
                each.append(address)
            raise NetworkBlocked(address)


_guard = _Guard()


def begin() -> list[str]:
    """Block from here on. The list is filled with what is blocked."""
    if not _guard.hooked:
        _guard.hooked = True
        sys.addaudithook(_guard.watch)
    blocked: list[str] = []
    _guard.blocked.append(blocked)
    return blocked


def end(blocked: list[str]) -> None:
    """Block no longer."""
    _guard.blocked[:] = [each for each in _guard.blocked if each is not blocked]


@contextmanager
def offline() -> Generator[None]:
    """Inside the block, nothing of this process may reach the network.

    Raises:
        NetworkBlocked: At the call that tried; and from leaving the block, if that error was swallowed or became another.
    """
    blocked = begin()
    try:
        yield
    except NetworkBlocked:
        raise
    except Exception as error:
        if blocked:
            raise NetworkBlocked(blocked[0]) from error
        raise
    finally:
        end(blocked)
    if blocked:
        raise NetworkBlocked(blocked[0])


@contextmanager
def lifted() -> Generator[None]:
    """Inside the block, everything may reach the network: something is recorded."""
    _guard.lifted += 1
    try:
        yield
    finally:
        _guard.lifted -= 1


def is_lifted() -> bool:
    """Something is being recorded."""
    return _guard.lifted > 0


def _remote(address: object) -> str:
    """Host and port, if that is another machine; else nothing. What is no pair (a path, a Bluetooth device) is this one."""
    if not isinstance(address, tuple) or len(address) < 2:  # pyright: ignore[reportUnknownArgumentType]
        return ""
    host, port = address[0], address[1]  # pyright: ignore[reportUnknownVariableType]
    host = host.decode("ascii", "replace") if isinstance(host, bytes) else host  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(host, str) or host in ("", "localhost") or host.endswith(".localhost"):
        return ""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return f"{host}:{port}"
    return "" if ip.is_loopback or ip.is_unspecified else f"{host}:{port}"
