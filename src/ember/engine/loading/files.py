"""A model's weight files: which they are, and bringing them into the page cache early. No torch here."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ember.engine.errors import ModelError
from ember.engine.models.config import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_STRETCH = 16 << 20  # bytes asked for at once: the kernel caps one request


def weight_files(model_dir: Path) -> list[Path]:
    """The model's safetensors files. Raises ModelError where there are none, or a listed one is missing."""
    index = read_json(model_dir / INDEX, required=False)
    if index:
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{model_dir / INDEX} has no weight_map: download the file again")
        files = [model_dir / name for name in sorted(set(shards.values()))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ModelError(
                f"{model_dir} lacks {some(missing)} of {len(files)} weight files: download the model again"
            )
        return files
    if (model_dir / SINGLE).exists():
        return [model_dir / SINGLE]
    files = sorted(model_dir.glob("*.safetensors"))
    if files:
        return files
    if any(model_dir.glob("*.bin")) or any(model_dir.glob("*.pt*")):
        raise ModelError(
            f"{model_dir} has weights only as .bin/.pt files, which can run code when loaded: "
            "convert them to safetensors or choose a revision that has them"
        )
    raise ModelError(
        f"{model_dir} has no *.safetensors files: download the weights, or convert them where there are only .bin files"
    )


def prefetch(model_dir: Path) -> None:
    """Start bringing the weight files into the page cache, in background threads; errors are left to the real read."""
    try:
        files = weight_files(model_dir)
    except ModelError:
        return
    for file in files:
        threading.Thread(target=_prefetch, args=(file,), daemon=True).start()


def some(names: list[str]) -> str:
    """At most three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _prefetch(file: Path) -> None:
    """Ask the kernel for the file piece by piece, which does not copy anything."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        size = os.fstat(descriptor).st_size
        for offset in range(0, size, _STRETCH):
            os.posix_fadvise(descriptor, offset, _STRETCH, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass
    finally:
        os.close(descriptor)
