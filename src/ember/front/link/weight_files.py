"""The files of a model's weights in the host's memory, which is the kernel's page cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def weight_files(model_dir: str) -> list[Path]:
    """The weight files of a directory, or all parts of a model in GGUF. None of a model whose parts are not all there
    any more."""
    from ember.gguf.files import PATTERN, GgufError, model_files  # not with the boot

    place = Path(model_dir)
    if place.is_file():
        try:
            return model_files(place)
        except GgufError as error:
            log.warning("%s", error)
            return []
    return sorted(path for pattern in (*_PATTERNS, PATTERN) for path in place.glob(pattern) if path.is_file())


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
