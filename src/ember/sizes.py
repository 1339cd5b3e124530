"""Sizes in words, for messages."""

from __future__ import annotations


def binary_size(num_bytes: int) -> str:
    """A size in words, such as 1.5 GiB or 24.0 MiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
