"""Panics of the tokenizers library, which are no Exceptions, and what the library writes about them by itself."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

os.environ["RUST_BACKTRACE"] = "0"  # forty lines of the library's own insides, for each text that it gives up on

_WORDS = re.compile(rb"\n?thread '[^'\n]*'[^\n]* panicked at [^\n]*\n[^\n]*\n(?:note: [^\n]*\n)?")


class TokenizerPanic(Exception):
    """The library panicked over a text or over tokens: a regular expression that gives up, a decoder with a bug.

    What the library raises then is no Exception, and would pass by every handler between here and the client.
    """

    def __init__(self) -> None:  # the library's message may hold the text
        super().__init__("the tokenizers library panicked; standard error has its line")


def unless_panic(error: BaseException) -> BaseException:
    """The error itself, or a TokenizerPanic in its place."""
    return TokenizerPanic() if is_panic(error) else error


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
