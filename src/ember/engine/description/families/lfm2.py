"""LFM2 and LFM3. This module does not import torch.

Most layers have a short convolution with gates, the others attention.
"""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig, Mixer
from ember.engine.description.deepseek_experts import after_dense
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import read_mixers
from ember.engine.description.mixers import ConvConfig, ConvNames
from ember.engine.description.read_experts import read_experts
from ember.engine.description.read_rope import RopeForm, read_local_rope, read_rope
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import ExpertNames
from ember.engine.errors import ModelError

NAMES = replace(
    LLAMA_NAMES,
    final_norm="model.embedding_norm",
    attention_norm="operator_norm",
    mlp_norm="ffn_norm",
    output="self_attn.out_proj",
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
    conv=ConvNames(inputs="conv.in_proj", conv="conv.conv", output="conv.out_proj"),
)
EXPERT_NAMES = ExpertNames(
    router="feed_forward.gate",
    gate="feed_forward.experts.{}.w1",
    up="feed_forward.experts.{}.w3",
    down="feed_forward.experts.{}.w2",
    correction="feed_forward.expert_bias",
)
_MIXERS: dict[str, Mixer] = {"conv": "conv", "full_attention": "attention"}
LFM3_NAMES = replace(
    NAMES,
    attention_output_norm="post_operator_norm",
    mlp_output_norm="post_ffn_norm",
    output="self_attn.o_proj",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    head_gate="self_attn.gate_proj",
)
_LFM3_MIXERS: dict[str, Mixer] = {**_MIXERS, "sliding_attention": "attention"}
_LFM3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.5},
}


def read_lfm2(fields: Fields) -> DecoderConfig:
    """A gated MLP in all layers, whose size follows from several fields."""
    name = "intermediate_size" if fields.values.get("block_ff_dim") is None else "block_ff_dim"
    config = _read(fields, (name, 12288))
    size, multiple = config.intermediate_size, fields.integer("block_multiple_of", 256)
    factor = fields.number("block_ffn_dim_multiplier", 1.0, above=0.0)
    if fields.flag("block_auto_adjust_ff_dim", True):
        size = -(-int(factor * int(2 * size / 3)) // multiple) * multiple
    if size < 1:
        raise ModelError(f"{name}={config.intermediate_size} leaves an MLP of size {size}")
    return replace(config, intermediate_size=size)


def read_lfm2_moe(fields: Fields) -> DecoderConfig:
    """Experts in all layers but the first ones."""
    config = _read(fields, ("intermediate_size", 7168))
    experts = read_experts(fields, ("num_experts", 32), ("num_experts_per_tok", 4), ("moe_intermediate_size", 1792))
    return replace(
        config,
        names=replace(NAMES, experts=EXPERT_NAMES),
        experts=replace(
            experts,
            layers=after_dense(fields, config.num_layers, 2, "num_dense_layers"),
            scores="sigmoid",
            normalised=fields.flag("norm_topk_prob", True),
            norm_min=1e-6,
            scale=fields.number("routed_scaling_factor", 1.0),
            correction=fields.flag("use_expert_bias", True),
        ),
    )


def _read(fields: Fields, intermediate: tuple[str, int]) -> DecoderConfig:
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=128_000,
        num_kv_heads=8,
        norm_eps=1e-5,
        norm_eps_field="norm_eps",
        rope=RopeForm(theta=1e6),
        tie_word_embeddings=True,
        intermediate=intermediate,
    )
    attention = fields.values.get("full_attn_idxs")
    if attention is None:
        attention = range(config.num_layers)
    elif not isinstance(attention, list) or not all(type(layer) is int for layer in attention):
        raise fields.error("full_attn_idxs", "a list of integers")
    absent: list[Mixer] = ["attention" if layer in attention else "conv" for layer in range(config.num_layers)]
    mixers = read_mixers(fields, config.num_layers, _MIXERS, absent)
    conv = ConvConfig(fields.integer("conv_L_cache", 3), fields.flag("conv_bias", False))
    return replace(
        config,
        names=NAMES,
        qk_norm="head",
        tie_word_embeddings=fields.flag("tie_embedding", config.tie_word_embeddings),
        layer_mixers=mixers if "conv" in mixers else (),
        conv=conv if "conv" in mixers else None,
    )


def read_lfm3(fields: Fields) -> DecoderConfig:
    """LFM3: LFM2 with a sliding window in some layers, which have rotary positions of their own, with norms of
    outputs, and with a gate for each head."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=128_000,
        num_kv_heads=4,
        head_dim=128,
        norm_eps=1e-5,
        norm_eps_field="norm_eps",
        reads_rope=False,
        tie_word_embeddings=True,
        intermediate=("intermediate_size", 7680),
    )
    fields.one_of("hidden_act", "silu", ("silu",))
    number, window = config.num_layers, fields.optional_integer("sliding_window", 256)
    types = fields.names("layer_types") or [_lfm3_type(layer) for layer in range(number)]
    mixers = read_mixers(Fields({"layer_types": types}), number, _LFM3_MIXERS, ())
    windowed = tuple(kind == "sliding_attention" for kind in types)
    if any(windowed) and window is None:
        raise ModelError("layer_types has sliding_attention, but sliding_window is null")
    ropes = Fields({"rope_parameters": fields.mapping("rope_parameters") or _LFM3_ROPES}, fields.prefix)
    sizes = (config.head_dim, config.max_position_embeddings, RopeForm(per_layer_type=True))
    rope, local = read_rope(ropes, *sizes), read_local_rope(ropes, *sizes)
    fields.warnings += ropes.warnings
    if fields.values.get("rms_norm_eps") is not None and fields.values.get("norm_eps") is None:
        config = replace(config, norm_eps=fields.number("rms_norm_eps", at_least=0.0))
    has_norms, bias = fields.flag("use_sandwich_norm", True), fields.flag("attention_bias", False)
    conv = ConvConfig(fields.integer("conv_L_cache", 7), fields.flag("conv_bias", False))
    return replace(
        config,
        names=LFM3_NAMES if has_norms else replace(LFM3_NAMES, attention_output_norm=None, mlp_output_norm=None),
        wiring="sandwich" if has_norms else "pre_norm",
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        head_gate=fields.flag("use_attention_gate", True),
        sliding_window=window if any(windowed) else None,
        windowed_layers=windowed,
        rope=rope,
        local_rope=None if local == rope or not any(windowed) else local,
        layer_mixers=mixers if "conv" in mixers else (),
        conv=conv if "conv" in mixers else None,
    )


def _lfm3_type(layer: int) -> str:
    """The type of a layer in a file without `layer_types`."""
    if layer % 4 == 2:
        return "full_attention"
    return "sliding_attention" if layer % 4 == 0 and layer > 0 else "conv"


_FIELDS = (ROTARY_FIELDS - {"rms_norm_eps"}) | field_names(
    "norm_eps layer_types full_attn_idxs conv_L_cache conv_bias tie_embedding"
)
# Fields of training, and other names for the same sizes.
_HARMLESS = dict.fromkeys(
    field_names(
        "block_dim block_mlp_init_scale block_norm_eps block_out_init_scale block_use_xavier_init conv_dim "
        "conv_dim_out conv_use_xavier_init num_heads theta"
    ),
    (),
) | {"block_use_swiglu": (True,), "use_pos_enc": (True,)}
LFM2 = Family(
    read_lfm2,
    _FIELDS | field_names("block_ff_dim block_multiple_of block_ffn_dim_multiplier block_auto_adjust_ff_dim"),
    harmless=_HARMLESS,
)
LFM2_MOE = Family(
    read_lfm2_moe,
    _FIELDS
    | field_names(
        "num_experts num_experts_per_tok moe_intermediate_size num_dense_layers norm_topk_prob routed_scaling_factor "
        "use_expert_bias"
    ),
    harmless=_HARMLESS,
)
LFM3 = Family(
    read_lfm3,
    (ROTARY_FIELDS - field_names("rms_norm_eps rope_theta rope_scaling partial_rotary_factor"))
    - {"original_max_position_embeddings"}
    | field_names(
        "norm_eps rms_norm_eps layer_types conv_L_cache conv_bias sliding_window use_sandwich_norm use_attention_gate "
        "attention_bias"
    ),
)
