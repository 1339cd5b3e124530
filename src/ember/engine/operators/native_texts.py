"""Attention within texts and LayerNorm by the C library (`ember_cpu/texts.h`): for encoders in float32 on a CPU.

Torch computes the matrix products and the rest. It needs a call for every length of texts, with copies of queries, keys
and values; the library needs one for all texts, and reads them where they lie.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.description.operator_choice import has_native_texts
from ember.engine.layers.block import Attention
from ember.engine.layers.norm import LayerNorm, Norm
from ember.engine.operators.torch_texts import TextPlan, distance_buckets
from ember_cpu import library as native

LONGEST = 4096  # tokens of a text without a window; torch reads longer ones in blocks
_ALIGNMENT = 16  # numbers: heads and hidden states are whole registers
_UNIT = 240  # queries of one task, as in texts.h
_PANEL = 32  # keys side by side there, at most
_SMALL_WORK = 1 << 18  # numbers or multiplications that one thread computes sooner than others wake up


@dataclass(slots=True)
class _Layers:
    """What layers of one kind have in common in a step: all but the addresses of a layer's tensors."""

    texts: native.Texts
    threads: int
    held: tuple[Tensor | None, ...]  # what `texts` points to


class NativeTexts:
    """The library's functions, with the memory that they work in."""

    def __init__(self, library: ctypes.CDLL, *, keeps_sums: bool) -> None:
        """`keeps_sums`: whether something else reads the sums that norms are computed of."""
        self._library = library
        self._keeps_sums = keeps_sums
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._plan: TextPlan | None = None
        self._layers: dict[tuple[object, ...], _Layers | None] = {}  # of this plan, by their kinds

    def attend(self, plan: TextPlan, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """Attend within texts, as `torch_texts.attend_texts` does. Returns None if the library does not compute it."""
        if self._plan is not plan:
            self._plan, self._layers = plan, {}
        strides = query.stride(), key.stride(), value.stride()
        kind = (attention.window, attention.scale, id(attention.distances), query.shape[1], key.shape[1], strides)
        if kind not in self._layers:
            self._layers[kind] = self._describe(plan, attention, query, key, value)
        layers = self._layers[kind]
        if layers is None:
            return None
        texts = layers.texts
        out = query.new_empty(len(query), texts.heads * texts.head_dim)
        texts.queries, texts.keys, texts.values = query.data_ptr(), key.data_ptr(), value.data_ptr()
        texts.out = out.data_ptr()
        self._library.ember_texts(texts, self._workspace.data_ptr(), layers.threads)
        return out

    def _describe(
        self, plan: TextPlan, attention: Attention, query: Tensor, key: Tensor, value: Tensor
    ) -> _Layers | None:
        (_, heads, head_dim), longest, window = query.shape, plan.longest, attention.window
        if window is not None and window >= longest:
            window = None
        if head_dim % _ALIGNMENT or attention.relative is not None or (window is None and longest > LONGEST):
            return None
        if any(each.stride()[1:] != (head_dim, 1) for each in (query, key, value)):
            return None
        most = longest if window is None else min(longest, _UNIT + 2 * window)
        capacity = -(-most // _PANEL) * _PANEL
        seen = sum(group.texts * group.length * min(group.length, most) for group in plan.groups)
        threads = torch.get_num_threads() if seen * heads * head_dim >= _SMALL_WORK else 1
        needed = self._library.ember_texts_workspace(head_dim, capacity, threads)
        if len(self._workspace) < needed:
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        units = plan.kept(("units",), lambda: _units(plan))
        biases = None if attention.distances is None else self._biases(plan, attention, longest)
        texts = native.Texts(
            biases=native.address(biases),
            units=units.data_ptr(),
            num_units=len(units),
            heads=heads,
            kv_heads=key.shape[1],
            head_dim=head_dim,
            query_stride=query.stride(0),
            key_stride=key.stride(0),
            value_stride=value.stride(0),
            window=window or 0,
            span=longest - 1,
            capacity=capacity,
            scale=head_dim**-0.5 if attention.scale is None else attention.scale,
        )
        return _Layers(texts, threads, (units, biases))

    def _biases(self, plan: TextPlan, attention: Attention, longest: int) -> Tensor:
        """[heads, 2 * longest - 1]: of each distance of a key from its query."""
        table = attention.distances
        assert table is not None

        def make() -> Tensor:
            distances = torch.arange(1 - longest, longest)
            return table.of_bucket[:, distance_buckets(distances, table.config)].contiguous()

        return plan.kept(("biases", id(table)), make)

    def add_norm(self, norm: Norm, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Add and normalise as `Operators.add_norm` does; the sum takes the place of the residual. Returns None if the
        library does not compute this."""
        rows, size = residual.shape
        if not isinstance(norm, LayerNorm) or size % _ALIGNMENT or not residual.is_contiguous():
            return None
        if any(weight is not None and weight.dim() != 1 for weight in (norm.weight, norm.bias)):
            return None
        if delta is not None and not delta.is_contiguous():
            return None
        out = torch.empty_like(residual)
        threads = torch.get_num_threads() if rows * size >= _SMALL_WORK else 1
        weights = native.address(norm.weight), native.address(norm.bias)
        places = residual.data_ptr(), native.address(delta), *weights, out.data_ptr()
        keeps = self._keeps_sums and delta is not None
        self._library.ember_add_layer_norm(*places, rows, size, norm.eps, keeps, threads)
        return out, residual


def _units(plan: TextPlan) -> Tensor:
    """int64 [units, 3]: the first token of a text, its length, and the first of up to `_UNIT` queries. The last texts,
    which are the longest, come first."""
    units = [
        (start, end - start, first) for start, end in pairwise(plan.starts) for first in range(0, end - start, _UNIT)
    ]
    return torch.tensor(units[::-1], dtype=torch.int64)


def load(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> NativeTexts | None:
    """The library's functions, where the model is an encoder whose texts they compute."""
    if not has_native_texts(config, str(dtype).removeprefix("torch."), device.type):
        return None
    library = native.load()
    return None if library is None else NativeTexts(library, keeps_sums=config.wiring != "post_norm")
