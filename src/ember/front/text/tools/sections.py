"""The loop over the calls of a section, for the formats in which each call has marks of its own."""

from __future__ import annotations

from collections.abc import Callable

from ember.front.text.tools.scanner import CallScanner, Steps


def read_section(
    scanner: CallScanner,
    opener: str | None,
    take_opener: Callable[[CallScanner], Steps[str | None]],
    read_call: Callable[[CallScanner, str], Steps[bool]],
    end: str | None,
) -> Steps[bool]:
    """Read the calls of a section and the mark at its end, where the format has one. False if there is no call.

    `opener` is the mark that began the first call, if that was taken already. `take_opener` takes the mark that begins
    the next call, and `read_call` reads what stands behind it. What follows the last call and is neither a call nor the
    end is read again as something else.
    """
    num_calls = 0
    while True:
        if opener is None:
            yield from scanner.blanks()
            opener = yield from take_opener(scanner)
        if opener is None:
            break
        if not (yield from read_call(scanner, opener)):
            if num_calls:
                scanner.go_back()
            return num_calls > 0
        num_calls += 1
        opener = None
        scanner.begin()
    if num_calls == 0:
        return False
    if end is None or not (yield from scanner.take(end)):
        scanner.go_back()
    return True
