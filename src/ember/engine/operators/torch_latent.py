"""Latent attention (`layers.latent`) over the paged cache in torch operators, by the plan of `torch_plan`.

Decodes, and a few queries after a cached prefix, absorb the matrices: each query head is compared with the latents
themselves, which are the only key and value head. Prompts expand keys and values of all heads, also those of a prefix:
that costs a product with each latent, but then heads are smaller than latents.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.expansion import expands
from ember.engine.layers.latent import LatentAttention, LatentHeads
from ember.engine.layers.linear import Linear
from ember.engine.operators.torch_attention import read_float8, read_slots
from ember.engine.operators.torch_plan import MAX_QUERIES, AttentionPlan, Segment, causal_mask

_MAX_EXPANDED = 1 << 25  # elements of keys and values in memory at a time: heads are divided into parts

Product = Callable[[Linear, Tensor], Tensor]


def attend_latents(
    plan: AttentionPlan, attention: LatentAttention, heads: LatentHeads, cached: Tensor, linear: Product
) -> Tensor:
    """The attention of one layer, whose latents of the batch are in the cache already: [T, heads * value_dim].

    `cached`: the layer's latents by slot, [slots, 1, kv_rank + rotary_dim]. `linear` multiplies by `kv_up`.
    """

    def computed(segment: Segment) -> Tensor:
        query = heads.query[segment.rows]
        if segment.slots is None:
            assert heads.latent is not None
            return _expanded(attention, query, heads.latent[segment.rows], linear)
        if attention.cache_scales is None:
            read = read_slots(cached, segment.slots, plan.buffers, 0)
        else:
            read = read_float8(cached, segment.slots, attention.cache_scales.key, query.dtype)
        if segment.queries > 1 and expands(attention.sizes, segment.queries):
            return _expanded(attention, query, read[:, 0], linear)
        return _absorbed(attention, query, read[:, 0], segment)

    query = heads.query
    if len(plan.segments) == 1 and plan.segments[0].rows == slice(0, len(query)):
        return computed(plan.segments[0])
    output = query.new_empty(len(query), attention.heads * attention.sizes.value_dim)
    for segment in plan.segments:
        output[segment.rows] = computed(segment)
    return output


def _expanded(attention: LatentAttention, query: Tensor, latents: Tensor, linear: Product) -> Tensor:
    """Attention of the last tokens of a sequence, query [queries, heads, head_dim], to all of them, whose latents are
    [keys, kv_rank + rotary_dim]: [queries, heads * value_dim]."""
    sizes, num_keys, queries = attention.sizes, len(latents), len(query)
    latent, turned = latents.split((sizes.kv_rank, sizes.rotary_dim), dim=-1)
    latent = latent.contiguous()
    widest = max(sizes.head_dim, sizes.value_dim)
    parts = _divisor(attention.heads, -(-2 * num_keys * widest * attention.heads // _MAX_EXPANDED))
    size = attention.heads // parts
    output = query.new_empty(queries, attention.heads, sizes.value_dim)
    weights = [attention.kv_up] if parts == 1 else attention.kv_up.split(parts)
    for part, weight in enumerate(weights):
        own = slice(part * size, (part + 1) * size)
        plain, value = linear(weight, latent).unflatten(1, (size, -1)).split((sizes.plain_dim, sizes.value_dim), dim=-1)
        key = torch.cat((plain, turned[:, None].expand(-1, size, -1)), dim=-1)
        # torch's kernel for CPUs needs heads of one size.
        key, value = _padded(key, widest).transpose(0, 1)[None], _padded(value, widest).transpose(0, 1)[None]
        rows = _padded(query[:, own], widest).transpose(0, 1)[None]
        for first in range(0, queries, queries if queries == num_keys else MAX_QUERIES):
            last = queries if queries == num_keys else min(first + MAX_QUERIES, queries)
            seen, mask = num_keys - queries + last, None
            if queries != num_keys:
                mask = causal_mask(query.device, last - first, 0, seen, None, query.dtype)
            mixed = F.scaled_dot_product_attention(
                rows[:, :, first:last],
                key[:, :, :seen],
                value[:, :, :seen],
                attn_mask=mask,
                is_causal=mask is None,
                scale=attention.scale,
            )
            output[first:last, own] = mixed[0, :, :, : sizes.value_dim].transpose(0, 1)
    return output.flatten(1)


def _absorbed(attention: LatentAttention, query: Tensor, latents: Tensor, segment: Segment) -> Tensor:
    """Attention of a segment's queries [sequences * queries, heads, head_dim] to latents [sequences * keys, kv_rank +
    rotary_dim]: [sequences * queries, heads * value_dim]."""
    rank, (sequences, queries, num_keys) = attention.sizes.kv_rank, (segment.sequences, segment.queries, segment.keys)
    query = absorb(attention, query)
    latents = latents.view(sequences, 1, num_keys, -1)
    if queries > 1:
        rows = query.transpose(0, 1)[None]  # [1, heads, queries, ...]
        mask: Tensor | None = causal_mask(query.device, queries, 0, num_keys, None, query.dtype)
        latents = latents.expand(-1, attention.heads, -1, -1)
        mixed = F.scaled_dot_product_attention(rows, latents, latents, attn_mask=mask, scale=attention.scale)
        return release(attention, mixed[0, :, :, :rank].transpose(0, 1))
    # The heads are rows of one problem, which reads the latents once, or of some, one for each thread.
    parts = 1
    if query.device.type == "cpu" and sequences < torch.get_num_threads():
        parts = _divisor(attention.heads, -(-torch.get_num_threads() // sequences), least=2)
    rows = query.view(sequences, parts, attention.heads // parts, -1)
    latents, mask = latents.expand(-1, parts, -1, -1), segment.mask
    if mask is not None:
        mask = mask.expand(-1, parts, rows.shape[2], -1)
    mixed = F.scaled_dot_product_attention(rows, latents, latents, attn_mask=mask, scale=attention.scale)
    return release(attention, mixed.reshape(sequences, attention.heads, -1)[..., :rank])


def absorb(attention: LatentAttention, query: Tensor) -> Tensor:
    """Queries that are compared with latents: [T, heads, head_dim] -> [T, heads, kv_rank + rotary_dim]."""
    sizes = attention.sizes
    plain, turned = query.split((sizes.plain_dim, sizes.rotary_dim), dim=-1)
    return torch.cat((torch.bmm(plain.transpose(0, 1), attention.key_up).transpose(0, 1), turned), dim=-1)


def release(attention: LatentAttention, mixed: Tensor) -> Tensor:
    """Values of mixed latents: [T, heads, kv_rank] -> [T, heads * value_dim]."""
    rows, up = mixed.transpose(0, 1), attention.value_up
    if mixed.device.type == "cpu" and mixed.dtype == torch.bfloat16:
        # torch's product of bfloat16 with a transposed matrix is slow on CPUs, except with a single column.
        if len(mixed) == 1:
            return torch.bmm(up, rows.transpose(1, 2)).view(1, -1)
        made = torch.bmm(rows.float(), up.float().transpose(1, 2)).to(mixed.dtype)
    else:
        made = torch.bmm(rows, up.transpose(1, 2))
    return made.transpose(0, 1).flatten(1)


def _padded(x: Tensor, size: int) -> Tensor:
    """Zeros after the last dimension."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


def _divisor(count: int, wanted: int, least: int = 1) -> int:
    """The smallest divisor of `count` that is at least `wanted`, or the largest one that leaves `least` each."""
    found = [each for each in range(1, count + 1) if count % each == 0 and count // each >= least] or [1]
    return next((each for each in found if each >= wanted), found[-1])
