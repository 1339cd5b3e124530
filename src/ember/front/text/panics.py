"""Panics of the tokenizers library, which are not Exceptions, and the lines that it writes about them to stderr."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator

os.environ["RUST_BACKTRACE"] = "0"  # without this, each panic writes forty lines

_WORDS = re.compile(rb"\n?thread '[^'\n]*'[^\n]* panicked at [^\n]*\n[^\n]*\n(?:note: [^\n]*\n)?")
_one_at_a_time = threading.Lock()


class TokenizerPanic(Exception):
    """The library failed on a text or on tokens: a regular expression at its limit, a character without a token, or a
    bug in a decoder.

    The library's own panic is a BaseException, which no handler between here and the client would catch.
    """

    def __init__(self) -> None:  # the library's message may contain the text
        super().__init__("the tokenizers library failed; where it panicked, standard error has its line")


def unless_panic(error: BaseException) -> BaseException:
    """The error itself, or a TokenizerPanic in place of a panic."""
    return TokenizerPanic() if is_panic(error) or type(error) is Exception else error


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def without_panic_lines() -> Iterator[None]:
    """Suppress the lines that the library writes to stderr when it panics, since the caller reports one line.

    It is only for the boot: lines of other threads are delayed until the block ends.
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
