# mypy: disable-error-code="no-untyped-def"
"""Matrix products of a layer of experts whose weights are integers of 4 or 8 bits: the recipe of `grouped_gemm`, with
`gather_ints` in place of `gather_gemm` and `grouped_ints` in place of `grouped_gemm`.

The codes, scales and zero points of all experts are those of one layer of `int_gemm`, expert after expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl

from ember_kernels.expert_blocks import ExpertBlocks, pairs_of_block, store_pairs
from ember_kernels.int_gemm import FORMS, check, int_restore_reference, int_sums
from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.split_k import LARGE_SHARED

GATHER_BLOCK_N = 16
BLOCK_N = 64

Ints = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int]
"""Codes, scales, zero points and bits, as `int_gemm` takes them, of all experts."""


@direct
@triton.jit(do_not_specialize=["n", "divisor", "group", "groups"])
def grouped_ints_kernel(
    a_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    out_ptr,
    sorted_pairs_ptr,
    block_experts_ptr,
    block_rows_ptr,
    n,
    k,
    row_bytes,
    divisor,
    group,
    groups,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One block of pairs, one tile of N. Tiles of a block are adjacent programs, which share its activations in L2."""
    tiles = tl.cdiv(n, BLOCK_N)
    is_pair, pairs, expert, has_expert = pairs_of_block(
        sorted_pairs_ptr, block_experts_ptr, block_rows_ptr, tl.program_id(0) // tiles, 0, BLOCK_M
    )
    columns = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the last repeat another one. Their results are not stored.
    sums = int_sums(
        a_ptr + (pairs // divisor).to(tl.int64)[:, None] * k,
        codes_ptr,
        scale_ptr,
        zero_ptr,
        expert * n + tl.minimum(columns, n - 1).to(tl.int64),
        k,
        0,
        tl.where(has_expert, k, 0),
        row_bytes,
        group,
        groups,
        BITS,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    store_pairs(out_ptr, sums, is_pair, pairs, columns, n)


@direct
@triton.jit(do_not_specialize=["n", "divisor", "num_experts", "group", "groups"])
def gather_ints_kernel(
    a_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    out_ptr,
    ids_ptr,
    n,
    k,
    row_bytes,
    divisor,
    num_experts,
    group,
    groups,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
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
    bytes_at = tl.arange(0, BLOCK_K * BITS // 8)
    a_at = a_ptr + (pair // divisor).to(tl.int64) * k
    products = tl.zeros((BLOCK_N, BLOCK_K * BITS // 8), tl.float32)
    for first in range(0, k, BLOCK_K):
        codes = tl.load(codes_ptr + w_rows[:, None] * row_bytes + (first * BITS // 8 + bytes_at)[None, :])
        at = w_rows * groups + first // group
        scales = tl.load(scale_ptr + at).to(tl.float32)[:, None]
        if zero_ptr is not None:
            zeros = tl.load(zero_ptr + at).to(tl.float32)[:, None]
        else:
            zeros = tl.full((BLOCK_N, 1), 1 << (BITS - 1), tl.float32)
        if BITS == 4:
            even = tl.load(a_at + first + 2 * bytes_at).to(tl.float32)[None, :]
            odd = tl.load(a_at + first + 2 * bytes_at + 1).to(tl.float32)[None, :]
            low, high = (codes & 15).to(tl.float32) - zeros, (codes >> 4).to(tl.float32) - zeros
            products += (low * even + high * odd) * scales
        else:
            a = tl.load(a_at + first + bytes_at).to(tl.float32)[None, :]
            products += (codes.to(tl.float32) - zeros) * a * scales
    tl.store(out_at, rounded(tl.sum(products, 1), out_ptr.dtype.element_ty), mask=columns < n)


def grouped_ints(a: torch.Tensor, weight: Ints, num_experts: int, blocks: ExpertBlocks, top_k: int = 1) -> torch.Tensor:
    """out[p] = a[p // top_k] @ weight of p's expert.T -> [pairs, n]. `a` and `blocks` as in `grouped_gemm`. Rows of
    pairs in no block are left uninitialised."""
    n, k, group = _sizes(a, weight, num_experts)
    codes, scales, zeros, bits = weight
    out = a.new_empty((blocks.num_pairs, n))
    grouped_ints_kernel[(blocks.max_blocks * cdiv(n, BLOCK_N),)](
        a,
        codes,
        scales,
        zeros,
        out,
        blocks.sorted_pairs,
        blocks.block_experts,
        blocks.block_rows,
        n,
        k,
        codes.shape[1],
        top_k,
        group,
        scales.shape[1],
        BITS=bits,
        BLOCK_M=blocks.block_m,
        BLOCK_N=BLOCK_N,
        BLOCK_K=_block_k(group),
        num_warps=_warps(blocks.block_m),
        num_stages=_stages(device_capability(a.device)),
    )
    return out


def gather_ints(
    a: torch.Tensor, weight: Ints, num_experts: int, expert_ids: torch.Tensor, top_k: int = 1
) -> torch.Tensor:
    """The same product for few pairs and without sorting. Pairs without an expert give zeros. The products of a pair
    are float32, of numbers that are not rounded."""
    n, k, group = _sizes(a, weight, num_experts)
    codes, scales, zeros, bits = weight
    pairs = expert_ids.numel()
    out = a.new_empty((pairs, n))
    gather_ints_kernel[(pairs, cdiv(n, GATHER_BLOCK_N))](
        a,
        codes,
        scales,
        zeros,
        out,
        expert_ids,
        n,
        k,
        codes.shape[1],
        top_k,
        num_experts,
        group,
        scales.shape[1],
        BITS=bits,
        BLOCK_N=GATHER_BLOCK_N,
        BLOCK_K=_block_k(group),
        num_warps=4,
        num_stages=3,
    )
    return out


def int_experts_reference(
    a: torch.Tensor, weight: Ints, num_experts: int, expert_ids: torch.Tensor, top_k: int = 1
) -> torch.Tensor:
    """The specification of both, in float32, pair by pair; zeros for pairs without an expert."""
    n, k, _ = _sizes(a, weight, num_experts)
    restored = int_restore_reference(*weight, torch.empty(num_experts * n, k, device=a.device)).view(num_experts, n, k)
    out = a.new_zeros((expert_ids.numel(), n))
    for pair, expert in enumerate(expert_ids.flatten().tolist()):
        if 0 <= expert < num_experts:
            out[pair] = (restored[expert] @ a[pair // top_k].float()).to(a.dtype)
    return out


def _block_k(group: int) -> int:
    return min(128, group & -group)


def _warps(block_m: int) -> int:
    return 4 if block_m <= 64 else 8


def _stages(capability: int) -> int:
    return 4 if capability in LARGE_SHARED else 3


def _sizes(a: torch.Tensor, weight: Ints, num_experts: int) -> tuple[int, int, int]:
    """Outputs of an expert, inputs, and inputs of a group."""
    rows, k = len(weight[0]), a.shape[-1]
    group = check(a.dtype, k, *weight)
    if rows % num_experts or not a.is_contiguous():
        raise ValueError(f"{tuple(a.shape)} does not fit weights of {num_experts} experts, {rows} rows of {k} inputs")
    return rows // num_experts, k, group


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16, groups of 128 or rows, every size of blocks."""
    indices = dict.fromkeys(("sorted_pairs_ptr", "block_experts_ptr", "block_rows_ptr"), "*i32")
    for (bits, scale, has_zeros), block_m in product(FORMS, (16, 32, 64, 128)):
        pointers = {"a_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": f"*{scale}", "out_ptr": "*bf16", **indices}
        pointers |= {"zero_ptr": "*u8"} if has_zeros else {}
        yield Specialisation(
            f"grouped_ints[w{bits}_{scale}{'_zeros' if has_zeros else ''}_m{block_m}]",
            grouped_ints_kernel,
            pointers | dict.fromkeys(("n", "k", "row_bytes", "divisor", "group", "groups"), "i32"),
            {"BITS": bits, "BLOCK_M": block_m, "BLOCK_N": BLOCK_N, "BLOCK_K": 128}
            | ({} if has_zeros else {"zero_ptr": None}),
            _warps(block_m),
            _stages(capability),
            (*pointers, "k", "row_bytes"),
            typical=block_m == 16 and bits == 4,
        )
    for bits, scale, has_zeros in FORMS:
        pointers = {"a_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": f"*{scale}", "out_ptr": "*bf16"}
        pointers |= {"ids_ptr": "*i64"} | ({"zero_ptr": "*u8"} if has_zeros else {})
        yield Specialisation(
            f"gather_ints[w{bits}_{scale}{'_zeros' if has_zeros else ''}]",
            gather_ints_kernel,
            pointers | dict.fromkeys(("n", "k", "row_bytes", "divisor", "num_experts", "group", "groups"), "i32"),
            {"BITS": bits, "BLOCK_N": GATHER_BLOCK_N, "BLOCK_K": 128} | ({} if has_zeros else {"zero_ptr": None}),
            4,
            3,
            (*pointers, "k", "row_bytes"),
            typical=bits == 4,
        )
