"""The decoder's forward pass in Ember's Triton kernels, for GPUs: the same weights and the same sums, fewer launches.

    for each layer:
        x, residual = norm(x + residual), x + residual          one launch
        q, cache = rotate(qk_norm(qkv)), k and v                one launch
        x = attention(q, cache)                                 decodes: one or two; prompt chunks: one
        x, residual = norm(x + residual), x + residual          one launch
        x = down(act(gate) * up)                                one launch beside the matrix products

Serves the families that normalise first. Imported only where it is used: it brings triton with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention
from ember.engine.layers.cache import KVCache
from ember.engine.layers.norm import Norm, RMSNorm
from ember.engine.layers.rotary import Rotary
from ember_kernels.activation import activation
from ember_kernels.decode_attention import decode_attention
from ember_kernels.norm import layer_norm, rms_norm
from ember_kernels.prefill_attention import prefill_attention
from ember_kernels.rope_cache import rope_cache

if TYPE_CHECKING:
    from ember.engine.models.decoder import Decoder

ACTIVATION_KINDS = {
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(slots=True)
class FusedStep:
    """What all layers share in one step. The first `num_decodes` sequences have one query each."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [groups, T] int64; negative: padding, which leaves the cache alone
    num_decodes: int
    block_tables: Tensor  # [groups, S, max_blocks] int32; entries before a window are not read
    context_lens: Tensor  # [S] int32
    starts: Tensor  # [S - num_decodes + 1] int32, first row of each sequence that is no decode
    max_context: int
    max_queries: int

    @classmethod
    def of(cls, batch: Batch) -> FusedStep:
        starts = batch.query_starts
        counts = [stop - start for start, stop in pairwise(starts)]
        num_decodes = next((i for i, count in enumerate(counts) if count != 1), len(counts))
        device = batch.token_ids.device
        return cls(
            token_ids=batch.token_ids,
            positions=batch.positions,
            slot_mapping=batch.slot_mapping,
            num_decodes=num_decodes,
            block_tables=batch.block_tables.to(torch.int32),
            context_lens=torch.tensor(batch.context_lens, dtype=torch.int32).to(device, non_blocking=True),
            starts=torch.tensor(starts[num_decodes:], dtype=torch.int32).to(device, non_blocking=True),
            max_context=max(batch.context_lens),
            max_queries=max(counts),
        )


class FusedForward:
    """A decoder's `forward` in kernels. The weights stay the decoder's."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        config = decoder.config
        self.activation_kind = ACTIVATION_KINDS[config.activation]
        self.table = _angle_table(decoder.rotary, config.max_position_embeddings) if decoder.rotary else None

    @staticmethod
    def serves(decoder: Decoder) -> bool:
        """Whether the decoder is of a form that the kernels know."""
        config = decoder.config
        return config.norm_first and config.activation in ACTIVATION_KINDS and config.head_dim % 16 == 0

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Run one step: K and V of the batch are written to the cache. Returns [T, hidden] after the final norm."""
        return self.run(FusedStep.of(batch), cache)

    def run(self, step: FusedStep, cache: KVCache) -> Tensor:
        """As `forward`, for inputs that are on the device already; nothing here looks at their values."""
        decoder = self.decoder
        residual = decoder.parts.embedding(step.token_ids, step.positions)  # [T, hidden]
        delta: Tensor | None = None  # what the last block adds to it
        for block in decoder.parts.blocks:
            hidden = _add_norm(block.attention_norm, delta, residual)
            place = block.attention.place
            delta = self._attention(block.attention, hidden, step, cache.keys[place], cache.values[place])
            hidden = _add_norm(block.mlp_norm, delta, residual)
            inner, _ = activation(block.mlp.up(hidden), self.activation_kind, gated=block.mlp.gated)
            delta = block.mlp.down(inner)
        if decoder.parts.final_norm is None:
            return residual if delta is None else residual + delta
        return _add_norm(decoder.parts.final_norm, delta, residual)

    def _attention(self, attention: Attention, hidden: Tensor, step: FusedStep, keys: Tensor, values: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]; `keys` and `values` are the layer's cache."""
        norm = attention.qk_norm.weight if attention.qk_norm is not None else None  # [heads + kv_heads, head_dim]
        query = rope_cache(
            attention.qkv(hidden),
            keys,
            values,
            step.slot_mapping[attention.group],
            step.positions,
            self.table,
            query_weight=None if norm is None else norm[0],
            key_weight=None if norm is None else norm[-1],
            eps=self.decoder.config.norm_eps,
        )  # [T, heads, head_dim]
        mixed = torch.empty_like(query)
        decodes, block_tables = step.num_decodes, step.block_tables[attention.group]
        if decodes:
            decode_attention(
                query[:decodes],
                keys,
                values,
                block_tables[:decodes],
                step.context_lens[:decodes],
                max_context=step.max_context,
                window=attention.window,
                out=mixed[:decodes],
            )
        if decodes < len(step.context_lens):
            prefill_attention(
                query,
                keys,
                values,
                block_tables[decodes:],
                step.starts,
                step.context_lens[decodes:],
                max_queries=step.max_queries,
                window=attention.window,
                out=mixed,
            )
        return attention.output(mixed.flatten(1))


def _add_norm(norm: Norm, delta: Tensor | None, residual: Tensor) -> Tensor:
    """norm(residual + delta); the sum replaces `residual`. Without `delta`: norm(residual)."""
    x, added = (residual, None) if delta is None else (delta, residual)
    if isinstance(norm, RMSNorm):
        return rms_norm(x, norm.weight, norm.eps, residual=added)[0]
    return layer_norm(x, norm.weight, norm.bias, norm.eps, residual=added)[0]


def _angle_table(rotary: Rotary, max_positions: int) -> Tensor:
    """[max_positions, rotary_dim] float32: cosines, then sines, of each position."""
    frequencies = rotary.inverse_frequencies
    positions = torch.arange(max_positions, dtype=torch.float32, device=frequencies.device)
    angles = positions[:, None] * frequencies  # [max_positions, rotary_dim / 2]
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * rotary.attention_factor
