"""Activations of the MLP, plain and gated, optionally with float8 output.

Rounding is that of transformers: the activation is computed in float32 and rounded to the model dtype, then multiplied.
float8 is quantised from the rounded product. With a limit (gpt-oss) gate is clamped from above and up on both sides,
and the product is (up + 1) * gate * sigmoid(alpha * gate).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.compile import Specialisation
from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import e4m3_bits, has_conversion, quantise_reference, rounded, row_scale

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
):
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
    scale_ptr,
    x_stride,
    size,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    HARDWARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program reads one row twice: for its largest magnitude, then (from the cache) to quantise it."""
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
        tl.store(out_ptr + row * size + columns, bits, mask=columns < size)


def activation(
    x: Tensor,
    kind: str,
    *,
    gated: bool = True,
    quantise: bool = False,
    limit: float | None = None,
    alpha: float = 1.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """act(x[:, :size]) * x[:, size:] if gated, else act(x); `kind` is one of KINDS ("gelu" is the exact one, with erf).

    x: [T, 2 * size] if gated, else [T, size]; rows may be strided; float32, bfloat16 or float16. Returns (out, None)
    with out [T, size] as x, made if it is not given, or with `quantise` (e4m3 [T, size], float32 scale [T]); out is
    about value * scale. limit, alpha: of the clamped form of gated SiLU, which is not quantised.
    """
    if limit is not None and (kind != "silu" or not gated or quantise):
        raise ValueError(f"only gated silu without quantisation has a limit, not {kind}")
    if kind not in KINDS:
        raise ValueError(f"activation {kind!r} is not one of {', '.join(KINDS)}")
    tokens, width = x.shape
    if x.stride(-1) != 1 or (gated and width % 2):
        raise ValueError(f"x must have contiguous rows, of even length if gated: {tuple(x.shape)}, {x.stride()}")
    size = width // 2 if gated else width
    stride = x.stride(0) if tokens > 1 else width
    if out is None or quantise:
        out = torch.empty(tokens, size, dtype=torch.uint8 if quantise else x.dtype, device=x.device)
    scale = torch.empty(tokens, dtype=torch.float32, device=x.device) if quantise else None
    if tokens and scale is None:
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
    elif tokens:
        _activation_float8_kernel[(tokens,)](
            x,
            out,
            scale,
            stride,
            size,
            KIND=kind,
            GATED=gated,
            HARDWARE=has_conversion(),
            BLOCK=ROW_BLOCK,
            num_warps=ROW_WARPS,
            num_stages=1,
        )
    return (out.view(torch.float8_e4m3fn), scale) if quantise else (out, None)


def activation_reference(
    x: Tensor,
    kind: str,
    *,
    gated: bool = True,
    quantise: bool = False,
    limit: float | None = None,
    alpha: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
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
    return quantise_reference(result) if quantise else (result, None)


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
            if dtype == "fp32" or has_limit:
                continue
            constants = constants | {"HARDWARE": has_conversion(capability), "BLOCK": ROW_BLOCK}
            signature = signature | {"out_ptr": "*u8", "scale_ptr": "*fp32"}
            yield Specialisation(
                f"activation[{name} fp8]",
                _activation_float8_kernel,
                signature,
                constants,
                ROW_WARPS,
                1,
                tuple(signature),
                typical and capability >= 89,
            )
