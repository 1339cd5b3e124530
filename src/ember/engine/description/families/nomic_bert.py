"""NomicBERT and GTE (arXiv 2402.01613, 2407.19669). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import must_be
from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.bert import bert_names, pooler_and_classifier
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_encoder import ENCODER_FIELDS, read_encoder
from ember.engine.description.read_rope import ROPE_FIELDS, RopeForm, read_rope
from ember.engine.description.rope_config import RopeConfig

_SPELLING = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
}
NOMIC_NAMES = replace(
    bert_names("bert."),
    layer="bert.encoder.layers.{}.",
    embed_norm="bert.emb_ln",
    attention_norm="norm1",
    mlp_norm="norm2",
    query=None,
    key=None,
    value=None,
    qkv="attn.Wqkv",
    output="attn.out_proj",
    gate="mlp.fc12",
    up="mlp.fc11",
    down="mlp.fc2",
    other_base="nomic_bert.",
)
GTE_NAMES = replace(
    bert_names("new."),
    attention_norm="attn_ln",
    mlp_norm="mlp_ln",
    query=None,
    key=None,
    value=None,
    qkv="attention.qkv_proj",
    output="attention.o_proj",
    up=None,
    up_gate="mlp.up_gate_proj",
    down="mlp.down_proj",
    other_base="gte.",
)


def read_nomic(fields: Fields) -> DecoderConfig:
    """A BERT with rotary positions and a gated MLP, in most files without biases."""
    for name in ("prenorm", "parallel_block", "use_rms_norm", "causal", "rotary_emb_interleaved"):
        must_be(fields, name, False)
    if fields.values.get("num_experts") or fields.values.get("moe_every_n_layers"):
        raise fields.error("num_experts", "absent: experts of this family are not supported")
    config = read_encoder(
        fields,
        NOMIC_NAMES,
        spelling=_SPELLING,
        max_position_embeddings=2048,
        position_offset=None,
        activation="silu",
        gated_mlp=True,
        head=pooler_and_classifier("bert.", "nomic_bert."),
    )
    bias = fields.flag("qkv_proj_bias", False)
    form = RopeForm(theta=1000.0, theta_name="rotary_emb_base", share_name="rotary_emb_fraction")
    longest = config.max_position_embeddings
    if fields.values.get("rotary_scaling_factor") is not None:
        # The base would grow with the length of each text beyond these positions.
        longest = min(longest, fields.integer("max_trained_positions", 2048))
        fields.warnings.append(f"rotary_scaling_factor is not used: texts may have {longest} tokens")
    return replace(
        config,
        max_position_embeddings=longest,
        rope=read_rope(fields, config.head_dim, longest, form),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_fc2_bias", False),
        up_bias=fields.flag("mlp_fc1_bias", False),
    )


def read_gte(fields: Fields) -> DecoderConfig:
    """A BERT with rotary positions and a gated MLP, whose first matrix has no bias."""
    for name in ("logn_attention_scale", "logn_attention_clip1"):
        must_be(fields, name, False)
    fields.one_of("layer_norm_type", "layer_norm", ("layer_norm",))
    learned = fields.text("position_embedding_type", "rope") == "absolute"
    config = read_encoder(
        fields,
        GTE_NAMES,
        max_position_embeddings=8192,
        position_offset=0 if learned else None,
        token_types=1,
        gated_mlp=True,
        head=pooler_and_classifier("new.", "gte."),
    )
    return replace(config, up_bias=False, rope=None if learned else _gte_rope(fields, config))


def _gte_rope(fields: Fields, config: DecoderConfig) -> RopeConfig:
    """The kind `ntk` stretches the base by its factor, and then slows all frequencies, so that the slowest one has the
    factor's wavelength."""
    size, longest = config.head_dim, config.max_position_embeddings
    scaling = Fields(fields.mapping("rope_scaling"), "rope_scaling.")
    if scaling.text("type") != "ntk":
        return read_rope(fields, size, longest, RopeForm(theta=160_000.0))
    if scaling.values.get("mixed_b") is not None:
        raise scaling.error("mixed_b", "absent: it is not supported")
    factor = scaling.number("factor", 1.0, at_least=1.0, at_most=1e6)
    theta = fields.number("rope_theta", 160_000.0, above=0.0)
    return RopeConfig(size, theta=theta * factor, kind="linear", factor=factor ** (2 / size))


NOMIC_BERT = Family(
    read_nomic,
    ENCODER_FIELDS
    | frozenset(_SPELLING.values())
    | ROPE_FIELDS
    | field_names("rotary_emb_base rotary_emb_fraction rotary_emb_interleaved rotary_scaling_factor prenorm")
    | field_names("max_trained_positions parallel_block use_rms_norm causal qkv_proj_bias mlp_fc1_bias mlp_fc2_bias")
    | field_names("num_experts moe_every_n_layers"),
    harmless={
        "rotary_emb_scale_base": (None,),
        "head_dim": (),
        "parallel_block_tied_norm": (),  # of parallel blocks alone
        **dict.fromkeys(
            field_names(
                "dense_seq_output fused_bias_fc fused_dropout_add_ln last_layer_subset pad_vocab_size_multiple "
                "scale_attn_by_inverse_layer_idx scale_attn_weights reorder_and_upcast_attn summary_activation "
                "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj use_flash_attn "
                "use_xentropy sequence_parallel expert_choice_router ffn_div moe_impl moe_normalize_expert_weights "
                "moe_resid_pdrop moe_top_k num_shared_experts router_aux_loss_coef"
            ),
            (),
        ),
    },
)
GTE = Family(
    read_gte,
    ENCODER_FIELDS | ROPE_FIELDS | field_names("logn_attention_scale logn_attention_clip1 layer_norm_type"),
    harmless=dict.fromkeys(
        field_names("pack_qkv unpad_inputs use_memory_efficient_attention pad_token_id matryoshka_dimensions"), ()
    ),
)
