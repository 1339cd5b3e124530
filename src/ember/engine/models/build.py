"""Construction of a model's parts from its named weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    Mixer,
    PositionHeads,
    TextConv,
)
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.experts import Experts
from ember.engine.layers.latent import LatentAttention
from ember.engine.layers.layer_inputs import LayerInput, LayerInputs
from ember.engine.layers.linear import Linear
from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Selective, ShortConvolution, Ssd
from ember.engine.layers.mlp import MLP, Xielu
from ember.engine.layers.norm import JointHeadNorm, LayerNorm, Norm, QkNorm, RMSNorm, unit_rows
from ember.engine.layers.restored import RestoredLinear

Weights = dict[str, Linear | Tensor]
"""Weights by the names of `description.weight_specs.weight_specs`: linear layers, and vectors and tables."""


def tensors_of(weights: Weights) -> Iterator[Tensor]:
    """Every tensor of the weights."""
    for weight in weights.values():
        if isinstance(weight, Tensor):
            yield weight
        else:
            yield from weight.tensors()


def build_parts(config: DecoderConfig, weights: Weights) -> DecoderParts:
    """The decoder's parts, made of `weights` by the names of `description.weight_specs.weight_specs`.

    The dict is emptied, so that a part is freed when it is replaced later. Raises AssertionError if no part uses a
    weight: the model would not compute what its configuration says.
    """
    tokens = weights.pop("embed_tokens")
    embedding = Embedding(
        tokens,
        _tensor(weights, "embed_positions") if config.position_offset is not None else None,
        config.position_offset or 0,
        _linear(weights, "project_in") if config.embed_dim else None,
        torch.tensor(config.embed_scale, dtype=tokens.dtype).item(),
        _embed_norm(config, weights) if config.embed_norm else None,
        _tensor(weights, "embed_token_types") if config.token_types else None,
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
        final_norm=_norm(config, weights, "final_norm") if config.final_norm else None,
        project_out=_linear(weights, "project_out") if config.embed_dim and config.has_head else None,
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
    return _norm(config, weights, "embed_norm", config.embed_dim if config.projects_sum else None)


def _relative_positions(config: DecoderConfig, weights: Weights) -> DistanceTable | Tensor | None:
    """What all layers know of relative positions: biases by distance, or the normalised vectors of positions."""
    if config.distance_bias is not None:
        return DistanceTable(_tensor(weights, "distance_bias").t().contiguous(), config.distance_bias)
    if config.disentangled is None:
        return None
    vectors = _tensor(weights, "position_vectors")
    return _norm(config, weights, "position_norm")(vectors) if config.disentangled.norm else vectors


def _text_conv(config: DecoderConfig, weights: Weights) -> TextConv | None:
    if config.text_conv is None:
        return None
    weight, bias = (_tensor(weights, f"text_conv.{part}") for part in ("weight", "bias"))
    return TextConv(weight, bias, _norm(config, weights, "text_conv.norm"), config.text_conv)


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
    attention_norm = _norm(config, weights, f"{prefix}attention_norm") if layer or config.first_norm else None
    mlp_norm = _optional_norm(config, weights, prefix, "mlp_norm") or attention_norm
    assert mlp_norm is not None, "a block has a norm"
    return Block(
        attention_norm=attention_norm or mlp_norm,
        mixer=_mixer(config, weights, tokens, layer, window, {**states, **pages}),
        attention_output_norm=_optional_norm(config, weights, prefix, "attention_output_norm"),
        mlp_norm=mlp_norm,
        mlp_output_norm=_optional_norm(config, weights, prefix, "mlp_output_norm"),
        mlp=_mlp_or_experts(config, weights, layer),
        residual_scale=config.residual_scale,
        beside=_beside(config, weights, prefix) if config.has_mlp(layer) and config.has_experts(layer) else None,
        layer_input=_layer_input(config, weights, layer) if config.layer_input_size else None,
        scalar=_tensor(weights, f"{prefix}scalar") if config.layer_scalar else None,
        ssd=_ssd(config, weights, f"{prefix}ssd.", states[layer]) if config.ssd_beside_attention else None,
    )


def _mlp_or_experts(config: DecoderConfig, weights: Weights, layer: int) -> MLP | Experts | None:
    prefix = f"layers.{layer}."
    if config.has_mlp(layer):
        return _mlp(config, weights, prefix)
    return _experts(config, weights, prefix) if config.has_experts(layer) else None


def _mixer(
    config: DecoderConfig,
    weights: Weights,
    tokens: Tensor | Linear,
    layer: int,
    window: int | None,
    places: Mapping[int, tuple[int, int]],
) -> Mixer | None:
    kind = config.mixer(layer)
    if kind == "none":
        return None
    if kind == "latent":
        return _latent(config, weights, layer, *places[layer])
    if kind == "delta":
        return _delta(config, weights, f"layers.{layer}.", places[layer])
    if kind == "ssd":
        return _ssd(config, weights, f"layers.{layer}.ssd.", places[layer])
    if kind == "selective":
        return _selective(config, weights, f"layers.{layer}.selective.", places[layer])
    if kind == "conv":
        return _short_convolution(config, weights, f"layers.{layer}.", places[layer])
    assert kind == "attention", f"no part of a block computes the mixer {kind}"
    return _attention(config, weights, tokens, layer, window, *places[layer])


def _ssd(config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]) -> Ssd:
    ssd = config.ssd
    assert ssd is not None, "a family with this mixer describes it"
    bias = _tensor(weights, f"{prefix}conv_bias") if ssd.conv_bias else None
    norm = None
    if ssd.norm != "none":
        weight = _tensor(weights, f"{prefix}norm").unflatten(0, (ssd.groups, -1))
        norm = GatedNorm(weight, config.norm_eps, gate_first=ssd.norm == "after_gate")
    taps = _tensor(weights, f"{prefix}conv").squeeze(1).t().contiguous()
    if any(scale != 1.0 for scale in ssd.channel_scales):  # factors of the convolution's inputs are those of its taps
        parts = taps.split([ssd.inner_size, ssd.group_size, ssd.group_size], dim=1)
        taps = torch.cat([part * scale for part, scale in zip(parts, ssd.channel_scales, strict=True)], dim=1)
    return Ssd(
        config=ssd,
        inputs=_linear(weights, f"{prefix}inputs"),
        conv=Convolution(taps, bias, has_silu=True),
        decay=-_tensor(weights, f"{prefix}decay").exp(),
        dt_bias=_tensor(weights, f"{prefix}dt_bias"),
        skip=_tensor(weights, f"{prefix}skip"),
        norm=norm,
        output=_linear(weights, f"{prefix}output"),
        state=state,
    )


def _selective(config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]) -> Selective:
    part = config.selective
    assert part is not None, "a family with this mixer describes it"

    def norm(name: str, size: int) -> RMSNorm:
        weight = _tensor(weights, f"{prefix}{name}") if part.norm == "weighted" else None
        return RMSNorm(weight, size, part.norm_eps)

    sizes = {"dt_norm": part.dt_rank, "b_norm": part.state_dim, "c_norm": part.state_dim}
    dt_norm, b_norm, c_norm = (norm(name, size) for name, size in sizes.items())
    bias = _tensor(weights, f"{prefix}conv_bias") if part.conv_bias else None
    return Selective(
        config=part,
        inputs=_linear(weights, f"{prefix}inputs"),
        conv=Convolution(_tensor(weights, f"{prefix}conv").squeeze(1).t().contiguous(), bias, has_silu=True),
        rates=_linear(weights, f"{prefix}rates"),
        norms=None if part.norm is None else (dt_norm, b_norm, c_norm),
        dt=_linear(weights, f"{prefix}dt"),
        decay=-_tensor(weights, f"{prefix}decay").t().exp().contiguous(),
        skip=_tensor(weights, f"{prefix}skip"),
        output=_linear(weights, f"{prefix}output"),
        state=state,
    )


def _short_convolution(
    config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]
) -> ShortConvolution:
    assert config.conv is not None, "a family with this mixer describes it"
    weight = _tensor(weights, f"{prefix}conv.weight").squeeze(1).t().contiguous()
    bias = _tensor(weights, f"{prefix}conv.bias") if config.conv.bias else None
    return ShortConvolution(
        inputs=_linear(weights, f"{prefix}conv.inputs"),
        conv=Convolution(weight, bias, has_silu=False),
        output=_linear(weights, f"{prefix}conv.output"),
        state=state,
    )


def _delta(config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]) -> Delta:
    delta = config.delta
    assert delta is not None, "a family with this mixer describes it"
    return Delta(
        config=delta,
        inputs=_linear(weights, f"{prefix}delta.inputs"),
        rates=_linear(weights, f"{prefix}delta.rates"),
        conv=Convolution(_tensor(weights, f"{prefix}delta.conv").squeeze(1).t().contiguous(), None, has_silu=True),
        decay=-_tensor(weights, f"{prefix}delta.decay").exp(),
        dt_bias=_tensor(weights, f"{prefix}delta.dt_bias"),
        norm=GatedNorm(_tensor(weights, f"{prefix}delta.norm"), config.norm_eps),
        output=_linear(weights, f"{prefix}delta.output"),
        state=state,
    )


def _attention(
    config: DecoderConfig,
    weights: Weights,
    tokens: Tensor | Linear,
    layer: int,
    window: int | None,
    group: int,
    place: int,
) -> Attention:
    prefix, sizes = f"layers.{layer}.", config.heads(layer)
    return Attention(
        qkv=_linear(weights, f"{prefix}qkv"),
        gate=_linear(weights, f"{prefix}gate") if config.attention_gate or config.head_gate else None,
        qk_norm=_qk_norm(config, weights, tokens, layer),
        output=_linear(weights, f"{prefix}output"),
        rope=config.rope_index(layer),
        sinks=_tensor(weights, f"{prefix}sinks") if config.attention_sinks else None,
        scale=config.attention_scale_of(layer),
        soft_cap=config.attention_soft_cap,
        window=window,
        window_is_chunk=config.window_is_chunk,
        group=group,
        place=place,
        sizes=sizes,
        value_norm=RMSNorm(None, sizes.head_dim, config.norm_eps) if config.value_norm else None,
        values_are_keys=config.values_are_keys(layer),
        has_own_kv=config.has_own_kv(layer),
        input_scale=config.attention_input_scale,
        output_scale=config.attention_output_scale,
    )


def _latent(config: DecoderConfig, weights: Weights, layer: int, group: int, place: int) -> LatentAttention:
    prefix, sizes = f"layers.{layer}.", config.latent
    assert sizes is not None and config.rope is not None and config.attention_scale is not None
    kv_up = _linear(weights, f"{prefix}kv_up")

    def norm(name: str, size: int) -> RMSNorm:
        return RMSNorm(_tensor(weights, f"{prefix}{name}.weight"), size, sizes.norm_eps)

    return LatentAttention(
        down=_linear(weights, f"{prefix}qkv"),
        query_norm=None if sizes.query_rank is None else norm("query_norm", sizes.query_rank),
        query_up=None if sizes.query_rank is None else _linear(weights, f"{prefix}query_up"),
        kv_norm=norm("kv_norm", sizes.kv_rank),
        # Its rows are multiplied by heads, so that it cannot be quantised.
        kv_up=kv_up if type(kv_up) is Linear and len(kv_up.rows) == 1 else Linear(kv_up.weight),
        output=_linear(weights, f"{prefix}output"),
        rope=0,
        scale=config.attention_scale,
        heads=config.num_heads,
        sizes=sizes,
        group=group,
        place=place,
    )


def _head(config: DecoderConfig, weights: Weights, tokens: Tensor | Linear) -> Linear:
    if not config.tie_word_embeddings:
        head = _linear(weights, "lm_head")
        return Linear(unit_rows(head.weight), bias=head.bias) if config.normalised_head else head
    bias = _tensor(weights, "lm_head.bias") if config.head_bias else None
    if isinstance(tokens, Tensor):
        return Linear(tokens, bias=bias)
    if bias is None:
        return tokens
    head = copy(tokens)
    head.bias = bias
    return head


def _mlp(config: DecoderConfig, weights: Weights, prefix: str) -> MLP:
    up, down = _linear(weights, f"{prefix}up"), _linear(weights, f"{prefix}down")
    xielu = _xielu(weights, prefix) if config.activation == "xielu" else None
    limits, scales = (config.swiglu_limit, config.swiglu_alpha), (config.gate_scale, config.mlp_output_scale)
    return MLP(up, down, config.activation, config.gated_mlp, xielu, *limits, *scales)


def _layer_inputs(config: DecoderConfig, weights: Weights, dtype: torch.dtype) -> LayerInputs:
    size = config.layer_input_size
    return LayerInputs(
        table=weights.pop("layer_table"),
        scale=torch.tensor(size**0.5, dtype=dtype).item(),
        projection=_linear(weights, "layer_projection"),
        projection_scale=config.hidden_size**-0.5,
        norm=_norm(config, weights, "layer_projection_norm", size),
        size=size,
    )


def _layer_input(config: DecoderConfig, weights: Weights, layer: int) -> LayerInput:
    prefix = f"layers.{layer}."
    gate, output = _linear(weights, f"{prefix}input_gate"), _linear(weights, f"{prefix}input_output")
    mlp = MLP(gate, output, config.activation, gated=True)
    return LayerInput(layer, mlp, _norm(config, weights, f"{prefix}input_norm"))


def _beside(config: DecoderConfig, weights: Weights, prefix: str) -> BesideExperts:
    norms = {name: _norm(config, weights, f"{prefix}experts.{name}") for name in BESIDE_NORMS}
    return BesideExperts(_experts(config, weights, prefix), **norms)


def _experts(config: DecoderConfig, weights: Weights, prefix: str) -> Experts:
    experts = config.experts
    assert experts is not None
    up, down = _linear(weights, f"{prefix}experts.up"), _linear(weights, f"{prefix}experts.down")
    clamped = (config.swiglu_limit, config.swiglu_alpha)
    pairs = zip(up.split(experts.count), down.split(experts.count), strict=True)
    return Experts(
        config=experts,
        router=_linear(weights, f"{prefix}router"),
        correction=_tensor(weights, f"{prefix}correction").flatten() if experts.correction else None,
        each=[MLP(*pair, config.activation, config.gated_mlp, None, *clamped) for pair in pairs],
        up=_stack(up, experts.count),
        down=_stack(down, experts.count),
        up_bias=None if up.bias is None else up.bias.view(experts.count, -1),
        down_bias=None if down.bias is None else down.bias.view(experts.count, -1),
        shared=_mlp(config, weights, f"{prefix}shared.") if experts.shared_size else None,
        latent_down=None if experts.latent_size is None else _linear(weights, f"{prefix}experts.latent_down"),
        latent_up=None if experts.latent_size is None else _linear(weights, f"{prefix}experts.latent_up"),
        shared_router=_linear(weights, f"{prefix}shared.router") if experts.shared_router else None,
        router_norm=_router_norm(config, weights, prefix) if experts.router_norm else None,
        scales=_tensor(weights, f"{prefix}expert_scales") if experts.expert_scales else None,
    )


def _router_norm(config: DecoderConfig, weights: Weights, prefix: str) -> RMSNorm:
    """The norm of a router's inputs, which are then multiplied by a vector, and divided by hidden_size ** 0.5."""
    scale = _tensor(weights, f"{prefix}router_scale") * config.hidden_size**-0.5
    return RMSNorm(scale, config.hidden_size, config.norm_eps)


def _stack(linear: Linear, count: int) -> Tensor | RestoredLinear | None:
    """The matrices of all experts as one plain tensor [experts, rows, columns] or one quantised layer, if they are."""
    if isinstance(linear, RestoredLinear):
        return linear
    return linear.rows[0].unflatten(0, (count, -1)) if type(linear) is Linear and len(linear.rows) == 1 else None


def _optional_norm(config: DecoderConfig, weights: Weights, prefix: str, name: str) -> Norm | None:
    return None if getattr(config.names, name) is None else _norm(config, weights, prefix + name)


def _qk_norm(config: DecoderConfig, weights: Weights, tokens: Tensor | Linear, layer: int) -> QkNorm | None:
    kind, prefix, eps = config.qk_norm_of(layer), f"layers.{layer}.", config.norm_eps
    if kind is None:
        return None
    heads, kv_heads, size = config.heads(layer)
    if not config.has_own_kv(layer):
        kv_heads = 0
    if kind == "plain":
        return RMSNorm(torch.ones(heads + kv_heads, size, dtype=tokens.dtype, device=tokens.device), size, eps)
    rows = _head_rows(config, weights, f"{prefix}query_norm", heads)
    if kv_heads:
        rows += _head_rows(config, weights, f"{prefix}key_norm", kv_heads)
    weight = torch.cat(rows)
    if kind == "layer_bias":
        counts = {"query_norm": heads} | ({"key_norm": kv_heads} if kv_heads else {})
        biases = [_tensor(weights, f"{prefix}{name}.bias").expand(count, -1) for name, count in counts.items()]
        return LayerNorm(weight, torch.cat(biases), size, eps)
    if config.qk_norm == "all":
        return JointHeadNorm(weight, heads, eps)
    return LayerNorm(weight, None, size, eps) if config.qk_norm == "layer" else RMSNorm(weight, size, eps)


def _head_rows(config: DecoderConfig, weights: Weights, name: str, num_heads: int) -> list[Tensor]:
    """The weights of a norm of `num_heads` heads, as tensors [heads, head_dim]."""
    if config.names.query_norm is not None and "{}" in config.names.query_norm:
        return [_tensor(weights, f"{name}.{head}.weight")[None] for head in range(num_heads)]
    weight = _tensor(weights, f"{name}.weight")
    is_shared = config.qk_norm in ("head", "layer_bias")
    return [weight.expand(num_heads, -1) if is_shared else weight.view(num_heads, -1)]


def _xielu(weights: Weights, prefix: str) -> Xielu:
    return Xielu.of(*(_tensor(weights, f"{prefix}activation.{name}") for name in XIELU_WEIGHTS))


def _norm(config: DecoderConfig, weights: Weights, name: str, size: int | None = None) -> Norm:
    """A norm of hidden states, or of vectors of another `size`."""
    size = size or config.hidden_size
    weight = _tensor(weights, f"{name}.weight") if config.norm_affine else None
    if config.norm == "rms":
        return RMSNorm(weight, size, config.norm_eps)
    bias = _tensor(weights, f"{name}.bias") if config.norm_bias else None
    return LayerNorm(weight, bias, size, config.norm_eps)


def _linear(weights: Weights, name: str) -> Linear:
    weight = weights.pop(name)
    assert isinstance(weight, Linear)
    return weight


def _tensor(weights: Weights, name: str) -> Tensor:
    weight = weights.pop(name)
    assert isinstance(weight, Tensor)
    return weight
