# mypy: disable-error-code="no-untyped-def"
"""Pieces of the contexts of prompts with latent attention, and the gathering of their latents from the pages.

Keys and values that are expanded are larger than latents, so they are made of pieces of the contexts, one after the
other (`latent_expansion`). The host plans the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import INTERPRET, cache_tile
from ember_kernels.latent_attention import DTYPES, as_stored
from ember_kernels.latent_cache import SIZES as LATENT_SIZES
from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.specialisation import Specialisation, device_capability

GATHERED_ROWS = 16  # of one program
SEQUENCES = 32  # that a program compares at once to find those of its rows


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


def specialisations(capability: int) -> Iterator[Specialisation]:
    """The gathering from pages of 16 tokens."""
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
