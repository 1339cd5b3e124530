# mypy: disable-error-code="no-untyped-def"
"""RMSNorm of each head and the SiLU of a gate, after mixers with a state.

A program takes one head of one token. With the gate first, the norm is that of x * silu(gate), and everything is in
float32. Otherwise the norm is rounded to the model's dtype, as transformers does, before weight and gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation

MAX_SIZE = 16384
BLOCKS = (256, 512, 1024, 2048, 4096, 8192, 16384)  # of groups
ROW_BLOCK = 512  # elements a warp


@direct
@triton.jit(do_not_specialize=["weight_ptr", "weight_stride"])
def gated_norm_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    out_ptr,
    gate_stride,
    weight_stride,
    size,
    eps,
    GATE_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head = tl.program_id(1)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    at = (token * tl.num_programs(1) + head) * size + columns
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + token * gate_stride + head * size + columns, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + head * weight_stride + columns, mask=mask, other=0.0)
    DTYPE: tl.constexpr = gate.dtype
    gate = gate.to(tl.float32)
    silu = gate * tl.sigmoid(gate)
    if GATE_FIRST:
        x *= silu
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    if GATE_FIRST:
        normed *= weight.to(tl.float32)
    else:
        normed = rounded(normed, DTYPE).to(tl.float32) * weight.to(tl.float32)
        normed = rounded(normed, weight.dtype).to(tl.float32) * silu
    tl.store(out_ptr + at, rounded(normed, DTYPE), mask=mask)


def gated_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, gate_first: bool, out: Tensor | None = None
) -> Tensor:
    """x contiguous and gate [tokens, heads, size], the heads of a token one after the other; weight [size] or [heads,
    size]. The result is in the gate's dtype."""
    tokens, heads, size = x.shape
    if gate.shape != x.shape or gate.stride()[1:] != (size, 1) or not x.is_contiguous():
        raise ValueError(f"x {list(x.shape)} and gate {list(gate.shape)} must have the heads of a token in a row")
    if weight.shape not in ((size,), (heads, size)) or not weight.is_contiguous():
        raise ValueError(f"the weight must be [{size}] or [{heads}, {size}] and is {list(weight.shape)}")
    if size > MAX_SIZE:
        raise ValueError(f"a norm of {size} elements is above {MAX_SIZE}")
    if out is None:
        out = torch.empty_like(x, dtype=gate.dtype)
    if tokens:
        block = next_power_of_2(size)
        gated_norm_kernel[(tokens, heads)](
            x,
            gate,
            weight,
            out,
            gate.stride(0),
            0 if weight.dim() == 1 else size,
            size,
            eps,
            GATE_FIRST=gate_first,
            BLOCK=block,
            num_warps=warps(block),
            num_stages=1,
        )
    return out


def warps(block: int) -> int:
    return max(1, min(8, block // ROW_BLOCK))


def gated_norm_reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, gate_first: bool) -> Tensor:
    """The specification of `gated_norm`."""
    wide, silu = x.float(), F.silu(gate.float())
    if gate_first:
        wide = wide * silu
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if gate_first:
        return (wide * weight.float()).to(gate.dtype)
    return ((wide.to(gate.dtype).float() * weight.float()).to(weight.dtype).float() * silu).to(gate.dtype)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """After the delta rule heads of 128 elements, after Mamba 2 groups of any size, whose gates lie in rows of a length
    that is not always a multiple of 16."""
    kinds = ((128, False), *product(BLOCKS, (True, False)))
    for dtype, (block, gate_first), is_even in product(("bf16", "fp16", "fp32"), kinds, (True, False)):
        pointers = {"x_ptr": f"*{dtype}" if block == 128 else "*fp32", "gate_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"}
        signature = pointers | {"weight_ptr": f"*{dtype}", "eps": "fp32"}
        signature |= dict.fromkeys(("gate_stride", "weight_stride", "size"), "i32")
        yield Specialisation(
            f"gated_norm[{dtype} {block}{' gate first' if gate_first else ''}{'' if is_even else ' odd'}]",
            gated_norm_kernel,
            signature,
            {"GATE_FIRST": gate_first, "BLOCK": block},
            warps(block),
            1,
            (*pointers, "size", *(("gate_stride",) if is_even else ())),
            dtype == "bf16" and is_even and (block, gate_first) in ((128, False), (8192, True)),
        )
