"""Latent attention over the paged cache in Triton's kernels.

Queries are absorbed: torch multiplies them by the keys' part of `kv_b_proj`, and the mixed latents by the values' part.
Long chunks of prompts expand keys and values (`triton_expansion`). This module is imported for models that have latent
attention, as loading its kernels takes some of a boot's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ember.engine.description.config import LatentConfig
from ember.engine.layers.cache import KVCache
from ember.engine.layers.latent import LatentAttention, LatentHeads
from ember.engine.operators.base import Operators
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.operators.triton_expansion import Expander, scale_queries
from ember.engine.operators.triton_step import MAX_REUSED_TOKENS, LatentMemory, TritonStep
from ember_kernels.latent_cache import latent_cache
from ember_kernels.latent_decode import latent_decode, plan_latents
from ember_kernels.latent_prefill import latent_prefill


class LatentSite(NamedTuple):
    """What the kernels of one layer with latent attention take in every step. `kind`: equal for layers whose launches
    differ in nothing but addresses."""

    kind: int
    cache: KVCache
    latents: Tensor  # the layer's, in pages
    weight: Tensor  # of the norm
    scale: Tensor | None  # of a float8 cache
    key_up: Tensor
    value_up: Tensor  # [heads, kv_rank, value_dim]
    turned: int  # bytes before the rotated part of a head's query
    placed: tuple[int, ...]  # addresses of the three tensors above
    attended: tuple[int, ...]  # that of the latents


class Latents:
    """The operations `place_latents` and `attend_latents`."""

    def __init__(
        self,
        ops: Operators[TritonStep],
        torch_ops: TorchOperators,
        sizes: LatentConfig,
        tables: Sequence[Tensor],
        number: Callable[..., int],
    ) -> None:
        """`ops`: the operators that these operations are a part of. `tables`: cosines and sines, by rotary positions.
        `number`: a number for a description of launches."""
        config = torch_ops.config
        self._tables, self._number, self._rotaries = tables, number, torch_ops.rotaries
        self._neox = config.rope is None or not config.rope.interleaved
        self._expander = Expander(ops, torch_ops, sizes, tables)
        self._sites: dict[int, LatentSite] = {}  # by the ids of attentions
        self._query_scales: dict[int, Tensor] = {}  # of the present step, by rotary positions

    def begin_step(self) -> None:
        """Forget what belongs to the step before."""
        self._query_scales = {}

    def weights_moved(self) -> None:
        """What has addresses of weights is made anew."""
        self._sites.clear()

    def place_latents(self, attention: LatentAttention, query: Tensor, latent: Tensor, step: TritonStep) -> LatentHeads:
        """`Operators.place_latents` (`operators.base`). Queries are absorbed, but for those of long chunks."""
        if (expansion := self._expander.find(step, attention.group)) is not None:
            return self._expander.place(expansion, attention, query, latent, step)
        sizes, site = attention.sizes, self._site(attention, query, step.cache)
        memory = _latent_memory(attention, query, step)
        heads = query.view(query.shape[0], attention.heads, sizes.head_dim)
        plain = heads[..., : sizes.plain_dim].transpose(0, 1)
        torch.bmm(plain, site.key_up, out=memory.plain)
        addresses: tuple[int, ...] = (query.data_ptr() + site.turned, latent.data_ptr(), *site.placed)
        if not memory.is_shared:
            addresses = (*addresses, memory.turned.data_ptr())
        key = ("place latents", site.kind, query.stride(0), latent.stride(0))
        if not step.launches.repeat(key, addresses):

            def call() -> None:
                latent_cache(
                    heads[..., sizes.plain_dim :],
                    latent,
                    site.weight,
                    site.latents,
                    step.slots[attention.group],
                    step.positions,
                    self._tables[attention.rope],
                    eps=sizes.norm_eps,
                    neox=self._neox,
                    scale=site.scale,
                    out=memory.query,
                )

            step.launches.make(key, addresses, call)
        scale_queries(memory.query, self._rotaries, attention.rope, step.positions, self._query_scales)
        return LatentHeads(memory.query)

    def attend_latents(self, attention: LatentAttention, heads: LatentHeads, step: TritonStep) -> Tensor:
        """`Operators.attend_latents` (`operators.base`)."""
        query, rank, group = heads.query, attention.sizes.kv_rank, attention.group
        if (expansion := self._expander.find(step, group)) is not None:
            return self._expander.attend(expansion, attention, heads, step)
        site = self._site(attention, query, step.cache)
        memory, cache, scales = _latent_memory(attention, query, step), site.latents, attention.cache_scales
        if query is memory.query and memory.is_shared:
            mixed, addresses = memory.mixed, site.attended
        else:
            mixed = query.new_empty((*query.shape[:2], rank))
            addresses = (query.data_ptr(), mixed.data_ptr(), *site.attended)
        options: dict[str, Any] = {"rank": rank, "scale": attention.scale}
        options["cache_scale"] = 1.0 if scales is None else scales.key
        decodes, chunks, key = step.decodes, step.chunks, ("attend latents", site.kind)
        if decodes is not None and not step.launches.repeat(key, addresses):
            lens, count = decodes.context_lens, len(decodes.context_lens)
            if group not in decodes.plans:
                decodes.plans[group] = plan_latents(lens, attention.heads, cache, rank)
            of_decodes = query[:count], cache, decodes.block_tables[group], lens
            own = {**options, "plan": decodes.plans[group], "out": mixed[:count]}
            step.launches.make(key, addresses, lambda: latent_decode(*of_decodes, **own))
        key = ("attend latents of prompts", site.kind)
        if chunks is not None and not step.launches.repeat(key, addresses):
            # After the decodes, whose padding has outputs where chunks begin.
            of_chunks = query, cache, chunks.block_tables[group], chunks.starts, chunks.context_lens
            step.launches.make(key, addresses, lambda: latent_prefill(*of_chunks, out=mixed, **options))
        out = query.new_empty((*query.shape[:2], attention.sizes.value_dim))
        torch.bmm(mixed.transpose(0, 1), site.value_up, out=out.transpose(0, 1))
        return out.flatten(1)

    def _site(self, attention: LatentAttention, x: Tensor, cache: KVCache) -> LatentSite:
        """What the layer's kernels take, described when the first step needs it."""
        site = self._sites.get(id(attention))
        if site is not None and site.cache is cache:
            return site
        sizes, scales, weight = attention.sizes, attention.cache_scales, attention.kv_norm.weight
        assert weight is not None
        kind = self._number(
            *("latents", attention.group, sizes, attention.rope, attention.heads, attention.scale),
            *(x.dtype, weight.dtype, None if scales is None else scales.key),
        )
        latents, _ = cache.by_page[attention.place]
        scale = None if scales is None else scales.tensors[0]
        placed = tuple(each.data_ptr() for each in (latents, weight, scale) if each is not None)
        turned = sizes.plain_dim * x.element_size()
        up = attention.key_up, attention.value_up.transpose(1, 2)
        site = LatentSite(kind, cache, latents, weight, scale, *up, turned, placed, placed[:1])
        self._sites[id(attention)] = site
        return site


def _latent_memory(attention: LatentAttention, like: Tensor, step: TritonStep) -> LatentMemory:
    """The memory for absorbed queries and mixed latents: that of all layers, if it is shared."""
    known = step.latents
    if known is None:
        rank, num_tokens = attention.sizes.kv_rank, like.shape[0]
        query = like.new_empty((num_tokens, attention.heads, attention.sizes.size))
        plain, turned = query[..., :rank].transpose(0, 1), query[..., rank:]
        mixed = like.new_empty((num_tokens, attention.heads, rank))
        known = LatentMemory(query, plain, turned, mixed, num_tokens <= MAX_REUSED_TOKENS)
        if known.is_shared:
            step.latents = known
    return known
