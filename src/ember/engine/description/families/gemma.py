"""Gemma 1, 2 and 3 (arXiv 2403.08295, 2408.00118, 2503.19786). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_rope import RopeForm, read_local_rope
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

SANDWICH_NAMES = replace(
    LLAMA_NAMES,
    attention_output_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_output_norm="post_feedforward_layernorm",
)
GEMMA3_NAMES = replace(SANDWICH_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")


def read_gemma1(
    fields: Fields,
    *,
    max_position_embeddings: int = 8192,
    num_kv_heads: int = 16,
    activation_field: str = "hidden_act",
    rope: RopeForm | None = None,
) -> DecoderConfig:
    """A Llama with scaled embeddings and norms whose weights are stored less one. `gelu` means its approximation."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=max_position_embeddings,
        num_kv_heads=num_kv_heads,
        head_dim=256,
        activation_field=activation_field,
        activation="gelu_pytorch_tanh",
        rope=rope,
        tie_word_embeddings=True,
    )
    bias = fields.flag("attention_bias", False)
    return replace(
        config,
        activation="gelu_tanh" if config.activation == "gelu" else config.activation,
        norm_offset=1.0,
        embed_scale=config.hidden_size**0.5,
        qkv_bias=bias,
        output_bias=bias,
        bidirectional=fields.flag("use_bidirectional_attention", False),
    )


def read_gemma2(fields: Fields) -> DecoderConfig:
    """Gemma with norms of outputs too, soft caps, and a sliding window in every other layer."""
    config = read_gemma1(fields, num_kv_heads=4, activation_field="hidden_activation")
    config = replace(
        config,
        names=SANDWICH_NAMES,
        wiring="sandwich",
        attention_scale=fields.number("query_pre_attn_scalar", 256.0, above=0.0) ** -0.5,
        attention_soft_cap=fields.optional_number("attn_logit_softcapping", 50.0, above=0.0),
        logits_soft_cap=fields.optional_number("final_logit_softcapping", 30.0, above=0.0),
        sliding_window=fields.optional_integer("sliding_window", 4096),
    )
    return with_layer_types(config, fields, every_nth(2, False, config.num_layers))


def read_vaultgemma(fields: Fields) -> DecoderConfig:
    """VaultGemma (arXiv 2510.15001): Gemma 2 without norms of outputs."""
    names = replace(LLAMA_NAMES, mlp_norm=SANDWICH_NAMES.mlp_norm)
    return replace(read_gemma2(fields), names=names, wiring="pre_norm")


def read_gemma3(fields: Fields) -> DecoderConfig:
    """Gemma 2 with norms of queries and keys in place of the soft caps. A window in five of six layers, which have
    rotary positions of their own."""
    form = RopeForm(theta=1_000_000.0, per_layer_type=True)
    config = read_gemma1(
        fields, max_position_embeddings=131072, num_kv_heads=4, activation_field="hidden_activation", rope=form
    )
    if fields.values.get("attn_logit_softcapping") is not None:
        fields.warnings.append(
            "attn_logit_softcapping has no effect in Gemma 3, which has no cap of attention's scores"
        )
    longest = fields.integer("max_position_embeddings", 131072)  # with the scaling of rotary positions
    local_form = RopeForm(theta=fields.number("rope_local_base_freq", 10_000.0, above=0.0))
    local = read_local_rope(fields, config.head_dim, longest, local_form)
    config = replace(
        config,
        names=GEMMA3_NAMES,
        wiring="sandwich",
        max_position_embeddings=longest,
        qk_norm="head",
        attention_scale=fields.number("query_pre_attn_scalar", 256.0, above=0.0) ** -0.5,
        logits_soft_cap=fields.optional_number("final_logit_softcapping", None, above=0.0),
        local_rope=None if local == config.rope else local,
        sliding_window=fields.optional_integer("sliding_window", 4096),
    )
    if config.bidirectional and config.sliding_window is not None:  # of both directions together
        config = replace(config, sliding_window=config.sliding_window // 2 + 1)
    interval = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    return with_layer_types(config, fields, every_nth(interval, False, config.num_layers))


GEMMA1 = Family(read_gemma1, ROTARY_FIELDS | {"attention_bias", "use_bidirectional_attention"})
GEMMA2 = Family(
    read_gemma2,
    GEMMA1.fields - {"hidden_act"}
    | field_names("hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping")
    | field_names("sliding_window layer_types"),
    harmless={"hidden_act": ()},  # beside `hidden_activation`, which holds
)
VAULTGEMMA = Family(read_vaultgemma, GEMMA2.fields)
GEMMA3 = Family(
    read_gemma3, GEMMA2.fields | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"}
)
