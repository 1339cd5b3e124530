# mypy: disable-error-code="no-untyped-def"
"""How decode attention splits contexts among programs, and the kernel that adds their partial sums (flash-decoding).

The host chooses the number of splits of a launch; on the device each sequence divides its own visible context by it, in
whole tiles. A short context thus has fewer splits with work than the launch has, and only those are read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.attention_tables import ELEMENT_SIZES, config, variants
from ember_kernels.compile import Specialisation
from ember_kernels.launch import cdiv, direct, next_power_of_2

MAX_SPLITS = 128
SPLIT_TOKENS = 64  # the fewest tokens of the longest context that a split is made for
SPLITS_A_LOAD = 8

# Programs aimed at per multiprocessor when the context is split: several, since sequences differ in length.
# To be set by measurement (benchmarks/kernels/decode_attention.py).
PROGRAMS_A_MULTIPROCESSOR = 4
MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}  # where no device says its own


def split_count(seqs: int, kv_heads: int, max_context: int, processors: int) -> int:
    """Splits per context: as many as occupy a device with `processors` multiprocessors, bounded by `max_context`."""
    wanted = PROGRAMS_A_MULTIPROCESSOR * processors // max(1, seqs * kv_heads)
    return max(1, min(wanted, MAX_SPLITS, cdiv(max_context, SPLIT_TOKENS)))


def workspace_size(seqs: int, heads: int, head_dim: int, splits: int) -> int:
    """Number of floats in the workspace of a call: sums [seqs, heads, splits, head_dim], then maxima and sums of
    weights [2, seqs, heads, splits]."""
    return seqs * heads * splits * (head_dim + 2) if splits > 1 else 0


@cache
def multiprocessors(device: torch.device, capability: int) -> int:
    if device.type != "cuda":
        return MULTIPROCESSORS.get(capability, 132)
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def split_tokens(first, seq_len, num_splits, BLOCK_N: tl.constexpr):
    """The first token that splits divide (a multiple of BLOCK_N) and the tokens of each; the last has fewer."""
    start = first // BLOCK_N * BLOCK_N
    tokens = tl.cdiv(tl.cdiv(seq_len - start, num_splits), BLOCK_N) * BLOCK_N
    return start, tl.maximum(tokens, BLOCK_N)


@direct
@triton.jit(do_not_specialize=["maxima_ptr", "weights_ptr", "seq_lens_ptr", "sinks_ptr", "window", "num_splits"])
def add_splits_kernel(
    sums_ptr,
    maxima_ptr,
    weights_ptr,
    seq_lens_ptr,
    sinks_ptr,
    out_ptr,
    window,
    num_splits,
    v_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SPLITS_A_LOAD: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """One head of one sequence: the weighted sum of its splits, of which only those with work are read."""
    seq = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    seq_len = tl.load(seq_lens_ptr + seq)
    start, tokens = split_tokens(tl.maximum(seq_len - window, 0), seq_len, num_splits, BLOCK_N)
    used = tl.cdiv(seq_len - start, tokens)
    row = seq * tl.num_programs(1) + head
    splits = tl.arange(0, MAX_SPLITS)
    maxima = tl.load(maxima_ptr + row * num_splits + splits, mask=splits < used, other=float("-inf"))
    weights = tl.load(weights_ptr + row * num_splits + splits, mask=splits < used, other=0.0)
    highest = tl.max(maxima, 0)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        highest = tl.maximum(highest, sink)
    highest = tl.where(used > 0, highest, 0.0)
    weight = tl.sum(weights * tl.exp2(maxima - highest), 0)
    if HAS_SINKS:
        weight += tl.exp2(sink - highest)
    dims = tl.arange(0, BLOCK_D)
    dim_mask = dims < HEAD_DIM
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, used, SPLITS_A_LOAD):
        some = first + tl.arange(0, SPLITS_A_LOAD)
        at = row * num_splits + some
        decay = tl.exp2(tl.load(maxima_ptr + at, mask=some < used, other=float("-inf")) - highest)
        mask = (some < used)[:, None] & dim_mask[None, :]
        partial = tl.load(sums_ptr + at[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        sums += tl.sum(partial * decay[:, None], 0)
    out = sums * (v_scale / tl.where(weight > 0.0, weight, 1.0))
    tl.store(out_ptr + row * HEAD_DIM + dims, out.to(out_ptr.dtype.element_ty), mask=dim_mask)


def add_splits(
    sums: torch.Tensor,
    maxima: torch.Tensor,
    weights: torch.Tensor,
    seq_lens: torch.Tensor,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    window: int,
    splits: int,
    v_scale: float,
    block_n: int,
) -> None:
    """out [seqs, heads, head_dim] = the attention of each row, from its splits and the sinks' weight.

    The workspace has for each row and split: sums [head_dim] of values times weights, their maximal score (in units of
    log 2) and the sum of the weights, all float32.
    """
    seqs, heads, head_dim = out.shape
    add_splits_kernel[(seqs, heads)](
        sums,
        maxima,
        weights,
        seq_lens,
        sinks,
        out,
        window,
        splits,
        v_scale,
        HEAD_DIM=head_dim,
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_N=block_n,
        MAX_SPLITS=MAX_SPLITS,
        SPLITS_A_LOAD=SPLITS_A_LOAD,
        HAS_SINKS=sinks is not None,
        num_warps=4,
        num_stages=1,
    )


def specialisations(capability: int) -> Iterator[Specialisation]:
    """The kernel for every specialisation of decode attention with splits."""
    seen = set()
    for head_dim, dtype, cache_dtype, _, features in variants():
        block_n = config(head_dim, ELEMENT_SIZES[cache_dtype], capability).block_n
        sinks = features == "sinks"
        key = (head_dim, dtype, block_n, sinks)
        if key in seen:
            continue
        seen.add(key)
        signature = {"sums_ptr": "*fp32", "out_ptr": f"*{dtype}"}
        divisible = tuple(signature)
        signature |= {"maxima_ptr": "*fp32", "weights_ptr": "*fp32", "seq_lens_ptr": "*i32"}
        signature |= {"window": "i32", "num_splits": "i32", "v_scale": "fp32"}
        constants: dict[str, Any] = {
            "HEAD_DIM": head_dim,
            "BLOCK_D": next_power_of_2(head_dim),
            "BLOCK_N": block_n,
            "MAX_SPLITS": MAX_SPLITS,
            "SPLITS_A_LOAD": SPLITS_A_LOAD,
            "HAS_SINKS": sinks,
        }
        if sinks:
            signature["sinks_ptr"] = f"*{dtype}"
        else:
            constants["sinks_ptr"] = None
        name = f"add_splits[{dtype}_d{head_dim}_n{block_n}{'_sinks' if sinks else ''}]"
        typical = dtype == "bf16" and head_dim in (64, 128)
        yield Specialisation(name, add_splits_kernel, signature, constants, 4, 1, divisible, typical)
