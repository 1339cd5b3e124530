"""What describes a weight: its name, its sizes and its stored tensors. This module does not import torch.

A linear layer's matrix is [out, in]. Its rows are those of its `outputs` in order: query, key and value are one matrix,
and so are gate and up. If a checkpoint stores them separately, each output is a stored matrix. If it stores them in one
matrix, each output is a set of rows of that matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple

from ember.engine.description.config import DecoderConfig


class Size(NamedTuple):
    """A size of a stored tensor, and the fields of config.json, with their values, from which it follows."""

    extent: int
    says: str


class Rows(NamedTuple):
    """Rows of a matrix: `runs` runs of `size` rows. The first run is at row `start`, each next one `step` rows
    later."""

    start: int
    size: int
    runs: int = 1
    step: int = 0

    @property
    def total(self) -> int:
        return self.size * self.runs


class Stored(NamedTuple):
    """A matrix of the checkpoint, [rows, columns] as in y = x @ matrix.T, or a stack of equal matrices.

    Its tensor has that shape, or [columns, rows] if `transposed`. A `stack` has one more dimension in front.
    """

    name: str  # of the module: the tensors' names without `suffix` and `bias_suffix`
    rows: Size
    columns: Size
    transposed: bool = False
    stack: Size | None = None
    suffix: str = ".weight"
    bias_suffix: str = ".bias"

    def whole(self) -> Output:
        """All rows, of a stack those of all matrices."""
        matrices = 1 if self.stack is None else self.stack.extent
        return Output(self, Rows(0, self.rows.extent * matrices))


class Output(NamedTuple):
    """Rows of a stored matrix that are output rows of a linear layer.

    In a stack they are rows of the matrix at `stack_index`, and may continue in the matrices after it.
    """

    stored: Stored
    rows: Rows
    stack_index: int = 0


class LinearSpec(NamedTuple):
    """A linear layer, or the linear layers of all experts, one after the other."""

    name: str
    outputs: tuple[Output, ...]
    inputs: int
    bias: bool = False
    first_input: int = 0  # of the stored matrices' columns

    @property
    def num_rows(self) -> int:
        return sum(output.rows.total for output in self.outputs)

    @property
    def columns(self) -> tuple[int, int]:
        """The columns of the stored matrices that are used: the first, and the one after the last."""
        return self.first_input, self.first_input + self.inputs

    @property
    def is_in_block(self) -> bool:
        """Whether it is a matrix of attention, of an MLP or of experts that may be quantised, and no router."""
        return self.name.startswith("layers.") and not self.name.endswith("router") and not self.is_restored

    @property
    def is_restored(self) -> bool:
        """Whether the decoder keeps it in the model's dtype, however the checkpoint stores it: latent attention
        multiplies with its rows by heads."""
        return self.name.endswith(".kv_up")


class TensorSpec(NamedTuple):
    """A vector or a table that is used as it is stored."""

    name: str
    source: str  # the tensor's name in the checkpoint
    shape: tuple[Size, ...]
    dtype: str | None = None  # torch's name; None: the model's dtype
    offset: float = 0.0  # added to the stored values


Spec = LinearSpec | TensorSpec


def count_parameters(specs: Iterable[Spec]) -> int:
    """The number of parameters of these weights, however they are stored."""
    return sum(
        prod(size.extent for size in spec.shape)
        if isinstance(spec, TensorSpec)
        else spec.num_rows * (spec.inputs + spec.bias)
        for spec in specs
    )


def twice(size: Size) -> Size:
    """The size of two such parts that are stored as one."""
    return Size(2 * size.extent, f"twice {size.says}: {2 * size.extent}")


def linear_spec(name: str, outputs: list[Output], bias: bool = False) -> LinearSpec:
    """The linear layer with these output rows. All of them have the columns of the first."""
    return LinearSpec(name, tuple(outputs), outputs[0].stored.columns.extent, bias)


def norm_specs(config: DecoderConfig, size: Size, name: str, source: str) -> Iterator[TensorSpec]:
    """The weight and the bias of a norm, as far as the model's norms have them."""
    if config.norm_affine:
        yield TensorSpec(f"{name}.weight", f"{source}.weight", (size,), norm_dtype(config), config.norm_offset)
    if config.norm_bias:
        yield TensorSpec(f"{name}.bias", f"{source}.bias", (size,))


def norm_dtype(config: DecoderConfig) -> str | None:
    """The dtype of norms' weights. An offset of 1 hides small weights in bfloat16, and Gemma's were never rounded."""
    return "float32" if config.norm_offset and config.norm == "rms" else None
