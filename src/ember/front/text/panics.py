"""Panics of the tokenizers library, which are no Exceptions, and what the library writes about them by itself."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator

os.environ["RUST_BACKTRACE"] = "0"  # forty lines of the library's own insides, for each text that it gives up on

_WORDS = re.compile(rb"\n?thread '[^'\n]*'[^\n]* panicked at [^\n]*\n[^\n]*\n(?:note: [^\n]*\n)?")
_one_at_a_time = threading.Lock()


class TokenizerPanic(Exception):
    """The library failed on a text or on tokens: a regular expression that gives up, a character without a token, a
    decoder with a bug.

    What the library raises where it panics is no Exception: it would pass by every handler between here and the client.
    """

    def __init__(self) -> None:  # the library's message may hold the text
        super().__init__("the tokenizers library failed; where it panicked, standard error has its line")


def unless_panic(error: BaseException) -> BaseException:
    """The error itself, or a TokenizerPanic in its place."""
    return TokenizerPanic() if is_panic(error) or type(error) is Exception else error


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def without_panic_lines() -> Iterator[None]:
    """Keep from standard error what the library writes when it panics, for an error that will say it in one line.

    For the boot alone: the lines of other threads wait until the block ends.
    """
    if not hasattr(os, "memfd_create"):
        yield
        return
    with _one_at_a_time:
        yield from _kept_back()


def _kept_back() -> Iterator[None]:
    kept, written = os.dup(2), os.memfd_create("stderr")
    os.dup2(written, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        size = os.fstat(written).st_size
        rest = _WORDS.sub(b"", os.pread(written, size, 0)) if size else b""
        while rest:
            rest = rest[os.write(2, rest) :]
        os.close(kept)
        os.close(written)
