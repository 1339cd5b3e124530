"""The attention function that models of transformers call, over Ember's paged KV cache.

transformers looks up a model's attention function by name (`AttentionInterface`). A model calls it with the queries,
keys and values of one batch. `PagedAttention` writes the keys and values to the cache and attends to it by the plan of
the step. The calls of a forward pass have the same order in every pass, so the number of a call tells its place in the
cache.

`recording()` finds out what the calls of a model are, before there is a cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.batch import Batch
from ember.engine.layers.cache import KVCache
from ember.engine.operators.torch_attention import attend
from ember.engine.operators.torch_plan import AttentionPlan, GroupShape, plan_attention

_NUMBERS = count(1)  # of the models in this process, for the names of their functions
_SINKS = ("s_aux", "sinks")  # the names under which models pass a score of each head that has no value
_KNOWN = frozenset({"position_ids", "cache_position", "cos", "sin", "position_embeddings", *_SINKS})
"""Tensors that models pass on to the attention function, and that it needs not read, but for the sinks."""


class Mask(NamedTuple):
    """What a model has in place of a mask while its calls are recorded: which keys a query sees."""

    window: int | None  # in tokens, the query's own included; None: all keys before the query
    is_chunk: bool  # a window begins at a multiple of its length


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the attention function in a forward pass."""

    heads: int
    kv_heads: int
    head_dim: int  # the larger one of those of keys and of values, to which the other is padded
    mask: Mask
    has_scores: bool  # whether it has a soft cap or sinks
    source: int  # the call whose keys and values it has: its own number, or that of an earlier call


class Place(NamedTuple):
    """Where the cache keeps the keys and values of a call."""

    group: int  # cache group, which has the block table
    place: int  # index in `KVCache.by_slot`
    head_dim: int
    is_own: bool  # whether the call's keys and values have to be written


@dataclass(slots=True)
class _Step:
    """The inputs that the calls of one forward pass share."""

    slots: tuple[Tensor, ...]  # of each cache group, [T]
    plans: list[AttentionPlan]
    cache: KVCache
    call: int = 0  # the number of the next call


class PagedAttention:
    """The attention function of one model. `name` is its name in transformers; `name_with_masks` is that of the same
    function for a model whose calls are recorded, which gets a `Mask` for every mask that it makes."""

    def __init__(self) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        self.name = f"ember_paged_{next(_NUMBERS)}"
        self.name_with_masks = f"{self.name}_recorded"
        self.places: list[Place] = []
        self.shapes: list[GroupShape] = []
        self.has_scores = False
        self.window_is_chunk = False
        self._step: _Step | None = None
        self._recorded: list[Call] | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []  # keys and values of recorded calls
        own = weakref.ref(self)  # transformers' table of functions lives as long as the process

        def function(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            attention = own()
            assert attention is not None
            return attention(query, key, value, *args, **kwargs), None

        AttentionInterface.register(self.name, function)
        AttentionInterface.register(self.name_with_masks, function)
        AttentionMaskInterface.register(self.name_with_masks, recorded_mask)

    @contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Record the calls of the forward pass in the block. Their outputs are zero. Raises ModelError from within the
        pass where a call is not attention of every token to those before it."""
        self._recorded, self._kept = [], []
        try:
            yield self._recorded
        finally:
            self._recorded, self._kept = None, []

    @contextmanager
    def step(self, batch: Batch, cache: KVCache) -> Iterator[None]:
        """Compute the calls of the forward pass in the block over the cache."""
        dtype = cache.keys.dtype
        plans = plan_attention(
            batch, self.shapes, cache.block_size, dtype, (), None, self.has_scores, self.window_is_chunk
        )
        self._step = step = _Step(batch.slot_mapping.unbind(), plans, cache)
        try:
            yield
        finally:
            self._step = None
        if step.call != len(self.places):
            raise ModelError(f"a pass of the model called attention {step.call} times, not {len(self.places)}")

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """query [1, heads, T, head_dim], key and value [1, kv_heads, T, head_dim] -> [1, T, heads, head_dim]."""
        sinks = next((kwargs[name] for name in _SINKS if kwargs.get(name) is not None), None)
        if self._recorded is not None:
            self._recorded.append(self._call(query, key, value, attention_mask, softcap, sinks, kwargs))
            return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        if attention_mask is not None:
            raise ModelError("the model's attention has a mask of its own, which paged attention has no form for")
        step = self._step
        assert step is not None
        group, place, head_dim, is_own = self.places[step.call]
        step.call += 1
        scale = query.shape[3] ** -0.5 if scaling is None else float(scaling)
        dtype = step.cache.keys.dtype
        queries, new_keys, new_values = (_by_token(each, head_dim, dtype) for each in (query, key, value))
        keys, values = step.cache.by_slot[place]
        if is_own:
            keys.index_copy_(0, step.slots[group], new_keys)
            values.index_copy_(0, step.slots[group], new_values)
        wide = None if sinks is None else sinks.float().flatten()
        mixed = attend(step.plans[group], queries, new_keys, new_values, keys, values, scale, softcap, wide)
        return mixed.view(1, query.shape[2], query.shape[1], head_dim)[..., : value.shape[3]].to(query.dtype)

    def _call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        softcap: float | None,
        sinks: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Call:
        if kwargs.get("is_causal") is False:
            raise ModelError("the model's attention is not causal")
        if mask is not None and not isinstance(mask, Mask):
            raise ModelError("the model's attention has a mask of its own, which paged attention has no form for")
        for name, given in kwargs.items():
            if name not in _KNOWN and isinstance(given, Tensor | Callable):  # type: ignore[arg-type]
                raise ModelError(f"the model's attention has `{name}`, which paged attention has no form for")
        if key.shape[2] != query.shape[2]:
            raise ModelError(f"a token's attention is to {key.shape[2]} keys of a batch of {query.shape[2]} tokens")
        source = len(self._kept)
        for earlier, (keys, values) in enumerate(self._kept):
            if _is_same(keys, key) and _is_same(values, value):
                source = earlier
                break
        self._kept.append((key, value))
        head_dim = max(key.shape[3], value.shape[3])
        has_scores = softcap is not None or sinks is not None
        return Call(query.shape[1], key.shape[1], head_dim, mask or Mask(None, False), has_scores, source)


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def _by_token(x: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """[1, heads, T, size] -> [T, heads, head_dim], padded with zeros."""
    rows = x[0].transpose(0, 1).to(dtype)
    return (F.pad(rows, (0, head_dim - rows.shape[2])) if rows.shape[2] < head_dim else rows).contiguous()


def recorded_mask(*args: Any, mask_function: Callable[..., Any], local_size: int | None = None, **kwargs: Any) -> Mask:
    """transformers' interface of functions that make masks. `mask_function` tells whether a query sees a key. Raises
    ModelError for a mask that is none of those of `Mask`."""

    def sees(query: int, key: int) -> bool:
        return bool(mask_function(*(torch.tensor(index) for index in (0, 0, query, key))))

    size = local_size or 4
    last = 2 * size + size // 2  # in the middle of a chunk
    if sees(last, last) and not sees(last, last + 1):
        if local_size is None and sees(last, 0):
            return Mask(None, False)
        if local_size is not None and sees(last, last - size + 1) and not sees(last, last - size):
            return Mask(size, False)
        if local_size is not None and sees(last, 2 * size) and not sees(last, 2 * size - 1):
            return Mask(size, True)
    raise ModelError("the model's attention has a mask of its own, which paged attention has no form for")
