"""Values of the parameters of a query, which are text."""

from __future__ import annotations

from collections.abc import Mapping

from ember.front.api.exchange import Request
from ember.front.errors import bad_request

_MOST_DIGITS = 9  # more are no number that a route takes


def check_query(raw_request: Request, *known: str) -> None:
    """Raises ApiError 400 for a parameter that the route does not know: a misspelt one would change what it does."""
    for name in raw_request.query:
        if name not in known:
            allowed = f"it knows {', '.join(map(repr, known))}" if known else "it knows none"
            raise bad_request(f"`{name[:64]}` is no query parameter of {raw_request.path}: {allowed}.", name[:64])


def whole_number(given: str, least: int, most: int) -> int | None:
    """The number, or None where the text is none from `least` to `most`."""
    if not (given.isascii() and given.isdecimal() and len(given) <= _MOST_DIGITS):
        return None
    return number if least <= (number := int(given)) <= most else None


def flag(
    query: Mapping[str, str], name: str, words: Mapping[str, bool], default: bool = False, place: str = ""
) -> bool:
    """Whether a parameter is set. Raises ApiError 400.

    `words`: those in small letters that it may be. `place`: what an error's `param` has before the name.
    """
    given = query.get(name)
    if given is None:
        return default
    if given.lower() not in words:
        raise bad_request(f"`{name}` must be true or false, got {given[:64]!r}.", place + name)
    return words[given.lower()]
