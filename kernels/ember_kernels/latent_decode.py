# mypy: disable-error-code="no-untyped-def"
"""Latent attention of decodes: one absorbed query a sequence (`latent_attention`).

They divide their work as decode attention does (`decode_plan`): some query heads of a sequence take the place of those
that share a KV head.

Bytes: visible context * (rank + rotary_dim) * size of the cache's type, for each group of heads, of which there are at
most 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import LOG2_E, NO_WINDOW
from ember_kernels.attention_tables import config as decode_config
from ember_kernels.decode_plan import HEADER, DecodePlan, add_parts, multiprocessors, plan_decodes, visible_tiles
from ember_kernels.latent_attention import as_stored, attend_tiles, check, head_group, kernel_sizes, variants
from ember_kernels.latent_prefill import latent_prefill_reference
from ember_kernels.launch import direct
from ember_kernels.specialisation import Specialisation, device_capability

MOST_HEADS = 16  # rows of a decode's tile: the least a tensor core takes
PROGRAMS = 2  # of decodes for each multiprocessor


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
        sums, maxima, weights = attend_tiles(
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


def plan_latents(seq_lens: Tensor, heads: int, cache: Tensor, rank: int, programs: int | None = None) -> DecodePlan:
    """The plan of `latent_decode` for contexts of these lengths. `programs`: how many share the work; as many as the
    device holds without it."""
    capability = device_capability(cache.device)
    if programs is None:
        programs = PROGRAMS * multiprocessors(cache.device, capability)
    block_n = decode_config(rank, cache.element_size(), capability).block_n
    return plan_decodes(
        seq_lens, heads, heads // head_group(heads, MOST_HEADS), rank, block_n=block_n, num_programs=programs
    )


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
    check(query, cache, block_tables, rank)
    seqs, heads, size = query.shape
    if out is None:
        out = query.new_empty((seqs, heads, rank))
    if seqs == 0:
        return out
    if plan is None:
        plan = plan_latents(seq_lens, heads, cache, rank)
    capability = device_capability(query.device)
    stored, fp8_bits = as_stored(cache, capability)
    group = head_group(heads, MOST_HEADS)
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
        **kernel_sizes(rank, size, stored, fp8_bits),
        HEADER=HEADER,
        NO_WINDOW=NO_WINDOW,
        BLOCK_M=MOST_HEADS,
        BLOCK_N=c.block_n,
        num_warps=c.num_warps,
        num_stages=_stages(c.num_stages, c.block_n, cache.element_size(), capability),
    )
    add_parts(plan, seq_lens, None, out, float(cache_scale))
    return out


def _stages(stages: int, block_n: int, element_size: int, capability: int) -> int:
    """Two where shared memory is small."""
    return stages if capability in (80, 90, 100) or block_n * element_size < 32 else min(stages, 2)


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


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Without the plan and the sum of parts, which are those of decode attention."""
    for each in variants(capability):
        c = decode_config(each.rank, each.element_size, capability)
        yield Specialisation(
            f"latent_decode[{each.name}]",
            latent_decode_kernel,
            each.signature
            | {
                "words_ptr": "*i32",
                "sums_ptr": "*fp32",
                "maxima_ptr": "*fp32",
                "weights_ptr": "*fp32",
                "head_groups": "i32",
            },
            each.constants | {"HEADER": HEADER, "NO_WINDOW": NO_WINDOW, "BLOCK_M": MOST_HEADS, "BLOCK_N": c.block_n},
            c.num_warps,
            _stages(c.num_stages, c.block_n, each.element_size, capability),
            (*each.divisible, "words_ptr", "sums_ptr"),
            each.typical,
        )
