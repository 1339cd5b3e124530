"""Construction of the mixers of a model's layers from its named weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.layers.block import Attention, Mixer
from ember.engine.layers.latent import LatentAttention
from ember.engine.layers.linear import Linear
from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Selective, ShortConvolution, Ssd
from ember.engine.layers.norm import JointHeadNorm, LayerNorm, QkNorm, RMSNorm
from ember.engine.models.weights import Weights, pop_linear, pop_tensor


def build_mixer(
    config: DecoderConfig,
    weights: Weights,
    tokens: Tensor | Linear,
    layer: int,
    window: int | None,
    places: Mapping[int, tuple[int, int]],
) -> Mixer | None:
    """The mixer of a layer, if it has one. `places`: of each layer the cache group, and its place there."""
    kind = config.mixer(layer)
    if kind == "none":
        return None
    if kind == "latent":
        return _latent(config, weights, layer, *places[layer])
    if kind == "delta":
        return _delta(config, weights, f"layers.{layer}.", places[layer])
    if kind == "ssd":
        return build_ssd(config, weights, f"layers.{layer}.ssd.", places[layer])
    if kind == "selective":
        return _selective(config, weights, f"layers.{layer}.selective.", places[layer])
    if kind == "conv":
        return _short_convolution(config, weights, f"layers.{layer}.", places[layer])
    assert kind == "attention", f"no part of a block computes the mixer {kind}"
    return _attention(config, weights, tokens, layer, window, *places[layer])


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
        qkv=pop_linear(weights, f"{prefix}qkv"),
        gate=pop_linear(weights, f"{prefix}gate") if config.attention_gate or config.head_gate else None,
        qk_norm=_qk_norm(config, weights, tokens, layer),
        output=pop_linear(weights, f"{prefix}output"),
        rope=config.rope_index(layer),
        sinks=pop_tensor(weights, f"{prefix}sinks") if config.attention_sinks else None,
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
        biases = [pop_tensor(weights, f"{prefix}{name}.bias").expand(count, -1) for name, count in counts.items()]
        return LayerNorm(weight, torch.cat(biases), size, eps)
    if config.qk_norm == "all":
        return JointHeadNorm(weight, heads, eps)
    return LayerNorm(weight, None, size, eps) if config.qk_norm == "layer" else RMSNorm(weight, size, eps)


def _head_rows(config: DecoderConfig, weights: Weights, name: str, num_heads: int) -> list[Tensor]:
    """The weights of a norm of `num_heads` heads, as tensors [heads, head_dim]."""
    if config.names.query_norm is not None and "{}" in config.names.query_norm:
        return [pop_tensor(weights, f"{name}.{head}.weight")[None] for head in range(num_heads)]
    weight = pop_tensor(weights, f"{name}.weight")
    is_shared = config.qk_norm in ("head", "layer_bias")
    return [weight.expand(num_heads, -1) if is_shared else weight.view(num_heads, -1)]


def _latent(config: DecoderConfig, weights: Weights, layer: int, group: int, place: int) -> LatentAttention:
    prefix, sizes = f"layers.{layer}.", config.latent
    assert sizes is not None and config.rope is not None and config.attention_scale is not None
    kv_up = pop_linear(weights, f"{prefix}kv_up")

    def norm(name: str, size: int) -> RMSNorm:
        return RMSNorm(pop_tensor(weights, f"{prefix}{name}.weight"), size, sizes.norm_eps)

    return LatentAttention(
        down=pop_linear(weights, f"{prefix}qkv"),
        query_norm=None if sizes.query_rank is None else norm("query_norm", sizes.query_rank),
        query_up=None if sizes.query_rank is None else pop_linear(weights, f"{prefix}query_up"),
        kv_norm=norm("kv_norm", sizes.kv_rank),
        # Its rows are multiplied by heads, so that it cannot be quantised.
        kv_up=kv_up if type(kv_up) is Linear and len(kv_up.rows) == 1 else Linear(kv_up.weight),
        output=pop_linear(weights, f"{prefix}output"),
        rope=0,
        scale=config.attention_scale,
        heads=config.num_heads,
        sizes=sizes,
        group=group,
        place=place,
    )


def _delta(config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]) -> Delta:
    delta = config.delta
    assert delta is not None, "a family with this mixer describes it"
    return Delta(
        config=delta,
        inputs=pop_linear(weights, f"{prefix}delta.inputs"),
        rates=pop_linear(weights, f"{prefix}delta.rates"),
        conv=Convolution(pop_tensor(weights, f"{prefix}delta.conv").squeeze(1).t().contiguous(), None, has_silu=True),
        decay=-pop_tensor(weights, f"{prefix}delta.decay").exp(),
        dt_bias=pop_tensor(weights, f"{prefix}delta.dt_bias"),
        norm=GatedNorm(pop_tensor(weights, f"{prefix}delta.norm"), config.norm_eps),
        output=pop_linear(weights, f"{prefix}delta.output"),
        state=state,
    )


def build_ssd(config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]) -> Ssd:
    """Mamba 2, as a layer's mixer or beside its attention. `state`: its cache group, and its place there."""
    ssd = config.ssd
    assert ssd is not None, "a family with this mixer describes it"
    bias = pop_tensor(weights, f"{prefix}conv_bias") if ssd.conv_bias else None
    norm = None
    if ssd.norm != "none":
        weight = pop_tensor(weights, f"{prefix}norm").unflatten(0, (ssd.groups, -1))
        norm = GatedNorm(weight, config.norm_eps, gate_first=ssd.norm == "after_gate")
    taps = pop_tensor(weights, f"{prefix}conv").squeeze(1).t().contiguous()
    if any(scale != 1.0 for scale in ssd.channel_scales):  # factors of the convolution's inputs are those of its taps
        parts = taps.split([ssd.inner_size, ssd.group_size, ssd.group_size], dim=1)
        taps = torch.cat([part * scale for part, scale in zip(parts, ssd.channel_scales, strict=True)], dim=1)
    return Ssd(
        config=ssd,
        inputs=pop_linear(weights, f"{prefix}inputs"),
        conv=Convolution(taps, bias, has_silu=True),
        decay=-pop_tensor(weights, f"{prefix}decay").exp(),
        dt_bias=pop_tensor(weights, f"{prefix}dt_bias"),
        skip=pop_tensor(weights, f"{prefix}skip"),
        norm=norm,
        output=pop_linear(weights, f"{prefix}output"),
        state=state,
    )


def _selective(config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]) -> Selective:
    part = config.selective
    assert part is not None, "a family with this mixer describes it"

    def norm(name: str, size: int) -> RMSNorm:
        weight = pop_tensor(weights, f"{prefix}{name}") if part.norm == "weighted" else None
        return RMSNorm(weight, size, part.norm_eps)

    sizes = {"dt_norm": part.dt_rank, "b_norm": part.state_dim, "c_norm": part.state_dim}
    dt_norm, b_norm, c_norm = (norm(name, size) for name, size in sizes.items())
    bias = pop_tensor(weights, f"{prefix}conv_bias") if part.conv_bias else None
    return Selective(
        config=part,
        inputs=pop_linear(weights, f"{prefix}inputs"),
        conv=Convolution(pop_tensor(weights, f"{prefix}conv").squeeze(1).t().contiguous(), bias, has_silu=True),
        rates=pop_linear(weights, f"{prefix}rates"),
        norms=None if part.norm is None else (dt_norm, b_norm, c_norm),
        dt=pop_linear(weights, f"{prefix}dt"),
        decay=-pop_tensor(weights, f"{prefix}decay").t().exp().contiguous(),
        skip=pop_tensor(weights, f"{prefix}skip"),
        output=pop_linear(weights, f"{prefix}output"),
        state=state,
    )


def _short_convolution(
    config: DecoderConfig, weights: Weights, prefix: str, state: tuple[int, int]
) -> ShortConvolution:
    assert config.conv is not None, "a family with this mixer describes it"
    weight = pop_tensor(weights, f"{prefix}conv.weight").squeeze(1).t().contiguous()
    bias = pop_tensor(weights, f"{prefix}conv.bias") if config.conv.bias else None
    return ShortConvolution(
        inputs=pop_linear(weights, f"{prefix}conv.inputs"),
        conv=Convolution(weight, bias, has_silu=False),
        output=pop_linear(weights, f"{prefix}conv.output"),
        state=state,
    )
