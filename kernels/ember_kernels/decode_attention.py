# mypy: disable-error-code="no-untyped-def"
"""Decode attention over the paged cache: one query a sequence.

A decode step reads every key and value once and computes next to nothing, so it costs what the read costs, if enough
programs read at once. A program takes one KV head of one sequence at a time: the query heads that share it are the rows
of one tile (padded to 16, the least a tensor core takes), so keys and values are read once for all of them. How long a
piece of the work each program takes is decided on the device (`decode_plan`). Where a context is divided among programs
(flash-decoding, Dao et al. 2023), each leaves float32 sums with their maximum, and a second kernel adds them.

Made for CUDA graphs: the grid follows from shapes, and lengths are read on the device. Nothing is read from pages
beyond a length or before a window, so such pages may hold anything.

Bytes: 2 * visible context * kv_heads * head_dim * size of the cache's type, and for a part of a context and head
head_dim + 2 floats written and read, of at most two parts a program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.attention import (
    INTERPRET,
    as_stored,
    cache_tile,
    check_cache,
    paged_attention_reference,
    score_factors,
    scores_of,
)
from ember_kernels.attention_tables import ELEMENT_SIZES, config, most_registers, programs_a_multiprocessor, variants
from ember_kernels.decode_plan import HEADER, DecodePlan, add_parts, multiprocessors, plan_decodes, visible_tiles
from ember_kernels.early import wait_for_inputs
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.specialisation import Specialisation, device_capability


@direct
@triton.jit(
    do_not_specialize=[
        "block_tables_ptr",
        "seq_lens_ptr",
        "sinks_ptr",
        "slopes_ptr",
        "maxima_ptr",
        "weights_ptr",
        "table_stride",
        "num_seqs",
        "kv_heads",
        "group",
        "window",
    ]
)
def decode_attention_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    words_ptr,
    sinks_ptr,
    slopes_ptr,
    out_ptr,
    sums_ptr,
    maxima_ptr,
    weights_ptr,
    query_stride,
    kv_stride,
    table_stride,
    num_seqs,
    kv_heads,
    group,
    window,
    scale,
    v_scale,
    soft_cap,
    HEADER: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    IS_CHUNK: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """A piece of the plan's list of tiles: contexts of KV heads, the first and last of which may be divided."""
    wait_for_inputs(EARLY)
    program = tl.program_id(0)
    share = tl.load(words_ptr)
    begin = program * share
    stop = tl.minimum(begin + share, tl.load(words_ptr + 1))
    if begin >= stop:
        return
    busy_ptr = words_ptr + HEADER + num_seqs
    place = tl.load(busy_ptr + num_seqs + program)
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    offsets = tl.arange(0, BLOCK_N)
    row_mask = rows < group
    dim_mask = dims < HEAD_DIM
    mask = row_mask[:, None] & dim_mask[None, :]
    at = begin
    while at < stop:
        seq = tl.load(busy_ptr + place).to(tl.int64)
        seq_len = tl.load(seq_lens_ptr + seq)
        first, start, tiles = visible_tiles(seq_len, window, BLOCK_N, IS_CHUNK)
        offset = at - tl.load(words_ptr + HEADER + seq) * kv_heads
        kv_head = offset // tiles
        tile = offset - kv_head * tiles
        count = tl.minimum(tiles - tile, stop - at)
        start += tile * BLOCK_N
        end = tl.minimum(start + count * BLOCK_N, seq_len)
        row_heads = kv_head * group + rows
        if HAS_SLOPES:
            slopes = tl.load(slopes_ptr + row_heads, mask=row_mask, other=0.0) * 1.4426950408889634
        query = tl.load(
            query_ptr + seq * query_stride + row_heads[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0
        )
        DTYPE: tl.constexpr = query.dtype
        if INTERPRET:
            query = query.to(tl.float32)
        head_keys_ptr = keys_ptr + kv_head * HEAD_DIM
        head_values_ptr = values_ptr + kv_head * HEAD_DIM
        table_ptr = block_tables_ptr + seq * table_stride
        maxima = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        weights = tl.zeros((BLOCK_M,), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        # A tile's addresses depend on the block table. They are loaded one tile ahead and carried, since only loads
        # whose addresses are known at the top of the loop can be pipelined more than one tile deep.
        ahead = start + offsets
        blocks_ahead = tl.load(table_ptr + ahead // BLOCK_SIZE, mask=(ahead >= first) & (ahead < end), other=0)
        for position in range(start, end, BLOCK_N):
            positions = position + offsets
            visible = (positions >= first) & (positions < end)
            blocks = blocks_ahead.to(tl.int64)
            ahead = positions + BLOCK_N
            blocks_ahead = tl.load(table_ptr + ahead // BLOCK_SIZE, mask=ahead < end, other=0)
            slots = (blocks * BLOCK_SIZE + positions % BLOCK_SIZE) * kv_stride
            if HEAD_DIM == BLOCK_D:
                key_mask, value_mask = visible[None, :], visible[:, None]
            else:
                key_mask, value_mask = visible[None, :] & dim_mask[:, None], visible[:, None] & dim_mask[None, :]
            # What is not visible reads as zero: a NaN there would survive a weight of zero.
            key = tl.load(head_keys_ptr + slots[None, :] + dims[:, None], mask=key_mask, other=0.0)
            key = cache_tile(key, DTYPE, FP8_BITS, INTERPRET)
            scores = scores_of(tl.dot(query, key, input_precision="ieee"), scale, soft_cap, HAS_CAP)
            if HAS_SLOPES:
                scores += slopes[:, None] * (positions + 1 - seq_len).to(tl.float32)[None, :]
            scores = tl.where(visible[None, :], scores, float("-inf"))
            highest = tl.maximum(maxima, tl.max(scores, 1))  # finite: every tile has a visible position
            weight = tl.exp2(scores - highest[:, None])
            decay = tl.exp2(maxima - highest)
            value = tl.load(head_values_ptr + slots[:, None] + dims[None, :], mask=value_mask, other=0.0)
            value = cache_tile(value, DTYPE, FP8_BITS, INTERPRET)
            weights = weights * decay + tl.sum(weight, 1)
            sums = tl.dot(weight.to(value.dtype), value, sums * decay[:, None], input_precision="ieee")
            maxima = highest
        if count == tiles:
            if HAS_SINKS:
                sinks = tl.load(sinks_ptr + row_heads, mask=row_mask, other=0.0).to(tl.float32) * 1.4426950408889634
                highest = tl.maximum(maxima, sinks)
                decay = tl.exp2(maxima - highest)
                weights = weights * decay + tl.exp2(sinks - highest)
                sums *= decay[:, None]
            out = sums * (v_scale / weights)[:, None]
            out_rows = seq * (kv_heads * group) + row_heads
            tl.store(
                out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=mask
            )
        else:
            part_rows = (program * 2 + (at > begin).to(tl.int32)) * group + rows
            tl.store(maxima_ptr + part_rows, maxima, mask=row_mask)
            tl.store(weights_ptr + part_rows, weights, mask=row_mask)
            tl.store(sums_ptr + part_rows.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :], sums, mask=mask)
        at += count
        place += ((tile + count == tiles) & (kv_head == kv_heads - 1)).to(tl.int32)


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    is_chunk: bool = False,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    programs: int | None = None,
    plan: DecodePlan | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one query a sequence to its paged context, which ends with the query's own key.

    query         [seqs, heads, head_dim] bfloat16, float16 or float32; rows may be further apart (a view of qkv)
    keys, values  [num_blocks, block_size, kv_heads, head_dim], slots of one stride, of query's dtype or float8_e4m3fn;
                  float8 elements stand for themselves times k_scale and v_scale
    block_tables  int32 [seqs, max_blocks]
    seq_lens      int32 [seqs]; 0 marks a padding row, whose output is zero
    scale         of the scores; 1 / sqrt(head_dim) without it
    window        a query sees so many positions, its own included; all without it
    is_chunk      a query sees the positions from the last multiple of `window` on (Llama 4)
    soft_cap      scores become soft_cap * tanh(scores / soft_cap)
    sinks         [heads] a logit per head that takes weight and has no value (gpt-oss), any float dtype
    slopes        float32 [heads], of ALiBi: times the distance to a key, which is below zero, they are added to scores
    programs      how many share the work, instead of as many as the device holds
    plan          `plan_attention` of the same lengths, window and sizes, for all layers of a step; made without it
    out           [seqs, heads, head_dim] contiguous; allocated without it

    head_dim: a multiple of 16 from 16 to 512. block_size: any. Sums are float32. Returns out.
    """
    check_cache(query, keys, values, block_tables)
    seqs, heads, head_dim = query.shape
    kv_heads = keys.shape[2]
    if out is None:
        out = query.new_empty((seqs, heads, head_dim))
    if seqs == 0:
        return out
    if plan is None:
        plan = plan_attention(seq_lens, heads, keys, window=window, is_chunk=is_chunk, programs=programs)
    elif (seqs, heads, kv_heads, head_dim) != (plan.num_seqs, plan.heads, plan.kv_heads, plan.head_dim):
        raise ValueError(f"the plan is for {plan.num_seqs} sequences and {plan.heads} heads, the query {query.shape}")
    capability = device_capability(query.device)
    keys, values, fp8_bits = as_stored(keys, values, capability)
    factor, cap = score_factors(scale, k_scale, soft_cap, head_dim)
    c = config(head_dim, keys.element_size(), capability)
    group = heads // kv_heads
    sums, maxima, weights = plan.split
    decode_attention_kernel[(plan.num_programs,)](
        query,
        keys,
        values,
        block_tables,
        seq_lens,
        plan.words,
        sinks,
        slopes,
        out,
        sums,
        maxima,
        weights,
        query.stride(0),
        keys.stride(1),
        block_tables.stride(0),
        seqs,
        kv_heads,
        group,
        plan.window,
        factor,
        float(v_scale),
        cap,
        HEADER=HEADER,
        HEAD_DIM=head_dim,
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_M=max(16, next_power_of_2(group)),
        BLOCK_N=c.block_n,
        BLOCK_SIZE=keys.shape[1],
        HAS_SINKS=sinks is not None,
        HAS_CAP=soft_cap is not None,
        HAS_SLOPES=slopes is not None,
        IS_CHUNK=plan.is_chunk,
        FP8_BITS=fp8_bits,
        INTERPRET=INTERPRET,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
        maxnreg=most_registers(head_dim, group, keys.element_size()),
    )
    add_parts(plan, seq_lens, sinks, out, float(v_scale))
    return out


def plan_attention(
    seq_lens: torch.Tensor,
    heads: int,
    keys: torch.Tensor,
    *,
    window: int | None = None,
    is_chunk: bool = False,
    programs: int | None = None,
) -> DecodePlan:
    """The plan of `decode_attention` for contexts of these lengths in a cache like `keys`."""
    kv_heads, head_dim = keys.shape[2:]
    capability = device_capability(keys.device)
    if programs is None:
        fitting = programs_a_multiprocessor(head_dim, heads // kv_heads, capability)
        programs = fitting * multiprocessors(keys.device, capability)
    block_n = config(head_dim, keys.element_size(), capability).block_n
    options = {"block_n": block_n, "num_programs": programs}
    return plan_decodes(seq_lens, heads, kv_heads, head_dim, **options, window=window, is_chunk=is_chunk)


def decode_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    is_chunk: bool = False,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    programs: int | None = None,
    plan: DecodePlan | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `decode_attention`, in float32; programs and plan change nothing."""
    starts = list(range(query.shape[0] + 1))
    options: dict[str, Any] = {"scale": scale, "window": window, "is_chunk": is_chunk, "soft_cap": soft_cap}
    options |= {"sinks": sinks, "slopes": slopes, "k_scale": k_scale, "v_scale": v_scale}
    result = paged_attention_reference(query, keys, values, block_tables, starts, seq_lens.tolist(), **options)
    return result if out is None else out.copy_(result)


# What boots ask for: float8 caches for bfloat16 queries alone, and features where models have them
# (`attention_tables.FEATURES`). What is not listed compiles when it is first used.
def specialisations(capability: int) -> Iterator[Specialisation]:
    for variant in variants():
        yield from _specialisations(capability, *variant)


def _specialisations(
    capability: int, head_dim: int, dtype: str, cache_dtype: str, block_size: int, features: str
) -> Iterator[Specialisation]:
    fp8_bits = cache_dtype == "fp8e4nv" and capability < 89
    stored = "u8" if fp8_bits else cache_dtype
    c = config(head_dim, ELEMENT_SIZES[cache_dtype], capability)
    usual = block_size == 16 and features in ("", "sinks")
    typical = usual and (head_dim, cache_dtype) in ((128, "bf16"), (64, "bf16"), (128, "fp8e4nv"))
    name = f"{dtype}_cache_{cache_dtype}_d{head_dim}_p{block_size}{'_' + features if features else ''}"
    block_d = next_power_of_2(head_dim)
    sizes = {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_N": c.block_n}
    # Rows of a tile: the query heads of one KV head. GLM-4 32B has 24, StarCoder 48 and Falcon 7B 71; other models have
    # 16 or fewer.
    more = {128: (32, 64), 64: (128,)} if block_size == 16 and not features else {}
    for block_m in (16, *more.get(head_dim, ())):
        signature = {
            "query_ptr": f"*{dtype}",
            "keys_ptr": f"*{stored}",
            "values_ptr": f"*{stored}",
            "words_ptr": "*i32",
            "out_ptr": f"*{dtype}",
            "sums_ptr": "*fp32",
            "query_stride": "i32",
            "kv_stride": "i32",
        }
        divisible = tuple(signature)
        signature |= {"block_tables_ptr": "*i32", "seq_lens_ptr": "*i32", "maxima_ptr": "*fp32", "weights_ptr": "*fp32"}
        signature |= dict.fromkeys(("table_stride", "num_seqs", "kv_heads", "group", "window"), "i32")
        signature |= dict.fromkeys(("scale", "v_scale", "soft_cap"), "fp32")
        constants: dict[str, Any] = {
            **sizes,
            "HEADER": HEADER,
            "BLOCK_M": block_m,
            "BLOCK_SIZE": block_size,
            "HAS_SINKS": features == "sinks",
            "HAS_CAP": features == "cap",
            "HAS_SLOPES": features == "slopes",
            "IS_CHUNK": features == "chunk",
            "FP8_BITS": fp8_bits,
            "INTERPRET": False,
        }
        for name_of_numbers in ("sinks", "slopes"):
            if features == name_of_numbers:
                signature[f"{name_of_numbers}_ptr"] = "*fp32"
            else:
                constants[f"{name_of_numbers}_ptr"] = None
        yield Specialisation(
            f"decode_attention[{name}{f'_m{block_m}' if block_m > 16 else ''}]",
            decode_attention_kernel,
            signature,
            constants,
            c.num_warps,
            c.num_stages,
            divisible,
            typical and block_m == 16,
            {"maxnreg": most_registers(head_dim, block_m, ELEMENT_SIZES[cache_dtype])},
        )
