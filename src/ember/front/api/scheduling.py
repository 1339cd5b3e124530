"""What a request says about the engine's queue and its prefix cache."""

from __future__ import annotations

from typing import Protocol

from ember.front.api.sampling_ranges import INT64_MAX
from ember.front.errors import bad_request


class Scheduled(Protocol):
    """A body with these fields."""

    @property
    def priority(self) -> int | None: ...
    @property
    def cache_salt(self) -> str | None: ...


def requested_priority(request: Scheduled, header: str | None) -> int:
    """The header `X-Vllm-Priority` wins over the field. Raises ApiError 400."""
    if header is None:
        return request.priority or 0
    try:
        value = int(header)
    except ValueError:
        value = INT64_MAX + 1
    if not -INT64_MAX <= value <= INT64_MAX:
        raise bad_request(f"The header X-Vllm-Priority must be an integer, got {header[:64]!r}.", "priority")
    return value


def requested_cache_salt(request: Scheduled) -> str | None:
    """Requests with different salts share no cached prefix. Raises ApiError 400."""
    salt = request.cache_salt
    if salt is not None and (not 1 <= len(salt) <= 128 or any(char in salt for char in "@/\\\0")):
        raise bad_request("cache_salt must be a string of 1 to 128 characters without @, /, \\ and NUL.", "cache_salt")
    return salt
