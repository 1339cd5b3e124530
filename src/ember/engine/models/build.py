"""Construction of a model's parts from its named weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

import torch
from torch import Tensor

from ember.engine.description.cache_groups import cache_groups, cache_places, state_places
from ember.engine.description.config import DecoderConfig, Disentangled
from ember.engine.description.mlp_weights import BESIDE_NORMS, XIELU_WEIGHTS
from ember.engine.layers.block import (
    Attention,
    BesideExperts,
    Block,
    DecoderParts,
    DistanceTable,
    PositionHeads,
    TextConv,
)
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.experts import Experts
from ember.engine.layers.layer_inputs import LayerInput, LayerInputs
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP, Xielu
from ember.engine.layers.norm import Norm, RMSNorm, unit_rows
from ember.engine.layers.restored import RestoredLinear
from ember.engine.models.build_mixers import build_mixer, build_ssd
from ember.engine.models.weights import Weights, pop_linear, pop_norm, pop_tensor


def build_parts(config: DecoderConfig, weights: Weights) -> DecoderParts:
    """The decoder's parts, made of `weights` by the names of `description.weight_specs.weight_specs`.

    The dict is emptied, so that a part is freed when it is replaced later. Raises AssertionError if no part uses a
    weight: the model would not compute what its configuration says.
    """
    tokens = weights.pop("embed_tokens")
    embedding = Embedding(
        tokens,
        pop_tensor(weights, "embed_positions") if config.position_offset is not None else None,
        config.position_offset or 0,
        pop_linear(weights, "project_in") if config.embed_dim else None,
        torch.tensor(config.embed_scale, dtype=tokens.dtype).item(),
        _embed_norm(config, weights) if config.embed_norm else None,
        pop_tensor(weights, "embed_token_types") if config.token_types else None,
        config.projects_sum,
    )
    relative = _relative_positions(config, weights)
    text_conv = _text_conv(config, weights)
    groups = cache_groups(config, tokens.dtype.itemsize)
    windows, pages, states = config.windows(), cache_places(config, groups), state_places(groups)
    if config.bidirectional:
        pages = dict.fromkeys(range(config.num_layers), (0, 0))  # nothing is cached
    parts = DecoderParts(
        embedding=embedding,
        blocks=[
            _block(config, weights, tokens, layer, windows[layer], pages, states) for layer in range(config.num_layers)
        ],
        final_norm=pop_norm(config, weights, "final_norm") if config.final_norm else None,
        project_out=pop_linear(weights, "project_out") if config.embed_dim and config.has_head else None,
        head=_head(config, weights, tokens),
        has_head=config.has_head,
        layer_inputs=_layer_inputs(config, weights, tokens.dtype) if config.layer_input_size else None,
        layer_order=config.layer_order or tuple(range(config.num_layers)),
        text_conv=text_conv,
    )
    assert not weights, f"no part of the model uses {', '.join(weights)}"
    if not config.first_norm:
        assert embedding.norm is not None, "a family without the first norm normalises its embeddings"
        parts.blocks[0].attention_norm, parts.blocks[0].enters_normed = embedding.norm, True
    for block in parts.blocks:
        if isinstance(relative, DistanceTable):
            block.attention.distances = relative
        elif relative is not None and config.disentangled is not None:
            block.attention.relative = _position_heads(block.attention, relative, config.disentangled)
    return parts


def _embed_norm(config: DecoderConfig, weights: Weights) -> Norm:
    return pop_norm(config, weights, "embed_norm", config.embed_dim if config.projects_sum else None)


def _relative_positions(config: DecoderConfig, weights: Weights) -> DistanceTable | Tensor | None:
    """What all layers know of relative positions: biases by distance, or the normalised vectors of positions."""
    if config.distance_bias is not None:
        return DistanceTable(pop_tensor(weights, "distance_bias").t().contiguous(), config.distance_bias)
    if config.disentangled is None:
        return None
    vectors = pop_tensor(weights, "position_vectors")
    return pop_norm(config, weights, "position_norm")(vectors) if config.disentangled.norm else vectors


def _text_conv(config: DecoderConfig, weights: Weights) -> TextConv | None:
    if config.text_conv is None:
        return None
    weight, bias = (pop_tensor(weights, f"text_conv.{part}") for part in ("weight", "bias"))
    return TextConv(weight, bias, pop_norm(config, weights, "text_conv.norm"), config.text_conv)


def _position_heads(attention: Attention, vectors: Tensor, config: Disentangled) -> PositionHeads:
    """The heads of the vectors of positions, by the layer's own matrices."""
    heads, _, size = attention.sizes
    made = attention.qkv(vectors).unflatten(1, (-1, heads, size)).permute(1, 2, 0, 3)  # [3, heads, rows, size]
    return PositionHeads(made[0].contiguous(), made[1].contiguous(), config)


def _block(
    config: DecoderConfig,
    weights: Weights,
    tokens: Tensor | Linear,
    layer: int,
    window: int | None,
    pages: Mapping[int, tuple[int, int]],
    states: Mapping[int, tuple[int, int]],
) -> Block:
    """A block. `pages` and `states`: of each layer the cache group, and its place there."""
    prefix = f"layers.{layer}."
    attention_norm = pop_norm(config, weights, f"{prefix}attention_norm") if layer or config.first_norm else None
    mlp_norm = _optional_norm(config, weights, prefix, "mlp_norm") or attention_norm
    assert mlp_norm is not None, "a block has a norm"
    return Block(
        attention_norm=attention_norm or mlp_norm,
        mixer=build_mixer(config, weights, tokens, layer, window, {**states, **pages}),
        attention_output_norm=_optional_norm(config, weights, prefix, "attention_output_norm"),
        mlp_norm=mlp_norm,
        mlp_output_norm=_optional_norm(config, weights, prefix, "mlp_output_norm"),
        mlp=_mlp_or_experts(config, weights, layer),
        residual_scale=config.residual_scale,
        beside=_beside(config, weights, prefix) if config.has_mlp(layer) and config.has_experts(layer) else None,
        layer_input=_layer_input(config, weights, layer) if config.layer_input_size else None,
        scalar=pop_tensor(weights, f"{prefix}scalar") if config.layer_scalar else None,
        ssd=build_ssd(config, weights, f"{prefix}ssd.", states[layer]) if config.ssd_beside_attention else None,
    )


def _mlp_or_experts(config: DecoderConfig, weights: Weights, layer: int) -> MLP | Experts | None:
    prefix = f"layers.{layer}."
    if config.has_mlp(layer):
        return _mlp(config, weights, prefix)
    return _experts(config, weights, prefix) if config.has_experts(layer) else None


def _head(config: DecoderConfig, weights: Weights, tokens: Tensor | Linear) -> Linear:
    if not config.tie_word_embeddings:
        head = pop_linear(weights, "lm_head")
        return Linear(unit_rows(head.weight), bias=head.bias) if config.normalised_head else head
    bias = pop_tensor(weights, "lm_head.bias") if config.head_bias else None
    if isinstance(tokens, Tensor):
        return Linear(tokens, bias=bias)
    if bias is None:
        return tokens
    head = copy(tokens)
    head.bias = bias
    return head


def _mlp(config: DecoderConfig, weights: Weights, prefix: str) -> MLP:
    up, down = pop_linear(weights, f"{prefix}up"), pop_linear(weights, f"{prefix}down")
    xielu = _xielu(weights, prefix) if config.activation == "xielu" else None
    limits, scales = (config.swiglu_limit, config.swiglu_alpha), (config.gate_scale, config.mlp_output_scale)
    return MLP(up, down, config.activation, config.gated_mlp, xielu, *limits, *scales)


def _layer_inputs(config: DecoderConfig, weights: Weights, dtype: torch.dtype) -> LayerInputs:
    size = config.layer_input_size
    return LayerInputs(
        table=weights.pop("layer_table"),
        scale=torch.tensor(size**0.5, dtype=dtype).item(),
        projection=pop_linear(weights, "layer_projection"),
        projection_scale=config.hidden_size**-0.5,
        norm=pop_norm(config, weights, "layer_projection_norm", size),
        size=size,
    )


def _layer_input(config: DecoderConfig, weights: Weights, layer: int) -> LayerInput:
    prefix = f"layers.{layer}."
    gate, output = pop_linear(weights, f"{prefix}input_gate"), pop_linear(weights, f"{prefix}input_output")
    mlp = MLP(gate, output, config.activation, gated=True)
    return LayerInput(layer, mlp, pop_norm(config, weights, f"{prefix}input_norm"))


def _beside(config: DecoderConfig, weights: Weights, prefix: str) -> BesideExperts:
    norms = {name: pop_norm(config, weights, f"{prefix}experts.{name}") for name in BESIDE_NORMS}
    return BesideExperts(_experts(config, weights, prefix), **norms)


def _experts(config: DecoderConfig, weights: Weights, prefix: str) -> Experts:
    experts = config.experts
    assert experts is not None
    up, down = pop_linear(weights, f"{prefix}experts.up"), pop_linear(weights, f"{prefix}experts.down")
    clamped = (config.swiglu_limit, config.swiglu_alpha)
    pairs = zip(up.split(experts.count), down.split(experts.count), strict=True)
    return Experts(
        config=experts,
        router=pop_linear(weights, f"{prefix}router"),
        correction=pop_tensor(weights, f"{prefix}correction").flatten() if experts.correction else None,
        each=[MLP(*pair, config.activation, config.gated_mlp, None, *clamped) for pair in pairs],
        up=_stack(up, experts.count),
        down=_stack(down, experts.count),
        up_bias=None if up.bias is None else up.bias.view(experts.count, -1),
        down_bias=None if down.bias is None else down.bias.view(experts.count, -1),
        shared=_mlp(config, weights, f"{prefix}shared.") if experts.shared_size else None,
        latent_down=None if experts.latent_size is None else pop_linear(weights, f"{prefix}experts.latent_down"),
        latent_up=None if experts.latent_size is None else pop_linear(weights, f"{prefix}experts.latent_up"),
        shared_router=pop_linear(weights, f"{prefix}shared.router") if experts.shared_router else None,
        router_norm=_router_norm(config, weights, prefix) if experts.router_norm else None,
        scales=pop_tensor(weights, f"{prefix}expert_scales") if experts.expert_scales else None,
    )


def _router_norm(config: DecoderConfig, weights: Weights, prefix: str) -> RMSNorm:
    """The norm of a router's inputs, which are then multiplied by a vector, and divided by hidden_size ** 0.5."""
    scale = pop_tensor(weights, f"{prefix}router_scale") * config.hidden_size**-0.5
    return RMSNorm(scale, config.hidden_size, config.norm_eps)


def _stack(linear: Linear, count: int) -> Tensor | RestoredLinear | None:
    """The matrices of all experts as one plain tensor [experts, rows, columns] or one quantised layer, if they are."""
    if isinstance(linear, RestoredLinear):
        return linear
    return linear.rows[0].unflatten(0, (count, -1)) if type(linear) is Linear and len(linear.rows) == 1 else None


def _optional_norm(config: DecoderConfig, weights: Weights, prefix: str, name: str) -> Norm | None:
    return None if getattr(config.names, name) is None else pop_norm(config, weights, prefix + name)


def _xielu(weights: Weights, prefix: str) -> Xielu:
    return Xielu.of(*(pop_tensor(weights, f"{prefix}activation.{name}") for name in XIELU_WEIGHTS))
