"""Opening files that others wrote: only regular ones, and no more of them than is allowed.

A FIFO would be waited for, a device read without end. Symbolic links are followed, for a cache consists of them.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_JSON_BYTES = 64 << 20  # of one of a model's JSON files; an index of many thousand tensors has a few MB
MAX_TOKENIZER_BYTES = 128 << 20  # of tokenizer.json; the largest ones, of 262,000 tokens, have 33 MB


class UnfitFileError(OSError):
    """A file that is not read: it is none, or too large. `strerror` says why, in one line without its name."""


def open_regular(path: Path) -> int:
    """A descriptor to read a regular file with. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise UnfitFileError(errno.EINVAL, "it is no regular file")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file, whole. Raises OSError."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(max_bytes + 1) if size <= max_bytes else b""
    size = max(size, len(data))
    if size > max_bytes:
        raise UnfitFileError(errno.EFBIG, f"it has {size:,} bytes; {max_bytes:,} are allowed")
    return data
