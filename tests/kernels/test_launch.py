"""Our launcher calls the binary that Triton's own launcher would call, with all arguments, in whatever order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import random
from types import SimpleNamespace

import torch, triton, triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction
from ember_kernels import compile as kernels
from ember_kernels.launch import direct

@direct
@triton.jit(do_not_specialize=["size", "loose_ptr"])
def kernel(
    x_ptr, y_ptr, bias_ptr, loose_ptr, size, stride, scale, flag, BLOCK: tl.constexpr, ROUND: tl.constexpr = False
):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets * stride) * scale)

seen = []

def pretend(self, key, signature, device, *rest):
    def run(x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        seen.append((key, (x, y, z), [str(a) if isinstance(a, torch.Tensor) else a for a in arguments]))
    made = SimpleNamespace(run=run, launch_metadata=lambda *a: None, function=0, packed_metadata=())
    self.device_caches[device][0][key] = made
    return made

JITFunction._do_compile = pretend
whole, half = torch.zeros(64), torch.zeros(64, dtype=torch.bfloat16)
tensors = [whole, whole[1:], whole[4:], half, half[1:]]
ints = [0, 1, 2, 16, 17, -16, 2**31 - 1, 2**31, -2**31, -2**31 - 1, 2**40, 2**40 + 1, 2**63 - 1, 2**63]
base = [whole, whole, None, whole, 3, 3, 0.5, True]
changes = [
    *((i, tensor) for i in (0, 1, 2, 3) for tensor in tensors),
    *((i, number) for i in (4, 5) for number in ints),
    *((6, number) for number in (1.0, 1, 2, 0.25)), (7, False), (7, 1),
]
constants = [
    {"BLOCK": 16}, {"BLOCK": 32}, {"BLOCK": 16, "ROUND": True}, {"ROUND": False, "BLOCK": 16},
    {"BLOCK": 16, "num_warps": 8}, {"num_warps": 2, "BLOCK": 16, "num_stages": 8},
    {"num_stages": 2, "BLOCK": 16, "num_warps": 8},
]
calls = [(tuple(base[:i] + [value] + base[i + 1 :]), constants[0]) for i, value in changes]
calls += [(tuple(base), each) for each in constants]

def outcome(launch, call, grid):
    seen.clear()
    launch[grid](*call[0], **call[1])
    assert len(seen) == 1
    return repr(seen[0])

num_direct = 0
with kernels._active(kernels._Driver(90)):
    for round in range(3):
        random.Random(round).shuffle(calls)
        for call in calls:
            grid = (1,) if round == 0 else (2, round)
            assert outcome(kernel, call, grid) == outcome(kernel.kernel, call, grid), call
    through = JITFunction.run
    def counted(self, *arguments, **rest):
        global num_direct
        num_direct -= 1
        return through(self, *arguments, **rest)
    JITFunction.run = counted
    for call in calls:
        num_direct += 1
        outcome(kernel, call, (1,))
    print(num_direct == len(calls))
    hooked = []
    knobs.runtime.launch_enter_hook = lambda metadata: hooked.append(metadata)
    num_direct = 0
    outcome(kernel, calls[0], (1,))
    print(num_direct)
"""


def test_our_launcher_calls_the_binary_that_tritons_would(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(tmp_path / "probe.py")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    # Every call has a binary by now. A profiler's hook is called by Triton's launcher alone.
    assert result.stdout.splitlines() == ["True", "-1"], result.stdout + result.stderr[-4000:]


KEYS = """
import importlib, sys
from ember_kernels.launch import settle
keys = {}
settle(importlib.import_module("ember_kernels.state_math").dot)  # it calls tl.dot
for name in sys.argv[1:]:
    kernel = getattr(importlib.import_module(f"ember_kernels.{name}"), f"{name}_kernel").kernel
    settle(kernel)
    keys[name] = kernel.cache_key
print(sorted(keys.items()))
"""


def test_a_kernels_key_does_not_depend_on_what_was_launched_before() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    orders = ["small_gemm", "grouped_gemm"], ["grouped_gemm", "small_gemm"]  # which call the same function
    commands = [[sys.executable, "-c", KEYS, *order] for order in orders]
    first, second = (subprocess.run(each, capture_output=True, text=True, env=environment) for each in commands)
    assert first.stdout == second.stdout != "", first.stderr[-2000:] + second.stderr[-2000:]


@pytest.mark.parametrize(("script", "families"), [("repeated_launches.py", 21), ("touched_kernels.py", 25)])
def test_launches_of_models(script: str, families: int) -> None:
    """Launches that layers repeat are those of whole calls; what a boot loads ahead is what steps launch."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(Path(__file__).with_name(script))]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert len(result.stdout.splitlines()) == families
