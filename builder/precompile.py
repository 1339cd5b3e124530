"""Fill Triton's cache with every kernel of the engine for every GPU of the image, on a machine without a GPU.

    python -m builder.precompile --cache /opt/ember/kernels [--capabilities 80 86 89 90 100 120]

The worker must have TRITON_CACHE_DIR set to the same path, since the cache contains absolute paths. Only what a launch
reads is kept: the binary and its metadata, and the hash over Triton's files, which is a part of every key
(`ember_kernels.cache`). A second process then requests all kernels again. If it compiles anything, a boot would too,
and this command fails. With a CPU build of torch there is nothing to do, and the directory stays empty.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CAPABILITIES = (80, 86, 89, 90, 100, 120)
# The modules of kernels that the engine launches.
MODULES = (
    "activation",
    "block_experts",
    "block_gemm",
    "convolution",
    "decode_attention",
    "decode_plan",
    "delta_chunks",
    "expert_blocks",
    "float8_experts",
    "float8_gemm",
    "gated_norm",
    "grouped_gemm",
    "int_experts",
    "int_gemm",
    "latent_cache",
    "latent_decode",
    "latent_expansion",
    "latent_pieces",
    "latent_prefill",
    "norm",
    "prefill_attention",
    "rope_cache",
    "rope_halves",
    "sampling",
    "sampling_logprobs",
    "selective_scan",
    "small_gemm",
    "split_k",
    "ssd_chunks",
    "state_chunks",
    "state_step",
    "state_tokens",
    "step",
    "table_experts",
    "table_gemm",
    "text_attention",
)
_KEPT = (".json", ".cubin")
_GROUP = "__grp__"

# It runs in a process of its own, whose caches in memory are empty.
_AGAIN = """
import sys
from ember_kernels.cache import use_baked_key
from ember_kernels.compile import compile_all
assert use_baked_key(), "the baked key does not belong to this Triton"
rows = compile_all(map(int, sys.argv[1].split()), sys.argv[2].split(), processes=1)
assert not any(row.error for row in rows), rows
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="TRITON_CACHE_DIR of the worker")
    parser.add_argument("--capabilities", type=int, nargs="+", help="else CAPABILITIES of the environment, else all")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="kernel modules")
    parser.add_argument("--processes", type=int, default=None)
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    import torch

    if torch.version.cuda is None and not options.capabilities:
        print(f"torch {torch.__version__} is a CPU build: no kernels to compile")
        return 0
    # Both before triton is imported, and for the processes that compile.
    os.environ["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"
    chosen = options.capabilities or [int(word) for word in os.environ.get("CAPABILITIES", "").split()]
    return precompile(options.cache.resolve(), chosen or list(CAPABILITIES), options.modules, options.processes)


def precompile(cache: Path, capabilities: list[int], modules: Sequence[str], processes: int | None) -> int:
    from ember_kernels.cache import bake_key
    from ember_kernels.compile import compile_all

    start = time.perf_counter()
    rows = compile_all(capabilities, modules, processes=processes, launchers=True)
    failed = [f"{row.name} for sm_{row.capability}: {row.error}" for row in rows if row.error]
    if failed:
        print("\n".join(failed), file=sys.stderr)
        return 1
    slim(cache)
    bake_key(cache)
    before = set(_groups(cache))
    command = [sys.executable, "-c", _AGAIN, " ".join(map(str, capabilities)), " ".join(modules)]
    if subprocess.run(command, check=False).returncode != 0:
        return 1
    compiled_again = sorted(str(group) for group in set(_groups(cache)) - before)
    if compiled_again:
        print(f"a second run compiled what the first should have: {', '.join(compiled_again[:5])}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    by_capability = {capability: sum(row.capability == capability for row in rows) for capability in capabilities}
    print(
        f"{len(rows)} kernels ({', '.join(f'sm_{key}: {count}' for key, count in by_capability.items())}), "
        f"{len(before)} binaries, {size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s"
    )
    return 0


def slim(cache: Path) -> None:
    """Delete files that no launch reads: intermediate forms, sources, locks. Groups list their files and are
    rewritten."""
    for group in _groups(cache):
        children: dict[str, str] = json.loads(group.read_text())["child_paths"]
        kept = {name: path for name, path in children.items() if name.endswith(_KEPT)}
        for path in set(children.values()) - set(kept.values()):
            Path(path).unlink(missing_ok=True)
        group.write_text(json.dumps({"child_paths": kept}))
        (group.parent / "lock").unlink(missing_ok=True)


def _groups(cache: Path) -> list[Path]:
    """The group files, one for each compiled kernel."""
    return sorted(cache.glob(f"*/{_GROUP}*.json"))


if __name__ == "__main__":
    sys.exit(main())
