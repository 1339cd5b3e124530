"""Reading of rotary positions from a config.json. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ember.engine.description.family import field_names
from ember.engine.description.fields import Fields, listed, shown
from ember.engine.description.rope_config import RopeConfig
from ember.engine.errors import ModelError

# The fields of config.json that `read_rope` reads, apart from `rope_parameters` and `rope_scaling`.
ROPE_FIELDS = field_names(
    "rope_theta rope_scaling rope_parameters partial_rotary_factor original_max_position_embeddings"
)
# The fields of `rope_parameters` by the kind of scaling. `original_max_position_embeddings` and fields with neutral
# values are allowed for every kind.
_NO_SCALING = field_names(
    "rope_type type rope_theta partial_rotary_factor original_max_position_embeddings mrope_section mrope_interleaved"
)
ROPE_KINDS = {
    "default": _NO_SCALING,
    "mrope": _NO_SCALING,  # the positions of text are the same in all its sections
    "linear": _NO_SCALING | {"factor"},
    "proportional": _NO_SCALING | {"factor"},
    "dynamic": _NO_SCALING | {"factor"},
    "llama3": _NO_SCALING | field_names("factor low_freq_factor high_freq_factor"),
    "yarn": _NO_SCALING
    | field_names("factor beta_fast beta_slow truncate attention_factor mscale mscale_all_dim finetuned"),
    "longrope": _NO_SCALING | field_names("factor short_factor long_factor attention_factor short_mscale long_mscale"),
}
_LAYER_TYPES = field_names("full_attention sliding_attention")  # that have parameters of their own in some families
_QUERY_BETA = field_names("llama_4_scaling_beta max_position_embeddings")
_MAX_FACTOR = 1e6  # largest factor of a context's extension


@dataclass(frozen=True, slots=True)
class RopeForm:
    """How a family's config.json gives rotary positions: its defaults, and what only this family has."""

    theta: float = 10_000.0
    share: float = 1.0  # of a head's dimensions that are rotated
    absent: Mapping[str, Any] | None = None  # `rope_parameters` of a file that has none
    theta_name: str = "rope_theta"  # of the field in older files
    share_name: str = "partial_rotary_factor"
    original: int | None = None  # original_max_position_embeddings of a file without it
    renamed: Mapping[str, str] = field(default_factory=dict)  # kinds that mean another one in this family
    interleaved: bool = False
    per_layer_type: bool = False  # `rope_parameters` has an object for each type of layers
    reads_alpha: bool = False  # `alpha` with the kind dynamic stretches theta once for all lengths (Hunyuan)
    reads_query_beta: bool = False  # queries are scaled by their positions with `llama_4_scaling_beta` (Ministral 3)


def read_rope(fields: Fields, head_dim: int, max_position_embeddings: int, form: RopeForm | None = None) -> RopeConfig:
    """Read `rope_parameters` (newer files) or `rope_theta` and `rope_scaling` (older ones, which have precedence if a
    file has both, as in transformers). Raises ModelError.

    With parameters for each type of layers, it returns those of full_attention, to which those of older files belong.
    """
    form = form or RopeForm()
    name = "rope_scaling" if fields.mapping("rope_scaling") else "rope_parameters"
    given = fields.mapping(name) or form.absent or {}
    if form.per_layer_type and name == "rope_parameters":
        types = Fields(given, f"{name}.")
        if unread := types.unread(_LAYER_TYPES):
            fields.warnings.append(f"{listed(unread)} is not read: there are {name} for each type of layers")
        given, name = types.mapping("full_attention"), f"{name}.full_attention"
    own = {
        "rope_theta": fields.values.get(form.theta_name),
        "partial_rotary_factor": fields.values.get(form.share_name),
    }
    for key, own_name in (("rope_theta", form.theta_name), ("partial_rotary_factor", form.share_name)):
        if given.get(key) is None and own[key] is not None:
            fields.number(own_name, above=0.0)  # a fault is that of the field beside the object
    other = fields.mapping("rope_parameters")
    if name == "rope_scaling" and other and other != given:
        fields.warnings.append("it has both rope_scaling and rope_parameters, which differ: rope_scaling holds")
    return _rope(fields, Fields({**own, **given}, f"{name}." if given else ""), head_dim, max_position_embeddings, form)


def read_local_rope(fields: Fields, head_dim: int, max_position_embeddings: int, form: RopeForm) -> RopeConfig:
    """Read the rotary positions of the layers with sliding_attention. Older files do not have them. Raises ModelError.

    `form.theta`: the base that older files mean.
    """
    name = "rope_parameters.sliding_attention"
    given = Fields(fields.mapping("rope_parameters"), "rope_parameters.").mapping("sliding_attention")
    return _rope(fields, Fields(given, f"{name}."), head_dim, max_position_embeddings, form)


def warn_of_unused_rope(fields: Fields) -> None:
    """Warn of a scaling of rotary positions in the file of a model that has ALiBi instead."""
    for name in ("rope_scaling", "rope_parameters"):
        given = fields.mapping(name)
        if (kind := given.get("rope_type") or given.get("type") or "default") != "default":
            fields.warnings.append(f"{name} of the kind {shown(kind)} changes nothing: the positions are ALiBi's")


def _rope(fields: Fields, rope: Fields, head_dim: int, max_position_embeddings: int, form: RopeForm) -> RopeConfig:
    """Read one object of parameters, which `rope` has beside those of older files. `fields`: the whole file."""
    for key, value in rope.values.items():
        if isinstance(value, dict):
            raise rope.error(key, "a number or a word, the same for all layers")
    kind = rope.text("rope_type") or rope.text("type") or "default"
    theta = rope.number("rope_theta", form.theta, above=0.0)
    if form.reads_alpha and kind == "dynamic" and rope.values.get("alpha"):
        alpha = rope.number("alpha", above=0.0, at_most=_MAX_FACTOR)
        theta *= alpha ** (head_dim / max(head_dim - 2, 1))
        kind, rope = "default", Fields({}, rope.prefix)
    kind = form.renamed.get(kind, kind)
    if kind not in ROPE_KINDS:
        known, name = ", ".join(ROPE_KINDS), "rope_type" if rope.text("rope_type") else "type"
        raise ModelError(f"{rope.prefix}{name}: the rope type {shown(kind)} is not supported; supported are {known}")
    known_fields = ROPE_KINDS[kind] | (_QUERY_BETA if form.reads_query_beta else frozenset())
    if unread := rope.unread(known_fields):
        fields.warnings.append(f"{listed(unread)} has no meaning for rotary positions of the kind {kind}")
    share = rope.number("partial_rotary_factor", form.share, above=0.0)
    if kind == "proportional":
        return _proportional(rope, head_dim, share, theta)
    rotary_dim = int(head_dim * share)
    if share == 1 and head_dim % 2:
        raise ModelError(f"head_dim={head_dim} must be even: rotary positions turn pairs of dimensions")
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ModelError(
            f"{rope.prefix}partial_rotary_factor={share:g} rotates {rotary_dim} of head_dim={head_dim} dimensions: it "
            "must be an even number of them"
        )
    base = RopeConfig(rotary_dim, theta, form.interleaved)
    if form.reads_query_beta and rope.values.get("llama_4_scaling_beta") is not None:
        original = rope.integer("original_max_position_embeddings", max_position_embeddings)
        beta = rope.number("llama_4_scaling_beta")
        base = replace(base, query_beta=beta, original_max_position_embeddings=original)
    if kind in ("default", "mrope"):
        return base
    if kind == "linear":
        return replace(base, kind="linear", factor=rope.number("factor", above=0.0, at_most=_MAX_FACTOR))
    if kind == "dynamic":
        return _dynamic(fields, rope, base, max_position_embeddings)
    original = fields.optional_integer("original_max_position_embeddings", form.original) or rope.integer(
        "original_max_position_embeddings", max_position_embeddings
    )
    if kind == "longrope":
        return _longrope(fields, rope, base, original, max_position_embeddings)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor", above=0.0), rope.number("high_freq_factor", above=0.0)
        if high < low:
            raise rope.error("high_freq_factor", f"at least low_freq_factor={low:g}")
        return replace(
            base,
            kind="llama3",
            factor=rope.number("factor", above=0.0, at_most=_MAX_FACTOR),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=original,
        )
    if "factor" not in rope.values:
        raise ModelError(f"the field {rope.prefix}factor is missing")
    factor = _extension(rope, original, max_position_embeddings)
    if base.theta <= 1:
        raise rope.error("rope_theta", "a number above 1 for yarn")
    return replace(
        base,
        kind="yarn",
        factor=factor,
        beta_fast=rope.number("beta_fast", 32.0, above=0.0),
        beta_slow=rope.number("beta_slow", 1.0, above=0.0),
        truncate=rope.flag("truncate", True),
        attention_factor=_yarn_attention_factor(rope, factor),
        original_max_position_embeddings=original,
    )


def _proportional(rope: Fields, head_dim: int, share: float, theta: float) -> RopeConfig:
    """The frequencies are those of whole heads, but only the first pairs of dimensions are rotated."""
    num_pairs = int(share * head_dim // 2)
    if share > 1 or not num_pairs or head_dim % 2:
        raise ModelError(
            f"partial_rotary_factor={share:g} rotates {num_pairs} pairs of {head_dim} dimensions "
            "(head_dim, global_head_dim)"
        )
    factor = rope.number("factor", 1.0, above=0.0, at_most=_MAX_FACTOR)
    return RopeConfig(head_dim, theta, kind="proportional", factor=factor, num_pairs=num_pairs)


def _dynamic(fields: Fields, rope: Fields, base: RopeConfig, original: int) -> RopeConfig:
    """Up to the original length it is the kind default, so that is the longest context until another one is asked
    for."""
    factor = rope.number("factor", at_least=1.0, at_most=_MAX_FACTOR)
    if base.rotary_dim < 4:
        raise ModelError(
            f"{rope.prefix[:-1]}: dynamic needs more than the {base.rotary_dim} dimensions that are rotated"
        )
    longest = f"contexts up to max_position_embeddings={original} are served"
    if factor > 1:
        longest += f", or up to {int(original * factor)} with that MAX_MODEL_LEN"
    fields.warnings.append(f"the rope type dynamic changes longer contexts only, and {longest}")
    return replace(
        base, kind="dynamic", factor=factor, original_max_position_embeddings=original, served_length=original
    )


def _longrope(
    fields: Fields, rope: Fields, base: RopeConfig, original: int, max_position_embeddings: int
) -> RopeConfig:
    """`attention_factor` by default: sqrt(1 + ln(factor) / ln(original)) (arXiv 2402.13753), where `factor` is that of
    the context's extension."""
    count = base.rotary_dim // 2
    factor = _extension(rope, original, max_position_embeddings)
    attention_factor = 1.0 if factor <= 1 or original == 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    attention_factor = rope.number("attention_factor", attention_factor, above=0.0)
    why = f", half of the dimensions that head_dim and partial_rotary_factor rotate ({base.rotary_dim})"
    has_own = rope.values.get("long_mscale") is not None
    short_factor, long_factor = rope.numbers("short_factor", count, why), rope.numbers("long_factor", count, why)
    if short_factor != long_factor and max_position_embeddings > original:
        fields.warnings.append(
            f"the rope type longrope has short_factor for all sequences with a MAX_MODEL_LEN up to {original}, and "
            "otherwise long_factor for all"
        )
    return replace(
        base,
        kind="longrope",
        factor=factor,
        original_max_position_embeddings=original,
        short_factor=short_factor,
        long_factor=long_factor,
        attention_factor=rope.number("short_mscale", attention_factor, above=0.0),
        long_attention_factor=rope.number("long_mscale", above=0.0) if has_own else None,
        served_length=max_position_embeddings,
    )


def _extension(rope: Fields, original: int, max_position_embeddings: int) -> float:
    """The factor of a context's extension, by default that of its lengths."""
    ratio = max_position_embeddings / original
    if rope.values.get("factor") is None and ratio > _MAX_FACTOR:
        raise ModelError(
            f"max_position_embeddings={max_position_embeddings} is more than {_MAX_FACTOR:g} times "
            f"{rope.prefix}original_max_position_embeddings={original}"
        )
    return rope.number("factor", ratio, above=0.0, at_most=_MAX_FACTOR)


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """YaRN's temperature, 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22), unless the file has another one."""
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor", above=0.0)

    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        mscale, mscale_all = (rope.number(name, at_least=0.0) for name in ("mscale", "mscale_all_dim"))
        return yarn_temperature(factor, mscale) / yarn_temperature(factor, mscale_all)
    return yarn_temperature(factor)


def yarn_temperature(factor: float, weight: float = 1.0) -> float:
    """YaRN's temperature of a context that is `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
