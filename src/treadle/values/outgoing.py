"""A request as it would go out, for people to read."""

from __future__ import annotations

import shlex
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from treadle.errors import UsageError
from treadle.values.ports import Connection
from treadle.values.request import ModelRequest

__all__ = ["HIDDEN", "HttpRequest", "SaysRequests", "said_by"]

HIDDEN = "***"
"""What is shown in place of a header's value that may be a secret."""


class HttpRequest(Struct, frozen=True, kw_only=True):
    """An HTTP request. As text it is a message with its JSON set out to be read.

    Attributes:
        headers: In the order they are sent, without those that the client adds (`Host`, `Content-Length`). Keys and whatever else
            may be a secret are `***`.
        body: The bytes that are sent.
    """

    method: str
    url: str
    headers: dict[str, str]
    body: bytes

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        head = [f"{self.method} {target} HTTP/1.1", f"Host: {parts.netloc}", *(f"{n}: {v}" for n, v in self.headers.items())]
        return "\n".join([*head, "", msgspec.json.format(self.body, indent=2).decode()])

    @property
    def curl(self) -> str:
        """The same as a command for a POSIX shell. Put your key where it says `***`."""
        words = ["curl", "--no-buffer", "-X", self.method, self.url]
        for name, value in self.headers.items():
            words += ["-H", f"{name}: {value}"]
        return shlex.join([*words, "--data-binary", self.body.decode()])


@runtime_checkable
class SaysRequests(Protocol):
    """A connection that can say what it would send."""

    def said(self, request: ModelRequest) -> HttpRequest: ...


def said_by(connection: Connection, request: ModelRequest, *, model: str) -> HttpRequest:
    """What the connection would send. Nothing is sent.

    Raises:
        UsageError: It cannot say so.
    """
    if not isinstance(connection, SaysRequests):
        raise UsageError(
            f"the driver of {model} does not say what it sends",
            hint="Only drivers that speak HTTP do; one of your own can have `said(request)` on its connection.",
        )
    return connection.said(request)
