"""From the name a user gives to a directory with the model's files. No torch here.

In order: a path; `demo`; the worker platform's model cache; the Hugging Face cache; a download.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ember.engine.errors import ModelError
from ember.engine.loading.files import weight_files

DEMO = Path(__file__).parents[2] / "demo"
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]  # what a download asks for
NOT_FILES = ["*/*.safetensors", "consolidated*"]  # other forms of the same weights


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
    name = name.strip()
    if not name:
        raise ModelError("no model was named: set MODEL_NAME to a Hugging Face id or a directory")
    if name == "demo":
        if (DEMO / "config.json").exists():
            return DEMO
        raise ModelError(f"the demo model is not in this installation ({DEMO} has no config.json): set MODEL_NAME")
    path = Path(name).expanduser()
    if path.is_dir():
        return _model_directory(path)
    if path.is_file():
        raise ModelError(f"{name} is a file: name the directory that holds config.json and the weights")
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"{name} does not exist: set MODEL_NAME to an existing directory or a Hugging Face id")
    if name.count("/") > 1 or "\\" in name or ".." in name:
        raise ModelError(f"{name} is neither an existing directory nor a Hugging Face id (organisation/model)")
    caches = [Path(base_path) / "huggingface-cache" / "hub"] if base_path else []
    caches.append(Path(download_dir).expanduser() if download_dir else hub_cache())
    for hub in caches:
        found = find_snapshot(hub, name, revision)
        if found is not None:
            return found
    return _download(name, revision, download_dir, token)


def find_snapshot(hub: Path, name: str, revision: str | None) -> Path | None:
    """The snapshot of `name` in a cache of Hugging Face's layout, letter case aside; None where there is none whole.

    Layout: `models--org--name/snapshots/<commit>/`, with `refs/<branch or tag>` files that hold a commit.
    """
    wanted = f"models--{name.replace('/', '--')}"
    repository = _child(hub, wanted)
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
        if _is_whole(candidate):
            return candidate
    return None


def _is_whole(snapshot: Path) -> bool:
    """Whether the configuration and every weight file are there (a download may have been cut off)."""
    try:
        return (snapshot / "config.json").exists() and bool(weight_files(snapshot))
    except ModelError:
        return False


def hub_cache() -> Path:
    """Where Hugging Face's libraries keep their cache, by the same variables."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def _model_directory(path: Path) -> Path:
    if (path / "config.json").exists():
        return path
    raise ModelError(f"{path} has no config.json: it is not a model directory")


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


def _download(name: str, revision: str | None, download_dir: str | None, token: str | None) -> Path:
    """Fetch configuration, tokenizer and safetensors files; every failure becomes a ModelError that says what to do."""
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
            huggingface_hub.snapshot_download(name, allow_patterns=FILES, ignore_patterns=NOT_FILES, **arguments)
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"{where} is gated: accept its terms on huggingface.co and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            f"{name} has no revision {revision!r}: set MODEL_REVISION to a branch, tag or commit"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{where} was not found on the Hugging Face Hub: check MODEL_NAME, or set HF_TOKEN if it is private"
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
    return _model_directory(directory)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
