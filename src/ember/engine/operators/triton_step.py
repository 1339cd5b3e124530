"""The inputs of a step that Triton's operators compute, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ember.engine.description.config import HeadSizes
from ember.engine.operators.base import Step
from ember_kernels.decode_plan import DecodePlan
from ember_kernels.launch import Launches


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
    bounds: Sequence[int] = ()  # the numbers in `starts`, on the host, if each chunk begins its prompt; otherwise empty
    runs: Tensor | None = None  # `state_runs.run_rows` of the chunks, if layers have states


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
