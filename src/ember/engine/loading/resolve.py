"""From the name a user gives to a directory with the model's files. No torch here.

In order: a path; `demo`; the worker platform's model cache; the Hugging Face cache; a download.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ember.engine.errors import ModelError
from ember.engine.loading.files import weight_files

DEMO = Path(__file__).parents[2] / "demo"


class Wanted(NamedTuple):
    """What a directory must hold, and how to speak of it."""

    what: str
    setting: str  # names it; its revision is <model or tokenizer>_REVISION
    required: str  # file
    is_whole: Callable[[Path], bool]  # a download may have been cut off
    patterns: list[str]  # what a download asks for
    ignored: list[str]


def _has_weights(directory: Path) -> bool:
    """Whether the configuration and every weight file are there."""
    try:
        return (directory / "config.json").exists() and bool(weight_files(directory))
    except ModelError:
        return False


_TEXT_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
MODEL = Wanted(
    "model",
    "MODEL_NAME",
    "config.json",
    _has_weights,
    [*_TEXT_FILES, "*.safetensors"],
    ["*/*.safetensors", "consolidated*"],  # other forms of the same weights
)
TOKENIZER = Wanted(
    "tokenizer",
    "TOKENIZER_NAME",
    "tokenizer.json",
    lambda directory: (directory / "tokenizer.json").exists(),
    _TEXT_FILES,
    [],
)


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    base_path: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
) -> Path:
    """The model's directory, downloaded if need be.

    `base_path` is the volume with the platform's cache (`<base_path>/huggingface-cache/hub`), `download_dir` a Hugging
    Face cache directory that takes the place of the user's. Raises ModelError.
    """
    return _resolve(MODEL, name.strip(), revision, base_path, download_dir, token)


def resolve_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    base_path: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
) -> Path:
    """The directory of a tokenizer that is not the model's own, found like a model; it needs no weights."""
    return _resolve(TOKENIZER, name.strip(), revision, base_path, download_dir, token)


def _resolve(
    wanted: Wanted, name: str, revision: str | None, base_path: str | None, download_dir: str | None, token: str | None
) -> Path:
    setting = wanted.setting
    if not name:
        raise ModelError(f"no {wanted.what} was named: set {setting} to a Hugging Face id or a directory")
    if name == "demo":
        if (DEMO / wanted.required).exists():
            return DEMO
        raise ModelError(f"the demo model is not in this installation ({DEMO} has no {wanted.required}): set {setting}")
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(wanted, path)
    if path.is_file():
        raise ModelError(f"{name} is a file: {setting} names the directory that holds {wanted.required}")
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"{name} does not exist: set {setting} to an existing directory or a Hugging Face id")
    if name.count("/") > 1 or "\\" in name or ".." in name:
        raise ModelError(f"{name} is neither an existing directory nor a Hugging Face id (organisation/model)")
    caches = [Path(base_path) / "huggingface-cache" / "hub"] if base_path else []
    caches.append(Path(download_dir).expanduser() if download_dir else hub_cache())
    for hub in caches:
        found = find_snapshot(hub, name, revision, wanted)
        if found is not None:
            return found
    return _download(wanted, name, revision, download_dir, token)


def find_snapshot(hub: Path, name: str, revision: str | None, wanted: Wanted = MODEL) -> Path | None:
    """The snapshot of `name` in a cache of Hugging Face's layout, letter case aside; None where there is none whole.

    Layout: `models--org--name/snapshots/<commit>/`, with `refs/<branch or tag>` files that hold a commit.
    """
    repository = _child(hub, f"models--{name.replace('/', '--')}")
    if repository is None:
        return None
    commit = _read_ref(repository / "refs" / (revision or "main")) or revision
    snapshots = repository / "snapshots"
    if commit is not None:
        candidates = [snapshots / commit]
    else:  # a cache copied without its refs: a single snapshot is beyond doubt
        candidates = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
        candidates = candidates if len(candidates) == 1 else []
    for candidate in candidates:
        if wanted.is_whole(candidate):
            return candidate
    return None


def hub_cache() -> Path:
    """Where Hugging Face's libraries keep their cache, by the same variables."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def _checked(wanted: Wanted, path: Path) -> Path:
    if (path / wanted.required).exists():
        return path
    raise ModelError(f"{path} has no {wanted.required}: it is not a {wanted.what} directory")


def _child(parent: Path, name: str) -> Path | None:
    """The directory entry `name`, exactly or else letter case aside."""
    if (parent / name).is_dir():
        return parent / name
    try:
        return next((entry for entry in sorted(parent.iterdir()) if entry.name.lower() == name.lower()), None)
    except OSError:
        return None


def _read_ref(ref: Path) -> str | None:
    try:
        return ref.read_text().strip() or None
    except (OSError, ValueError):
        return None


def _download(wanted: Wanted, name: str, revision: str | None, download_dir: str | None, token: str | None) -> Path:
    """Fetch the files that are needed; every failure becomes a ModelError that says what to do."""
    where = f"{name} (revision {revision})" if revision else name
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ModelError(f"{name} is not cached here, and huggingface_hub is not installed to download it") from None
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline:
        raise ModelError(f"{where} is not cached here and HF_HUB_OFFLINE forbids a download: unset it or add the model")
    arguments: dict[str, Any] = {"revision": revision, "cache_dir": download_dir, "token": token}
    try:
        directory = Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=wanted.patterns, ignore_patterns=wanted.ignored, **arguments
            )
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"{where} is gated: accept its terms on huggingface.co and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            f"{name} has no revision {revision!r}: set {wanted.what.upper()}_REVISION to a branch, tag or commit"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{where} was not found on the Hugging Face Hub: check {wanted.setting}, or set HF_TOKEN if it is private"
        ) from None
    except errors.HFValidationError:
        raise ModelError(
            f"{name} is neither an existing directory nor a Hugging Face id (organisation/model)"
        ) from None
    except OSError as error:
        raise ModelError(
            f"{where} could not be downloaded ({_first_line(error)}): check the network and free disk"
        ) from None
    except Exception as error:
        raise ModelError(f"{where} could not be downloaded: {_first_line(error)}") from None
    return _checked(wanted, directory)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
