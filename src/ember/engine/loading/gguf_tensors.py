"""The tensors of a model in GGUF as those of other checkpoints. This module does not import torch."""

from __future__ import annotations

from pathlib import Path

from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import TensorEntry
from ember.gguf.files import read_model
from ember.gguf.header import GgufError, Tensor

_ONE_ROW = "ffn_gate_inp_shexp.weight"  # a matrix of one row, which files have as a vector
_VECTOR = "exp_probs_b.bias"  # a vector, which some files have as a matrix of one row


def gguf_entries(file: Path) -> dict[str, TensorEntry]:
    """Every tensor by name. The rows of quantised ones are bytes: U8 [rows, bytes of a row]. Raises ModelError."""
    try:
        return {name: _entry(tensor) for name, tensor in read_model(file).tensors.items()}
    except GgufError as error:
        raise ModelError(str(error)) from None


def _entry(tensor: Tensor) -> TensorEntry:
    kind, shape = tensor.type, tensor.shape
    if tensor.name.endswith(_ONE_ROW) and len(shape) == 1:
        shape = (1, *shape)
    if tensor.name.endswith(_VECTOR) and shape[:-1] == (1,):
        shape = shape[1:]
    if kind.elements == 1:
        return TensorEntry(tensor.name, tensor.file, tensor.offset, tensor.nbytes, kind.name, shape)
    stored = (*shape[:-1], kind.row_bytes(shape[-1]))
    return TensorEntry(tensor.name, tensor.file, tensor.offset, tensor.nbytes, "U8", stored)
