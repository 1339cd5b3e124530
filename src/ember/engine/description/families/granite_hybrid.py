"""Granite 4 and Bamba. This module does not import torch.

Most layers have Mamba 2 (arXiv 2405.21060), the others attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ember.engine.description.config import DecoderConfig, Mixer
from ember.engine.description.families import granite, llama
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import read_mixers
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.read_ssd import HARMLESS, SSD_FIELDS, read_ssd, ssd_names
from ember.engine.description.rotary_decoder import LLAMA_NAMES

NAMES = replace(LLAMA_NAMES, ssd=ssd_names("mamba"))
_MIXERS: dict[str, Mixer] = {
    **dict.fromkeys(("linear_attention", "mamba"), "ssd"),
    **dict.fromkeys(("full_attention", "attention"), "attention"),
}
_DENSE_NAMES = replace(NAMES, gate=None, up=None, gate_up="shared_mlp.input_linear", down="shared_mlp.output_linear")


def read_granite(fields: Fields) -> DecoderConfig:
    """Granite 4: an MLP in all layers, with experts beside it in some models. Most models have no positions."""
    if fields.integer("num_local_experts", 8, at_least=0):
        config = granite.read_moe_shared(fields)
        assert config.experts is not None
        shared = replace(config.experts, shared_size=fields.integer("shared_intermediate_size", 1024))
        config = replace(config, experts=shared)
        names = replace(NAMES, experts=config.names.experts)
    else:
        config = granite.read(fields)
        config = replace(
            config,
            intermediate_size=fields.integer("shared_intermediate_size", 1024),
            intermediate_field="shared_intermediate_size",
        )
        names = _DENSE_NAMES
    older, newer = (fields.values.get(name) is not None for name in ("layers_block_type", "layer_types"))
    kinds = "layers_block_type" if older and not newer else "layer_types"
    absent: list[Mixer] = ["ssd"] * config.num_layers
    mixers = read_mixers(fields, config.num_layers, _MIXERS, absent, kinds)
    has_rope = fields.text("position_embedding_type") == "rope"
    return replace(
        config,
        names=names,
        rope=config.rope if has_rope else None,
        layer_mixers=mixers,
        ssd=read_ssd(fields, config.hidden_size) if "ssd" in mixers else None,
    )


def read_bamba(fields: Fields) -> DecoderConfig:
    """Bamba: a Llama in which few layers have attention, with rotary positions of half of each head."""
    if fields.values.get("partial_rotary_factor") not in (None, 0.5):
        raise fields.error("partial_rotary_factor", "0.5, as in every Bamba")
    config = llama.read(
        fields,
        max_position_embeddings=262144,
        num_kv_heads=8,
        norm_eps=1e-5,
        rope=RopeForm(share=0.5),
    )
    attention = fields.values.get("attn_layer_indices") or ()
    if not isinstance(attention, Sequence) or not all(type(layer) is int for layer in attention):
        raise fields.error("attn_layer_indices", "a list of integers")
    mixers: tuple[Mixer, ...] = tuple(
        "attention" if layer in attention else "ssd" for layer in range(config.num_layers)
    )
    return replace(
        config,
        names=replace(
            NAMES,
            final_norm="model.final_layernorm",
            mlp_norm="pre_ff_layernorm",
            gate="feed_forward.gate_proj",
            up="feed_forward.up_proj",
            down="feed_forward.down_proj",
        ),
        layer_mixers=mixers,
        ssd=read_ssd(fields, config.hidden_size) if "ssd" in mixers else None,
    )


GRANITE_HYBRID = Family(
    read_granite,
    granite.GRANITE_MOE_SHARED.fields
    | SSD_FIELDS
    | field_names("layer_types layers_block_type position_embedding_type"),
    harmless={**dict.fromkeys(HARMLESS | {"init_method"}, ()), "normalization_function": ("rmsnorm",)},
)
BAMBA = Family(
    read_bamba,
    llama.LLAMA.fields | SSD_FIELDS | {"attn_layer_indices"},
    harmless=dict.fromkeys(
        HARMLESS | field_names("attn_rotary_emb num_logits_to_keep z_loss_coefficient layer_types layers_block_type"),
        (),
    ),
)
