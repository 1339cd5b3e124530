"""The inputs of a step that Triton's operators compute, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import eq
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ember.engine.description.config import HeadSizes
from ember.engine.operators.base import Step
from ember_kernels.decode_plan import DecodePlan
from ember_kernels.launch import Launches

if TYPE_CHECKING:
    from ember_kernels.latent_pieces import Piece

MAX_REUSED_TOKENS = 1024  # of a step whose layers share memory for their outputs


@dataclass(frozen=True, slots=True)
class Decodes:
    """The sequences with one query each. Length 0 is padding."""

    block_tables: Sequence[Tensor]  # of each cache group, [S, max_blocks] int32; none is read before a window
    context_lens: Tensor  # [S] int32
    plans: dict[int, DecodePlan] = field(default_factory=dict)  # of each cache group, when its first layer has made it
    states: Tensor | None = None  # [2, S] int32: slots of states to read and to write, if layers have states


@dataclass(frozen=True, slots=True)
class Chunks:
    """The other sequences: chunks of prompts. A chunk without tokens is padding."""

    block_tables: Sequence[Tensor]  # as those of decodes
    starts: Tensor  # [S + 1] int32, first token of each, and the end of the last
    context_lens: Tensor  # [S] int32
    max_queries: int
    # The numbers in `starts` and `context_lens`, if the host knows them; otherwise, as in recorded steps, empty.
    bounds: Sequence[int] = ()
    lens: Sequence[int] = ()
    runs: Tensor | None = None  # `state_runs.run_rows` of the chunks, if layers have states

    @property
    def fresh(self) -> Sequence[int]:
        """`bounds`, if each chunk is known to begin its prompt; otherwise empty."""
        counts = (stop - start for start, stop in pairwise(self.bounds))
        return self.bounds if self.lens and all(map(eq, counts, self.lens)) else ()


class HeadMemory(NamedTuple):
    """Memory for queries and for attention's outputs. If it is shared, a layer reads it before the next one writes
    it."""

    query: Tensor  # [T, heads, head_dim]
    mixed: Tensor  # [T, heads, head_dim]
    flat: Tensor  # the same as [T, heads * head_dim]
    is_shared: bool


class LatentMemory(NamedTuple):
    """Memory for the absorbed queries of latent attention and for its mixed latents, shared as in `HeadMemory`."""

    query: Tensor  # [T, heads, kv_rank + rotary_dim]
    plain: Tensor  # its first part, which is not rotated: [heads, T, kv_rank]
    turned: Tensor  # its second part: [T, heads, rotary_dim]
    mixed: Tensor  # [T, heads, kv_rank]
    is_shared: bool


@dataclass(slots=True, kw_only=True)
class TritonStep(Step):
    """A step whose inputs are on the device; nothing looks at their values. The tokens of decodes come first, in the
    order of the sequences. Those of chunks may begin before the padding of the decodes ends. A token with a negative
    slot is padding, which is not written to the cache."""

    decodes: Decodes | None
    chunks: Chunks | None
    launches: Launches = field(default_factory=Launches)  # of its first layers, which the others repeat
    heads: dict[HeadSizes, HeadMemory] = field(default_factory=dict)
    latents: LatentMemory | None = None
    expansions: dict[int, Expansion | None] = field(default_factory=dict)  # of each cache group with latents


@dataclass(slots=True)
class Expansion:
    """How a step's tokens are divided."""

    absorbed: TritonStep | None  # decodes and short chunks, which are the first tokens
    first_token: int  # of the expanded chunks
    tables: Tensor  # [S, max_blocks] int32, their block tables
    pieces: list[Piece]
    query_scales: dict[int, Tensor] = field(default_factory=dict)  # by rotary positions, for all layers
