"""Validators of settings that types do not describe. Each raises ValueError with one line that says what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from ember.untrusted_json import loads

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")  # only characters that a URL does not percent-encode
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?")

# The values of TASK, and the RUNNER and CONVERT that each means.
TASKS = {
    "auto": ("auto", "auto"),
    "generate": ("generate", "auto"),
    "embed": ("pooling", "embed"),
    "embedding": ("pooling", "embed"),
    "classify": ("pooling", "classify"),
    "reward": ("pooling", "reward"),
    "score": ("pooling", "auto"),
}


def http_url(value: str | None) -> str | None:
    """Check an http(s) URL with a host."""
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # an invalid port or IPv6 address
        is_usable = False
    if not is_usable or any(character.isspace() for character in value):
        raise ValueError("it must be an http(s) address, such as http://collector:4318/v1/traces")
    return value


def origin_list(value: Any) -> Any:
    """Split origins separated by commas, or read a JSON list of them, as vLLM does."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return loads(value)
        except ValueError:
            return [value]
    return value


def origin(value: str) -> str:
    """Check an origin: `*`, or scheme://host[:port]. Returns it in lower case, as browsers send it."""
    plain = value.strip().lower().removesuffix("/")
    if plain != "*" and not _ORIGIN.fullmatch(plain):
        raise ValueError(
            f"{value[:100]!r} is not an origin: it must be scheme://host[:port] without a path, such as "
            "https://example.com, or * for all"
        )
    return plain


def store(value: str) -> str:
    """Check the store of the platform's jobs: memory or sqlite:FILE."""
    if value != "memory" and not (value.startswith("sqlite:") and value != "sqlite:"):
        raise ValueError("it must be memory or sqlite:FILE")
    return value


def url_path(value: str) -> str:
    """Check a path that begins with a slash."""
    if not value.startswith("/"):
        raise ValueError("it must begin with a slash, such as /ping")
    return value


def root_path(value: str | None) -> str | None:
    """Check a prefix of all paths. Returns it without a final slash, or None if it is empty."""
    plain = (value or "").rstrip("/")
    if plain and not _ROOT_PATH.fullmatch(plain):
        raise ValueError("it must be a path of letters, digits, '.', '_', '~' and '-' that begins with a slash: /llm")
    return plain or None


def json_object(example: str) -> Callable[[Any], Any]:
    """A validator for a JSON object like `example`, given as text or as a mapping of the YAML file."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = loads(value)
            except ValueError as error:
                raise ValueError(f"not valid JSON: {error}; it must be a JSON object, such as {example}") from None
        if not isinstance(value, dict):
            raise ValueError(f"it must be a JSON object, such as {example}")
        return value

    return check
