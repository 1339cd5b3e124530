"""The files of a model in GGUF: which one is meant, and the parts of a split one. For both processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ember.gguf.header import GgufError, Header, Metadata, Tensor, read_header

SUFFIX = ".gguf"
PATTERN = "*.[gG][gG][uU][fF]"  # of its names, in capitals too
MAX_PARTS = 1000
USUAL_QUANTIZATION = "Q4_K_M"  # chosen of several, as in llama.cpp
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(i?q|tq|bf|f|mxfp)\d")
_ENDING = re.compile(r"[-._](i?q|tq|bf|f|mxfp)\d[a-z0-9_]*$")  # of the names of most files
# In the names of files that are no language models: vision projectors, importance matrices, layers for further tokens.
_OTHERS = re.compile(r"mmproj|^imatrix|imatrix\.gguf$|^mtp-")
_SHOWN = 20  # names in a message


class Choice(NamedTuple):
    """Which file of a repository or directory is meant: a quantization (Q4_K_M), or a file by its name."""

    quantization: str | None = None
    file: str | None = None

    def __bool__(self) -> bool:
        return self.quantization is not None or self.file is not None


NO_CHOICE = Choice()


@dataclass(frozen=True, slots=True)
class Model:
    """The metadata of a model's first file, and the tensors of all its files."""

    metadata: Metadata
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]


def split_name(name: str) -> tuple[str, Choice]:
    """A model's name without what follows its colon: ("org/model", Q4_K_M) for "org/model:Q4_K_M"."""
    before, colon, behind = name.rpartition(":")
    if colon and before and re.fullmatch(r"[A-Za-z0-9_.-]+", behind):
        is_file = behind.lower().endswith(SUFFIX)
        return before, Choice(None if is_file else behind, behind if is_file else None)
    return name, NO_CHOICE


def choose_files(where: str, names: Iterable[str], choice: Choice) -> list[str]:
    """The files of the model among those of a directory or repository, the first part of a split one first. Raises
    GgufError, which begins with `where` and lists what there is."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(SUFFIX) and not _OTHERS.search(name.rpartition("/")[2].lower()):
            models.setdefault(_PART.sub(SUFFIX, name), []).append(name)
    if not models:
        raise GgufError(f"{where} has no *{SUFFIX} files of a language model, and {_asks(choice)}")
    found = [name for name in models if _is_meant(name, models[name], choice)]
    if not choice and len(models) == 1:
        found = list(models)
    if len(found) > 1:  # one is named like the other and "UD-", for the dynamic form of the same quantization
        found = [name for name in found if "-ud-" not in name.lower()] or found
    if not found or len(found) > 1:
        if choice.file is not None:
            wanted = f"no file {ascii(choice.file)[1:-1][:100]}"
        elif choice:
            many = "several files" if found else "no file"
            wanted = f"{many} of the quantization {ascii(choice.quantization)[1:-1][:100]}"
        else:
            wanted = "several models, of which one has to be chosen (MODEL_NAME=name:QUANTIZATION)"
        more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
        listed = ", ".join(list(models)[:_SHOWN]) + more
        raise GgufError(f"{where} has {wanted}; it has {listed}")
    parts = models[found[0]]
    if (split := _PART.search(parts[0])) is not None and (int(split[1]), int(split[2])) != (1, len(parts)):
        raise GgufError(f"{where} has {len(parts)} of the {int(split[2])} parts of {found[0]}: download the others")
    return parts


def _asks(choice: Choice) -> str:
    """Which setting asks for a GGUF file."""
    if choice.file is not None:
        return f"MODEL_NAME or HF_MODEL_FILE asks for {ascii(choice.file)[1:-1][:100]}"
    if choice.quantization is not None:
        return f"MODEL_NAME or HF_QUANTIZATION asks for {ascii(choice.quantization)[1:-1][:100]}"
    return "LOAD_FORMAT=gguf asks for one"


def contradiction(name: str, own: Choice, choice: Choice) -> str | None:
    """Why what a model's name says of its GGUF file (`own`) and what HF_QUANTIZATION and HF_MODEL_FILE say (`choice`)
    cannot both hold; None if they can."""
    said = []
    if Path(name).suffix.lower() == SUFFIX:
        said.append((f"MODEL_NAME={name}", Choice(None, Path(name).name)))
    said += [("MODEL_NAME's ending", own), ("HF_MODEL_FILE", Choice(None, choice.file))]
    said.append(("HF_QUANTIZATION", Choice(choice.quantization)))
    said = [(setting, each) for setting, each in said if each]
    for number, (setting, each) in enumerate(said):
        for other_setting, other in said[number + 1 :]:
            if not _agree(each, other):
                shown_as = [ascii(of.file or of.quantization)[1:-1][:100] for of in (each, other)]
                return f"{setting} says {shown_as[0]}, and {other_setting} says {shown_as[1]}: unset one of them"
    return None


def _agree(one: Choice, other: Choice) -> bool:
    if one.file is not None and other.file is not None:
        names = [_PART.sub(SUFFIX, each.file).rpartition("/")[2] for each in (one, other) if each.file is not None]
        return names[0] == names[1]
    if one.quantization is not None and other.quantization is not None:
        return one.quantization.lower() == other.quantization.lower()
    file, quantization = one.file or other.file or "", (one.quantization or other.quantization or "").lower()
    stem = _PART.sub(SUFFIX, file).rpartition("/")[2].lower().removesuffix(SUFFIX)
    says_none = _ENDING.search(stem) is None
    return says_none or stem == quantization or stem.endswith(tuple(mark + quantization for mark in "-._"))


def _is_meant(model: str, parts: list[str], choice: Choice) -> bool:
    """Whether a model, by its name without the number of a part, is the chosen one."""
    if choice.file is not None:
        return choice.file in (model, *parts, *(part.rpartition("/")[2] for part in parts))
    wanted = (choice.quantization or USUAL_QUANTIZATION).lower()
    stem = model.lower().rpartition("/")[2].removesuffix(SUFFIX)
    marks = "-._" if _QUANTIZATION.match(wanted) else "-."  # a quantization has marks within itself
    return stem == wanted or stem.endswith(tuple(mark + wanted for mark in marks))


def first_part(file: Path) -> Path:
    """The first file of a split model, of which `file` may be any part."""
    split = _PART.search(file.name)
    return file if split is None else file.with_name(f"{file.name[: split.start()]}-00001-of-{split[2]}{file.suffix}")


def model_files(file: Path) -> list[Path]:
    """All files of a model by its first one. Raises GgufError if one is missing."""
    split = _PART.search(file.name)
    if split is None:
        return [file]
    count = int(split[2])
    if int(split[1]) != 1 or not 0 < count <= MAX_PARTS:
        raise GgufError(f"{file} is not the first of its parts: set MODEL_NAME to {first_part(file).name}")
    stem, last = file.name[: split.start()], f"-of-{split[2]}{file.suffix}"
    files = [file.with_name(f"{stem}-{number:05}{last}") for number in range(1, count + 1)]
    if missing := [each.name for each in files if not each.exists()]:
        raise GgufError(f"{file.parent} lacks {missing[0]}, one of the {count} parts of the model: download it again")
    return files


def read_model(file: Path) -> Model:
    """Read the headers of all files of a model. The last result is kept until `forget`. Raises GgufError."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise GgufError(f"{file} cannot be read: {error.strerror or error}") from None
    return _read(file, status.st_mtime_ns, status.st_size)


def forget() -> None:
    """Free the headers that `read_model` keeps: a tokenizer's arrays have many megabytes."""
    _read.cache_clear()


@lru_cache(maxsize=1)
def _read(file: Path, modified: int, size: int) -> Model:
    files = model_files(file)
    headers = [read_header(each) for each in files]
    first = headers[0].metadata
    count = first.integer("split.count") or 1
    if count != len(files):
        raise GgufError(f"{file} is one of {count} parts by its metadata, but its name is that of {len(files)}")
    tensors: dict[str, Tensor] = {}
    for header in headers:
        if twice := tensors.keys() & header.tensors.keys():
            raise GgufError(f"{header.file} has the tensor {min(twice)!a}, which another part of the model has too")
        tensors |= header.tensors
    _check_total(headers, len(tensors))
    return Model(first, tensors, tuple(files))


def _check_total(headers: list[Header], count: int) -> None:
    total = headers[0].metadata.integer("split.tensors.count")
    if total is not None and total != count:
        file = headers[0].file
        raise GgufError(
            f"{file} and its other parts have {count} tensors, and should have {total}: download them again"
        )
