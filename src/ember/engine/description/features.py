"""The features of a decoder: the fields of its description that make it compute another equation. This module does not
import torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from ember.engine.description.rope_config import RopeConfig

DATA = frozenset(
    {
        # Sizes and numbers of every equation.
        *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
        *("max_position_embeddings", "norm_eps", "norm_offset", "has_head", "up_bias"),
        # The layers with the window, and the weights of the head.
        *(
            "qk_norm_layers",
            "nope_length",
            "layer_input_vocab_size",
            "first_window_layer",
            "windowed_layers",
            "layer_mixers",  # each other kind than attention has a part of the configuration, which is the feature
            "tie_word_embeddings",
            "num_extra_layers",
            "swiglu_alpha",
            "normalised_head",
        ),
        # Names, and properties of the checkpoint.
        *("architecture", "names", "intermediate_field", "dtype", "eos_token_ids", "warnings", "is_shell"),
        "text_architecture",
        "through_transformers",
        "classifier_head",
        "mask_head",
        "pooling",  # every operator set computes hidden states
        "quantization",  # it decides on the layouts of weights, which the operator sets declare too
        *("latent.kv_rank", "latent.query_rank", "latent.rotary_dim", "latent.plain_dim", "latent.value_dim"),
        "latent.norm_eps",
        # The numbers of a rope kind and of experts.
        *("rope.rotary_dim", "rope.theta", "rope.factor", "rope.original_max_position_embeddings"),
        *("rope.low_freq_factor", "rope.high_freq_factor", "rope.beta_fast", "rope.beta_slow", "rope.truncate"),
        *("rope.attention_factor", "rope.short_factor", "rope.long_factor", "rope.long_attention_factor"),
        *("rope.served_length", "rope.num_pairs"),
        *("delta.key_heads", "delta.value_heads", "delta.key_dim", "delta.value_dim", "delta.kernel"),
        *("conv.kernel", "conv.bias"),
        *("ssd.heads", "ssd.head_dim", "ssd.groups", "ssd.state_dim", "ssd.kernel", "ssd.conv_bias", "ssd.bias"),
        "ssd.output_bias",
        *("ssd.least_dt", "ssd.most_dt"),
        *("selective.inner_size", "selective.state_dim", "selective.dt_rank", "selective.kernel"),
        *("selective.conv_bias", "selective.bias", "selective.norm_eps"),
        *("experts.count", "experts.count_field", "experts.intermediate_size", "experts.intermediate_field"),
        *(
            "experts.per_token",
            "experts.layers",
            "experts.jitter_eps",
            "experts.norm_min",
            "experts.groups_per_token",
            "experts.shared_field",
            "experts.biases",
        ),
        *("distance_bias.buckets", "distance_bias.max_distance"),
        *("disentangled.span", "disentangled.buckets", "disentangled.max_distance"),
        *("disentangled.content_to_position", "disentangled.position_to_content", "disentangled.norm"),
        *("text_conv.kernel", "text_conv.activation", "text_conv.groups"),
    }
)
"""The fields of a decoder and of its parts that change no equation."""


def features_of(described: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The name and the value of each feature of a data class. `prefix`: the beginning of the names of a part."""
    for each in fields(described):
        name, value = prefix + each.name, getattr(described, each.name)
        if name in DATA or value == (each.default_factory() if each.default_factory is not MISSING else each.default):
            continue
        if is_dataclass(value):
            yield name, value
            yield from features_of(value, "rope." if isinstance(value, RopeConfig) else f"{name}.")
        elif isinstance(value, str) or value is False:
            yield f"{name}={value}", value
        else:
            yield name, value
