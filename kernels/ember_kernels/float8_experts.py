# mypy: disable-error-code="no-untyped-def"
"""Matrix products of a layer of experts whose weights are in float8: the recipe of `grouped_gemm`, with
`gather_float8` in place of `gather_gemm` and `grouped_float8` in place of `grouped_gemm`.

The codes and scales of all experts are those of one layer of `float8_gemm`, expert after expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl

from ember_kernels.expert_blocks import (
    GATHER_BLOCK_M,
    ExpertBlocks,
    Places,
    no_places,
    pairs_of_block,
    places_of,
    store_pairs,
)
from ember_kernels.float8_gemm import FORMS, check, config, float8_restore_reference, float8_sums
from ember_kernels.launch import cdiv, direct
from ember_kernels.specialisation import Specialisation, device_capability

Float8 = tuple[torch.Tensor, torch.Tensor, tuple[int, int]]
"""Codes, scales and their blocks, as `float8_gemm` takes them, of all experts."""


@direct
@triton.jit(do_not_specialize=["n", "scale_stride", "divisor", "num_experts"])
def float8_experts_kernel(
    a_ptr,
    codes_ptr,
    scale_ptr,
    out_ptr,
    sorted_pairs_ptr,  # None: each pair is a block
    experts_ptr,
    block_rows_ptr,
    n,
    k,
    scale_stride,
    divisor,
    num_experts,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One block of pairs, one tile of N. Tiles of a block are adjacent programs, which share its activations in L2."""
    tiles = tl.cdiv(n, BLOCK_N)
    block = tl.program_id(0) // tiles
    is_pair, pairs, expert, has_expert = pairs_of_block(
        sorted_pairs_ptr, experts_ptr, block_rows_ptr, block, num_experts, BLOCK_M
    )
    columns = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the last repeat another one. Their results are not stored.
    sums = float8_sums(
        a_ptr + (pairs // divisor).to(tl.int64)[:, None] * k,
        codes_ptr,
        scale_ptr,
        expert * n + tl.minimum(columns, n - 1).to(tl.int64),
        k,
        0,
        tl.where(has_expert, k, 0),
        scale_stride,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        HEIGHT,
        WIDTH,
    )
    store_pairs(out_ptr, sums, is_pair, pairs, columns, n)


def grouped_float8(
    a: torch.Tensor, weight: Float8, num_experts: int, blocks: ExpertBlocks, top_k: int = 1
) -> torch.Tensor:
    """out[p] = a[p // top_k] @ weight of p's expert.T -> [pairs, n]. `a` and `blocks` as in `grouped_gemm`. Rows of
    pairs in no block are left uninitialised."""
    where = blocks.sorted_pairs, blocks.block_experts, blocks.block_rows
    return _launch(a, weight, num_experts, where, blocks.block_m, blocks.max_blocks, blocks.num_pairs, top_k)


def gather_float8(
    a: torch.Tensor, weight: Float8, num_experts: int, expert_ids: torch.Tensor, top_k: int = 1
) -> torch.Tensor:
    """The product of `grouped_float8`, of few pairs and without sorting. Pairs without an expert give zeros."""
    pairs = expert_ids.numel()
    return _launch(a, weight, num_experts, (None, expert_ids, None), GATHER_BLOCK_M, pairs, pairs, top_k)


def _launch(
    a: torch.Tensor,
    weight: Float8,
    num_experts: int,
    where: Places,
    block_m: int,
    num_blocks: int,
    num_pairs: int,
    top_k: int,
) -> torch.Tensor:
    codes, scales, block = weight
    rows, k = codes.shape
    check(a.dtype, codes, scales, block)
    if a.shape[-1] != k or rows % num_experts or not a.is_contiguous():
        raise ValueError(f"{tuple(a.shape)} does not fit weights of {num_experts} experts, {rows} rows of {k} inputs")
    n, width = rows // num_experts, 0 if block[1] >= k else block[1]
    c = config(n, k, width or 128, device_capability(a.device))
    out = a.new_empty((num_pairs, n))
    float8_experts_kernel[(num_blocks * cdiv(n, c.block_n),)](
        a,
        codes.view(torch.uint8),
        scales,
        out,
        *where,
        n,
        k,
        scales.shape[1],
        top_k,
        num_experts,
        BLOCK_M=block_m,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        EVEN_K=k % c.block_k == 0,
        HEIGHT=block[0],
        WIDTH=width,
        num_warps=_warps(block_m),
        num_stages=_stages(block_m, c.num_stages),
    )
    return out


def float8_experts_reference(
    a: torch.Tensor, weight: Float8, num_experts: int, expert_ids: torch.Tensor, top_k: int = 1
) -> torch.Tensor:
    """The specification of both, in float32, pair by pair; zeros for pairs without an expert."""
    codes, scales, block = weight
    restored = float8_restore_reference(codes, scales, block, torch.empty(codes.shape, device=a.device))
    experts = restored.view(num_experts, -1, codes.shape[1])
    out = a.new_zeros((expert_ids.numel(), experts.shape[1]))
    for pair, expert in enumerate(expert_ids.flatten().tolist()):
        if 0 <= expert < num_experts:
            out[pair] = (experts[expert] @ a[pair // top_k].float()).to(a.dtype)
    return out


def _warps(block_m: int) -> int:
    return 4 if block_m <= 32 else 8


def _stages(block_m: int, most: int) -> int:
    """A tile of many rows is 32 KB of inputs and as much of weights in 16 bits."""
    return 2 if block_m == 128 else most


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16, scales of rows and of blocks of 128 (typical), every size of blocks, and gathered pairs."""
    sizes = dict.fromkeys(("n", "k", "scale_stride", "divisor", "num_experts"), "i32")
    stages = config(4096, 4096, 128, capability).num_stages
    for (height, width), block_m in product(FORMS, (0, 16, 32, 64, 128)):
        pointers = {"a_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": "*fp32", "out_ptr": "*bf16"} | places_of(block_m)
        yield Specialisation(
            f"{'grouped' if block_m else 'gather'}_float8[{height}x{width}{f'_m{block_m}' if block_m else ''}]",
            float8_experts_kernel,
            pointers | sizes,
            {"BLOCK_M": block_m or GATHER_BLOCK_M, "BLOCK_N": 64, "BLOCK_K": 128, "EVEN_K": True}
            | {"HEIGHT": height, "WIDTH": width}
            | no_places(block_m),
            _warps(block_m),
            _stages(block_m, stages),
            (*pointers, "k"),
            typical=height == 128 and block_m in (0, 16),
        )
