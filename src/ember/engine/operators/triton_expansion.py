"""Prompts with latent attention in Triton's kernels, whose keys and values are expanded.

Chunks that are long enough (`description.expansion`) come last in a step (`DeviceRunner`). What comes before them is a
step of its own, whose queries are absorbed. The lengths must be known on the host, where the contexts are divided into
pieces of bounded memory, so recorded steps have no such chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ember.engine.description.config import LatentConfig
from ember.engine.description.expansion import expands, keys_at_once
from ember.engine.layers.latent import LatentAttention, LatentHeads
from ember.engine.layers.rotary import Rotary
from ember.engine.operators.base import Operators
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.operators.triton_step import Chunks, Expansion, TritonStep
from ember_kernels.latent_cache import latent_cache
from ember_kernels.latent_expansion import Carried, expanded_attention
from ember_kernels.latent_pieces import gather_latents, upload_pieces


def scale_queries(
    query: Tensor, rotaries: Sequence[Rotary], rope: int, positions: Tensor, kept: dict[int, Tensor]
) -> None:
    """Multiply queries in place by the factors of their positions, where the rotary positions `rope` have such. `kept`:
    the factors, which all layers of a step share."""
    rotary = rotaries[rope]
    if not rotary.query_beta:
        return
    if rope not in kept:
        factors = rotary.query_scales(positions, query.dtype)
        assert factors is not None
        kept[rope] = factors
    query.mul_(kept[rope])


class Expander:
    """Finds the chunks of a step that expand keys and values, and computes their attention."""

    def __init__(
        self, ops: Operators[TritonStep], torch_ops: TorchOperators, sizes: LatentConfig, tables: Sequence[Tensor]
    ) -> None:
        """`ops`: what computes absorbed queries and products. `tables`: cosines and sines, by rotary positions."""
        config = torch_ops.config
        self._ops, self._sizes, self._tables, self._rotaries = ops, sizes, tables, torch_ops.rotaries
        self._neox = config.rope is None or not config.rope.interleaved
        self._most_keys = keys_at_once(sizes, config.num_heads, torch_ops.dtype.itemsize)

    def find(self, step: TritonStep, group: int) -> Expansion | None:
        """The division of the step, for all layers of a cache group; None: all queries are absorbed."""
        if group not in step.expansions:
            step.expansions[group] = self._divide(step, group)
        return step.expansions[group]

    def _divide(self, step: TritonStep, group: int) -> Expansion | None:
        chunks = step.chunks
        if chunks is None or not chunks.lens:
            return None
        starts, count = chunks.bounds, len(chunks.lens)
        first = count
        while first and expands(self._sizes, starts[first] - starts[first - 1]):
            first -= 1
        if first == count:
            return None
        own, token = [start - starts[first] for start in starts[first:]], starts[first]
        pieces = upload_pieces(own, chunks.lens[first:], self._most_keys, step.token_ids.device)
        return Expansion(self._before(step, chunks, first), token, chunks.block_tables[group][first:], pieces)

    def _before(self, step: TritonStep, chunks: Chunks, count: int) -> TritonStep | None:
        """The step of what comes before the chunk `count`; None: nothing does."""
        token = chunks.bounds[count]
        if not token:
            return None
        short = None
        if count:
            tables = [table[:count] for table in chunks.block_tables]
            short = Chunks(tables, chunks.starts[: count + 1], chunks.context_lens[:count], chunks.max_queries)
        slots = [slots[:token] for slots in step.slots]
        ids, positions = step.token_ids[:token], step.positions[:token]
        return replace(step, token_ids=ids, positions=positions, slots=slots, chunks=short, latents=None, expansions={})

    def place(
        self, expansion: Expansion, attention: LatentAttention, query: Tensor, latent: Tensor, step: TritonStep
    ) -> LatentHeads:
        """`place_latents` of a divided step."""
        first, sizes, scales = expansion.first_token, attention.sizes, attention.cache_scales
        absorbed = None
        if expansion.absorbed is not None:
            before = expansion.absorbed
            absorbed = self._ops.place_latents(attention, query[:first], latent[:first], before).query
        expanded = query[first:].contiguous().unflatten(1, (attention.heads, -1))
        weight = attention.kv_norm.weight
        assert weight is not None
        latent_cache(
            expanded[..., sizes.plain_dim :],
            latent[first:],
            weight,
            step.cache.by_page[attention.place][0],
            step.slots[attention.group][first:],
            step.positions[first:],
            self._tables[attention.rope],
            eps=sizes.norm_eps,
            neox=self._neox,
            scale=None if scales is None else scales.tensors[0],
            out=expanded,
        )
        positions = step.positions[first:]
        scale_queries(expanded, self._rotaries, attention.rope, positions, expansion.query_scales)
        return LatentHeads(expanded, absorbed=absorbed)

    def attend(self, expansion: Expansion, attention: LatentAttention, heads: LatentHeads, step: TritonStep) -> Tensor:
        """`attend_latents` of a divided step."""
        query, scales, sizes = heads.query, attention.cache_scales, attention.sizes
        cache, _ = step.cache.by_page[attention.place]
        first, num_tokens = expansion.first_token, len(step.token_ids)
        output = query.new_empty((num_tokens, attention.heads, sizes.value_dim))
        if expansion.absorbed is not None and heads.absorbed is not None:
            mixed = self._ops.attend_latents(attention, LatentHeads(heads.absorbed), expansion.absorbed)
            output[:first] = mixed.unflatten(1, (attention.heads, -1))
        own = output[first:]
        carried = Carried.like(own) if any(piece.is_split for piece in expansion.pieces) else None
        cache_scale = 1.0 if scales is None else scales.key
        for piece in expansion.pieces:
            options: dict[str, Any] = {"rank": sizes.kv_rank, "dtype": query.dtype, "cache_scale": cache_scale}
            latent, turned = gather_latents(cache, expansion.tables, piece, **options)
            up = self._ops.linear(attention.kv_up, latent, step)
            expanded_attention(query, up, turned, piece, scale=attention.scale, carried=carried, out=own)
            del up, latent, turned  # before the next piece's are allocated
        return output.flatten(1)
