"""Who may call: with keys, whoever has one; without, everybody but web pages that were loaded from elsewhere.

A page in a browser on this machine can send requests to localhost, whatever site it is from, and a platform without
keys would run them. Browsers say where a request comes from: `Origin` with whatever can change something by a script,
`Sec-Fetch-Site` with the rest (an image's or a link's GET). A site whose name is made to mean 127.0.0.1 is no stranger
to the browser; it is known by that name, in `Host`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from aiohttp import web

from ember.platform.jobs import PlatformError

_HOW = "set a key (`--api-key`) and send it, or call from no web page"


class Access:
    """`keys` are asked of clients and workers alike. `host` is where the platform listens."""

    def __init__(self, keys: Sequence[str], host: str) -> None:
        self._keys = [_digest(key.encode()) for key in keys]
        self._names = {host.lower(), "localhost"} if _is_loopback(host) else None  # as which it may be known; None: any

    def check(self, http: web.Request) -> None:
        """Raises PlatformError 401 or 403."""
        if self._keys:
            if not self._has_key(http):
                raise PlatformError(401, "a key is asked for: `Authorization: Bearer <key>`")
            return
        origin, host = http.headers.get("Origin"), http.headers.get("Host")
        if origin is not None and _netloc(origin) != (host or "").lower():
            raise PlatformError(403, f"requests of web pages from elsewhere ({origin[:100]}) are refused; {_HOW}")
        if http.headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin"):
            raise PlatformError(403, f"requests of web pages from elsewhere are refused; {_HOW}")
        if host is not None and not self._is_own_name(host):
            raise PlatformError(403, f"this platform is for this machine alone, not known as {host[:100]}; {_HOW}")

    def _has_key(self, http: web.Request) -> bool:
        """Clients send `Bearer <key>`, workers the key alone. Every key is compared in constant time."""
        given = http.headers.get("Authorization", "").encode("utf-8", "surrogatepass")
        if given[:7].lower() == b"bearer ":
            given = given[7:]
        digest = _digest(given.strip())
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        return any(matches)

    def _is_own_name(self, host: str) -> bool:
        """Whether a `Host` (with its port) is one of ours. An address is: only names can be made to mean another."""
        if self._names is None:
            return True
        name = (_hostname(f"//{host}") or "").rstrip(".")
        return name in self._names or name.endswith(".localhost") or _is_address(name)


def _netloc(url: str) -> str | None:
    """Host and port of an origin, in lower case; None for `null` and what is no URL."""
    try:
        return urlsplit(url).netloc.lower() or None
    except ValueError:
        return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _digest(key: bytes) -> bytes:
    """Equal lengths, so that a comparison tells nothing of a key's length."""
    return hashlib.sha256(key).digest()
