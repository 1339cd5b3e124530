# mypy: disable-error-code="no-untyped-def"
"""The chunks of ragged prompts by the gated delta rule (arXiv 2412.06464). `state_chunks` has what comes after them.

The values of a chunk depend on each other. With L = beta * (k k^T) * decay below the diagonal, what the tokens add to
the state is (I + L)^-1 beta (v - decay k S): the part of v ("values") and that of S ("keys") are made here.

FLOPs of a chunk and head, C tokens: 2 C (C + key_dim) value_dim + 4 C^2 key_dim more than `state_chunks` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import STARTS_BLOCK, prompt_tile
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation
from ember_kernels.state_chunks import CHUNK, DTYPES, chunk_signature, pass_states, store_factors
from ember_kernels.state_math import (
    DELTA_SIZES,
    EPS,
    INTERPRET,
    RUNS,
    check_runs,
    delta_reference,
    delta_sizes,
    dot,
    each_run,
    precision,
    scratch_type,
    softplus,
)
from ember_kernels.state_tokens import delta_tokens

NUM_WARPS = 8
MOST_COLUMNS = 64  # of keys and values in one product of the chunks
BLOCK = 16  # rows and columns of the blocks that are inverted


@triton.jit
def _block(matrix_ptr, stride, count, row, column, BLOCK: tl.constexpr):
    """Pointers to a block of a matrix with `count` rows, and which of them are there."""
    offsets = tl.arange(0, BLOCK)
    rows = row * BLOCK + offsets
    return matrix_ptr + rows[:, None] * stride + column * BLOCK + offsets[None, :], (rows < count)[:, None]


@triton.jit
def _load_block(matrix_ptr, stride, count, row, column, BLOCK: tl.constexpr):
    block_ptr, mask = _block(matrix_ptr, stride, count, row, column, BLOCK)
    return tl.load(block_ptr, mask=mask, other=0.0)


@triton.jit
def _store_block(matrix_ptr, stride, count, row, column, block, BLOCK: tl.constexpr):
    block_ptr, mask = _block(matrix_ptr, stride, count, row, column, BLOCK)
    tl.store(block_ptr, block, mask=mask)


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _invert(matrix_ptr, stride, count, BLOCK: tl.constexpr):
    """Replace a matrix of 4 x 4 blocks that has zeros on and above its diagonal by (I + matrix)^-1.

    The blocks on the diagonal are inverted row by row, all at a time, and the others follow from them. This goes
    through memory, since a matrix of 64 x 64 and its factors fill the registers, and blocks cannot be cut out of it.
    """
    numbers = tl.arange(0, 4)
    within = tl.arange(0, BLOCK)
    rows = (numbers[:, None] * BLOCK + within[None, :])[:, :, None]
    diagonal_ptr = matrix_ptr + rows * stride + (numbers[:, None] * BLOCK)[:, :, None] + within[None, None, :]
    solved = -tl.load(diagonal_ptr, mask=rows < count, other=0.0)
    for i in range(1, BLOCK):
        is_row = (within == i)[None, :, None]
        row = tl.sum(tl.where(is_row, solved, 0.0), 1)  # [blocks, columns]
        row += tl.sum(row[:, :, None] * solved, 1)
        solved = tl.where(is_row, row[:, None, :], solved)
    solved += (within[:, None] == within[None, :]).to(tl.float32)[None, :, :]
    tl.store(diagonal_ptr, solved, mask=rows < count)
    tl.debug_barrier()
    d0 = _load_block(matrix_ptr, stride, count, 0, 0, BLOCK)
    d1 = _load_block(matrix_ptr, stride, count, 1, 1, BLOCK)
    d2 = _load_block(matrix_ptr, stride, count, 2, 2, BLOCK)
    d3 = _load_block(matrix_ptr, stride, count, 3, 3, BLOCK)
    b10 = _load_block(matrix_ptr, stride, count, 1, 0, BLOCK)
    b20 = _load_block(matrix_ptr, stride, count, 2, 0, BLOCK)
    b21 = _load_block(matrix_ptr, stride, count, 2, 1, BLOCK)
    b30 = _load_block(matrix_ptr, stride, count, 3, 0, BLOCK)
    b31 = _load_block(matrix_ptr, stride, count, 3, 1, BLOCK)
    b32 = _load_block(matrix_ptr, stride, count, 3, 2, BLOCK)
    tl.debug_barrier()  # every thread has read what others write
    r10 = -_dot(d1, _dot(b10, d0))
    r21 = -_dot(d2, _dot(b21, d1))
    r32 = -_dot(d3, _dot(b32, d2))
    r20 = -_dot(d2, _dot(b20, d0) + _dot(b21, r10))
    r31 = -_dot(d3, _dot(b31, d1) + _dot(b32, r21))
    r30 = -_dot(d3, _dot(b30, d0) + _dot(b31, r10) + _dot(b32, r20))
    _store_block(matrix_ptr, stride, count, 1, 0, r10, BLOCK)
    _store_block(matrix_ptr, stride, count, 2, 0, r20, BLOCK)
    _store_block(matrix_ptr, stride, count, 2, 1, r21, BLOCK)
    _store_block(matrix_ptr, stride, count, 3, 0, r30, BLOCK)
    _store_block(matrix_ptr, stride, count, 3, 1, r31, BLOCK)
    _store_block(matrix_ptr, stride, count, 3, 2, r32, BLOCK)
    tl.debug_barrier()


@direct
@triton.jit(
    do_not_specialize=[
        *(
            "rates_ptr",
            "decay_ptr",
            "bias_ptr",
            "starts_ptr",
            "num_runs",
            "rates_stride",
            "heads",
            "divisor",
            "key_heads",
        ),
        "factors_stride",
    ]
)
def delta_chunks_kernel(
    qkv_ptr,
    rates_ptr,
    decay_ptr,
    bias_ptr,
    starts_ptr,
    scores_ptr,
    factors_ptr,
    inverses_ptr,
    values_ptr,
    keys_ptr,
    qkv_stride,
    rates_stride,
    factors_stride,
    num_runs,
    heads,
    divisor,
    key_heads,
    scale,
    eps,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
):
    """One chunk and head of the delta rule: scores, factors, and what it adds to the state."""
    head = tl.program_id(1)
    _, start, count, first = prompt_tile(starts_ptr, num_runs, tl.program_id(0), CHUNK, STARTS_BLOCK)
    if first >= count:
        return
    rows = tl.arange(0, CHUNK)
    valid = first + rows < count
    token = (start + first + rows).to(tl.int64)
    beta = tl.sigmoid(tl.load(rates_ptr + token * rates_stride + head, mask=valid, other=0.0).to(tl.float32))
    alpha = tl.load(rates_ptr + token * rates_stride + heads + head, mask=valid, other=0.0).to(tl.float32)
    decays = tl.load(decay_ptr + head) * softplus(alpha + tl.load(bias_ptr + head))
    decays = tl.where(valid, decays, 0.0)
    total = tl.cumsum(decays, 0)
    whole = tl.sum(decays, 0)

    key_size = key_heads * K
    token_ptr = qkv_ptr + token[:, None] * qkv_stride
    query_ptr = token_ptr + head // divisor % key_heads * K
    lower = tl.zeros((CHUNK, CHUNK), tl.float32)
    scores = tl.zeros((CHUNK, CHUNK), tl.float32)
    of_query = tl.zeros((CHUNK,), tl.float32)
    of_key = tl.zeros((CHUNK,), tl.float32)
    for begin in range(0, K, BLOCK_K):
        columns = begin + tl.arange(0, BLOCK_K)
        mask = valid[:, None] & (columns < K)[None, :]
        query = tl.load(query_ptr + columns[None, :], mask=mask, other=0.0)
        key = tl.load(query_ptr + key_size + columns[None, :], mask=mask, other=0.0)
        lower += dot(key, tl.trans(key), HALF, PRECISION)
        scores += dot(query, tl.trans(key), HALF, PRECISION)
        query = query.to(tl.float32)
        of_query += tl.sum(query * query, 1)
        key = key.to(tl.float32)
        of_key += tl.sum(key * key, 1)
    of_query = tl.rsqrt(of_query + eps) * scale
    of_key = tl.rsqrt(of_key + eps)
    faded = tl.exp(total)
    visible = rows[:, None] >= rows[None, :]
    between = tl.exp(tl.where(visible, total[:, None] - total[None, :], float("-inf"))) * of_key[None, :]
    scores *= between * of_query[:, None]
    scores_at = (token * heads + head)[:, None] * CHUNK + rows[None, :]
    tl.store(scores_ptr + scores_at, rounded(scores, scores_ptr.dtype.element_ty), mask=valid[:, None])
    store_factors(
        factors_ptr,
        factors_stride,
        head,
        heads,
        token,
        valid,
        of_query * faded,
        of_key * tl.exp(whole - total),
        tl.exp(whole),
    )

    lower = tl.where(rows[:, None] > rows[None, :], lower * between * (beta * of_key)[:, None], 0.0)
    matrix_ptr = inverses_ptr + ((start + first).to(tl.int64) * heads + head) * CHUNK
    inverse_ptr = matrix_ptr + rows[:, None] * (heads * CHUNK) + rows[None, :]
    tl.store(inverse_ptr, lower, mask=valid[:, None])
    tl.debug_barrier()
    _invert(matrix_ptr, heads * CHUNK, count - first, BLOCK)
    inverse = tl.load(inverse_ptr, mask=valid[:, None], other=0.0)
    of_keys = inverse * (beta * of_key * faded)[None, :]
    for begin in range(0, K, BLOCK_K):
        columns = begin + tl.arange(0, BLOCK_K)
        mask = valid[:, None] & (columns < K)[None, :]
        key = tl.load(query_ptr + key_size + columns[None, :], mask=mask, other=0.0)
        made = dot(of_keys, key, HALF, PRECISION)
        keys_at = (token * heads + head)[:, None] * K + columns[None, :]
        tl.store(keys_ptr + keys_at, rounded(made, keys_ptr.dtype.element_ty), mask=mask)
    of_values = inverse * beta[None, :]
    for begin in range(0, V, BLOCK_V):
        at = begin + tl.arange(0, BLOCK_V)
        inside = valid[:, None] & (at < V)[None, :]
        value = tl.load(token_ptr + 2 * key_size + head * V + at[None, :], mask=inside, other=0.0)
        part = dot(of_values, value, HALF, PRECISION)
        values_at = (token * heads + head)[:, None] * V + at[None, :]
        tl.store(values_ptr + values_at, rounded(part, values_ptr.dtype.element_ty), mask=inside)


def delta_chunks(
    qkv: Tensor,
    rates: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    runs: Tensor,
    *,
    key_heads: int,
    tiled: bool = False,
    out: Tensor,
) -> Tensor:
    """The gated delta rule for ragged prompts.

    qkv             [tokens, (2 * key_heads * key_dim + heads * value_dim)], rows contiguous: after the convolution
    rates           [tokens, 2 * heads], rows contiguous: beta and alpha
    decay, dt_bias  float32 [heads]
    states          float32 [slots, heads, key_dim, value_dim]
    runs            those of the sequences (`state_math`)
    tiled           whether head i has key head i % key_heads, in place of consecutive heads for each
    out             [tokens, heads, value_dim] contiguous; rows of no sequence are not written
    """
    heads, key_dim, value_dim = delta_sizes(qkv, rates, states, key_heads)
    num_seqs, tokens = check_runs(runs), len(qkv)
    if not num_seqs or not tokens:
        return out
    if qkv.dtype == torch.float32 and not INTERPRET:
        return delta_tokens(qkv, rates, decay, dt_bias, states, runs, key_heads=key_heads, tiled=tiled, out=out)
    made = scratch_type(qkv.dtype)
    scores = qkv.new_empty((tokens, heads, CHUNK), dtype=made)
    values = qkv.new_empty((tokens, heads, value_dim), dtype=made)
    keys = qkv.new_empty((tokens, heads, key_dim), dtype=made)
    numbers = qkv.new_empty((3, heads, tokens), dtype=torch.float32)
    delta_chunks_kernel[(tokens // CHUNK + num_seqs * RUNS, heads)](
        qkv,
        rates,
        decay,
        dt_bias,
        runs,
        scores,
        numbers,
        qkv.new_empty((tokens, heads, CHUNK), dtype=torch.float32),
        values,
        keys,
        qkv.stride(0),
        rates.stride(0),
        tokens,
        num_seqs * RUNS,
        heads,
        1 if tiled else heads // key_heads,
        key_heads,
        key_dim**-0.5,
        EPS,
        **_tiles(key_dim, value_dim),
        **precision(qkv.dtype),
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    first = qkv[:, key_heads * key_dim :]
    of_keys = 1 if tiled else heads // key_heads, key_heads
    pass_states(qkv, first, values, keys, scores, numbers, None, states, runs, of_keys, value_dim * heads, out)
    return out


def delta_chunks_reference(
    qkv: Tensor,
    rates: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    runs: Tensor,
    *,
    key_heads: int,
    tiled: bool = False,
    out: Tensor,
) -> Tensor:
    """The specification of `delta_chunks`."""
    return delta_reference(qkv, rates, decay, dt_bias, states, each_run(runs), key_heads, tiled, out)


def _tiles(key_dim: int, value_dim: int) -> dict[str, Any]:
    blocks = {"BLOCK_K": min(MOST_COLUMNS, max(16, next_power_of_2(key_dim))), "BLOCK_V": MOST_COLUMNS}
    sizes = {"K": key_dim, "V": value_dim, **blocks}
    return sizes | {"CHUNK": CHUNK, "BLOCK": BLOCK, "STARTS_BLOCK": STARTS_BLOCK}


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Strides are multiples of 16, as published sizes have it."""
    for dtype, of in DTYPES.items():
        made = "bf16" if of == torch.bfloat16 else "fp32"
        pointers = {"qkv_ptr": f"*{dtype}", "values_ptr": f"*{made}", "keys_ptr": f"*{made}"}
        pointers["inverses_ptr"] = "*fp32"
        divisible = (*pointers, "scores_ptr", "factors_ptr", "qkv_stride")
        signature = chunk_signature(dtype) | pointers | {"rates_ptr": f"*{dtype}", "starts_ptr": "*i32"}
        for key_dim, value_dim in DELTA_SIZES:
            yield Specialisation(
                f"delta_chunks[{dtype} {key_dim}x{value_dim}]",
                delta_chunks_kernel,
                signature
                | dict.fromkeys(("qkv_stride", "rates_stride", "divisor", "key_heads"), "i32")
                | {"scale": "fp32", "eps": "fp32"},
                _tiles(key_dim, value_dim) | precision(of, interpret=False),
                NUM_WARPS,
                1,
                divisible,
                dtype == "bf16",
            )
