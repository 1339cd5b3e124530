"""Comparison of the counts of layers and experts in config.json and in the files. This module does not import torch.

They are compared before lists of that length are made. Other sizes are compared tensor by tensor in `plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ember.engine.description.config import DecoderConfig
from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import TensorEntry


def check_counts(config: DecoderConfig, entries: Mapping[str, TensorEntry], base: str) -> None:
    """Raise ModelError if the files have another number. `base`: a prefix that their names lack."""
    layer, count = config.names.layer.removeprefix(base), config.num_layers
    _compare(f"num_hidden_layers={count}", count, "layers", layer, entries, config.num_extra_layers)
    experts, names = config.experts, config.names.experts
    if experts is None or names is None:
        return
    first = experts.layers.index(True) if experts.layers else 0
    says, name = f"{experts.count_field}={experts.count}", layer.format(first) + names.down
    if "{}" in name:
        _compare(says, experts.count, "experts", f"{name}.", entries)
    elif (entry := entries.get(name)) is not None and entry.shape[:1] != (experts.count,):
        raise _error(f"{says}, but {name} is {list(entry.shape)} in {entry.file.name}")


def _compare(says: str, count: int, what: str, name: str, entries: Mapping[str, TensorEntry], extra: int = 0) -> None:
    """Raise ModelError unless the numbers in place of {} in `name` are 0 to `count` - 1, and up to `extra` more."""
    pattern = re.compile(re.escape(name).replace(re.escape("{}"), "([0-9]{1,9})", 1))
    numbers = {int(found[1]) for entry in entries if (found := pattern.match(entry))}
    last = max(numbers, default=-1)
    if numbers and not count <= last + 1 <= count + extra:
        raise _error(f"{says}, but the files have {last + 1} {what}, to {name.format(last)[:-1]}")
    if len(numbers) < count:
        missing = next(number for number in range(count) if number not in numbers)
        raise _error(f"{says}, but the files lack {name.format(missing)[:-1]}")


def _error(reason: str) -> ModelError:
    return ModelError(f"config.json does not fit the weight files: {reason}")
