"""The page's document: one HTML text with its styles and its script in it, made from `files/` at the first request.

The document asks no other host for anything, and its Content-Security-Policy lets the browser run and load nothing but
what is in it. The scripts of `SCRIPTS` are one module, in this order, and share its scope.
"""

from __future__ import annotations

import gzip
import hashlib
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Server = Literal["worker", "platform"]

FILES = Path(__file__).parent / "files"
SCRIPTS = (
    "dom.js",
    "server.js",
    "markdown.js",
    "code.js",
    "settings.js",
    "answer.js",
    "chat.js",
    "pooling.js",
    "boot.js",
    "engine.js",
    "queue.js",
    "main.js",
)
STYLES = ("base.css", "chat.css", "panels.css")


@dataclass(frozen=True)
class Document:
    """The document for one kind of server, ready to be sent."""

    text: bytes
    compressed: bytes
    tag: str  # the ETag, the same for both encodings
    policy: str  # the Content-Security-Policy


@cache
def document(server: Server) -> Document:
    """Make the document. It is kept for the life of the process."""
    style = "\n".join(_file(name) for name in STYLES)
    script = "\n".join(_file(name) for name in SCRIPTS)
    page = _file("page.html")
    for mark, part in (("{{server}}", server), ("{{style}}", style), ("{{script}}", script)):
        assert page.count(mark) == 1, f"page.html has {mark} {page.count(mark)} times"
        page = page.replace(mark, part)
    text = page.encode()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_source(script)}'",
            f"style-src '{_source(style)}'",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return Document(text, gzip.compress(text, mtime=0), f'W/"{hashlib.sha256(text).hexdigest()[:32]}"', policy)


def _file(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """An inline script or style as a source of a Content-Security-Policy."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
