"""The parts of a model as data classes: its blocks, its embedding and its head.

The layer loop (`models.decoder`) has the order in which the parts are computed, an operator set their computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ember.engine.description.config import Disentangled, DistanceBias, HeadSizes, TextConvolution
from ember.engine.layers.cache import CacheScales
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.experts import Experts
from ember.engine.layers.joined import parts_of
from ember.engine.layers.latent import LatentAttention
from ember.engine.layers.layer_inputs import LayerInput, LayerInputs
from ember.engine.layers.linear import Linear
from ember.engine.layers.mixers import Ssd, StateMixer
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import Norm, QkNorm, RMSNorm


@dataclass(slots=True)
class DistanceTable:
    """A number for each head and each distance of a key from its query, added to their score."""

    of_bucket: Tensor  # [heads, buckets]
    config: DistanceBias


@dataclass(slots=True)
class PositionHeads:
    """The keys and queries that a layer makes of the vectors of relative positions (`description.config`)."""

    query: Tensor  # [heads, 2 * span, head_dim]
    key: Tensor
    config: Disentangled


@dataclass(slots=True)
class Attention:
    """Softmax attention: over the paged KV cache, or of an encoder over the tokens of the same text."""

    qkv: Linear  # [(heads + 2 * kv_heads) * head_dim, hidden]
    qk_norm: QkNorm | None  # weight [heads + kv_heads, head_dim]: of each query head, then of each key head
    # The sigmoid of its output is a factor of attention's: [heads * head_dim, hidden], or [heads, hidden], one for each
    # head. None: there is none.
    gate: Linear | None
    output: Linear  # [hidden, heads * head_dim]
    rope: int | None  # which rotary positions queries and keys have (`DecoderConfig.ropes`); None: none
    sinks: Tensor | None  # [heads] float32: a score of each head beside those of the keys, without a value; None: none
    scale: float | None  # of the products of queries and keys; None: head_dim ** -0.5
    soft_cap: float | None  # scaled products become cap * tanh(products / cap)
    window: int | None  # the sliding window in tokens, the query's own included; None: the whole context
    window_is_chunk: bool  # the window begins at a multiple of its length, not that many tokens before
    group: int  # the cache group of its K and V, which has the block table
    place: int  # index of its place in the pages of the group (`KVCache.by_page`)
    sizes: HeadSizes
    value_norm: RMSNorm | None  # of each head of the values, without weights
    values_are_keys: bool  # `qkv` has no values: they are the keys before norm and rotation
    has_own_kv: bool  # otherwise `qkv` has queries alone, and K and V are those of an earlier layer
    input_scale: float = 1.0
    output_scale: float = 1.0
    cache_scales: CacheScales | None = None  # of its K and V if the cache is in float8
    distances: DistanceTable | None = None  # the same object in all layers
    relative: PositionHeads | None = None

    def matrices(self) -> Iterator[Linear]:
        """Its matrices, in the order of the forward pass."""
        yield self.qkv
        if self.gate is not None:
            yield self.gate
        yield self.output


Mixer = Attention | LatentAttention | StateMixer
"""What mixes the tokens of a block. `models.decoder.MIXERS` has the function that computes each kind."""


@dataclass(slots=True)
class BesideExperts:
    """Experts beside a block's MLP: norm(mlp(...)) + norm(experts(norm(x))), where the router sees x."""

    experts: Experts
    mlp_output_norm: Norm
    input_norm: Norm
    output_norm: Norm


@dataclass(slots=True)
class Block:
    """One decoder layer."""

    attention_norm: Norm  # of a block that `enters_normed`: that of the embeddings, which was applied to its input
    mixer: Mixer | None  # None: the block has an MLP alone
    mlp_norm: Norm  # the same object as `attention_norm` where a block has one norm
    mlp: MLP | Experts | None  # None: the block has a mixer alone
    attention_output_norm: Norm | None = None  # of the wiring sandwich
    mlp_output_norm: Norm | None = None
    residual_scale: float = 1.0  # of the outputs of attention and MLP
    beside: BesideExperts | None = None
    layer_input: LayerInput | None = None
    scalar: Tensor | None = None  # [1], factor of the block's output
    ssd: Ssd | None = None  # beside attention, to whose output its own is added
    enters_normed: bool = False  # its attention has no norm, since its input is normalised already

    @property
    def attention(self) -> Attention:
        """The mixer of a block with attention."""
        assert isinstance(self.mixer, Attention)
        return self.mixer

    def matrices(self) -> Iterator[Linear]:
        """The matrices of the block's matrix products, without those of routers."""
        if self.mixer is not None:
            yield from self.mixer.matrices()
        if self.ssd is not None:
            yield from self.ssd.matrices()
        for mlp in self.mlps():
            yield from (mlp.up, mlp.down)
        experts = self.experts
        if experts is not None and experts.latent_down is not None and experts.latent_up is not None:
            yield from (experts.latent_down, experts.latent_up)

    def mlps(self) -> Iterator[MLP]:
        """The block's MLP, its experts and the MLP that computes every token, and that of its input."""
        if isinstance(self.mlp, MLP):
            yield self.mlp
        experts = self.experts
        if experts is not None:
            yield from experts.each
            if experts.shared is not None:
                yield experts.shared
        if self.layer_input is not None:
            yield self.layer_input.mlp

    @property
    def experts(self) -> Experts | None:
        """The block's experts, in place of an MLP or beside it."""
        if self.beside is not None:
            return self.beside.experts
        return self.mlp if isinstance(self.mlp, Experts) else None


@dataclass(slots=True)
class TextConv:
    """The convolution of the embeddings over the tokens of each text, and the norm after it."""

    weight: Tensor  # [hidden, hidden / groups, kernel]
    bias: Tensor  # [hidden]
    norm: Norm
    config: TextConvolution


@dataclass(slots=True)
class DecoderParts:
    """All weights of a decoder, from token ids to logits."""

    embedding: Embedding
    blocks: list[Block]
    final_norm: Norm | None
    project_out: Linear | None  # [embed_dim, hidden]
    head: Linear  # [vocab_size, hidden or embed_dim]; of a model without logits the embedding, which nothing multiplies
    layer_inputs: LayerInputs | None = None
    has_head: bool = True
    layer_order: tuple[int, ...] = ()  # the blocks in the order in which they are computed
    text_conv: TextConv | None = None

    def groups(self) -> list[Attention | LatentAttention]:
        """A layer's attention of each cache group. All layers of a group have the same window and heads."""
        mixers = (block.mixer for block in self.blocks)
        found = {mixer.group: mixer for mixer in mixers if isinstance(mixer, Attention | LatentAttention)}
        return [found[group] for group in range(len(found))]

    def matrices(self) -> Iterator[Linear]:
        """The matrices of the decoder's matrix products, without those of routers."""
        for block in self.blocks:
            yield from block.matrices()
        yield from self.others()
        if self.has_head:
            yield self.head

    def others(self) -> Iterator[Linear]:
        """The matrices that are neither in a block nor the head."""
        inputs = None if self.layer_inputs is None else self.layer_inputs.projection
        yield from (weight for weight in (self.embedding.project, inputs, self.project_out) if weight is not None)

    def layouts(self) -> set[type[Linear]]:
        """The layouts of the matrices, those of the parts where several layers are joined."""
        return {type(part) for linear in self.matrices() for part in parts_of(linear)}

    def layout_names(self) -> frozenset[str]:
        """The layouts of all matrices, by the names that operator sets declare."""
        return frozenset(part.layout for linear in self.matrices() for part in parts_of(linear))
