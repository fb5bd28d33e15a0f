"""What a docstring says of a function and of each parameter, in Google, NumPy or Sphinx style, mixed or not.

Only the part that describes the given parameters is taken out of the text; nothing else is lost or reordered.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Collection, Iterator

__all__ = ["describe"]

_TITLE = r"(?:Args|Arguments|Params|Parameters|Keyword Args|Keyword Arguments|Other Parameters)"
# `Args:` and everything indented under it.
_GOOGLE = re.compile(rf"^{_TITLE}:[ \t]*\n(?P<body>(?:[ \t]+\S.*\n|[ \t]*\n)+)", re.M)
_GOOGLE_ENTRY = re.compile(r"\*{0,2}\w+[ \t]*(?:\(.*\))?[ \t]*:")
# `Parameters`, dashes, then entries: names at the left margin, their text indented. The next title ends it.
_NUMPY = re.compile(
    rf"^{_TITLE}[ \t]*\n-{{3,}}[ \t]*\n"
    r"(?P<body>(?:(?!.*\n[-=]{3,})[*\w]+(?:,[ \t]*[*\w]+)*[ \t]*(?::.*)?\n(?:[ \t]+\S.*\n|[ \t]*\n)*)+)",
    re.M,
)
# `:param city:` or `:type city:`, and the indented lines after it.
_SPHINX = re.compile(
    r"^:(?:param|parameter|arg|argument|key|keyword|type)[ \t]+(?:[^:\n]*[ \t])?(?P<name>\*{0,2}\w+)[ \t]*:"
    r".*\n(?:[ \t]+\S.*\n|[ \t]*\n(?=[ \t]+\S))*",
    re.M,
)


def describe(doc: str | None, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """The text without its parameter part, and the description of each of `names` that has one.

    A text that describes none of `names` comes back whole, dedented.
    """
    whole = inspect.cleandoc(doc or "").strip()
    text = whole + "\n"
    if re.match(rf"{_TITLE}:\n\S", text):  # a title on the first line, which `cleandoc` leaves out of the margin
        title, rest = text.split("\n", 1)
        text = f"{title}\n{textwrap.indent(rest, '    ')}"
    found: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        entries = [(name, said) for name, said in _entries(match) if name in names]
        if not match[0].startswith(":type"):
            for name, said in entries:
                found.setdefault(name, said)
        return "" if entries else match[0]

    for section in (_NUMPY, _GOOGLE, _SPHINX):
        text = section.sub(take, text)
    if not found:
        return whole, {}
    return re.sub(r"\n{3,}", "\n\n", text).strip(), {name: said for name, said in found.items() if said}


def _entries(match: re.Match[str]) -> Iterator[tuple[str, str]]:
    """Names and descriptions in one section. The library gets the section alone: it gives up a docstring at the first
    oddity anywhere in it, such as a `Raises:` line without a colon, and takes its parameters along."""
    from docstring_parser import DocstringStyle, ParseError, parse

    if match.re is _GOOGLE:
        text, style = "\nArgs:\n" + _google_body(match["body"]), DocstringStyle.GOOGLE
    elif match.re is _NUMPY:
        text, style = "Parameters\n----------\n" + match["body"], DocstringStyle.NUMPYDOC
    else:
        text, style = re.sub(r"^:[^:]*:", f":param {match['name']}:", match[0]), DocstringStyle.REST
    try:
        params = parse(text, style).params
    except ParseError:
        return
    for param in params:
        for name in param.arg_name.split(","):
            yield name.strip().lstrip("*"), (param.description or "").strip()


def _google_body(body: str) -> str:
    """Entries at one indent. A line there that begins no entry belongs to the one before it."""
    lines = textwrap.dedent(body.expandtabs()).splitlines()
    return "\n".join("    " + (line if _GOOGLE_ENTRY.match(line) else "    " + line if line else "") for line in lines)
