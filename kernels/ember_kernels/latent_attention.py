# mypy: disable-error-code="no-untyped-def"
"""Latent attention (MLA, arXiv 2405.04434) over the paged cache, with absorbed queries: what decodes (`latent_decode`)
and prompts (`latent_prefill`) share.

The cache has one vector a token: the latent, of `rank` elements, and the rotated key. It is the key of every query
head, and its first `rank` elements are the value. A tile of latents is loaded once, and multiplied twice.

FLOPs: 2 * heads * (2 * rank + rotary_dim) * (visible pairs of query and key).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import INTERPRET, cache_tile
from ember_kernels.latent_cache import SIZES
from ember_kernels.launch import next_power_of_2

DTYPES = (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp8e4nv"), ("fp32", "fp32"))  # of query and cache


@triton.jit
def attend_tiles(
    query,
    turned,
    sums,
    maxima,
    weights,
    cache_ptr,
    table_ptr,
    stride,
    begin,
    end,
    positions,
    scale,
    DTYPE: tl.constexpr,
    CAUSAL: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_ROTARY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """The attention of rows of query [rows, rank] and turned [rows, rotary_dim] to latents from `begin` to `end`."""
    ranks = tl.arange(0, BLOCK_RANK)
    dims = tl.arange(0, BLOCK_ROTARY)
    offsets = tl.arange(0, BLOCK_N)
    for tile in range(begin, end, BLOCK_N):
        at = tile + offsets
        stored = at < end
        blocks = tl.load(table_ptr + at // BLOCK_SIZE, mask=stored, other=0).to(tl.int64)
        slots = (blocks * BLOCK_SIZE + at % BLOCK_SIZE) * stride
        # What is not visible reads as zero: a NaN there would survive a weight of zero.
        latent = tl.load(
            cache_ptr + slots[:, None] + ranks[None, :], mask=stored[:, None] & (ranks < RANK)[None, :], other=0.0
        )
        latent = cache_tile(latent, DTYPE, FP8_BITS, INTERPRET)
        key = tl.load(
            cache_ptr + RANK + slots[None, :] + dims[:, None],
            mask=stored[None, :] & (dims < ROTARY_DIM)[:, None],
            other=0.0,
        )
        key = cache_tile(key, DTYPE, FP8_BITS, INTERPRET)
        scores = tl.dot(query, tl.trans(latent), input_precision="ieee")
        scores = tl.dot(turned, key, scores, input_precision="ieee") * scale
        visible = stored[None, :]
        if CAUSAL:
            visible = visible & (at[None, :] <= positions[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        highest = tl.maximum(maxima, tl.max(scores, 1))  # finite: every row sees a position of the first tile
        weight = tl.exp2(scores - highest[:, None])
        decay = tl.exp2(maxima - highest)
        weights = weights * decay + tl.sum(weight, 1)
        sums = tl.dot(weight.to(latent.dtype), latent, sums * decay[:, None], input_precision="ieee")
        maxima = highest
    return sums, maxima, weights


def head_group(heads: int, most: int) -> int:
    """How many heads are rows of one tile: the largest divisor up to `most`."""
    return max(count for count in range(1, min(heads, most) + 1) if heads % count == 0)


def kernel_sizes(rank: int, size: int, stored: Tensor, fp8_bits: bool) -> dict[str, Any]:
    return {
        "RANK": rank,
        "BLOCK_RANK": max(16, next_power_of_2(rank)),
        "ROTARY_DIM": size - rank,
        "BLOCK_ROTARY": max(16, next_power_of_2(size - rank)),
        "BLOCK_SIZE": stored.shape[1],
        "FP8_BITS": fp8_bits,
        "INTERPRET": INTERPRET,
    }


def as_stored(cache: Tensor, capability: int) -> tuple[Tensor, bool]:
    """The cache and False; or as uint8 and True where the device has no float8 type."""
    if cache.dtype == torch.float8_e4m3fn and (INTERPRET or capability < 89):
        return cache.view(torch.uint8), True
    return cache, False


def check(query: Tensor, cache: Tensor, block_tables: Tensor, rank: int) -> None:
    """Raise ValueError for shapes, dtypes and strides that the kernels do not support."""
    size = query.shape[2]
    if cache.dim() != 4 or cache.shape[2:] != (1, size) or not 0 < rank < size:
        raise ValueError(f"the cache {tuple(cache.shape)} of rank {rank} does not fit query {tuple(query.shape)}")
    if not query.is_contiguous():
        raise ValueError(f"query must be contiguous: {query.stride()}")
    if query.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"query must be bfloat16, float16 or float32 and is {query.dtype}")
    if cache.dtype not in (query.dtype, torch.float8_e4m3fn):
        raise ValueError(f"the cache must be {query.dtype} or float8_e4m3fn and is {cache.dtype}")
    if cache.stride(3) != 1 or cache.stride(0) != cache.shape[1] * cache.stride(1):
        raise ValueError(f"a cache's slots must be one stride apart: {tuple(cache.shape)}, {cache.stride()}")
    if block_tables.dtype != torch.int32 or block_tables.stride(1) != 1:
        raise ValueError("block_tables must be int32 with contiguous rows")


class Variant(NamedTuple):
    """A size and the dtypes of query and cache for which kernels are compiled, and what is the same in all of them."""

    name: str
    rank: int
    element_size: int  # of the cache
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    typical: bool


def variants(capability: int) -> Iterator[Variant]:
    """Those of published models, in pages of 16 tokens."""
    for (rank, rotary_dim), (dtype, cache_dtype) in product(SIZES, DTYPES):
        fp8_bits = cache_dtype == "fp8e4nv" and capability < 89
        signature = {"query_ptr": f"*{dtype}", "cache_ptr": f"*{'u8' if fp8_bits else cache_dtype}"}
        signature |= {"out_ptr": f"*{dtype}", "stride": "i32"}
        divisible = tuple(signature)
        signature |= {"block_tables_ptr": "*i32", "seq_lens_ptr": "*i32"}
        signature |= dict.fromkeys(("table_stride", "num_seqs", "group"), "i32")
        signature |= dict.fromkeys(("scale", "v_scale"), "fp32")
        constants: dict[str, Any] = {
            "RANK": rank,
            "BLOCK_RANK": next_power_of_2(rank),
            "ROTARY_DIM": rotary_dim,
            "BLOCK_ROTARY": next_power_of_2(rotary_dim),
            "BLOCK_SIZE": 16,
            "FP8_BITS": fp8_bits,
            "INTERPRET": False,
        }
        name = f"{dtype}_cache_{cache_dtype}_{rank}+{rotary_dim}"
        element_size = {"fp32": 4, "fp8e4nv": 1}.get(cache_dtype, 2)
        typical = (dtype, cache_dtype, rank) == ("bf16", "bf16", 512)
        yield Variant(name, rank, element_size, signature, constants, divisible, typical)
