"""The common part of encoders in the line of BERT (arXiv 1810.04805). No torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ember.engine.description.classic_decoder import must_be, spelled
from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import ACTIVATIONS, COMMON_FIELDS, divide_into_heads, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.pooling import ClassifierHead, DenseConfig
from ember.engine.description.weight_names import WeightNames

ENCODER_FIELDS = COMMON_FIELDS | field_names(
    "intermediate_size hidden_act layer_norm_eps type_vocab_size position_embedding_type is_decoder"
)
ENCODER_ACTIVATIONS = ACTIVATIONS | {
    "swish": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}
USUAL: Mapping[str, str] = MappingProxyType({})


def read_encoder(
    fields: Fields,
    names: WeightNames,
    *,
    spelling: Mapping[str, str] = USUAL,
    max_position_embeddings: int = 512,
    position_offset: int | None = 0,
    token_types: int | None = 2,
    activation: str = "gelu",
    norm_eps: float = 1e-12,
    gated_mlp: bool = False,
    head: ClassifierHead | None = None,
) -> DecoderConfig:
    """Norms after the sums, biases, learned positions and token types.

    The arguments are the family's defaults. `spelling`: the family's names of fields, by their usual names.
    `position_offset`: rows at the beginning of the table of positions that no text uses; None: the family has no
    learned positions. `token_types`: None: the family has none. Raises ModelError.
    """

    def name(usual: str) -> str:
        return spelled(fields, spelling, usual)

    kinds = ("absolute",) if position_offset is not None else ("absolute", "rope", "rotary", "sans_pos")
    fields.one_of("position_embedding_type", "absolute", kinds)
    must_be(fields, "is_decoder", False)
    hidden_size, num_heads = fields.integer(name("hidden_size")), fields.integer(name("num_attention_heads"))
    rows = fields.integer(name("max_position_embeddings"), max_position_embeddings)
    if token_types is not None:
        token_types = fields.integer("type_vocab_size", token_types, at_least=0)
    inner = name("intermediate_size")
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer(inner, 4 * hidden_size),
        intermediate_field=inner,
        num_layers=fields.integer(name("num_hidden_layers"), at_most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=divide_into_heads(name("hidden_size"), hidden_size, num_heads, name("num_attention_heads")),
        max_position_embeddings=rows - (position_offset or 0),
        names=names,
        bidirectional=True,
        has_head=False,
        norm="layer",
        norm_eps=fields.number(name("layer_norm_eps"), norm_eps, at_least=0.0),
        norm_bias=True,
        wiring="post_norm",
        final_norm=False,
        activation=ENCODER_ACTIVATIONS[fields.one_of(name("hidden_act"), activation, ENCODER_ACTIVATIONS)],
        gated_mlp=gated_mlp,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        embed_norm=True,
        position_offset=position_offset,
        token_types=token_types or 0,
        tie_word_embeddings=True,
        classifier_head=head,
    )


def classifier_of(bases: tuple[str, ...], *layers: tuple[str, str]) -> ClassifierHead:
    """A head with these layers, of which the names and activations are given. `bases`: prefixes of the encoder, of
    which the pooler is a part."""
    names = (
        (*(f"{base}{name}" for base in bases), name) if name.startswith("pooler") else (name,) for name, _ in layers
    )
    return ClassifierHead(
        tuple(DenseConfig(each, activation=act) for each, (_, act) in zip(names, layers, strict=True))
    )


def with_mask_head(
    config: DecoderConfig, transform: str, norm: str, decoder: str, bias: str, activation: str | None = None
) -> DecoderConfig:
    """The configuration with the head for masked tokens of these modules. Its last matrix is `decoder`, or the
    embedding. `activation`: in place of the layers'."""
    embedding = config.names.embed_tokens
    first = DenseConfig((transform,), activation=activation or config.activation, norm=norm, norm_eps=config.norm_eps)
    last = DenseConfig((decoder, embedding, embedding.removeprefix(config.names.base)), config.vocab_size, bias=bias)
    return replace(config, mask_head=(first, last))
