"""Before anything slow: is all that gpu-check imports there, and does the carried cache fit?"""

from __future__ import annotations

import importlib
import json
import os
import platform
from pathlib import Path
from typing import Any

# What the engine, the server, the tests and the benchmarks import, beside torch and triton.
MODULES: tuple[str, ...] = (
    "numpy",
    "msgspec",
    "llguidance",
    "orjson",
    "pydantic",
    "pydantic_settings",
    "yaml",
    "jinja2",
    "tokenizers",
)
MODULES += ("huggingface_hub", "aiohttp", "prometheus_client", "safetensors", "transformers", "pytest", "xdist")
MODULES += ("pytest_timeout", "gguf")


def missing() -> list[str]:
    """The modules that cannot be imported, each with its error."""
    lacking = []
    for name in ("torch", "triton", *MODULES):
        try:
            importlib.import_module(name)
        except ImportError as error:
            lacking.append(f"{name} ({error})")
    return lacking


def describe() -> dict[str, Any]:
    """Versions, and what the keys of Triton's cache depend on beside kernels."""
    import torch
    import triton
    from triton.runtime.cache import triton_key

    has_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu else "none",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "triton_key": _sha256(triton_key()),
        "cache": os.environ.get("TRITON_CACHE_DIR", ""),
        "ptxas": os.environ.get("TRITON_PTXAS_PATH", ""),
    }


def fits(described: dict[str, Any], manifest: Path) -> list[str]:
    """Why the carried cache cannot be found here; nothing where it can."""
    if not manifest.exists():
        return []
    baked = json.loads(manifest.read_text())
    differing = [name for name in ("triton", "triton_key", "cache") if baked[name] != described[name]]
    problems = [f"{name} is {described[name]} and was {baked[name]} where the cache was made" for name in differing]
    if described["ptxas"]:
        problems.append("TRITON_PTXAS_PATH is set, and with another ptxas every key differs")
    return problems


def probe() -> list[str]:
    """Compile one kernel that is in a carried cache. Returns what had to be compiled."""
    from ember_kernels.compile import cache_misses, compile_one
    from ember_kernels.norm import specialisations

    (first, *_) = [each for each in specialisations(90) if each.typical]
    with cache_misses() as misses:
        compile_one("norm", first, 90)
    return misses


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
