# mypy: disable-error-code="no-untyped-def"
"""Programmatic dependent launch (Hopper and later): a kernel is started while the one before it still runs.

A kernel that has the argument `EARLY: tl.constexpr = False` may be started so. Its first statement is
`wait_for_inputs(EARLY)`: it reads and writes nothing before the kernel before it in the stream has ended and its writes
are visible. So whatever that kernel is, results are those of launches in turn; what is saved is the time to start.
Since every such kernel waits before anything else, one that has ended has seen the end of those before it as well.

Whether it is used is decided in one place, `CAPABILITIES`: the launcher (`launch.Direct`) passes EARLY and the launch
option, and the list of binaries (`compile.specialisations_of`) has them.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CAPABILITIES: set[int] = set()
"""Where it was measured to be faster. It is empty until a GPU has run `benchmarks.kernels.early_launch`, which prints
the entry."""
LEAST_CAPABILITY = 90
OPTIONS: dict[str, Any] = {"launch_pdl": True}


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """Wait for the kernel before this one, and let the next one be started."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def can_be_early(kernel: Any) -> bool:
    """Whether a kernel waits for its inputs."""
    return any(parameter.name == "EARLY" for parameter in kernel.params)
