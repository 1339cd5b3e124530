"""The files of a Hugging Face repository that the engine needs. This module uses neither torch nor the network.

A repository often has its weights several times: safetensors and .bin, half and full precision, GGUF, ONNX, Flax, the
original training format. Only the form that `loading.files.weight_files` reads is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ember.engine.errors import ModelError
from ember.engine.loading.files import INDEX, SINGLE, missing_shards, shard_names, usual_names

_TEXT_SUFFIXES = {".json", ".model", ".txt", ".jinja", ".tiktoken"}
_WEIGHT_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}
# Folders with copies of a model for other programs, whose .json files are not needed.
_FOREIGN = {"onnx", "openvino", "coreml", "flax", "tf", "gguf", "original", "metal"}


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository to download, and the setting that named it."""

    name: str
    revision: str | None
    setting: str  # MODEL_NAME
    required: tuple[str, ...]  # files of which one must exist; errors name the first
    with_weights: bool

    @property
    def label(self) -> str:
        return f"{self.name} (revision {self.revision})" if self.revision else self.name

    @property
    def revision_setting(self) -> str:
        return self.setting.replace("_NAME", "_REVISION")


def text_files(names: Iterable[str]) -> list[str]:
    """Configuration, tokenizer and templates: small files at the root and in folders that are not of other programs."""
    chosen = []
    for name in names:
        path = PurePosixPath(name)
        is_foreign = len(path.parts) > 2 or path.parts[0].lower() in _FOREIGN or path.parts[0].startswith(".")
        is_foreign_index = name.endswith(".index.json") and name != INDEX
        if path.suffix in _TEXT_SUFFIXES and not is_foreign and not is_foreign_index:
            chosen.append(name)
    return sorted(chosen)


def weight_names(repository: str, names: Iterable[str], index: dict[str, object] | None) -> list[str]:
    """The safetensors files to download. `index`: the parsed model.safetensors.index.json, if there is one.

    Raises ModelError if the repository has no weights, or only in other formats.
    """
    available = set(names)
    if SINGLE in available:
        return [SINGLE]
    root = sorted(name for name in available if "/" not in name and name.endswith(".safetensors"))
    if index is not None:
        wanted = shard_names(index, f"{repository}: its {INDEX}")
        if missing := [name for name in wanted if name not in available]:
            raise ModelError(f"{repository} lacks {missing_shards(missing, wanted, root)}")
        return wanted
    if root == ["adapter_model.safetensors"]:
        raise ModelError(f"{repository} is a LoRA adapter, not a model: set MODEL_NAME to a merged model")
    if root:
        return usual_names(root)
    others = sorted({PurePosixPath(name).suffix for name in available} & _WEIGHT_SUFFIXES)
    if others:
        raise ModelError(
            f"{repository} has weights only as {', '.join(others)}: choose a revision or model with safetensors files"
        )
    raise ModelError(f"{repository} has no weights: set MODEL_NAME to a repository with safetensors files")
