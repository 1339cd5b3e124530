"""Stored scales of matrices, read whole, and which of them each output row has. No torch is imported.

A matrix has one scale, one for each row, or one for each block of rows and columns; a stack has those of each of its
matrices. Rows of one stored matrix may belong to several layers, and not begin where a block does. So the scales are
read whole, and `row_numbers` says which row of them belongs to which output row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ember.engine.description.weights import LinearSpec, Rows, Size, Stored
from ember.engine.quantization.base import FLOATS, Files, Source

if TYPE_CHECKING:
    from torch import Tensor

Block = tuple[int | None, int | None]
"""Rows and columns that share a scale; None: all of the matrix."""


def scale_sources(
    spec: LinearSpec,
    part: str,
    suffix: str,
    block: Block,
    files: Files,
    stored_as: tuple[str, ...] = (*FLOATS, "F8_E8M0"),
    dtype: str = "float32",
) -> list[Source]:
    """The whole scales of every stored matrix that the layer has rows of. The part is a matrix of `dtype` with a row
    for each row of scales, one stored matrix after the other. Codes of several inputs in one byte are read so too."""
    found = []
    for stored in stored_matrices(spec):
        count, columns = _scale_rows(stored, block), 1 if block[1] is None else -(-stored.columns.extent // block[1])
        name = stored.name + suffix
        rows = count * (1 if stored.stack is None else stored.stack.extent)
        shape = _shape(stored, count, columns, block)
        entry = files.get(name)
        if entry is not None and _is_same(entry.shape, tuple(size.extent for size in shape)):
            shape = tuple(Size(extent, "") for extent in entry.shape)
        whole = Rows(0, rows), (0, columns)
        found.append(Source(part, name, shape, (rows, columns), *whole, stored=stored_as, dtype=dtype))
    return found


def row_numbers(spec: LinearSpec, block: Block) -> Tensor:
    """For each output row of the layer, the row of the part that `scale_sources` made: int64 [out]."""
    import torch

    firsts, total = {}, 0
    for stored in stored_matrices(spec):
        firsts[stored] = total
        total += _scale_rows(stored, block) * (1 if stored.stack is None else stored.stack.extent)
    numbers = []
    for stored, rows, stack_index in spec.outputs:
        first = stack_index * stored.rows.extent + rows.start
        runs = torch.arange(rows.runs)[:, None] * rows.step
        row = (first + runs + torch.arange(rows.size)).flatten()
        matrix, row = row // stored.rows.extent, row % stored.rows.extent
        inner = torch.zeros_like(row) if block[0] is None else row // block[0]
        numbers.append(firsts[stored] + matrix * _scale_rows(stored, block) + inner)
    return torch.cat(numbers)


def in_order(rows: Tensor, numbers: Tensor) -> Tensor:
    """The rows by `row_numbers`; no copy if they are all of them, in their order."""
    import torch

    if len(numbers) == len(rows) and torch.equal(numbers, torch.arange(len(rows))):
        return rows
    numbers = numbers.to(rows.device)
    if rows.dtype.itemsize == 1:  # torch lacks the operator for some kinds of float8
        return rows.view(torch.uint8).index_select(0, numbers).view(rows.dtype)
    return rows.index_select(0, numbers)


def stored_matrices(spec: LinearSpec) -> Iterator[Stored]:
    """The stored matrices that a layer has rows of, each once, in their order."""
    return iter(dict.fromkeys(output.stored for output in spec.outputs))


def _scale_rows(stored: Stored, block: Block) -> int:
    return 1 if block[0] is None else -(-stored.rows.extent // block[0])


def _shape(stored: Stored, rows: int, columns: int, block: Block) -> tuple[Size, ...]:
    """The usual shape of the scales: without dimensions for what has one scale."""
    height, width = block
    sizes = [] if stored.stack is None else [stored.stack]
    if height is not None:
        says = stored.rows.says if height == 1 else f"{stored.rows.says} in blocks of {height}"
        sizes.append(Size(rows, says))
    if width is not None:
        sizes.append(Size(columns, f"{stored.columns.says} in blocks of {width}"))
    return tuple(sizes)


def _is_same(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether both shapes say the same, but for dimensions of one, or for a last dimension that is in two parts."""
    if len(found) > 1 and (*found[:-2], found[-2] * found[-1]) == expected:
        return True
    return _without_ones(found) == _without_ones(expected)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(extent for extent in shape if extent != 1)


def block_of(stored: Stored, shape: tuple[int, ...], asked: tuple[int, int] | None) -> Block | None:
    """What the scales of this shape belong to; None if they fit no form. `asked`: the blocks of config.json."""
    stack = () if stored.stack is None else (stored.stack.extent,)
    rows, columns = stored.rows.extent, stored.columns.extent
    forms: list[tuple[Block, tuple[int, ...]]] = [((None, None), ()), ((1, None), (rows,))]
    if asked is not None:
        forms.insert(0, (asked, (-(-rows // asked[0]), -(-columns // asked[1]))))
    for block, form in forms:
        if _without_ones(shape) == _without_ones((*stack, *form)):
            return block
    return None
