"""Attention over the paged cache in torch operators, by the plan of a step (`torch_plan`).

It works on every device, and is tuned for CPUs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.cache import CacheScales, from_float8
from ember.engine.operators.torch_plan import AttentionPlan, Rows, Segment

_FEW_QUERIES = 16  # up to this number, queries after a cached prefix are computed as rows, like decodes


def attend(
    plan: AttentionPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    cache_scales: CacheScales | None = None,
) -> Tensor:
    """The attention of one layer, whose K and V of the batch are in the cache already.

    query [T, heads, head_dim], key and value [T, kv_heads, head_dim]; keys and values are the layer's cache by slot
    [slots, kv_heads, head_dim]. `scale`: of the products of queries and keys; None: head_dim ** -0.5.
    `soft_cap`: scaled products become cap * tanh(products / cap). `sinks` [heads] float32: a score of each head beside
    those of the keys, which takes part in the softmax and has no value. `cache_scales`: of a float8 cache.
    Returns [T, heads * head_dim].
    """

    def computed(segment: Segment) -> Tensor:
        if segment.slots is None:
            read = key[segment.rows], value[segment.rows]
        elif cache_scales is None:
            read = read_slots(keys, segment.slots, plan.buffers, 0), read_slots(values, segment.slots, plan.buffers, 1)
        else:
            read = (
                read_float8(keys, segment.slots, cache_scales.key, query.dtype),
                read_float8(values, segment.slots, cache_scales.value, query.dtype),
            )
        return _attend_segment(plan, segment, query[segment.rows], *read, scale, soft_cap, sinks)

    tokens = query.shape[0]
    if len(plan.segments) == 1 and plan.segments[0].rows == slice(0, tokens):
        return computed(plan.segments[0])
    output = query.new_empty(tokens, query.shape[1] * query.shape[2])
    for segment in plan.segments:
        output[segment.rows] = computed(segment)
    return output


def read_slots(cached: Tensor, slots: Rows, buffers: tuple[Tensor, Tensor] | None, index: int) -> Tensor:
    """The slots of a layer's keys or values, in place if they are adjacent, else in the buffer of that index."""
    if isinstance(slots, slice):
        return cached[slots]
    assert buffers is not None
    return torch.index_select(cached, 0, slots, out=buffers[index][: slots.shape[0]])


def read_float8(cached: Tensor, slots: Rows, scale: float, dtype: torch.dtype) -> Tensor:
    """The slots of a layer's keys or values in a float8 cache, multiplied by their scale, in `dtype`."""
    stored = cached[slots] if isinstance(slots, slice) else cached.view(torch.uint8)[slots].view(cached.dtype)
    return from_float8(stored, scale, dtype)


def _attend_segment(
    plan: AttentionPlan,
    segment: Segment,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """[sequences * queries, heads * head_dim] of one segment, from its queries [sequences * queries, ...] and its keys
    and values [sequences * keys, ...]."""
    sequences, queries, (_, heads, size), kv_heads = segment.sequences, segment.queries, query.shape, key.shape[1]
    key = key.unflatten(0, (sequences, segment.keys)).transpose(1, 2)  # [sequences, kv_heads, keys, head_dim]
    value = value.unflatten(0, (sequences, segment.keys)).transpose(1, 2)
    mask = segment.mask
    if plan.slopes is not None:
        mask = _biased(plan.slopes, segment, query.dtype)
    if segment.slots is not None and queries <= _FEW_QUERIES:
        return _attend_rows(query, key, value, segment, mask, scale, soft_cap, sinks).reshape(
            sequences * queries, heads * size
        )
    query = query.unflatten(0, (sequences, queries)).transpose(1, 2)  # [sequences, heads, queries, head_dim]
    if soft_cap is not None or sinks is not None:
        of_rows = None if sinks is None else sinks[:, None, None]
        output = _attend_by_scores(query, key, value, mask, scale, soft_cap, of_rows)
    else:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=segment.slots is None,
            scale=scale,
            enable_gqa=heads != kv_heads,
        )
    return output.transpose(1, 2).reshape(sequences * queries, heads * size)


def _biased(slopes: Tensor, segment: Segment, dtype: torch.dtype) -> Tensor:
    """The mask of a segment with ALiBi: [sequences or 1, heads, queries or 1, keys].

    A key's bias is the slope times its position, less that of the last key: the same number less for every key of a
    query changes nothing, and small numbers are exact in any dtype.
    """
    distances = torch.arange(1 - segment.keys, 1, dtype=torch.float32, device=slopes.device)
    bias = slopes[:, None, None] * distances  # [heads, 1, keys]
    return (bias[None] if segment.mask is None else bias[None] + segment.mask).to(dtype)


def _attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment: Segment,
    mask: Tensor | None,
    scale: float | None,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of few queries: the queries of all heads that share a KV head are the rows of one problem.

    query [sequences * queries, heads, head_dim] -> [sequences, queries, heads, head_dim]; key and value
    [sequences, kv_heads, keys, head_dim]; mask as that of the segment, or `_biased`.
    """
    sequences, kv_heads, _, size = key.shape
    queries, group = segment.queries, query.shape[1] // kv_heads
    if mask is not None and mask.dim() == 4 and (queries > 1 or mask.shape[1] > 1):  # of every head
        mask = mask.expand(sequences, -1, queries, -1).unflatten(1, (kv_heads, group)).transpose(2, 3)
        mask = mask.reshape(sequences, kv_heads, queries * group, segment.keys)
    elif mask is not None and queries > 1:
        mask = mask[:, None].expand(queries, group, segment.keys).reshape(queries * group, segment.keys)
    if queries == 1:
        rows = query.view(sequences, kv_heads, group, size)
        if group == 1 and query.dtype != torch.float32 and query.device.type == "cpu":
            rows = rows.expand(-1, -1, 2, -1)  # torch's CPU kernel is several times as slow for one row as for two
        if mask is not None:
            mask = mask.expand(sequences, -1, rows.shape[2], segment.keys)
        of_rows = None if sinks is None else sinks.view(kv_heads, group, 1).expand(-1, rows.shape[2], -1)
        output = _attend_few(rows, key, value, mask, scale, soft_cap, of_rows)
        return output[:, :, :group].reshape(sequences, 1, kv_heads * group, size)
    rows = query.view(sequences, queries, kv_heads, group, size).permute(0, 2, 1, 3, 4)
    rows = rows.reshape(sequences, kv_heads, queries * group, size)
    of_rows = None if sinks is None else sinks.view(kv_heads, 1, group, 1).expand(-1, queries, -1, -1).flatten(1, 2)
    output = _attend_few(rows, key, value, mask, scale, soft_cap, of_rows)
    output = output.view(sequences, kv_heads, queries, group, size).transpose(1, 2)
    return output.reshape(sequences, queries, kv_heads * group, size)


def _attend_few(
    rows: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of rows to as many heads of keys. `sinks` [kv_heads, rows, 1]."""
    if soft_cap is not None or sinks is not None:
        return _attend_by_scores(rows, key, value, mask, scale, soft_cap, sinks)
    return F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)


def _attend_by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with a soft cap or sinks, which torch's own operator lacks: query [sequences, heads, queries,
    head_dim], of which heads in a row share one of the heads of key and value; sinks [heads, queries or 1, 1]."""
    sequences, kv_heads, _, size = key.shape
    rows = query.reshape(sequences, kv_heads, -1, size)
    scores = torch.matmul(rows, key.transpose(2, 3)).view(*query.shape[:3], -1)
    scores = scores.mul_(size**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = scores.div_(soft_cap).tanh_().mul_(soft_cap)
    if mask is not None:
        scores = scores + mask
    scores = scores.float()
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        weights = torch.cat((scores, sinks.expand(*scores.shape[:3], 1)), dim=-1).softmax(-1)[..., :-1]
    weights = weights.to(value.dtype).reshape(sequences, kv_heads, -1, key.shape[2])
    return torch.matmul(weights, value).view(query.shape)
