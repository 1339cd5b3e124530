# mypy: disable-error-code="no-untyped-def"
"""Linear layers with integers of 4 or 8 bits and scales of groups: y = x @ ((codes - zeros) * scales).T + bias.

For up to 64 rows `int_gemm` reads each code once. A tile of K lies in one group: integers less their zero point, which
the dtype of x has exactly, are multiplied, and the products of the tile are multiplied by its scale in float32. So the
weight is never rounded. K is split as `split_k` describes.

Of 4 bits, a byte has two consecutive inputs. They are not put side by side: the even and the odd columns of x, which is
small, are multiplied with the low and the high bits.

For more rows `int_restore` writes the weight in the dtype of x, and torch multiplies it.

Bytes: N * K * bits / 8 codes, N * K / group scales (and zero points), where a bfloat16 weight has 2 * N * K.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import INTERPRET, rounded
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.split_k import (
    SPLIT,
    Config,
    add_splits,
    endings,
    no_bias,
    split_config,
    store_sums,
    tile_of_product,
    workspace,
)

MAX_ROWS = 64
TILES = (16, 64)  # rows of a tile
RESTORE_ROWS, RESTORE_COLUMNS = 4, 512
_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)


def config(n: int, k: int, group: int, capability: int) -> Config:
    """The launch configuration. A tile of K lies in one group."""
    return split_config(n, k, 64, min(128, group & -group), capability)


def can_multiply(k: int, group: int) -> bool:
    """Whether the kernels take rows of k inputs in groups of `group`: a tile of K lies in one group."""
    return k % 32 == 0 and k % group == 0 and group & -group >= 32


@triton.jit
def integers(codes, zeros, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """codes - zeros, exactly, in the dtype that is multiplied; float32 in the interpreter, whose dot of bfloat16 is
    wrong. `codes`: uint8 [K, N], below 2 ** BITS; `zeros`: int32 [1, N].

    A number whose last bit of the significand counts one has an integer in its lowest bits: no conversion is needed.
    """
    if _INTERPRET:
        return codes.to(tl.float32) - zeros.to(tl.float32)
    if tl.float16 == DTYPE:
        shifted = (codes.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)
        return shifted - (1024 + zeros).to(tl.float16)
    if BITS == 4:
        shifted = (codes.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True)
        return shifted - (128 + zeros).to(tl.bfloat16)
    shifted = (codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)
    return (shifted - (8388608 + zeros).to(tl.float32)).to(tl.bfloat16)


@triton.jit
def int_sums(
    x_rows_at,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    w_rows,
    k,
    start,
    end,
    row_bytes,
    group,
    groups,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The products [BLOCK_M, BLOCK_N] over the inputs from `start` to `end`. `x_rows_at` [BLOCK_M, 1]: rows of inputs;
    `w_rows` [BLOCK_N]: rows of the weight."""
    dtype: tl.constexpr = x_rows_at.dtype.element_ty
    offsets = tl.arange(0, BLOCK_K)
    byte_offsets = tl.arange(0, BLOCK_K * BITS // 8)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Scales and zero points are loaded a tile ahead: they are too small to be pipelined as codes are.
    at = w_rows * groups + tl.minimum(start, k - 1) // group  # the last slices may be empty
    next_scales = tl.load(scale_ptr + at)
    if zero_ptr is not None:
        next_zeros = tl.load(zero_ptr + at)
    for first in range(start, end, BLOCK_K):
        scales = next_scales.to(tl.float32)
        at = w_rows * groups + tl.minimum(first + BLOCK_K, k - 1) // group
        next_scales = tl.load(scale_ptr + at)
        if zero_ptr is not None:
            zeros = next_zeros.to(tl.int32)[None, :]
            next_zeros = tl.load(zero_ptr + at)
        else:
            zeros = tl.full((1, BLOCK_N), 1 << (BITS - 1), tl.int32)
        x = tl.load(x_rows_at + (first + offsets)[None, :])
        codes = tl.load(codes_ptr + w_rows[None, :] * row_bytes + (first * BITS // 8 + byte_offsets)[:, None])
        if BITS == 4:
            even, odd = tl.split(tl.reshape(x, (BLOCK_M, BLOCK_K // 2, 2)))
            low = integers(codes & 15, zeros, BITS, dtype)
            high = integers(codes >> 4, zeros, BITS, dtype)
            if _INTERPRET:
                even, odd = even.to(tl.float32), odd.to(tl.float32)
            products = tl.dot(odd, high, tl.dot(even, low))
        else:
            if _INTERPRET:
                x = x.to(tl.float32)
            products = tl.dot(x, integers(codes, zeros, BITS, dtype))
        sums += products * scales[None, :]
    return sums


@direct
@triton.jit(do_not_specialize=["m", "n", "group", "groups", "slice_tiles"])
def int_gemm_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    row_bytes,
    group,
    groups,
    slice_tiles,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of N, one slice of K. With several slices y is the workspace [slices, m, n] in float32."""
    split, rows, columns, x_rows_at, w_rows = tile_of_product(x_ptr, m, n, k, BLOCK_M, BLOCK_N)
    start = split * (slice_tiles * BLOCK_K)
    end = tl.minimum(start + slice_tiles * BLOCK_K, k)
    sums = int_sums(
        x_rows_at,
        codes_ptr,
        scale_ptr,
        zero_ptr,
        w_rows,
        k,
        start,
        end,
        row_bytes,
        group,
        groups,
        BITS,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    store_sums(y_ptr, sums, bias_ptr, rows, columns, m, n, split)


@direct
@triton.jit(do_not_specialize=["n", "group", "groups"])
def int_restore_kernel(
    codes_ptr,
    scale_ptr,
    zero_ptr,
    out_ptr,
    n,
    k,
    row_bytes,
    group,
    groups,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    byte_at = tl.program_id(1) * (COLUMNS * BITS // 8) + tl.arange(0, COLUMNS * BITS // 8)
    is_row = (rows < n)[:, None]
    codes = tl.load(
        codes_ptr + rows[:, None] * row_bytes + byte_at[None, :], mask=is_row & (byte_at < row_bytes)[None, :], other=0
    )
    if BITS == 4:
        codes = tl.interleave(codes & 15, codes >> 4)
    mask = is_row & (at < k)[None, :]
    places = rows[:, None] * groups + (at // group)[None, :]
    scales = tl.load(scale_ptr + places, mask=mask, other=0.0).to(tl.float32)
    if zero_ptr is not None:
        zeros = tl.load(zero_ptr + places, mask=mask, other=0).to(tl.float32)
        weight = (codes.to(tl.float32) - zeros) * scales
    else:
        weight = (codes.to(tl.float32) - (1 << (BITS - 1))) * scales
    tl.store(out_ptr + rows[:, None] * k + at[None, :], rounded(weight, out_ptr.dtype.element_ty), mask=mask)


def int_gemm(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [m, k] @ ((codes [n, k * bits / 8] - zeros) * scales).T + bias [n] -> [m, n]

    x: bfloat16 or float16, contiguous, 1 <= m <= 64. codes: uint8, of 4 bits the first of two inputs in the low ones.
    scales: floats [n, groups]. zeros: uint8 [n, groups], or None for 8 or 128. All contiguous; see `can_multiply`.
    bias: of x's dtype. Sums are float32, rounded once, and the same in every run.
    """
    (m, k), n = x.shape, codes.shape[0]
    group = check(x.dtype, k, codes, scales, zeros, bits)
    if not 1 <= m <= MAX_ROWS or not x.is_contiguous():
        raise ValueError(f"int_gemm takes 1 to {MAX_ROWS} contiguous rows: {tuple(x.shape)}")
    c = config(n, k, group, device_capability(x.device))
    out = x.new_empty((m, n))
    partial = workspace(out, c.split_k)
    int_gemm_kernel[(cdiv(n, c.block_n), c.split_k)](
        x,
        codes,
        scales,
        zeros,
        bias if partial is out else None,
        partial,
        m,
        n,
        k,
        codes.shape[1],
        group,
        scales.shape[1],
        c.slice_tiles(k),
        BITS=bits,
        BLOCK_M=TILES[0] if m <= TILES[0] else TILES[1],
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return add_splits(partial, bias, out)


def int_restore(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int, out: torch.Tensor
) -> torch.Tensor:
    """Write (codes - zeros) * scales to `out` [n, k], which is returned; the arguments are those of `int_gemm`."""
    n, k = out.shape
    group = check(out.dtype, k, codes, scales, zeros, bits)
    int_restore_kernel[(cdiv(n, RESTORE_ROWS), cdiv(k, RESTORE_COLUMNS))](
        codes,
        scales,
        zeros,
        out,
        n,
        k,
        codes.shape[1],
        group,
        scales.shape[1],
        BITS=bits,
        ROWS=RESTORE_ROWS,
        COLUMNS=RESTORE_COLUMNS,
        num_warps=4,
        num_stages=1,
    )
    return out


def check(
    dtype: torch.dtype, k: int, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int
) -> int:
    """The number of inputs in a group. Raises ValueError for what the kernels do not take."""
    n, groups = scales.shape
    if bits not in (4, 8) or codes.dtype != torch.uint8 or codes.shape != (n, k * bits // 8):
        raise ValueError(f"codes must be uint8 {(n, k * bits // 8)} of 4 or 8 bits: {codes.dtype} {tuple(codes.shape)}")
    if k % groups or not can_multiply(k, k // groups):
        raise ValueError(f"{groups} groups do not fit kernels for {k} inputs")
    if dtype not in (torch.bfloat16, torch.float16) or not scales.is_floating_point():
        raise ValueError(f"int kernels take bfloat16 or float16, and scales of floats: {dtype}, {scales.dtype}")
    if zeros is not None and (zeros.dtype != torch.uint8 or zeros.shape != scales.shape or not zeros.is_contiguous()):
        raise ValueError(f"zeros must be contiguous uint8 {tuple(scales.shape)}: {zeros.dtype} {tuple(zeros.shape)}")
    if not (codes.is_contiguous() and scales.is_contiguous()):
        raise ValueError("int kernels need contiguous codes and scales")
    return k // groups


def int_restore_reference(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int, out: torch.Tensor
) -> torch.Tensor:
    """The specification of `int_restore`."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
    group = codes.shape[1] // scales.shape[1]
    middle = torch.full_like(scales, 1 << (bits - 1), dtype=torch.float32) if zeros is None else zeros.float()
    numbers = codes.float() - middle.repeat_interleave(group, 1)
    return out.copy_(numbers * scales.float().repeat_interleave(group, 1))


def int_gemm_reference(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `int_gemm`, in float32."""
    out = torch.empty(len(codes), x.shape[1], device=x.device)
    weight = int_restore_reference(codes, scales, zeros, bits, out)
    return torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


# Bits, dtype of the scales, whether there are zero points: GPTQ, AWQ, compressed-tensors of bfloat16 models.
FORMS = ((4, "fp16", False), (4, "fp16", True), (4, "bf16", False), (8, "fp16", False), (8, "fp32", False))
BLOCK_K = 128  # of groups of 128, or of whole rows


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16, groups of 128 or rows, both tiles."""
    stages = config(4096, 4096, BLOCK_K, capability).num_stages
    for (bits, scale, has_zeros), (ending, ends), block_m in product(FORMS, endings().items(), TILES):
        own = {"x_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": f"*{scale}", **ends}
        own |= {"zero_ptr": "*u8"} if has_zeros else {}
        constants: dict[str, Any] = {"BITS": bits, "BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": BLOCK_K}
        constants |= no_bias(ends) | ({} if has_zeros else {"zero_ptr": None})
        yield Specialisation(
            f"int_gemm[w{bits}_{scale}{'_zeros' if has_zeros else ''}_m{block_m}{ending}]",
            int_gemm_kernel,
            own | dict.fromkeys(("m", "n", "k", "row_bytes", "group", "groups", "slice_tiles"), "i32"),
            constants,
            4,
            stages,
            (*own, "k", "row_bytes"),
            typical=block_m == TILES[0] and ending == SPLIT,
        )
    for bits, scale, has_zeros in FORMS:
        own = {"codes_ptr": "*u8", "scale_ptr": f"*{scale}", "out_ptr": "*bf16"} | (
            {"zero_ptr": "*u8"} if has_zeros else {}
        )
        yield Specialisation(
            f"int_restore[w{bits}_{scale}{'_zeros' if has_zeros else ''}]",
            int_restore_kernel,
            own | dict.fromkeys(("n", "k", "row_bytes", "group", "groups"), "i32"),
            {"BITS": bits, "ROWS": RESTORE_ROWS, "COLUMNS": RESTORE_COLUMNS}
            | ({} if has_zeros else {"zero_ptr": None}),
            4,
            1,
            (*own, "k", "row_bytes"),
        )
