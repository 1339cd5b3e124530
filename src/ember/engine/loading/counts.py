"""Comparison of the counts of layers and experts in config.json and in the files. This module does not import torch.

They are compared before lists of that length are made. Other sizes are compared tensor by tensor in `plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ember.engine.description.config import DecoderConfig
from ember.engine.errors import ModelError
from ember.engine.loading.files import some
from ember.engine.loading.safetensors_header import TensorEntry


def misfit(weight_format: str, reason: str) -> ModelError:
    """The error that the configuration and the tensors differ. `weight_format`: a GGUF file has both."""
    says = "the metadata" if weight_format == "gguf" else "config.json"
    return ModelError(f"{says} does not fit the weight files: {reason}")


def check_counts(config: DecoderConfig, entries: Mapping[str, TensorEntry], base: str) -> None:
    """Raise ModelError if the files have another number. `base`: a prefix that their names lack."""
    method = str((config.quantization or {}).get("quant_method"))
    layer, count = config.names.layer.removeprefix(base), config.num_layers
    fault = _fault(f"num_hidden_layers={count}", count, "layers", layer, entries, config.num_extra_layers)
    experts, names = config.experts, config.names.experts
    if fault is None and experts is not None and names is not None:
        first = experts.layers.index(True) if experts.layers else 0
        says, name = f"{experts.count_field}={experts.count}", layer.format(first) + names.down
        if "{}" in name:
            fault = _fault(says, experts.count, "experts", f"{name}.", entries)
        elif (entry := entries.get(name + names.suffix)) is not None and entry.shape[:1] != (experts.count,):
            fault = f"{says}, but {name} is {list(entry.shape)} in {entry.file.name}"
    if fault is not None:
        raise misfit(method, fault)


def _fault(
    says: str, count: int, what: str, name: str, entries: Mapping[str, TensorEntry], extra: int = 0
) -> str | None:
    """What is wrong unless the numbers in place of {} in `name` are 0 to `count` - 1, and up to `extra` more."""
    pattern = re.compile(re.escape(name).replace(re.escape("{}"), "([0-9]{1,9})", 1))
    numbers = {int(found[1]) for entry in entries if (found := pattern.match(entry))}
    last = max(numbers, default=-1)
    if numbers and not count <= last + 1 <= count + extra:
        return f"{says}, but the files have {last + 1} {what}, to {name.format(last)[:-1]}"
    if len(numbers) < count:
        missing = next(number for number in range(count) if number not in numbers)
        instead = "" if numbers or not entries else f": they have {some(list(entries))}"
        return f"{says}, but the files lack {name.format(missing)[:-1]}{instead}"
    return None
