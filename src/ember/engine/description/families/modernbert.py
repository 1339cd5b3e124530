"""ModernBERT and EuroBERT (arXiv 2412.13663, 2503.05500). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import with_layer_types
from ember.engine.description.pooling import ClassifierHead, DenseConfig, PoolingType
from ember.engine.description.read_encoder import ENCODER_FIELDS, read_encoder
from ember.engine.description.read_rope import ROPE_FIELDS, RopeForm, read_local_rope, read_rope
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import WeightNames

MODERNBERT_NAMES = WeightNames(
    base="model.",
    layer="model.layers.{}.",
    embed_tokens="model.embeddings.tok_embeddings",
    embed_norm="model.embeddings.norm",
    final_norm="model.final_norm",
    lm_head="decoder",
    attention_norm="attn_norm",
    mlp_norm="mlp_norm",
    qkv="attn.Wqkv",
    output="attn.Wo",
    gate_up="mlp.Wi",
    down="mlp.Wo",
    unused=("head.", "decoder."),
)
_SPELLING = {"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"}


def read_modernbert(fields: Fields) -> DecoderConfig:
    """Rotary positions, gated MLPs, norms before the parts; a window around each token in two of three layers."""
    config = read_encoder(
        fields,
        MODERNBERT_NAMES,
        spelling=_SPELLING,
        max_position_embeddings=8192,
        position_offset=None,
        token_types=None,
        norm_eps=1e-5,
        gated_mlp=True,
    )
    longest, bias = config.max_position_embeddings, fields.flag("attention_bias", False)
    form = RopeForm(theta=160_000.0, theta_name="global_rope_theta", per_layer_type=True)
    rope = read_rope(fields, config.head_dim, longest, form)
    local_form = RopeForm(theta=fields.number("local_rope_theta", 10_000.0, above=0.0))
    local = read_local_rope(fields, config.head_dim, longest, local_form)
    config = replace(
        config,
        wiring="pre_norm",
        norm_bias=fields.flag("norm_bias", False),
        first_norm=False,
        final_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        rope=rope,
        local_rope=None if local == rope else local,
        sliding_window=fields.integer("local_attention", 128) // 2 + 1,
        classifier_head=_head(fields, config.norm_eps),
    )
    interval = fields.integer("global_attn_every_n_layers", 3)
    windows = tuple(layer % interval != 0 for layer in range(config.num_layers))
    return with_layer_types(config, fields, windows)


def _head(fields: Fields, norm_eps: float) -> ClassifierHead:
    """A layer with an activation and a norm, and the classes."""
    act = fields.one_of("classifier_activation", "gelu", ("gelu", "tanh", "relu", "silu"))
    first = DenseConfig(("head.dense",), activation=act, norm="head.norm", norm_eps=norm_eps)
    pooling: PoolingType = "mean" if fields.one_of("classifier_pooling", "cls", ("cls", "mean")) == "mean" else "cls"
    return ClassifierHead((first, DenseConfig(("classifier",))), pooling, is_for_tokens=True)


def read_eurobert(fields: Fields) -> DecoderConfig:
    """A Llama that sees the whole text."""
    pooling = fields.one_of("classifier_pooling", "late", ("late", "bos", "mean"))
    if pooling == "late" and "EuroBertForSequenceClassification" in fields.names("architectures"):
        raise fields.error("classifier_pooling", "bos or mean: the mean of tokens' classes is not supported")
    bias = fields.flag("attention_bias", False)
    config = read_rotary_decoder(fields, max_position_embeddings=8192, norm_eps=1e-5)
    return replace(
        config,
        bidirectional=True,
        has_head=False,
        tie_word_embeddings=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        names=replace(config.names, unused=("dense.",)),
        classifier_head=ClassifierHead(
            (DenseConfig(("dense",), activation="gelu"), DenseConfig(("classifier",))),
            "mean" if pooling == "mean" else "cls",
        ),
    )


MODERNBERT = Family(
    read_modernbert,
    (ENCODER_FIELDS | ROPE_FIELDS | frozenset(_SPELLING.values()))
    - field_names("rope_theta partial_rotary_factor original_max_position_embeddings type_vocab_size")
    | field_names("attention_bias mlp_bias norm_bias layer_types local_attention")
    | field_names("global_attn_every_n_layers global_rope_theta local_rope_theta")
    | field_names("classifier_pooling classifier_activation"),
    harmless=dict.fromkeys(
        field_names(
            "initializer_cutoff_factor mlp_dropout decoder_bias classifier_bias deterministic_flash_attn "
            "sparse_prediction sparse_pred_ignore_index reference_compile repad_logits_with_grad hidden_act "
            "layer_norm_eps"
        ),
        (),
    ),
)
EUROBERT = Family(
    read_eurobert,
    ROTARY_FIELDS | field_names("attention_bias mlp_bias classifier_pooling"),
    harmless=dict.fromkeys(field_names("clf_pooling bos_token eos_token pad_token mask_token"), ()),
)
