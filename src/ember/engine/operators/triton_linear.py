"""Products with quantised weights in Triton kernels, for each layout that has some.

Few rows are multiplied with the weight as it is stored. For more rows a kernel restores the weight in the shared buffer
and torch multiplies it, or two matrices in 8 bits are multiplied where the checkpoint is made for that. The kernels of
a layout are imported with its module, when a model with the layout is loaded (`load`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.table_linear import TableLinear
from ember_kernels.rounding import Rounded

MODULES: dict[type[Linear], str] = {
    BlockLinear: "triton_blocks",
    Float8Linear: "triton_float8",
    IntLinear: "triton_ints",
    TableLinear: "triton_tables",
}
"""The module with the kernels of a layout: `KERNELS`."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """The product of a layout with inputs in float8, which `LayoutKernels.linear` rounds itself if need be."""

    is_used: Callable[[Linear, Tensor], bool]  # whether `linear` rounds inputs with the rows and the dtype of x
    linear: Callable[[Linear, Tensor, Rounded], Tensor]  # of x and the same in float8


@dataclass(frozen=True, slots=True)
class LayoutKernels:
    """The kernels of a layout. `linear`: x [rows, in] -> [rows, out]; None: there is none for these sizes. `experts`:
    see `triton_experts.multiply_experts`. `prepare`: called before any step, with the device. `rounding`: for layouts
    with a product of rounded inputs."""

    linear: Callable[[Linear, Tensor], Tensor | None]
    experts: Callable[..., Tensor]
    prepare: Callable[[torch.device], None] = lambda device: None
    rounding: Rounding | None = None


def kernels_of(layout: type[Linear]) -> LayoutKernels | None:
    """The kernels of a layout, imported when first asked for. None: it has none."""
    name = MODULES.get(layout)
    return None if name is None else _kernels(name)


@cache
def _kernels(name: str) -> LayoutKernels:
    found: LayoutKernels = import_module(f"ember.engine.operators.{name}").KERNELS
    return found


def load(layouts: Iterable[type[Linear]], device: torch.device) -> None:
    """Import the kernels of a model's layouts before its first step, and prepare them."""
    for layout in layouts:
        kernels = kernels_of(layout)
        if kernels is not None:
            kernels.prepare(device)


def multiply(weight: Linear, x: Tensor, rounded: Rounded | None = None) -> Tensor | None:
    """x [rows, in] -> [rows, out] in kernels of the weight's layout; None: it has none, or none for these sizes.
    `rounded`: x in float8, if a kernel has rounded it."""
    kernels = kernels_of(type(weight))
    if kernels is None or x.dtype == torch.float32:
        return None
    rounding = kernels.rounding
    if rounded is not None and rounding is not None and rounding.is_used(weight, x):
        return rounding.linear(weight, x, rounded)
    return kernels.linear(weight, x)


def rounds_inputs(weight: Linear) -> bool:
    """Whether the weight's layout has a product of rounded inputs."""
    kernels = kernels_of(type(weight))
    return kernels is not None and kernels.rounding is not None


def is_rounded(weight: Linear, x: Tensor) -> bool:
    """Whether inputs with the rows and the dtype of x are rounded for a weight that `rounds_inputs`."""
    kernels = kernels_of(type(weight))
    return kernels is not None and kernels.rounding is not None and kernels.rounding.is_used(weight, x)
