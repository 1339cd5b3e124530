"""The interface of weight formats: the stored tensors of a weight, and their assembly. No torch is imported.

A format returns the `sources` of every weight before torch is imported, so that reading can begin. `assemble` gets the
tensors that were read. `matrix_source`, `vector_source` and `bias_sources` make the sources that most formats have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ember.engine.description.weights import LinearSpec, Output, Rows, Size, Spec, Stored
from ember.engine.quantization.held import Held

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

FLOATS = ("BF16", "F16", "F32", "F64")  # safetensors' names
WEIGHT, BIAS = "weight", "bias"  # the parts of most weights


class Source(NamedTuple):
    """Rows of one part of a weight, and the stored tensor that has them.

    A weight has one or more parts (the matrix, its bias, scales). The sources of a part have consecutive rows. The
    stored tensor is read as matrices of shape `matrix`, of which number `index` is used. If it is `transposed`, its
    columns are the rows of the part.
    """

    part: str
    name: str  # of the stored tensor
    shape: tuple[Size, ...]  # which the stored tensor must have
    matrix: tuple[int, int]  # as stored: rows and columns
    rows: Rows
    columns: tuple[int, int]  # the first one, and the one after the last
    transposed: bool = False
    stack_index: int = 0
    stored: tuple[str, ...] = FLOATS  # allowed dtypes of the stored tensor, safetensors' names
    dtype: str | None = None  # to which it is converted, torch's name; None: the model's
    is_vector: bool = False  # whether the part is a vector, stored as matrices of one column


class StoredTensor(Protocol):
    """What the header of a weight file says of a tensor."""

    @property
    def dtype(self) -> str:
        """safetensors' name."""

    @property
    def shape(self) -> tuple[int, ...]: ...


Files = Mapping[str, StoredTensor]
"""The tensors of a checkpoint by their names. It is empty where the files are not known: config.json decides alone."""


class WeightFormat(Protocol):
    """How a checkpoint stores weights. `name`: the format's name in config.json.

    `unused`: ends of the names of stored tensors that the format does not need.
    """

    name: str
    unused: tuple[str, ...]

    def sources(self, spec: Spec) -> list[Source]:
        """The stored tensors of the weight, in the order of the rows of each part."""

    def held(self, spec: Spec, element_size: int) -> Held:
        """How the weight lies on the device. `element_size`: bytes of a number in the model's dtype."""

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear | Tensor:
        """The weight: a linear layer for a `LinearSpec`, a tensor for a `TensorSpec`, or a linear layer for a table of
        embeddings that is not restored.

        `tensors`: the parts, [rows, columns] or, for vectors, [rows], in the dtypes of their sources. A mapped matrix
        may have several tensors, in the order of their rows. `dtype`: the model's.
        """


def matrix_source(
    output: Output,
    columns: tuple[int, int],
    part: str = WEIGHT,
    suffix: str | None = None,
    stored: tuple[str, ...] = FLOATS,
    dtype: str | None = None,
) -> Source:
    """The rows of an output in a stored tensor of the matrix's shape. `columns`: which of its inputs are taken;
    `suffix`: what the tensor's name ends with, where it is not that of the output's own."""
    matrix = output.stored
    name, stack = matrix.name + (matrix.suffix if suffix is None else suffix), _stack(matrix)
    rows, num_rows, index = *_in_stack(output), 0
    shape, stored_as = (*stack, matrix.rows, matrix.columns), (num_rows, matrix.columns.extent)
    if matrix.transposed:
        shape, stored_as = (*stack, matrix.columns, matrix.rows), (matrix.columns.extent, matrix.rows.extent)
        rows, index = output.rows, output.stack_index
    return Source(part, name, shape, stored_as, rows, columns, matrix.transposed, index, stored, dtype)


def vector_source(
    output: Output, part: str, suffix: str, stored: tuple[str, ...] = FLOATS, dtype: str | None = None
) -> Source:
    """The entries for the rows of an output in a stored tensor that has one for each row of the matrix."""
    matrix = output.stored
    rows, num_rows = _in_stack(output)
    shape = (*_stack(matrix), matrix.rows)
    name = matrix.name + suffix
    return Source(part, name, shape, (num_rows, 1), rows, (0, 1), stored=stored, dtype=dtype, is_vector=True)


def bias_sources(spec: LinearSpec) -> list[Source]:
    """The bias of a linear layer, which formats keep as floats; empty where it has none."""
    return [vector_source(output, BIAS, output.stored.bias_suffix) for output in spec.outputs if spec.bias]


def _stack(matrix: Stored) -> tuple[Size, ...]:
    return () if matrix.stack is None else (matrix.stack,)


def _in_stack(output: Output) -> tuple[Rows, int]:
    """The rows, counted from the first matrix of a stack on, and how many the stack has."""
    matrix, rows = output.stored, output.rows
    if matrix.stack is None:
        return rows, matrix.rows.extent
    start = rows.start + output.stack_index * matrix.rows.extent
    return Rows(start, rows.size, rows.runs, rows.step), matrix.rows.extent * matrix.stack.extent
