"""Reading of rotary positions from a config.json. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
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
_NO_SCALING = field_names("rope_type type rope_theta partial_rotary_factor original_max_position_embeddings")
ROPE_KINDS = {
    "default": _NO_SCALING,
    "linear": _NO_SCALING | {"factor"},
    "llama3": _NO_SCALING | field_names("factor low_freq_factor high_freq_factor"),
    "yarn": _NO_SCALING
    | field_names("factor beta_fast beta_slow truncate attention_factor mscale mscale_all_dim finetuned"),
}
_MAX_FACTOR = 1e6  # largest factor of a context's extension


def read_rope(
    fields: Fields,
    head_dim: int,
    max_position_embeddings: int,
    *,
    theta: float = 10_000.0,
    share: float = 1.0,
    absent: Mapping[str, Any] | None = None,
    reads_alpha: bool = False,
    interleaved: bool = False,
) -> RopeConfig:
    """Read `rope_parameters` (newer files) or `rope_theta` and `rope_scaling` (older ones, which have precedence if a
    file has both, as in transformers). `theta` and `share` (of a head's dimensions) are the family's defaults,
    `absent` the parameters of a file that has neither.
    `reads_alpha`: `alpha` with the kind dynamic stretches the base once for all lengths (Hunyuan).
    `interleaved`: how the family pairs dimensions. Raises ModelError.
    """
    name = "rope_scaling" if fields.mapping("rope_scaling") else "rope_parameters"
    given = fields.mapping(name) or absent or {}
    own = {key: fields.values.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    rope = Fields({**own, **given}, f"{name}." if given else "")
    for key, value in given.items():
        if isinstance(value, dict):
            raise rope.error(key, "a number or a word, the same for all layers")
    other = fields.mapping("rope_parameters")
    if name == "rope_scaling" and other and other != given:
        fields.warnings.append("it has both rope_scaling and rope_parameters, which differ: rope_scaling holds")
    kind = rope.text("rope_type") or rope.text("type") or "default"
    if reads_alpha and kind == "dynamic" and rope.values.get("alpha"):
        alpha = rope.number("alpha", above=0.0)
        return RopeConfig(head_dim, rope.number("rope_theta", theta, above=0.0) * alpha ** (head_dim / (head_dim - 2)))
    if kind not in ROPE_KINDS:
        known = ", ".join(ROPE_KINDS)
        raise ModelError(f"{name}: the rope type {shown(kind)} is not supported; supported are {known}")
    if unread := rope.unread(ROPE_KINDS[kind]):
        fields.warnings.append(f"{listed(unread)} has no meaning for rotary positions of the kind {kind}")
    share = rope.number("partial_rotary_factor", share, above=0.0)
    rotary_dim = int(head_dim * share)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ModelError(f"partial_rotary_factor={share:g} turns {rotary_dim} of a head's {head_dim} dimensions")
    base = RopeConfig(rotary_dim, rope.number("rope_theta", theta, above=0.0), interleaved)
    if kind == "default":
        return base
    original = fields.optional_integer("original_max_position_embeddings", None) or rope.integer(
        "original_max_position_embeddings", max_position_embeddings
    )
    if kind == "linear":
        return replace(base, kind="linear", factor=rope.number("factor", above=0.0, at_most=_MAX_FACTOR))
    if kind == "llama3":
        low = rope.number("low_freq_factor", above=0.0)
        return replace(
            base,
            kind="llama3",
            factor=rope.number("factor", above=0.0, at_most=_MAX_FACTOR),
            low_freq_factor=low,
            high_freq_factor=rope.number("high_freq_factor", above=low),
            original_max_position_embeddings=original,
        )
    factor = rope.number("factor", max_position_embeddings / original, above=0.0, at_most=_MAX_FACTOR)
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


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """YaRN's temperature, 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22), unless the file has another one."""
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor", above=0.0)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return scale(rope.number("mscale", at_least=0.0)) / scale(rope.number("mscale_all_dim", at_least=0.0))
    return scale(1.0)
