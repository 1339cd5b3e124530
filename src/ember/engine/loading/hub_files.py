"""The files of a Hugging Face repository that the engine needs. This module uses neither torch nor the network.

A repository often has its weights several times: safetensors and .bin, half and full precision, GGUF, ONNX, Flax, the
original training format. Only the form that `loading.files.choose_weights` chooses is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ember.engine.loading.files import FORMS
from ember.gguf.files import NO_CHOICE, Choice

_TEXT_SUFFIXES = {".json", ".model", ".txt", ".jinja", ".tiktoken"}
# Folders with copies of a model for other programs, whose .json files are not needed.
_FOREIGN = {"onnx", "openvino", "coreml", "flax", "tf", "gguf", "original", "metal"}


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository to download, and the setting that named it."""

    name: str
    revision: str | None
    setting: str  # MODEL_NAME
    required: tuple[str, ...]  # files of which one must exist; errors name the first
    load_format: str | None  # which weights (`loading.files.FORMS`, gguf or auto); None: none
    choice: Choice = NO_CHOICE  # which GGUF file
    with_code: bool = False  # whether Python modules are needed too (TRUST_REMOTE_CODE)

    @property
    def label(self) -> str:
        return f"{self.name} (revision {self.revision})" if self.revision else self.name

    @property
    def revision_setting(self) -> str:
        return self.setting.replace("_NAME", "_REVISION")


def text_files(names: Iterable[str], load_format: str | None = "auto", with_code: bool = False) -> list[str]:
    """Configuration, tokenizer and templates: small files at the root and in folders that are not of other programs.
    `load_format`: which weights are read (None: none); only their index is chosen. `with_code`: and Python modules at
    the root."""
    names, chosen = list(names), []
    index = _index_file(names, load_format)
    for name in names:
        path = PurePosixPath(name)
        is_foreign = len(path.parts) > 2 or path.parts[0].lower() in _FOREIGN or path.parts[0].startswith(".")
        is_foreign_index = name.endswith(".index.json") and name != index
        is_code = with_code and path.suffix == ".py" and len(path.parts) == 1
        if is_code or (path.suffix in _TEXT_SUFFIXES and not is_foreign and not is_foreign_index):
            chosen.append(name)
    return sorted(chosen)


def module_weights(names: Iterable[str], directories: Iterable[str]) -> list[str]:
    """The weight files of modules of sentence-transformers, which are in directories of their own."""
    names = set(names)
    found = []
    for directory in directories:
        files = (f"{directory}/{file}" for file in ("model.safetensors", "pytorch_model.bin"))
        found += [file for file in files if file in names][:1]
    return found


def _index_file(names: list[str], load_format: str | None) -> str | None:
    """The index of the first form of weights that a repository has, among those that are read."""
    root = [name for name in names if "/" not in name]
    for form in FORMS:
        is_there = form.index_file in root or any(map(form.is_weight, root))
        if is_there and load_format in ("auto", form.name):
            return form.index_file
    return None
