"""Cross-origin requests (CORS): browsers refuse them unless ALLOWED_ORIGINS has their origin."""

from __future__ import annotations

from aiohttp import web

from ember.settings import Settings

_METHODS = "GET, POST, DELETE, OPTIONS"
_HEADERS = "authorization, content-type, x-request-id"
_MAX_AGE_S = "600"


def cors_headers(settings: Settings, http: web.BaseRequest) -> dict[str, str]:
    """The headers with which a browser lets a page of an allowed origin read the response. Cookies are not used."""
    origin = http.headers.get("Origin")
    allowed = settings.allowed_origins
    if origin is None or not allowed:
        return {}
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
    headers = {"Vary": "Origin"}  # caches must not serve one origin's response to another
    if origin in allowed:
        headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "*"}
    return headers


def is_preflight(http: web.BaseRequest, headers: dict[str, str]) -> bool:
    """Whether this is a preflight request, which has no key. The headers of its response are added to `headers`."""
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
