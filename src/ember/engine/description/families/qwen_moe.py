"""Qwen 2 and 3 with experts (arXiv 2407.10671, 2505.09388). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig, ExpertsConfig
from ember.engine.description.deepseek_experts import sparse_layers
from ember.engine.description.families.qwen import QWEN3_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_experts import EXPERT_NAMES, expert_layers, read_experts
from ember.engine.description.read_rope import RopeForm, read_local_rope
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import ExpertNames

STACKED_NAMES = ExpertNames(
    router="mlp.gate", gate_up="mlp.experts.gate_up_proj", down="mlp.experts.down_proj", transposed=None
)
QWEN2_MOE_NAMES = replace(
    LLAMA_NAMES,
    experts=replace(
        EXPERT_NAMES,
        shared_gate="mlp.shared_expert.gate_proj",
        shared_up="mlp.shared_expert.up_proj",
        shared_down="mlp.shared_expert.down_proj",
        shared_router="mlp.shared_expert_gate",
    ),
)


def read_qwen3_moe(fields: Fields) -> DecoderConfig:
    """Qwen3 with 128 experts, of which a token has 8."""
    bias, config = fields.flag("attention_bias", False), _read(fields, num_kv_heads=4)
    return replace(
        config,
        names=replace(QWEN3_NAMES, experts=EXPERT_NAMES),
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        experts=_experts(fields, config.num_layers, ("num_local_experts num_experts", 128), per_token=8, size=768),
    )


def read_qwen3_vl_moe(fields: Fields) -> DecoderConfig:
    """The language model of Qwen3-VL with experts, which are in one tensor."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=128000,
        num_kv_heads=16,
        rope=RopeForm(theta=500_000.0),
        tie_word_embeddings=True,
    )
    bias = fields.flag("attention_bias", False)
    experts = read_experts(
        fields, ("num_local_experts num_experts", 60), ("num_experts_per_tok", 4), ("moe_intermediate_size", 1408)
    )
    return replace(
        config,
        names=replace(QWEN3_NAMES, experts=STACKED_NAMES),
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        experts=replace(experts, layers=expert_layers(fields, config.num_layers)),
    )


def read_mellum(fields: Fields) -> DecoderConfig:
    """Mellum 2: Qwen3 with experts, and windows in some layers, which have rotary positions of their own."""
    bias = fields.flag("attention_bias", False)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=4,
        head_dim=128,
        rope=RopeForm(theta=500_000.0, per_layer_type=True),
    )
    longest = config.max_position_embeddings
    local = read_local_rope(fields, config.head_dim, longest, RopeForm(theta=10_000.0))
    count, per_token, size = ("num_local_experts num_experts", 64), ("num_experts_per_tok", 8), 896
    experts = read_experts(fields, count, per_token, ("moe_intermediate_size", size))
    layers = sparse_layers(fields, (True,) * config.num_layers)
    config = replace(
        config,
        names=replace(QWEN3_NAMES, experts=EXPERT_NAMES, unused=("mtp.",)),
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        local_rope=None if local == config.rope else local,
        sliding_window=fields.optional_integer("sliding_window", 1024),
        experts=replace(
            experts,
            normalised=fields.flag("norm_topk_prob", True),
            layers=() if all(layers) else layers,
        ),
    )
    return with_layer_types(config, fields, (False,) * config.num_layers)


def read_qwen2_moe(fields: Fields) -> DecoderConfig:
    """Qwen2 with experts, and an MLP with a router of its own that computes every token."""
    config = _read(fields, num_kv_heads=16)
    config = replace(
        config,
        names=QWEN2_MOE_NAMES,
        qkv_bias=fields.flag("qkv_bias", True),
        experts=replace(
            _experts(fields, config.num_layers, ("num_experts num_local_experts", 60), per_token=4, size=1408),
            shared_size=fields.integer("shared_expert_intermediate_size", 5632),
            shared_field="shared_expert_intermediate_size",
            shared_router=True,
        ),
    )
    last = fields.integer("max_window_layers", 28, at_least=0)
    windowed = [is_odd and layer < last for layer, is_odd in enumerate(every_nth(2, False, config.num_layers))]
    return with_layer_types(config, fields, None if config.sliding_window is None else windowed)


def _read(fields: Fields, num_kv_heads: int) -> DecoderConfig:
    config = read_rotary_decoder(fields, max_position_embeddings=32768, num_kv_heads=num_kv_heads)
    uses_window = fields.flag("use_sliding_window", False)
    return replace(config, sliding_window=fields.optional_integer("sliding_window", 4096) if uses_window else None)


def _experts(fields: Fields, num_layers: int, count: tuple[str, int], *, per_token: int, size: int) -> ExpertsConfig:
    experts = read_experts(fields, count, ("num_experts_per_tok", per_token), ("moe_intermediate_size", size))
    normalised = fields.flag("norm_topk_prob", False)
    return replace(experts, normalised=normalised, layers=expert_layers(fields, num_layers))


_EXPERT_FIELDS = field_names(
    "num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step "
    "mlp_only_layers use_sliding_window sliding_window"
)
QWEN3_VL_MOE = Family(
    read_qwen3_vl_moe,
    ROTARY_FIELDS
    | _EXPERT_FIELDS - field_names("norm_topk_prob use_sliding_window sliding_window")
    | {"attention_bias"},
    harmless={"norm_topk_prob": (True,)},
)
QWEN3_MOE = Family(
    read_qwen3_moe, ROTARY_FIELDS | _EXPERT_FIELDS | {"attention_bias"}, harmless={"max_window_layers": ()}
)
MELLUM = Family(
    read_mellum,
    ROTARY_FIELDS
    | field_names(
        "attention_bias sliding_window layer_types mlp_layer_types num_experts num_local_experts num_experts_per_tok "
        "moe_intermediate_size norm_topk_prob"
    ),
    harmless=dict.fromkeys(
        field_names("num_mtp_layers num_nextn_predict_layers mtp_layer_types mtp_mlp_layer_types"), ()
    ),
)
QWEN2_MOE = Family(
    read_qwen2_moe,
    ROTARY_FIELDS
    | _EXPERT_FIELDS
    | field_names("qkv_bias max_window_layers layer_types shared_expert_intermediate_size"),
)
