"""One answer to `fetch`: undoing its compression, and what a model reads of it. No I/O."""

from __future__ import annotations

import re
import threading
import zlib
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from treadle.errors import ToolError
from treadle.tools.builtin.fetch_address import Address
from treadle.tools.builtin.fetch_text import clean, decoded, read_html

__all__ = ["Answer", "Inflater", "Part", "is_text", "known_type", "snippet", "written"]

_MAX_CHARS = 1_000_000  # of what is made of a page; the run shows a model less, and keeps the rest
_SNIPPET_CHARS = 300

_TEXT = re.compile(r"text/.+|.+/(?:.+\+)?(?:json|xml|yaml)|application/(?:(?:x-)?(?:javascript|ndjson|sh|toml|x?yaml)|jsonl|sql)")
_HTML = ("text/html", "application/xhtml+xml")
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}")  # RFC 6838, section 4.2, but shorter

Part: TypeAlias = Literal["main", "page", "source"]


class Answer(Struct, frozen=True, kw_only=True):
    """What came back. `body` is None if it is no text and was not read; `moved_to` is a redirect that was not followed."""

    address: Address
    status: int
    media_type: str
    charset: str | None = None
    body: bytes | None = None
    size: int | None = None
    moved_to: Address | None = None


def known_type(said: str) -> str:
    """The media type that a server names; `application/octet-stream` if what it says is none, or could hide something."""
    media_type = said.lower()
    return media_type if _TYPE.fullmatch(media_type) else "application/octet-stream"


def is_text(media_type: str) -> bool:
    return _TEXT.fullmatch(media_type) is not None


class Inflater:
    """Undoes a body's compression, piece by piece and never by more than there is room for.

    Raises:
        ToolError: From the constructor for a compression that was not asked for, else for data that is broken.
    """

    def __init__(self, address: Address | None, encoding: str) -> None:
        self._host = "the server" if address is None else address.host
        self._encoding = encoding.strip().lower().removeprefix("x-")
        if self._encoding not in ("", "identity", "gzip", "deflate"):
            raise ToolError(f"{self._host} sent a compression that was not asked for. Try another source.", kind="network")
        self._stream: Any = None
        self._ended = False

    def feed(self, data: bytes, room: int) -> bytes:
        """What these bytes amount to, cut after `room` bytes."""
        if self._encoding in ("", "identity"):
            return data[:room]
        out = bytearray()
        try:
            while data and len(out) < room and not self._ended:
                if self._stream is None:
                    self._stream = zlib.decompressobj(self._window(data))
                out += self._stream.decompress(data, room - len(out))
                if self._stream.eof:
                    data, self._stream = self._stream.unused_data, None
                    # A gzip body may have further parts; anything else behind the end is padding.
                    self._ended = self._encoding == "deflate" or (data != b"" and data[0] != 0x1F)
                else:
                    data = self._stream.unconsumed_tail
        except zlib.error:
            raise self._broken() from None
        return bytes(out)

    def close(self) -> None:
        if self._stream is not None:
            raise self._broken()

    def _window(self, data: bytes) -> int:
        if self._encoding == "gzip":
            return 16 + zlib.MAX_WBITS
        return zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS  # some servers leave zlib's header away

    def _broken(self) -> ToolError:
        return ToolError(f"{self._host} sent compressed data that is broken or incomplete. Try again later.", kind="network")


def written(asked: Address, answer: Answer, part: Part, stop: threading.Event) -> str:
    """What the model reads. Takes up to seconds, so it is for a thread, and gives up when `stop` is set."""
    head = [f"URL: {answer.address.url}"]
    if asked.url != answer.address.url:
        head.append(f"Redirected from: {asked.url}")
    if answer.moved_to is not None:
        head.append(f"Status: {answer.status}, a redirect to another site, which was not followed")
        return "\n".join([*head, f"Redirects to: {answer.moved_to.url}", "", "To read it, call fetch with that URL."])
    size = "size unknown" if answer.size is None else f"{answer.size:,} bytes"
    media_type = answer.media_type or "type unknown"
    head.append(f"Status: {answer.status}, {media_type}, {size}")
    if answer.body is None or _is_binary(answer):
        return "\n".join([*head, "", f"This is no text ({media_type}, {size}), so there is nothing to read here."])
    is_html = answer.media_type in _HTML or (not answer.media_type and _looks_like_html(answer.body))
    text = decoded(answer.body, answer.charset, is_html=is_html)
    if is_html and part != "source":
        page = read_html(text, url=answer.address.url, main_only=part == "main", max_chars=_MAX_CHARS, stop=stop)
        text = page.text or "(No text. Scripts, which may fill this page, are not run.)"
        if page.title:
            head.append(f"Title: {page.title}")
        if page.is_part:
            head.append('Shown: the main part (part="page" has the rest)')
        if page.is_cut:
            text += "\n\n(The rest of the page is too long or too deeply nested, and is left out.)"
    elif len(text) > _MAX_CHARS:
        text = f"{text[:_MAX_CHARS]}\n\n(The rest, {len(text) - _MAX_CHARS:,} characters, is left out.)"
    return clean("\n".join([*head, "", text or "(empty)"]))


def _is_binary(answer: Answer) -> bool:
    """A body that nothing says to be text, or wrongly so."""
    body = answer.body or b""
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or (answer.charset or "").lower().startswith("utf-16"):
        return False
    if b"\0" in body[:4_096]:
        return True
    if answer.media_type not in ("", "application/octet-stream"):
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return True
    return False


def _looks_like_html(body: bytes) -> bool:
    return (
        re.match(rb"\s*(?:<!--.{0,500}?-->\s*)?<(?:!doctype html|html|head|body)\b", body[:2_000], re.IGNORECASE | re.DOTALL)
        is not None
    )


def snippet(body: bytes, media_type: str, charset: str | None) -> str:
    """What the page of an error says, in one short line."""
    if media_type not in _HTML and not is_text(media_type):
        return ""
    text = decoded(body, charset, is_html=media_type in _HTML)
    if media_type in _HTML:
        page = read_html(text, url="", main_only=True, max_chars=10 * _SNIPPET_CHARS, stop=threading.Event())
        text = page.text or page.title
    line = " ".join(clean(text).split())
    return line if len(line) <= _SNIPPET_CHARS else f"{line[:_SNIPPET_CHARS]}..."
