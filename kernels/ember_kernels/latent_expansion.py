# mypy: disable-error-code="no-untyped-def"
"""Latent attention (MLA, arXiv 2405.04434) of prompts with expanded keys and values.

Latents of some context are gathered from the pages, and a matrix product makes keys and values of all heads of them.
Each head then attends to keys of its own, as in prefill attention, but in a row of memory in place of pages: a key is a
part without rotation, of the head, beside the rotated key, of all heads, and values have another size than keys.

Keys and values are larger than latents, so they are made of pieces of the contexts (`Piece`), one after the other. The
queries of a context that has several pieces carry the sums, maxima and weights of their softmax from piece to piece, in
float32, and the last piece divides.

FLOPs of attention: 2 * heads * (plain_dim + rotary_dim + value_dim) * (visible pairs of query and key).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import INTERPRET, LOG2_E, STARTS_BLOCK, cache_tile, prompt_tile
from ember_kernels.compile import Specialisation, device_capability
from ember_kernels.latent_attention import DTYPES, as_stored
from ember_kernels.latent_cache import SIZES as LATENT_SIZES
from ember_kernels.launch import cdiv, direct, next_power_of_2

GATHERED_ROWS = 16  # of one program
SEQUENCES = 32  # that a program compares at once to find those of its rows


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def config(widest: int, element_size: int, capability: int) -> Config:
    """The tiles of attention with heads of that size. Not measured yet: those of prefill attention for many rows, with
    fewer keys in flight, since a tile has a rotated part too."""
    if element_size == 4:
        return Config(32, 16, 8 if widest > 128 else 4, 2)
    large = capability in (80, 90, 100)
    if widest > 128:
        return Config(64, 32, 8, 3 if large else 2)
    return Config(128, 64 if capability in (90, 100) else 32, 8, 3 if large else 2)


class Piece(NamedTuple):
    """A part of the contexts of consecutive sequences, whose keys and values are expanded at once. The first sequence
    may have begun in an earlier piece, and the last one may go on in the next."""

    first_sequence: int
    num_sequences: int
    first_row: int  # of the first sequence's queries
    num_rows: int
    num_keys: int
    words: Tensor  # int32 [4, num_sequences + 1] on the device, rows of `piece_words`
    is_split: bool  # whether a sequence has another piece


def plan_pieces(starts: Sequence[int], lens: Sequence[int], most_keys: int) -> list[tuple[int, int, list[list[int]]]]:
    """The pieces of contexts of `lens` tokens, with at most `most_keys` each: first sequence, number of keys, and
    the rows of its `words`. Sequence i has the queries starts[i] to starts[i + 1].

    The rows are, of each sequence: the first query, counted from the piece's first one, and their end; the first row
    among the piece's keys, and their end; the position of that row; and the length of the context."""
    pieces = []
    sequence, position = 0, 0
    while sequence < len(lens):
        first, free, rows = sequence, most_keys, [0]
        positions, used = [], 0
        while sequence < len(lens) and free:
            count = min(lens[sequence] - position, free)
            positions.append(position)
            used, free = used + count, free - count
            rows.append(used)
            position += count
            if position < lens[sequence]:
                sequence += 1  # it is the last one of this piece, and the first of the next
                break
            sequence, position = sequence + 1, 0
        queries = [start - starts[first] for start in starts[first : sequence + 1]]
        pieces.append((first, used, [queries, rows, [*positions, 0], [*lens[first:sequence], 0]]))
        sequence -= position > 0
    return pieces


def upload_pieces(starts: Sequence[int], lens: Sequence[int], most_keys: int, device: torch.device) -> list[Piece]:
    """`plan_pieces` on the device, by one copy."""
    planned = plan_pieces(starts, lens, most_keys)
    numbers = torch.tensor([number for *_, rows in planned for row in rows for number in row], dtype=torch.int32)
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    words, at, pieces = numbers.to(device, non_blocking=True), 0, []
    for first, num_keys, rows in planned:
        count = len(rows[0])
        own, at = words[at : at + 4 * count].view(4, count), at + 4 * count
        is_split = any(
            begin or end - row < length
            for begin, length, row, end in zip(rows[2][:-1], rows[3][:-1], rows[1][:-1], rows[1][1:], strict=True)
        )
        pieces.append(Piece(first, count - 1, starts[first], rows[0][-1], num_keys, own, is_split))
    return pieces


@direct
@triton.jit(do_not_specialize=["block_tables_ptr", "words_ptr", "table_stride", "num_seqs", "num_keys"])
def gather_latents_kernel(
    cache_ptr,
    block_tables_ptr,
    words_ptr,
    latent_ptr,
    turned_ptr,
    stride,
    table_stride,
    num_seqs,
    num_keys,
    cache_scale,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_ROTARY: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    FP8_BITS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Some rows of a piece's latents, and of their rotated keys."""
    DTYPE: tl.constexpr = latent_ptr.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stored = rows < num_keys
    ends_ptr = words_ptr + num_seqs + 2  # where the keys of each sequence end
    seqs = tl.zeros((ROWS,), tl.int32)
    for first in range(0, num_seqs, SEQUENCES):
        some = first + tl.arange(0, SEQUENCES)
        ends = tl.load(ends_ptr + some, mask=some < num_seqs, other=1 << 30)
        seqs += tl.sum((ends[None, :] <= rows[:, None]).to(tl.int32), 1)
    begins = tl.load(ends_ptr - 1 + seqs, mask=stored, other=0)
    at = tl.load(words_ptr + 2 * (num_seqs + 1) + seqs, mask=stored, other=0) + rows - begins
    tables = block_tables_ptr + seqs.to(tl.int64) * table_stride
    blocks = tl.load(tables + at // BLOCK_SIZE, mask=stored, other=0).to(tl.int64)
    slots = ((blocks * BLOCK_SIZE + at % BLOCK_SIZE) * stride)[:, None]
    ranks = tl.arange(0, BLOCK_RANK)[None, :]
    dims = tl.arange(0, BLOCK_ROTARY)[None, :]
    rank_mask = stored[:, None] & (ranks < RANK)
    dim_mask = stored[:, None] & (dims < ROTARY_DIM)
    latent = cache_tile(tl.load(cache_ptr + slots + ranks, mask=rank_mask, other=0.0), DTYPE, FP8_BITS, INTERPRET)
    turned = tl.load(cache_ptr + RANK + slots + dims, mask=dim_mask, other=0.0)
    turned = cache_tile(turned, DTYPE, FP8_BITS, INTERPRET)
    at_rows = rows.to(tl.int64)[:, None]
    latent = (latent.to(tl.float32) * cache_scale).to(DTYPE)
    turned = (turned.to(tl.float32) * cache_scale).to(DTYPE)
    tl.store(latent_ptr + at_rows * RANK + ranks, latent, mask=rank_mask)
    tl.store(turned_ptr + at_rows * ROTARY_DIM + dims, turned, mask=dim_mask)


@triton.jit
def _rows_of(ptr, stride, dims, SIZE: tl.constexpr, stored, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """Parts of rows, transposed: [BLOCK, rows]."""
    ptrs = ptr + stride[None, :] + dims[:, None]
    if MASKED:
        tile = tl.load(ptrs, mask=stored[None, :] & (dims < SIZE)[:, None], other=0.0)
    elif SIZE != BLOCK:
        tile = tl.load(ptrs, mask=(dims < SIZE)[:, None], other=0.0)
    else:
        tile = tl.load(ptrs)
    return tile


@triton.jit
def _attend_rows(
    low,
    high,
    turned,
    sums,
    maxima,
    weights,
    up_ptr,
    turned_ptr,
    up_stride,
    offset,
    begin,
    end,
    positions,
    scale,
    MASKED: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK_LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_HIGH: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_ROTARY: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """The attention of rows of queries to keys at the positions from `begin` to `end`; the row of a key is its position
    plus `offset`."""
    lows = tl.arange(0, BLOCK_LOW)
    dims = tl.arange(0, BLOCK_ROTARY)
    values = tl.arange(0, BLOCK_VALUE)
    for tile in range(begin, end, BLOCK_N):
        at = tile + tl.arange(0, BLOCK_N)
        stored = at < end
        rows = (at + offset).to(tl.int64)
        own = rows * up_stride
        key = _rows_of(up_ptr, own, lows, LOW, stored, MASKED, BLOCK_LOW)
        if INTERPRET:  # the interpreter's dot of bfloat16 is wrong
            key = key.to(tl.float32)
        scores = tl.dot(low, key, input_precision="ieee")
        if HIGH > 0:
            key = _rows_of(up_ptr + LOW, own, tl.arange(0, BLOCK_HIGH), HIGH, stored, MASKED, BLOCK_HIGH)
            if INTERPRET:
                key = key.to(tl.float32)
            scores = tl.dot(high, key, scores, input_precision="ieee")
        key = _rows_of(turned_ptr, rows * ROTARY_DIM, dims, ROTARY_DIM, stored, MASKED, BLOCK_ROTARY)
        if INTERPRET:
            key = key.to(tl.float32)
        scores = tl.dot(turned, key, scores, input_precision="ieee")
        value_ptrs = up_ptr + (LOW + HIGH) + own[:, None] + values[None, :]
        if MASKED:
            value = tl.load(value_ptrs, mask=stored[:, None] & (values < VALUE_DIM)[None, :], other=0.0)
            visible = stored[None, :] & (at[None, :] <= positions[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        elif VALUE_DIM != BLOCK_VALUE:
            value = tl.load(value_ptrs, mask=(values < VALUE_DIM)[None, :], other=0.0)
        else:
            value = tl.load(value_ptrs)
        if INTERPRET:
            value = value.to(tl.float32)
        # It is finite: each row sees the first key of its context, which is in the first tile of its first piece.
        highest = tl.maximum(maxima, tl.max(scores, 1) * scale)
        weight = tl.exp2(scores * scale - highest[:, None])
        decay = tl.exp2(maxima - highest)
        weights = weights * decay + tl.sum(weight, 1)
        sums = tl.dot(weight.to(value.dtype), value, sums * decay[:, None], input_precision="ieee")
        maxima = highest
    return sums, maxima, weights


@direct
@triton.jit(do_not_specialize=["words_ptr", "maxima_ptr", "weights_ptr", "num_seqs", "first_row"])
def expanded_attention_kernel(
    query_ptr,
    up_ptr,
    turned_ptr,
    words_ptr,
    out_ptr,
    sums_ptr,
    maxima_ptr,
    weights_ptr,
    up_stride,
    num_seqs,
    first_row,
    scale,
    LOW: tl.constexpr,
    BLOCK_LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_HIGH: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_ROTARY: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Some queries of one sequence and head, and the keys of one piece. `prompt_tile` has the numbering of tiles."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    seq, start, queries, first_token = prompt_tile(words_ptr, num_seqs, number, BLOCK_M, STARTS_BLOCK)
    if first_token >= queries:
        return
    keys_ptr = words_ptr + num_seqs + 1 + seq
    key_row = tl.load(keys_ptr)
    num_keys = tl.load(keys_ptr + 1) - key_row
    first_key = tl.load(keys_ptr + num_seqs + 1)  # its position
    seq_len = tl.load(keys_ptr + 2 * (num_seqs + 1))
    tokens = first_token + tl.arange(0, BLOCK_M)
    last_token = tl.minimum(first_token + BLOCK_M, queries) - 1
    row_mask = tokens < queries
    tokens = tl.minimum(tokens, last_token)  # idle rows repeat a token, so that all rows see keys
    positions = seq_len - queries + tokens
    lowest = seq_len - queries + first_token
    stop = first_key + num_keys
    end = tl.minimum(seq_len - queries + last_token + 1, stop)
    if IS_SPLIT:  # noqa: SIM102  # what Triton decides when it compiles stays apart
        if (end <= first_key) & (stop < seq_len):
            return  # none of these queries sees the piece
    # Keys [first_key, middle) are seen by all rows, [middle, end) need a mask.
    middle = first_key + tl.maximum(tl.minimum(lowest + 1, stop) - first_key, 0) // BLOCK_N * BLOCK_N

    lows = tl.arange(0, BLOCK_LOW)
    dims = tl.arange(0, BLOCK_ROTARY)
    values = tl.arange(0, BLOCK_VALUE)
    out_rows = (first_row + start + tokens).to(tl.int64) * heads + head
    query_rows = query_ptr + out_rows[:, None] * (LOW + HIGH + ROTARY_DIM)
    low = tl.load(query_rows + lows[None, :], mask=row_mask[:, None] & (lows < LOW)[None, :], other=0.0)
    high = low
    if HIGH > 0:
        highs = tl.arange(0, BLOCK_HIGH)
        high = tl.load(query_rows + LOW + highs[None, :], mask=row_mask[:, None] & (highs < HIGH)[None, :], other=0.0)
    turned_rows = query_rows + (LOW + HIGH)
    turned = tl.load(turned_rows + dims[None, :], mask=row_mask[:, None] & (dims < ROTARY_DIM)[None, :], other=0.0)
    if INTERPRET:
        low, high, turned = low.to(tl.float32), high.to(tl.float32), turned.to(tl.float32)
    mask = row_mask[:, None] & (values < VALUE_DIM)[None, :]
    maxima = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weights = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_VALUE), tl.float32)
    if IS_SPLIT:  # noqa: SIM102
        if first_key > 0:
            maxima = tl.load(maxima_ptr + out_rows, mask=row_mask, other=0.0)
            weights = tl.load(weights_ptr + out_rows, mask=row_mask, other=1.0)
            sums = tl.load(sums_ptr + out_rows[:, None] * VALUE_DIM + values[None, :], mask=mask, other=0.0)
    for part in tl.static_range(0, 2):
        sums, maxima, weights = _attend_rows(
            low,
            high,
            turned,
            sums,
            maxima,
            weights,
            up_ptr + head * (LOW + HIGH + VALUE_DIM),
            turned_ptr,
            up_stride,
            key_row - first_key,
            first_key if part == 0 else middle,
            middle if part == 0 else end,
            positions,
            scale,
            MASKED=part == 1,
            LOW=LOW,
            BLOCK_LOW=BLOCK_LOW,
            HIGH=HIGH,
            BLOCK_HIGH=BLOCK_HIGH,
            ROTARY_DIM=ROTARY_DIM,
            BLOCK_ROTARY=BLOCK_ROTARY,
            VALUE_DIM=VALUE_DIM,
            BLOCK_VALUE=BLOCK_VALUE,
            BLOCK_N=BLOCK_N,
            INTERPRET=INTERPRET,
        )
    is_last = True
    if IS_SPLIT:
        is_last = stop >= seq_len
        if stop < seq_len:
            tl.store(maxima_ptr + out_rows, maxima, mask=row_mask)
            tl.store(weights_ptr + out_rows, weights, mask=row_mask)
            tl.store(sums_ptr + out_rows[:, None] * VALUE_DIM + values[None, :], sums, mask=mask)
    if is_last:
        out = sums / weights[:, None]
        out_ptrs = out_ptr + out_rows[:, None] * VALUE_DIM + values[None, :]
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def gather_latents(
    cache: Tensor, block_tables: Tensor, piece: Piece, *, rank: int, dtype: torch.dtype, cache_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The latents [keys, rank] and rotated keys [keys, rotary_dim] of a piece, in `dtype`.

    cache         [num_blocks, block_size, 1, rank + rotary_dim], slots of one stride, of `dtype` or float8_e4m3fn
                  (elements stand for themselves times `cache_scale`)
    block_tables  int32 [seqs, max_blocks], of the sequences that pieces count
    """
    size = cache.shape[3]
    if cache.dim() != 4 or cache.shape[2] != 1 or not 0 < rank < size or cache.stride(3) != 1:
        raise ValueError(f"the cache {tuple(cache.shape)} has no latents of rank {rank}")
    if cache.dtype not in (dtype, torch.float8_e4m3fn) or cache.stride(0) != cache.shape[1] * cache.stride(1):
        raise ValueError(
            f"the cache must be {dtype} or float8_e4m3fn, with slots one stride apart, and is {cache.dtype}"
        )
    if block_tables.dtype != torch.int32 or block_tables.stride(1) != 1:
        raise ValueError("block_tables must be int32 with contiguous rows")
    latent = torch.empty((piece.num_keys, rank), dtype=dtype, device=cache.device)
    turned = latent.new_empty((piece.num_keys, size - rank))
    stored, fp8_bits = as_stored(cache, device_capability(cache.device))
    gather_latents_kernel[(cdiv(piece.num_keys, GATHERED_ROWS),)](
        stored,
        block_tables[piece.first_sequence :],
        piece.words,
        latent,
        turned,
        stored.stride(1),
        block_tables.stride(0),
        piece.num_sequences,
        piece.num_keys,
        float(cache_scale),
        RANK=rank,
        BLOCK_RANK=next_power_of_2(rank),
        ROTARY_DIM=size - rank,
        BLOCK_ROTARY=next_power_of_2(size - rank),
        BLOCK_SIZE=stored.shape[1],
        ROWS=GATHERED_ROWS,
        SEQUENCES=SEQUENCES,
        FP8_BITS=fp8_bits,
        INTERPRET=INTERPRET,
        num_warps=4,
        num_stages=1,
    )
    return latent, turned


class Carried(NamedTuple):
    """What the queries of contexts with several pieces carry from one to the next, in float32."""

    sums: Tensor  # [tokens, heads, value_dim]
    maxima: Tensor  # [tokens, heads], in units of log 2
    weights: Tensor

    @classmethod
    def like(cls, out: Tensor) -> Carried:
        rows = out.shape[:2]
        sums = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        return cls(sums, sums.new_empty(rows), sums.new_empty(rows))


def expanded_attention(
    query: Tensor, up: Tensor, turned: Tensor, piece: Piece, *, scale: float, carried: Carried | None, out: Tensor
) -> Tensor:
    """Causal attention of the piece's queries, which are the last positions of their contexts, to the piece's keys.

    query    [tokens, heads, plain_dim + rotary_dim] contiguous, bfloat16, float16 or float32
    up       [keys, heads * (plain_dim + value_dim)]: of each head its key without rotation, then its value
    turned   [keys, rotary_dim] contiguous: the rotated keys
    carried  of the piece before, and for the next one; needed if the piece `is_split`
    out      [tokens, heads, value_dim] contiguous; rows of queries whose contexts end in this piece are written
    """
    heads, value_dim, rotary_dim = query.shape[1], out.shape[2], turned.shape[1]
    plain_dim = query.shape[2] - rotary_dim
    if up.shape != (piece.num_keys, heads * (plain_dim + value_dim)) or up.stride(1) != 1 or plain_dim < 1:
        raise ValueError(f"up {tuple(up.shape)} does not fit query {tuple(query.shape)} and out {tuple(out.shape)}")
    if not (query.is_contiguous() and turned.is_contiguous() and out.is_contiguous()):
        raise ValueError("query, turned and out must be contiguous")
    if piece.is_split and carried is None:
        raise ValueError("a piece of a divided context needs what the others carry")
    sums, maxima, weights = carried if piece.is_split and carried is not None else (None, None, None)
    c = config(max(plain_dim, value_dim), query.element_size(), device_capability(query.device))
    expanded_attention_kernel[(piece.num_rows // c.block_m + piece.num_sequences, heads)](
        query,
        up,
        turned,
        piece.words,
        out,
        sums,
        maxima,
        weights,
        up.stride(0),
        piece.num_sequences,
        piece.first_row,
        scale * LOG2_E,
        **_sizes(plain_dim, rotary_dim, value_dim),
        BLOCK_M=c.block_m,
        BLOCK_N=c.block_n,
        STARTS_BLOCK=STARTS_BLOCK,
        IS_SPLIT=piece.is_split,
        INTERPRET=INTERPRET,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return out


def _sizes(plain_dim: int, rotary_dim: int, value_dim: int) -> dict[str, int]:
    """A key without rotation is multiplied in one part, or in two whose sizes are powers of two."""
    low = 1 << (plain_dim.bit_length() - 1)
    if low < 16 or plain_dim - low < 16:
        low = plain_dim
    high = plain_dim - low
    return {
        "LOW": low,
        "BLOCK_LOW": max(16, next_power_of_2(low)),
        "HIGH": high,
        "BLOCK_HIGH": max(16, next_power_of_2(high)) if high else 0,
        "ROTARY_DIM": rotary_dim,
        "BLOCK_ROTARY": max(16, next_power_of_2(rotary_dim)),
        "VALUE_DIM": value_dim,
        "BLOCK_VALUE": max(16, next_power_of_2(value_dim)),
    }


def gather_latents_reference(
    cache: Tensor, block_tables: Tensor, piece: Piece, *, rank: int, dtype: torch.dtype, cache_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The specification of `gather_latents`."""
    _, key_rows, positions, _ = piece.words.tolist()
    rows = []
    for i in range(piece.num_sequences):
        at = positions[i] + torch.arange(key_rows[i + 1] - key_rows[i], device=cache.device)
        blocks = block_tables[piece.first_sequence + i].long()[at // cache.shape[1]]
        rows.append(cache[blocks, at % cache.shape[1], 0])
    made = (torch.cat(rows).float() * cache_scale).to(dtype)
    return made[:, :rank].contiguous(), made[:, rank:].contiguous()


def expanded_attention_reference(
    query: Tensor, up: Tensor, turned: Tensor, piece: Piece, *, scale: float, carried: Carried | None, out: Tensor
) -> Tensor:
    """The specification of `expanded_attention`, in float32."""
    heads, value_dim = out.shape[1:]
    up = up.float().unflatten(1, (heads, -1))
    plain, value = up.split((up.shape[2] - value_dim, value_dim), dim=-1)
    key = torch.cat((plain, turned.float()[:, None].expand(-1, heads, -1)), dim=-1)
    starts, key_rows, positions, lens = piece.words.tolist()
    for i in range(piece.num_sequences):
        rows = slice(piece.first_row + starts[i], piece.first_row + starts[i + 1])
        keys = slice(key_rows[i], key_rows[i + 1])
        at = positions[i] + torch.arange(keys.stop - keys.start, device=query.device)
        own = lens[i] - (rows.stop - rows.start) + torch.arange(rows.stop - rows.start, device=query.device)
        scores = torch.einsum("qhd,khd->qhk", query[rows].float(), key[keys]) * scale * LOG2_E
        scores = scores.masked_fill((at > own[:, None])[:, None], -torch.inf)
        maxima = scores.amax(-1)
        if positions[i]:
            assert carried is not None
            maxima = torch.maximum(maxima, carried.maxima[rows])
        weights = torch.exp2(scores - maxima[..., None])
        sums, total = torch.einsum("qhk,khd->qhd", weights, value[keys]), weights.sum(-1)
        if positions[i]:
            assert carried is not None
            decay = torch.exp2(carried.maxima[rows] - maxima)
            sums, total = sums + carried.sums[rows] * decay[..., None], total + carried.weights[rows] * decay
        if positions[i] + len(at) < lens[i]:
            assert carried is not None
            for kept, made in zip(carried, (sums, maxima, total), strict=True):
                kept[rows] = made
        else:
            out[rows] = (sums / total[..., None]).to(out.dtype)
    return out


# (plain_dim, rotary_dim, value_dim): DeepSeek and most others, GLM-4.7-Flash, Mistral 4, MiniCPM 3.
SIZES = ((128, 64, 128), (192, 64, 256), (64, 64, 128), (64, 32, 64))


def specialisations(capability: int) -> Iterator[Specialisation]:
    """The gathering from pages of 16 tokens, and attention to whole contexts and to divided ones."""
    for (rank, rotary_dim), (dtype, cache_dtype) in product(LATENT_SIZES, DTYPES):
        fp8_bits = cache_dtype == "fp8e4nv" and capability < 89
        signature = {"cache_ptr": f"*{'u8' if fp8_bits else cache_dtype}"}
        signature |= {"latent_ptr": f"*{dtype}", "turned_ptr": f"*{dtype}", "stride": "i32"}
        yield Specialisation(
            f"gather_latents[{dtype}_cache_{cache_dtype}_{rank}+{rotary_dim}]",
            gather_latents_kernel,
            signature
            | dict.fromkeys(("block_tables_ptr", "words_ptr"), "*i32")
            | dict.fromkeys(("table_stride", "num_seqs", "num_keys"), "i32")
            | {"cache_scale": "fp32"},
            {
                "RANK": rank,
                "BLOCK_RANK": next_power_of_2(rank),
                "ROTARY_DIM": rotary_dim,
                "BLOCK_ROTARY": next_power_of_2(rotary_dim),
                "BLOCK_SIZE": 16,
                "ROWS": GATHERED_ROWS,
                "SEQUENCES": SEQUENCES,
                "FP8_BITS": fp8_bits,
                "INTERPRET": False,
            },
            4,
            1,
            tuple(signature),
            typical=False,
        )
    for sizes, dtype, is_split in product(SIZES, ("bf16", "fp16", "fp32"), (False, True)):
        yield _specialisation(capability, sizes, dtype, is_split)


def _specialisation(capability: int, sizes: tuple[int, int, int], dtype: str, is_split: bool) -> Specialisation:
    plain_dim, rotary_dim, value_dim = sizes
    c = config(max(plain_dim, value_dim), 4 if dtype == "fp32" else 2, capability)
    signature = {f"{name}_ptr": f"*{dtype}" for name in ("query", "up", "turned", "out")} | {"up_stride": "i32"}
    constants: dict[str, Any] = {
        **_sizes(*sizes),
        "BLOCK_M": c.block_m,
        "BLOCK_N": c.block_n,
        "STARTS_BLOCK": STARTS_BLOCK,
        "IS_SPLIT": is_split,
        "INTERPRET": False,
    }
    carried = ("sums_ptr", "maxima_ptr", "weights_ptr")
    divisible = tuple(signature)
    signature |= {"words_ptr": "*i32", "num_seqs": "i32", "first_row": "i32", "scale": "fp32"}
    if is_split:
        signature |= dict.fromkeys(carried, "*fp32")
        divisible = (*divisible, "sums_ptr")
    else:
        constants |= dict.fromkeys(carried)
    words = [dtype, f"{plain_dim}+{rotary_dim}", f"v{value_dim}", *(["split"] if is_split else [])]
    return Specialisation(
        f"expanded_attention[{'_'.join(words)}]",
        expanded_attention_kernel,
        signature,
        constants,
        c.num_warps,
        c.num_stages,
        divisible,
        typical=(dtype, sizes, is_split) == ("bf16", SIZES[0], True),
    )
