"""The metadata of a GGUF file as the families of models need it. This module does not import torch."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from ember.engine.errors import ModelError
from ember.gguf.header import Array, Metadata, Tensor, shortest
from ember.regular_file import open_regular

_IN_LAYER = re.compile(r"blk\.\d+\.")
MAX_LAYERS = 100_000
# Entries that change what a model computes, unless they have a neutral value.
_CHANGING = frozenset(
    [
        *("attention.clamp_kqv", "attention.max_alibi_bias", "attention.scale", "attention.output_scale"),
        *("attention.temperature_length", "attention.temperature_scale", "attention.shared_kv_layers"),
        *("attention.indexer.head_count", "attn_logit_softcapping", "final_logit_softcapping"),
        *("router_logit_softcapping", "logit_scale", "residual_scale", "embedding_scale"),
        *("expert_weights_scale", "expert_group_scale", "swiglu_clamp_exp", "swiglu_clamp_shexp"),
        *("activation_sparsity_scale", "rope.scaling.alpha", "rope.scaling.attn_factor"),
        *("rope.scaling.yarn_ext_factor",),
    ]
)
_NEUTRAL = (0, 1)
MAX_FACTORS = 4096  # numbers of a tensor that is read with the configuration


class Facts:
    """The entries of one architecture ("llama.block_count" is `integer("block_count")`), and all tensors of the model.

    The methods raise ModelError for a value of another type, and for a missing one without a default.
    """

    def __init__(self, metadata: Metadata, architecture: str, tensors: Mapping[str, Tensor]) -> None:
        self.metadata = metadata
        self.architecture = architecture
        self.tensors = tensors
        self._read: set[str] = set()
        self.of_layers = {name.split(".", 2)[2] for name in tensors if _IN_LAYER.match(name)}

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.optional(name)
        if value is None and default is not None:
            return default
        if type(value) is not int:
            raise self.error(name, "an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.optional(name)
        if value is None and default is not None:
            return default
        if type(value) is not float:  # the bits of a float in an integer's type would be a number of another size
            raise self.error(name, "a number in float32 or float64")
        return shortest(value)

    def text(self, name: str) -> str | None:
        return self.metadata.text(self._key(name))

    def flag(self, name: str, default: bool) -> bool:
        value = self.optional(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def optional(self, name: str) -> Any:
        """The value, or None. An array with one entry for each layer is its value if all layers have the same."""
        value = self.metadata.values.get(self._key(name))
        if not isinstance(value, Array):
            return value
        if value.is_texts or not value.count:
            raise self.error(name, "a number")
        numbers = self._numbers(name, value)
        if len(set(numbers)) > 1:
            raise self.error(name, "the same for all layers: layers that differ are not supported")
        return numbers[0]

    def array(self, name: str) -> list[Any] | None:
        """The values of an array of integers or flags; None if it is absent or a single value."""
        value = self.metadata.values.get(self._key(name))
        if not isinstance(value, Array):
            return None
        numbers: list[Any] | None = None if value.is_texts else self._numbers(name, value)
        if numbers is None or any(type(number) is float for number in numbers):
            raise self.error(name, "an array of integers or flags")
        return numbers

    def of_each_layer(self, name: str, default: int | None = None) -> list[int]:
        """An integer for each layer, or one for all."""
        numbers, layers = self.array(name), self.num_layers
        if numbers is None:
            return [self.integer(name, default)] * layers
        if len(numbers) < layers or any(type(number) is not int for number in numbers):
            raise self.error(name, f"an integer for each of {layers} layers")
        return numbers[:layers]

    @property
    def num_layers(self) -> int:
        """The number of layers without those that predict further tokens. Raises ModelError if there is none."""
        layers = self.integer("block_count")
        if not 0 < layers <= MAX_LAYERS:
            raise ModelError(f"{self.metadata.file}: block_count must be from 1 to {MAX_LAYERS}, not {layers}")
        return max(layers - self.integer("nextn_predict_layers", 0), 1)

    def in_layer(self, layer: int, name: str) -> bool:
        """Whether a layer has a tensor."""
        return f"blk.{layer}.{name}" in self.tensors

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name, or one in some layer whose name ends so ("attn_q.bias")."""
        return name in self.tensors or name in self.of_layers

    def rows(self, name: str) -> int | None:
        """The number of rows of a matrix of the first layer that has it; None if there is none."""
        found = (self.tensors.get(f"blk.{layer}.{name}") for layer in range(self.num_layers if self.has(name) else 0))
        tensor = next(filter(None, found), None)
        return None if tensor is None or len(tensor.shape) != 2 else tensor.shape[0]

    def factors(self, name: str) -> list[float] | None:
        """The numbers of a small tensor of float32; None if there is none."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        count = tensor.nbytes // 4
        if tensor.type.name != "F32" or len(tensor.shape) != 1 or count > MAX_FACTORS:
            raise ModelError(f"{tensor.file}: the tensor {name} must be a vector of float32, not {list(tensor.shape)}")
        with open(open_regular(tensor.file), "rb") as handle:
            handle.seek(tensor.offset)
            data = handle.read(tensor.nbytes)
        if len(data) != tensor.nbytes:
            raise ModelError(f"{tensor.file} became shorter while it was read")
        return list(struct.unpack(f"<{count}f", data))

    def _numbers(self, name: str, value: Array) -> list[Any]:
        if value.count > MAX_LAYERS:  # they are counted before they are decoded
            raise self.error(name, f"an array of at most {MAX_LAYERS} numbers")
        return value.numbers() if value.count else []

    def unread(self) -> list[str]:
        """The entries that change what a model computes, and that nothing has read."""
        values = self.metadata.values
        unread = (name for name in _CHANGING - self._read if values.get(f"{self.architecture}.{name}") is not None)
        return sorted(name for name in unread if values[f"{self.architecture}.{name}"] not in _NEUTRAL)

    def _key(self, name: str) -> str:
        self._read.add(name)
        return f"{self.architecture}.{name}"

    def error(self, name: str, allowed: str) -> ModelError:
        """The error of an entry that is missing, or that is none of what is allowed."""
        key = self._key(name)
        if key not in self.metadata.values:
            return ModelError(f"{self.metadata.file}: the metadata lacks {key}")
        return ModelError(str(self.metadata.error(key, allowed)))
