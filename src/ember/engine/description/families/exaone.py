"""EXAONE 3 and 4 (arXiv 2408.03541, 2507.11407), dense and with experts. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.deepseek_experts import DEEPSEEK_NAMES, after_dense, read_deepseek_experts, sparse_layers
from ember.engine.description.families.olmo import OLMO2_NAMES
from ember.engine.description.families.qwen import QWEN3_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import WeightNames

EXAONE3_NAMES = WeightNames(
    layer="transformer.h.{}.",
    embed_tokens="transformer.wte",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    query="attn.attention.q_proj",
    key="attn.attention.k_proj",
    value="attn.attention.v_proj",
    output="attn.attention.out_proj",
    gate="mlp.c_fc_0",
    up="mlp.c_fc_1",
    down="mlp.c_proj",
    base="transformer.",
    buffers=("rotary.inv_freq",),
)
MOE_NAMES = replace(
    QWEN3_NAMES,
    experts=replace(DEEPSEEK_NAMES, correction="mlp.e_score_correction_bias"),
    unused=("mtp.",),
)


def read_exaone3(fields: Fields) -> DecoderConfig:
    """A Llama with names of its own, also of some fields."""
    num_layers = "num_layers" if fields.values.get("num_layers") is not None else "num_hidden_layers"
    values = {**fields.values, "num_hidden_layers": fields.integer(num_layers, at_most=MAX_LAYERS)}
    own = Fields(values, fields.prefix)
    own.warnings = fields.warnings
    config = read_rotary_decoder(
        own,
        max_position_embeddings=2048,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_epsilon",
        activation_field="activation_function",
    )
    return replace(config, names=EXAONE3_NAMES)


def read(fields: Fields) -> DecoderConfig:
    """Norms of the outputs of attention and MLP, and of each query and key head. Where some layers have a sliding
    window, the others have no rotary positions."""
    config = read_rotary_decoder(fields, max_position_embeddings=2048, num_kv_heads=32, norm_eps=1e-5)
    window = fields.optional_integer("sliding_window", 4096)
    windowed = (False,) * config.num_layers
    letters = isinstance(fields.values.get("sliding_window_pattern"), str)  # say what layer_types beside them says
    if window is not None and not (letters and fields.values.get("layer_types") is not None):
        windowed = every_nth(fields.integer("sliding_window_pattern", 4), False, config.num_layers)
    config = replace(config, names=OLMO2_NAMES, wiring="output_norm", qk_norm="head", sliding_window=window)
    config = with_layer_types(config, fields, windowed)
    return config if window is None else replace(config, rope_layers=config.windowed_layers)


def read_moe(fields: Fields) -> DecoderConfig:
    """EXAONE 4 with experts in most layers, and norms before the parts."""
    config = read(fields)
    layers = sparse_layers(fields, after_dense(fields, config.num_layers, 1))
    count, scale = ("num_experts", 64), ("routed_scaling_factor", 2.5)
    experts = read_deepseek_experts(
        fields, layers, count=count, size=1024, scale=scale, shared=("num_shared_experts", 1)
    )
    return replace(config, names=MOE_NAMES, wiring="pre_norm", experts=experts)


EXAONE3 = Family(
    read_exaone3,
    ROTARY_FIELDS - field_names("rms_norm_eps hidden_act")
    | field_names("num_layers layer_norm_epsilon activation_function"),
)
EXAONE4 = Family(read, ROTARY_FIELDS | field_names("sliding_window sliding_window_pattern layer_types"))
EXAONE_MOE = Family(
    read_moe,
    EXAONE4.fields
    | field_names(
        "mlp_layer_types first_k_dense_replace num_experts num_experts_per_tok moe_intermediate_size "
        "num_shared_experts norm_topk_prob routed_scaling_factor n_group topk_group"
    ),
    harmless={
        "num_nextn_predict_layers": (),
        "is_moe_layer": (),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
)
