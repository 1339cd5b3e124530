"""The format of checkpoints in bfloat16, float16 and float32: every weight is stored as it is. No torch at import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ember.engine.description.weights import LinearSpec, Output, Rows, Spec, TensorSpec
from ember.engine.quantization.base import Source

if TYPE_CHECKING:
    from torch import Tensor

    from ember.engine.layers.linear import Linear

WEIGHT, BIAS = "weight", "bias"  # the parts


class Plain:
    """Matrices, vectors and tables of floats."""

    name = "plain"

    def sources(self, spec: Spec) -> list[Source]:
        if isinstance(spec, TensorSpec):
            return [_whole(spec)]
        columns = (spec.first_input, spec.first_input + spec.inputs)
        found = [matrix_source(output, columns) for output in spec.outputs]
        return found + bias_sources(spec)

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]]) -> Linear | Tensor:
        weight = tensors[WEIGHT]
        if isinstance(spec, TensorSpec):
            return weight[0].view([size.count for size in spec.shape])
        from ember.engine.layers.linear import Linear

        return Linear(*weight, bias=tensors[BIAS][0] if spec.bias else None)


def matrix_source(output: Output, columns: tuple[int, int]) -> Source:
    """Rows of a matrix of floats; `columns`: which of its inputs are taken."""
    stored = output.stored
    name, stack = stored.name + stored.suffix, () if stored.stack is None else (stored.stack,)
    if stored.transposed:
        shape, matrix = (*stack, stored.columns, stored.rows), (stored.columns.count, stored.rows.count)
        return Source(WEIGHT, name, shape, matrix, output.rows, columns, transposed=True, index=output.index)
    rows, num_rows = _in_stack(output)
    return Source(WEIGHT, name, (*stack, stored.rows, stored.columns), (num_rows, stored.columns.count), rows, columns)


def bias_sources(spec: LinearSpec) -> list[Source]:
    """The bias of a linear layer, which formats keep as floats; empty where it has none."""
    found: list[Source] = []
    for output in spec.outputs if spec.bias else ():
        stored, (rows, num_rows) = output.stored, _in_stack(output)
        stack = () if stored.stack is None else (stored.stack,)
        name = stored.name + stored.bias_suffix
        found.append(Source(BIAS, name, (*stack, stored.rows), (num_rows, 1), rows, (0, 1)))
    return found


def _in_stack(output: Output) -> tuple[Rows, int]:
    """The rows, counted from the first matrix of a stack on, and how many the stack has."""
    stored, rows = output.stored, output.rows
    if stored.stack is None:
        return rows, stored.rows.count
    start = rows.start + output.index * stored.rows.count
    return Rows(start, rows.size, rows.count, rows.step), stored.rows.count * stored.stack.count


def _whole(spec: TensorSpec) -> Source:
    rows, columns = spec.shape[0].count, 1
    for size in spec.shape[1:]:
        columns *= size.count
    return Source(WEIGHT, spec.source, spec.shape, (rows, columns), Rows(0, rows), (0, columns), dtype=spec.dtype)
