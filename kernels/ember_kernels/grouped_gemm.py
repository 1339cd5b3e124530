# mypy: disable-error-code="no-untyped-def"
"""Matrix products of a mixture-of-experts layer: every pair (token, expert) times its expert's weights.

A layer with top_k experts a token, weights gate_up [E, 2I, H] and down [E, H, I], hidden [tokens, H]:

    few tokens (`uses_gather`)            otherwise
                                          blocks = expert_blocks(ids, E, block_rows(ids.numel(), E))
    up = gather_gemm(hidden, gate_up,     up = grouped_gemm(hidden, gate_up, blocks, top_k)
                     ids, top_k)
    act = silu(gate) * up                 the same, [pairs, I]
    down = gather_gemm(act, down, ids)    down = grouped_gemm(act, down, blocks)
    out = combine_experts(down, ids, weights, E)            [tokens, H]

All results are in the order of the pairs (pair p is token p // top_k), so nothing is sorted back. Rows of pairs that
belong to no expert here (see `expert_blocks`) are not written by `grouped_gemm`; `combine_experts` does not read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.expert_blocks import ExpertBlocks, pairs_of_block, store_pairs
from ember_kernels.launch import cdiv, direct
from ember_kernels.small_gemm import plain_sums
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.split_k import LARGE_SHARED

# Below this number of tokens `gather_gemm` reads weights hardly more often than `grouped_gemm` and needs no sorting.
# The number is an estimate: benchmarks/kernels/grouped_gemm.py compares the two.
GATHER_MAX_TOKENS = 4
GATHER_BLOCK_N = 16
COMBINE_BLOCK = 1024


@dataclass(frozen=True)
class Config:
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def block_rows(num_pairs: int, num_experts: int) -> int:
    """Rows of a block: the power of two next above the mean number of pairs of an expert, 16 to 128."""
    mean = num_pairs / num_experts
    return next((rows for rows in (16, 32, 64) if mean <= rows), 128)


def uses_gather(num_tokens: int) -> bool:
    """Whether `gather_gemm` is expected to be faster than sorting and `grouped_gemm`."""
    return num_tokens <= GATHER_MAX_TOKENS


def config(block_m: int, capability: int) -> Config:
    """The launch configuration: wide tiles of the weights for few rows, square tiles for the tensor cores for many."""
    large = capability in LARGE_SHARED
    if block_m <= 16:
        return Config(64, 128, 4, 4 if large else 3)
    if block_m == 32:
        return Config(64, 128, 4, 3)
    if block_m == 64:
        return Config(128, 64, 4, 3)
    return Config(128, 64, 8, 4 if large else 3)


@direct
@triton.jit(do_not_specialize=["n", "divisor"])
def grouped_gemm_kernel(
    a_ptr,
    w_ptr,
    out_ptr,
    sorted_pairs_ptr,
    block_experts_ptr,
    block_rows_ptr,
    router_ptr,
    n,
    k,
    divisor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One block of pairs, one tile of N. Tiles of a block are adjacent programs, which share its activations in L2."""
    tiles = tl.cdiv(n, BLOCK_N)
    is_pair, pairs, expert, has_expert = pairs_of_block(
        sorted_pairs_ptr, block_experts_ptr, block_rows_ptr, tl.program_id(0) // tiles, 0, BLOCK_M
    )
    columns = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the last repeat another one, so loads need no mask. Their results are not stored.
    sums = plain_sums(
        a_ptr + (pairs // divisor).to(tl.int64)[:, None] * k,
        w_ptr,
        expert * n + tl.minimum(columns, n - 1).to(tl.int64),
        k,
        0,
        tl.where(has_expert, k, 0),
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
    )
    if router_ptr is not None:
        sums *= tl.load(router_ptr + pairs).to(tl.float32)[:, None]
    store_pairs(out_ptr, sums, is_pair, pairs, columns, n)


@direct
@triton.jit(do_not_specialize=["n", "divisor", "num_experts"])
def gather_gemm_kernel(
    a_ptr,
    w_ptr,
    out_ptr,
    ids_ptr,
    router_ptr,
    n,
    k,
    divisor,
    num_experts,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One pair, one tile of N: a matrix times a vector, without tensor cores, since one row is limited by memory."""
    pair = tl.program_id(0)
    expert = tl.load(ids_ptr + pair).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out_at = out_ptr + pair.to(tl.int64) * n + columns
    if (expert < 0) | (expert >= num_experts):
        tl.store(out_at, tl.zeros((BLOCK_N,), out_ptr.dtype.element_ty), mask=columns < n)
        return
    at = tl.arange(0, BLOCK_K)
    a_at = a_ptr + (pair // divisor).to(tl.int64) * k + at
    w_rows = tl.minimum(columns, n - 1).to(tl.int64)
    w_at = w_ptr + expert * n * k + w_rows[:, None] * k + at[None, :]
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(0, k, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_at)
            w = tl.load(w_at)
        else:
            a = tl.load(a_at, mask=first + at < k, other=0.0)
            w = tl.load(w_at, mask=(first + at < k)[None, :], other=0.0)
        products += w.to(tl.float32) * a.to(tl.float32)[None, :]
        a_at += BLOCK_K
        w_at += BLOCK_K
    sums = tl.sum(products, 1)
    if router_ptr is not None:
        sums *= tl.load(router_ptr + pair).to(tl.float32)
    tl.store(out_at, sums.to(out_ptr.dtype.element_ty), mask=columns < n)


@direct
@triton.jit(do_not_specialize=["n", "top_k", "num_experts"])
def combine_experts_kernel(x_ptr, ids_ptr, router_ptr, out_ptr, n, top_k, num_experts, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for i in range(top_k):
        pair = token * top_k + i
        expert = tl.load(ids_ptr + pair)
        mask = columns < tl.where((expert >= 0) & (expert < num_experts), n, 0)
        x = tl.load(x_ptr + pair.to(tl.int64) * n + columns, mask=mask, other=0.0).to(tl.float32)
        if router_ptr is not None:
            x *= tl.load(router_ptr + pair).to(tl.float32)
        sums += x
    tl.store(out_ptr + token.to(tl.int64) * n + columns, sums.to(out_ptr.dtype.element_ty), mask=columns < n)


def grouped_gemm(
    a: torch.Tensor,
    w: torch.Tensor,
    blocks: ExpertBlocks,
    top_k: int = 1,
    router_weights: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """out[p] = a[p // top_k] @ w[expert of p].T (* router_weights[p]) -> [pairs, n]

    a [pairs / top_k, k] (top_k 1: a row a pair), w [experts, n, k], contiguous, bfloat16 or float16, k a multiple of
    16; router_weights [pairs] (any shape of that size), float32 or the dtype of a. blocks: of `expert_blocks`, with
    block_m 16, 32, 64 or 128. Sums are float32. Rows of pairs in no block are left as they were.
    """
    n, k = _check(a, w)
    if out is None:
        out = a.new_empty((blocks.num_pairs, n))
    c = config(blocks.block_m, device_capability(a.device))
    grouped_gemm_kernel[(blocks.max_blocks * cdiv(n, c.block_n),)](
        a,
        w,
        out,
        blocks.sorted_pairs,
        blocks.block_experts,
        blocks.block_rows,
        router_weights,
        n,
        k,
        top_k,
        BLOCK_M=blocks.block_m,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        EVEN_K=k % c.block_k == 0,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return out


def grouped_gemm_reference(
    a: torch.Tensor,
    w: torch.Tensor,
    blocks: ExpertBlocks,
    top_k: int = 1,
    router_weights: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `grouped_gemm`, in float32, block by block."""
    if out is None:
        out = a.new_empty((blocks.num_pairs, w.shape[1]))
    parts = blocks.sorted_pairs.split(blocks.block_m)
    for pairs, expert, rows in zip(parts, blocks.block_experts.tolist(), blocks.block_rows.tolist(), strict=True):
        own = pairs[:rows].long()
        result = a[own // top_k].float() @ w[expert].float().T
        if router_weights is not None:
            result *= router_weights.flatten()[own, None].float()
        out[own] = result.to(out.dtype)
    return out


def gather_gemm(
    a: torch.Tensor,
    w: torch.Tensor,
    expert_ids: torch.Tensor,
    top_k: int = 1,
    router_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same product as `grouped_gemm`, for few pairs and without sorting: each pair reads its expert's weights.

    expert_ids int32 or int64, any shape of [pairs] elements, contiguous. Pairs without an expert give zeros.
    """
    n, k = _check(a, w)
    pairs = expert_ids.numel()
    out = a.new_empty((pairs, n))
    block_k = _gather_block_k(k)
    gather_gemm_kernel[(pairs, cdiv(n, GATHER_BLOCK_N))](
        a,
        w,
        out,
        expert_ids,
        router_weights,
        n,
        k,
        top_k,
        w.shape[0],
        BLOCK_N=GATHER_BLOCK_N,
        BLOCK_K=block_k,
        EVEN_K=k % block_k == 0,
        num_warps=4,
        num_stages=2,
    )
    return out


def gather_gemm_reference(
    a: torch.Tensor,
    w: torch.Tensor,
    expert_ids: torch.Tensor,
    top_k: int = 1,
    router_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `gather_gemm`, in float32, pair by pair."""
    out = a.new_zeros((expert_ids.numel(), w.shape[1]))
    for pair, expert in enumerate(expert_ids.flatten().tolist()):
        if 0 <= expert < w.shape[0]:
            result = w[expert].float() @ a[pair // top_k].float()
            out[pair] = result if router_weights is None else result * router_weights.flatten()[pair].float()
    return out


def combine_experts(
    x: torch.Tensor, expert_ids: torch.Tensor, router_weights: torch.Tensor | None, num_experts: int
) -> torch.Tensor:
    """out[t] = the sum over i of x[t * top_k + i] (* router_weights[t, i]), of pairs with an expert here -> [tokens, n]

    x [tokens * top_k, n], expert_ids [tokens, top_k], contiguous. Sums are float32, in the order of i. router_weights
    is None where the matrix product has multiplied by them already.
    """
    (tokens, top_k), n = expert_ids.shape, x.shape[1]
    out = x.new_empty((tokens, n))
    combine_experts_kernel[(tokens, cdiv(n, COMBINE_BLOCK))](
        x, expert_ids, router_weights, out, n, top_k, num_experts, BLOCK=COMBINE_BLOCK, num_warps=4, num_stages=1
    )
    return out


def combine_experts_reference(
    x: torch.Tensor, expert_ids: torch.Tensor, router_weights: torch.Tensor | None, num_experts: int
) -> torch.Tensor:
    """The specification of `combine_experts`."""
    tokens, top_k = expert_ids.shape
    here = ((expert_ids >= 0) & (expert_ids < num_experts)).reshape(tokens, top_k, 1)
    values = torch.where(here, x.reshape(tokens, top_k, -1).float(), 0.0)
    if router_weights is not None:
        values = values * router_weights.reshape(tokens, top_k, 1).float()
    return values.sum(1).to(x.dtype)


def _check(a: torch.Tensor, w: torch.Tensor) -> tuple[int, int]:
    _, n, k = w.shape
    if k % 16 or a.shape[-1] != k:
        raise ValueError(f"k must be a multiple of 16 and the same in a {a.shape} and w {w.shape}")
    if a.dtype not in (torch.bfloat16, torch.float16) or w.dtype != a.dtype:
        raise ValueError(f"expert products take bfloat16 or float16 and were given {a.dtype} and {w.dtype}")
    if not (a.is_contiguous() and w.is_contiguous()):
        raise ValueError("expert products need contiguous a and w")
    return n, k


def _gather_block_k(k: int) -> int:
    return next((block for block in (512, 256, 128) if k % block == 0), 256)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Every block size, for K of whole tiles (typical) and not, bfloat16 (typical) and float16.

    Kernels that multiply by router weights are left out: `combine_experts` does so in this module's recipe.
    """
    for dtype in ("bf16", "fp16"):
        for even in (True, False):
            yield from _gemm_specialisations(dtype, even, dtype == "bf16" and even, capability)
        for kind in ("i32", "i64"):
            pointers = {"x_ptr": f"*{dtype}", "ids_ptr": f"*{kind}", "router_ptr": "*fp32", "out_ptr": f"*{dtype}"}
            signature = pointers | {"n": "i32", "top_k": "i32", "num_experts": "i32"}
            yield Specialisation(
                f"combine_experts[{dtype}_{kind}]",
                combine_experts_kernel,
                signature,
                {"BLOCK": COMBINE_BLOCK},
                4,
                1,
                tuple(pointers),
                dtype == "bf16" and kind == "i64",
            )


def _gemm_specialisations(dtype: str, even: bool, typical: bool, capability: int) -> Iterator[Specialisation]:
    pointers = {"a_ptr": f"*{dtype}", "w_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"}
    constants: dict[str, Any] = {"EVEN_K": even, "router_ptr": None}
    sizes = {"n": "i32", "k": "i32", "divisor": "i32"}
    name = f"{dtype}{'' if even else '_odd'}"
    indices = dict.fromkeys(("sorted_pairs_ptr", "block_experts_ptr", "block_rows_ptr"), "*i32")
    for block_m in (16, 32, 64, 128):
        c = config(block_m, capability)
        tiles = {"BLOCK_M": block_m, "BLOCK_N": c.block_n, "BLOCK_K": c.block_k}
        yield Specialisation(
            f"grouped_gemm[{name}_m{block_m}]",
            grouped_gemm_kernel,
            pointers | indices | sizes,
            constants | tiles,
            c.num_warps,
            c.num_stages,
            (*pointers, *indices, "k"),
            typical,
        )
    for kind in ("i32", "i64"):
        for block_k in (512, 256, 128) if even else (256,):
            own = pointers | {"ids_ptr": f"*{kind}"}
            yield Specialisation(
                f"gather_gemm[{name}_{kind}_k{block_k}]",
                gather_gemm_kernel,
                own | sizes | {"num_experts": "i32"},
                constants | {"BLOCK_N": GATHER_BLOCK_N, "BLOCK_K": block_k},
                4,
                2,
                (*own, "k"),
                typical and kind == "i64",
            )
