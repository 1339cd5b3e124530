"""Access control. With keys, a request needs one. Without keys, all requests are served except those of web pages.

A web page of any site can send requests to localhost from a browser on this machine, and a platform without keys would
run them. Browsers name the origin of a request: in `Origin` for requests of scripts that can change something, in
`Sec-Fetch-Site` for others (an image's or a link's GET). A site whose DNS name resolves to 127.0.0.1 (DNS rebinding)
has the same origin for the browser, so `Host` is checked too.
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
    """Checks requests. `keys`: one is required of clients and workers. `host`: the address that the platform binds."""

    def __init__(self, keys: Sequence[str], host: str) -> None:
        self._keys = [_digest(key.encode()) for key in keys]
        self._names = {host.lower(), "localhost"} if _is_loopback(host) else None  # allowed in `Host`; None: any

    def check(self, http: web.Request) -> None:
        """Raise PlatformError 401 or 403 if the request is not allowed."""
        if self._keys:
            if not self._has_key(http):
                raise PlatformError(401, "a valid key is required: `Authorization: Bearer <key>`")
            return
        origin, host = http.headers.get("Origin"), http.headers.get("Host")
        if origin is not None and _netloc(origin) != (host or "").lower():
            raise PlatformError(403, f"requests of web pages of another origin ({origin[:100]}) are refused; {_HOW}")
        if http.headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin"):
            raise PlatformError(403, f"requests of web pages of another origin are refused; {_HOW}")
        if host is not None and not self._is_own_name(host):
            raise PlatformError(403, f"this platform serves only this machine, not under the name {host[:100]}; {_HOW}")

    def _has_key(self, http: web.Request) -> bool:
        """Whether the request has a key, compared in constant time. Clients send `Bearer KEY`, Anthropic's and Azure's
        a header of their own, and workers the bare key."""
        given = [http.headers.get(name, "") for name in ("Authorization", "x-api-key", "api-key")]
        if given[0][:7].lower() == "bearer ":
            given[0] = given[0][7:]
        digests = [_digest(key.strip().encode("utf-8", "surrogatepass")) for key in given]
        matches = [hmac.compare_digest(digest, key) for digest in digests for key in self._keys]
        return any(matches)

    def _is_own_name(self, host: str) -> bool:
        """Whether a `Host` header (with a port) is allowed. Addresses are: only names can be made to resolve to us."""
        if self._names is None:
            return True
        name = (_hostname(f"//{host}") or "").rstrip(".")
        return name in self._names or name.endswith(".localhost") or _is_address(name)


def _netloc(url: str) -> str | None:
    """Host and port of an origin, in lower case; None for `null` and for an invalid URL."""
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
    """The digest of a key. Digests have equal lengths, so that a comparison does not reveal the key's length."""
    return hashlib.sha256(key).digest()
