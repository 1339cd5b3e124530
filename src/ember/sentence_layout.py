"""Where the model of a sentence-transformers checkpoint lies, for both processes.

Newer checkpoints have its files beside modules.json. Older ones have them in a directory such as `0_Transformer`.
"""

from __future__ import annotations

from pathlib import Path

from ember import untrusted_json
from ember.regular_file import MAX_JSON_BYTES
from ember.untrusted_json import UntrustedJsonError

MODULES_FILE = "modules.json"


def transformer_directory(root: Path) -> Path:
    """The directory with the model's files: `root`, or the one in it that modules.json names."""
    if (root / "config.json").exists():
        return root
    for name in _transformers(root):
        if (root / name / "config.json").exists():
            return root / name
    return root


def module_root(model_dir: Path) -> Path:
    """The directory with modules.json: that of the model's files, or the one above it if that names it."""
    if (model_dir / MODULES_FILE).exists() or model_dir.name not in _transformers(model_dir.parent):
        return model_dir
    return model_dir.parent


def _transformers(root: Path) -> list[str]:
    """The directories of the modules Transformer that modules.json names. A broken file names none: reading the model
    reports it."""
    path = root / MODULES_FILE
    try:
        entries = untrusted_json.read_file(path, MAX_JSON_BYTES) if path.is_file() else []
    except (UntrustedJsonError, OSError):
        return []
    named = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    paths = [str(entry.get("path")) for entry in named if str(entry.get("type")).endswith(".Transformer")]
    return [path for path in paths if path not in ("", ".", "..") and not set("/\\") & set(path)]
