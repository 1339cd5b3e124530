"""Every weight of a model as data, in the order of the forward pass. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterator

from ember.engine.description.config import DecoderConfig
from ember.engine.description.mixer_weights import MIXERS, LayerSizes, ssd_specs
from ember.engine.description.mlp_weights import expert_specs, mlp_specs
from ember.engine.description.weights import Size, Spec, Stored, TensorSpec, linear_spec, norm_specs

_INPUT_SIZE = "hidden_size_per_layer_input"  # the field of config.json


def weight_specs(config: DecoderConfig) -> list[Spec]:
    """Every weight of the decoder, in the order of the forward pass."""
    names, hidden = config.names, Size(config.hidden_size, f"hidden_size={config.hidden_size}")
    vocabulary, embed = Size(config.vocab_size, f"vocab_size={config.vocab_size}"), hidden
    if config.embed_dim is not None:
        embed = Size(config.embed_dim, f"word_embed_proj_dim={config.embed_dim}")
    summed = embed if config.projects_sum else hidden  # the width at which all embeddings are added
    specs: list[Spec] = [TensorSpec("embed_tokens", f"{names.embed_tokens}.weight", (vocabulary, embed))]
    if config.position_offset is not None:
        positions = config.max_position_embeddings + config.position_offset
        rows = Size(positions, f"max_position_embeddings and its offset: {positions}")
        specs.append(TensorSpec("embed_positions", f"{names.embed_positions}.weight", (rows, summed)))
    if config.token_types:
        types = Size(config.token_types, f"type_vocab_size={config.token_types}")
        specs.append(TensorSpec("embed_token_types", f"{names.embed_token_types}.weight", (types, summed)))
    if config.embed_norm:
        specs += norm_specs(config, summed, "embed_norm", str(names.embed_norm))
    if config.layer_input_size:
        specs += _layer_inputs(config, hidden)
    if config.embed_dim is not None:
        projection = Stored(str(names.project_in), hidden, embed).whole()
        specs.append(linear_spec("project_in", [projection], config.projects_sum))
    specs += _relative_positions(config, hidden)
    specs += _text_conv(config, hidden)
    for layer in range(config.num_layers):
        specs += _layer(config, hidden, layer)
    if config.final_norm:
        specs += norm_specs(config, hidden, "final_norm", names.final_norm)
    if not config.has_head:
        return specs
    if config.embed_dim is not None:
        specs.append(linear_spec("project_out", [Stored(str(names.project_out), embed, hidden).whole()]))
    if not config.tie_word_embeddings:
        specs.append(linear_spec("lm_head", [Stored(names.lm_head, vocabulary, embed).whole()], config.head_bias))
    elif config.head_bias:
        specs.append(TensorSpec("lm_head.bias", f"{names.lm_head}.bias", (vocabulary,)))
    return specs


def _relative_positions(config: DecoderConfig, hidden: Size) -> Iterator[Spec]:
    """The tables of relative positions, which all layers share."""
    names = config.names
    if config.distance_bias is not None:
        buckets = config.distance_bias.buckets
        rows = Size(buckets, f"relative_attention_num_buckets={buckets}")
        heads = Size(config.num_heads, f"num_attention_heads={config.num_heads}")
        yield TensorSpec("distance_bias", f"{names.distance_bias}.weight", (rows, heads))
    if config.disentangled is not None:
        count = 2 * config.disentangled.span
        rows = Size(count, f"twice position_buckets or max_relative_positions: {count}")
        yield TensorSpec("position_vectors", f"{names.position_vectors}.weight", (rows, hidden))
        if config.disentangled.norm:
            yield from norm_specs(config, hidden, "position_norm", str(names.position_norm))


def _text_conv(config: DecoderConfig, hidden: Size) -> Iterator[Spec]:
    conv, name = config.text_conv, config.names.text_conv
    if conv is None:
        return
    inputs = Size(hidden.extent // conv.groups, f"{hidden.says} in conv_groups={conv.groups}")
    kernel = Size(conv.kernel, f"conv_kernel_size={conv.kernel}")
    yield TensorSpec("text_conv.weight", f"{name}.weight", (hidden, inputs, kernel))
    yield TensorSpec("text_conv.bias", f"{name}.bias", (hidden,))
    yield from norm_specs(config, hidden, "text_conv.norm", str(config.names.text_conv_norm))


def _layer_inputs(config: DecoderConfig, hidden: Size) -> Iterator[Spec]:
    """The table of all layers' inputs, the projection of the embeddings to them, and its norm."""
    names, size = config.names, config.layer_input_size
    rows = Size(config.layer_input_vocab_size, f"vocab_size_per_layer_input={config.layer_input_vocab_size}")
    says = f"num_hidden_layers={config.num_layers} of {_INPUT_SIZE}={size}"
    total = Size(config.num_layers * size, f"{says}: {config.num_layers * size}")
    yield TensorSpec("layer_table", f"{names.layer_table}.weight", (rows, total))
    yield linear_spec("layer_projection", [Stored(str(names.layer_projection), total, hidden).whole()])
    yield from norm_specs(
        config, Size(size, f"{_INPUT_SIZE}={size}"), "layer_projection_norm", str(names.layer_projection_norm)
    )


def _layer(config: DecoderConfig, hidden: Size, layer: int) -> Iterator[Spec]:
    names, sizes = config.names, LayerSizes.of(config, hidden, layer)
    ours, theirs = f"layers.{layer}.", names.layer.format(layer)
    if layer or config.first_norm:
        yield from norm_specs(config, hidden, f"{ours}attention_norm", theirs + names.attention_norm)
    yield from MIXERS[config.mixer(layer)](config, sizes, layer, ours, theirs)
    if config.ssd_beside_attention:
        yield from ssd_specs(config, sizes, layer, ours, theirs)
    if names.attention_output_norm is not None:
        yield from norm_specs(config, hidden, f"{ours}attention_output_norm", theirs + names.attention_output_norm)
    if names.mlp_norm is not None:
        yield from norm_specs(config, hidden, f"{ours}mlp_norm", theirs + names.mlp_norm)
    if names.mlp_output_norm is not None:
        yield from norm_specs(config, hidden, f"{ours}mlp_output_norm", theirs + names.mlp_output_norm)
    if config.layer_input_size:
        yield from _layer_input(config, hidden, ours, theirs)
    if config.layer_scalar:
        yield TensorSpec(f"{ours}scalar", f"{theirs}{names.layer_scalar}", (Size(1, "one number for a layer"),))
    if config.experts is not None and config.has_experts(layer):
        yield from expert_specs(config, config.experts, hidden, ours, theirs)
    if config.has_mlp(layer):
        yield from mlp_specs(config, hidden, layer, ours, theirs)


def _layer_input(config: DecoderConfig, hidden: Size, ours: str, theirs: str) -> Iterator[Spec]:
    names, size = config.names, Size(config.layer_input_size, f"{_INPUT_SIZE}={config.layer_input_size}")
    yield linear_spec(f"{ours}input_gate", [Stored(f"{theirs}{names.layer_gate}", size, hidden).whole()])
    yield linear_spec(f"{ours}input_output", [Stored(f"{theirs}{names.layer_output}", hidden, size).whole()])
    yield from norm_specs(config, hidden, f"{ours}input_norm", f"{theirs}{names.layer_output_norm}")
