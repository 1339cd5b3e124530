"""Helpers for the modules of model families. This module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ember.engine.description.config import Activation, DecoderConfig
from ember.engine.description.fields import Fields
from ember.engine.errors import ModelError

# Activations by their names in config.json.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "xielu": "xielu",
}


class Family(NamedTuple):
    """The function that reads a family's config.json, and the names of the fields that it reads.

    `harmless`: fields that published files of the family have, and that change nothing with one of these values (with
    any value, if there are none).
    """

    read: Callable[[Fields], DecoderConfig]
    fields: frozenset[str]
    harmless: Mapping[str, tuple[Any, ...]] = MappingProxyType({})


def field_names(text: str) -> frozenset[str]:
    """The names in a text, separated by whitespace."""
    return frozenset(text.split())


# These fields are read for every family: by `load_config`, or by the family's function.
COMMON_FIELDS = field_names(
    "architectures model_type dtype torch_dtype eos_token_id quantization_config compression_config "
    "vocab_size hidden_size num_hidden_layers num_attention_heads max_position_embeddings tie_word_embeddings"
)


def divide_into_heads(
    name: str, total: int, num_heads: int, heads_name: str = "num_attention_heads", advice: str = ""
) -> int:
    """The size of one head. `name` and `heads_name`: the fields of `total` and `num_heads`. Raises ModelError if it is
    not divisible. `advice`: the end of the message."""
    if total % num_heads:
        raise ModelError(f"{name}={total} cannot be divided into {num_heads} heads ({heads_name}){advice}")
    return total // num_heads
