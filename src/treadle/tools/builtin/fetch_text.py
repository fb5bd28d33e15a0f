"""What a model reads of a web page: bytes to characters, and HTML to Markdown.

The parser is libxml2's, through lxml, which tells of tags one after the other and builds no tree. A tree that follows the
HTML standard can be made to need gigabytes by half a megabyte of misnested tags; here, time and memory grow with the page.
"""

from __future__ import annotations

import codecs
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin

from msgspec import Struct

from treadle.errors import MissingExtra

__all__ = ["Page", "clean", "decoded", "import_parser", "read_html"]

_PIECE = 16_384  # characters or bytes that are worked on before other threads, and whoever says to stop, have their turn
_MAX_DEPTH = 1_000  # each end tag is looked for among all open ones; a browser stops at 512
_MAX_LINK_CHARS = 2_000  # a long <base> would else be repeated by every short link
_MAX_LINK_PARTS = 100  # each of them costs time for every link
_MAX_INDENT = 8  # and a deep list or quote by every line
_CELL_CHARS = 200  # a table's cell with more is a part of a page's layout
_MIN_MAIN_CHARS = 200  # a main part with less is one that a script fills


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DROPPED = _names("audio canvas datalist embed iframe math noembed noframes object script select style svg template video")
_BLOCKS = _names(
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 header hgroup hr html legend li main menu nav ol p pre search section summary table tbody tfoot thead tr ul"
)
_SPACED = _names("blockquote dl figure h1 h2 h3 h4 h5 h6 hr ol p pre table ul")  # an empty line before and after
_MARKS = {"b": "**", "strong": "**", "i": "*", "em": "*", "code": "`", "kbd": "`", "samp": "`", "del": "~~", "s": "~~"}
_NOT_SHOWN = re.compile(
    r"(?:^|;)(?:display:none|visibility:(?:hidden|collapse)|(?:opacity|font-size):0+(?:\.0+)?(?:%|[a-z]+)?(?:[;!]|$))"
)
_SPACES = re.compile(r"[ \t\n\r\f]+")
_META_CHARSET = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)

# Characters that show nothing: control codes, which would reach a terminal, and the tag characters, which carry hidden text.
_INVISIBLE = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160), *range(0xE0000, 0xE0080)))

# By Python's names. ASCII and Latin-1 mean windows-1252 on the web, and shorter Chinese and Korean sets their longer forms
# (Encoding Standard, section 4.2). UTF-16 without a mark is little-endian there. What is not here (`utf-7`, `rot13`, `idna`) is no
# character set that pages are written in.
_CHARSETS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949",
    "shift_jis": "cp932", "tis-620": "cp874", "utf-16": "utf-16-le",
} | {
    name: name
    for name in (
        "big5", "big5hkscs", "cp866", "cp874", "cp932", "cp949", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256",
        "cp1257", "cp1258", "euc_jp", "gb18030", "iso2022_jp", "iso8859-2", "iso8859-3", "iso8859-4", "iso8859-5", "iso8859-6",
        "iso8859-7", "iso8859-8", "iso8859-10", "iso8859-13", "iso8859-14", "iso8859-15", "iso8859-16", "koi8-r", "koi8-u",
        "mac-roman", "mac-cyrillic", "utf-8", "utf-16-le", "utf-16-be",
    )
}  # fmt: skip
_ONE_BYTE = ("cp12", "cp8", "iso8859", "koi8", "mac")  # a character is a byte


def decoded(body: bytes, charset: str | None, *, is_html: bool) -> str:
    """The body as text: by its byte order mark, the header's charset, the page's own word, else UTF-8. Never fails.

    What cannot be decoded becomes U+FFFD.
    """
    for mark, name in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if body.startswith(mark):
            return _decoded(body[len(mark) :], name)
    found = _codec(charset) if charset else None
    if found is None and is_html and (said := _META_CHARSET.search(body, 0, 4_096)):
        found = _codec(said[1].decode("ascii", "replace"))
        if found is not None and found.startswith("utf-16"):  # it could be read, so it is not
            found = "utf-8"
    return _decoded(body, found or "utf-8")


def _decoded(body: bytes, codec: str) -> str:
    """In pieces, with a moment for other threads after each: they wait while one is decoded."""
    decoder = codecs.getincrementaldecoder(codec)("replace")
    # To replace each character by itself takes 0.5 s for five megabytes of what is no text; a table that says so takes 0.02 s.
    table = bytes(range(256)).decode(codec, "replace") if codec.startswith(_ONE_BYTE) else None
    pieces: list[str] = []
    for start in range(0, len(body), _PIECE):
        piece = body[start : start + _PIECE]
        if table is None:
            pieces.append(decoder.decode(piece))
        else:  # the table may be a text too, which the type stubs do not know
            pieces.append(codecs.charmap_decode(piece, "strict", table)[0])  # pyright: ignore[reportArgumentType]
        time.sleep(0)
    return "".join([*pieces, decoder.decode(b"", True)])


def _codec(charset: str) -> str | None:
    try:
        return _CHARSETS.get(codecs.lookup(charset.strip("\"' ")).name)
    except (LookupError, ValueError):
        return None


def clean(text: str) -> str:
    """The text without characters that show nothing, and with `\\n` as its only line end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join([text[start : start + _PIECE].translate(_INVISIBLE) for start in range(0, len(text), _PIECE)])


def import_parser() -> Any:
    """lxml's parsers.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        from lxml import etree  # pyright: ignore  # has no types
    except ImportError:
        raise MissingExtra("the fetch tool", extra="fetch") from None
    return etree  # pyright: ignore


class Page(Struct, frozen=True, kw_only=True):
    """A page as Markdown.

    Attributes:
        text: Markdown. Links are absolute, and only those to other pages are kept.
        is_part: `text` is what the page marks as its main part.
        is_cut: The page was too deep, or its text too long, to be read to its end.
    """

    title: str
    text: str
    is_part: bool = False
    is_cut: bool = False


def read_html(html: str, *, url: str, main_only: bool, max_chars: int, stop: threading.Event) -> Page:
    """The page as Markdown, without scripts, styles and what is marked as hidden (by attributes, not by style sheets).

    Blocks; made for a thread. It stops soon after `stop` is set, with what it has.

    Args:
        main_only: If the page marks a main part, that part alone.
        max_chars: Of Markdown; reading stops there.
    """
    etree = import_parser()
    markdown = _Markdown(url, max_chars)
    parser = etree.HTMLParser(target=markdown, recover=True, no_network=True)
    for start in range(0, len(html), _PIECE):
        if markdown.is_full or stop.is_set():
            break
        parser.feed(html[start : start + _PIECE])
    if html.strip():
        with suppress(etree.LxmlError):  # nothing but comments, say
            parser.close()
    return markdown.page(main_only)


class _Markdown:
    """Writes Markdown from the parser's events, which are well nested. A target in lxml's sense."""

    def __init__(self, url: str, max_chars: int) -> None:
        self.is_full = False
        self._base = url
        self._max_chars = max_chars
        self._depth = 0
        self._hidden_at = 0  # depth of the element that hides all inside it; 0 for none
        self._title: list[str] = []
        self._in_title = False
        self._main_at = 0  # depth
        self._main_from = 0
        self._main: list[str] = []
        self._out: list[str] = []
        self._chars = 0
        self._breaks = 0  # line ends that are due before the next text
        self._space = False
        self._pre = 0
        self._line_marks: list[list[str]] = []  # of open lists, quotes, headings: for their next line, for those after it
        self._inline: list[tuple[str, str]] = []  # of open links, bold text ...: the marks before and behind
        self._inline_written = 0  # how many of them have their first mark written; it waits for a text
        self._lists: list[int | None] = []  # the next number, or None
        self._rows: list[_Row] = []  # the current one of each open table

    # The parser's events

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self.is_full = True
        if self._hidden_at or self.is_full:
            return
        if tag in _DROPPED or _is_hidden(attributes):
            self._hidden_at = self._depth
        elif tag == "title":
            self._in_title = True
        else:
            if tag in _BLOCKS:
                self._break(self._space_around(tag))
            if not self._main_at and (tag == "main" or attributes.get("role") == "main"):
                self._main_at, self._main_from = self._depth, len(self._out)
            self._open(tag, attributes)

    def end(self, tag: str) -> None:
        depth, self._depth = self._depth, self._depth - 1
        if self.is_full:
            return
        if self._hidden_at:
            if self._hidden_at == depth:
                self._hidden_at = 0
        elif tag == "title":
            self._in_title = False
        else:
            self._close(tag)
            if tag in _BLOCKS:
                self._break(self._space_around(tag))
            if self._main_at == depth:
                self._end_main()

    def data(self, data: str) -> None:
        if self._hidden_at or self.is_full:
            return
        if self._in_title:
            self._title.append(data[:300])
        elif self._pre:
            self._write_lines(data)
        else:
            self._write(data)

    def close(self) -> None:
        pass

    def page(self, main_only: bool) -> Page:
        if self._main_at:  # cut inside it
            self._end_main()
        main = "".join(self._main).strip("\n")
        is_part = main_only and len(main) >= _MIN_MAIN_CHARS
        return Page(
            title=" ".join("".join(self._title[:20]).split())[:300],
            text=(main if is_part else "".join(self._out).strip("\n"))[: self._max_chars],
            is_part=is_part,
            is_cut=self.is_full,
        )

    def _end_main(self) -> None:
        self._main_at = 0
        self._main += self._out[self._main_from :]

    # Elements

    def _space_around(self, tag: str) -> int:
        is_tight = (self._lists and tag in ("ul", "ol", "p")) or (self._rows and tag == "p")
        return 2 if tag in _SPACED and not is_tight else 1

    def _open(self, tag: str, attributes: Mapping[str, str]) -> None:
        match tag:
            case "br":
                self._space = False
                self._breaks = min(self._breaks + 1, 2)
            case "hr":
                self._put("---")
                self._break(2)
            case "h1" | "h2" | "h3" | "h4" | "h5" | "h6":
                self._line_marks.append(["#" * int(tag[1]) + " ", ""])
            case "blockquote":
                self._line_marks.append(["> ", "> "])
            case "dd":
                self._line_marks.append([": ", "  "])
            case "ul" | "ol":
                first = attributes.get("start", "1")
                self._lists.append(None if tag == "ul" else int(first) if re.fullmatch("[0-9]{1,9}", first) else 1)
            case "li":
                number = self._lists[-1] if self._lists else None
                mark = "- " if number is None else f"{number}. "
                if number is not None:
                    self._lists[-1] = number + 1
                self._line_marks.append([mark, " " * len(mark)])
            case "pre":
                self._pre += 1
                if self._pre == 1:
                    self._put("```")
                    self._breaks = 1
            case "table":
                self._rows.append(_Row(self._chars))
            case "tr" if self._rows:
                self._rows[-1] = _Row(self._chars)
            case "td" | "th" if self._rows:
                self._open_cell(self._rows[-1], tag)
            case "a":
                url = self._absolute(attributes.get("href", ""))
                self._inline.append(("[", f"]({url})") if url else ("", ""))
            case "img":
                if alt := " ".join(attributes.get("alt", "")[:1_000].split())[:300]:
                    self._put(f"[image: {alt}]")
            case "base":
                self._base = self._absolute(attributes.get("href", "")) or self._base
            case _ if tag in _MARKS:
                mark = "" if self._pre else _MARKS[tag]
                self._inline.append((mark, mark))
            case _:
                pass

    def _close(self, tag: str) -> None:
        match tag:
            case "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "blockquote" | "dd" | "li" if self._line_marks:
                self._line_marks.pop()
            case "ul" | "ol" if self._lists:
                self._lists.pop()
            case "pre" if self._pre:
                self._pre -= 1
                if not self._pre:
                    self._breaks = 1
                    self._put("```")
            case "tr" if self._rows and self._rows[-1].is_head and self._rows[-1].cells > 1:
                self._break(1)
                self._put(" | ".join(["---"] * min(self._rows[-1].cells, 100)))
            case "table" if self._rows:
                self._rows.pop()
            case _ if (tag == "a" or tag in _MARKS) and self._inline:
                _, mark = self._inline.pop()
                if self._inline_written > len(self._inline):  # else there was no text in it
                    self._inline_written = len(self._inline)
                    self._append(mark)
            case _:
                pass

    def _open_cell(self, row: _Row, tag: str) -> None:
        if row.cells:
            if self._chars - row.cell_from <= _CELL_CHARS and self._chars > row.began_at:
                self._breaks, self._space = 0, True  # data, also if it is in paragraphs; else a layout
            self._put("|")
            self._space = True
        row.cells += 1
        row.cell_from = self._chars
        row.is_head = row.is_head and tag == "th"

    def _absolute(self, href: str) -> str:
        """The link's address if it is another page's, and short enough to be written out; else nothing."""
        href = href.strip() if len(href) <= _MAX_LINK_CHARS else ""
        if not href or href.startswith("#") or href.count("/") + self._base.count("/") > _MAX_LINK_PARTS:
            return ""
        try:
            url = urljoin(self._base, href)
        except ValueError:
            return ""
        if not url.startswith(("http://", "https://", "mailto:")) or len(url) > _MAX_LINK_CHARS:
            return ""
        return _SPACES.sub("%20", url).replace("(", "%28").replace(")", "%29")

    # Text

    def _write(self, data: str) -> None:
        text = _SPACES.sub(" ", data)
        self._space = self._space or text.startswith(" ")
        if words := text.strip(" "):
            self._put(words)
            self._space = text.endswith(" ")

    def _write_lines(self, data: str) -> None:
        if self._breaks and self._out[-1].endswith("```"):
            data = data.removeprefix("\n")  # behind the tag, it is not part of the text
        first, *others = data.split("\n")
        if first:
            self._put(first)
        for line in others:
            self._breaks += 1
            if line:
                self._put(line)

    def _break(self, lines: int) -> None:
        """At least so many line ends before the next text."""
        self._space = False
        self._breaks = max(self._breaks, lines)

    def _put(self, text: str) -> None:
        """Write, after the line ends, the space and the marks that are due."""
        text = "".join([mark for mark, _ in self._inline[self._inline_written :]]) + text
        self._inline_written = len(self._inline)
        if self._breaks or not self._out:
            text = "\n" * self._breaks + self._line_mark() + text
        elif self._space:
            text = " " + text
        self._breaks, self._space = 0, False
        self._append(text)

    def _line_mark(self) -> str:
        marks = self._line_marks[-_MAX_INDENT:]
        written = "".join([mark[0] for mark in marks])
        for mark in marks:
            mark[0] = mark[1]
        return written

    def _append(self, text: str) -> None:
        self._out.append(text)
        self._chars += len(text)
        if self._chars > self._max_chars:
            self.is_full = True


class _Row:
    """A row of a table so far. `began_at` and `cell_from` count characters of output."""

    def __init__(self, began_at: int) -> None:
        self.began_at = self.cell_from = began_at
        self.cells = 0
        self.is_head = True


def _is_hidden(attributes: Mapping[str, str]) -> bool:
    if "hidden" in attributes or attributes.get("aria-hidden", "").lower() == "true":
        return True
    style = attributes.get("style")
    return style is not None and _NOT_SHOWN.search(re.sub(r"\s", "", style[:2_000].lower())) is not None
