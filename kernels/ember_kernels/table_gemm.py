# mypy: disable-error-code="no-untyped-def"
"""Linear layers with codes of 4 bits that stand for the numbers of a table: nf4, fp4, mxfp4, nvfp4.

weight[i, j] = table[code[i, j]] * scales[i, j // block] * factors[i]; y = x @ weight.T + bias. A byte has two inputs,
the first in the low bits, so a tile of bytes is two tiles of weights: x is read as its even and its odd columns, and
each is multiplied with one. e2m1 (mxfp4, nvfp4) is converted by arithmetic, other tables are read for each code.

For up to 64 rows `table_gemm` reads each code once, with K split as `split_k` describes. For more rows `table_restore`
writes the weight in the dtype of x, and torch multiplies it. `table_experts` has the forms for experts.

Bytes: N * K / 2 codes, and the scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ember_kernels.attention import e4m3_bits
from ember_kernels.float8_gemm import LEAST_ROWS, MAX_ROWS
from ember_kernels.launch import cdiv, direct, next_power_of_2
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

RESTORE_ROWS, RESTORE_BYTES = 2, 256
FLOAT, E4M3, E8M0 = 0, 1, 2  # kinds of scales
KINDS = {torch.float32: FLOAT, torch.float8_e4m3fn: E4M3, torch.float8_e8m0fnu: E8M0}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)


class TableWeight(NamedTuple):
    """A weight [n, k], or the weights of all experts one after the other [experts * n, k].

    codes: uint8 [n, k / 2]. scales: [n, k / block] in float32, float8_e4m3fn or float8_e8m0fnu. table: float32 [16], or
    [n, 16]; None: e2m1. factors: float32 [n], or None. All are contiguous.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    table: torch.Tensor | None
    factors: torch.Tensor | None = None

    @property
    def block(self) -> int:
        return 2 * self.codes.shape[1] // self.scales.shape[1]


def can_multiply(k: int, block: int) -> bool:
    """Whether the kernels take rows of k inputs with a scale for each `block` of them."""
    return k % 16 == 0 and block % 2 == 0 and k % block == 0


@triton.jit
def block_scales(scales_ptr, offsets, mask, KIND: tl.constexpr):
    """Scales as float32, from the kinds FLOAT (0), E4M3 (1) and E8M0 (2), a power of two."""
    scales = tl.load(scales_ptr + offsets, mask=mask, other=0)
    if KIND == 1:
        scales = e4m3_bits(scales, tl.float32)
    elif KIND == 2:
        scales = (scales.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    return scales


@triton.jit
def numbers(codes, table_at, IS_E2M1: tl.constexpr):
    """The numbers of codes, in float32. e2m1's bits, shifted to where float16 has sign, exponent and mantissa, are the
    number times 2**(1 - 15), subnormals included."""
    if IS_E2M1:
        wide = codes.to(tl.uint16)
        half = (((wide & 8) << 12) | ((wide & 7) << 9)).to(tl.float16, bitcast=True)
        found = half.to(tl.float32) * 16384.0
    else:
        found = tl.load(table_at + codes.to(tl.int32))
    return found


@triton.jit
def multiplied(x_even_at, x_odd_at, x_mask, packed, scales, table_at, sums, IS_E2M1: tl.constexpr):
    """sums + x [rows, 2 * bytes] times a tile of weights [2 * bytes, columns], given as `packed` [bytes, columns]."""
    dtype: tl.constexpr = x_even_at.dtype.element_ty
    even, odd = tl.load(x_even_at, mask=x_mask, other=0.0), tl.load(x_odd_at, mask=x_mask, other=0.0)
    low = rounded(numbers(packed & 15, table_at, IS_E2M1) * scales, dtype)
    high = rounded(numbers(packed >> 4, table_at, IS_E2M1) * scales, dtype)
    if _INTERPRET:  # whose dot of bfloat16 is wrong
        even, odd, low, high = even.to(tl.float32), odd.to(tl.float32), low.to(tl.float32), high.to(tl.float32)
    return tl.dot(odd, high, tl.dot(even, low, sums))


@triton.jit
def table_sums(
    x_rows_at,
    codes_ptr,
    scales_ptr,
    table_ptr,  # None: e2m1
    factors_ptr,  # None: there are none
    w_rows,
    k,
    start,
    end,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,  # 16: each row has a table; 0: all have the same
):
    """The products [BLOCK_M, BLOCK_N] over the inputs from `start` to `end`. `x_rows_at` [BLOCK_M, 1]: rows of inputs;
    `w_rows` [BLOCK_N]: rows of the weight."""
    table_at = None if table_ptr is None else table_ptr + w_rows[None, :] * TABLE_STRIDE
    bytes_at = tl.arange(0, BLOCK_K // 2)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, end, BLOCK_K):
        at = first // 2 + bytes_at
        exists = at < k // 2
        packed = tl.load(codes_ptr + w_rows[None, :] * (k // 2) + at[:, None], mask=exists[:, None], other=0)
        places = w_rows[None, :] * (k // SCALE_BLOCK) + (2 * at // SCALE_BLOCK)[:, None]
        scales = block_scales(scales_ptr, places, exists[:, None], KIND)
        x_at = x_rows_at + 2 * at[None, :]
        sums = multiplied(x_at, x_at + 1, exists[None, :], packed, scales, table_at, sums, table_ptr is None)
    if factors_ptr is not None:
        sums *= tl.load(factors_ptr + w_rows)[None, :]
    return sums


@direct
@triton.jit(do_not_specialize=["m", "n", "slice_tiles"])
def table_gemm_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    factors_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    slice_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
):
    """One tile of N, one slice of K. With several slices y is the workspace [slices, m, n] in float32."""
    split, rows, columns, x_rows_at, w_rows = tile_of_product(x_ptr, m, n, k, BLOCK_M, BLOCK_N)
    start = split * (slice_tiles * BLOCK_K)
    end = tl.minimum(start + slice_tiles * BLOCK_K, k)
    sums = table_sums(
        x_rows_at,
        codes_ptr,
        scales_ptr,
        table_ptr,
        factors_ptr,
        w_rows,
        k,
        start,
        end,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SCALE_BLOCK,
        KIND,
        TABLE_STRIDE,
    )
    store_sums(y_ptr, sums, bias_ptr, rows, columns, m, n, split)


@direct
@triton.jit(do_not_specialize=["n"])
def table_restore_kernel(
    codes_ptr,
    scales_ptr,
    table_ptr,
    factors_ptr,
    out_ptr,
    n,
    k,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    at = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    mask = (rows < n)[:, None] & (at < k // 2)[None, :]
    packed = tl.load(codes_ptr + rows[:, None] * (k // 2) + at[None, :], mask=mask, other=0)
    places = rows[:, None] * (k // SCALE_BLOCK) + (2 * at // SCALE_BLOCK)[None, :]
    scales = block_scales(scales_ptr, places, mask, KIND)
    if factors_ptr is not None:
        scales *= tl.load(factors_ptr + rows, mask=rows < n, other=0.0)[:, None]
    table_at = None if table_ptr is None else table_ptr + tl.minimum(rows, n - 1)[:, None] * TABLE_STRIDE
    low = rounded(numbers(packed & 15, table_at, table_ptr is None) * scales, out_ptr.dtype.element_ty)
    high = rounded(numbers(packed >> 4, table_at, table_ptr is None) * scales, out_ptr.dtype.element_ty)
    out_at = out_ptr + rows[:, None] * k + 2 * at[None, :]
    tl.store(out_at, low, mask=mask)
    tl.store(out_at + 1, high, mask=mask)


def config(n: int, k: int, capability: int) -> Config:
    """The launch configuration."""
    return split_config(n, k, 64, 128, capability)


def table_gemm(x: torch.Tensor, weight: TableWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [m, k] @ weight.T + bias [n] -> [m, n]

    x: bfloat16 or float16, contiguous, 1 <= m <= 64. bias: of x's dtype. Each number of the weight is rounded to that
    dtype, without its factor. Sums are float32, rounded once, and the same in every run.
    """
    (m, k), n = x.shape, len(weight.codes)
    check(x.dtype, weight)
    if not 1 <= m <= MAX_ROWS or 2 * weight.codes.shape[1] != k or not x.is_contiguous():
        raise ValueError(f"table_gemm takes 1 to {MAX_ROWS} contiguous rows of {2 * weight.codes.shape[1]}: {x.shape}")
    c = config(n, k, device_capability(x.device))
    out = x.new_empty((m, n))
    partial = workspace(out, c.split_k)
    table_gemm_kernel[(cdiv(n, c.block_n), c.split_k)](
        x,
        *tensors(weight),
        bias if partial is out else None,
        partial,
        m,
        n,
        k,
        c.slice_tiles(k),
        BLOCK_M=max(LEAST_ROWS, next_power_of_2(m)),
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        **constants(weight),
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return add_splits(partial, bias, out)


def table_restore(weight: TableWeight, out: torch.Tensor) -> torch.Tensor:
    """Write the weight to `out` [n, k], bfloat16 or float16, which is returned."""
    check(out.dtype, weight)
    n, k = out.shape
    table_restore_kernel[(cdiv(n, RESTORE_ROWS), cdiv(k // 2, RESTORE_BYTES))](
        *tensors(weight),
        out,
        n,
        k,
        ROWS=RESTORE_ROWS,
        BYTES=RESTORE_BYTES,
        **constants(weight),
        num_warps=4,
        num_stages=1,
    )
    return out


def tensors(weight: TableWeight) -> tuple[torch.Tensor | None, ...]:
    """The tensors of a weight as the kernels take them."""
    scales = weight.scales if weight.scales.dtype == torch.float32 else weight.scales.view(torch.uint8)
    return weight.codes, scales, weight.table, weight.factors


def constants(weight: TableWeight) -> dict[str, int]:
    stride = 16 if weight.table is not None and weight.table.dim() == 2 else 0
    return {"SCALE_BLOCK": weight.block, "KIND": KINDS[weight.scales.dtype], "TABLE_STRIDE": stride}


def check(dtype: torch.dtype, weight: TableWeight) -> None:
    if dtype not in (torch.bfloat16, torch.float16) or weight.scales.dtype not in KINDS:
        raise ValueError(f"table kernels take bfloat16 or float16, and scales of {list(KINDS)}: {dtype}")
    k = 2 * weight.codes.shape[1]
    if k % weight.scales.shape[1] or not can_multiply(k, weight.block):
        raise ValueError(f"rows of {k} inputs with {weight.scales.shape[1]} scales do not fit the table kernels")
    if not all(tensor is None or tensor.is_contiguous() for tensor in weight):
        raise ValueError("table kernels need contiguous tensors")


def table_restore_reference(weight: TableWeight, out: torch.Tensor) -> torch.Tensor:
    """The specification of `table_restore`."""
    codes = torch.stack((weight.codes & 15, weight.codes >> 4), dim=-1).flatten(1).long()
    table = torch.tensor(E2M1, device=codes.device) if weight.table is None else weight.table
    found = table[codes] if table.dim() == 1 else table.gather(1, codes)
    found = found * weight.scales.float().repeat_interleave(weight.block, dim=1)
    return out.copy_(found if weight.factors is None else found * weight.factors[:, None])


def table_gemm_reference(x: torch.Tensor, weight: TableWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The specification of `table_gemm`, in float32."""
    restored = table_restore_reference(weight, torch.empty(len(weight.codes), x.shape[1], device=x.device))
    return torch.nn.functional.linear(x.float(), restored, None if bias is None else bias.float()).to(x.dtype)


class Form(NamedTuple):
    """Weights that checkpoints have: the arguments of kernels that differ."""

    name: str
    block: int
    kind: int
    has_table: bool
    has_factors: bool

    def pointers(self) -> dict[str, str]:
        found = {"codes_ptr": "*u8", "scales_ptr": "*fp32" if self.kind == FLOAT else "*u8"}
        found |= {"table_ptr": "*fp32"} if self.has_table else {}
        return found | ({"factors_ptr": "*fp32"} if self.has_factors else {})

    def constants(self) -> dict[str, Any]:
        found: dict[str, Any] = {"SCALE_BLOCK": self.block, "KIND": self.kind, "TABLE_STRIDE": 0}
        found |= {} if self.has_table else {"table_ptr": None}
        return found | ({} if self.has_factors else {"factors_ptr": None})


NVFP4 = Form("nvfp4", 16, E4M3, False, True)
MXFP4 = Form("mxfp4", 32, E8M0, False, False)
NF4 = Form("nf4", 64, FLOAT, True, False)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16, each form, tiles of 16 (typical) and 64 rows."""
    stages = config(4096, 4096, capability).num_stages
    for form, (ending, ends), block_m in product((NVFP4, MXFP4, NF4), endings().items(), (16, 64)):
        pointers = {"x_ptr": "*bf16", **form.pointers(), **ends}
        yield Specialisation(
            f"table_gemm[{form.name}_m{block_m}{ending}]",
            table_gemm_kernel,
            pointers | dict.fromkeys(("m", "n", "k", "slice_tiles"), "i32"),
            form.constants() | {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": 128} | no_bias(ends),
            4,
            stages,
            (*pointers, "k"),
            typical=block_m == 16 and ending == SPLIT,
        )
    for form in (NVFP4, MXFP4, NF4):
        pointers = {**form.pointers(), "out_ptr": "*bf16"}
        yield Specialisation(
            f"table_restore[{form.name}]",
            table_restore_kernel,
            pointers | {"n": "i32", "k": "i32"},
            form.constants() | {"ROWS": RESTORE_ROWS, "BYTES": RESTORE_BYTES},
            4,
            1,
            (*pointers, "k"),
        )
