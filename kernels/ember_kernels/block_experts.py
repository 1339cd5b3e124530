# mypy: disable-error-code="no-untyped-def"
"""Matrix products of a layer of experts whose weights are GGUF's blocks: the recipe of `grouped_gemm`, with
`gather_blocks` in place of `gather_gemm` and `grouped_blocks` in place of `grouped_gemm`.

The blocks of all experts are those of one layer of `block_gemm`, expert after expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl

from ember_kernels.block_gemm import BLOCK_N, TYPICAL, block_sums, check, constants
from ember_kernels.block_types import BLOCK_TYPES
from ember_kernels.expert_blocks import (
    GATHER_BLOCK_M,
    ExpertBlocks,
    Places,
    no_places,
    pairs_of_block,
    places_of,
    store_pairs,
)
from ember_kernels.launch import cdiv, direct
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.split_k import LARGE_SHARED


@direct
@triton.jit(do_not_specialize=["n", "row_blocks", "divisor", "num_experts"])
def block_experts_kernel(
    a_ptr,
    blocks_ptr,
    out_ptr,
    sorted_pairs_ptr,  # None: each pair is a block
    experts_ptr,
    block_rows_ptr,
    n,
    k,
    row_blocks,
    divisor,
    num_experts,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    RUN: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """One block of pairs, one tile of N. Tiles of a block are adjacent programs, which share its activations in L2."""
    tiles = tl.cdiv(n, BLOCK_N)
    block = tl.program_id(0) // tiles
    is_pair, pairs, expert, has_expert = pairs_of_block(
        sorted_pairs_ptr, experts_ptr, block_rows_ptr, block, num_experts, BLOCK_M
    )
    columns = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the last repeat another one. Their results are not stored.
    a_rows_at = a_ptr + (pairs // divisor).to(tl.int64)[:, None] * k
    w_rows = expert * n + tl.minimum(columns, n - 1).to(tl.int64)
    row_at = blocks_ptr + w_rows[None, None, :] * (row_blocks * SIZE)
    last = tl.where(has_expert, tl.cdiv(k, POSITIONS * PLANES), 0)
    sums = block_sums(
        a_rows_at, row_at, k, 0, last, BLOCK_M, BLOCK_N, TYPE, SIZE, ELEMENTS, PLANES, SHARE, RUN, POSITIONS
    )
    store_pairs(out_ptr, sums, is_pair, pairs, columns, n)


def grouped_blocks(
    a: torch.Tensor, weight: torch.Tensor, type_name: str, num_experts: int, blocks: ExpertBlocks, top_k: int = 1
) -> torch.Tensor:
    """out[p] = a[p // top_k] @ weight of p's expert.T -> [pairs, n]. `a` and `blocks` as in `grouped_gemm`; `weight`:
    the blocks of all experts [experts * n, bytes of a row], as `block_gemm` takes them. Rows of pairs in no block are
    left uninitialised."""
    where = blocks.sorted_pairs, blocks.block_experts, blocks.block_rows
    return _launch(a, weight, type_name, num_experts, where, blocks.block_m, blocks.max_blocks, blocks.num_pairs, top_k)


def gather_blocks(
    a: torch.Tensor,
    weight: torch.Tensor,
    type_name: str,
    num_experts: int,
    expert_ids: torch.Tensor,
    top_k: int = 1,
) -> torch.Tensor:
    """The product of `grouped_blocks`, of few pairs and without sorting. Pairs without an expert give zeros."""
    pairs = expert_ids.numel()
    where = None, expert_ids, None
    return _launch(a, weight, type_name, num_experts, where, GATHER_BLOCK_M, pairs, pairs, top_k)


def _launch(
    a: torch.Tensor,
    weight: torch.Tensor,
    type_name: str,
    num_experts: int,
    where: Places,
    block_m: int,
    num_blocks: int,
    num_pairs: int,
    top_k: int,
) -> torch.Tensor:
    rows, k = len(weight), a.shape[-1]
    row_blocks = check(a.dtype, k, weight, type_name)
    if rows % num_experts or not a.is_contiguous():
        raise ValueError(f"{tuple(a.shape)} does not fit weights of {num_experts} experts, {rows} rows of {k} inputs")
    n = rows // num_experts
    out = a.new_empty((num_pairs, n))
    block_experts_kernel[(num_blocks * cdiv(n, BLOCK_N),)](
        a,
        weight,
        out,
        *where,
        n,
        k,
        row_blocks,
        top_k,
        num_experts,
        BLOCK_M=block_m,
        BLOCK_N=BLOCK_N,
        **constants(type_name),
        num_warps=_warps(block_m),
        num_stages=_stages(device_capability(a.device)),
    )
    return out


def _warps(block_m: int) -> int:
    return 4 if block_m <= 32 else 8


def _stages(capability: int) -> int:
    return 4 if capability in LARGE_SHARED else 3


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16, every type, every size of blocks, and gathered pairs."""
    sizes = dict.fromkeys(("n", "k", "row_blocks", "divisor", "num_experts"), "i32")
    for type_name, block_m in product(BLOCK_TYPES, (0, 16, 32, 64, 128)):
        pointers = {"a_ptr": "*bf16", "blocks_ptr": "*u8", "out_ptr": "*bf16"} | places_of(block_m)
        yield Specialisation(
            f"{f'grouped_blocks[{type_name}_m{block_m}]' if block_m else f'gather_blocks[{type_name}]'}",
            block_experts_kernel,
            pointers | sizes,
            {"BLOCK_M": block_m or GATHER_BLOCK_M, "BLOCK_N": BLOCK_N, **constants(type_name)} | no_places(block_m),
            _warps(block_m),
            _stages(capability),
            (*pointers, "k"),
            typical=type_name == TYPICAL[0] and block_m in (0, 16),
        )
