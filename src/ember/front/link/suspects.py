"""Finds the request that crashes the engine, so that it cannot crash it again and again when clients retry it.

All requests in flight at a crash are suspects. A suspect that is sent again runs while no other suspect does. If the
engine crashes again, that request is the culprit and is refused from then on. A crash costs a boot, so suspects are
tried one by one, which costs one more crash. A bisection would cost one for each halving.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from hashlib import blake2b

import msgspec

from ember.wire import Generate, Pool, encode_front

MAX_SUSPECTS = 4096  # the oldest are forgotten first
MEMORY_S = 3600.0  # a suspect that does not come back is forgotten
MAX_CRASHES = 2


class Suspects:
    """Counts the crashes that each request was part of. Requests are told apart by their `fingerprint`."""

    def __init__(self) -> None:
        self._crashes: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # fingerprint -> crashes, time of the last

    def __bool__(self) -> bool:
        """Whether there are suspects. Without them no fingerprints are made."""
        return bool(self._crashes)

    def blame(self, fingerprints: list[bytes]) -> None:
        """Suspect the requests that were in flight at a crash. Equal ones are one suspect."""
        now = time.monotonic()
        for key in dict.fromkeys(fingerprints):
            count, _ = self._crashes.pop(key, (0, 0.0))
            self._crashes[key] = count + 1, now
        while len(self._crashes) > MAX_SUSPECTS:
            self._crashes.popitem(last=False)

    def clear(self, key: bytes) -> None:
        """Clear a request that was answered to its end."""
        self._crashes.pop(key, None)

    def is_suspect(self, key: bytes) -> bool:
        return self._count(key) > 0

    def is_guilty(self, key: bytes) -> bool:
        return self._count(key) >= MAX_CRASHES

    def _count(self, key: bytes) -> int:
        count, at = self._crashes.get(key, (0, 0.0))
        if count and time.monotonic() - at > MEMORY_S:
            self.clear(key)
            return 0
        return count


def fingerprint(request: Generate | Pool) -> bytes:
    """Equal for requests that ask for the same with equal prompts and parameters. Raises ValueError when a value cannot
    be encoded."""
    encoded = encode_front(msgspec.structs.replace(request, request_id=0, cache_salt=None, priority=0))
    return blake2b(encoded, digest_size=16).digest()
