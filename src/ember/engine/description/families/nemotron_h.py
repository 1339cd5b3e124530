"""Nemotron-H and Mamba 2. This module does not import torch.

A layer of Nemotron-H (arXiv 2504.03624) is Mamba 2 (arXiv 2405.21060), attention, an MLP, or experts alone.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from math import inf
from typing import Any

from ember.engine.description.config import DecoderConfig, Mixer
from ember.engine.description.family import ACTIVATIONS, Family, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.layer_types import read_mixers
from ember.engine.description.read_experts import read_experts
from ember.engine.description.read_ssd import read_ssd, ssd_names
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import ExpertNames

NAMES = replace(
    LLAMA_NAMES,
    base="backbone.",
    other_base="model.",
    layer="backbone.layers.{}.",
    embed_tokens="backbone.embeddings",
    final_norm="backbone.norm_f",
    attention_norm="norm",
    mlp_norm=None,
    query="mixer.q_proj",
    key="mixer.k_proj",
    value="mixer.v_proj",
    output="mixer.o_proj",
    gate=None,
    up="mixer.up_proj",
    down="mixer.down_proj",
    ssd=ssd_names("mixer"),
    experts=ExpertNames(
        router="mixer.gate",
        up="mixer.experts.{}.up_proj",
        down="mixer.experts.{}.down_proj",
        correction="mixer.gate.e_score_correction_bias",
        latent_down="mixer.fc1_latent_proj",
        latent_up="mixer.fc2_latent_proj",
        shared_up="mixer.shared_experts.up_proj",
        shared_down="mixer.shared_experts.down_proj",
    ),
    unused=("mtp.",),
)
_PATTERN = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
_MIXERS: dict[str, Mixer] = {
    **dict.fromkeys(("linear_attention", "mamba"), "ssd"),
    **dict.fromkeys(("full_attention", "attention"), "attention"),
    **dict.fromkeys(("mlp", "moe"), "none"),
}
_SSD_NAMES = {
    "mamba_n_heads": "mamba_num_heads",
    "mamba_d_head": "mamba_head_dim",
    "mamba_n_groups": "n_groups",
    "mamba_d_state": "ssm_state_size",
    "mamba_d_conv": "conv_kernel",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_proj_bias": "use_bias",
    "hidden_act": "mamba_hidden_act",
}
# Names of older files, which hold beside the newer ones, as in transformers.
_OLDER_NAMES = ("mamba_n_groups", "mamba_d_conv", "mamba_conv_bias")
MAMBA2_CONTEXT = 131_072  # tokens; its states have no longest context, but pages without content count tokens


def read_nemotron_h(fields: Fields) -> DecoderConfig:
    """Layers of one part each: Mamba 2, attention without positions, an MLP with squared ReLU, or experts of these."""
    kinds = _kinds(fields)
    derived: dict[str, Any] = {"num_hidden_layers": len(kinds), "layers_block_type": kinds}
    given = Fields(ChainMap(derived, fields.values), fields.prefix)  # type: ignore[arg-type]
    config = read_rotary_decoder(
        given,
        max_position_embeddings=4096,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_epsilon",
        activation_field="mlp_hidden_act",
        activation="relu2",
        reads_rope=False,
        intermediate=("intermediate_size", 21504),
    )
    older = {name for name in (*_OLDER_NAMES, "mamba_dt_min") if fields.values.get(name) is not None}
    names = {name: own for name, own in _SSD_NAMES.items() if name not in older}
    least = fields.number("mamba_dt_min" if "mamba_dt_min" in older else "time_step_min", 0.001, at_least=0.0)
    mixers = read_mixers(given, len(kinds), _MIXERS, (), "layers_block_type")
    has_experts = tuple(kind == "moe" for kind in kinds)
    config = replace(
        config,
        names=NAMES,
        wiring="alone",
        gated_mlp=False,
        mlp_bias=fields.flag("mlp_bias", False),
        layer_mixers=mixers,
        ssd=read_ssd(
            fields, config.hidden_size, names, (least, inf), mamba_n_groups=8, mamba_d_state=128, mamba_d_head=64
        ),
    )
    if "ssd" not in mixers:
        config = replace(config, ssd=None)
    if not any(has_experts):
        return config
    experts = read_experts(
        fields,
        ("n_routed_experts num_local_experts", 8),
        ("num_experts_per_tok", 2),
        ("moe_intermediate_size", 7688),
    )
    return replace(
        config,
        experts=replace(
            experts,
            layers=has_experts,
            biases=False,
            scores="sigmoid",
            wide_router=True,
            correction=True,
            normalised=fields.flag("norm_topk_prob", True),
            scale=fields.number("routed_scaling_factor", 1.0),
            groups=fields.integer("n_group", 1),
            groups_per_token=fields.integer("topk_group", 1),
            shared_size=fields.integer("moe_shared_expert_intermediate_size", 7688),
            shared_field="moe_shared_expert_intermediate_size",
            latent_size=fields.optional_integer("moe_latent_size", None),
        ),
    )


def _kinds(fields: Fields) -> list[str]:
    """The types of the layers: a list, or in older files a letter for each."""
    kinds, pattern = fields.names("layers_block_type"), fields.text("hybrid_override_pattern")
    if not kinds and pattern is not None:
        if not pattern or set(pattern) - _PATTERN.keys():
            raise fields.error("hybrid_override_pattern", f"letters of {''.join(_PATTERN)}")
        kinds = [_PATTERN[letter] for letter in pattern]
    kinds = kinds or ["linear_attention", "moe", "full_attention", "mlp"]
    if len(kinds) > MAX_LAYERS:
        raise fields.error("layers_block_type", f"at most {MAX_LAYERS} layers")
    return kinds


def read_mamba2(fields: Fields) -> DecoderConfig:
    """Mamba 2 in all layers, and nothing else."""
    hidden_size = fields.integer("hidden_size", 4096)
    names = _SSD_NAMES | {
        "mamba_n_heads": "num_heads",
        "mamba_d_head": "head_dim",
        "mamba_d_state": "state_size",
        "mamba_expand": "expand",
        "hidden_act": "hidden_act",
    }
    ssd = read_ssd(fields, hidden_size, names, mamba_n_groups=8, mamba_d_state=128)
    num_layers = fields.integer("num_hidden_layers", 64, at_most=MAX_LAYERS)
    mixers: list[Mixer] = ["ssd"] * num_layers
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size", 32768),
        hidden_size=hidden_size,
        intermediate_size=ssd.inner_size,
        num_layers=num_layers,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        max_position_embeddings=MAMBA2_CONTEXT,
        names=replace(NAMES, experts=None),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5, at_least=0.0),
        wiring="alone",
        activation=ACTIVATIONS[fields.one_of("hidden_act", "silu", ("silu",))],
        layer_mixers=tuple(mixers),
        ssd=ssd,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
    )


# Fields of training and of how the same is computed.
_HARMLESS = field_names("time_step_max time_step_floor chunk_size residual_in_fp32 rescale_prenorm_residual")
NEMOTRON_H = Family(
    read_nemotron_h,
    (
        (ROTARY_FIELDS - field_names("rms_norm_eps hidden_act rope_theta rope_scaling rope_parameters"))
        - field_names("partial_rotary_factor original_max_position_embeddings num_hidden_layers")
    )
    | field_names(
        "layers_block_type hybrid_override_pattern layer_norm_epsilon mlp_hidden_act mamba_hidden_act mlp_bias "
        "mamba_num_heads mamba_head_dim n_groups ssm_state_size conv_kernel use_conv_bias use_bias time_step_min "
        "n_routed_experts num_local_experts num_experts_per_tok moe_intermediate_size moe_latent_size norm_topk_prob "
        "routed_scaling_factor n_group topk_group moe_shared_expert_intermediate_size mamba_dt_min"
    )
    | frozenset(_OLDER_NAMES),
    harmless={
        **dict.fromkeys(
            _HARMLESS
            | field_names(
                "num_logits_to_keep use_mamba_kernels expand n_shared_experts moe_shared_expert_overlap "
                "num_nextn_predict_layers mtp_layers_block_type mtp_hybrid_override_pattern layer_types "
                "mamba_ssm_cache_dtype mamba_proj_bias sliding_window num_hidden_layers time_step_limit "
                "mamba_chunk_size mamba_expand mamba_dt_max mamba_dt_init_floor mamba_dt_limit"
            ),
            (),
        ),
        "attention_bias": (False,),
    },
)
MAMBA2 = Family(
    read_mamba2,
    field_names(
        "architectures model_type dtype torch_dtype eos_token_id quantization_config compression_config vocab_size "
        "hidden_size num_hidden_layers tie_word_embeddings hidden_act layer_norm_epsilon num_heads head_dim state_size "
        "expand n_groups conv_kernel use_bias use_conv_bias time_step_limit"
    ),
    harmless=dict.fromkeys(_HARMLESS | {"time_step_rank", "time_step_min", "layer_types"}, ()),
)
