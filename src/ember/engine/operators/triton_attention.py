"""Attention over the paged cache in Triton's kernels: the operations `place_heads` and `attend` of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ember.engine.description.config import HeadSizes
from ember.engine.layers.block import Attention
from ember.engine.layers.cache import KVCache
from ember.engine.operators.base import Heads
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.operators.triton_step import MAX_REUSED_TOKENS, HeadMemory, TritonStep
from ember_kernels.decode_attention import decode_attention, plan_attention
from ember_kernels.dense_attention import MEASURED
from ember_kernels.prefill_attention import prefill_attention
from ember_kernels.rope_cache import rope_cache


class AttentionSite(NamedTuple):
    """What the kernels of one attention layer take in every step. `kind`: equal for layers whose launches differ in
    nothing but addresses."""

    kind: int
    cache: KVCache
    keys: Tensor
    values: Tensor
    weights: tuple[Tensor, Tensor] | tuple[None, None]  # of the norms of queries and keys
    scales: tuple[Tensor, Tensor] | tuple[None, None]  # of a float8 cache
    addresses: tuple[int, ...]  # of all these
    attended: tuple[int, ...]  # of the cache and the sinks


class CachedAttention:
    """Writes heads to the cache, and attends over it. A layer repeats the launches of the first one that is like it."""

    def __init__(self, torch_ops: TorchOperators, tables: Sequence[Tensor], number: Callable[..., int]) -> None:
        """`tables`: cosines and sines, by rotary positions. `number`: a number for a description of launches."""
        config = torch_ops.config
        self._torch_ops, self._tables, self._number, self._eps = torch_ops, tables, number, config.norm_eps
        self._neox = config.rope is None or not config.rope.interleaved
        self._rotary_dims = [rotary.rotary_dim for rotary in torch_ops.rotaries]
        self._sites: dict[int, AttentionSite] = {}  # by the ids of attentions

    def weights_moved(self) -> None:
        """What has addresses of weights is made anew."""
        self._sites.clear()

    def place_heads(self, attention: Attention, qkv: Tensor, step: TritonStep) -> Heads:
        """`Operators.place_heads` (`operators.base`) in one launch."""
        site = self._site(attention, qkv, step.cache)
        memory = _heads(attention.sizes, qkv, step)
        query = memory.query
        if memory.is_shared:
            addresses = (qkv.data_ptr(), *site.addresses)
        else:
            addresses = (qkv.data_ptr(), query.data_ptr(), *site.addresses)
        key = ("place", site.kind, 0 if qkv.is_contiguous() else qkv.stride(0))
        if not step.launches.repeat(key, addresses):

            def call() -> None:
                rope_cache(
                    qkv,
                    site.keys,
                    site.values,
                    step.slots[attention.group],
                    step.positions,
                    None if attention.rope is None else self._tables[attention.rope],
                    query_weight=site.weights[0],
                    key_weight=site.weights[1],
                    eps=self._eps,
                    neox=self._neox,
                    rotary_dim=None if attention.rope is None else self._rotary_dims[attention.rope],
                    value_norm=attention.value_norm is not None,
                    values_are_keys=attention.values_are_keys,
                    has_own_kv=attention.has_own_kv,
                    key_scale=site.scales[0],
                    value_scale=site.scales[1],
                    out=query,
                )

            step.launches.make(key, addresses, call)
        return Heads(query)

    def place_torch_heads(self, attention: Attention, qkv: Tensor, step: TritonStep) -> Heads:
        """Normalise and rotate in torch. The kernel then only writes to the cache, without the padding."""
        query, key, value = self._torch_ops.heads(attention, qkv, step)
        if key is None or value is None:
            return Heads(query.contiguous())
        qkv = torch.cat((query, key, value), dim=1).flatten(1)
        places = step.slots[attention.group], step.positions
        key_scale, value_scale = _scale_tensors(attention)
        cache = step.cache.by_page[attention.place]
        return Heads(rope_cache(qkv, *cache, *places, None, key_scale=key_scale, value_scale=value_scale))

    def attend(self, attention: Attention, heads: Heads, step: TritonStep) -> Tensor:
        """`Operators.attend` (`operators.base`): two launches for decodes, one for chunks of prompts."""
        query = heads.query
        site = self._site(attention, query, step.cache)
        memory = _heads(attention.sizes, query, step)
        mixed = memory.mixed
        if query is memory.query and memory.is_shared:
            addresses = site.attended
        else:
            addresses = (query.data_ptr(), mixed.data_ptr(), *site.attended)
        key = ("attend", site.kind)
        if not step.launches.repeat(key, addresses):
            decodes, group = step.decodes, attention.group
            if decodes is not None and group not in decodes.plans:  # for all layers of the group
                options: dict[str, Any] = {"window": attention.window, "is_chunk": attention.window_is_chunk}
                plan = plan_attention(decodes.context_lens, query.shape[1], site.keys, **options)
                decodes.plans[group] = plan

            def call() -> None:
                self._launch(attention, step, query, site.keys, site.values, mixed)

            if MEASURED and step.chunks is not None and step.chunks.fresh:
                call()  # perhaps by torch's operator, which is no launch that can be repeated
            else:
                step.launches.make(key, addresses, call)
        return memory.flat

    def _launch(
        self, attention: Attention, step: TritonStep, query: Tensor, keys: Tensor, values: Tensor, mixed: Tensor
    ) -> None:
        """Attention of all tokens, to `mixed` [T, heads, head_dim]."""
        group, scales = attention.group, attention.cache_scales
        options: dict[str, Any] = {
            "scale": attention.scale,
            "window": attention.window,
            "is_chunk": attention.window_is_chunk,
            "soft_cap": attention.soft_cap,
            "sinks": attention.sinks,
            "slopes": self._torch_ops.slopes,
        }
        if scales is not None:
            options |= {"k_scale": scales.key, "v_scale": scales.value}
        if (decodes := step.decodes) is not None:
            count, lens = len(decodes.context_lens), decodes.context_lens
            tables, plan = decodes.block_tables[group], decodes.plans[group]
            decode_attention(query[:count], keys, values, tables, lens, **options, plan=plan, out=mixed[:count])
        if (chunks := step.chunks) is not None:  # after the decodes, whose padding has outputs where chunks begin
            places = chunks.block_tables[group], chunks.starts, chunks.context_lens
            options |= {"max_queries": chunks.max_queries, "bounds": chunks.fresh if MEASURED else (), "out": mixed}
            prefill_attention(query, keys, values, *places, **options)

    def _site(self, attention: Attention, x: Tensor, cache: KVCache) -> AttentionSite:
        """What the layer's kernels take, described when the first step needs it."""
        site = self._sites.get(id(attention))
        if site is not None and site.cache is cache:
            return site
        norm = None if attention.qk_norm is None else attention.qk_norm.weight  # [heads + kv_heads, head_dim]
        weights = (None, None) if norm is None else (norm[0], norm[-1])
        scales, scale_tensors = attention.cache_scales, _scale_tensors(attention)
        kind = self._number(
            *(attention.group, attention.sizes, attention.rope, attention.has_own_kv, attention.values_are_keys),
            *(attention.value_norm is None, attention.scale, attention.soft_cap, attention.window),
            *(x.dtype, None if norm is None else norm.dtype, attention.sinks is None),
            *((None, None) if scales is None else (scales.key, scales.value)),
        )
        keys, values = cache.by_page[attention.place]
        addresses = [
            tuple(each.data_ptr() for each in (keys, values, *others) if each is not None)
            for others in ((*weights, *scale_tensors), (attention.sinks,))
        ]
        site = AttentionSite(kind, cache, keys, values, weights, scale_tensors, *addresses)
        self._sites[id(attention)] = site
        return site


def _heads(sizes: HeadSizes, like: Tensor, step: TritonStep) -> HeadMemory:
    """The memory for such heads: that of all layers, if it is shared."""
    known = step.heads.get(sizes)
    if known is None:
        query = like.new_empty((like.shape[0], sizes.heads, sizes.head_dim))
        mixed = torch.empty_like(query)
        known = HeadMemory(query, mixed, mixed.flatten(1), like.shape[0] <= MAX_REUSED_TOKENS)
        if known.is_shared:
            step.heads[sizes] = known
    return known


def _scale_tensors(attention: Attention) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The scales of K and V in a float8 cache, for the kernel that writes it."""
    return (None, None) if attention.cache_scales is None else attention.cache_scales.tensors
