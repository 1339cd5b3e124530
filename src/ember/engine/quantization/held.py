"""How weights lie on the device, as data: the layouts of layers (`layers/`), and their bytes. No torch is imported.

`ember inspect` and the check that a model fits on a GPU need them before anything is read. The bytes are at most those
of what `WeightFormat.assemble` makes: zero points that turn out to be the middle, for example, are dropped there.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from ember.engine.description import layouts
from ember.engine.description.weights import LinearSpec, Spec, TensorSpec
from ember.gguf.types import GgmlType

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes of a number by its dtype, torch's name


class Held(NamedTuple):
    """One weight on the device. `layouts`: those of its `parts`, the layers side by side; none of a tensor."""

    layouts: frozenset[str]
    nbytes: int
    parts: int = 1


def plain(spec: Spec, element_size: int) -> Held:
    """Numbers of `element_size` bytes, or of the weight's own dtype."""
    if isinstance(spec, TensorSpec):
        size = element_size if spec.dtype is None else SIZES[spec.dtype]
        return Held(frozenset(), size * prod(extent.extent for extent in spec.shape))
    return Held(frozenset({"Linear"}), element_size * spec.num_rows * spec.inputs)


def integers(
    spec: LinearSpec, bits: int, group: int | None, scales: str, zeros: bool = False, order: bool = False
) -> Held:
    """`IntLinear`, which has 2 and 3 bits as 4. `group`: inputs of a scale; None or -1: all. `order`: whether each
    output has an order of its inputs."""
    group = spec.inputs if group is None or group == -1 else group
    groups = -(-spec.inputs // group)
    row = spec.inputs * max(bits, 4) // 8 + groups * (SIZES[scales] + zeros)
    orders = 4 * spec.inputs * len(spec.outputs) * order
    layout = layouts.integers(group, order)
    return Held(frozenset({layout}), spec.num_rows * row + orders)


def float8(spec: LinearSpec, block: tuple[int | None, int | None]) -> Held:
    """`Float8Linear`. `block`: the rows and columns of a scale in the files. Those of all rows, and those of blocks of
    rows that do not begin with every output, are repeated for each row."""
    rows, per_row = spec.num_rows, 1 if block[1] is None else -(-spec.inputs // block[1])
    height = block[0] or 1
    is_aligned = all(output.rows.runs == 1 and output.rows.start % height == 0 for output in spec.outputs)
    is_aligned = is_aligned and all(output.rows.size % height == 0 for output in spec.outputs[:-1])
    scale_rows = -(-rows // height) if is_aligned else rows
    layout = layouts.float8(spec.inputs, block[1] or spec.inputs)
    return Held(frozenset({layout}), rows * spec.inputs + 4 * scale_rows * per_row)


def table(spec: LinearSpec, block: int, scale_size: int, factors: bool = False) -> Held:
    """`TableLinear`: 4 bits and a scale of `scale_size` bytes for each block. `factors`: whether rows have one each."""
    row = spec.inputs // 2 + -(-spec.inputs // block) * scale_size + 4 * factors
    return Held(frozenset({layouts.table(spec.inputs, block)}), spec.num_rows * row + 64)


def blocks(rows: int, columns: int, kind: GgmlType) -> Held:
    """`BlockLinear`: GGUF's blocks."""
    return Held(frozenset({"BlockLinear"}), rows * kind.row_bytes(columns))


def together(parts: Iterable[Held], spec: LinearSpec, element_size: int) -> Held:
    """The layers of some outputs each, with the bias of all."""
    parts = list(parts)
    bias = element_size * spec.num_rows * spec.bias
    found = frozenset[str]().union(*(part.layouts for part in parts))
    return Held(found, bias + sum(part.nbytes for part in parts), sum(part.parts for part in parts))
