"""Cross-origin requests: refused by every browser unless ALLOWED_ORIGINS names where they come from."""

from __future__ import annotations

from aiohttp import web

from ember.settings import Settings

_METHODS = "GET, POST, DELETE, OPTIONS"
_HEADERS = "authorization, content-type, x-request-id"
_MAX_AGE_S = "600"


def cors_headers(settings: Settings, http: web.BaseRequest) -> dict[str, str]:
    """What a browser must read to let a page of an allowed origin see the answer. Credentials are keys, not cookies."""
    origin = http.headers.get("Origin")
    allowed = settings.allowed_origins
    if origin is None or not allowed:
        return {}
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
    headers = {"Vary": "Origin"}  # a cache must not give one origin's answer to another
    if origin in allowed:
        headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "*"}
    return headers


def is_preflight(http: web.BaseRequest, headers: dict[str, str]) -> bool:
    """Whether a browser only asks what it may send, which it does without a key; the answer is put into `headers`."""
    if http.method != "OPTIONS" or "Access-Control-Request-Method" not in http.headers:
        return False
    if "Access-Control-Allow-Origin" not in headers:
        return False
    asked = http.headers.get("Access-Control-Request-Headers", _HEADERS)
    headers |= {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": asked if asked.isprintable() and len(asked) <= 1000 else _HEADERS,
        "Access-Control-Max-Age": _MAX_AGE_S,
    }
    return True
