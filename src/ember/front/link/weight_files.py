"""The files of a model's weights in the host's memory, which is the kernel's page cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

_PATTERNS = ("*.safetensors", "*.[gG][gG][uU][fF]", "*.bin", "*.pt", "*.pth")


def weight_files(model_dir: str) -> list[Path]:
    """The weight files of a directory, or those beside a GGUF file with the beginning of its name."""
    place = Path(model_dir)
    if place.is_file():
        beginning = place.name.partition("-00001-of-")[0]
        return sorted(path for path in place.parent.iterdir() if path.name.startswith(beginning) and path.is_file())
    return sorted(path for pattern in _PATTERNS for path in place.glob(pattern) if path.is_file())


def keep_in_memory(files: Iterable[Path]) -> None:
    """Let the kernel read the files into memory, where they stay while there is room."""
    _advise(files, "POSIX_FADV_WILLNEED")


def drop_from_memory(files: Iterable[Path]) -> None:
    """Let the kernel free the memory that holds the files, as far as nobody has them mapped."""
    _advise(files, "POSIX_FADV_DONTNEED")


def _advise(files: Iterable[Path], advice: str) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        try:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, getattr(os, advice))
        except OSError as error:
            log.warning("%s: %s", path, error.strerror or error)
