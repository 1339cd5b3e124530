"""The image's kernel cache: made without a GPU, slim, found again by another process, and with its hash baked in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder import precompile

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}

# A boot: a process that never compiled, which takes the baked hash and meets the launches of a step.
BOOT = """
import json, sys, torch
from ember_kernels import compile as kernels
from ember_kernels.cache import CacheWatch, use_baked_key
from ember_kernels import step
from triton.runtime import cache

watch = CacheWatch()
watch.start()
real = cache.triton_key
baked = use_baked_key()
with kernels._active(kernels._Driver(int(sys.argv[1]))):
    rows = step.step_rows(torch.empty(8192, dtype=torch.int32), 8)
    for dtype in (torch.int32, torch.int64):
        step.store_tokens(torch.empty(8, dtype=dtype), rows, torch.empty(300, dtype=torch.int32))
print(json.dumps({**watch.detail(), "baked": baked, "same": cache.triton_key() == real(), "names": watch.compiled}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels of a step's bookkeeping, for one capability."""
    directory = tmp_path_factory.mktemp("image") / "kernels"
    command = ["-m", "builder.precompile", "--cache", str(directory), "--capabilities", "90", "--modules", "step"]
    result = run([*command, "--processes", "1"])
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert "sm_90: " in result.stdout and " MB, " in result.stdout
    return directory


def run(arguments: list[str], cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT if cache is None else {**ENVIRONMENT, "TRITON_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def boot(cache: Path, capability: int) -> dict[str, object]:
    result = run(["-c", BOOT, str(capability)], cache)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)


@pytest.mark.timeout(240)
def test_a_boot_compiles_nothing(cache: Path) -> None:
    seen = boot(cache, 90)
    assert seen == {"kernels_found": 2, "kernels_compiled": 0, "baked": True, "same": True, "names": []}


@pytest.mark.timeout(240)
def test_a_boot_on_another_gpu_counts_what_it_compiles(tmp_path: Path) -> None:
    seen = boot(tmp_path, 80)
    assert (seen["kernels_found"], seen["kernels_compiled"]) == (0, 2)
    assert seen["compile_s"]


@pytest.mark.timeout(240)
def test_the_cache_holds_what_a_launch_reads_and_no_more(cache: Path) -> None:
    kinds = {file.suffix for file in cache.rglob("*") if file.is_file() and "__triton_launcher" not in file.name}
    assert kinds <= {".json", ".cubin", ".so"}, kinds
    for group in precompile._groups(cache):
        children = json.loads(group.read_text())["child_paths"]
        assert sorted(Path(path).suffix for path in children.values()) == [".cubin", ".json"]
        assert all(Path(path).exists() for path in children.values())


@pytest.mark.timeout(240)
def test_the_hash_of_another_triton_is_not_taken(cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "kernels"
    other.mkdir()
    baked = json.loads((cache / "triton-key.json").read_text())
    check = "from ember_kernels.cache import use_baked_key; print(use_baked_key())"
    for change, expected in (({}, "True"), ({"version": "0.0"}, "False"), ({"library_bytes": 1}, "False")):
        (other / "triton-key.json").write_text(json.dumps({**baked, **change}))
        assert run(["-c", check], other).stdout.strip() == expected
    (other / "triton-key.json").write_text("no JSON")
    assert run(["-c", check], other).stdout.strip() == "False"
    (other / "triton-key.json").unlink()
    assert run(["-c", check], other).stdout.strip() == "False"


def test_the_image_has_the_kernels_that_the_engine_imports() -> None:
    code = (
        "import sys, ember.engine.core.gpu.device_runner, ember.engine.operators.triton_ops; "
        "from ember_kernels.compile import kernel_modules; "
        "print(*[name for name in kernel_modules() if 'ember_kernels.' + name in before])"
    ).replace("from ember", "before = set(sys.modules); from ember", 1)
    result = run(["-c", code])
    assert result.returncode == 0, result.stderr[-2000:]
    imported = set(result.stdout.split())  # the kernels of layouts of weights are imported where a model has them
    assert "norm" in imported and imported <= set(precompile.MODULES)
    of_states = {"convolution", "gated_norm", "delta_chunks", "ssd_chunks", "state_chunks", "state_step"}
    of_few = {*of_states, "latent_cache", "latent_decode", "latent_prefill", "text_attention"}
    assert not imported & of_few  # only models with states or latent attention, and encoders, import them


def test_a_cpu_build_of_torch_has_nothing_to_compile(tmp_path: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build")
    result = run(["-m", "builder.precompile", "--cache", str(tmp_path / "kernels")])
    assert result.returncode == 0 and "CPU build" in result.stdout
    assert list((tmp_path / "kernels").iterdir()) == []
