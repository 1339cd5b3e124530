"""ERNIE 4.5, dense and with experts. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import EXPERT_NAMES, read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder

MOE_NAMES = replace(
    EXPERT_NAMES,
    correction="mlp.moe_statics.e_score_correction_bias",
    correction_dim=2,
    shared_gate="mlp.shared_experts.gate_proj",
    shared_up="mlp.shared_experts.up_proj",
    shared_down="mlp.shared_experts.down_proj",
)


def read(fields: Fields, num_kv_heads: int = 2, head_dim: int | None = 128) -> DecoderConfig:
    """A Llama with interleaved rotary positions, and biases everywhere or nowhere."""
    bias = fields.flag("use_bias", False)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
        rope=RopeForm(theta=500_000.0, interleaved=True),
        tie_word_embeddings=True,
    )
    return replace(config, qkv_bias=bias, output_bias=bias, mlp_bias=bias)


def read_moe(fields: Fields) -> DecoderConfig:
    """ERNIE 4.5 with experts in most layers, and an MLP that computes every token."""
    config = read(fields, num_kv_heads=4, head_dim=None)
    experts = read_experts(
        fields, ("moe_num_experts num_experts", 64), ("moe_k num_experts_per_tok", 6), ("moe_intermediate_size", 1536)
    )
    first = fields.integer("moe_layer_start_index", 1, at_least=0)
    last, interval = fields.integer("moe_layer_end_index", -1, at_least=-1), fields.integer("moe_layer_interval", 1)
    last = config.num_layers - 1 if last == -1 else last
    layers = tuple((layer + 1) % interval == 0 and first <= layer <= last for layer in range(config.num_layers))
    shared = fields.integer("moe_num_shared_experts", 2, at_least=0)
    return replace(
        config,
        names=replace(config.names, experts=MOE_NAMES, unused=("model.mtp_",)),
        head_bias=config.mlp_bias,
        experts=replace(
            experts,
            layers=layers,
            wide_router=True,
            correction=True,
            biases=False,
            norm_min=fields.number("moe_norm_min", 1e-12, at_least=0.0),
            shared_size=shared * experts.intermediate_size,
            shared_field="moe_num_shared_experts * moe_intermediate_size",
        ),
    )


ERNIE4_5 = Family(read, ROTARY_FIELDS | {"use_bias"})
ERNIE4_5_MOE = Family(
    read_moe,
    ERNIE4_5.fields
    | field_names(
        "moe_num_experts num_experts moe_k num_experts_per_tok moe_intermediate_size moe_layer_start_index "
        "moe_layer_end_index moe_layer_interval moe_num_shared_experts moe_norm_min"
    ),
    harmless={
        **dict.fromkeys(field_names("moe_capacity num_nextn_predict_layers"), ()),
        "moe_gate": ("topk",),
        "moe_use_aux_free": (True,),
    },
)
