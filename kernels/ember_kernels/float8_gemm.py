# mypy: disable-error-code="no-untyped-def"
"""Linear layers with weights in float8 (e4m3) and scales of rows or blocks: y = x @ (codes * scales).T + bias.

For up to 64 rows `float8_gemm` reads each code once, converts it in registers and multiplies in the dtype of x, which
has every number of e4m3; so only the weight is rounded. The products of a tile of K are multiplied by its scales where
these belong to blocks, the sums at the end where they belong to rows. K is split as `split_k` describes.

For more rows `float8_restore` writes the weight in the dtype of x, and torch multiplies it. If inputs may be rounded
too, `quantise_rows` rounds them for torch's product of two float8 matrices.

Bytes: N * K codes, where a bfloat16 weight has 2 * N * K.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.attention import e4m3_bits, packed_e4m3
from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.rounding import (
    INTERPRET,
    Rounded,
    has_conversion,
    new_rounded,
    quantise_reference,
    rounded,
    row_scale,
)
from ember_kernels.rounding import e4m3_bits as to_e4m3
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
LEAST_ROWS = 16  # of a tile
RESTORE_ROWS, RESTORE_COLUMNS = 4, 512
QUANTISE_COLUMNS = 2048
_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)


def config(n: int, k: int, width: int, capability: int) -> Config:
    """The launch configuration. `width`: columns of a block of scales."""
    return split_config(n, k, 64, min(128, width & -width), capability)


def can_multiply(n: int, k: int, block: tuple[int, int]) -> bool:
    """Whether `float8_gemm` and `float8_restore` take a weight [n, k] with scales of such blocks."""
    return k % 16 == 0 and (block[1] >= k or block[1] % 32 == 0)


@triton.jit
def float8_tile(codes, DTYPE: tl.constexpr):
    """e4m3 given as uint8, exactly, in the dtype that is multiplied; float32 in the interpreter, whose dot of bfloat16
    is wrong."""
    if _INTERPRET:
        return e4m3_bits(codes, tl.float32)
    if tl.bfloat16 == DTYPE:
        return packed_e4m3(codes)
    return e4m3_bits(codes, DTYPE)


@triton.jit
def float8_sums(
    x_rows_at,
    codes_ptr,
    scale_ptr,
    w_rows,
    k,
    start,
    end,
    scale_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    HEIGHT: tl.constexpr,  # rows of a block of scales
    WIDTH: tl.constexpr,  # its columns, a multiple of BLOCK_K; 0: all
):
    """The products [BLOCK_M, BLOCK_N] over the inputs from `start` to `end`. `x_rows_at` [BLOCK_M, 1]: rows of inputs;
    `w_rows` [BLOCK_N]: rows of the weight."""
    scale_at = scale_ptr + (w_rows // HEIGHT) * scale_stride
    offsets = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, end, BLOCK_K):
        at = first + offsets
        if EVEN_K:
            x = tl.load(x_rows_at + at[None, :])
            codes = tl.load(codes_ptr + w_rows[None, :] * k + at[:, None])
        else:
            x = tl.load(x_rows_at + at[None, :], mask=at[None, :] < k, other=0.0)
            codes = tl.load(codes_ptr + w_rows[None, :] * k + at[:, None], mask=at[:, None] < k, other=0)
        w = float8_tile(codes, x_rows_at.dtype.element_ty)
        if _INTERPRET:
            x = x.to(tl.float32)
        if WIDTH:
            sums += tl.dot(x, w) * tl.load(scale_at + first // WIDTH)[None, :]
        else:
            sums = tl.dot(x, w, sums)
    if not WIDTH:
        sums *= tl.load(scale_at)[None, :]
    return sums


@direct
@triton.jit(do_not_specialize=["m", "n", "scale_stride", "slice_tiles"])
def float8_gemm_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    scale_stride,
    slice_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One tile of N, one slice of K. With several slices y is the workspace [slices, m, n] in float32."""
    split, rows, columns, x_rows_at, w_rows = tile_of_product(x_ptr, m, n, k, BLOCK_M, BLOCK_N)
    start = split * (slice_tiles * BLOCK_K)
    end = tl.minimum(start + slice_tiles * BLOCK_K, k)
    sums = float8_sums(
        x_rows_at,
        codes_ptr,
        scale_ptr,
        w_rows,
        k,
        start,
        end,
        scale_stride,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        HEIGHT,
        WIDTH,
    )
    store_sums(y_ptr, sums, bias_ptr, rows, columns, m, n, split)


@direct
@triton.jit(do_not_specialize=["n", "scale_stride"])
def float8_restore_kernel(
    codes_ptr,
    scale_ptr,
    out_ptr,
    n,
    k,
    scale_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < n)[:, None] & (at < k)[None, :]
    offsets = rows[:, None] * k + at[None, :]
    codes = tl.load(codes_ptr + offsets, mask=mask, other=0)
    places = (rows // HEIGHT)[:, None] * scale_stride
    if WIDTH:
        places = places + (at // WIDTH)[None, :]
        scales = tl.load(scale_ptr + places, mask=mask, other=0.0)
    else:
        scales = tl.load(scale_ptr + places, mask=(rows < n)[:, None], other=0.0)
    tl.store(out_ptr + offsets, rounded(e4m3_bits(codes, tl.float32) * scales, out_ptr.dtype.element_ty), mask=mask)


@direct
@triton.jit(do_not_specialize=["x_stride"])
def quantise_rows_kernel(x_ptr, out_ptr, scale_ptr, k, x_stride, BLOCK_K: tl.constexpr, HARDWARE: tl.constexpr):
    """One row: its largest magnitude, then its numbers, which are in the level-2 cache by then."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK_K)
    largest = tl.zeros((BLOCK_K,), tl.float32)
    for first in range(0, k, BLOCK_K):
        x = tl.load(x_ptr + row * x_stride + first + at, mask=first + at < k, other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    scale, factor = row_scale(tl.max(largest, 0))
    tl.store(scale_ptr + row, scale)
    for first in range(0, k, BLOCK_K):
        x = tl.load(x_ptr + row * x_stride + first + at, mask=first + at < k, other=0.0)
        tl.store(out_ptr + row * k + first + at, to_e4m3(x.to(tl.float32) * factor, HARDWARE), mask=first + at < k)


def quantise_rows(x: torch.Tensor) -> Rounded:
    """x [m, k], whose rows may be strided, in float8."""
    m, k = x.shape
    out, scales = new_rounded(x, m, k)
    quantise_rows_kernel[(m,)](
        x, out, scales, k, x.stride(0), BLOCK_K=QUANTISE_COLUMNS, HARDWARE=has_conversion(), num_warps=4, num_stages=1
    )
    return out, scales


def quantise_rows_reference(x: torch.Tensor) -> Rounded:
    """The specification of `quantise_rows`."""
    codes, scales = quantise_reference(x)
    return codes.view(torch.uint8), scales[:, None]


def float8_gemm(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int],
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [m, k] @ (codes [n, k] * scales).T + bias [n] -> [m, n]

    x: bfloat16 or float16, contiguous, 1 <= m <= 64. codes: float8_e4m3fn, contiguous. scales: float32, contiguous, one
    for each block of `block` rows and columns, the last of which may be smaller; see `can_multiply`. bias: of x's
    dtype. Sums are float32, rounded once, and the same in every run.
    """
    (m, k), n = x.shape, codes.shape[0]
    check(x.dtype, codes, scales, block)
    if not 1 <= m <= MAX_ROWS or codes.shape[1] != k or not x.is_contiguous():
        raise ValueError(f"float8_gemm takes 1 to {MAX_ROWS} contiguous rows of {codes.shape[1]}: {tuple(x.shape)}")
    width = 0 if block[1] >= k else block[1]
    c = config(n, k, width or 128, device_capability(x.device))
    out = x.new_empty((m, n))
    partial = workspace(out, c.split_k)
    float8_gemm_kernel[(cdiv(n, c.block_n), c.split_k)](
        x,
        codes.view(torch.uint8),
        scales,
        bias if partial is out else None,
        partial,
        m,
        n,
        k,
        scales.shape[1],
        c.slice_tiles(k),
        BLOCK_M=max(LEAST_ROWS, next_power_of_2(m)),
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        EVEN_K=k % c.block_k == 0,
        HEIGHT=block[0],
        WIDTH=width,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return add_splits(partial, bias, out)


def float8_restore(
    codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], out: torch.Tensor
) -> torch.Tensor:
    """Write codes [n, k] * scales to `out` [n, k], which is returned; the arguments are those of `float8_gemm`."""
    n, k = codes.shape
    check(out.dtype, codes, scales, block)
    float8_restore_kernel[(cdiv(n, RESTORE_ROWS), cdiv(k, RESTORE_COLUMNS))](
        codes.view(torch.uint8),
        scales,
        out,
        n,
        k,
        scales.shape[1],
        ROWS=RESTORE_ROWS,
        COLUMNS=RESTORE_COLUMNS,
        HEIGHT=block[0],
        WIDTH=0 if block[1] >= k else block[1],
        num_warps=4,
        num_stages=1,
    )
    return out


def check(dtype: torch.dtype, codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> None:
    n, k = codes.shape
    if not can_multiply(n, k, block):
        raise ValueError(f"blocks of {block} do not fit kernels for a weight {tuple(codes.shape)}")
    if dtype not in (torch.bfloat16, torch.float16) or codes.dtype != torch.float8_e4m3fn:
        raise ValueError(f"float8 kernels take bfloat16 or float16, and float8_e4m3fn: {dtype}, {codes.dtype}")
    expected = (cdiv(n, block[0]), 1 if block[1] >= k else cdiv(k, block[1]))
    if scales.shape != expected or scales.dtype != torch.float32:
        raise ValueError(f"scales must be float32 {expected}: {scales.dtype} {tuple(scales.shape)}")
    if not (codes.is_contiguous() and scales.is_contiguous()):
        raise ValueError("float8 kernels need contiguous codes and scales")


def float8_restore_reference(
    codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], out: torch.Tensor
) -> torch.Tensor:
    """The specification of `float8_restore`."""
    n, k = codes.shape
    rows, columns = torch.arange(n, device=codes.device) // block[0], torch.arange(k, device=codes.device) // block[1]
    return out.copy_(codes.float() * scales[rows][:, columns])


def float8_gemm_reference(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int],
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `float8_gemm`, in float32."""
    weight = float8_restore_reference(codes, scales, block, torch.empty(codes.shape, device=codes.device))
    return torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


FORMS = ((1, 0), (128, 128))  # height and width of blocks


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16, scales of rows and of blocks of 128, tiles of 16 (typical), 32 and 64 rows."""
    pointers = {"x_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": "*fp32"}
    sizes = dict.fromkeys(("m", "n", "k", "scale_stride", "slice_tiles"), "i32")
    stages = config(4096, 4096, 128, capability).num_stages
    for (height, width), (ending, ends), block_m in product(FORMS, endings().items(), (16, 32, 64)):
        own = pointers | ends
        constants: dict[str, Any] = {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": 128}
        constants |= {"EVEN_K": True, "HEIGHT": height, "WIDTH": width} | no_bias(ends)
        yield Specialisation(
            f"float8_gemm[{height}x{width}_m{block_m}{ending}]",
            float8_gemm_kernel,
            own | sizes,
            constants,
            4,
            stages,
            (*own, "k"),
            typical=block_m == 16 and ending == SPLIT,
        )
    if has_conversion(capability):
        own = {"x_ptr": "*bf16", "out_ptr": "*u8", "scale_ptr": "*fp32"}
        constants = {"BLOCK_K": QUANTISE_COLUMNS, "HARDWARE": True}
        signature = own | {"k": "i32", "x_stride": "i32"}
        yield Specialisation("quantise_rows", quantise_rows_kernel, signature, constants, 4, 1, (*own, "k"))
    for height, width in FORMS:
        own = {"codes_ptr": "*u8", "scale_ptr": "*fp32", "out_ptr": "*bf16"}
        yield Specialisation(
            f"float8_restore[{height}x{width}]",
            float8_restore_kernel,
            own | {"n": "i32", "k": "i32", "scale_stride": "i32"},
            {"ROWS": RESTORE_ROWS, "COLUMNS": RESTORE_COLUMNS, "HEIGHT": height, "WIDTH": width},
            4,
            1,
            (*own, "k"),
        )
