"""Taking secrets out of what is written: by name of header, by name in a query, by value, and by the look of keys and ids.

A secret becomes as many asterisks as it had bytes, so that lengths and the boundaries of reads stay as they were.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus

__all__ = ["KEPT_ANSWER_HEADERS", "KEPT_REQUEST_HEADERS", "Scrubber", "environment_secrets", "kept", "sent_secrets"]

KEPT_REQUEST_HEADERS = frozenset({"accept", "anthropic-beta", "anthropic-version", "content-type", "openai-beta"})
"""All other headers of a request are left out: they hold keys and cookies, or what no test should depend on."""

KEPT_ANSWER_HEADERS = frozenset({"content-type", "date", "retry-after", "retry-after-ms", "server", "x-should-retry"})
"""All other headers of an answer are left out: cookies, ids of requests and organizations, rate limits of an account."""

_HARMLESS = KEPT_REQUEST_HEADERS | {"accept-encoding", "connection", "content-length", "host", "user-agent"}
_MIN_SECRET = 6  # what is shorter stands in too many words
_MIN_IN_ENVIRONMENT = 8  # of a variable we only guess that it is one
_NESTED = 4  # JSON in JSON in JSON
_NAMES_A_SECRET = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_QUERY = re.compile(rb"(?i)(?<=[?&])((?:api[-_]?)?key|(?:access_)?token|sig(?:nature)?|secret|password)=([^&#\s\"']*)")
_LOOKS = re.compile(
    rb"(?:(?<![A-Za-z0-9])(?:sk|rk|pk|gsk|xai|hf|r8|pplx|tgp|nvapi|ghp|gho)[-_][A-Za-z0-9_*-]{16,}"  # keys
    rb"|AIza[A-Za-z0-9_-]{30,}"
    rb"|(?<![A-Za-z0-9])(?:org|proj|user|acct|req)[-_][A-Za-z0-9]{8,}"  # ids of accounts and requests
    rb"|(?<=Bearer )[A-Za-z0-9._~+/=-]{6,})"
)
_FIELDS = re.compile(rb'"(?:request_id|requestId|organization(?:_id)?|org_id|user_id|account_id)"\s*:\s*"([^"\\]+)"')


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


class Scrubber:
    """Knows the secrets, and takes them out.

    Args:
        named: Secrets that nothing else gives away.
    """

    def __init__(self, named: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self._values: re.Pattern[bytes] | None = None
        self.add(named)
        self.add(environment_secrets())

    def add(self, secrets: Iterable[str]) -> None:
        """Know these, too. What is shorter than 6 characters is not looked for: it would be found in ordinary words."""
        new = {secret for secret in secrets if len(secret) >= _MIN_SECRET} - self._known
        if new:
            self._known |= new
            spelled = sorted({form for secret in self._known for form in _spellings(secret)}, key=len, reverse=True)
            self._values = re.compile(b"|".join(map(re.escape, spelled)))

    def clean(self, data: bytes) -> bytes:
        """The same number of bytes, with asterisks where secrets were."""
        if self._values is not None:
            data = self._values.sub(lambda found: b"*" * len(found[0]), data)
        data = _QUERY.sub(lambda found: found[1] + b"=" + b"*" * len(found[2]), data)
        data = _LOOKS.sub(lambda found: b"*" * len(found[0]), data)
        return _FIELDS.sub(lambda found: found[0].replace(found[1] + b'"', b"*" * len(found[1]) + b'"'), data)

    def clean_text(self, text: str) -> str:
        return self.clean(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")

    def gives_away(self, text: str) -> bool:
        """A known secret stands in the text, as it is."""
        return any(secret in text for secret in self._known)


def _spellings(secret: str) -> set[bytes]:
    """How it may stand in JSON, in JSON inside JSON (as a call's arguments are), in an address, and in base64 on its own."""
    forms = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
    for ascii_only in (True, False):
        form = secret
        for _ in range(_NESTED):
            form = json.dumps(form, ensure_ascii=ascii_only)[1:-1]
            forms |= {form, form.replace("/", "\\/")}
    return {form.encode("utf-8", "surrogatepass") for form in forms} | {base64.b64encode(secret.encode("utf-8", "surrogatepass"))}
