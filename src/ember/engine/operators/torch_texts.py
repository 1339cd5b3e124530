"""Attention and convolution of an encoder in torch operators: each token sees its whole text, or a window around it. No
cache is used.

The texts of a step lie one after the other, without padding. Consecutive texts of equal length are one problem, so a
long text beside short ones costs its own tokens alone, and no mask separates texts. The batch is best sorted by length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.config import Disentangled, DistanceBias
from ember.engine.layers.block import Attention, DistanceTable, PositionHeads, TextConv
from ember.engine.layers.pooler import ACTIVATIONS

WINDOW_QUERIES = 256  # at least so many queries of a text with a window are one problem
_MAX_BIASES = 1 << 24  # elements of the biases of one problem


class EqualTexts(NamedTuple):
    """Consecutive texts of equal length."""

    first: int  # token of the flat batch
    texts: int
    length: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.texts * self.length)


class TextPlan:
    """One step's texts, and what the layers share: masks and distances by length."""

    def __init__(self, starts: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        """`starts`: the first token of each text, and the number of all tokens."""
        self.groups: list[EqualTexts] = []
        first = 0
        for length, texts in groupby(end - start for start, end in pairwise(starts)):
            self.groups.append(EqualTexts(first, len(list(texts)), length))
            first = self.groups[-1].rows.stop
        self.longest = max((group.length for group in self.groups), default=0)
        self.dtype, self.device = dtype, device
        self.starts = starts
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._parts: dict[int, list[tuple[Tensor, int]]] = {}

    @property
    def rows(self) -> Tensor:
        """int64 [tokens]: the rows of the batch."""
        return self.kept(("rows",), lambda: torch.arange(self.starts[-1], device=self.device))

    def parts(self, short: int) -> list[tuple[Tensor, int]]:
        """The texts in one or two parts for kernels: those of up to `short` tokens, and the others, if the texts are
        sorted so. Each part: int32 [texts + 1] first tokens on the device, and the length of the longest text."""
        found = self._parts.get(short)
        if found is None:
            starts = torch.tensor(self.starts, dtype=torch.int32).to(self.device, non_blocking=True)
            lengths = [group.length for group in self.groups]
            middle = sum(length <= short for length in lengths)
            is_sorted = all(length <= short for length in lengths[:middle])
            bounds = sorted({0, middle, len(lengths)} if is_sorted else {0, len(lengths)})
            counts = list(accumulate((group.texts for group in self.groups), initial=0))
            found = self._parts[short] = [
                (starts[counts[first] : counts[last] + 1], max(lengths[first:last])) for first, last in pairwise(bounds)
            ]
        return found

    def kept(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """A tensor that all layers share."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make()
        return found

    def window_mask(self, queries: int, before: int, keys: int, window: int) -> Tensor:
        """[queries, keys] whether each query, of which the first one is at key number `before`, sees a key: those of
        fewer than `window` tokens' distance."""

        def make() -> Tensor:
            positions = torch.arange(before, before + queries, device=self.device)[:, None]
            return (positions - torch.arange(keys, device=self.device)).abs() < window

        return self.kept(("window", queries, before, keys, window), make)

    def distance_biases(self, table: DistanceTable, length: int) -> Tensor:
        """[heads, length, length]"""

        def make() -> Tensor:
            distances = torch.arange(1 - length, length, device=self.device)  # of the key from the query
            biases = table.of_bucket[:, distance_buckets(distances, table.config)]
            return biases.to(self.dtype)[:, self._diagonals(length)]

        return self.kept(("distance", length), make)

    def position_rows(self, config: Disentangled, length: int) -> Tensor:
        """[length, length] int64: the row of the table of relative positions for each query and key."""

        def make() -> Tensor:
            distances = torch.arange(1 - length, length, device=self.device)
            rows = (config.span - position_buckets(distances, config)).clamp(0, 2 * config.span - 1)
            return rows[self._diagonals(length)]

        return self.kept(("position", length), make)

    def _diagonals(self, length: int) -> Tensor:
        """[length, length]: the index of each pair's distance in those from 1 - length to length - 1."""
        positions = torch.arange(length, device=self.device)
        return positions - positions[:, None] + length - 1


def attend_texts(plan: TextPlan, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention of one layer. query [T, heads, head_dim], key and value [T, kv_heads, head_dim]: [T, heads *
    head_dim]."""
    if len(plan.groups) == 1:
        return _attend_equal(plan, attention, plan.groups[0], query, key, value)
    output = query.new_empty(query.shape[0], query.shape[1] * query.shape[2])
    for group in plan.groups:
        rows = group.rows
        output[rows] = _attend_equal(plan, attention, group, query[rows], key[rows], value[rows])
    return output


def _attend_equal(
    plan: TextPlan, attention: Attention, group: EqualTexts, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """The attention of texts of equal length: [texts * length, heads * head_dim]."""
    shape = (group.texts, group.length)
    query, key, value = (x.unflatten(0, shape).transpose(1, 2) for x in (query, key, value))
    window, length = attention.window, group.length
    if window is not None and window < length:
        output = _attend_window(plan, attention, window, query, key, value)
    elif attention.relative is not None:
        output = _attend_relative(plan, attention, attention.relative, query, key, value)
    else:
        biases = None if attention.distances is None else plan.distance_biases(attention.distances, length)
        output = _attend(attention, query, key, value, biases)
    return output.transpose(1, 2).reshape(group.texts * length, -1)


def _attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=attention.scale, enable_gqa=is_grouped
    )


def _attend_window(
    plan: TextPlan, attention: Attention, window: int, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attention to the tokens of fewer than `window` tokens' distance, for some queries at a time."""
    length, outputs = query.shape[2], []
    at_once = max(WINDOW_QUERIES, 2 * window)
    for first in range(0, length, at_once):
        last = min(first + at_once, length)
        least, most = max(0, first - window + 1), min(length, last + window - 1)
        mask = plan.window_mask(last - first, first - least, most - least, window)
        keys, values = key[:, :, least:most], value[:, :, least:most]
        outputs.append(_attend(attention, query[:, :, first:last], keys, values, mask))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _attend_relative(
    plan: TextPlan, attention: Attention, relative: PositionHeads, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Disentangled attention: the products of queries with keys of positions, and of keys with queries of positions,
    are added to the scores."""
    (_, heads, length, _), config = query.shape, relative.config
    assert attention.scale is not None
    rows, outputs = plan.position_rows(config, length), []
    at_once = max(1, _MAX_BIASES // (heads * length * max(length, 2 * config.span)))
    for q, k, v in zip(*(x.split(at_once) for x in (query, key, value)), strict=True):
        biases = torch.zeros(len(q), heads, length, length, dtype=q.dtype, device=q.device)
        index = rows.expand(len(q), heads, length, length)
        if config.content_to_position:
            biases += (q @ relative.key.transpose(1, 2)).gather(3, index)
        if config.position_to_content:
            biases += (k @ relative.query.transpose(1, 2)).gather(3, index.transpose(2, 3)).transpose(2, 3)
        outputs.append(_attend(attention, q, k, v, biases.mul_(attention.scale)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def convolve_texts(plan: TextPlan, conv: TextConv, embedded: Tensor) -> Tensor:
    """[T, hidden] -> [T, hidden]: the activated convolution over the tokens of each text."""
    padding, groups, made = conv.config.kernel // 2, conv.config.groups, torch.empty_like(embedded)
    for texts in plan.groups:
        rows = embedded[texts.rows].unflatten(0, (texts.texts, texts.length)).transpose(1, 2)
        convolved = F.conv1d(rows, conv.weight, conv.bias, padding=padding, groups=groups)
        made[texts.rows] = convolved.transpose(1, 2).flatten(0, 1)
    return ACTIVATIONS[conv.config.activation](made)


def distance_buckets(distances: Tensor, config: DistanceBias) -> Tensor:
    """The bucket of each distance of a key from its query, as in T5 (arXiv 1910.10683)."""
    half = config.buckets // 2
    exact = half // 2
    lengths = distances.abs()
    logarithm = torch.log(lengths.clamp(min=1).float() / exact) / math.log(config.max_distance / exact)
    large = (exact + (logarithm * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(lengths < exact, lengths, large) + half * (distances > 0)


def position_buckets(distances: Tensor, config: Disentangled) -> Tensor:
    """Distances that are exact up to half of the buckets, and logarithmic beyond it (DeBERTa v2)."""
    if not config.buckets:
        return distances
    middle = config.buckets // 2
    lengths = torch.where(distances.abs() < middle, middle - 1, distances.abs()).float()
    steps = torch.ceil(torch.log(lengths / middle) / math.log((config.max_distance - 1) / middle) * (middle - 1))
    return torch.where(lengths <= middle, distances, (steps + middle).long() * distances.sign())
