"""Residual add + RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450), and optionally the result in float8 too.

One program normalises one row and holds it in registers: a row is read once and written once. Rounding is that of
transformers. The residual sum is rounded to the model dtype before it is normalised. RMSNorm rounds the normalised row
to the model dtype and then multiplies it by the weight; a weight in float32 is multiplied before the only rounding, as
in Gemma. LayerNorm rounds once at the end. float8 is made from the rounded result, which is
written beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.early import wait_for_inputs
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.rounding import Rounded, e4m3_bits, has_conversion, rounded, row_scale
from ember_kernels.specialisation import Specialisation

MAX_HIDDEN = 16384
# Warps by row length, the same on all architectures: the kernel mostly moves 16 bytes per thread.
WARPS = {512: 2, 1024: 4, 2048: 4, 4096: 8, 8192: 16, 16384: 16}


@direct
@triton.jit(do_not_specialize=["eps"])
def _norm_kernel(
    x_ptr,
    residual_ptr,  # None: no residual
    weight_ptr,  # None: ones
    bias_ptr,  # None: zeros
    out_ptr,
    codes_ptr,  # None: the result is not written in float8
    scale_ptr,
    x_stride,
    hidden,
    eps,
    RMS: tl.constexpr,
    IS_WIDE: tl.constexpr,  # the weight is float32, and the row is not
    HARDWARE: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < hidden
    loaded = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    x = loaded.to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row * hidden + columns, mask=mask, other=0.0)
        total = rounded(x + residual.to(tl.float32), loaded.dtype)
        tl.store(residual_ptr + row * hidden + columns, total, mask=mask)
        x = total.to(tl.float32)
    if not RMS:
        x = tl.where(mask, x - tl.sum(x, axis=0) / hidden, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / hidden + eps)
    if RMS and not IS_WIDE:
        y = rounded(y, loaded.dtype).to(tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        y *= weight
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    y = rounded(y, loaded.dtype)
    tl.store(out_ptr + row * hidden + columns, y, mask=mask)
    if codes_ptr is not None:
        y = y.to(tl.float32)
        scale, factor = row_scale(tl.max(tl.abs(y), axis=0))
        tl.store(scale_ptr + row, scale)
        tl.store(codes_ptr + row * hidden + columns, e4m3_bits(y * factor, HARDWARE), mask=mask)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    rounded_to: Rounded | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm of x, or of x + residual. The sum replaces `residual` in place.

    x: [T, hidden], rows may be strided, float32, bfloat16 or float16. residual: [T, hidden] contiguous. weight:
    [hidden], of x's dtype or float32. Returns out [T, hidden] as x, made if it is not given. `rounded_to`: where out is
    written in float8 too.
    """
    return _launch(x, weight, None, eps, residual, True, rounded_to, out)


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    rounded_to: Rounded | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """LayerNorm of x, or of x + residual. Arguments and results are those of `rms_norm`. bias: [hidden]."""
    return _launch(x, weight, bias, eps, residual, False, rounded_to, out)


def _launch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    rms: bool,
    rounded_to: Rounded | None,
    out: Tensor | None,
) -> Tensor:
    tokens, hidden = x.shape
    if hidden > MAX_HIDDEN:
        raise ValueError(f"hidden size {hidden}: the norm kernel holds a row of at most {MAX_HIDDEN} values")
    if x.stride(-1) != 1 or (residual is not None and not residual.is_contiguous()):
        raise ValueError(f"rows must be contiguous: strides of x {x.stride()}")
    block = max(512, next_power_of_2(hidden))
    if out is None:
        out = torch.empty(tokens, hidden, dtype=x.dtype, device=x.device)
    codes, scale = (None, None) if rounded_to is None else rounded_to
    if tokens:
        _norm_kernel[(tokens,)](
            x,
            residual,
            weight,
            bias,
            out,
            codes,
            scale,
            x.stride(0) if tokens > 1 else hidden,
            hidden,
            eps,
            RMS=rms,
            IS_WIDE=weight is not None and weight.dtype != x.dtype,
            HARDWARE=codes is not None and has_conversion(),
            BLOCK=block,
            num_warps=WARPS[block],
            num_stages=1,
        )
    return out


def rms_norm_reference(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """The specification of `rms_norm`, in torch."""
    if residual is not None:
        x = residual.copy_(x + residual)
    y = x.float() * torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + eps)
    if weight is None or weight.dtype == x.dtype:
        y = y.to(x.dtype).float()
    if weight is not None:
        y = y * weight.float()
    return y.to(x.dtype)


def layer_norm_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """The specification of `layer_norm`, in torch."""
    if residual is not None:
        x = residual.copy_(x + residual)
    return torch.nn.functional.layer_norm(
        x.float(),
        x.shape[-1:],
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
        eps,
    ).to(x.dtype)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """RMSNorm of every row length with and without residual (typical), and the variants of other families."""
    dtypes = ("bf16", "fp16", "fp32")
    kinds = [(dtype, True, False, True, False) for dtype in dtypes]
    kinds += [(dtype, True, True, True, False) for dtype in ("bf16", "fp16")]  # Gemma
    layer_norms = ((True, True), (True, False), (False, False))  # with weights and biases, Cohere's, OLMo's
    kinds += [(dtype, False, False, *parts) for dtype in dtypes for parts in layer_norms]
    for dtype, rms, is_wide, has_weight, has_bias in kinds:
        for block, warps in WARPS.items():
            for has_residual in (True, False):
                for is_rounded in (False, True) if dtype == "bf16" and has_conversion(capability) else (False,):
                    signature = {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"}
                    signature |= {"x_stride": "i32", "hidden": "i32", "eps": "fp32"}
                    constants: dict[str, Any] = {"RMS": rms, "IS_WIDE": is_wide, "BLOCK": block}
                    constants["HARDWARE"] = is_rounded
                    optional = {"residual_ptr": has_residual, "weight_ptr": has_weight, "bias_ptr": has_bias}
                    for name, given in optional.items():
                        if given:
                            signature[name] = "*fp32" if name == "weight_ptr" and is_wide else f"*{dtype}"
                        else:
                            constants[name] = None
                    if is_rounded:
                        signature |= {"codes_ptr": "*u8", "scale_ptr": "*fp32"}
                    else:
                        constants |= {"codes_ptr": None, "scale_ptr": None}
                    yield Specialisation(
                        f"norm[{'rms' if rms else 'layer'} {dtype} {block}{' residual' if has_residual else ''}"
                        f"{' wide' if is_wide else ''}{' bias' if has_bias else ''}"
                        f"{'' if has_weight else ' no weight'}{' fp8' if is_rounded else ''}]",
                        _norm_kernel,
                        signature,
                        constants,
                        warps,
                        1,
                        tuple(name for name in signature if name != "eps"),
                        typical=dtype == "bf16" and rms and not is_wide,
                    )
