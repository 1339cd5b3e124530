"""Activations of the MLP, plain and gated, and optionally the result in float8 too.

Rounding is that of transformers: the activation is computed in float32 and rounded to the model dtype, then multiplied.
float8 is made from the rounded product, which is written beside it. With a limit (gpt-oss) gate is clamped from above
and up on both sides, and the product is (up + 1) * gate * sigmoid(alpha * gate).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.early import wait_for_inputs
from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import Rounded, e4m3_bits, has_conversion, rounded, row_scale
from ember_kernels.specialisation import Specialisation

KINDS = ("silu", "gelu_tanh", "gelu", "relu", "relu2")
# Values that a program handles at a time, and its warps: 16 bytes per thread on all architectures.
BLOCK, WARPS = 1024, 4
ROW_BLOCK, ROW_WARPS = 4096, 8


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "silu":
        return x * tl.sigmoid(x)
    if KIND == "gelu_tanh":  # x / 2 * (1 + tanh(u)) = x * sigmoid(2 u)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    positive = tl.where(x < 0.0, 0.0, x)  # not maximum: NaN stays NaN
    return positive * positive if KIND == "relu2" else positive


@triton.jit
def _values(x_ptr, columns, mask, size, limit, alpha, KIND: tl.constexpr, GATED: tl.constexpr, HAS_LIMIT: tl.constexpr):
    """The rounded result at `columns` of the row at x_ptr, in the model dtype."""
    gate = tl.load(x_ptr + columns, mask=mask, other=0.0)
    wide = gate.to(tl.float32)
    if HAS_LIMIT:
        wide = tl.where(wide > limit, limit, wide)  # not minimum: NaN stays NaN
        result = rounded(wide * tl.sigmoid(alpha * wide), gate.dtype)
    else:
        result = rounded(_activate(wide, KIND), gate.dtype)
    if GATED:
        up = tl.load(x_ptr + size + columns, mask=mask, other=0.0).to(tl.float32)
        if HAS_LIMIT:
            up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
            up = rounded(up + 1.0, gate.dtype).to(tl.float32)
        result = rounded(result.to(tl.float32) * up, gate.dtype)
    return result


@direct
@triton.jit
def _activation_kernel(
    x_ptr,
    out_ptr,
    x_stride,
    size,
    limit,
    alpha,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    result = _values(x_ptr + row * x_stride, columns, mask, size, limit, alpha, KIND, GATED, HAS_LIMIT)
    tl.store(out_ptr + row * size + columns, result, mask=mask)


@direct
@triton.jit
def _activation_float8_kernel(
    x_ptr,
    out_ptr,
    codes_ptr,
    scale_ptr,
    x_stride,
    size,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    HARDWARE: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Each program reads one row twice: for its largest magnitude, then (from the cache) for the results."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        result = _values(x_ptr + row * x_stride, columns, columns < size, size, 0.0, 0.0, KIND, GATED, False)
        largest = tl.maximum(largest, tl.abs(result.to(tl.float32)))
    scale, factor = row_scale(tl.max(largest, axis=0))
    tl.store(scale_ptr + row, scale)
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        result = _values(x_ptr + row * x_stride, columns, columns < size, size, 0.0, 0.0, KIND, GATED, False)
        bits = e4m3_bits(result.to(tl.float32) * factor, HARDWARE)
        tl.store(out_ptr + row * size + columns, result, mask=columns < size)
        tl.store(codes_ptr + row * size + columns, bits, mask=columns < size)


def activation(
    x: Tensor,
    kind: str,
    *,
    gated: bool = True,
    rounded_to: Rounded | None = None,
    limit: float | None = None,
    alpha: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """act(x[:, :size]) * x[:, size:] if gated, else act(x); `kind` is one of KINDS ("gelu" is the exact one, with erf).

    x: [T, 2 * size] if gated, else [T, size]; rows may be strided; float32, bfloat16 or float16. Returns out
    [T, size] as x, made if it is not given. `rounded_to`: where out is written in float8 too. limit, alpha: of the
    clamped form of gated SiLU, which is not written in float8.
    """
    if limit is not None and (kind != "silu" or not gated or rounded_to is not None):
        raise ValueError(f"only gated silu without float8 has a limit, not {kind}")
    if kind not in KINDS:
        raise ValueError(f"activation {kind!r} is not one of {', '.join(KINDS)}")
    tokens, width = x.shape
    if x.stride(-1) != 1 or (gated and width % 2):
        raise ValueError(f"x must have contiguous rows, of even length if gated: {tuple(x.shape)}, {x.stride()}")
    size = width // 2 if gated else width
    stride = x.stride(0) if tokens > 1 else width
    if out is None:
        out = torch.empty(tokens, size, dtype=x.dtype, device=x.device)
    if tokens and rounded_to is None:
        _activation_kernel[(tokens, cdiv(size, BLOCK))](
            x,
            out,
            stride,
            size,
            0.0 if limit is None else float(limit),
            float(alpha),
            KIND=kind,
            GATED=gated,
            HAS_LIMIT=limit is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
            num_stages=1,
        )
    elif tokens and rounded_to is not None:
        _activation_float8_kernel[(tokens,)](
            x,
            out,
            *rounded_to,
            stride,
            size,
            KIND=kind,
            GATED=gated,
            HARDWARE=has_conversion(),
            BLOCK=ROW_BLOCK,
            num_warps=ROW_WARPS,
            num_stages=1,
        )
    return out


def activation_reference(
    x: Tensor,
    kind: str,
    *,
    gated: bool = True,
    limit: float | None = None,
    alpha: float = 1.0,
) -> Tensor:
    """The specification of `activation`, in torch."""
    gate, up = x.chunk(2, dim=-1) if gated else (x, None)
    wide = gate.float()
    if limit is not None and up is not None:
        wide = wide.clamp(max=limit)
        up = (up.float().clamp(-limit, limit) + 1).to(x.dtype)
        result = wide * torch.sigmoid(alpha * wide)
    elif kind == "silu":
        result = F.silu(wide)
    elif kind in ("gelu", "gelu_tanh"):
        result = F.gelu(wide, approximate="tanh" if kind == "gelu_tanh" else "none")
    else:
        result = wide.relu() if kind == "relu" else wide.relu().square()
    result = result.to(x.dtype)
    if up is not None:
        result = (result.float() * up.float()).to(x.dtype)
    return result


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Every kind of activation, gated and plain, in every dtype. Gated SiLU in bfloat16 is typical."""
    kinds = [(kind, gated, False) for kind in KINDS for gated in (True, False)]
    for kind, gated, has_limit in (*kinds, ("silu", True, True)):
        for dtype in ("bf16", "fp16", "fp32"):
            name = f"{kind} {'gated' if gated else 'plain'} {dtype}{' clamped' if has_limit else ''}"
            typical = kind == "silu" and gated and dtype == "bf16"
            constants = {"KIND": kind, "GATED": gated, "BLOCK": BLOCK}
            signature = {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "x_stride": "i32", "size": "i32"}
            yield Specialisation(
                f"activation[{name}]",
                _activation_kernel,
                signature | {"limit": "fp32", "alpha": "fp32"},
                constants | {"HAS_LIMIT": has_limit},
                WARPS,
                1,
                tuple(signature),
                typical,
            )
            if dtype != "bf16" or has_limit or not has_conversion(capability):
                continue
            constants = constants | {"HARDWARE": True, "BLOCK": ROW_BLOCK}
            signature = signature | {"codes_ptr": "*u8", "scale_ptr": "*fp32"}
            yield Specialisation(
                f"activation[{name} fp8]",
                _activation_float8_kernel,
                signature,
                constants,
                ROW_WARPS,
                1,
                tuple(signature),
                typical,
            )
