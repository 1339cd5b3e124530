"""What the module of every model family is made with. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ember.engine.description.config import Activation, DecoderConfig
from ember.engine.description.fields import Fields
from ember.engine.errors import ModelError

# The activations by the names of config.json.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


class Family(NamedTuple):
    """How a family's config.json is read, and the names of all fields that are read of it."""

    read: Callable[[Fields], DecoderConfig]
    fields: frozenset[str]


def field_names(text: str) -> frozenset[str]:
    """The names in a text, which are separated by whitespace."""
    return frozenset(text.split())


# These fields are read for every family: by `load_config`, or by the family's function under these names.
COMMON_FIELDS = field_names(
    "architectures model_type dtype torch_dtype eos_token_id quantization_config vocab_size hidden_size "
    "num_hidden_layers num_attention_heads max_position_embeddings tie_word_embeddings"
)


def divide_into_heads(name: str, total: int, num_heads: int) -> int:
    """The size of one head; `name` is the field that `total` comes from. Raises ModelError where a rest remains."""
    if total % num_heads:
        raise ModelError(f"{name}={total} cannot be divided into {num_heads} heads (num_attention_heads)")
    return total // num_heads
