"""Resolution of a model's name to a directory with its files. This module does not import torch.

The places are, in order: a path; `demo`; a model in the image; the platform's model cache; the Hugging Face cache; a
download. The download goes to DOWNLOAD_DIR or the user's Hugging Face cache if either is set, else to the volume at
BASE_PATH if one is mounted, so that the next worker finds it, else to the default cache. A model that was found is used
unchanged: the Hub is not asked for a newer commit and need not be reachable.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ember.engine.description.sentence_transformers import read_model_modules
from ember.engine.errors import ModelError
from ember.engine.loading.files import choose_gguf, is_gguf, names_of_gguf, weight_files
from ember.engine.loading.hub_files import Repository
from ember.gguf.files import NO_CHOICE, SUFFIX, USUAL_QUANTIZATION, Choice, contradiction, first_part, split_name
from ember.regular_file import read_regular
from ember.sentence_layout import transformer_directory

Say = Callable[[str], None]
_MAX_REF_BYTES = 1000
DEMO = Path(__file__).parents[2] / "demo"
BAKED = Path("/opt/ember/models")  # models in the image, in the layout of a Hugging Face cache
_HOME = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")  # if one is set, the user has chosen a cache


class Wanted(NamedTuple):
    """What a directory must contain, and its name in messages."""

    what: str
    setting: str  # the setting that names it
    required: tuple[str, ...]  # files of which one must exist; errors name the first
    is_whole: Callable[[Path], bool]  # whether it is complete, since a download may have been interrupted
    load_format: str | None  # which weights belong to it; None: none
    choice: Choice = NO_CHOICE  # which GGUF file

    @property
    def forms(self) -> str:
        """What the setting may be, for messages."""
        file = "a *.gguf file" if self.setting == "MODEL_NAME" else ""
        return ", ".join(filter(None, ("an existing directory", file))) + " or a Hugging Face id (organisation/model)"


def _has_weights(directory: Path, load_format: str) -> bool:
    """Whether the configuration and every weight file exist, those of modules of sentence-transformers too."""
    try:
        if not ((directory / "config.json").exists() and weight_files(directory, load_format)):
            return False
    except ModelError:
        return False
    try:
        dense = read_model_modules(directory).dense
    except ModelError:  # which reading the model says again
        return True
    files = ("model.safetensors", "pytorch_model.bin")
    return all(any((directory / each.directory / file).exists() for file in files) for each in dense)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in TOKENIZER.required)


def _has_config(directory: Path) -> bool:
    return (directory / "config.json").exists()


def _has_gguf(directory: Path, choice: Choice) -> bool:
    """Whether every file of the chosen model in GGUF exists in a snapshot. If none is chosen and the usual one is not
    here, only the Hub knows whether it has that one, so it is asked unless the user forbids it."""
    if not choice and not is_offline():
        choice = Choice(USUAL_QUANTIZATION)
    try:
        return bool(choose_gguf(str(directory), names_of_gguf(directory), choice))
    except ModelError:
        return False


def _model(load_format: str | None, choice: Choice = NO_CHOICE, setting: str = "MODEL_NAME") -> Wanted:
    """A model with the weights that LOAD_FORMAT says; without any for `dummy` and None."""
    if load_format in (None, "dummy"):
        return Wanted("model", setting, ("config.json",), _has_config, None)

    def is_whole(directory: Path) -> bool:
        if not (choice or load_format == "gguf") and _has_weights(directory, load_format):
            return True
        return is_gguf(_names(directory), load_format, choice) and _has_gguf(directory, choice)

    return Wanted("model", setting, ("config.json",), is_whole, load_format, choice)


def _names(directory: Path) -> list[str]:
    names = [file.name for file in directory.iterdir()] if directory.is_dir() else []
    return names + names_of_gguf(directory)


MODEL = _model("auto")
# For tokenizers in other forms the front says how to convert them.
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "tekken.json", "tiktoken.model", "vocab.txt")
TOKENIZER = Wanted("tokenizer", "TOKENIZER_NAME", _TOKENIZERS, _has_tokenizer, None)


class NotCachedError(ModelError):
    """The model is a name on the Hub, is not here, and may not be downloaded."""


class Places(NamedTuple):
    """The places to search, and the settings of a download."""

    base_path: str | None = None  # the volume with the platform's cache, `<base_path>/huggingface-cache/hub`
    download_dir: str | None = None  # a Hugging Face cache directory in place of the user's
    token: str | None = None
    say: Say = lambda line: None  # called with progress lines of a download
    may_download: bool = True  # otherwise what is not here is a NotCachedError
    with_code: bool = False  # download Python modules too (TRUST_REMOTE_CODE)


def resolve_model(
    name: str,
    revision: str | None = None,
    places: Places = Places(),  # noqa: B008  (it cannot be changed)
    check: Callable[[Path], object] = lambda directory: None,
    load_format: str | None = "auto",
    choice: Choice = NO_CHOICE,
    setting: str = "MODEL_NAME",
) -> Path:
    """The model's directory, or its GGUF file, after a download if necessary. `load_format`: which weights it must
    have; None: none. `choice`: which GGUF file; a name like "org/model:Q4_K_M" says it too. `setting`: what names
    the model, for messages.

    `check` is called with the directory before weights are downloaded, and may raise ModelError. Raises ModelError.
    """
    name, own = name.strip(), NO_CHOICE
    if not Path(name).expanduser().exists():
        name, own = split_name(name)
    if (fault := contradiction(name, own, choice)) is not None:
        raise ModelError(fault)
    choice = own or choice
    if load_format in ("safetensors", "pt") and (choice or Path(name).suffix.lower() == SUFFIX):
        raise ModelError(
            f"LOAD_FORMAT={load_format}, but a GGUF file is asked for ({_asked(name, own, choice)}): set LOAD_FORMAT "
            "to gguf or auto, or name a model in that format"
        )
    directory = Path(name).expanduser()
    if directory.is_dir() and (own_directory := transformer_directory(directory)) != directory:
        name, directory = str(own_directory), own_directory
    if load_format in ("safetensors", "pt") and directory.is_dir() and is_gguf(_names(directory), "auto", NO_CHOICE):
        raise ModelError(
            f"LOAD_FORMAT={load_format}, but the weights of {directory} are GGUF files: set LOAD_FORMAT to gguf or "
            "auto, or name a model in that format"
        )
    wanted = _model(load_format, choice, setting)
    found = _resolve(wanted, name, revision, places, check)
    return _gguf_in(found, wanted)


def _asked(name: str, own: Choice, choice: Choice) -> str:
    """The setting that asks for a GGUF file."""
    if own or not choice:
        return f"MODEL_NAME={name}" + (f":{own.file or own.quantization}" if own else "")
    return f"HF_MODEL_FILE={choice.file}" if choice.file else f"HF_QUANTIZATION={choice.quantization}"


def _gguf_in(found: Path, wanted: Wanted) -> Path:
    """The GGUF file in a directory, if that has the model's weights; else what was found. Raises ModelError."""
    if found.is_file() or not is_gguf(_names(found), wanted.load_format, wanted.choice):
        return found
    return found / choose_gguf(str(found), names_of_gguf(found), wanted.choice)[0]


def resolve_tokenizer(name: str, revision: str | None = None, places: Places = Places()) -> Path:  # noqa: B008
    """The directory of a separate tokenizer. It is searched like a model and needs no weights."""
    return _resolve(TOKENIZER, name.strip(), revision, places, lambda directory: None)


def _resolve(wanted: Wanted, name: str, revision: str | None, places: Places, check: Callable[[Path], object]) -> Path:
    setting = wanted.setting
    if not name:
        raise ModelError(f"no {wanted.what} was named: set {setting} to {wanted.forms}")
    if name == "demo":
        first = wanted.required[0]
        if (DEMO / first).exists():
            return DEMO
        raise ModelError(f"the demo model is not in this installation ({DEMO} has no {first}): set {setting}")
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(wanted, path)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return first_part(path)
        first = wanted.required[0]
        raise ModelError(f"{name} is a file: {setting} names a *.gguf file, or the directory that holds {first}")
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"{name} does not exist: set {setting} to {wanted.forms}")
    if name.count("/") > 1 or "\\" in name or ".." in name:
        raise ModelError(f"{name} does not exist and is no Hugging Face id: set {setting} to {wanted.forms}")
    own = Path(places.download_dir).expanduser() if places.download_dir else hub_cache()
    volume = Path(places.base_path) / "huggingface-cache" / "hub" if places.base_path else None
    for hub in (BAKED, volume, own):
        found = find_snapshot(hub, name, revision, wanted) if hub else None
        if found is not None:
            return found
    chosen = wanted.load_format, wanted.choice, places.with_code
    repository = Repository(name, revision, setting, wanted.required, *chosen)
    if is_offline() or not places.may_download:
        raise NotCachedError(
            f"{repository.label} is not cached here and HF_HUB_OFFLINE forbids a download: unset it or add the model"
        )
    has_chosen = places.download_dir or any(map(_variable, _HOME))
    target = volume if volume is not None and not has_chosen and _is_writable(volume) else own
    from ember.engine.loading.download import download

    return download(repository, target, token=places.token, say=places.say, check=check)


def find_snapshot(hub: Path, name: str, revision: str | None, wanted: Wanted = MODEL) -> Path | None:
    """The complete snapshot of `name` in a cache of Hugging Face's layout, ignoring case; None if there is none.

    Layout: `models--org--name/snapshots/<commit>/`, with `refs/<branch or tag>` files that hold a commit.
    """
    for repository in _children(hub, f"models--{name.replace('/', '--')}"):
        commit = _read_ref(repository / "refs" / (revision or "main")) or revision
        snapshots = repository / "snapshots"
        if commit is not None:
            candidates = [snapshots / commit]
        else:  # the cache was copied without refs: a single snapshot is unambiguous
            candidates = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
            candidates = candidates if len(candidates) == 1 else []
        for candidate in candidates:
            if wanted.is_whole(candidate):
                return candidate
    return None


def is_offline() -> bool:
    """Whether the user forbids to ask the Hub."""
    return _variable("HF_HUB_OFFLINE").upper() in ("1", "ON", "YES", "TRUE")


def hub_cache() -> Path:
    """The cache directory of Hugging Face's libraries, from the same variables."""
    if cache := _variable("HF_HUB_CACHE") or _variable("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = _variable("HF_HOME") or os.path.join(_variable("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _variable(name: str) -> str:
    """The value of a variable of Hugging Face's libraries; empty if it is unset or blank."""
    return os.environ.get(name, "").strip()


def _checked(wanted: Wanted, path: Path) -> Path:
    if any((path / name).exists() for name in wanted.required):
        return path
    if is_gguf(_names(path), wanted.load_format, wanted.choice):
        return path
    if wanted.required[0] == "config.json":
        try:
            read_model_modules(path)  # which names a module that has no model, such as StaticEmbedding
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
    raise ModelError(f"{path} has no {wanted.required[0]}: it is not a {wanted.what} directory")


def _children(parent: Path, name: str) -> list[Path]:
    """The directories of that name, ignoring case. The exact name is first."""
    try:
        entries = [entry for entry in sorted(parent.iterdir()) if entry.name.lower() == name.lower()]
    except OSError:
        return []
    return sorted(entries, key=lambda entry: entry.name != name)


def _is_writable(directory: Path) -> bool:
    """Whether files can be written to a directory, or it can be created: on a mounted volume that is not read-only."""
    if not directory.parents[1].is_dir():  # the volume itself
        return False
    place = next(path for path in (directory, *directory.parents) if path.is_dir())
    return os.access(place, os.W_OK)


def _read_ref(ref: Path) -> str | None:
    """The commit of a ref; None if there is none or it is not the name of a directory."""
    try:
        commit = read_regular(ref, _MAX_REF_BYTES).decode().strip()
    except (OSError, ValueError):
        return None
    return commit if commit and "/" not in commit and not commit.startswith(".") else None
