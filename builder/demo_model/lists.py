"""Word lists written as one text."""

from __future__ import annotations


def listed(text: str, separator: str | None = None) -> list[str]:
    """The words of a text, or its parts between separators."""
    return text.split(separator)
