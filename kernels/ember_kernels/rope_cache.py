"""QK norm, rotary embedding and KV cache write in one launch, from the fused projection to attention's inputs.

One program handles a few heads of one token: queries, keys or values. It normalises queries and keys (RMSNorm per head,
as in Qwen3 and Gemma 3) and rotates them (arXiv 2104.09864). In Gemma 4 it normalises values too, without weights, and
a layer may take its keys for values, or have queries alone. It writes queries to a tensor of their own, and keys and
values to the token's slot of the paged cache. The norm rounds as in transformers: to the model dtype before and after
the weight; with a weight in float32 once at the end. The rotation is computed in float32 and rounded once. A float8
cache is quantised from the rounded value.

There are two kernels. The one by halves (`rope_halves`) is for heads that are rotated as a whole in the NeoX layout, in
a cache of the model's dtype, as most models have them. The general kernel serves the rest: partial rotation, GPT-J's
pairs, no rotation, float8 caches, and head sizes that are no power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.early import wait_for_inputs
from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.rope_halves import (
    BLOCK_DIMS,
    HALVES_NOT_SPECIALISED,
    MAX_HEAD_DIM,
    NORMED_VALUES,
    TILE,
    WARPS,
    normalise,
    rope_halves_kernel,
    values_in_name,
)
from ember_kernels.rounding import LARGEST, e4m3_bits, has_conversion, rounded
from ember_kernels.specialisation import Specialisation

NOT_SPECIALISED = [*HALVES_NOT_SPECIALISED, "rotary_dim", "table_dim", "scale_stride"]


@triton.jit
def _store_cache(cache_ptr, offsets, x, scale_ptr, scale_offsets, mask, HARDWARE: tl.constexpr):
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + scale_offsets, mask=mask, other=1.0)
        tl.store(cache_ptr + offsets, e4m3_bits(x * tl.div_rn(1.0, scale), HARDWARE), mask=mask)
    else:
        tl.store(cache_ptr + offsets, rounded(x, cache_ptr.dtype.element_ty), mask=mask)


@direct
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _rope_cache_kernel(
    qkv_ptr,
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slot_ptr,
    position_ptr,
    table_ptr,  # None: no rotation
    query_weight_ptr,  # None: no norm
    key_weight_ptr,
    key_scale_ptr,  # None: the caches are not float8
    value_scale_ptr,
    qkv_stride,
    key_stride,
    value_stride,
    num_heads,
    num_kv_heads,
    head_dim,
    rotary_dim,
    table_dim,
    eps,
    scale_stride,
    NEOX: tl.constexpr,
    IS_WIDE: tl.constexpr,  # the weights are float32, and the heads are not
    HARDWARE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    NORM_VALUES: tl.constexpr = False,
    VALUES_ARE_KEYS: tl.constexpr = False,
    EARLY: tl.constexpr = False,
):
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if slot < 0:
        return
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, BLOCK_DIM)
    is_query = (heads < num_heads)[:, None]
    is_turned = (heads < num_heads + num_kv_heads)[:, None]  # queries and keys
    exists = (heads < num_heads + 2 * num_kv_heads)[:, None]
    mask = exists & (dims < head_dim)[None, :]
    stored_heads = heads
    if VALUES_ARE_KEYS:
        stored_heads = tl.where(heads < num_heads + num_kv_heads, heads, heads - num_kv_heads)
    row_ptr = qkv_ptr + token * qkv_stride + stored_heads[:, None] * head_dim
    x = tl.load(row_ptr + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty

    y = x
    inverse = tl.zeros([BLOCK_HEADS], tl.float32)
    if query_weight_ptr is not None:
        inverse = tl.rsqrt(tl.sum(x * x, axis=1) / head_dim + eps)
        query_weight = tl.load(query_weight_ptr + dims, mask=dims < head_dim, other=0.0).to(tl.float32)
        key_weight = tl.load(key_weight_ptr + dims, mask=dims < head_dim, other=0.0).to(tl.float32)
        weight = tl.where(is_query, query_weight[None, :], key_weight[None, :])
        y = normalise(x, inverse, weight, dtype, IS_WIDE)
        if NORM_VALUES:
            x *= inverse[:, None]

    if table_ptr is not None:
        # The other member of each pair is loaded (and normalised) a second time, from the level-1 cache.
        half = rotary_dim // 2
        in_rotation = dims < rotary_dim
        if NEOX:
            is_first = dims < half
            partner = tl.where(is_first, dims + half, dims - half)
            frequency = tl.where(is_first, dims, dims - half)
        else:
            is_first = dims % 2 == 0
            partner = dims ^ 1
            frequency = dims // 2
        z = tl.load(row_ptr + partner[None, :], mask=is_turned & in_rotation[None, :], other=0.0).to(tl.float32)
        if query_weight_ptr is not None:
            query_weight = tl.load(query_weight_ptr + partner, mask=in_rotation, other=0.0).to(tl.float32)
            key_weight = tl.load(key_weight_ptr + partner, mask=in_rotation, other=0.0).to(tl.float32)
            weight = tl.where(is_query, query_weight[None, :], key_weight[None, :])
            z = normalise(z, inverse, weight, dtype, IS_WIDE)
        angle_ptr = table_ptr + tl.load(position_ptr + token).to(tl.int64) * table_dim + frequency
        in_table = in_rotation & (frequency < table_dim // 2)
        cosine = tl.load(angle_ptr, mask=in_table, other=1.0)
        sine = tl.load(angle_ptr + table_dim // 2, mask=in_table, other=0.0)
        y = y * cosine[None, :] + z * tl.where(is_first, -sine, sine)[None, :]

    result = rounded(tl.where(is_turned, y, x), dtype)
    query_offsets = (token * num_heads + heads[:, None]) * head_dim + dims[None, :]
    tl.store(query_ptr + query_offsets, result, mask=mask & is_query)

    stored = result.to(tl.float32)
    key_heads = heads[:, None] - num_heads
    value_heads = key_heads - num_kv_heads
    key_offsets = slot * key_stride + key_heads * head_dim + dims[None, :]
    value_offsets = slot * value_stride + value_heads * head_dim + dims[None, :]
    key_mask = mask & is_turned & (heads >= num_heads)[:, None]
    value_mask = mask & (heads >= num_heads + num_kv_heads)[:, None]
    _store_cache(key_cache_ptr, key_offsets, stored, key_scale_ptr, key_heads * scale_stride, key_mask, HARDWARE)
    _store_cache(
        value_cache_ptr, value_offsets, stored, value_scale_ptr, value_heads * scale_stride, value_mask, HARDWARE
    )


def rope_cache(
    qkv: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    table: Tensor | None,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    eps: float = 1e-6,
    neox: bool = True,
    rotary_dim: int | None = None,
    value_norm: bool = False,
    values_are_keys: bool = False,
    has_own_kv: bool = True,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return queries [T, heads, head_dim], normalised and rotated; write keys and values to their slots of the caches.

    qkv: [T, (heads + 2 * kv_heads) * head_dim], rows may be strided; float32, bfloat16 or float16. Without values if
        `values_are_keys`: they are the keys before norm and rotation. Queries alone if not `has_own_kv`: the caches are
        not written.
    key_cache, value_cache: [num_blocks, block_size, kv_heads, head_dim], slots of one stride, float32, bfloat16,
        float16 or float8_e4m3fn; float8 holds value / scale.
    slot_mapping: [T] int64 or int32; a token of negative slot is padding: nothing is read or written for it.
    positions: [T] int64 or int32. table: [max_positions, rotary_dim] float32, cosines then sines of rotary_dim / 2
        frequencies, of any scaling; None: no rotation. Dimensions past rotary_dim are left as they are.
    rotary_dim: if it is larger than the table's, only the first pairs of these dimensions are rotated.
    query_weight, key_weight: [head_dim], of qkv's dtype or float32, both or none.
    value_norm: values are normalised without weights; only with weights of queries and keys.
    neox: pairs (i, i + rotary_dim / 2), else GPT-J's (2i, 2i + 1).
    key_scale, value_scale: float32 [1] or [kv_heads], with float8 caches. out: the queries' tensor, made if None.
    """
    tokens = qkv.shape[0]
    _, _, kv_heads, head_dim = key_cache.shape
    if not has_own_kv:
        kv_heads = 0
    num_heads = qkv.shape[1] // head_dim - (1 if values_are_keys else 2) * kv_heads
    _check(qkv, key_cache, value_cache, num_heads, head_dim, key_scale, value_scale, out)
    if value_norm and query_weight is None:
        raise ValueError("values are normalised only where queries and keys are")
    if out is None:
        out = torch.empty(tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if not tokens:
        return out
    block_dim = max(BLOCK_DIMS[0], next_power_of_2(head_dim))
    block_heads = max(1, TILE // block_dim)
    grid = (tokens, cdiv(num_heads + 2 * kv_heads, block_heads))
    qkv_stride = qkv.stride(0) if tokens > 1 else qkv.shape[1]
    if table is not None and rotary_dim is None:
        rotary_dim = table.shape[1]
    is_whole = table is not None and rotary_dim == head_dim == block_dim
    options = {"NORM_VALUES": value_norm, "VALUES_ARE_KEYS": values_are_keys}
    if is_whole and neox and key_cache.dtype == value_cache.dtype == qkv.dtype and qkv_stride % 8 == 0:
        rope_halves_kernel[grid](
            qkv,
            out,
            key_cache,
            value_cache,
            slot_mapping,
            positions,
            table,
            query_weight,
            key_weight,
            qkv_stride,
            key_cache.stride(1),
            value_cache.stride(1),
            num_heads,
            kv_heads,
            eps,
            IS_WIDE=query_weight is not None and query_weight.dtype != qkv.dtype,
            BLOCK_HEADS=block_heads,
            HALF=head_dim // 2,
            PAIRS=table.shape[1] // 2 if table is not None else 0,
            **options,
            num_warps=WARPS,
            num_stages=1,
        )
        return out
    if key_cache.dtype == torch.float8_e4m3fn:
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
    _rope_cache_kernel[grid](
        qkv,
        out,
        key_cache,
        value_cache,
        slot_mapping,
        positions,
        table,
        query_weight,
        key_weight,
        key_scale,
        value_scale,
        qkv_stride,
        key_cache.stride(1),
        value_cache.stride(1),
        num_heads,
        kv_heads,
        head_dim,
        rotary_dim or 0,
        0 if table is None else table.shape[1],
        eps,
        0 if key_scale is None or key_scale.numel() == 1 else 1,
        NEOX=neox or table is None,
        IS_WIDE=query_weight is not None and query_weight.dtype != qkv.dtype,
        HARDWARE=key_scale is not None and has_conversion(),
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        **options,
        num_warps=WARPS,
        num_stages=1,
    )
    return out


def _check(
    qkv: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_heads: int,
    head_dim: int,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    out: Tensor | None,
) -> None:
    if num_heads < 1 or qkv.shape[1] % head_dim or qkv.stride(1) != 1:
        raise ValueError(f"qkv {tuple(qkv.shape)} does not fit caches {tuple(key_cache.shape)} of key and value heads")
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head size {head_dim} is more than {MAX_HEAD_DIM}")
    for cache in (key_cache, value_cache):
        if cache.stride()[2:] != (head_dim, 1) or cache.stride(0) != cache.shape[1] * cache.stride(1):
            raise ValueError(f"a cache's slots must be one stride apart: {tuple(cache.shape)}, {cache.stride()}")
    is_float8 = key_cache.dtype == torch.float8_e4m3fn
    if (key_scale is not None) != is_float8 or (value_scale is not None) != is_float8:
        raise ValueError(f"a float8 cache needs both scales, others none: the cache is {key_cache.dtype}")
    if out is not None and not out.is_contiguous():
        raise ValueError(f"out must be contiguous: {out.stride()}")


def rope_cache_reference(
    qkv: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    table: Tensor | None,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    eps: float = 1e-6,
    neox: bool = True,
    rotary_dim: int | None = None,
    value_norm: bool = False,
    values_are_keys: bool = False,
    has_own_kv: bool = True,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The specification of `rope_cache`, in torch."""
    _, _, kv_heads, head_dim = key_cache.shape
    heads = qkv.unflatten(1, (-1, head_dim))
    if not has_own_kv:
        kv_heads = 0
    if values_are_keys:
        heads = torch.cat([heads, heads[:, heads.shape[1] - kv_heads :]], dim=1)
    query, key, value = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    if value_norm:
        value = value.float() * torch.rsqrt(value.float().square().mean(dim=-1, keepdim=True) + eps)
        value = value.to(qkv.dtype)
    if table is not None and rotary_dim is not None:
        unturned = len(table), (rotary_dim - table.shape[1]) // 2
        cosine, sine = table.chunk(2, dim=-1)
        table = torch.cat([cosine, table.new_ones(unturned), sine, table.new_zeros(unturned)], dim=-1)
    turned = []
    for x, weight in ((query, query_weight), (key, key_weight)):
        y = x.float()
        if weight is not None:
            y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps)
            y = (y.to(qkv.dtype).float() if weight.dtype == qkv.dtype else y) * weight.float()
            y = y.to(qkv.dtype).float()
        if table is not None:
            cosine, sine = (half[:, None] for half in table[positions.long().clamp(min=0)].chunk(2, dim=-1))
            pairs = y[..., : table.shape[1]]
            first, second = pairs.chunk(2, dim=-1) if neox else (pairs[..., 0::2], pairs[..., 1::2])
            rotated = (first * cosine - second * sine, second * cosine + first * sine)
            pairs = torch.cat(rotated, dim=-1) if neox else torch.stack(rotated, dim=-1).flatten(-2)
            y = torch.cat([pairs, y[..., table.shape[1] :]], dim=-1)
        turned.append(y.to(qkv.dtype))
    query, key = turned
    is_real = slot_mapping >= 0
    slots = slot_mapping[is_real].long()
    for x, cache, scale in ((key, key_cache, key_scale), (value, value_cache, value_scale)):
        if not has_own_kv:
            break
        kept = x[is_real].float()
        if scale is not None:
            kept = (kept * (1.0 / scale)[:, None]).clamp(-LARGEST, LARGEST)
        cache[slots // cache.shape[1], slots % cache.shape[1]] = kept.to(cache.dtype)
    if out is None:
        return query
    out[is_real] = query[is_real]
    return out


def specialisations(capability: int) -> Iterator[Specialisation]:
    """NeoX with and without QK norm, GPT-J's pairs, no rotation (learned positions, layers without positions) with and
    without QK norm, float8 caches, and the values of Gemma 4. Slots are int64."""
    variants = [
        (dtype, norm, neox, False, float8, True)
        for dtype in ("bf16", "fp16", "fp32")
        for norm in (False, True)
        for neox in (True, False)
        for float8 in (False, True)
        if neox or not norm
    ]
    variants += [(dtype, True, True, True, float8, True) for dtype in ("bf16", "fp16") for float8 in (False, True)]
    variants += [
        (dtype, norm, True, False, float8, False)
        for dtype in ("bf16", "fp16", "fp32")
        for norm in (False, True)
        for float8 in (False, True)
    ]
    plain = [(*variant, block_dim, False, False) for variant in variants for block_dim in BLOCK_DIMS]
    plain += [
        (dtype, True, True, False, True, True, block_dim, True, values_are_keys)
        for dtype in ("bf16", "fp16", "fp32")
        for block_dim, values_are_keys in NORMED_VALUES
    ]
    for (dtype, norm, neox, is_wide, float8, turns, block_dim, norm_values, values_are_keys), position in product(
        plain, ("i32", "i64")
    ):
        signature = dict.fromkeys(("qkv_ptr", "query_ptr"), f"*{dtype}")
        signature |= dict.fromkeys(("key_cache_ptr", "value_cache_ptr"), "*u8" if float8 else f"*{dtype}")
        signature |= {"slot_ptr": "*i64", "position_ptr": f"*{position}", "eps": "fp32"}
        integers = ("qkv_stride", "key_stride", "value_stride", "num_heads", "num_kv_heads", "head_dim")
        signature |= dict.fromkeys((*integers, "rotary_dim", "table_dim", "scale_stride"), "i32")
        constants: dict[str, Any] = {"NEOX": neox, "IS_WIDE": is_wide}
        constants |= {"NORM_VALUES": norm_values, "VALUES_ARE_KEYS": values_are_keys}
        constants |= {"HARDWARE": float8 and has_conversion(capability)}
        constants |= {"BLOCK_HEADS": TILE // block_dim, "BLOCK_DIM": block_dim}
        optional = dict.fromkeys(
            ("query_weight_ptr", "key_weight_ptr"), ("*fp32" if is_wide else f"*{dtype}") if norm else None
        )
        optional |= dict.fromkeys(("key_scale_ptr", "value_scale_ptr"), "*fp32" if float8 else None)
        optional |= {"table_ptr": "*fp32" if turns else None}
        signature |= {name: kind for name, kind in optional.items() if kind is not None}
        constants |= {name: None for name, kind in optional.items() if kind is None}
        yield Specialisation(
            f"rope_cache[{dtype} {block_dim} positions {position}{' qk-norm' if norm else ''}"
            f"{' wide' if is_wide else ''}{'' if neox else ' gpt-j'}{' fp8' if float8 else ''}"
            f"{'' if turns else ' unturned'}{values_in_name(norm_values, values_are_keys)}]",
            _rope_cache_kernel,
            signature,
            constants,
            WARPS,
            1,
            tuple(name for name in signature if name not in NOT_SPECIALISED),
            typical=dtype == "bf16" and neox and not norm and not float8 and position == "i64" and block_dim == 64,
        )
