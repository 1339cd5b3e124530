# mypy: disable-error-code="no-untyped-def"
"""Prefill attention over the paged cache: many queries a sequence, ragged, after a cached prefix or none.

Keys and values of the batch have been written to the cache before, so that a fresh prompt, a prompt after a cached
prefix and a chunk in the middle of a prompt are the same: the queries are the last positions of a paged context.

Tiles. A program takes up to BLOCK_M rows of one KV head: consecutive tokens of one sequence times the query heads that
share the KV head, so that keys and values are loaded once for all of these (BLOCK_M // group tokens; with a group of 5
or 7 a few rows stay idle). The softmax is computed tile by tile (Dao, FlashAttention-2, 2023); tiles of keys that every
row sees go without a mask.

Grid. The host knows the number of tokens and of sequences and needs no more: sequence i has at most
len // tokens_a_tile + 1 tiles, so tiles are numbered with starts[i] // tokens_a_tile + i as the first of sequence i,
and a program finds its sequence by counting how many first tiles are not above its own number: one vector load of
starts, no search with dependent loads, and nothing to upload beside the lengths. At most one program a sequence has
nothing to do. Programs start with the last tiles, whose contexts are the longest, so that short ones fill the end.

FLOPs: 4 * heads * head_dim * (visible pairs of query and key). Bytes: queries, outputs, and the context once a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.attention import (
    INTERPRET,
    NO_WINDOW,
    STARTS_BLOCK,
    as_stored,
    attend_tiles,
    check_cache,
    paged_attention_reference,
    prompt_tile,
    score_factors,
)
from ember_kernels.attention_tables import ELEMENT_SIZES, variants
from ember_kernels.dense_attention import dense_attention, uses_dense
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.specialisation import Specialisation, device_capability


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def config(head_dim: int, element_size: int, rows: int, capability: int) -> Config:
    """For sequences of at most `rows` rows (tokens times query heads of a KV head). Not measured yet.

    128 rows are two warp groups of Hopper's matrix instruction, 64 are one. Blocks of keys are as large as registers
    and shared memory (99 KiB on sm_86, sm_89 and sm_120) allow without spilling. The block table is loaded in the loop,
    so five stages give three buffers of keys and values, and copies that overlap the arithmetic; three stages give one.
    With heads above 256 dimensions 32 rows and their sums fill the registers of eight warps.
    """
    small = rows <= 64
    if head_dim > 256:
        if element_size == 2:
            return Config(32, 32 if capability in (80, 90, 100) else 16, 8, 3)
        return Config(16, 32, 8, 3) if element_size == 1 else Config(16, 16, 8, 2)
    if element_size == 4:
        return Config(32, 16, 4, 2)
    wide = head_dim > 128
    if capability in (90, 100):
        block_n = 32 if wide else 64
        return Config(64, block_n, 4, 3) if small else Config(128, block_n, 8, 5)
    if wide:
        return Config(64, 32, 8, 3)
    block_n = 64 if capability == 80 and head_dim <= 64 else 32
    return Config(64, block_n, 4, 3) if small else Config(128, block_n, 8, 3)


@direct
@triton.jit(
    do_not_specialize=[
        "block_tables_ptr",
        "starts_ptr",
        "seq_lens_ptr",
        "sinks_ptr",
        "slopes_ptr",
        "table_stride",
        "num_seqs",
        "group",
        "window",
    ]
)
def prefill_attention_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    block_tables_ptr,
    starts_ptr,
    seq_lens_ptr,
    sinks_ptr,
    slopes_ptr,
    out_ptr,
    query_stride,
    kv_stride,
    table_stride,
    num_seqs,
    group,
    window,
    scale,
    v_scale,
    soft_cap,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_CHUNK: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of query rows of one KV head."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    tokens_a_tile = BLOCK_M // group
    seq, start, queries, first_token = prompt_tile(starts_ptr, num_seqs, number, tokens_a_tile, STARTS_BLOCK)
    seq_len = tl.load(seq_lens_ptr + seq)
    if first_token >= queries:
        return

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    tokens = first_token + rows // group
    last_token = tl.minimum(first_token + tokens_a_tile, queries) - 1
    row_mask = (rows < tokens_a_tile * group) & (tokens < queries)
    tokens = tl.minimum(tokens, last_token)  # idle rows repeat a token, so that all rows see keys
    row_heads = kv_head * group + rows % group
    mask = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
    out_rows = (start + tokens).to(tl.int64)
    query_rows = out_rows * query_stride + row_heads * HEAD_DIM
    query = tl.load(query_ptr + query_rows[:, None] + dims[None, :], mask=mask, other=0.0)
    DTYPE: tl.constexpr = query.dtype
    if INTERPRET:  # the interpreter's dot of bfloat16 is wrong
        query = query.to(tl.float32)

    positions = seq_len - queries + tokens
    lowest = seq_len - queries + first_token
    highest = seq_len - queries + last_token
    # Keys [begin, full) and [middle, end) need a mask, [full, middle) are seen by all rows.
    middle = (lowest + 1) // BLOCK_N * BLOCK_N
    end = highest + 1
    begin, full = 0, 0
    firsts = positions  # the first key that each row sees, if there is a window
    if HAS_WINDOW:
        if IS_CHUNK:
            firsts = positions // window * window
            begin = lowest // window * window
            full = highest // window * window
        else:
            firsts = positions - window + 1
            begin = tl.maximum(lowest - window + 1, 0)
            full = tl.maximum(highest - window + 1, 0)
        begin = begin // BLOCK_N * BLOCK_N
        full = tl.cdiv(full, BLOCK_N) * BLOCK_N
        middle = tl.maximum(middle, begin)
        full = tl.minimum(full, middle)
    keys_ptr += kv_head * HEAD_DIM
    values_ptr += kv_head * HEAD_DIM
    table_ptr = block_tables_ptr + tl.cast(seq, tl.int64) * table_stride
    slopes = 0.0
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + row_heads) * 1.4426950408889634
    maxima = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weights = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for part in tl.static_range(0 if HAS_WINDOW else 1, 3):
        sums, maxima, weights = attend_tiles(
            query,
            sums,
            maxima,
            weights,
            keys_ptr,
            values_ptr,
            table_ptr,
            kv_stride,
            begin if part == 0 else (full if part == 1 else middle),
            full if part == 0 else (middle if part == 1 else end),
            positions,
            firsts,
            seq_len,
            scale,
            soft_cap,
            slopes,
            highest,
            DTYPE=DTYPE,
            MASKED=part != 1,
            HEAD_DIM=HEAD_DIM,
            BLOCK_D=BLOCK_D,
            BLOCK_N=BLOCK_N,
            BLOCK_SIZE=BLOCK_SIZE,
            HAS_WINDOW=HAS_WINDOW,
            HAS_CAP=HAS_CAP,
            HAS_SLOPES=HAS_SLOPES,
            FP8_BITS=FP8_BITS,
            INTERPRET=INTERPRET,
        )
    if HAS_SINKS:
        sinks = tl.load(sinks_ptr + row_heads).to(tl.float32) * 1.4426950408889634
        total = tl.maximum(maxima, sinks)
        decay = tl.exp2(maxima - total)
        weights = weights * decay + tl.exp2(sinks - total)
        sums *= decay[:, None]
    out = sums * (v_scale / weights)[:, None]  # every row has seen its own position
    out_ptrs = out_ptr + (out_rows * (tl.num_programs(1) * group) + row_heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def prefill_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    starts: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_queries: int,
    scale: float | None = None,
    window: int | None = None,
    is_chunk: bool = False,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    bounds: Sequence[int] = (),
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of ragged queries, which are the last positions of their sequences' paged contexts.

    query         [tokens, heads, head_dim] bfloat16, float16 or float32; rows may be further apart (a view of qkv)
    keys, values  [num_blocks, block_size, kv_heads, head_dim], slots of one stride, of query's dtype or float8_e4m3fn
                  (elements stand for themselves times k_scale and v_scale); they hold those of the queries already
    block_tables  int32 [seqs, max_blocks]
    starts        int32 [seqs + 1]: rows starts[i] to starts[i + 1] of query belong to sequence i; starts[0] may be
                  above 0 (after decodes), and a sequence may have no rows
    seq_lens      int32 [seqs]: context lengths, queries included, so never below the sequence's number of rows
    max_queries   no sequence has more rows; decides on the tiles
    scale, window, is_chunk, soft_cap, sinks, slopes: as in `decode_attention`
    bounds        the numbers in `starts`, if nothing was cached of any sequence before;
                  then `dense_attention` computes long prompts where it was measured to be faster
    out           [tokens, heads, head_dim] contiguous; allocated without it. Rows of no sequence are not written.

    head_dim: a multiple of 16 from 16 to 512. block_size: any. Sums are float32. Returns out.
    """
    check_cache(query, keys, values, block_tables)
    tokens, heads, head_dim = query.shape
    num_seqs, kv_heads = seq_lens.shape[0], keys.shape[2]
    if starts.shape != (num_seqs + 1,):
        raise ValueError(f"starts must be [{num_seqs + 1}] for {num_seqs} sequences and is {list(starts.shape)}")
    capability = device_capability(query.device)
    if out is None:
        out = query.new_empty((tokens, heads, head_dim))
    if tokens == 0 or num_seqs == 0:
        return out
    is_plain = window is None and soft_cap is None and sinks is None and slopes is None
    if bounds and is_plain and uses_dense(query, keys, bounds, capability):
        return dense_attention(query, keys, values, block_tables, bounds, scale, out)
    keys, values, fp8_bits = as_stored(keys, values, capability)
    factor, cap = score_factors(scale, k_scale, soft_cap, head_dim)
    group = heads // kv_heads
    c = config(head_dim, keys.element_size(), max_queries * group, capability)
    block_m = max(c.block_m, next_power_of_2(group))
    prefill_attention_kernel[(tokens // (block_m // group) + num_seqs, kv_heads)](
        query,
        keys,
        values,
        block_tables,
        starts,
        seq_lens,
        sinks,
        slopes,
        out,
        query.stride(0),
        keys.stride(1),
        block_tables.stride(0),
        num_seqs,
        group,
        NO_WINDOW if window is None else window,
        factor,
        float(v_scale),
        cap,
        HEAD_DIM=head_dim,
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_M=block_m,
        BLOCK_N=c.block_n,
        BLOCK_SIZE=keys.shape[1],
        STARTS_BLOCK=STARTS_BLOCK,
        HAS_WINDOW=window is not None,
        IS_CHUNK=is_chunk and window is not None,
        HAS_SINKS=sinks is not None,
        HAS_CAP=soft_cap is not None,
        HAS_SLOPES=slopes is not None,
        FP8_BITS=fp8_bits,
        INTERPRET=INTERPRET,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return out


def prefill_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    starts: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_queries: int,
    scale: float | None = None,
    window: int | None = None,
    is_chunk: bool = False,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    bounds: Sequence[int] = (),
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `prefill_attention`, in float32. Rows of no sequence are zero; max_queries and bounds change
    nothing."""
    options: dict[str, Any] = {"scale": scale, "window": window, "is_chunk": is_chunk, "soft_cap": soft_cap}
    options |= {"sinks": sinks, "slopes": slopes, "k_scale": k_scale, "v_scale": v_scale}
    lengths = seq_lens.tolist()
    result = paged_attention_reference(query, keys, values, block_tables, starts.tolist(), lengths, **options)
    return result if out is None else out.copy_(result)


# (head_dim, dtype of the cache, features, window): Llama and Qwen, those with float8 caches, windows, gpt-oss.
TYPICAL = (
    (128, "bf16", "", False),
    (128, "fp8e4nv", "", False),
    (128, "bf16", "", True),
    (64, "bf16", "", False),
    (64, "bf16", "sinks", True),
)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Decode attention's variants, with tiles for many rows and for few, with and without windows."""
    for head_dim, dtype, cache_dtype, block_size, features in variants():
        windowed = block_size == 16 and head_dim <= 256  # Gemma 4's larger heads see the whole context
        tiles = {config(head_dim, ELEMENT_SIZES[cache_dtype], rows, capability) for rows in (64, 65)}
        for c in sorted(tiles, key=lambda c: c.block_m):
            if features == "chunk":
                windows: tuple[bool, ...] = (True,)
            else:
                windows = (False, True) if windowed and features != "slopes" else (False,)
            for window in windows:
                yield _specialisation(capability, c, head_dim, dtype, cache_dtype, block_size, features, window)


def _specialisation(
    capability: int,
    c: Config,
    head_dim: int,
    dtype: str,
    cache_dtype: str,
    block_size: int,
    features: str,
    window: bool,
) -> Specialisation:
    fp8_bits = cache_dtype == "fp8e4nv" and capability < 89
    stored = "u8" if fp8_bits else cache_dtype
    words = [dtype, f"cache_{cache_dtype}", f"d{head_dim}", f"p{block_size}", f"m{c.block_m}"]
    words += [word for word in (features, "window" if window else "") if word]
    signature = {
        "query_ptr": f"*{dtype}",
        "keys_ptr": f"*{stored}",
        "values_ptr": f"*{stored}",
        "out_ptr": f"*{dtype}",
        "query_stride": "i32",
        "kv_stride": "i32",
    }
    divisible = tuple(signature)
    signature |= dict.fromkeys(("block_tables_ptr", "starts_ptr", "seq_lens_ptr"), "*i32")
    signature |= dict.fromkeys(("table_stride", "num_seqs", "group", "window"), "i32")
    signature |= dict.fromkeys(("scale", "v_scale", "soft_cap"), "fp32")
    constants: dict[str, Any] = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": next_power_of_2(head_dim),
        "BLOCK_M": c.block_m,
        "BLOCK_N": c.block_n,
        "BLOCK_SIZE": block_size,
        "STARTS_BLOCK": STARTS_BLOCK,
        "HAS_WINDOW": window,
        "IS_CHUNK": features == "chunk",
        "HAS_SINKS": features == "sinks",
        "HAS_CAP": features == "cap",
        "HAS_SLOPES": features == "slopes",
        "FP8_BITS": fp8_bits,
        "INTERPRET": False,
    }
    for numbers in ("sinks", "slopes"):
        if features == numbers:
            signature[f"{numbers}_ptr"] = "*fp32"
        else:
            constants[f"{numbers}_ptr"] = None
    usual = c.block_m == 128 and block_size == 16 and dtype == "bf16"
    typical = usual and (head_dim, cache_dtype, features, window) in TYPICAL
    return Specialisation(
        f"prefill_attention[{'_'.join(words)}]",
        prefill_attention_kernel,
        signature,
        constants,
        c.num_warps,
        c.num_stages,
        divisible,
        typical,
    )
