"""What a weight format is: which stored tensors a weight is made of, and how they become the weight. No torch here.

A format is asked for the `sources` of every weight before torch is imported, so that reading can begin; `assemble` gets
what was read, as tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ember.engine.description.weights import Rows, Size, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from ember.engine.layers.linear import Linear

FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors spells them


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of one part of a weight, and the stored tensor that they come from.

    A weight has one or more parts (the matrix, its bias, scales). The sources of a part follow each other, row after
    row. The stored tensor is read as matrices of `matrix` elements, of which number `index` is taken; where it is
    `transposed`, its columns are the rows that count.
    """

    part: str
    name: str  # of the stored tensor
    shape: tuple[Size, ...]  # which the stored tensor must have
    matrix: tuple[int, int]  # as stored: rows and columns
    rows: Rows
    columns: tuple[int, int]  # the first, and the one after the last
    transposed: bool = False
    index: int = 0
    stored: tuple[str, ...] = FLOATS  # the dtypes that the stored tensor may have, as safetensors spells them
    dtype: str | None = None  # to which it is converted, as torch spells it; None: the model's


class WeightFormat(Protocol):
    """How a checkpoint keeps weights. `name` is what config.json calls it."""

    name: str

    def sources(self, spec: Spec) -> list[Source]:
        """The stored tensors that the weight is made of, in the order of the rows of each part."""

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]]) -> Linear | Tensor:
        """The weight. `tensors`: each part, [rows, columns] or, of one column, [rows]; it comes in several tensors, in
        the order of their rows, where it is used in place, in the files."""
