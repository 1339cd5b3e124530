"""The fields of config.json about experts. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from ember.engine.description.config import ExpertsConfig
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.weight_names import ExpertNames
from ember.engine.errors import ModelError

EXPERT_NAMES = ExpertNames(
    router="mlp.gate",
    gate="mlp.experts.{}.gate_proj",
    up="mlp.experts.{}.up_proj",
    down="mlp.experts.{}.down_proj",
)
MIXTRAL_NAMES = ExpertNames(
    router="block_sparse_moe.gate",
    gate="block_sparse_moe.experts.{}.w1",
    up="block_sparse_moe.experts.{}.w3",
    down="block_sparse_moe.experts.{}.w2",
)


def read_experts(
    fields: Fields, count: tuple[str, int], per_token: tuple[str, int], size: tuple[str, int]
) -> ExpertsConfig:
    """The number of experts, how many a token has, and the size of each: of each field its names, separated by blanks,
    and its default. Raises ModelError."""
    (count_name, number), (chosen_name, chosen) = _integer(fields, *count), _integer(fields, *per_token)
    if chosen > number:
        raise ModelError(f"{chosen_name}={chosen} is more than {count_name}={number}")
    return ExpertsConfig(number, count_name, fields.integer(*size), size[0], chosen)


def _integer(fields: Fields, names: str, default: int) -> tuple[str, int]:
    """The name that a file has, and its value. The first name is meant in a file that has none of them."""
    known = names.split()
    found = [name for name in known if fields.values.get(name) is not None]
    name = found[0] if found else known[0]
    return name, fields.integer(name, default, at_most=MAX_LAYERS)


def expert_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Whether each layer has experts, from Qwen's `decoder_sparse_step` and `mlp_only_layers`."""
    every = fields.integer("decoder_sparse_step", 1)
    without = fields.values.get("mlp_only_layers") or ()
    if not isinstance(without, Sequence) or not all(type(layer) is int for layer in without):
        raise fields.error("mlp_only_layers", "a list of integers")
    found = tuple((layer + 1) % every == 0 and layer not in without for layer in range(num_layers))
    return () if all(found) else found
