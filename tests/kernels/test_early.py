"""Kernels that are started before the one before them has ended wait for it before they read or write anything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROBE = """
import re

import torch

from ember_kernels import compile as kernels, early
from ember_kernels.activation import activation
from ember_kernels.norm import rms_norm

early.CAPABILITIES.add(90)
found = {}
for module in kernels.kernel_modules():
    for each in kernels.specialisations_of(module, 90):
        if early.can_be_early(each.kernel):
            found.setdefault(each.kernel.__name__, (module, each))
for name, (module, each) in found.items():
    _, binary = kernels.compile_binary(module, each, 90)
    accesses = re.findall(r"griddepcontrol.wait|(?:ld|st|red|atom|cp.async)[a-z0-9.:_]*global", binary.asm["ptx"])
    print(name, binary.metadata.launch_pdl, accesses[0], len(accesses) > 2)
half = torch.empty(3, 4096, dtype=torch.bfloat16)
with kernels.dry_run(90) as asked:
    rms_norm(half, half[0], 1e-6, residual=half.clone())
    activation(half, "gelu")
print(len(asked), asked <= kernels.listed(90, ["norm", "activation"]))
early.CAPABILITIES.clear()
print(asked & kernels.listed(90, ["norm", "activation"]))
"""
KERNELS = {
    *("_norm_kernel", "_activation_kernel", "_activation_float8_kernel"),
    *("_rope_cache_kernel", "rope_halves_kernel", "decode_attention_kernel", "add_parts_kernel"),
}


@pytest.mark.timeout(240)
def test_early_kernels_wait_first_and_are_listed() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)
    *kernels, listed, others = result.stdout.splitlines() or ["", ""]
    assert set(kernels) == {f"{name} True griddepcontrol.wait True" for name in KERNELS}, result.stderr[-2000:]
    assert (listed, others) == ("2 True", "set()")
