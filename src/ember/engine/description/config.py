"""A model as data: a decoder, or an encoder, which is bidirectional. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from ember.engine.description.features import features_of
from ember.engine.description.mixers import ConvConfig, DeltaConfig, SelectiveConfig, SsdConfig, StateShape
from ember.engine.description.pooling import ClassifierHead, DenseConfig, PoolingConfig
from ember.engine.description.rope_config import RopeConfig
from ember.engine.description.weight_names import WeightNames

Norm = Literal["rms", "layer"]
Activation = Literal["silu", "relu", "relu2", "gelu", "gelu_tanh", "xielu"]
QkNorm = Literal["head", "all", "layer", "layer_bias", "plain"]
Wiring = Literal["pre_norm", "post_norm", "output_norm", "normed_residual", "sandwich", "parallel", "alone"]
MAX_POSITIONS = 2**31 - 1
Scores = Literal["softmax", "sigmoid", "sparsemixer"]
Mixer = Literal["attention", "latent", "delta", "ssd", "selective", "conv", "none"]


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """Experts in place of the MLP (mixture of experts, arXiv 1701.06538): a router chooses some for every token."""

    count: int
    count_field: str  # the name of `count` in config.json
    intermediate_size: int  # of each expert
    intermediate_field: str  # the name of `intermediate_size` in config.json
    per_token: int = 1  # experts of a token
    layers: tuple[bool, ...] = ()  # whether each layer has experts; (): all layers
    scores: Scores = "softmax"  # how the router's logits become scores; sparsemixer: arXiv 2409.12136
    normalised: bool = True  # whether the scores of the chosen experts are divided by their sum
    norm_min: float = 1e-20  # the least sum that they are divided by
    scale: float = 1.0  # of the scores, after that
    scales_input: bool = False  # whether the scores are factors of the experts' inputs, not of their outputs
    router_bias: bool = False
    wide_router: bool = False  # whether the router computes in float32
    correction: bool = False  # whether a bias is added to the scores for the choice alone (arXiv 2408.15664)
    groups: int = 1  # consecutive experts form groups, of which the best `groups_per_token` are chosen first
    groups_per_token: int = 1
    best_of_group: int = 2  # a group's score is the sum of that many best scores
    jitter_eps: float = 0.0  # of sparsemixer: how far below the largest logit a logit counts
    shared_size: int = 0  # intermediate size of an MLP that computes every token; 0: there is none
    shared_field: str = ""  # what `shared_size` is in config.json
    shared_router: bool = False  # whether its output is weighted with the sigmoid of a product
    latent_size: int | None = None  # width of the experts' inputs and outputs, which are projected; None: hidden_size
    biases: bool | None = None  # of the experts' matrices; None: if MLPs have them
    beside_mlp: bool = False  # whether a layer has an MLP too: norm(mlp(norm(x))) + norm(experts(norm(x)))
    router_norm: bool = False  # whether the router normalises its input, which is that of the experts before their norm
    expert_scales: bool = False  # whether each expert's output has a factor

    def in_layer(self, layer: int) -> bool:
        """Whether a layer has experts. The other layers have an MLP."""
        return not self.layers or self.layers[layer]


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """The sizes of latent attention (MLA, arXiv 2405.04434)."""

    kv_rank: int  # of the compressed vector of keys and values, the latent
    rotary_dim: int  # of a head's query and of the one rotated key of all heads
    plain_dim: int  # of a head's query and key without rotation
    value_dim: int  # of a head's value
    query_rank: int | None  # of the compressed query; None: queries are not compressed
    norm_eps: float = 1e-6  # of the norms of compressed vectors, whatever `DecoderConfig.norm_eps` is

    @property
    def size(self) -> int:
        """The elements of a token in the cache: the latent and the rotated key."""
        return self.kv_rank + self.rotary_dim

    @property
    def head_dim(self) -> int:
        """The size of a head's query and of its expanded key."""
        return self.plain_dim + self.rotary_dim


@dataclass(frozen=True, slots=True)
class DistanceBias:
    """A learned number for each head and bucket of distances between two tokens, added to their score (as in T5, arXiv
    1910.10683). Half of the buckets are for keys after the query. Buckets are exact up to half of their number, and
    logarithmic up to `max_distance`."""

    buckets: int
    max_distance: int = 128


@dataclass(frozen=True, slots=True)
class Disentangled:
    """Attention between contents and relative positions (DeBERTa, arXiv 2006.03654). The vectors of positions have a
    norm, and the keys and queries of each layer are made of them by the layer's own matrices."""

    span: int  # of distances in each direction; the table has twice as many rows
    buckets: int  # logarithmic beyond half of it; 0: distances are clamped
    max_distance: int
    content_to_position: bool = True
    position_to_content: bool = True
    norm: bool = True  # of the table's rows


@dataclass(frozen=True, slots=True)
class TextConvolution:
    """A convolution of the embeddings over the tokens of each text. After the first layer, whose output is x, comes
    norm(x + activation(convolution)) (DeBERTa)."""

    kernel: int
    activation: str  # of `pooling.DENSE_ACTIVATIONS`
    groups: int = 1


class HeadSizes(NamedTuple):
    """The numbers of a layer's heads, and their size."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only model as data.

    A field is a feature unless `features.DATA` names it: if it differs from its default, the model computes another
    equation, and an operator set must declare it (`description.operator_sets`).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int  # the longest context in tokens, with rope scaling
    names: WeightNames
    bidirectional: bool = False  # tokens see the whole text, not those before them alone; nothing is cached
    has_head: bool = True  # whether it has logits
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    norm_affine: bool = True
    norm_offset: float = 0.0  # added to the stored weights of norms when they are loaded; those of RMSNorm are float32
    wiring: Wiring = "pre_norm"  # how the residual, the norms and the parts of a block are connected
    residual_scale: float = 1.0  # of the outputs of attention and MLP, before they are added to the residual
    # The layers in the order in which they are computed, where some are computed several times; empty: each one once.
    layer_order: tuple[int, ...] = ()
    first_norm: bool = True  # whether the first layer's attention has a norm, beside that of the embeddings
    final_norm: bool = True
    logits_scale: float = 1.0  # factor of the logits
    logits_soft_cap: float | None = None  # scaled logits become cap * tanh(logits / cap)
    activation: Activation = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    qkv_clip: float | None = None  # largest magnitude of queries, keys and values, before their norms
    clips_after_norm: bool = False  # after their norms instead
    output_bias: bool = False
    mlp_bias: bool = False
    up_bias: bool | None = None  # of the MLP's first matrix; None: as `mlp_bias` says
    # Norms of queries and keys. head: RMSNorm of each head, with the same weights for all. all: RMSNorm of all query
    # heads together, and of all key heads. layer: LayerNorm of each head, with weights of its own. layer_bias:
    # LayerNorm of each head, with the same weights and biases for all. plain: RMSNorm of each head without weights.
    qk_norm: QkNorm | None = None
    qk_norm_layers: tuple[bool, ...] = ()  # whether each layer has these norms; empty: all have them
    rope_before_norm: bool = False  # heads are rotated, then normalised
    rope: RopeConfig | None = None
    local_rope: RopeConfig | None = None  # of the layers with the window, if not `rope`
    rope_layers: tuple[bool, ...] = ()  # whether each layer has the rotary positions; empty: all have them
    # Layers without rotary positions scale queries by 1 + nope_beta * ln(1 + (position + 1) // nope_length).
    nope_beta: float = 0.0
    nope_length: int = 1
    position_offset: int | None = None  # set for learned positions: the number of unused rows at the table's start
    embed_scale: float = 1.0  # factor of the token embeddings, rounded to the model's dtype
    embed_norm: bool = False  # norm of the embeddings
    embed_dim: int | None = None  # width of the token embedding if it is projected to and from hidden_size
    projects_sum: bool = False  # the normalised sum of all embeddings is projected, with a bias
    token_types: int = 0  # rows of the table of token types, whose rows are added to the embeddings; 0: there is none
    distance_bias: DistanceBias | None = None
    disentangled: Disentangled | None = None
    text_conv: TextConvolution | None = None
    # Outputs of attention are multiplied by the sigmoid of a projection, whose rows follow the query of each head.
    attention_gate: bool = False
    head_gate: bool = False  # the output of each head is multiplied by the sigmoid of a number, which is a projection
    attention_scale: float | None = None  # factor of the products of queries and keys, in place of head_dim ** -0.5
    divides_scale_by_layer: bool = False  # by the layer's number, counted from 1
    attention_soft_cap: float | None = None  # scaled products become cap * tanh(products / cap)
    attention_sinks: bool = False  # each head has a number that takes part in the softmax, and has no value
    # In tokens including the query's own; of a bidirectional model as many in the other direction too.
    sliding_window: int | None = None
    window_is_chunk: bool = False  # a token sees its own chunk, of that many tokens from a multiple of it on
    first_window_layer: int = 0  # the first layer with the window
    windowed_layers: tuple[bool, ...] = ()  # whether each layer has the window, in place of `first_window_layer`
    layer_head_dims: tuple[int, ...] = ()  # the head size of each layer, in place of `head_dim`
    layer_kv_heads: tuple[int, ...] = ()  # the number of key-value heads of each layer, in place of `num_kv_heads`
    # How each layer mixes tokens; empty: all by attention. latent: attention over compressed keys and values (arXiv
    # 2405.04434). With a state of fixed size: delta, the gated delta rule (arXiv 2412.06464); ssd, Mamba 2 (arXiv
    # 2405.21060); selective, Mamba 1 (arXiv 2312.00752); conv, a short convolution. none: a layer of the wiring alone
    # that has an MLP or experts.
    layer_mixers: tuple[Mixer, ...] = ()
    latent: LatentConfig | None = None  # of layers with latent attention: one key-value head of the size `latent.size`
    delta: DeltaConfig | None = None
    conv: ConvConfig | None = None
    ssd: SsdConfig | None = None
    selective: SelectiveConfig | None = None
    ssd_beside_attention: bool = False  # every layer has attention and Mamba 2, whose outputs are added
    attention_input_scale: float = 1.0  # of the hidden states before attention
    attention_output_scale: float = 1.0
    gate_scale: float = 1.0  # of an MLP's gate before the activation
    mlp_output_scale: float = 1.0
    layer_intermediate_sizes: tuple[int, ...] = ()  # of each layer's MLP, in place of `intermediate_size`
    value_norm: bool = False  # RMSNorm without weights of each head of the values
    key_value_layers: tuple[bool, ...] = ()  # whether each layer's values are its keys before norm and rotation
    shared_kv_layers: int = 0  # the last layers, which read the K and V of the last layer of their kind before them
    alibi: tuple[float, ...] = ()  # each head's slope of ALiBi (arXiv 2108.12409), which biases scores by distance
    # Each layer gets a vector of this size for every token: its row of a table plus a projection of its embedding. The
    # layer adds norm(W (act(V x) * vector)) to its output x. 0: there is none.
    layer_input_size: int = 0
    layer_input_vocab_size: int = 0  # rows of the table
    layer_scalar: bool = False  # each layer's output is multiplied by a number
    tie_word_embeddings: bool = False
    head_bias: bool = False  # of the logits
    normalised_head: bool = False  # each row of the head is divided by its length when it is loaded
    swiglu_limit: float | None = None  # clamps gate and up in silu's place: `layers.mlp.MLP`
    swiglu_alpha: float = 1.702  # factor in the sigmoid of that
    num_extra_layers: int = 0  # of the checkpoint, after the decoder's, that predict further tokens; they are not used
    experts: ExpertsConfig | None = None
    intermediate_field: str = "intermediate_size"  # the name of `intermediate_size` in config.json
    quantization: Mapping[str, Any] | None = None  # `quantization_config`, unchanged
    dtype: str = "float32"  # of the checkpoint, from its config.json
    eos_token_ids: list[int] = field(default_factory=list)
    warnings: tuple[str, ...] = ()  # about config.json, for the log
    is_shell: bool = False  # the language model of a multimodal checkpoint (`description.shells`)
    text_architecture: str = ""  # the class of the language model; of a shell it is not `architecture`
    through_transformers: bool = False  # transformers computes it (`description.foreign`)
    classifier_head: ClassifierHead | None = None  # of an encoder
    mask_head: tuple[DenseConfig, ...] = ()  # the layers of an encoder that tell masked tokens
    pooling: PoolingConfig | None = None  # of a model that makes vectors or classes; None: it generates

    def heads(self, layer: int) -> HeadSizes:
        """The sizes of a layer's heads."""
        return HeadSizes(
            self.num_heads,
            self.layer_kv_heads[layer] if self.layer_kv_heads else self.num_kv_heads,
            self.layer_head_dims[layer] if self.layer_head_dims else self.head_dim,
        )

    def all_heads(self) -> set[HeadSizes]:
        """The sizes of heads that the layers have. Those of latent attention have one key-value head."""
        if not (self.layer_kv_heads or self.layer_head_dims):
            return {self.heads(0)}
        return {self.heads(layer) for layer in range(self.num_layers)}

    def mixer(self, layer: int) -> Mixer:
        """How a layer mixes tokens."""
        return self.layer_mixers[layer] if self.layer_mixers else "attention"

    def state(self, layer: int) -> StateShape | None:
        """The state of a sequence in a layer; None: the layer has none."""
        mixer = self.mixer(layer)
        if self.ssd_beside_attention:
            mixer = "ssd"
        if mixer == "delta" and self.delta is not None:
            return self.delta.state
        if mixer == "ssd" and self.ssd is not None:
            return self.ssd.state
        if mixer == "selective" and self.selective is not None:
            return self.selective.state
        return self.conv.state(self.hidden_size) if mixer == "conv" and self.conv is not None else None

    def has_own_kv(self, layer: int) -> bool:
        """Whether a layer of attention computes keys and values. The other ones read those of `kv_source`."""
        return layer < self.num_layers - self.shared_kv_layers

    def kv_sources(self) -> tuple[int, ...]:
        """The layer of which each layer reads keys and values: itself, or the last one of its kind that has its own."""
        windows, own = self.has_window(), self.num_layers - self.shared_kv_layers
        last = {has_window: layer for layer, has_window in enumerate(windows[:own])}
        return (*range(own), *(last[has_window] for has_window in windows[own:]))

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.experts is not None and self.experts.in_layer(layer)

    def has_mlp(self, layer: int) -> bool:
        """Whether a layer has an MLP: in place of experts, or beside them."""
        if self.wiring == "alone" and self.mixer(layer) != "none":
            return False
        return self.experts is None or self.experts.beside_mlp or not self.experts.in_layer(layer)

    def mlp_size(self, layer: int) -> int:
        """The intermediate size of a layer's MLP."""
        return self.layer_intermediate_sizes[layer] if self.layer_intermediate_sizes else self.intermediate_size

    def values_are_keys(self, layer: int) -> bool:
        """Whether a layer's values are its keys before norm and rotation."""
        return bool(self.key_value_layers) and self.key_value_layers[layer]

    def qk_norm_of(self, layer: int) -> QkNorm | None:
        """The norms of a layer's queries and keys."""
        return None if self.qk_norm_layers and not self.qk_norm_layers[layer] else self.qk_norm

    def attention_scale_of(self, layer: int) -> float | None:
        """The factor of a layer's products of queries and keys; None: head_dim ** -0.5."""
        if not self.divides_scale_by_layer:
            return self.attention_scale
        return (self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale) / (layer + 1)

    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer. None: full attention, also for a window of the longest context's length."""
        window = self.sliding_window
        if window is not None and window >= self.max_position_embeddings:
            window = None
        return tuple(window if has_window else None for has_window in self.has_window())

    def ropes(self) -> tuple[RopeConfig, ...]:
        """The rotary positions of the model's layers: `rope`, and `local_rope` if there is one."""
        return tuple(rope for rope in (self.rope, self.local_rope) if rope is not None)

    def rope_index(self, layer: int) -> int | None:
        """The rotary positions of a layer, as an index of `ropes`; None: the layer has none."""
        if self.rope is None or (self.rope_layers and not self.rope_layers[layer]):
            return None
        return 1 if self.local_rope is not None and self.has_window()[layer] else 0

    def served_up_to(self, max_model_len: int | None) -> DecoderConfig:
        """The configuration where sequences have at most `max_model_len` tokens, on which some kinds of rotary
        positions depend; None: as long as the model allows."""
        config, rope = self, self.rope
        if rope is None or max_model_len is None or not rope.served_length:
            return self
        if rope.kind == "dynamic":
            longest = int(rope.original_max_position_embeddings * rope.factor)
            if rope.original_max_position_embeddings < max_model_len:
                config = replace(config, max_position_embeddings=min(longest, MAX_POSITIONS))
            max_model_len = min(max_model_len, config.max_position_embeddings)
        return replace(config, rope=replace(rope, served_length=max_model_len))

    def has_window(self) -> tuple[bool, ...]:
        """Whether each layer is one of those with the window, however long it is."""
        layers = range(self.num_layers)
        return self.windowed_layers or tuple(layer >= self.first_window_layer for layer in layers)

    def features(self) -> dict[str, Any]:
        """The values of all features by name: `norm_bias` for a flag or a number, `norm=layer` for a choice,
        `norm_affine=False` for a flag that is on by default, `rope.kind=yarn` for a field of a part."""
        return dict(features_of(self, ""))
