# mypy: disable-error-code="no-untyped-def"
"""Decode attention over the paged cache: one query a sequence, split along the context.

A decode step reads every key and value once and computes next to nothing, so it costs what the read costs, if enough
programs read at once. One program takes one KV head of one sequence: the query heads that share it are the rows of one
tile (padded to 16, the least a tensor core takes), so keys and values are read once for all of them. Where sequences
times KV heads are too few to occupy the device, the context is split as well (flash-decoding, Dao et al. 2023): each
program leaves float32 sums with their maximum, and a second kernel adds the splits of a row in a fixed order.

Made for CUDA graphs: the grid follows from shapes and `max_context`, which the host knows, and lengths are read on the
device. Each sequence divides its own length by the number of splits, so one grid serves every length; programs without
work return at once. Nothing is read from pages beyond a length or before a window, so such pages may hold anything.

Bytes: 2 * visible context * kv_heads * head_dim * size of the cache's type, and per split and head head_dim + 2 floats
written and read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.attention import (
    INTERPRET,
    NO_WINDOW,
    as_stored,
    cache_tile,
    check_cache,
    paged_attention_reference,
    score_factors,
    scores_of,
)
from ember_kernels.attention_tables import ELEMENT_SIZES, config, variants
from ember_kernels.compile import Specialisation, device_capability
from ember_kernels.decode_splits import (
    MAX_SPLITS,
    add_splits,
    multiprocessors,
    split_count,
    split_tokens,
    workspace_size,
)
from ember_kernels.launch import direct, next_power_of_2


@direct
@triton.jit(
    do_not_specialize=[
        "block_tables_ptr",
        "seq_lens_ptr",
        "sinks_ptr",
        "maxima_ptr",
        "weights_ptr",
        "table_stride",
        "group",
        "window",
        "num_splits",
    ]
)
def decode_attention_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    sinks_ptr,
    out_ptr,
    maxima_ptr,
    weights_ptr,
    query_stride,
    kv_stride,
    table_stride,
    group,
    window,
    num_splits,
    scale,
    v_scale,
    soft_cap,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One split of one KV head of one sequence. With SPLIT, `out` is the workspace's sums and sinks come later."""
    seq = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    heads = tl.num_programs(1) * group
    seq_len = tl.load(seq_lens_ptr + seq)
    first = tl.maximum(seq_len - window, 0)
    start, tokens = split_tokens(first, seq_len, num_splits, BLOCK_N)
    start += split * tokens
    end = tl.minimum(start + tokens, seq_len)
    if SPLIT:  # noqa: SIM102 (one is known when compiling, the other is not)
        if start >= end:
            return
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    offsets = tl.arange(0, BLOCK_N)
    row_mask = rows < group
    dim_mask = dims < HEAD_DIM
    row_heads = kv_head * group + rows
    mask = row_mask[:, None] & dim_mask[None, :]
    query = tl.load(
        query_ptr + seq * query_stride + row_heads[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0
    )
    DTYPE: tl.constexpr = query.dtype
    if INTERPRET:
        query = query.to(tl.float32)
    keys_ptr += kv_head * HEAD_DIM
    values_ptr += kv_head * HEAD_DIM
    table_ptr = block_tables_ptr + seq * table_stride
    maxima = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weights = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # A tile's addresses depend on the block table. They are loaded one tile ahead and carried, since only loads whose
    # addresses are known at the top of the loop can be pipelined more than one tile deep.
    ahead = start + offsets
    blocks_ahead = tl.load(table_ptr + ahead // BLOCK_SIZE, mask=(ahead >= first) & (ahead < end), other=0)
    for tile in range(start, end, BLOCK_N):
        positions = tile + offsets
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
        key = tl.load(keys_ptr + slots[None, :] + dims[:, None], mask=key_mask, other=0.0)
        key = cache_tile(key, DTYPE, FP8_BITS, INTERPRET)
        scores = scores_of(tl.dot(query, key, input_precision="ieee"), scale, soft_cap, HAS_CAP)
        scores = tl.where(visible[None, :], scores, float("-inf"))
        highest = tl.maximum(maxima, tl.max(scores, 1))  # finite: every tile has a visible position
        weight = tl.exp2(scores - highest[:, None])
        decay = tl.exp2(maxima - highest)
        value = tl.load(values_ptr + slots[:, None] + dims[None, :], mask=value_mask, other=0.0)
        value = cache_tile(value, DTYPE, FP8_BITS, INTERPRET)
        weights = weights * decay + tl.sum(weight, 1)
        sums = tl.dot(weight.to(value.dtype), value, sums * decay[:, None], input_precision="ieee")
        maxima = highest
    out_rows = seq * heads + row_heads
    if SPLIT:
        out_rows = out_rows * num_splits + split
        tl.store(maxima_ptr + out_rows, maxima, mask=row_mask)
        tl.store(weights_ptr + out_rows, weights, mask=row_mask)
        tl.store(out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], sums, mask=mask)
    else:
        if HAS_SINKS:
            sinks = tl.load(sinks_ptr + row_heads, mask=row_mask, other=0.0).to(tl.float32) * 1.4426950408889634
            highest = tl.maximum(maxima, sinks)
            decay = tl.exp2(maxima - highest)
            weights = weights * decay + tl.exp2(sinks - highest)
            sums *= decay[:, None]
        # A sequence of length 0 (padding) has no weight: its sums are zero, and so is its output.
        out = sums * (v_scale / tl.where(weights > 0.0, weights, 1.0))[:, None]
        tl.store(out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_context: int,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    splits: int | None = None,
    workspace: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one query a sequence to its paged context, which ends with the query's own key.

    query         [seqs, heads, head_dim] bfloat16, float16 or float32; rows may be further apart (a view of qkv)
    keys, values  [num_blocks, block_size, kv_heads, head_dim] contiguous, of query's dtype or float8_e4m3fn;
                  float8 elements stand for themselves times k_scale and v_scale
    block_tables  int32 [seqs, max_blocks]
    seq_lens      int32 [seqs]; 0 marks a padding row, whose output is zero
    max_context   no seq_lens is higher; decides with the shapes on the number of splits, so keep it fixed in a graph
    scale         of the scores; 1 / sqrt(head_dim) without it
    window        a query sees so many positions, its own included; all without it
    soft_cap      scores become soft_cap * tanh(scores / soft_cap)
    sinks         [heads] a logit per head that takes weight and has no value (gpt-oss), any float dtype
    splits        of each context, instead of the number that `split_count` chooses
    workspace     float32, `workspace_size` elements or more, free to overwrite; allocated without it
    out           [seqs, heads, head_dim] contiguous; allocated without it

    head_dim: a multiple of 16 from 16 to 256. block_size: any. Sums are float32. Returns out.
    """
    check_cache(query, keys, values, block_tables)
    seqs, heads, head_dim = query.shape
    kv_heads = keys.shape[2]
    if out is None:
        out = query.new_empty((seqs, heads, head_dim))
    if seqs == 0:
        return out
    capability = device_capability(query.device)
    if splits is None:
        splits = split_count(seqs, kv_heads, max_context, multiprocessors(query.device, capability))
    if not 1 <= splits <= MAX_SPLITS:
        raise ValueError(f"decode_attention takes 1 to {MAX_SPLITS} splits and was given {splits}")
    size = workspace_size(seqs, heads, head_dim, splits)
    if workspace is None:
        workspace = torch.empty(size, dtype=torch.float32, device=query.device) if size else None
    elif workspace.numel() < size:
        raise ValueError(f"decode_attention needs a workspace of {size} floats and was given {workspace.numel()}")
    sums: torch.Tensor = out
    maxima = weights = None
    if splits > 1:
        assert workspace is not None
        rows = seqs * heads * splits
        sums, maxima, weights = workspace, workspace[rows * head_dim :], workspace[rows * (head_dim + 1) :]
    keys, values, fp8_bits = as_stored(keys, values, capability)
    factor, cap = score_factors(scale, k_scale, soft_cap, head_dim)
    c = config(head_dim, keys.element_size(), capability)
    group = heads // kv_heads
    block_d = next_power_of_2(head_dim)
    reach = NO_WINDOW if window is None else window
    has_sinks = sinks is not None
    decode_attention_kernel[(seqs, kv_heads, splits)](
        query,
        keys,
        values,
        block_tables,
        seq_lens,
        sinks if splits == 1 else None,
        sums,
        maxima,
        weights,
        query.stride(0),
        kv_heads * head_dim,
        block_tables.stride(0),
        group,
        reach,
        splits,
        factor,
        float(v_scale),
        cap,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=max(16, next_power_of_2(group)),
        BLOCK_N=c.block_n,
        BLOCK_SIZE=keys.shape[1],
        SPLIT=splits > 1,
        HAS_SINKS=has_sinks and splits == 1,
        HAS_CAP=soft_cap is not None,
        FP8_BITS=fp8_bits,
        INTERPRET=INTERPRET,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    if splits > 1:
        assert maxima is not None and weights is not None
        add_splits(sums, maxima, weights, seq_lens, sinks, out, reach, splits, float(v_scale), c.block_n)
    return out


def decode_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_context: int,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    splits: int | None = None,
    workspace: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `decode_attention`, in float32; max_context, splits and workspace change nothing."""
    starts = list(range(query.shape[0] + 1))
    options: dict[str, Any] = {"scale": scale, "window": window, "soft_cap": soft_cap, "sinks": sinks}
    options |= {"k_scale": k_scale, "v_scale": v_scale}
    result = paged_attention_reference(query, keys, values, block_tables, starts, seq_lens.tolist(), **options)
    return result if out is None else out.copy_(result)


# What boots ask for: float8 caches for bfloat16 queries alone, sinks (gpt-oss, head_dim 64) and soft caps (Gemma 2,
# 128 and 256) where models have them. What is not listed compiles when it is first used.
def specialisations(capability: int) -> Iterator[Specialisation]:
    for variant in variants():
        yield from _specialisations(capability, *variant)


def _specialisations(
    capability: int, head_dim: int, dtype: str, cache_dtype: str, block_size: int, features: str
) -> Iterator[Specialisation]:
    fp8_bits = cache_dtype == "fp8e4nv" and capability < 89
    stored = "u8" if fp8_bits else cache_dtype
    c = config(head_dim, ELEMENT_SIZES[cache_dtype], capability)
    usual = block_size == 16 and features != "cap"
    typical = usual and (head_dim, cache_dtype) in ((128, "bf16"), (64, "bf16"), (128, "fp8e4nv"))
    name = f"{dtype}_cache_{cache_dtype}_d{head_dim}_p{block_size}{'_' + features if features else ''}"
    block_d = next_power_of_2(head_dim)
    sizes = {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_N": c.block_n}
    numbers = {"window": "i32", "num_splits": "i32", "v_scale": "fp32"}
    sinks = features == "sinks"
    # Rows of a tile: the query heads of one KV head. GLM-4 32B has 24, StarCoder 48 and Falcon 7B 71; other models have
    # 16 or fewer.
    more = {128: (32, 64), 64: (128,)} if block_size == 16 and not features else {}
    tiles = (16, *more.get(head_dim, ()))
    for split, block_m in product((False, True), tiles):
        signature = {
            "query_ptr": f"*{dtype}",
            "keys_ptr": f"*{stored}",
            "values_ptr": f"*{stored}",
            "out_ptr": "*fp32" if split else f"*{dtype}",
            "query_stride": "i32",
            "kv_stride": "i32",
        }
        divisible = tuple(signature)
        signature |= {"block_tables_ptr": "*i32", "seq_lens_ptr": "*i32", "table_stride": "i32", "group": "i32"}
        signature |= {**numbers, "scale": "fp32", "soft_cap": "fp32"}
        constants: dict[str, Any] = {
            **sizes,
            "BLOCK_M": block_m,
            "BLOCK_SIZE": block_size,
            "SPLIT": split,
            "HAS_SINKS": sinks and not split,
            "HAS_CAP": features == "cap",
            "FP8_BITS": fp8_bits,
            "INTERPRET": False,
        }
        optional = {"sinks_ptr": f"*{dtype}" if sinks and not split else None}
        optional |= dict.fromkeys(("maxima_ptr", "weights_ptr"), "*fp32" if split else None)
        signature |= {key: kind for key, kind in optional.items() if kind}
        constants |= {key: None for key, kind in optional.items() if not kind}
        yield Specialisation(
            f"decode_attention[{name}{f'_m{block_m}' if block_m > 16 else ''}{'_split' if split else ''}]",
            decode_attention_kernel,
            signature,
            constants,
            c.num_warps,
            c.num_stages,
            divisible,
            typical and block_m == 16,
        )
