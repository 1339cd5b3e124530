"""The plan that reads every tensor of a checkpoint as it is stored, for models whose weights transformers places. This
module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ember.engine.description.config import DecoderConfig
from ember.engine.description.shells import text_entries
from ember.engine.description.weights import Rows
from ember.engine.loading.plan import BYTES, DTYPES, LoadPlan, Parameter, Piece
from ember.engine.loading.safetensors_header import TensorEntry
from ember.engine.quantization.plain import Plain


def plan_stored(entries: Mapping[str, TensorEntry], dtype: str) -> LoadPlan:
    """A parameter for each stored tensor, under its name. `dtype`: the model's, torch's name."""
    return LoadPlan([], Plain(), dtype, [_parameter(name, entry) for name, entry in entries.items()])


def own_entries(
    config: DecoderConfig, entries: Mapping[str, TensorEntry]
) -> tuple[Mapping[str, TensorEntry], Mapping[str, TensorEntry]]:
    """The tensors of the language model by their names in a checkpoint of text alone, and those of other parts."""
    return text_entries(entries) if config.is_shell else (entries, {})


def stored_bytes(entries: Mapping[str, TensorEntry], dtype: str) -> int:
    """The bytes of the tensors in the model's dtype."""
    return sum(prod(entry.shape) * BYTES[dtype] for entry in entries.values())


def _parameter(name: str, entry: TensorEntry) -> Parameter:
    rows, columns = (*entry.shape, 1)[0], prod(entry.shape[1:])
    parameter = Parameter(name, "stored", DTYPES[entry.dtype], columns if len(entry.shape) > 1 else None)
    parameter.add(Piece(entry, entry.offset, (rows, columns), Rows(0, rows), (0, columns), False, 0))
    return parameter
