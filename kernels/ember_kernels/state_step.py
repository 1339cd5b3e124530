# mypy: disable-error-code="no-untyped-def"
"""One token of each sequence through a recurrent state: the gated delta rule (arXiv 2412.06464) and Mamba 2 (arXiv
2405.21060).

A program takes some columns of the state of one head of one sequence, which it reads and writes once. It also makes
what is a number per head: the decay, beta and the lengths of query and key. `state_math` has the specification. Rows
whose slot to write is negative are padding: nothing of theirs is read or written.

Bytes: 8 * rows * heads * key_dim * value_dim, that of the states read and written.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation
from ember_kernels.state_math import (
    DELTA_SIZES,
    EPS,
    SSD_SIZES,
    delta_reference,
    delta_sizes,
    load_state,
    runs_of_steps,
    softplus,
    ssd_reference,
    ssd_sizes,
    state_place,
)

BLOCK_V = 32  # columns: 128 bytes of each row
WARPS = 4


@triton.jit
def delta_token(
    state,
    token_ptr,
    rates_ptr,
    decay,
    bias,
    head,
    heads,
    divisor,
    key_heads,
    columns,
    scale,
    eps,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The output of one token, and the state after it."""
    rows = tl.arange(0, BLOCK_K)
    within = rows < K
    key_size = key_heads * K
    query_ptr = token_ptr + head // divisor % key_heads * K + rows
    query = tl.load(query_ptr, mask=within, other=0.0).to(tl.float32)
    key = tl.load(query_ptr + key_size, mask=within, other=0.0).to(tl.float32)
    value = tl.load(token_ptr + 2 * key_size + head * V + columns, mask=columns < V, other=0.0).to(tl.float32)
    beta = tl.sigmoid(tl.load(rates_ptr + head).to(tl.float32))
    faded = tl.exp(decay * softplus(tl.load(rates_ptr + heads + head).to(tl.float32) + bias))
    query *= tl.rsqrt(tl.sum(query * query, 0) + eps) * scale
    key *= tl.rsqrt(tl.sum(key * key, 0) + eps)
    state = state * faded
    new = (value - tl.sum(state * key[:, None], 0)) * beta
    state += key[:, None] * new[None, :]
    return tl.sum(state * query[:, None], 0), state


@triton.jit
def ssd_token(
    state,
    token_ptr,
    dt_ptr,
    decay,
    bias,
    skip,
    head,
    heads,
    shared,
    columns,
    least_dt,
    most_dt,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The output of one token, and the state after it."""
    rows = tl.arange(0, BLOCK_K)
    within = rows < K
    x = tl.load(token_ptr + head * V + columns, mask=columns < V, other=0.0).to(tl.float32)
    b_ptr = token_ptr + heads * V + head // shared * K
    b = tl.load(b_ptr + rows, mask=within, other=0.0).to(tl.float32)
    c = tl.load(b_ptr + heads // shared * K + rows, mask=within, other=0.0).to(tl.float32)
    dt = softplus(tl.load(dt_ptr + head).to(tl.float32) + bias)
    dt = tl.minimum(tl.maximum(dt, least_dt), most_dt)
    state = state * tl.exp(dt * decay) + b[:, None] * (x * dt)[None, :]
    return tl.sum(state * c[:, None], 0) + x * skip, state


@direct
@triton.jit(
    do_not_specialize=[
        *("rates_ptr", "decay_ptr", "bias_ptr", "reads_ptr", "writes_ptr", "out_ptr", "rates_stride", "heads"),
        "divisor",
        "key_heads",
    ]
)
def delta_step_kernel(
    qkv_ptr,
    rates_ptr,
    decay_ptr,
    bias_ptr,
    states_ptr,
    reads_ptr,
    writes_ptr,
    out_ptr,
    qkv_stride,
    rates_stride,
    heads,
    divisor,
    key_heads,
    scale,
    eps,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    write = tl.load(writes_ptr + row).to(tl.int64)
    if write < 0:
        return
    read = tl.load(reads_ptr + row).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < V
    place, mask, size = state_place(head, heads, columns, K, V, BLOCK_K)
    state = load_state(states_ptr, read, size, place, columns, K, V, BLOCK_K)

    made, state = delta_token(
        state,
        qkv_ptr + row * qkv_stride,
        rates_ptr + row * rates_stride,
        tl.load(decay_ptr + head),
        tl.load(bias_ptr + head),
        head,
        heads,
        divisor,
        key_heads,
        columns,
        scale,
        eps,
        K,
        V,
        BLOCK_K,
    )
    tl.store(states_ptr + write * size + place, state, mask=mask)
    made = rounded(made, out_ptr.dtype.element_ty)
    tl.store(out_ptr + (row * heads + head) * V + columns, made, mask=inside)


@direct
@triton.jit(
    do_not_specialize=[
        *("dt_ptr", "decay_ptr", "bias_ptr", "skip_ptr", "reads_ptr", "writes_ptr", "out_ptr", "dt_stride", "heads"),
        "shared",
    ]
)
def ssd_step_kernel(
    x_ptr,
    dt_ptr,
    decay_ptr,
    bias_ptr,
    skip_ptr,
    states_ptr,
    reads_ptr,
    writes_ptr,
    out_ptr,
    x_stride,
    dt_stride,
    heads,
    shared,
    least_dt,
    most_dt,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    write = tl.load(writes_ptr + row).to(tl.int64)
    if write < 0:
        return
    read = tl.load(reads_ptr + row).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < V
    place, mask, size = state_place(head, heads, columns, K, V, BLOCK_K)
    state = load_state(states_ptr, read, size, place, columns, K, V, BLOCK_K)

    made, state = ssd_token(
        state,
        x_ptr + row * x_stride,
        dt_ptr + row * dt_stride,
        tl.load(decay_ptr + head),
        tl.load(bias_ptr + head),
        tl.load(skip_ptr + head),
        head,
        heads,
        shared,
        columns,
        least_dt,
        most_dt,
        K,
        V,
        BLOCK_K,
    )
    tl.store(states_ptr + write * size + place, state, mask=mask)
    tl.store(out_ptr + (row * heads + head) * V + columns, rounded(made, out_ptr.dtype.element_ty), mask=inside)


def delta_step(
    qkv: Tensor,
    rates: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    key_heads: int,
    tiled: bool = False,
    out: Tensor,
) -> Tensor:
    """The gated delta rule for one token of each sequence.

    qkv             [seqs, (2 * key_heads * key_dim + heads * value_dim)], rows contiguous: after the convolution
    rates           [seqs, 2 * heads], rows contiguous: beta and alpha
    decay, dt_bias  float32 [heads]
    states          float32 [slots, heads, key_dim, value_dim]
    reads, writes   int32 [seqs]: slots; -1: there is no state yet, and padding
    tiled           whether head i has key head i % key_heads, in place of consecutive heads for each
    out             [seqs, heads, value_dim] contiguous
    """
    heads, key_dim, value_dim = delta_sizes(qkv, rates, states, key_heads)
    seqs = len(writes)
    if seqs:
        delta_step_kernel[(cdiv(value_dim, BLOCK_V), heads, seqs)](
            qkv,
            rates,
            decay,
            dt_bias,
            states,
            reads,
            writes,
            out,
            qkv.stride(0),
            rates.stride(0),
            heads,
            1 if tiled else heads // key_heads,
            key_heads,
            key_dim**-0.5,
            EPS,
            **tile(key_dim, value_dim),
            num_warps=WARPS,
            num_stages=1,
        )
    return out


def delta_step_reference(
    qkv: Tensor,
    rates: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    key_heads: int,
    tiled: bool = False,
    out: Tensor,
) -> Tensor:
    """The specification of `delta_step`."""
    return delta_reference(qkv, rates, decay, dt_bias, states, runs_of_steps(reads, writes), key_heads, tiled, out)


def ssd_step(
    x: Tensor,
    dt: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    states: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    groups: int,
    limits: tuple[float, float],
    out: Tensor,
) -> Tensor:
    """Mamba 2's recurrence for one token of each sequence.

    x                     [seqs, heads * head_dim + 2 * groups * state_dim], rows contiguous: after the convolution
    dt                    [seqs, heads], rows contiguous; it is clamped to `limits` after the softplus
    decay, dt_bias, skip  float32 [heads]
    states                float32 [slots, heads, state_dim, head_dim]
    reads, writes, out    as those of `delta_step`
    """
    heads, state_dim, head_dim = ssd_sizes(x, dt, states, groups)
    seqs = len(writes)
    if seqs:
        ssd_step_kernel[(cdiv(head_dim, BLOCK_V), heads, seqs)](
            x,
            dt,
            decay,
            dt_bias,
            skip,
            states,
            reads,
            writes,
            out,
            x.stride(0),
            dt.stride(0),
            heads,
            heads // groups,
            *limits,
            **tile(state_dim, head_dim),
            num_warps=WARPS,
            num_stages=1,
        )
    return out


def ssd_step_reference(
    x: Tensor,
    dt: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    states: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    groups: int,
    limits: tuple[float, float],
    out: Tensor,
) -> Tensor:
    """The specification of `ssd_step`."""
    return ssd_reference(x, dt, decay, dt_bias, skip, limits, states, runs_of_steps(reads, writes), groups, out)


def recurrences() -> Iterator[tuple[str, str, tuple[int, int], dict[str, str], tuple[str, ...]]]:
    """What the kernels that go token by token are compiled for: the rule, the model's dtype, the sizes of a head's
    state, the types of the arguments but for slots, and the arguments that are multiples of 16. Strides of what a
    convolution has written are, as published sizes have it."""
    for dtype, is_delta in product(("bf16", "fp16", "fp32"), (True, False)):
        for rows, columns in DELTA_SIZES if is_delta else SSD_SIZES:
            given, rates = ("qkv", "rates") if is_delta else ("x", "dt")
            signature = {f"{given}_ptr": f"*{dtype}", f"{rates}_ptr": f"*{dtype}", f"{rates}_stride": "i32"}
            signature |= dict.fromkeys(("decay_ptr", "bias_ptr", "states_ptr"), "*fp32")
            signature["out_ptr"] = f"*{dtype}" if is_delta else "*fp32"
            signature |= dict.fromkeys((f"{given}_stride", "heads"), "i32")
            signature |= dict.fromkeys(("divisor", "key_heads") if is_delta else ("shared",), "i32")
            signature |= dict.fromkeys(("scale", "eps") if is_delta else ("least_dt", "most_dt"), "fp32")
            if not is_delta:
                signature["skip_ptr"] = "*fp32"
            divisible = (f"{given}_ptr", "states_ptr", f"{given}_stride")
            yield "delta" if is_delta else "ssd", dtype, (rows, columns), signature, divisible


def tile(rows: int, columns: int) -> dict[str, int]:
    """The constants of the kernels that go token by token."""
    return {"K": rows, "V": columns, "BLOCK_K": next_power_of_2(rows), "BLOCK_V": BLOCK_V}


def specialisations(capability: int) -> Iterator[Specialisation]:
    for rule, dtype, sizes, signature, divisible in recurrences():
        yield Specialisation(
            f"{rule}_step[{dtype} {sizes[0]}x{sizes[1]}]",
            delta_step_kernel if rule == "delta" else ssd_step_kernel,
            signature | {"reads_ptr": "*i32", "writes_ptr": "*i32"},
            tile(*sizes),
            WARPS,
            1,
            divisible,
            dtype == "bf16" and (rule == "delta" or sizes == SSD_SIZES[0]),
        )
