# mypy: disable-error-code="no-untyped-def"
"""Matrix products of a layer of experts whose weights are codes of 4 bits: the recipe of `grouped_gemm`, with
`gather_table` in place of `gather_gemm` and `grouped_table` in place of `grouped_gemm`.

The weights of all experts are one `TableWeight`, expert after expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl

from ember_kernels.expert_blocks import ExpertBlocks, pairs_of_block, store_pairs
from ember_kernels.grouped_gemm import Config
from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.split_k import LARGE_SHARED
from ember_kernels.table_gemm import (
    MXFP4,
    NF4,
    NVFP4,
    TableWeight,
    block_scales,
    check,
    constants,
    numbers,
    table_restore_reference,
    table_sums,
    tensors,
)

GATHER_BLOCK_N, GATHER_BLOCK_K = 16, 512


def table_experts_config(block_m: int, capability: int) -> Config:
    """The launch configuration of `grouped_table`."""
    stages = 4 if capability in LARGE_SHARED else 3
    return Config(64, 128, 4, stages) if block_m <= 32 else Config(64, 64, 4 if block_m == 64 else 8, 3)


@direct
@triton.jit(do_not_specialize=["n", "divisor"])
def grouped_table_kernel(
    a_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    factors_ptr,
    out_ptr,
    sorted_pairs_ptr,
    block_experts_ptr,
    block_rows_ptr,
    n,
    k,
    divisor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
):
    """One block of pairs, one tile of N. Tiles of a block are adjacent programs, which share its activations in L2."""
    tiles = tl.cdiv(n, BLOCK_N)
    is_pair, pairs, expert, has_expert = pairs_of_block(
        sorted_pairs_ptr, block_experts_ptr, block_rows_ptr, tl.program_id(0) // tiles, 0, BLOCK_M
    )
    columns = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the last repeat another one. Their results are not stored.
    sums = table_sums(
        a_ptr + (pairs // divisor).to(tl.int64)[:, None] * k,
        codes_ptr,
        scales_ptr,
        table_ptr,
        factors_ptr,
        expert * n + tl.minimum(columns, n - 1).to(tl.int64),
        k,
        0,
        tl.where(has_expert, k, 0),
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SCALE_BLOCK,
        KIND,
        TABLE_STRIDE,
    )
    store_pairs(out_ptr, sums, is_pair, pairs, columns, n)


@direct
@triton.jit(do_not_specialize=["n", "divisor", "num_experts"])
def gather_table_kernel(
    a_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    factors_ptr,
    out_ptr,
    ids_ptr,
    n,
    k,
    divisor,
    num_experts,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
):
    """One pair, one tile of N: a matrix times a vector, without tensor cores, since one row is limited by memory."""
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out_at = out_ptr + pair.to(tl.int64) * n + columns
    if (expert < 0) | (expert >= num_experts):
        tl.store(out_at, tl.zeros((BLOCK_N,), out_ptr.dtype.element_ty), mask=columns < n)
        return
    w_rows = expert * n + tl.minimum(columns, n - 1).to(tl.int64)
    table_at = None if table_ptr is None else table_ptr + w_rows[:, None] * TABLE_STRIDE
    bytes_at = tl.arange(0, BLOCK_K // 2)
    a_at = a_ptr + (pair // divisor).to(tl.int64) * k
    products = tl.zeros((BLOCK_N, BLOCK_K // 2), tl.float32)
    for first in range(0, k, BLOCK_K):
        at = first // 2 + bytes_at
        exists = at < k // 2
        packed = tl.load(codes_ptr + w_rows[:, None] * (k // 2) + at[None, :], mask=exists[None, :], other=0)
        places = w_rows[:, None] * (k // SCALE_BLOCK) + (2 * at // SCALE_BLOCK)[None, :]
        scales = block_scales(scales_ptr, places, exists[None, :], KIND)
        even = tl.load(a_at + 2 * at, mask=exists, other=0.0).to(tl.float32)
        odd = tl.load(a_at + 2 * at + 1, mask=exists, other=0.0).to(tl.float32)
        low = numbers(packed & 15, table_at, table_ptr is None) * even[None, :]
        high = numbers(packed >> 4, table_at, table_ptr is None) * odd[None, :]
        products += (low + high) * scales
    sums = tl.sum(products, 1)
    if factors_ptr is not None:
        sums *= tl.load(factors_ptr + w_rows)
    tl.store(out_at, rounded(sums, out_ptr.dtype.element_ty), mask=columns < n)


def grouped_table(a: torch.Tensor, weight: TableWeight, num_experts: int, blocks: ExpertBlocks, top_k: int = 1):
    """out[p] = a[p // top_k] @ weight of p's expert.T -> [pairs, n]. `a` and `blocks` as in `grouped_gemm`. Rows of
    pairs in no block are left uninitialised."""
    n, k = _sizes(a, weight, num_experts)
    out = a.new_empty((blocks.num_pairs, n))
    c = table_experts_config(blocks.block_m, device_capability(a.device))
    grouped_table_kernel[(blocks.max_blocks * cdiv(n, c.block_n),)](
        a,
        *tensors(weight),
        out,
        blocks.sorted_pairs,
        blocks.block_experts,
        blocks.block_rows,
        n,
        k,
        top_k,
        BLOCK_M=blocks.block_m,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        **constants(weight),
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return out


def gather_table(
    a: torch.Tensor, weight: TableWeight, num_experts: int, expert_ids: torch.Tensor, top_k: int = 1
) -> torch.Tensor:
    """The same product for few pairs and without sorting. Pairs without an expert give zeros. The products of a pair
    are float32, of numbers that are not rounded."""
    n, k = _sizes(a, weight, num_experts)
    pairs = expert_ids.numel()
    out = a.new_empty((pairs, n))
    gather_table_kernel[(pairs, cdiv(n, GATHER_BLOCK_N))](
        a,
        *tensors(weight),
        out,
        expert_ids,
        n,
        k,
        top_k,
        num_experts,
        BLOCK_N=GATHER_BLOCK_N,
        BLOCK_K=GATHER_BLOCK_K,
        **constants(weight),
        num_warps=4,
        num_stages=2,
    )
    return out


def table_experts_reference(
    a: torch.Tensor, weight: TableWeight, num_experts: int, expert_ids: torch.Tensor, top_k: int = 1
) -> torch.Tensor:
    """The specification of both, in float32, pair by pair; zeros for pairs without an expert."""
    rows, k = weight.codes.shape[0], 2 * weight.codes.shape[1]
    restored = table_restore_reference(weight, torch.empty(rows, k, device=a.device)).view(num_experts, -1, k)
    out = a.new_zeros((expert_ids.numel(), restored.shape[1]))
    for pair, expert in enumerate(expert_ids.flatten().tolist()):
        if 0 <= expert < num_experts:
            out[pair] = (restored[expert] @ a[pair // top_k].float()).to(a.dtype)
    return out


def _sizes(a: torch.Tensor, weight: TableWeight, num_experts: int) -> tuple[int, int]:
    check(a.dtype, weight)
    rows, k = weight.codes.shape[0], 2 * weight.codes.shape[1]
    if a.shape[-1] != k or rows % num_experts or not a.is_contiguous():
        raise ValueError(f"{tuple(a.shape)} does not fit weights of {num_experts} experts, {rows} rows of {k} inputs")
    return rows // num_experts, k


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16: mxfp4 (typical: gpt-oss), nvfp4 and nf4, every size of blocks."""
    indices = dict.fromkeys(("sorted_pairs_ptr", "block_experts_ptr", "block_rows_ptr"), "*i32")
    for form, block_m in product((MXFP4, NVFP4, NF4), (16, 32, 64, 128)):
        c = table_experts_config(block_m, capability)
        pointers = {"a_ptr": "*bf16", **form.pointers(), "out_ptr": "*bf16", **indices}
        yield Specialisation(
            f"grouped_table[{form.name}_m{block_m}]",
            grouped_table_kernel,
            pointers | dict.fromkeys(("n", "k", "divisor"), "i32"),
            form.constants() | {"BLOCK_M": block_m, "BLOCK_N": c.block_n, "BLOCK_K": c.block_k},
            c.num_warps,
            c.num_stages,
            (*pointers, "k"),
            typical=form is MXFP4,
        )
    for form in (MXFP4, NVFP4, NF4):
        pointers = {"a_ptr": "*bf16", **form.pointers(), "out_ptr": "*bf16", "ids_ptr": "*i64"}
        yield Specialisation(
            f"gather_table[{form.name}]",
            gather_table_kernel,
            pointers | dict.fromkeys(("n", "k", "divisor", "num_experts"), "i32"),
            form.constants() | {"BLOCK_N": GATHER_BLOCK_N, "BLOCK_K": GATHER_BLOCK_K},
            4,
            2,
            (*pointers, "k"),
            typical=form is MXFP4,
        )
