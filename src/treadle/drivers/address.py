"""Where a server is, and how to get there: addresses, keys, proxies, certificates. What the environment says, read once here.

Proxies come from `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` and are never used for loopback; private CAs from
`SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from treadle.errors import UsageError

__all__ = ["ApiKey", "check_url", "is_loopback", "proxy_for", "ssl_context", "usable_key"]

ApiKey = str | Callable[[], str | None] | None
"""A key, or a function that returns it when a request is made, or None for servers that want none."""


def usable_key(api_key: ApiKey) -> str | None:
    """The key, without the line end that a file or a shell leaves behind it.

    Raises:
        UsageError: It holds a character that no header can carry. The key is not shown.
    """
    key = api_key() if callable(api_key) else api_key
    if key is None:
        return None
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            "the API key holds a character that HTTP cannot carry", hint="Was it copied or read whole? Keys are printable ASCII."
        )
    return key


def check_url(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        UsageError: It is not an http or https address with a host, or it holds a user, a password or a query, which
            are not shown.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        if valid and ("@" in parts.netloc or parts.query or parts.fragment):
            raise UsageError(
                f"the address of {parts.hostname} holds a user, a password, a query or a fragment",
                hint="Pass keys as api_key= or headers=, and nothing but the path in the address.",
            )
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{url!r} is not an HTTP address", hint="Use http://host:port/v1 or https://host/v1.")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """The address is on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this address; None for loopback whatever it says.

    Raises:
        UsageError: The environment names a SOCKS proxy, which the client does not speak; going around it
            silently would show your traffic to whoever it was meant to be hidden from.
    """
    if is_loopback(url):
        return None
    proxies = urllib.request.getproxies_environment()
    parts = urlsplit(url)
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _bypasses_proxy(parts.netloc.rpartition("@")[2], proxies):
        return None
    if not proxy.startswith(("http://", "https://")):
        if "://" in proxy:
            raise UsageError(
                f"the proxy for {parts.scheme} addresses is not an HTTP one ({proxy.partition('://')[0]})",
                hint="Set HTTPS_PROXY to an http:// address, or name the host in NO_PROXY.",
            )
        proxy = f"http://{proxy}"
    return proxy


_bypasses_proxy: Callable[[str, dict[str, str]], bool] = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # pyright: ignore


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """TLS settings with the CAs of the environment; SSL_CERT_FILE and SSL_CERT_DIR are read by OpenSSL itself."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    context = ssl.create_default_context()
    if bundle and not os.environ.get("SSL_CERT_FILE"):
        context.load_verify_locations(bundle)
    return context
