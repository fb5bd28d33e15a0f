"""What every wire format offers a driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from treadle.errors import ModelError
from treadle.values.events import Delta
from treadle.values.request import ModelRequest, Omission, PrefixMove, Reply, SchemaSupport
from treadle.wire.ledger import Prefix

__all__ = ["Codec", "Decoder", "Encoder", "bearer"]


def bearer(key: str | None) -> dict[str, str]:
    """The header that most formats carry a key in."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class Encoder(Protocol):
    """Writes the requests of one run. It may keep what it wrote, so that a turn costs what is new in it."""

    def encode(self, request: ModelRequest) -> bytes:
        """The request's body. The same request gives the same bytes, whatever was encoded before."""
        ...

    @property
    def omitted(self) -> Sequence[Omission]:
        """What the last request left out and none before it did."""
        ...

    @property
    def moved(self) -> PrefixMove | None:
        """What the last request has not as the one before it had; None if it begins with that one."""
        ...

    @property
    def prefix(self) -> Prefix:
        """What of the last request a server may keep. One object for the whole run."""
        ...


class Decoder(Protocol):
    """Reads one reply: `feed` chunks cut anywhere, then `close` once at the end of the stream. Neither raises."""

    progress: int
    """Grows whenever something that means anything arrived; keep-alive comments and empty deltas do not."""

    finished: bool
    """The server has said why it stopped, and has not gone on after that. What may still come is usage."""

    done: bool
    """Nothing more is to be read: the format's own end mark came, or an error did."""

    error: ModelError | None
    """Why there is no whole reply. Deltas that came before it are given first."""

    @property
    def began(self) -> bool:
        """Some of the reply itself has arrived, not only progress on the way to it."""
        ...

    def feed(self, data: bytes) -> list[Delta]:
        """What these bytes brought, neighbouring pieces of one kind merged."""
        ...

    def close(self, *, clean: bool = True) -> list[Delta]:
        """What was still held back. Afterwards either the reply is finished or `error` is set.

        Args:
            clean: The stream was ended properly, not broken off.
        """
        ...

    @property
    def reply(self) -> Reply:
        """The reply so far; `finish` is None until `finished`."""
        ...


class Codec(Protocol):
    """One wire format."""

    @property
    def path(self) -> str:
        """Where requests go, below the server's base address."""
        ...

    @property
    def continuable(self) -> bool:
        """The server can go on from a partial answer."""
        ...

    @property
    def schema_support(self) -> SchemaSupport:
        """When `ModelRequest.output` may be set."""
        ...

    def headers(self, key: str | None) -> dict[str, str]:
        """The format's own headers, with the key where the format wants it."""
        ...

    def encoder(self, model: str) -> Encoder: ...

    def decoder(self, request: ModelRequest) -> Decoder: ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
        """The error that a response with this status means. Header names are looked up in any case."""
        ...
