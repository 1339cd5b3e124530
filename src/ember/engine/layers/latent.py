"""Latent attention (MLA, arXiv 2405.04434) as a data class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ember.engine.description.config import LatentConfig
from ember.engine.layers.cache import CacheScales
from ember.engine.layers.linear import Linear
from ember.engine.layers.norm import RMSNorm


@dataclass(slots=True)
class LatentAttention:
    """Softmax attention whose keys and values are products of one compressed vector, the latent, for each token.

    The cache has the latent and one rotated key for all heads. A head's key is its rows of `key_up` times the latent,
    beside the rotated key; its value is its rows of `value_up` times the latent. Attention either expands keys and
    values, or absorbs the matrices: it multiplies queries by `key_up`, compares them with latents, mixes latents, and
    multiplies the result by `value_up`.
    """

    down: Linear  # [query rank, or heads * head_dim, then kv_rank + rotary_dim, hidden]
    query_norm: RMSNorm | None  # of the compressed query
    query_up: Linear | None  # [heads * head_dim, query rank]; None: queries are not compressed
    kv_norm: RMSNorm  # of the latent
    kv_up: Linear  # [heads * (plain_dim + value_dim), kv_rank], plain and in one tensor
    output: Linear  # [hidden, heads * value_dim]
    rope: int  # which rotary positions (`DecoderConfig.ropes`)
    scale: float  # of the products of queries and keys
    heads: int
    sizes: LatentConfig
    group: int  # the cache group of its latents, which has the block table
    place: int  # index of its place in the pages of the group (`KVCache.by_page`)
    cache_scales: CacheScales | None = None  # of its latents if the cache is in float8

    def matrices(self) -> Iterator[Linear]:
        """Its matrices in the order of the forward pass, without `kv_up`, whose rows stay where `key_up` has them."""
        yield self.down
        if self.query_up is not None:
            yield self.query_up
        yield self.output

    @property
    def down_sizes(self) -> tuple[int, int]:
        """The sizes of the parts of `down`'s output: the query, and the latent with the key that is to be rotated."""
        size = self.heads * self.sizes.head_dim if self.sizes.query_rank is None else self.sizes.query_rank
        return size, self.sizes.size

    @property
    def key_up(self) -> Tensor:
        """[heads, plain_dim, kv_rank], a view."""
        return self._up()[:, : self.sizes.plain_dim]

    @property
    def value_up(self) -> Tensor:
        """[heads, value_dim, kv_rank], a view."""
        return self._up()[:, self.sizes.plain_dim :]

    def _up(self) -> Tensor:
        return self.kv_up.rows[0].unflatten(0, (self.heads, -1))


class LatentHeads(NamedTuple):
    """The queries and latents of a step's tokens, normalised and rotated. The latents are in the cache already."""

    query: Tensor  # [T, heads, plain_dim + rotary_dim], or absorbed [T, heads, kv_rank + rotary_dim]
    latent: Tensor | None = None  # [T, kv_rank + rotary_dim]; None: attention reads it in the cache
    absorbed: Tensor | None = None  # the absorbed queries of the first tokens, where `query` has the others alone
