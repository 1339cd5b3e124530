# mypy: disable-error-code="no-untyped-def"
"""Latent attention (MLA, arXiv 2405.04434) over the paged cache, with absorbed queries, for decodes and for prompts.

The cache has one vector a token: the latent, of `rank` elements, and the rotated key. It is the key of every query
head, and its first `rank` elements are the value. A tile of latents is loaded once, and multiplied twice.

Decodes divide their work as decode attention does (`decode_plan`): some query heads of a sequence take the place of
those that share a KV head. Prompts have tiles of tokens times heads, as in prefill attention; each reads the context.

FLOPs: 2 * heads * (2 * rank + rotary_dim) * (visible pairs of query and key). Bytes of decodes: visible context *
(rank + rotary_dim) * size of the cache's type, for each group of heads, of which there are at most 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import (
    INTERPRET,
    LOG2_E,
    NO_WINDOW,
    STARTS_BLOCK,
    cache_tile,
    paged_attention_reference,
    prompt_tile,
)
from ember_kernels.attention_tables import config as decode_config
from ember_kernels.compile import Specialisation, device_capability
from ember_kernels.decode_plan import (
    HEADER,
    DecodePlan,
    add_parts,
    multiprocessors,
    plan_decodes,
    visible_tiles,
)
from ember_kernels.latent_cache import SIZES
from ember_kernels.launch import direct, next_power_of_2

MOST_HEADS = 16  # rows of a decode's tile: the least a tensor core takes
PROGRAMS = 2  # of decodes for each multiprocessor


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def config(rank: int, element_size: int, capability: int) -> Config:
    """The tiles of prompts. Not measured yet. A tile of 16 latents of 576 elements in 16 bits takes 18 KiB: two of them
    and the queries of 32 rows fit in the 99 KiB of sm_86, sm_89 and sm_120."""
    if element_size == 4:
        return Config(16, 16, 8, 1)
    large = capability in (80, 90, 100) or rank <= 256
    return Config(32, 32 if large else 16, 8, 2)


@triton.jit
def _attend(
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


@direct
@triton.jit(
    do_not_specialize=[
        "block_tables_ptr",
        "seq_lens_ptr",
        "maxima_ptr",
        "weights_ptr",
        "table_stride",
        "num_seqs",
        "head_groups",
        "group",
    ]
)
def latent_decode_kernel(
    query_ptr,
    cache_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    words_ptr,
    out_ptr,
    sums_ptr,
    maxima_ptr,
    weights_ptr,
    stride,
    table_stride,
    num_seqs,
    head_groups,
    group,
    scale,
    v_scale,
    HEADER: tl.constexpr,
    NO_WINDOW: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_ROTARY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """A piece of the plan's list of tiles: contexts of groups of heads, the first and last of which may be divided."""
    program = tl.program_id(0)
    share = tl.load(words_ptr)
    begin = program * share
    stop = tl.minimum(begin + share, tl.load(words_ptr + 1))
    if begin >= stop:
        return
    busy_ptr = words_ptr + HEADER + num_seqs
    place = tl.load(busy_ptr + num_seqs + program)
    rows = tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, BLOCK_RANK)
    dims = tl.arange(0, BLOCK_ROTARY)
    row_mask = rows < group
    mask = row_mask[:, None] & (ranks < RANK)[None, :]
    at = begin
    while at < stop:
        seq = tl.load(busy_ptr + place).to(tl.int64)
        seq_len = tl.load(seq_lens_ptr + seq)
        _, _, tiles = visible_tiles(seq_len, NO_WINDOW, BLOCK_N, False)
        offset = at - tl.load(words_ptr + HEADER + seq) * head_groups
        head_group = offset // tiles
        tile = offset - head_group * tiles
        count = tl.minimum(tiles - tile, stop - at)
        start = tile * BLOCK_N
        end = tl.minimum(start + count * BLOCK_N, seq_len)
        out_rows = seq * (head_groups * group) + head_group * group + rows
        query_rows = query_ptr + out_rows[:, None] * (RANK + ROTARY_DIM)
        query = tl.load(query_rows + ranks[None, :], mask=mask, other=0.0)
        turned_mask = row_mask[:, None] & (dims < ROTARY_DIM)[None, :]
        turned = tl.load(query_rows + RANK + dims[None, :], mask=turned_mask, other=0.0)
        DTYPE: tl.constexpr = query.dtype
        if INTERPRET:  # the interpreter's dot of bfloat16 is wrong
            query, turned = query.to(tl.float32), turned.to(tl.float32)
        sums, maxima, weights = _attend(
            query,
            turned,
            tl.zeros((BLOCK_M, BLOCK_RANK), tl.float32),
            tl.full((BLOCK_M,), float("-inf"), tl.float32),
            tl.zeros((BLOCK_M,), tl.float32),
            cache_ptr,
            block_tables_ptr + seq * table_stride,
            stride,
            start,
            end,
            rows,
            scale,
            DTYPE=DTYPE,
            CAUSAL=False,
            RANK=RANK,
            BLOCK_RANK=BLOCK_RANK,
            ROTARY_DIM=ROTARY_DIM,
            BLOCK_ROTARY=BLOCK_ROTARY,
            BLOCK_N=BLOCK_N,
            BLOCK_SIZE=BLOCK_SIZE,
            FP8_BITS=FP8_BITS,
            INTERPRET=INTERPRET,
        )
        if count == tiles:
            out = sums * (v_scale / weights)[:, None]
            tl.store(out_ptr + out_rows[:, None] * RANK + ranks[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
        else:
            part_rows = (program * 2 + (at > begin).to(tl.int32)) * group + rows
            tl.store(maxima_ptr + part_rows, maxima, mask=row_mask)
            tl.store(weights_ptr + part_rows, weights, mask=row_mask)
            tl.store(sums_ptr + part_rows.to(tl.int64)[:, None] * RANK + ranks[None, :], sums, mask=mask)
        at += count
        place += ((tile + count == tiles) & (head_group == head_groups - 1)).to(tl.int32)


@direct
@triton.jit(
    do_not_specialize=["block_tables_ptr", "starts_ptr", "seq_lens_ptr", "table_stride", "num_seqs", "heads", "group"]
)
def latent_prefill_kernel(
    query_ptr,
    cache_ptr,
    block_tables_ptr,
    starts_ptr,
    seq_lens_ptr,
    out_ptr,
    stride,
    table_stride,
    num_seqs,
    heads,
    group,
    scale,
    v_scale,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_ROTARY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Some tokens of one sequence times `group` heads. `prompt_tile` has the numbering of tiles."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    tokens_a_tile = BLOCK_M // group
    seq, start, queries, first_token = prompt_tile(starts_ptr, num_seqs, number, tokens_a_tile, STARTS_BLOCK)
    seq_len = tl.load(seq_lens_ptr + seq)
    if first_token >= queries:
        return
    rows = tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, BLOCK_RANK)
    dims = tl.arange(0, BLOCK_ROTARY)
    tokens = first_token + rows // group
    last_token = tl.minimum(first_token + tokens_a_tile, queries) - 1
    row_mask = (rows < tokens_a_tile * group) & (tokens < queries)
    tokens = tl.minimum(tokens, last_token)  # idle rows repeat a token, so that all rows see keys
    mask = row_mask[:, None] & (ranks < RANK)[None, :]
    out_rows = (start + tokens).to(tl.int64) * heads + tl.program_id(1) * group + rows % group
    query_rows = query_ptr + out_rows[:, None] * (RANK + ROTARY_DIM)
    query = tl.load(query_rows + ranks[None, :], mask=mask, other=0.0)
    turned_mask = row_mask[:, None] & (dims < ROTARY_DIM)[None, :]
    turned = tl.load(query_rows + RANK + dims[None, :], mask=turned_mask, other=0.0)
    DTYPE: tl.constexpr = query.dtype
    if INTERPRET:
        query, turned = query.to(tl.float32), turned.to(tl.float32)
    positions = seq_len - queries + tokens
    table_ptr = block_tables_ptr + tl.cast(seq, tl.int64) * table_stride
    sums, _, weights = _attend(
        query,
        turned,
        tl.zeros((BLOCK_M, BLOCK_RANK), tl.float32),
        tl.full((BLOCK_M,), float("-inf"), tl.float32),
        tl.zeros((BLOCK_M,), tl.float32),
        cache_ptr,
        table_ptr,
        stride,
        0,
        seq_len - queries + last_token + 1,
        positions,
        scale,
        DTYPE=DTYPE,
        CAUSAL=True,
        RANK=RANK,
        BLOCK_RANK=BLOCK_RANK,
        ROTARY_DIM=ROTARY_DIM,
        BLOCK_ROTARY=BLOCK_ROTARY,
        BLOCK_N=BLOCK_N,
        BLOCK_SIZE=BLOCK_SIZE,
        FP8_BITS=FP8_BITS,
        INTERPRET=INTERPRET,
    )
    out = sums * (v_scale / weights)[:, None]  # every row has seen its own position
    tl.store(out_ptr + out_rows[:, None] * RANK + ranks[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


def plan_latents(seq_lens: Tensor, heads: int, cache: Tensor, rank: int, programs: int | None = None) -> DecodePlan:
    """The plan of `latent_decode` for contexts of these lengths. `programs`: how many share the work; as many as the
    device holds without it."""
    capability = device_capability(cache.device)
    if programs is None:
        programs = PROGRAMS * multiprocessors(cache.device, capability)
    block_n = decode_config(rank, cache.element_size(), capability).block_n
    return plan_decodes(seq_lens, heads, heads // head_group(heads), rank, block_n=block_n, num_programs=programs)


def head_group(heads: int, most: int = MOST_HEADS) -> int:
    """How many heads are rows of one tile: the largest divisor up to `most`."""
    return max(count for count in range(1, min(heads, most) + 1) if heads % count == 0)


def latent_decode(
    query: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    rank: int,
    scale: float,
    cache_scale: float = 1.0,
    plan: DecodePlan | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of one absorbed query a sequence to its paged latents: [seqs, heads, rank].

    query         [seqs, heads, rank + rotary_dim] contiguous, bfloat16, float16 or float32
    cache         [num_blocks, block_size, 1, rank + rotary_dim], slots of one stride, of query's dtype or float8_e4m3fn
                  (elements stand for themselves times `cache_scale`)
    block_tables  int32 [seqs, max_blocks]
    seq_lens      int32 [seqs]; 0 marks a padding row, whose output is zero
    plan          `plan_latents` of the same lengths, for all layers of a step; made without it
    out           [seqs, heads, rank] contiguous; allocated without it
    """
    _check(query, cache, block_tables, rank)
    seqs, heads, size = query.shape
    if out is None:
        out = query.new_empty((seqs, heads, rank))
    if seqs == 0:
        return out
    if plan is None:
        plan = plan_latents(seq_lens, heads, cache, rank)
    capability = device_capability(query.device)
    stored, fp8_bits = as_stored(cache, capability)
    group = head_group(heads)
    sums, maxima, weights = plan.split
    c = decode_config(rank, cache.element_size(), capability)
    latent_decode_kernel[(plan.num_programs,)](
        query,
        stored,
        block_tables,
        seq_lens,
        plan.words,
        out,
        sums,
        maxima,
        weights,
        stored.stride(1),
        block_tables.stride(0),
        seqs,
        heads // group,
        group,
        scale * cache_scale * LOG2_E,
        float(cache_scale),
        **_sizes(rank, size, stored, fp8_bits),
        HEADER=HEADER,
        NO_WINDOW=NO_WINDOW,
        BLOCK_M=MOST_HEADS,
        BLOCK_N=c.block_n,
        num_warps=c.num_warps,
        num_stages=_stages(c.num_stages, c.block_n, cache.element_size(), capability),
    )
    add_parts(plan, seq_lens, None, out, float(cache_scale))
    return out


def latent_prefill(
    query: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    starts: Tensor,
    seq_lens: Tensor,
    *,
    rank: int,
    scale: float,
    cache_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of ragged absorbed queries, which are the last positions of their sequences' paged latents.

    starts: int32 [seqs + 1], rows starts[i] to starts[i + 1] of query belong to sequence i. The other arguments as in
    `latent_decode`, with rows of tokens. Rows of no sequence are not written.
    """
    _check(query, cache, block_tables, rank)
    tokens, heads, size = query.shape
    num_seqs = seq_lens.shape[0]
    if starts.shape != (num_seqs + 1,):
        raise ValueError(f"starts must be [{num_seqs + 1}] for {num_seqs} sequences and is {list(starts.shape)}")
    if out is None:
        out = query.new_empty((tokens, heads, rank))
    if tokens == 0 or num_seqs == 0:
        return out
    capability = device_capability(query.device)
    stored, fp8_bits = as_stored(cache, capability)
    c = config(rank, cache.element_size(), capability)
    group = head_group(heads, c.block_m)
    latent_prefill_kernel[(tokens // (c.block_m // group) + num_seqs, heads // group)](
        query,
        stored,
        block_tables,
        starts,
        seq_lens,
        out,
        stored.stride(1),
        block_tables.stride(0),
        num_seqs,
        heads,
        group,
        scale * cache_scale * LOG2_E,
        float(cache_scale),
        **_sizes(rank, size, stored, fp8_bits),
        BLOCK_M=c.block_m,
        BLOCK_N=c.block_n,
        STARTS_BLOCK=STARTS_BLOCK,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return out


def _stages(stages: int, block_n: int, element_size: int, capability: int) -> int:
    """Two where shared memory is small."""
    return stages if capability in (80, 90, 100) or block_n * element_size < 32 else min(stages, 2)


def _sizes(rank: int, size: int, stored: Tensor, fp8_bits: bool) -> dict[str, Any]:
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


def _check(query: Tensor, cache: Tensor, block_tables: Tensor, rank: int) -> None:
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


def latent_prefill_reference(
    query: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    starts: Tensor,
    seq_lens: Tensor,
    *,
    rank: int,
    scale: float,
    cache_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """The specification of `latent_prefill`, in float32. Rows of no sequence are zero."""
    bounds, lengths = starts.tolist(), seq_lens.tolist()
    options: dict[str, Any] = {"scale": scale, "k_scale": cache_scale, "v_scale": cache_scale}
    mixed = paged_attention_reference(query, cache, cache, block_tables, bounds, lengths, **options)[..., :rank]
    return mixed if out is None else out.copy_(mixed)


def latent_decode_reference(
    query: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    rank: int,
    scale: float,
    cache_scale: float = 1.0,
    plan: DecodePlan | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The specification of `latent_decode`, in float32. A plan changes nothing."""
    starts = torch.arange(query.shape[0] + 1)
    options: dict[str, Any] = {"rank": rank, "scale": scale, "cache_scale": cache_scale, "out": out}
    return latent_prefill_reference(query, cache, block_tables, starts, seq_lens, **options)


DTYPES = (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp8e4nv"), ("fp32", "fp32"))  # of query and cache


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Both kernels in pages of 16 tokens. The plan and the sum of parts are those of decode attention."""
    for rank, rotary_dim in SIZES:
        for dtype, cache_dtype in DTYPES:
            yield from _specialisations(capability, rank, rotary_dim, dtype, cache_dtype)


def _specialisations(
    capability: int, rank: int, rotary_dim: int, dtype: str, cache_dtype: str
) -> Iterator[Specialisation]:
    fp8_bits = cache_dtype == "fp8e4nv" and capability < 89
    element_size = {"fp32": 4, "fp8e4nv": 1}.get(cache_dtype, 2)
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
    typical = (dtype, cache_dtype, rank) == ("bf16", "bf16", 512)
    c = decode_config(rank, element_size, capability)
    yield Specialisation(
        f"latent_decode[{name}]",
        latent_decode_kernel,
        signature
        | {
            "words_ptr": "*i32",
            "sums_ptr": "*fp32",
            "maxima_ptr": "*fp32",
            "weights_ptr": "*fp32",
            "head_groups": "i32",
        },
        constants | {"HEADER": HEADER, "NO_WINDOW": NO_WINDOW, "BLOCK_M": MOST_HEADS, "BLOCK_N": c.block_n},
        c.num_warps,
        _stages(c.num_stages, c.block_n, element_size, capability),
        (*divisible, "words_ptr", "sums_ptr"),
        typical,
    )
    tiles = config(rank, element_size, capability)
    yield Specialisation(
        f"latent_prefill[{name}]",
        latent_prefill_kernel,
        signature | {"starts_ptr": "*i32", "heads": "i32"},
        constants | {"BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n, "STARTS_BLOCK": STARTS_BLOCK},
        tiles.num_warps,
        tiles.num_stages,
        divisible,
        typical,
    )
