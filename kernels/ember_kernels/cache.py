"""Triton's kernel cache: counts of kernels found and compiled, and a precomputed part of its keys.

A key contains a hash over Triton's own files, the largest of them a library of half a gigabyte. A process reads them
before its first launch, which takes a second from the page cache and many seconds in a fresh container. The image
computes that hash once (`bake_key`), and a boot uses it (`use_baked_key`) if Triton is the same.
"""

from __future__ import annotations

import json
import sysconfig
import time
from pathlib import Path
from typing import Any

KEY_FILE = "triton-key.json"


class CacheWatch:
    """Counts the kernels that this process gets from Triton, found in the cache or compiled, from `start` on."""

    def __init__(self) -> None:
        self.found = 0
        self.compiled: list[str] = []  # names of kernels
        self.seconds = 0.0  # of compilation

    def start(self) -> None:
        from triton import knobs

        previous = knobs.compilation.listener

        def listener(*, src: Any, times: Any, cache_hit: bool, **rest: Any) -> None:
            if cache_hit:
                self.found += 1
            else:
                self.compiled.append(str(src.name))
                self.seconds += times.total / 1e6
            if previous is not None:
                previous(src=src, times=times, cache_hit=cache_hit, **rest)

        knobs.compilation.listener = listener

    def detail(self) -> dict[str, Any]:
        """The counts, as details of a phase of the boot timeline."""
        detail: dict[str, Any] = {"kernels_found": self.found, "kernels_compiled": len(self.compiled)}
        if self.compiled:
            detail["compile_s"] = round(self.seconds, 3)
        return detail


def bake_key(directory: Path) -> float:
    """Write the hash over Triton's files into the cache `directory`. Returns the seconds it took to compute."""
    from triton.runtime import cache

    start = time.perf_counter()
    key = cache.triton_key()
    seconds = time.perf_counter() - start
    (directory / KEY_FILE).write_text(json.dumps({**_identity(), "key": key}) + "\n")
    return seconds


def use_baked_key(directory: str | Path | None = None) -> bool:
    """Use the baked hash if it belongs to this Triton. `directory`: Triton's cache; None for the default one.

    Returns whether it did. Otherwise Triton computes the same hash at its first launch.
    """
    from triton import knobs
    from triton.runtime import cache

    try:
        baked = json.loads((Path(directory or knobs.cache.dir) / KEY_FILE).read_bytes())
        key = str(baked.pop("key"))
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    if not hasattr(cache, "triton_key") or baked != _identity():
        return False
    cache.triton_key = lambda: key
    return True


def _identity() -> dict[str, Any]:
    """Identifies an installation of Triton by its version and the metadata of its files, without reading them."""
    import triton

    suffix = sysconfig.get_config_var("EXT_SUFFIX").rpartition(".")[2]
    library = Path(triton.__file__).parent / "_C" / f"libtriton.{suffix}"
    return {"version": triton.__version__, "library_bytes": library.stat().st_size}
