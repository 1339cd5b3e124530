"""The tensors of a model in GGUF as those of other checkpoints. This module does not import torch."""

from __future__ import annotations

from pathlib import Path

from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import TensorEntry
from ember.gguf.files import read_model
from ember.gguf.header import GgufError, Tensor

_ONE_ROW = "ffn_gate_inp_shexp.weight"  # a matrix of one row, which files have as a vector
_VECTOR = "exp_probs_b.bias"  # a vector, which some files have as a matrix of one row
_CONVOLUTIONS = ("ssm_conv1d.weight", "shortconv.conv.weight")  # [channels, 1, kernel], without the 1 in files
_UNENDED = ".ffn_norm"  # what Falcon H1's files call the weight of that norm
_HEADS = (".ssm_a", ".ssm_d", ".ssm_norm.weight")  # vectors, which files of Mamba 2 have as matrices


def gguf_entries(file: Path) -> dict[str, TensorEntry]:
    """Every tensor by name. The rows of quantised ones are bytes: U8 [rows, bytes of a row]. Raises ModelError."""
    try:
        entries = map(_entry, read_model(file).tensors.values())
        return {entry.name: entry for entry in entries}
    except GgufError as error:
        raise ModelError(str(error)) from None


def _entry(tensor: Tensor) -> TensorEntry:
    kind, shape = tensor.type, tensor.shape
    name = f"{tensor.name}.weight" if tensor.name.endswith(_UNENDED) else tensor.name
    if tensor.name.endswith(_ONE_ROW) and len(shape) == 1:
        shape = (1, *shape)
    if tensor.name.endswith(_VECTOR) and shape[:-1] == (1,):
        shape = shape[1:]
    if tensor.name.endswith(_CONVOLUTIONS) and len(shape) == 2:
        shape = (shape[0], 1, shape[1])
    if tensor.name.endswith(_HEADS) and len(shape) == 2:
        shape = (shape[0] * shape[1],)
    if kind.elements == 1:
        return TensorEntry(name, tensor.file, tensor.offset, tensor.nbytes, kind.name, shape)
    stored = (*shape[:-1], kind.row_bytes(shape[-1]))
    return TensorEntry(name, tensor.file, tensor.offset, tensor.nbytes, "U8", stored)
