"""Taking secrets out of what is written: by name of header, by value, by the look of a provider's keys, and ids at their own places.

A secret becomes as many bytes as it had, so that lengths and the boundaries of reads stay as they were: asterisks between two
characters of Unicode's private use, which tell them from asterisks that somebody wrote.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

__all__ = [
    "KEPT_ANSWER_HEADERS",
    "KEPT_REQUEST_HEADERS",
    "TAKEN_OUT",
    "Scrubber",
    "environment_secrets",
    "frames",
    "kept",
    "sent_secrets",
    "without_address",
]

KEPT_REQUEST_HEADERS = frozenset({"accept", "anthropic-beta", "anthropic-version", "content-type", "openai-beta"})
"""All other headers of a request are left out: they hold keys and cookies, or what no test should depend on."""

KEPT_ANSWER_HEADERS = frozenset({"content-type", "date", "retry-after", "retry-after-ms", "server", "x-should-retry"})
"""All other headers of an answer are left out: cookies, ids of requests and organizations, rate limits of an account."""

_BEGIN, _END = "\uf8f0", "\uf8f1"  # three bytes each
TAKEN_OUT = re.compile(f"{_BEGIN}\\**{_END}")
"""Where a secret was."""

_HARMLESS = KEPT_REQUEST_HEADERS | {"accept-encoding", "connection", "content-length", "host", "user-agent"}
_MIN_SECRET = 6  # what is shorter stands in too many words
_MIN_IN_ENVIRONMENT = 8  # of a variable we only guess that it is one
_NESTED = 4  # JSON in JSON in JSON
_NAMES_A_SECRET = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_IN_QUERY = rb"(?i:(?:api[-_]?)?key|(?:access_)?token|sig(?:nature)?|secret|password)="
_QUERY = re.compile(rb"(?<=[?&])(" + _IN_QUERY + rb")([^&#\s\"'\\]+)")
_URL = re.compile(rb"https?:(?:\\*/){2}[^\s\"'<>]+")
_KEYS = re.compile(
    rb"(?<![A-Za-z0-9_-])(?:"
    rb"(?:c?sk-|gsk_|xai-|pplx-|nvapi-|tgp_v1_|r8_|fw_|gh[pousr]_|[sr]k_(?:live|test)_)[A-Za-z0-9_-]{20,}"
    rb"|AIza[A-Za-z0-9_-]{35})"
    rb"|(?<![A-Za-z0-9_-])hf_[A-Za-z0-9]{34}(?![A-Za-z0-9])"
    rb"|(?<=Bearer )[A-Za-z0-9._~+/=-]{20,}"
)
_IDS = re.compile(rb"(?<![A-Za-z0-9_-])(?:(?:org|user)[-_]|(?:proj|req)_)[A-Za-z0-9]{24,}(?![A-Za-z0-9_-])")
_RUN = re.compile(rb"[A-Za-z0-9]{16,}")
_ID_FIELDS = frozenset({"request_id", "requestId", "organization", "organization_id", "org_id", "user_id", "account_id"})
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_BASE64 = re.compile(r"(?:data:[^,]{0,200};base64,)?([A-Za-z0-9+/_\-\s]{8,}={0,2})\s*")


def environment_secrets() -> list[str]:
    """Values of variables whose names say that they hold a key, a token or a password."""
    values = [value for name, value in os.environ.items() if _NAMES_A_SECRET.search(name)]
    return [part.strip() for value in values for part in (value, *value.split(",")) if len(part.strip()) >= _MIN_IN_ENVIRONMENT]


def sent_secrets(headers: Mapping[str, str]) -> list[str]:
    """What a request's own headers give away: the driver's key, and whatever else was sent along."""
    values = [value for name, value in headers.items() if name.lower() not in _HARMLESS]
    return [value.removeprefix("Bearer ").strip() for value in values]


def kept(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    """The headers with these names, in lower case and in order of their names."""
    return {
        name.lower(): value for name, value in sorted(headers.items(), key=lambda item: item[0].lower()) if name.lower() in names
    }


def without_address(model: str) -> str:
    """A model's name as it is kept: of `http://10.0.0.5:8000/v1#qwen` the part `#qwen`."""
    if "://" not in model:
        return model
    return "#" + model.partition("#")[2]


def frames(body: bytes) -> Iterator[tuple[int, bytes, Any]]:
    """The JSON values in a body: itself, or those in its lines or in the events of its stream. Each with its bytes and their place."""
    if (value := _parsed(body)) is not None:
        yield 0, body, value
        return
    unread: list[bytes] = []  # the lines of an event whose data stands on several
    at = 0
    for line in body.splitlines(keepends=True):
        data = line.removeprefix(b"data:").strip()
        if (value := _parsed(data)) is not None:
            yield at + line.index(data), data, value
        elif data and line.startswith(b"data:"):
            unread.append(data)
        elif not data:
            if (value := _parsed(b"\n".join(unread))) is not None:
                yield -1, b"", value  # nowhere in one piece
            unread.clear()
        at += len(line)
    if (value := _parsed(b"\n".join(unread))) is not None:
        yield -1, b"", value


class Scrubber:
    """Knows the secrets, and takes them out.

    Args:
        named: Secrets that nothing else gives away.
    """

    def __init__(self, named: Iterable[str] = ()) -> None:
        self._known: dict[str, tuple[bytes, re.Pattern[bytes], re.Pattern[bytes]]] = {}
        self.add(named)
        self.add(environment_secrets())

    def add(self, secrets: Iterable[str]) -> None:
        """Know these, too. What is shorter than 6 characters is not looked for: it would be found in ordinary words."""
        new = {secret for secret in secrets if len(secret) >= _MIN_SECRET} - set(self._known)
        for secret in new:
            self._known[secret] = _plainest(secret), re.compile(_spelled(secret)), re.compile(_in_base64(secret))
        if new:  # the longest first: one may be a part of another
            self._known = dict(sorted(self._known.items(), key=lambda item: len(item[0]), reverse=True))

    def clean(self, data: bytes) -> bytes:
        """The same number of bytes, without the secrets that are known and what looks like a provider's key."""
        data = self._without_known(data)
        data = _URL.sub(lambda found: _QUERY.sub(_masked_if_random, found[0]), data)
        return _without_keys(data)

    def clean_text(self, text: str) -> str:
        return self.clean(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")

    def clean_path(self, path: str) -> str:
        """Of our own address, whatever stands in its query as a key."""
        data = self.clean(path.encode("utf-8", "surrogatepass"))
        return _QUERY.sub(lambda found: found[1] + _mask(max(len(found[2]), _MIN_SECRET)), data).decode("utf-8", "replace")

    def clean_request(self, body: bytes) -> bytes:
        """A request's body; ids of accounts only where the protocol has them, never in what is said."""
        body = self.clean(body)
        return _without(body, lambda path: path == ("metadata", "user_id") or (len(path) == 1 and path[0] in _ID_FIELDS))

    def clean_answer(self, body: bytes, *, failed: bool) -> bytes:
        """An answer's body; ids of accounts only beside what is said, and in what the server says of a failure."""
        body = self.clean(body)
        if failed:
            body = _without_ids(body)
        pieces: list[bytes] = []
        done = 0
        for at, data, value in frames(body):
            error = failed or _tells_of_an_error(value)
            if at < 0 or not (error or isinstance(value, dict)):
                continue
            cleaned = _without(data, lambda path, error=error: path[-1] in _ID_FIELDS and (error or len(path) == 1))
            pieces += [body[done:at], _without_ids(cleaned) if error else cleaned]
            done = at + len(data)
        return b"".join((*pieces, body[done:]))

    def gives_away(self, text: str) -> bool:
        """A known secret or a provider's key can be read out of the text: as it is, unescaped, or out of base64."""
        for _ in range(_NESTED):
            if self._finds(text.encode("utf-8", "surrogatepass")):
                return True
            unescaped = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _SHORT.get(found[2], found[2]), text)
            if unescaped == text:
                break
            text = unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return False

    def hides_in_base64(self, text: str) -> bool:
        """What the text is base64 of gives a secret away."""
        found = _BASE64.fullmatch(text)
        if found is None:
            return False
        packed = re.sub(r"\s", "", found[1]).rstrip("=").translate({45: "+", 95: "/"})
        packed = packed[: len(packed) - (len(packed) % 4 == 1)]
        return self._finds(base64.b64decode(packed + "=" * (-len(packed) % 4)))

    def _finds(self, data: bytes) -> bool:
        return _without_keys(data) != data or self._without_known(data) != data

    def _without_known(self, data: bytes) -> bytes:
        for plain, spelled, in_base64 in self._known.values():
            if plain in data:  # nobody escapes letters and digits; `gives_away` is there for who does
                data = spelled.sub(_masked, data)
            data = in_base64.sub(_masked, data)
        return data


def _parsed(data: bytes) -> Any:
    """An object or an array; None if it is neither."""
    if data[:1] not in (b"{", b"[") and data.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _mask(size: int) -> bytes:
    if size < _MIN_SECRET:
        return b"*" * size
    return _BEGIN.encode() + b"*" * (size - _MIN_SECRET) + _END.encode()


def _masked(found: re.Match[bytes]) -> bytes:
    return _mask(len(found[0]))


def _masked_if_random(found: re.Match[bytes]) -> bytes:
    return found[1] + (_mask(len(found[2])) if _is_random(found[2]) else found[2])


def _without_keys(data: bytes) -> bytes:
    return _KEYS.sub(lambda found: _masked(found) if _is_random(found[0]) else found[0], data)


def _without_ids(data: bytes) -> bytes:
    return _IDS.sub(lambda found: _masked(found) if _has_digits(found[0]) else found[0], data)


def _tells_of_an_error(frame: Any) -> bool:
    if not isinstance(frame, dict):
        return False
    told = cast("dict[str, Any]", frame)
    return bool(told.get("error")) or told.get("type") in ("error", "response.failed")


def _is_random(data: bytes) -> bool:
    """It has a long run of letters and digits mixed: no words, no name."""
    if data.startswith(b"hf_"):
        return data.lower() != data  # these may be letters alone
    if data.startswith(b"AIza"):
        return True
    return any(_has_digits(run[0]) and re.search(rb"[A-Za-z]", run[0]) is not None for run in _RUN.finditer(data))


def _has_digits(data: bytes) -> bool:
    return len(re.findall(rb"\d", data)) >= 2


def _without(data: bytes, is_hidden: Callable[[tuple[str, ...]], bool]) -> bytes:
    """The JSON without the text at these places, each a tuple of an object's keys; arrays count no step. What is no JSON stays."""
    if not any(f'"{name}"'.encode() in data for name in _ID_FIELDS) or _parsed(data) is None:
        return data
    pieces: list[bytes] = []
    path: list[str | None] = []  # a key for each object we are in, None for an array
    is_key = False
    done = 0
    for found in _TOKENS.finditer(data):
        token = found[0]
        match token:
            case b"{" | b"[":
                path.append("" if token == b"{" else None)
                is_key = token == b"{"
            case b"}" | b"]":
                path.pop()
            case b",":
                is_key = path[-1] is not None
            case b":":
                is_key = False
            case _ if is_key:
                path[-1] = json.loads(token)
            case _:
                steps = tuple(step for step in path if step is not None)
                if steps and len(token) > 2 and is_hidden(steps):
                    pieces += [data[done : found.start() + 1], _mask(len(token) - 2)]
                    done = found.end() - 1
    return b"".join((*pieces, data[done:]))


def _plainest(secret: str) -> bytes:
    return max(re.findall(rb"[A-Za-z0-9]*", secret.encode("utf-8", "surrogatepass")), key=len)


def _spelled(secret: str) -> bytes:
    """How it may stand in JSON of any writer, in JSON inside JSON (as a call's arguments are), in an address and in HTML.

    Backslashes are taken all at once and never given back, so the search is linear in the data. How many stand for one is not counted.
    """
    return rb"(?<!\\)" + b"".join(map(_spelled_character, re.sub(r"\\+", r"\\", secret)))


def _spelled_character(character: str) -> bytes:
    raw = character.encode("utf-8", "surrogatepass")
    units = character.encode("utf-16-be", "surrogatepass").hex()
    escaped = b"".join(rb"\\*+u(?i:%b)" % units[n : n + 4].encode() for n in range(0, len(units), 4))
    quoted = b"".join(b"%%(?i:%02x)" % byte for byte in raw)
    forms = [escaped, rb"\\++" if character == "\\" else rb"\\*+" + re.escape(raw), quoted]
    forms += [rb"\\*+" + short.encode() for short, meant in _SHORT.items() if meant == character]
    if character == " ":
        forms.append(rb"\+")
    if (entity := html.escape(character)) != character:
        forms.append(re.escape(entity.encode()))
    return b"(?:" + b"|".join(forms) + (b")++" if character == "\\" else b")")


def _in_base64(secret: str) -> bytes:
    """As it stands in the base64 of anything that contains it: three ways, by where among three bytes it begins."""
    data = secret.encode("utf-8", "surrogatepass")
    ways: list[bytes] = []
    for skipped in range(3):
        packed = base64.b64encode(bytes(skipped) + data)
        begin = (0, 2, 3)[skipped]  # what holds bits of what is before and after is left out
        end = (skipped + len(data)) * 8 // 6
        ways.append(re.escape(packed[begin:end]).replace(rb"\+", b"[-+]").replace(b"/", rb"(?:\\*+/|_)"))
    return b"|".join(ways)
