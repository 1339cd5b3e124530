"""The answer to a GET or HEAD for the page: who gets it, and its status, headers and body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ember.page.document import Server, document

HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-cache",  # a browser may keep it, and asks with the ETag whether it is still the same
    "Vary": "Accept, Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class PageAnswer:
    """An answer, for either server to send."""

    status: int
    headers: dict[str, str]
    body: bytes


def page_answer(server: Server, headers: Mapping[str, str]) -> PageAnswer | None:
    """The answer to a GET or HEAD with these request headers (of any case, if the mapping ignores it); None for a
    client that prefers JSON."""
    if not prefers_page(headers.get("Accept", "*/*")):
        return None
    page = document(server)
    sent = {**HEADERS, "ETag": page.tag, "Content-Security-Policy": page.policy}
    known = [tag.strip().removeprefix("W/") for tag in headers.get("If-None-Match", "").split(",")]
    if "*" in known or page.tag.removeprefix("W/") in known:
        del sent["Content-Type"]
        return PageAnswer(304, sent, b"")
    if _quality(headers.get("Accept-Encoding", ""), ("gzip", "*"))[0] > 0:
        return PageAnswer(200, {**sent, "Content-Encoding": "gzip"}, page.compressed)
    return PageAnswer(200, sent, page.text)


def prefers_page(accept: str) -> bool:
    """Whether a client with this Accept header takes HTML at least as gladly as JSON. Of equal qualities the type that
    is named decides over one that a range includes: many JSON clients send `application/json, */*`."""
    html = _quality(accept, ("text/html", "text/*", "*/*"))
    return html[0] > 0 and html >= _quality(accept, ("application/json", "application/*", "*/*"))


def _quality(header: str, names: tuple[str, ...]) -> tuple[float, int]:
    """The quality that a header gives to the first of `names` in it, and how early that is in `names`; 0 for none."""
    given = {}
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given[name] = next((_number(each[2:]) for each in parameters if each.startswith("q=")), 1.0)
    for place, name in enumerate(names):
        if name in given:
            return given[name], len(names) - place
    return 0.0, 0


def _number(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
