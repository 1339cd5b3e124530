# mypy: disable-error-code="no-untyped-def"
"""Latent attention (MLA, arXiv 2405.04434) of prompts with expanded keys and values.

Latents of a piece of some contexts are gathered from the pages (`latent_pieces`), and a matrix product makes keys and
values of all heads of them. Each head then attends to keys of its own, as in prefill attention, but in a row of memory
in place of pages: a key is a part without rotation, of the head, beside the rotated key, of all heads, and values have
another size than keys.

The queries of a context that has several pieces carry the sums, maxima and weights of their softmax from piece to
piece, in float32, and the last piece divides.

FLOPs of attention: 2 * heads * (plain_dim + rotary_dim + value_dim) * (visible pairs of query and key).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import INTERPRET, LOG2_E, STARTS_BLOCK, prompt_tile
from ember_kernels.latent_pieces import Piece
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.prefill_attention import Config
from ember_kernels.specialisation import Specialisation, device_capability


def config(widest: int, element_size: int, capability: int) -> Config:
    """The tiles of attention with heads of that size. Not measured yet: those of prefill attention for many rows, with
    fewer keys in flight, since a tile has a rotated part too."""
    if element_size == 4:
        return Config(32, 16, 8 if widest > 128 else 4, 2)
    large = capability in (80, 90, 100)
    if widest > 128:
        return Config(64, 32, 8, 3 if large else 2)
    return Config(128, 64 if capability in (90, 100) else 32, 8, 3 if large else 2)


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
    """Attention to whole contexts and to divided ones."""
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
