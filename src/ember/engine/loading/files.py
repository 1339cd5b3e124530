"""A model's weight files: finding them, and prefetching them into the page cache. This module does not import torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ember.engine.description.read_config import read_json
from ember.engine.errors import ModelError
from ember.gguf.files import PATTERN, SUFFIX, Choice, choose_files, model_files
from ember.gguf.header import GgufError
from ember.regular_file import open_regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}


class Form(NamedTuple):
    """A form of weight files, by its name in LOAD_FORMAT."""

    name: str
    single: str  # a whole model
    index_file: str
    suffixes: str  # for messages

    def is_weight(self, name: str) -> bool:
        """Whether a file without an index may be one of the model's."""
        if self.name == "safetensors":
            return name.endswith(".safetensors")
        return name.startswith("pytorch_model") and name.endswith(".bin")


FORMS = (
    Form("safetensors", SINGLE, INDEX, "*.safetensors"),
    Form("pt", "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
_STRETCH = 16 << 20  # bytes of one prefetch request, which the kernel limits


def weight_files(model_dir: Path, load_format: str = "auto") -> list[Path]:
    """The model's weight files. Raises ModelError if there are none, or if one in the index is missing.

    `model_dir`: a directory, or the first file of a model in GGUF. `load_format`: auto (safetensors if there are any),
    safetensors, pt.

    A whole model in one file has precedence over an index, which may be left from an earlier version, as in
    transformers.
    """
    if model_dir.is_file():
        return gguf_files(model_dir)
    names = [file.name for file in model_dir.iterdir()] if model_dir.is_dir() else []

    def read_index(name: str) -> Mapping[str, object] | None:
        return read_json(model_dir / name, required=False) or None

    return [model_dir / name for name in choose_weights(str(model_dir), names, read_index, load_format)]


def is_gguf(names: Iterable[str], load_format: str | None, choice: Choice) -> bool:
    """Whether a model's weights are those of a GGUF file, among the names of a directory or repository: if one is asked
    for, or there are no others."""
    if load_format not in ("auto", "gguf"):
        return False
    if choice or load_format == "gguf":
        return True
    names = list(names)
    others = any(form.is_weight(name) or name == form.index_file for name in names for form in FORMS if "/" not in name)
    return not others and any(name.lower().endswith(SUFFIX) for name in names)


def choose_gguf(where: str, names: Iterable[str], choice: Choice) -> list[str]:
    """The files of a model in GGUF, the first part first. Raises ModelError, which lists what there is."""
    try:
        return choose_files(where, names, choice)
    except GgufError as error:
        raise ModelError(str(error)) from None


def names_of_gguf(directory: Path) -> list[str]:
    """The names of a directory's GGUF files, and of those in its folders."""
    found = [*directory.glob(PATTERN), *directory.glob(f"*/{PATTERN}")] if directory.is_dir() else []
    return [file.relative_to(directory).as_posix() for file in found]


def gguf_files(first: Path) -> list[Path]:
    """The files of a model in GGUF. Raises ModelError."""
    try:
        return model_files(first)
    except GgufError as error:
        raise ModelError(str(error)) from None


def choose_weights(
    where: str, names: Iterable[str], read_index: Callable[[str], Mapping[str, object] | None], load_format: str
) -> list[str]:
    """The names of the weight files among those of a directory or repository. `read_index` returns an index, or None
    if there is none. Raises ModelError, which begins with `where`."""
    available = set(names)
    forms = [form for form in FORMS if load_format in ("auto", form.name)]
    for form in forms:
        if form.single in available:
            return [form.single]
        beside = sorted(name for name in available if "/" not in name and form.is_weight(name))
        index = read_index(form.index_file) if form.index_file in available else None
        if index is not None:
            shards = shard_names(index, f"{where}/{form.index_file}")
            if missing := [name for name in shards if name not in available]:
                raise ModelError(f"{where} lacks {missing_shards(missing, shards, beside, form.index_file)}")
            return shards
        if beside == ["adapter_model.safetensors"]:
            raise ModelError(f"{where} is a LoRA adapter, not a model: set MODEL_NAME to a merged model")
        if usual := usual_names(beside):
            return usual
    found = sorted({PurePosixPath(name).suffix for name in available} & _WEIGHT_SUFFIXES)
    looked = " or ".join(form.suffixes for form in forms)
    has = f"its weights are {', '.join(found)}" if found else "it has no weights"
    raise ModelError(
        f"{where} has no {looked} files (LOAD_FORMAT={load_format}); {has}: choose another revision or model"
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


def missing_shards(missing: list[str], shards: list[str], beside: list[str], index: str = INDEX) -> str:
    """The message for files that an index names and that do not exist. `beside`: the existing files."""
    words = f"{some(missing)} of the {len(shards)} weight files that its {index} names"
    if others := [name for name in beside if name not in shards]:
        return f"{words}, but has {some(others)}: the index is stale; download the model again, or its index"
    if present := [name for name in beside if name in shards]:
        words += f", but has {some(present)}"
    return f"{words}: the index is stale or a download was cut off; download the model again"


def prefetch(model_dir: Path, load_format: str = "auto") -> None:
    """Start to prefetch the weight files into the page cache, in background threads. Errors are left to the reader."""
    try:
        files = weight_files(model_dir, load_format)
    except ModelError:
        return
    for file in files:
        threading.Thread(target=_prefetch, args=(file,), daemon=True).start()


def some(names: list[str], separator: str = ", ") -> str:
    """At most three names, and the number of further ones."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return separator.join(names[:3]) + more


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
