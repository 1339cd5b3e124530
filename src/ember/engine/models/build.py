"""Construction of a decoder's parts from its named weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ember.engine.description.cache_groups import cache_groups, cache_places
from ember.engine.description.config import DecoderConfig
from ember.engine.layers.block import Attention, Block, DecoderParts
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import LayerNorm, Norm, RMSNorm

Weights = dict[str, Linear | Tensor]
"""Weights by the names of `description.weights.weight_specs`: linear layers, and vectors and tables."""


def tensors_of(weights: Weights) -> Iterator[Tensor]:
    """Every tensor of the weights."""
    for weight in weights.values():
        if isinstance(weight, Tensor):
            yield weight
        else:
            yield from weight.rows
            if weight.bias is not None:
                yield weight.bias


def build_parts(config: DecoderConfig, weights: Weights) -> DecoderParts:
    """The decoder's parts, made of `weights` by the names of `description.weights.weight_specs`.

    The dict is emptied, so that a part is freed when it is replaced later. Raises AssertionError if no part uses a
    weight: the model would not compute what its configuration says.
    """
    tokens = _tensor(weights, "embed_tokens")
    embedding = Embedding(
        tokens,
        _tensor(weights, "embed_positions") if config.position_offset is not None else None,
        config.position_offset or 0,
        _linear(weights, "project_in") if config.embed_dim else None,
    )
    windows, places = config.windows(), cache_places(cache_groups(config, tokens.element_size()))
    parts = DecoderParts(
        embedding=embedding,
        blocks=[_block(config, weights, layer, windows[layer], *places[layer]) for layer in range(config.num_layers)],
        final_norm=_norm(config, weights, "final_norm") if config.final_norm else None,
        project_out=_linear(weights, "project_out") if config.embed_dim else None,
        head=Linear(tokens) if config.tie_word_embeddings else _linear(weights, "lm_head"),
    )
    assert not weights, f"no part of the decoder uses {', '.join(weights)}"
    return parts


def _block(config: DecoderConfig, weights: Weights, layer: int, window: int | None, group: int, place: int) -> Block:
    prefix = f"layers.{layer}."
    qk_norm = None
    if config.qk_norm:
        query = _tensor(weights, f"{prefix}query_norm.weight")
        key = _tensor(weights, f"{prefix}key_norm.weight")
        qk_norm = RMSNorm(
            torch.cat((query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1))),
            config.head_dim,
            config.norm_eps,
        )
    return Block(
        attention_norm=_norm(config, weights, f"{prefix}attention_norm"),
        attention=Attention(
            qkv=_linear(weights, f"{prefix}qkv"),
            qk_norm=qk_norm,
            output=_linear(weights, f"{prefix}output"),
            window=window,
            group=group,
            place=place,
        ),
        mlp_norm=_norm(config, weights, f"{prefix}mlp_norm"),
        mlp=MLP(
            up=_linear(weights, f"{prefix}up"),
            down=_linear(weights, f"{prefix}down"),
            activation=config.activation,
            gated=config.gated_mlp,
        ),
        residual_scale=config.residual_scale,
    )


def _norm(config: DecoderConfig, weights: Weights, name: str) -> Norm:
    weight = _tensor(weights, f"{name}.weight") if config.norm_affine else None
    if config.norm == "rms":
        return RMSNorm(weight, config.hidden_size, config.norm_eps)
    bias = _tensor(weights, f"{name}.bias") if config.norm_bias else None
    return LayerNorm(weight, bias, config.hidden_size, config.norm_eps)


def _linear(weights: Weights, name: str) -> Linear:
    weight = weights.pop(name)
    assert isinstance(weight, Linear)
    return weight


def _tensor(weights: Weights, name: str) -> Tensor:
    weight = weights.pop(name)
    assert isinstance(weight, Tensor)
    return weight
