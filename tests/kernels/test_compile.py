"""Every kernel compiles for GPUs that are not there, without spills, and with the cache keys of a launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.precompile import MODULES

# 89 and 120 list the same binaries, of which each is compiled for one of the two.
CAPABILITIES = (("80",), ("90",), ("89", "120", "--in-turns"))
# Local memory a thread, in bytes: a few registers at most, which a kernel bound by bandwidth does not feel.
MAX_SPILL_BYTES = 64


def _run(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, in which triton compiles instead of interpreting."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.timeout(600)  # a minute of a core, of which a busy machine may give little
@pytest.mark.parametrize("capabilities", CAPABILITIES, ids=" ".join)
def test_every_typical_kernel_compiles_without_spills(capabilities: tuple[str, ...]) -> None:
    command = ["-m", "ember_kernels.compile", "--typical", "--capabilities", *capabilities]
    processes = str(len(os.sched_getaffinity(0)))  # more would only import torch once more each
    result = _run(*command, "--processes", processes, "--max-spills", str(MAX_SPILL_BYTES))
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def test_capabilities_in_turns_have_the_same_binaries_and_leave_out_none() -> None:
    from ember_kernels.compile import _in_turns, kernel_modules, specialisations_of

    for module in kernel_modules():
        made, other = ([each for each in specialisations_of(module, number) if each.typical] for number in (89, 120))
        assert made == other, module
        turns = [_in_turns(made, list(range(len(made))), turn, 2) for turn in (0, 1)]
        assert sorted({*turns[0], *turns[1]}) == list(range(len(made)))
        for turn in turns:
            assert {id(made[index].kernel) for index in turn} == {id(each.kernel) for each in made}, module


def test_the_image_has_the_kernels_of_every_module() -> None:
    from ember_kernels.compile import kernel_modules

    assert list(MODULES) == kernel_modules()


@pytest.mark.timeout(240)
def test_the_image_has_every_binary_that_typical_models_launch() -> None:
    """The launcher's own code, on tensors of real shapes, asks for nothing that the modules do not list."""
    result = _run(str(Path(__file__).parent / "typical_launches.py"), "80", "86", "89", "90", "100", "120")
    assert (result.stdout, result.returncode) == ("", 0), result.stdout + result.stderr[-4000:]


@pytest.mark.timeout(600)
def test_the_image_has_every_binary_that_the_runner_of_a_family_launches() -> None:
    result = _run(str(Path(__file__).parent / "family_launches.py"), "90", "86", "120")
    assert (result.stdout, result.returncode) == ("", 0), result.stdout + result.stderr[-4000:]


PROBE = """
import torch, triton, triton.language as tl
from ember_kernels import compile as kernels

@triton.jit(do_not_specialize=["size"])
def kernel(x_ptr, y_ptr, bias_ptr, size, stride, scale, BLOCK: tl.constexpr, ROUND: tl.constexpr = False):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets * stride, mask=offsets < size) * scale
    tl.store(y_ptr + offsets, x, mask=offsets < size)

types = {"x_ptr": "*bf16", "y_ptr": "*fp16", "size": "i32", "stride": "i32", "scale": "fp32"}
constants = {"BLOCK": 64, "bias_ptr": None}
specialisation = kernels.Specialisation("s", kernel, types, constants, 2, 2, ("x_ptr", "y_ptr", "stride"))

def launch(size, stride, offset=0, dtype=torch.float16):
    x, y = torch.zeros(4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=dtype)
    kernel[(1,)](x[offset:], y, None, size, stride, 2.0, BLOCK=64, num_stages=2, num_warps=2)

CALLS = {
    "same": (33, 16), "size of one": (1, 32), "odd stride": (33, 5), "odd address": (33, 16, 1),
    "other dtype": (33, 16, 0, torch.float32),
}
"""
EXPECTED = ["same 0", "size of one 0", "odd stride 1", "odd address 1", "other dtype 1"]

COMPILE = """
kernels.compile_one("probe", specialisation, 90)
for name, arguments in CALLS.items():
    with kernels._active(kernels._Driver(90)), kernels.cache_misses() as misses:
        launch(*arguments)
    print(name, len(misses))
"""

IDENTIFY = """
kernels.specialisations_of = lambda module, capability: [specialisation]
listed = kernels.listed(90, ["probe"])
for name, arguments in CALLS.items():
    with kernels.dry_run(90) as launched:
        launch(*arguments)
    print(name, len(launched - listed))
"""


@pytest.mark.parametrize("check", [COMPILE, IDENTIFY])
def test_what_is_compiled_is_what_a_launch_looks_for(tmp_path: Path, check: str) -> None:
    (tmp_path / "probe.py").write_text(PROBE + check)
    result = _run(str(tmp_path / "probe.py"), cache=tmp_path / "cache")
    assert result.stdout.splitlines() == EXPECTED, result.stderr[-4000:]


def test_a_specialisation_that_does_not_fit_its_kernel_says_so(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE.replace('"size": "i32"', '"length": "i32"') + COMPILE)
    result = _run(str(tmp_path / "probe.py"), cache=tmp_path / "cache")
    assert result.returncode != 0
    assert "probe.s: the kernel has no argument length" in result.stderr


def test_launchers_are_built_where_triton_wants_them(tmp_path: Path) -> None:
    command = ["-m", "ember_kernels.compile", "--modules", "step", "--capabilities", "90", "--launchers"]
    result = _run(*command, "--processes", "1", cache=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    asked = _run("-c", "from ember_kernels.launchers import needs_launchers as n; print(n())").stdout.strip()
    assert bool(list(tmp_path.rglob("__triton_launcher*"))) == (asked == "True")
