# mypy: disable-error-code="no-untyped-def"
"""Latent attention of prompts with absorbed queries (`latent_attention`).

As in prefill attention, a tile has some tokens times heads, and reads their context.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import LOG2_E, STARTS_BLOCK, paged_attention_reference, prompt_tile
from ember_kernels.latent_attention import as_stored, attend_tiles, check, head_group, kernel_sizes, variants
from ember_kernels.launch import direct
from ember_kernels.prefill_attention import Config
from ember_kernels.specialisation import Specialisation, device_capability


def config(rank: int, element_size: int, capability: int) -> Config:
    """The tiles of prompts. Not measured yet. A tile of 16 latents of 576 elements in 16 bits takes 18 KiB: two of them
    and the queries of 32 rows fit in the 99 KiB of sm_86, sm_89 and sm_120."""
    if element_size == 4:
        return Config(16, 16, 8, 1)
    large = capability in (80, 90, 100) or rank <= 256
    return Config(32, 32 if large else 16, 8, 2)


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
    sums, _, weights = attend_tiles(
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
    check(query, cache, block_tables, rank)
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
        **kernel_sizes(rank, size, stored, fp8_bits),
        BLOCK_M=c.block_m,
        BLOCK_N=c.block_n,
        STARTS_BLOCK=STARTS_BLOCK,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return out


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


def specialisations(capability: int) -> Iterator[Specialisation]:
    for each in variants(capability):
        c = config(each.rank, each.element_size, capability)
        yield Specialisation(
            f"latent_prefill[{each.name}]",
            latent_prefill_kernel,
            each.signature | {"starts_ptr": "*i32", "heads": "i32"},
            each.constants | {"BLOCK_M": c.block_m, "BLOCK_N": c.block_n, "STARTS_BLOCK": STARTS_BLOCK},
            c.num_warps,
            c.num_stages,
            each.divisible,
            each.typical,
        )
