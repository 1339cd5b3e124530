"""The kernel by halves of `rope_cache`, for heads that are rotated as a whole in the NeoX layout, in a cache of the
model's dtype, as most models have them.

A program loads each pair once, as two contiguous halves, and stores a head through one pointer, whether it is a query,
a key or a value. Compiled for sm_90 by Triton 3.6 (bfloat16, 128 dimensions, QK norm) it takes 32 registers and no
shared memory, the general kernel 48 and 5 KiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import triton
import triton.language as tl

from ember_kernels.early import wait_for_inputs
from ember_kernels.launch import direct
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation

BLOCK_DIMS = (64, 128, 256)
MAX_HEAD_DIM = 512
# Gemma 4: head sizes with normalised values, and whether the values are the keys; of the largest heads few pairs turn.
NORMED_VALUES = ((256, False), (512, False), (512, True))
PROPORTIONAL_PAIRS = 64
TILE, WARPS = 1024, 4  # values per program, and its warps: 16 bytes per thread on all architectures
HALVES_NOT_SPECIALISED = ["num_heads", "num_kv_heads", "eps", "slot_ptr", "position_ptr"]


@triton.jit
def normalise(x, inverse, weight, dtype: tl.constexpr, IS_WIDE: tl.constexpr):
    """x [heads, dims] * inverse [heads] * weight [heads, dims], rounded to the model dtype, as float32."""
    y = x * inverse[:, None]
    if IS_WIDE:
        y *= weight
    else:
        y = rounded(y, dtype).to(tl.float32) * weight
    return rounded(y, dtype).to(tl.float32)


@direct
@triton.jit(do_not_specialize=HALVES_NOT_SPECIALISED)
def rope_halves_kernel(
    qkv_ptr,
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slot_ptr,
    position_ptr,
    table_ptr,
    query_weight_ptr,  # None: no norm
    key_weight_ptr,
    qkv_stride,
    key_stride,
    value_stride,
    num_heads,
    num_kv_heads,
    eps,
    IS_WIDE: tl.constexpr,  # the weights are float32, and the heads are not
    BLOCK_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,  # of the table; the others are not rotated
    NORM_VALUES: tl.constexpr = False,
    VALUES_ARE_KEYS: tl.constexpr = False,
    EARLY: tl.constexpr = False,
):
    """A few heads of one token; a head has 2 * HALF dimensions, of which i and i + HALF are a pair."""
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if slot < 0:
        return
    HEAD_DIM: tl.constexpr = 2 * HALF
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, HALF)
    is_query = heads < num_heads
    is_turned = heads < num_heads + num_kv_heads  # queries and keys
    exists = (heads < num_heads + 2 * num_kv_heads)[:, None]
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    stored_heads = heads
    if VALUES_ARE_KEYS:
        stored_heads = tl.where(is_turned, heads, heads - num_kv_heads)
    pointers = qkv_ptr + token * qkv_stride + stored_heads[:, None] * HEAD_DIM + dims[None, :]
    first = tl.load(pointers, mask=exists, other=0.0)
    second = tl.load(pointers + HALF, mask=exists, other=0.0)
    x, z = first.to(tl.float32), second.to(tl.float32)
    y, w = x, z
    if query_weight_ptr is not None:
        inverse = tl.rsqrt((tl.sum(x * x, axis=1) + tl.sum(z * z, axis=1)) / HEAD_DIM + eps)
        query_weight = tl.load(query_weight_ptr + dims).to(tl.float32)
        key_weight = tl.load(key_weight_ptr + dims).to(tl.float32)
        weight = tl.where(is_query[:, None], query_weight[None, :], key_weight[None, :])
        y = normalise(x, inverse, weight, dtype, IS_WIDE)
        query_weight = tl.load(query_weight_ptr + HALF + dims).to(tl.float32)
        key_weight = tl.load(key_weight_ptr + HALF + dims).to(tl.float32)
        weight = tl.where(is_query[:, None], query_weight[None, :], key_weight[None, :])
        w = normalise(z, inverse, weight, dtype, IS_WIDE)
        if NORM_VALUES:
            first, second = rounded(x * inverse[:, None], dtype), rounded(z * inverse[:, None], dtype)
    angle_ptr = table_ptr + tl.load(position_ptr + token).to(tl.int64) * (2 * PAIRS) + dims
    if PAIRS == HALF:
        cosine, sine = tl.load(angle_ptr)[None, :], tl.load(angle_ptr + HALF)[None, :]
    else:
        cosine = tl.load(angle_ptr, mask=dims < PAIRS, other=1.0)[None, :]
        sine = tl.load(angle_ptr + PAIRS, mask=dims < PAIRS, other=0.0)[None, :]
    turned_first = rounded(y * cosine - w * sine, dtype)
    turned_second = rounded(w * cosine + y * sine, dtype)
    query_heads = query_ptr + (token * num_heads + heads) * HEAD_DIM
    key_heads = key_cache_ptr + slot * key_stride + (heads - num_heads) * HEAD_DIM
    value_heads = value_cache_ptr + slot * value_stride + (heads - num_heads - num_kv_heads) * HEAD_DIM
    targets = tl.where(is_query, query_heads, tl.where(is_turned, key_heads, value_heads))
    # Every head begins at a multiple of 16 bytes, which the choice of a pointer hides from the compiler.
    targets = tl.multiple_of(targets[:, None] + dims[None, :], (1, 8))
    tl.store(targets, tl.where(is_turned[:, None], turned_first, first), mask=exists)
    tl.store(targets + HALF, tl.where(is_turned[:, None], turned_second, second), mask=exists)


def _pairs(block_dim: int) -> int:
    """Pairs of values that are rotated by halves in most heads of a size."""
    return PROPORTIONAL_PAIRS if block_dim == MAX_HEAD_DIM else block_dim // 2


def specialisations(capability: int) -> Iterator[Specialisation]:
    norms = ((False, False), (True, False), (True, True))  # QK norm, its weights in float32
    variants = [(*norm, block_dim, False, False, _pairs(block_dim)) for norm in norms for block_dim in BLOCK_DIMS]
    variants += [(True, False, block_dim, True, are_keys, _pairs(block_dim)) for block_dim, are_keys in NORMED_VALUES]
    variants += [(True, False, block_dim, False, False, block_dim // 4) for block_dim in (64, 128)]  # LFM3: half a head
    for dtype, (norm, is_wide, block_dim, norm_values, values_are_keys, pairs), position in product(
        ("bf16", "fp16", "fp32"), variants, ("i32", "i64")
    ):
        signature = dict.fromkeys(("qkv_ptr", "query_ptr", "key_cache_ptr", "value_cache_ptr"), f"*{dtype}")
        signature |= {"slot_ptr": "*i64", "position_ptr": f"*{position}", "table_ptr": "*fp32", "eps": "fp32"}
        integers = ("qkv_stride", "key_stride", "value_stride", "num_heads", "num_kv_heads")
        signature |= dict.fromkeys(integers, "i32")
        constants: dict[str, Any] = {
            "IS_WIDE": is_wide,
            "BLOCK_HEADS": TILE // block_dim,
            "HALF": block_dim // 2,
            "PAIRS": pairs,
            "NORM_VALUES": norm_values,
            "VALUES_ARE_KEYS": values_are_keys,
        }
        weights = ("query_weight_ptr", "key_weight_ptr")
        if norm:
            signature |= dict.fromkeys(weights, "*fp32" if is_wide else f"*{dtype}")
        else:
            constants |= dict.fromkeys(weights)
        yield Specialisation(
            f"rope_cache_halves[{dtype} {block_dim} positions {position}{' qk-norm' if norm else ''}"
            f"{' wide' if is_wide else ''}{'' if pairs == _pairs(block_dim) else f' {pairs} pairs'}"
            f"{values_in_name(norm_values, values_are_keys)}]",
            rope_halves_kernel,
            signature,
            constants,
            WARPS,
            1,
            tuple(name for name in signature if name not in HALVES_NOT_SPECIALISED),
            typical=dtype == "bf16" and position == "i64" and not is_wide,
        )


def values_in_name(norm_values: bool, values_are_keys: bool) -> str:
    """The part of a specialisation's name about values."""
    return f"{' values' if norm_values else ''}{' of keys' if values_are_keys else ''}"
