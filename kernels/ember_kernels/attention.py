# mypy: disable-error-code="no-untyped-def"
"""Functions shared by the attention kernels: reading the paged cache, scores, checks, and the reference.

The cache of a layer is keys and values [num_blocks, block_size, kv_heads, head_dim], in which slots of one stride may
have more than the layer's keys. Position p of a sequence is in
block block_tables[sequence, p // block_size] at offset p % block_size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
LOG2_E = math.log2(math.e)
NO_WINDOW = 1 << 30
MAX_HEAD_DIM = 512
STARTS_BLOCK = 256  # sequences whose tiles `prompt_tile` counts at once

# Of the four bytes in $2, two are spread over the halves of a register, and shifted to where bfloat16 has exponent and
# mantissa. That is the value times 2**(7 - 127), subnormals included, which one multiplication mends. NaN becomes 480.
E4M3_TO_BF16 = """{
.reg .b32 low, high, sign, factor;
prmt.b32 low, $2, 0, 0x1404;
prmt.b32 high, $2, 0, 0x3424;
and.b32 sign, low, 0x80008000;
shr.b32 low, low, 4;
and.b32 low, low, 0x07f007f0;
or.b32 low, low, sign;
and.b32 sign, high, 0x80008000;
shr.b32 high, high, 4;
and.b32 high, high, 0x07f007f0;
or.b32 high, high, sign;
mov.b32 sign, 0x80008000;
mov.b32 factor, 0x7b807b80;
fma.rn.bf16x2 $0, low, factor, sign;
fma.rn.bf16x2 $1, high, factor, sign;
}"""
_E4M3_TO_BF16: tl.constexpr = tl.constexpr(E4M3_TO_BF16)


@triton.jit
def prompt_tile(starts_ptr, num_seqs, number, tokens_a_tile, STARTS_BLOCK: tl.constexpr):
    """The sequence of a tile of prompts, its first token in the batch, its number of tokens, and the tile's first token
    within it. Tiles without tokens begin at the number of tokens or after it."""
    origin = tl.load(starts_ptr)
    seq = -1
    for first in range(0, num_seqs, STARTS_BLOCK):
        some = first + tl.arange(0, STARTS_BLOCK)
        starts = tl.load(starts_ptr + some, mask=some < num_seqs, other=0)
        first_tiles = (starts - origin) // tokens_a_tile + some
        seq += tl.sum(((some < num_seqs) & (first_tiles <= number)).to(tl.int32), 0)
    start = tl.load(starts_ptr + seq)
    queries = tl.load(starts_ptr + seq + 1) - start
    return seq, start, queries, (number - (start - origin) // tokens_a_tile - seq) * tokens_a_tile


@triton.jit
def e4m3_bits(bits, DTYPE: tl.constexpr):
    """Convert float8 e4m3 given as uint8 to DTYPE, for devices before sm_89 and the interpreter, which lack the type.

    The bits, shifted to where float16 has exponent and mantissa, are the value times 2**(7 - 15), subnormals included.
    """
    wide = bits.to(tl.uint16)
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return (half.to(tl.float32) * 256.0).to(DTYPE)


@triton.jit
def packed_e4m3(bits):
    """Convert float8 e4m3 given as uint8 to bfloat16, four at a time, exactly.

    It is declared impure to keep it where it is: the compiler would move it behind the loads of a matrix product, which
    for values, whose tile is turned, are of one byte each.
    """
    return tl.inline_asm_elementwise(
        _E4M3_TO_BF16,
        "=r,=r,r",
        [bits],
        dtype=tl.bfloat16,
        is_pure=False,
        pack=4,
    )


@triton.jit
def cache_tile(tile, DTYPE: tl.constexpr, FP8_BITS: tl.constexpr, INTERPRET: tl.constexpr):
    """Convert keys or values loaded from the cache to the type in which they are multiplied."""
    if tile.dtype.primitive_bitwidth == 8 and DTYPE == tl.bfloat16 and not INTERPRET:  # noqa: SIM300
        tile = packed_e4m3(tile.to(tl.uint8, bitcast=True))
    elif FP8_BITS:
        tile = e4m3_bits(tile, DTYPE)
    else:
        tile = tile.to(DTYPE)
    if INTERPRET:  # the interpreter's dot of bfloat16 is wrong
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def scores_of(products, scale, soft_cap, HAS_CAP: tl.constexpr):
    """Scores in units of log 2 from q @ k; `scale` and `soft_cap` as `score_factors` made them."""
    if HAS_CAP:  # cap * tanh(x / cap), with tanh(y) = 1 - 2 / (1 + exp(2 y))
        scores = soft_cap * (1.0 - 2.0 / (1.0 + tl.exp2(products * scale)))
    else:
        scores = products * scale
    return scores


@triton.jit
def attend_tiles(
    query,
    sums,
    maxima,
    weights,
    keys_ptr,
    values_ptr,
    table_ptr,
    kv_stride,
    begin,
    end,
    positions,
    firsts,
    seq_len,
    scale,
    soft_cap,
    slopes,
    last,
    DTYPE: tl.constexpr,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Let `query` [rows, head_dim] attend to the keys from `begin` (a multiple of BLOCK_N) to `end`, tile by tile.

    MASKED: some rows do not attend to some of the keys, which may be before every window or beyond the context. These
    keys are not loaded, since their pages may hold anything, NaN included. With HAS_WINDOW each row sees the keys from
    `firsts` to its position. With HAS_SLOPES each row's score of a key at position p has slopes * (p - last) added, in
    units of log 2.
    """
    dims = tl.arange(0, BLOCK_D)
    offsets = tl.arange(0, BLOCK_N)
    dim_mask = dims < HEAD_DIM
    if MASKED and HAS_WINDOW:
        lowest = tl.min(firsts, 0)
    for tile in range(begin, end, BLOCK_N):
        at = tile + offsets
        if MASKED:
            stored = at < seq_len
            if HAS_WINDOW:
                stored &= at >= lowest
            blocks = tl.load(table_ptr + at // BLOCK_SIZE, mask=stored, other=0).to(tl.int64)
        else:
            blocks = tl.load(table_ptr + at // BLOCK_SIZE).to(tl.int64)
        slots = (blocks * BLOCK_SIZE + at % BLOCK_SIZE) * kv_stride
        key_ptrs = keys_ptr + slots[None, :] + dims[:, None]
        value_ptrs = values_ptr + slots[:, None] + dims[None, :]
        if MASKED:
            key = tl.load(key_ptrs, mask=stored[None, :] & dim_mask[:, None], other=0.0)
            value = tl.load(value_ptrs, mask=stored[:, None] & dim_mask[None, :], other=0.0)
        elif HEAD_DIM != BLOCK_D:
            key = tl.load(key_ptrs, mask=dim_mask[:, None], other=0.0)
            value = tl.load(value_ptrs, mask=dim_mask[None, :], other=0.0)
        else:
            key = tl.load(key_ptrs)
            value = tl.load(value_ptrs)
        key = cache_tile(key, DTYPE, FP8_BITS, INTERPRET)
        scores = tl.dot(query, key, input_precision="ieee")
        if HAS_CAP or HAS_SLOPES:
            scores = scores_of(scores, scale, soft_cap, HAS_CAP)
        if HAS_SLOPES:
            scores += slopes[:, None] * (at - last).to(tl.float32)[None, :]
        if MASKED:
            visible = at[None, :] <= positions[:, None]
            if HAS_WINDOW:
                visible &= at[None, :] >= firsts[:, None]
            scores = tl.where(visible, scores, float("-inf"))
        # Without a cap or slopes, the scale is a factor inside the exponent: one multiply-add, where there would be two
        # operations.
        factor = 1.0 if HAS_CAP or HAS_SLOPES else scale
        highest = tl.maximum(maxima, tl.max(scores, 1) * factor)
        if MASKED and HAS_WINDOW:  # a row may have had no visible key yet
            base = tl.where(highest == float("-inf"), 0.0, highest)
        else:
            base = highest
        weight = tl.exp2(scores * factor - base[:, None])
        decay = tl.exp2(maxima - base)
        weights = weights * decay + tl.sum(weight, 1)
        value = cache_tile(value, DTYPE, FP8_BITS, INTERPRET)
        sums = tl.dot(weight.to(value.dtype), value, sums * decay[:, None], input_precision="ieee")
        maxima = highest
    return sums, maxima, weights


def score_factors(scale: float | None, k_scale: float, soft_cap: float | None, head_dim: int) -> tuple[float, float]:
    """The arguments `scale` and `soft_cap` of `scores_of`, with all constant factors multiplied on the host.

    Raises ValueError unless scale and k_scale are above zero: maxima are taken before the scale is applied.
    """
    factor = (head_dim**-0.5 if scale is None else scale) * float(k_scale)
    if not factor > 0.0:
        raise ValueError(f"scale and k_scale must be above zero and are {scale} and {k_scale}")
    if soft_cap is None:
        return factor * LOG2_E, 0.0
    return factor / soft_cap * 2 * LOG2_E, soft_cap * LOG2_E


def as_stored(keys: torch.Tensor, values: torch.Tensor, capability: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Keys, values and False; or float8 keys and values as uint8 and True, where the device has no float8 type."""
    if keys.dtype == torch.float8_e4m3fn and (INTERPRET or capability < 89):
        return keys.view(torch.uint8), values.view(torch.uint8), True
    return keys, values, False


def check_cache(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_tables: torch.Tensor) -> None:
    """Raise ValueError for shapes, dtypes and strides that the attention kernels do not support."""
    heads, head_dim = query.shape[1:]
    if keys.shape != values.shape or keys.dim() != 4 or keys.shape[3] != head_dim:
        raise ValueError(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must be [num_blocks, block_size, kv_heads, "
            f"{head_dim}] for query {tuple(query.shape)}"
        )
    if head_dim % 16 or not 16 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be a multiple of 16 from 16 to {MAX_HEAD_DIM} and is {head_dim}")
    if heads % keys.shape[2]:
        raise ValueError(f"the {heads} heads of query are not a multiple of the cache's {keys.shape[2]} KV heads")
    if query.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"query must be bfloat16, float16 or float32 and is {query.dtype}")
    if keys.dtype not in (query.dtype, torch.float8_e4m3fn) or values.dtype != keys.dtype:
        raise ValueError(f"the cache must be {query.dtype} or float8_e4m3fn and is {keys.dtype}, {values.dtype}")
    for cache in (keys, values):
        if cache.stride()[2:] != (head_dim, 1) or cache.stride(0) != cache.shape[1] * cache.stride(1):
            raise ValueError(f"a cache's slots must be one stride apart: {tuple(cache.shape)}, {cache.stride()}")
    if keys.stride(1) != values.stride(1):
        raise ValueError(f"the slots of keys and values must have one stride: {keys.stride(1)}, {values.stride(1)}")
    if query.stride(2) != 1 or query.stride(1) != head_dim:
        raise ValueError("the heads of a row of query must be contiguous")
    if block_tables.dtype != torch.int32 or block_tables.stride(1) != 1:
        raise ValueError("block_tables must be int32 with contiguous rows")


def paged_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    query_starts: Sequence[int],
    seq_lens: Sequence[int],
    *,
    scale: float | None = None,
    window: int | None = None,
    is_chunk: bool = False,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Causal attention of ragged queries to paged contexts, in float32: the specification of the kernels.

    Rows query_starts[i] to query_starts[i + 1] of query [tokens, heads, head_dim] are the last positions of the
    context of seq_lens[i] tokens. Rows that belong to no sequence, or to one of length 0, are zero.
    """
    head_dim, group = query.shape[2], query.shape[1] // keys.shape[2]
    block_size = keys.shape[1]
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for i, length in enumerate(seq_lens):
        rows = slice(query_starts[i], query_starts[i + 1])
        q = query[rows].float()
        if length == 0 or q.shape[0] == 0:
            continue
        at = torch.arange(length, device=query.device)
        blocks = block_tables[i].long()[at // block_size]
        k = (keys[blocks, at % block_size].float() * k_scale).repeat_interleave(group, 1)
        v = (values[blocks, at % block_size].float() * v_scale).repeat_interleave(group, 1)
        positions = at[length - q.shape[0] :, None]
        hidden = at > positions  # [queries, context]
        if window is not None:
            firsts = positions // window * window if is_chunk else positions - window + 1
            hidden |= at < firsts
            unseen = at < firsts[0]  # pages before the window may hold anything
            k[unseen], v[unseen] = 0, 0
        scores = torch.einsum("qhd,khd->hqk", q, k) * (head_dim**-0.5 if scale is None else scale)
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        if slopes is not None:
            scores = scores + slopes.float()[:, None, None] * (at - positions)
        scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            column = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
            weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
    return out
