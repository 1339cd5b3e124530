"""A model's weight files: finding them, and prefetching them into the page cache. This module does not import torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from ember.engine.description.read_config import read_json
from ember.engine.errors import ModelError
from ember.regular_file import open_regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_STRETCH = 16 << 20  # bytes of one prefetch request, which the kernel limits


def weight_files(model_dir: Path) -> list[Path]:
    """The model's safetensors files. Raises ModelError if there are none, or if one in the index is missing.

    A whole model in one file has precedence over an index, which may be left from an earlier version, as in
    transformers.
    """
    if (model_dir / SINGLE).exists():
        return [model_dir / SINGLE]
    beside = sorted(file.name for file in model_dir.glob("*.safetensors"))
    index = read_json(model_dir / INDEX, required=False)
    if index:
        shards = shard_names(index, str(model_dir / INDEX))
        missing = [name for name in shards if not (model_dir / name).exists()]
        if missing:
            raise ModelError(f"{model_dir} lacks {missing_shards(missing, shards, beside)}")
        return [model_dir / name for name in shards]
    if usual := usual_names(beside):
        return [model_dir / name for name in usual]
    if any(model_dir.glob("*.bin")) or any(model_dir.glob("*.pt*")):
        raise ModelError(
            f"{model_dir} has weights only as .bin/.pt files, which can run code when loaded: "
            "convert them to safetensors or choose a revision that has them"
        )
    raise ModelError(
        f"{model_dir} has no *.safetensors files: download the weights, or convert them where there are only .bin files"
    )


def usual_names(names: list[str]) -> list[str]:
    """The model's own safetensors files if there is no index: without adapters and duplicates."""
    return [name for name in names if not name.startswith(("consolidated", "adapter_"))] or names


def shard_names(index: Mapping[str, object], where: str) -> list[str]:
    """The files that an index names. Raises ModelError, also for files outside the model's directory."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{where} has no weight_map: download the file again, or choose another revision or model")
    names = sorted(set(shards.values()))
    for name in names:
        if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
            raise ModelError(f"{where} names {ascii(name)[:200]}, which is no file beside it: download the file again")
    return names


def missing_shards(missing: list[str], shards: list[str], beside: list[str]) -> str:
    """The message for files that an index names and that do not exist. `beside`: the existing files."""
    words = f"{some(missing)} of the {len(shards)} weight files that its {INDEX} names"
    if others := [name for name in beside if name not in shards]:
        return f"{words}, but has {some(others)}: the index is stale; download the model again, or its index"
    if present := [name for name in beside if name in shards]:
        words += f", but has {some(present)}"
    return f"{words}: the index is stale or a download was cut off; download the model again"


def prefetch(model_dir: Path) -> None:
    """Start to prefetch the weight files into the page cache, in background threads. Errors are left to the reader."""
    try:
        files = weight_files(model_dir)
    except ModelError:
        return
    for file in files:
        threading.Thread(target=_prefetch, args=(file,), daemon=True).start()


def some(names: list[str]) -> str:
    """At most three names, and the number of further ones."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _prefetch(file: Path) -> None:
    """Prefetch a file chunk by chunk, without copying it."""
    try:
        descriptor = open_regular(file)
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
