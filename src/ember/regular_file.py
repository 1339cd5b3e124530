"""Open files from outside: only regular files, up to a maximum size.

Opening a FIFO would block, and a device may have no end. Symbolic links are followed, since a cache consists of them.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_JSON_BYTES = 64 << 20  # for a JSON file of a model; an index of many thousand tensors has a few MB
MAX_TOKENIZER_BYTES = 128 << 20  # for tokenizer.json; the largest ones, with 262,000 tokens, have 33 MB


class UnfitFileError(OSError):
    """The file is not regular or too large. `strerror` says which, in one line without the file's name."""


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise UnfitFileError(errno.EINVAL, "it is not a regular file")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The whole content of a regular file of at most `max_bytes`. Raises OSError."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(max_bytes + 1) if size <= max_bytes else b""
    size = max(size, len(data))
    if size > max_bytes:
        raise UnfitFileError(errno.EFBIG, f"it has {size:,} bytes; {max_bytes:,} are allowed")
    return data
