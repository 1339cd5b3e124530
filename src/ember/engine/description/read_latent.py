"""Decoders with latent attention (MLA, arXiv 2405.04434), in the line of DeepSeek V2. No torch is imported."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from typing import Any, NamedTuple

from ember.engine.description.config import DecoderConfig, LatentConfig, Mixer
from ember.engine.description.family import ACTIVATIONS, COMMON_FIELDS, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.read_rope import ROPE_FIELDS, RopeForm, yarn_temperature
from ember.engine.description.rotary_decoder import LLAMA_NAMES, with_rope
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

LATENT_NAMES: WeightNames = replace(
    LLAMA_NAMES,
    key=None,
    value=None,
    query_down="self_attn.q_a_proj",
    query_down_norm="self_attn.q_a_layernorm",
    query_up="self_attn.q_b_proj",
    kv_down="self_attn.kv_a_proj_with_mqa",
    kv_down_norm="self_attn.kv_a_layernorm",
    kv_up="self_attn.kv_b_proj",
)
LATENT_FIELDS = (
    COMMON_FIELDS
    | ROPE_FIELDS
    | field_names("kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim attention_bias")
    | field_names("intermediate_size rms_norm_eps hidden_act")
)
# These follow from other fields, whatever they say: every head has keys and values of its own.
LATENT_HARMLESS: dict[str, tuple[Any, ...]] = {"num_key_value_heads": (), "head_dim": (), "qk_head_dim": ()}


_SHARE = "partial_rotary_factor"
_MIXER: tuple[Mixer, ...] = ("latent",)


class LatentSizes(NamedTuple):
    """A family's defaults. `value_dim`: None: hidden_size / num_attention_heads."""

    kv_rank: int = 512
    query_rank: int | None = 1536
    plain_dim: int = 128
    rotary_dim: int = 64
    value_dim: int | None = 128


def read_latent_decoder(
    fields: Fields,
    *,
    max_position_embeddings: int,
    sizes: LatentSizes | None = None,
    norm_eps: float = 1e-6,
    interleaved: bool | None = True,
    rope: RopeForm | None = None,
    shares_head: bool = False,
    tie_word_embeddings: bool = False,
) -> DecoderConfig:
    """Read the fields in `LATENT_FIELDS`, and `rope_interleave`. The other arguments are the family's defaults.

    `interleaved`: the default of `rope_interleave`; None: the family has no such field, and pairs by halves.
    `shares_head`: whether `partial_rotary_factor` is a share of the whole head, not of its rotated part.
    Raises ModelError.
    """
    sizes = sizes or LatentSizes()
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    latent = LatentConfig(
        kv_rank=fields.integer("kv_lora_rank", sizes.kv_rank),
        rotary_dim=fields.integer("qk_rope_head_dim", sizes.rotary_dim),
        plain_dim=fields.integer("qk_nope_head_dim", sizes.plain_dim),
        value_dim=fields.integer("v_head_dim", sizes.value_dim or max(hidden_size // num_heads, 1)),
        query_rank=fields.optional_integer("q_lora_rank", sizes.query_rank),
    )
    bias = fields.flag("attention_bias", False)
    if bias and latent.query_rank is None:
        raise ModelError("attention_bias=true is not supported with q_lora_rank=null: queries have no bias there")
    if latent.rotary_dim % 2:
        raise fields.error("qk_rope_head_dim", "an even number")
    num_layers = fields.integer("num_hidden_layers", at_most=MAX_LAYERS)
    config = DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=1,
        head_dim=latent.size,
        max_position_embeddings=fields.integer("max_position_embeddings", max_position_embeddings),
        names=LATENT_NAMES,
        norm_eps=fields.number("rms_norm_eps", norm_eps, at_least=0.0),
        activation=ACTIVATIONS[fields.one_of("hidden_act", "silu", ACTIVATIONS)],
        tie_word_embeddings=fields.flag("tie_word_embeddings", tie_word_embeddings),
        layer_mixers=_MIXER * num_layers,
        latent=latent,
        qkv_bias=bias,
        output_bias=bias,
    )
    form = rope or RopeForm()
    if interleaved is not None:
        form = replace(form, interleaved=fields.flag("rope_interleave", interleaved))
    config = with_rope(config, _without_share(fields, latent, shares_head), form, latent.rotary_dim)
    return replace(config, attention_scale=_scale(fields, config, latent, form))


def _without_share(fields: Fields, latent: LatentConfig, shares_head: bool) -> Fields:
    """The fields without `partial_rotary_factor`, which can only say what `qk_rope_head_dim` says. Raises
    ModelError."""
    share, shown = 1.0, f"qk_rope_head_dim={latent.rotary_dim}"
    if shares_head:
        share = latent.rotary_dim / latent.head_dim
        shown = f"{shown} of qk_nope_head_dim + qk_rope_head_dim={latent.head_dim}"
    hidden: dict[str, Any] = {}
    for name in ("", "rope_scaling", "rope_parameters"):
        given = Fields(fields.mapping(name), f"{name}.") if name else fields
        if given.values.get(_SHARE) is None:
            continue
        if abs(given.number(_SHARE) - share) > 1e-6:
            raise given.error(_SHARE, f"{share:g}, by {shown}")
        hidden[name or _SHARE] = {key: value for key, value in given.values.items() if key != _SHARE} if name else None
    found = Fields(ChainMap(hidden, fields.values), fields.prefix)  # type: ignore[arg-type]
    found.warnings = fields.warnings
    return found


def _scale(fields: Fields, config: DecoderConfig, latent: LatentConfig, form: RopeForm) -> float:
    """The factor of the products of queries and keys, with YaRN's temperature by `mscale_all_dim`: twice, since that
    of queries and that of keys are multiplied."""
    name = "rope_scaling" if fields.mapping("rope_scaling") else "rope_parameters"
    given = Fields(fields.mapping(name) or form.absent or {}, f"{name}.")
    weight = given.number("mscale_all_dim", 0.0, at_least=0.0)
    scale = latent.head_dim**-0.5
    if config.rope is None or config.rope.kind == "default" or not weight:
        return scale
    return float(scale * yarn_temperature(config.rope.factor, weight) ** 2)
