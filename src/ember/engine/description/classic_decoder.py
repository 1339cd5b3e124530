"""The common part of decoders in the line of GPT-2: LayerNorm with biases, a plain MLP four times as wide. No torch is
imported."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import ACTIVATIONS, COMMON_FIELDS, divide_into_heads, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

GPT_SPELLING = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "activation": "activation_function",
}
"""The names of fields in files of GPT-2 and its relatives, by their usual names. The usual ones are read too."""

_USUAL = field_names("hidden_size num_hidden_layers num_attention_heads max_position_embeddings")
CLASSIC_FIELDS = COMMON_FIELDS | {"layer_norm_epsilon"}
GPT_FIELDS = CLASSIC_FIELDS | frozenset(GPT_SPELLING.values())


def read_classic_decoder(
    fields: Fields,
    names: WeightNames,
    *,
    spelling: Mapping[str, str] = GPT_SPELLING,
    max_position_embeddings: int = 2048,
    activation: str = "gelu_new",
    tie_word_embeddings: bool = True,
) -> DecoderConfig:
    """Read the fields of `spelling` and of `CLASSIC_FIELDS`. The arguments are the family's defaults. Where `spelling`
    has no name for a field, the default holds. Raises ModelError."""
    hidden_name, heads_name = spelled(fields, spelling, "hidden_size"), spelled(fields, spelling, "num_attention_heads")
    for name, usual in ((hidden_name, "hidden_size"), (heads_name, "num_attention_heads")):
        if fields.values.get(name) is None and name != usual:
            raise ModelError(f"the field {fields.prefix}{name} (or {usual}) is missing")
    hidden_size, num_heads = fields.integer(hidden_name), fields.integer(heads_name)
    inner, inner_name = spelling.get("intermediate_size"), f"4 * {hidden_name}"
    inner_size = None if inner is None else fields.optional_integer(inner, None)
    if inner is not None and inner_size is not None:
        inner_name = inner
    act = spelling.get("activation")
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=inner_size or 4 * hidden_size,
        intermediate_field=inner_name,
        num_layers=fields.integer(spelled(fields, spelling, "num_hidden_layers"), at_most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=divide_into_heads(hidden_name, hidden_size, num_heads, heads_name),
        max_position_embeddings=fields.integer(
            spelled(fields, spelling, "max_position_embeddings"), max_position_embeddings
        ),
        names=names,
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5, at_least=0.0),
        norm_bias=True,
        activation=ACTIVATIONS[activation if act is None else fields.one_of(act, activation, ACTIVATIONS)],
        gated_mlp=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=fields.flag("tie_word_embeddings", tie_word_embeddings),
    )


def spelled(fields: Fields, spelling: Mapping[str, str], usual: str) -> str:
    """The name that a file has for a field: the family's own, or the usual one if only that is there."""
    own = spelling.get(usual, usual)
    is_there = {name: fields.values.get(name) is not None for name in (own, usual)}
    return usual if is_there[usual] and not is_there[own] else own


def must_be(fields: Fields, name: str, neutral: bool) -> None:
    """Raise ModelError unless a flag has its usual value, the only one that is computed."""
    if fields.flag(name, neutral) != neutral:
        raise fields.error(name, f"{str(neutral).lower()}: the other is not supported")


def alibi_slopes(num_heads: int, largest_exponent: float = 8.0, scale: float = 1.0) -> tuple[float, ...]:
    """Each head's slope (arXiv 2108.12409): a geometric sequence down to 2 ** -largest_exponent, times `scale`.

    For a number of heads that is no power of two, it is the sequence of the power below, followed by every other slope
    of the sequence of the power above.
    """
    power = 1 << int(math.log2(num_heads))

    def sequence(count: int) -> list[float]:
        return [2 ** (-largest_exponent * (head + 1) / count) for head in range(count)]

    slopes = sequence(power) + sequence(2 * power)[::2][: num_heads - power]
    return tuple(slope * scale for slope in slopes)
