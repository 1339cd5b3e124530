"""The attention of encoders in Triton's kernels: over whole texts, and without a cache. It is imported for encoders
alone, as loading its kernels takes some of a boot's time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ember.engine.layers.block import Attention
from ember.engine.operators.base import Heads
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.operators.torch_texts import distance_buckets
from ember.engine.operators.triton_step import TritonStep
from ember_kernels.attention import LOG2_E
from ember_kernels.rope_cache import rope_cache
from ember_kernels.text_attention import SMALL_ROWS, text_attention


class Texts:
    """The operations `place_heads` and `attend` of an encoder."""

    def __init__(self, torch_ops: TorchOperators, tables: Sequence[Tensor]) -> None:
        """`tables`: cosines and sines, by rotary positions; none where torch places heads."""
        config = torch_ops.config
        self._torch_ops, self._tables, self._eps = torch_ops, tables, config.norm_eps
        self._neox = config.rope is None or not config.rope.interleaved
        self._rotary_dims = [rotary.rotary_dim for rotary in torch_ops.rotaries]
        self._biases: dict[int, Tensor] = {}  # of distances, by the ids of their tables

    def weights_moved(self) -> None:
        """What was made of weights is made anew."""
        self._biases.clear()

    def place_heads(self, attention: Attention, qkv: Tensor, step: TritonStep) -> Heads:
        """The heads of an encoder: parts of `qkv`. What is normalised or rotated is written to memory of its own, by
        the kernel that writes to the cache elsewhere."""
        norm = attention.qk_norm
        if attention.rope is None and norm is None:
            return self._torch_ops.place_heads(attention, qkv, step)
        heads, kv_heads, head_dim = attention.sizes
        assert step.texts is not None
        keys, values = (qkv.new_empty((1, len(qkv), kv_heads, head_dim)) for _ in range(2))
        query, rows = qkv.new_empty((len(qkv), heads, head_dim)), step.texts.rows
        weights: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
        if norm is not None and norm.weight is not None:
            weights = norm.weight[0], norm.weight[-1]
        addresses = [each.data_ptr() for each in (qkv, keys, values, query, *weights) if each is not None]
        key = ("place", attention.sizes, attention.rope, norm is None, attention.value_norm is None)

        def call() -> None:
            rope_cache(
                qkv,
                keys,
                values,
                rows,
                step.positions,
                None if attention.rope is None else self._tables[attention.rope],
                query_weight=weights[0],
                key_weight=weights[1],
                eps=self._eps,
                neox=self._neox,
                rotary_dim=None if attention.rope is None else self._rotary_dims[attention.rope],
                value_norm=attention.value_norm is not None,
                values_are_keys=attention.values_are_keys,
                out=query,
            )

        if not step.launches.repeat(key, addresses):
            step.launches.make(key, addresses, call)
        return Heads(query, keys[0], values[0])

    def attend(self, attention: Attention, heads: Heads, step: TritonStep) -> Tensor:
        """The attention of an encoder: one launch for its texts, or one for the short ones and one for the others."""
        texts, (query, key, value) = step.texts, heads
        assert texts is not None and key is not None and value is not None
        out = query.new_empty(query.shape)
        biases = self._biases_of(attention)
        parts = texts.parts(SMALL_ROWS // (query.shape[1] // key.shape[1]))

        def call() -> None:
            for starts, longest in parts:
                window = attention.window
                if window is not None and window >= longest:
                    window = None
                options: dict[str, Any] = {"scale": attention.scale, "window": window, "biases": biases, "out": out}
                text_attention(query, key, value, starts, longest=longest, **options)

        places = attention.sizes, query.stride(0), key.stride(0), value.stride(0)
        kind = ("attend", *places, attention.scale, attention.window, biases is None)
        addresses = [each.data_ptr() for each in (query, key, value, out, biases) if each is not None]
        if not step.launches.repeat(kind, addresses):
            step.launches.make(kind, addresses, call)
        return out.flatten(1)

    def _biases_of(self, attention: Attention) -> Tensor | None:
        """The biases of distances as the kernel takes them, made when the first step needs them."""
        table = attention.distances
        if table is None:
            return None
        known = self._biases.get(id(table))
        if known is None:
            span = table.config.max_distance
            distances = torch.arange(-span, span + 1, device=table.of_bucket.device)
            of_distance = table.of_bucket[:, distance_buckets(distances, table.config)].float() * LOG2_E
            known = self._biases[id(table)] = of_distance.contiguous()
        return known
