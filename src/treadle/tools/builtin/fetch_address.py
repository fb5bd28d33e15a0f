"""Which addresses `fetch` may contact: one normal form of a URL, and the networks that are not the public internet.

Every decision is made on the normal form, and it is the text that is sent. So what an approval rule is held against, what a
person is shown and what is contacted cannot differ.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn, TypeAlias
from urllib.parse import unquote_to_bytes, urljoin

from msgspec import Struct

from treadle.errors import ToolError, UsageError

__all__ = ["Address", "Allowed", "IPAddress", "normal_url"]

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URL_CHARS = 8_000
_MAX_ENCODINGS = 6
_AUTHORITY = re.compile(r"(https?)://([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.IGNORECASE)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")  # an underscore is no host name by the book, and hosts have it
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label like this makes the whole an IPv4 address: URL standard, section 3.5
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_AS_THEY_ARE = frozenset("!$&'()*+,;=:@/")  # in a path: RFC 3986, section 3.3
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}|[\s\S]")

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(text: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(each) for each in text.split())


# Written out from the IANA special-purpose registries (RFC 6890), because what `ipaddress` calls global differs between
# Python versions.
_PRIVATE = _networks("10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 ::1/128 fc00::/7")
_NEVER_PUBLIC = _networks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 "
    "192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 "
    "2001::/23 2001:db8::/32 2002::/16 3fff::/20"  # 2001::/23 holds Teredo; 2002::/16 is 6to4: IPv4 inside, and obsolete
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")  # all that is given out; everything else is special
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # how an IPv6-only network reaches IPv4: RFC 6052
# A cloud machine's own services, which hand out its keys. Some are inside networks that `allow_private` opens.
_METADATA = _networks("169.254.0.0/16 100.100.100.200/32 168.63.129.16/32 fd00:ec2::/32 fd20:ce::/64")


class Address(Struct, frozen=True, kw_only=True):
    """A URL in normal form, and what it says.

    Attributes:
        url: ASCII. Lower-case scheme and host, no user, no default port, no fragment, no dot segments.
        host: A name in its ASCII form without a dot at its end, or an IP address (IPv6 without brackets).
        ip: The host, if it is an IP address.
    """

    url: str
    scheme: str
    host: str
    port: int
    ip: IPAddress | None

    def same_site(self, other: Address) -> bool:
        """The same host and port, or the same host on the two default ports."""
        ports = {self.port, other.port}
        return self.host == other.host and (len(ports) == 1 or ports == {80, 443})


def normal_url(url: str, *, base: Address | None = None) -> Address:
    """The normal form of an absolute URL, or of one that is relative to `base`.

    What two programs could read in two ways is refused, not repaired.

    Raises:
        ToolError: It is not an http or https URL, or it is one that hides where it leads. Kind `invalid_input`.
    """
    url = url.strip(" ")
    if len(url) > _MAX_URL_CHARS:
        _refuse(f"the URL is longer than {_MAX_URL_CHARS:,} characters", "Use a shorter one.")
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) <= 0xDFFF for char in url):
        _refuse("the URL holds a line break, a tab or another control character", "Write it in one line without them.")
    if "\\" in url:
        _refuse("the URL holds a backslash", "Write `/` between the parts of the path, or %5C if you mean the character.")
    if base is not None and not _AUTHORITY.match(url):
        try:
            # With more slashes, it depends on the program whether the next part is a host.
            url = "" if url.startswith("///") else urljoin(base.url, url)
        except ValueError:
            url = ""
    match = _AUTHORITY.match(url)
    if match is None:
        scheme = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*(?=:)", url)
        found = f"the scheme is `{scheme[0][:20].lower()}`" if scheme else "there is no scheme"
        _refuse(f"{found}: that cannot be fetched", "Use an address that begins with https:// or http://.")
    scheme, authority, path, query = match[1].lower(), match[2], match[3], match[4]
    host, ip, given_port = _authority(authority)
    port = given_port or _DEFAULT_PORTS[scheme]
    shown = f"[{host}]" if isinstance(ip, ipaddress.IPv6Address) else host
    if port != _DEFAULT_PORTS[scheme]:
        shown += f":{port}"
    target = _path(path) + ("" if not query else "?" + _escaped(query, _AS_THEY_ARE | {"?"}))
    return Address(url=f"{scheme}://{shown}{target}", scheme=scheme, host=host, port=port, ip=ip)


def _authority(text: str) -> tuple[str, IPAddress | None, int | None]:
    """Host, the same as an IP address, and port, as far as they are there."""
    if "@" in text:
        _refuse("the URL holds a user name or password before `@`", "Leave them out: nothing that needs a login can be fetched.")
    if "%" in text:
        _refuse("the host is percent-encoded or has a zone", "Write the host as it is.")
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?", text, re.ASCII)
    if match is None:
        _refuse("the host or the port cannot be read", "Write it as https://host/ or https://host:port/.")
    port = int(match[2]) if match[2] and len(match[2]) <= 5 else None
    if match[2] and (port is None or not 1 <= port <= 65_535):
        _refuse("the port is out of range", "A port is a number from 1 to 65535.")
    if match[1].startswith("["):
        try:
            ip = ipaddress.IPv6Address(match[1][1:-1])
        except ValueError:
            _refuse("what is in the brackets is no IPv6 address", "Write it as in http://[2001:db8::1]/.")
        return ip.compressed, ip, port
    host = _host(match[1])
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return host, None, port
    try:
        return host, ipaddress.IPv4Address(host), port
    except ValueError:
        _refuse("the host is a number that is no IPv4 address in its usual form", "Write four decimal numbers, as in 192.0.2.1.")


def _host(text: str) -> str:
    """The name in ASCII and lower case, without the dot at its end."""
    if not text.isascii():
        import idna  # comes with the HTTP client, and is what it uses

        try:
            text = idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            _refuse("the host is no valid international name", "Check it for characters that only look right.")
    host = text.lower().removesuffix(".")
    if not host:
        _refuse("there is no host", "Use an address such as https://example.com/page.")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        _refuse("the host is no valid name", "Letters, digits, `-` and dots make a host name.")
    return host


def _path(text: str) -> str:
    """The path with each character escaped as it must be and no more, and without `.` and `..`: RFC 3986, section 6.2.2."""
    path = _escaped(text, _AS_THEY_ARE)
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            _check_part(segment)
            kept.append(segment)
    if segments and segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _check_part(segment: str) -> None:
    """Refuse a part of a path that some servers read as `..`: `..;x`, `..%00`, `%252e%252e`, `x%2f..`. A way around a rule."""
    data = segment.encode()
    for _ in range(_MAX_ENCODINGS):
        if any(part.startswith(b"..") for part in re.split(rb"[/\\]", data)):
            _refuse("a part of the path begins with `..`, plain or encoded", "Write the path without `..`.")
        plain = unquote_to_bytes(data)
        if plain == data:
            return
        data = plain
    _refuse("a part of the path is percent-encoded again and again", "Write it encoded once.")


def _escaped(text: str, as_they_are: frozenset[str]) -> str:
    def one(match: re.Match[str]) -> str:
        char = match[0]
        if len(char) == 3:
            plain = chr(int(char[1:], 16))
            return plain if plain in _UNRESERVED else char.upper()
        if char in _UNRESERVED or char in as_they_are:
            return char
        return "".join(f"%{byte:02X}" for byte in char.encode())

    return _ESCAPE.sub(one, text)


class _Entry(Struct, frozen=True, kw_only=True):
    host: str | None
    network: _Network | None
    port: int | None


class Allowed:
    """What may be contacted besides the public internet.

    Args:
        private: Private networks and this machine, but not the services that hand out a cloud machine's keys.
        allow: Hosts, IP addresses and networks, each also with a port: `localhost:8080`, `wiki.corp`, `10.1.0.0/16`,
            `[::1]:8080`. A host's entry lets its name lead to a private network.

    Raises:
        UsageError: An entry is none of these.
    """

    def __init__(self, *, private: bool = False, allow: Sequence[str] = ()) -> None:
        self._private = private
        if isinstance(allow, str):
            raise UsageError("fetch_tool(allow=...) is one string", hint='Pass a sequence, such as ("localhost:8080",).')
        self._entries = tuple(_entry(text) for text in allow)

    def check_url(self, address: Address) -> None:
        """Look at what can be seen before any name is looked up.

        Raises:
            ToolError: The port or the IP address may not be contacted. Kind `permission`.
        """
        named = any(
            entry.port == address.port and (entry.host == address.host or _is_in(address.ip, entry.network))
            for entry in self._entries
        )
        # The ports below 1024 belong to services that are not the web, and some of them act on lines of plain text.
        if address.port < 1024 and address.port not in _DEFAULT_PORTS.values() and not named:
            raise ToolError(
                f"port {address.port} of {address.host} may not be contacted: only 80, 443 and those from 1024 on.",
                hint="The program's author can allow it: `fetch_tool(allow=[host:port])`.",
                kind="permission",
            )
        if address.ip is not None:
            self.check_ip(address.ip, address)

    def check_ip(self, ip: IPAddress, address: Address, *, source: IPAddress | None = None) -> None:
        """Look at an IP address that is about to be connected to, on behalf of `address`.

        Args:
            source: This machine's address on the way there, if known. Itself and its neighbours may have public addresses too.

        Raises:
            ToolError: It may not be. Kind `permission`.
        """
        if not self._may_contact(ip, address, source):
            leads = "is" if address.ip is not None else "leads to"
            raise ToolError(
                f"{address.host} {leads} a private, local or reserved address, which may not be contacted. "
                "Only the public internet can be fetched.",
                hint="The program's author can allow it: `fetch_tool(allow=[host])`.",
                kind="permission",
            )

    def _may_contact(self, ip: IPAddress, address: Address, source: IPAddress | None) -> bool:
        if getattr(ip, "scope_id", None) is not None:
            return False
        ip = _unwrapped(ip)
        may_be_private = self._private
        for entry in self._entries:
            if entry.port not in (None, address.port):
                continue
            if _is_in(ip, entry.network):
                return True
            may_be_private = may_be_private or entry.host == address.host
        if any(_is_in(ip, network) for network in _METADATA):
            return False
        if _is_public(ip):
            return may_be_private or source is None or not _is_near(ip, _unwrapped(source))
        return may_be_private and any(_is_in(ip, network) for network in _PRIVATE)


def _is_near(ip: IPAddress, source: IPAddress) -> bool:
    """This machine itself, or with IPv6 a neighbour: networks there have 64 bits (RFC 4291, section 2.5.1)."""
    if ip.version == source.version == 6:
        return int(ip) >> 64 == int(source) >> 64
    return ip == source


def _is_public(ip: IPAddress) -> bool:
    return (ip.version == 4 or ip in _GLOBAL_V6) and not any(_is_in(ip, network) for network in _NEVER_PUBLIC)


def _unwrapped(ip: IPAddress) -> IPAddress:
    """The IPv4 address that packets for this IPv6 address would reach, where it is one in another form."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    return ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip)


def _is_in(ip: IPAddress | None, network: _Network | None) -> bool:
    return ip is not None and network is not None and ip.version == network.version and ip in network


def _entry(text: str) -> _Entry:
    with suppress(ValueError):
        return _Entry(host=None, network=ipaddress.ip_network(text), port=None)
    try:
        host, ip, port = _authority(text)
        return _Entry(host=host if ip is None else None, network=None if ip is None else ipaddress.ip_network(ip), port=port)
    except ToolError:
        raise UsageError(
            f"fetch_tool(allow=...): {text!r} is no host, IP address or network",
            hint='Write "wiki.corp", "localhost:8080", "10.1.0.0/16" or "[::1]:8080".',
        ) from None


def _refuse(reason: str, advice: str) -> NoReturn:
    raise ToolError(f"{reason}. {advice} Nothing was sent.", kind="invalid_input")
