"""Sources of integers that are packed in words of 32 bits, and their repacking to `layers.int_linear.IntLinear`.

torch is imported in functions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ember.engine.description.fields import Fields
from ember.engine.description.weights import LinearSpec, Output, Rows, Size, Stored
from ember.engine.errors import ModelError
from ember.engine.quantization.base import Files, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ember.engine.layers.int_linear import IntLinear
    from ember.engine.layers.linear import Linear

FIELDS = "quantization_config."  # before names of fields in messages
FLOAT_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}  # of scales: they are kept as they are stored
_PIECE_ELEMENTS = 1 << 22  # repacked at a time


class Module:
    """One stored matrix whose tensors are NAME.something: the sources of some of its rows.

    `field`: the setting of config.json that the sizes follow from, for messages.
    """

    def __init__(self, output: Output, spec: LinearSpec, field: str) -> None:
        self.output, self.spec, self.field = output, spec, field
        self.name = output.stored.name
        if output.stored.stack is not None:
            raise ModelError(
                f"{self.name}: experts in one tensor are not supported with {field}; use another checkpoint"
            )

    def packed(self, part: str, suffix: str, bits: int) -> Source:
        """Words along the inputs, [inputs * bits / 32, outputs], whose transpose is read."""
        stored, (first, last) = self.output.stored, self.spec.columns
        columns = self._words(first, bits), self._words(last, bits)
        inputs = self.words(stored.columns, bits)
        return self._transposed(part, suffix, inputs, stored.rows, self.output.rows, columns, ("I32",), "int32")

    def packed_by_output(self, part: str, suffix: str, bits: int) -> Source:
        """Words along the outputs, [inputs, outputs * bits / 32], whose transpose is read: its rows are words."""
        stored = self.output.stored
        rows, outputs = self._word_rows(bits), self.words(stored.rows, bits)
        return self._transposed(part, suffix, stored.columns, outputs, rows, self.spec.columns, ("I32",), "int32")

    def grouped(self, part: str, suffix: str, group: int, dtype: str) -> Source:
        """Scales, [groups, outputs], whose transpose is read."""
        first, last = self.groups(group)
        groups, outputs = self.group_count(group), self.output.stored.rows
        return self._transposed(
            part, suffix, groups, outputs, self.output.rows, (first, last), tuple(FLOAT_NAMES), dtype
        )

    def grouped_zeros(self, part: str, suffix: str, group: int, bits: int) -> Source:
        """Zero points in words, [groups, outputs * bits / 32], whose transpose is read: its rows are words."""
        groups, outputs = self.group_count(group), self.words(self.output.stored.rows, bits)
        return self._transposed(
            part, suffix, groups, outputs, self._word_rows(bits), self.groups(group), ("I32",), "int32"
        )

    def word_rows(self, part: str, suffix: str, bits: int, groups: Size | None) -> Source:
        """Zero points in words along the outputs, [outputs * bits / 32, groups], of which all columns are read."""
        rows, columns = self.words(self.output.stored.rows, bits), groups or Size(1, "one")
        matrix = (rows.extent, columns.extent)
        whole, taken = (0, columns.extent), self._word_rows(bits)
        return Source(part, self.name + suffix, (rows, columns), matrix, taken, whole, stored=("I32",), dtype="int32")

    def by_row(self, part: str, suffix: str, columns: Size, stored: tuple[str, ...], dtype: str) -> Source:
        """A tensor [outputs, columns], of which all columns are read."""
        rows = self.output.stored.rows
        if self.spec.columns != (0, self.output.stored.columns.extent):
            raise ModelError(f"{self.name}: {self.field} does not allow to take some of its inputs")
        matrix = (rows.extent, columns.extent)
        name = self.name + suffix
        return Source(
            part, name, (rows, columns), matrix, self.output.rows, (0, columns.extent), stored=stored, dtype=dtype
        )

    def group(self, size: int) -> int:
        """The inputs of a group of the configured size; -1: all inputs are one."""
        return self.output.stored.columns.extent if size == -1 else size

    def inputs_order(self, part: str, suffix: str) -> Source:
        """A number for each input, [inputs], as a row."""
        inputs = self.output.stored.columns
        matrix = (1, inputs.extent)
        return Source(
            part, self.name + suffix, (inputs,), matrix, Rows(0, 1), self.spec.columns, stored=("I32",), dtype="int32"
        )

    def words(self, size: Size, bits: int) -> Size:
        """A size in words of 32 bits."""
        return Size(self._words(size.extent, bits), f"{self.field} and {size.says}: {self._words(size.extent, bits)}")

    def group_count(self, group: int) -> Size:
        """The number of groups of a row's inputs."""
        inputs = self.output.stored.columns
        if inputs.extent % group:
            raise ModelError(f"{self.field} does not divide the inputs of {self.name}, {inputs.says}")
        return Size(inputs.extent // group, f"{self.field} of {inputs.says}: {inputs.extent // group}")

    def groups(self, group: int) -> tuple[int, int]:
        """The groups of the inputs that are used: the first one, and the one after the last."""
        self.group_count(group)
        first, last = self.spec.columns
        if first % group or last % group:
            raise ModelError(f"{self.field} does not divide inputs {first} to {last} of {self.name}")
        return first // group, last // group

    def _word_rows(self, bits: int) -> Rows:
        """The rows of the output, in words along the outputs; all rows if they do not begin and end with words, of
        which `taken_rows` takes those of the output."""
        start, size, runs, step = self.output.rows
        if not _fill_words(self.output.rows, bits):
            return Rows(0, self._words(self.output.stored.rows.extent, bits))
        return Rows(self._words(start, bits), self._words(size, bits), runs, self._words(step, bits))

    def _words(self, count: int, bits: int) -> int:
        if count * bits % 32:
            raise ModelError(f"{self.field}: {count} numbers of {self.name} do not fill words of 32 bits")
        return count * bits // 32

    def _transposed(
        self,
        part: str,
        suffix: str,
        columns: Size,
        rows: Size,
        taken: Rows,
        used: tuple[int, int],
        stored: tuple[str, ...],
        dtype: str,
    ) -> Source:
        """A tensor [columns, rows], whose transpose is read: of that the rows `taken`, and the columns `used`."""
        matrix = (columns.extent, rows.extent)
        return Source(part, self.name + suffix, (columns, rows), matrix, taken, used, True, 0, stored, dtype)


def read_group(fields: Fields) -> int:
    group = fields.integer("group_size", 128, at_least=-1)
    if group == 0 or (group > 0 and group % 2):
        raise fields.error("group_size", "-1 or a positive even number")
    return group


def is_plain_in(files: Files, stored: Stored) -> bool:
    """Whether the files have the module as a plain matrix, or as a plain stack, whatever config.json says."""
    return stored.name + stored.suffix in files and f"{stored.name}.qweight" not in files


def scale_dtype(files: Files, name: str) -> str:
    """torch's name of the dtype in which scales are stored; float16 if the file is not known."""
    return FLOAT_NAMES.get(files[name].dtype, "float16") if name in files else "float16"


def as_codes(words: tuple[Tensor, ...], bits: int, is_middle: bool) -> tuple[Tensor, int]:
    """The codes of `IntLinear`, and their bits, from words [out, in * bits / 32]. 2 and 3 bits are widened to 4, if the
    zero point `is_middle` so that it is the middle of 4 bits."""
    import torch

    codes = (words[0] if len(words) == 1 else torch.cat(words)).view(torch.uint8)
    if bits in (4, 8):
        return codes, bits
    from ember.engine.layers.int_linear import pack, unpack

    shift = 8 - (1 << (bits - 1)) if is_middle else 0
    return in_pieces(codes, codes.shape[1] * 4 // bits, lambda piece: pack(unpack(piece, bits) + shift, 4)), 4


def by_words(words: Tensor, bits: int, places: tuple[int, ...]) -> Tensor:
    """Integers of words that are packed by rows, int32 [out * bits / 32, columns] -> uint8 [out, columns]. The integer
    number i of a word belongs to the row `places[i]` of its 32 / bits rows; 3 bits have no places."""
    import torch

    if bits == 3:
        from ember.engine.layers.int_linear import unpack

        return unpack(words.T.contiguous().view(torch.uint8), 3).T.contiguous()
    made = torch.empty(len(words), 32 // bits, words.shape[1], dtype=torch.uint8, device=words.device)
    for i, place in enumerate(places):
        made[:, place] = words >> bits * i & ((1 << bits) - 1)
    return made.flatten(0, 1)


def taken_rows(values: Tensor, spec: LinearSpec, bits: int) -> Tensor:
    """The rows of the outputs, of integers that were read by words along the outputs: [rows read, columns]."""
    import torch

    if all(_fill_words(output.rows, bits) for output in spec.outputs):
        return values
    parts, first = [], 0
    for output in spec.outputs:
        start, size, runs, step = output.rows
        count, rows = output.rows.total, torch.arange(output.rows.total)
        if not _fill_words(output.rows, bits):
            count = output.stored.rows.extent
            rows = (start + torch.arange(runs)[:, None] * step + torch.arange(size)).flatten()
        parts.append(values[first : first + count].index_select(0, rows.to(values.device)))
        first += count
    return torch.cat(parts)


def _fill_words(rows: Rows, bits: int) -> bool:
    """Whether rows of numbers in words along the outputs begin and end with words."""
    starts = (rows.start, rows.size, rows.step if rows.runs > 1 else 0)
    return all(count * bits % 32 == 0 for count in starts)


def in_pieces(codes: Tensor, width: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The changed codes, uint8 [rows, width], made of some rows at a time to bound the memory of what is between."""
    import torch

    made = torch.empty(len(codes), width, dtype=torch.uint8, device=codes.device)
    for rows in _pieces(codes, width):
        made[rows] = change(codes[rows])
    return made


def _pieces(codes: Tensor, width: int) -> Iterator[slice]:
    step = max(1, _PIECE_ELEMENTS // width)
    for first in range(0, len(codes), step):
        yield slice(first, first + step)


def middle(zeros: Tensor, bits: int) -> Tensor | None:
    """The zero points, or None if all are the middle of their bits, which need not be stored."""
    return None if bool((zeros == 1 << (bits - 1)).all()) else zeros


def order_of(groups: Tensor, group: int, name: str) -> Tensor | None:
    """The order of inputs, int32 [in], that brings each group's together, of which `groups` [in] has each input's
    number; None if they are together. Raises ModelError if a group has another size."""
    import torch

    number = groups.numel() // group
    numbers = groups.long()
    expected = torch.arange(number, device=groups.device).repeat_interleave(group)
    if torch.equal(numbers, expected):
        return None
    order = torch.argsort(numbers, stable=True)
    if not torch.equal(numbers[order], expected):
        raise ModelError(f"{name}: g_idx does not give each of the {number} groups {group} inputs")
    return order.int()


def check_plain_order(layer: IntLinear, spec: LinearSpec, stored: tuple[Tensor, ...], field: str) -> None:
    """Raise ModelError unless the inputs of each output's groups, of which `stored` has a row for each output, are
    together: config.json says so in `field`. Numbers that are all the same say nothing."""
    import torch

    groups = torch.cat(stored)
    first, last = spec.columns
    expected = torch.arange(first, last, device=groups.device) // layer.group
    is_right = (groups == expected).all(1) | (groups == groups[:, :1]).all(1)
    if not bool(is_right.all()):
        name = spec.outputs[int(is_right.long().argmin())].stored.name
        raise ModelError(
            f"{name}: its g_idx gives inputs to groups in another order than theirs, but {field} says that they are in "
            "order: correct config.json, or download the model again"
        )


def ordered(layer: IntLinear, spec: LinearSpec, groups: Tensor) -> Linear:
    """The layer with each output's inputs in the order of their groups, of which `groups` has a row for each output."""
    import torch

    from ember.engine.layers.int_linear import IntLinear, pack, unpack
    from ember.engine.layers.joined import joined

    orders = [order_of(row, layer.group, output.stored.name) for row, output in zip(groups, spec.outputs, strict=True)]
    is_same = all((row == groups[0]).all() for row in groups)
    sizes = [layer.out_features] if is_same else [output.rows.total for output in spec.outputs]
    parts: list[Linear] = []
    first = 0
    for size, order in zip(sizes, orders, strict=False):
        part = layer.select(slice(first, first + size))
        if order is not None:
            codes = in_pieces(
                part.codes,
                part.codes.shape[1],
                lambda codes, order=order: pack(unpack(codes, layer.bits)[:, order], layer.bits),  # type: ignore[misc]
            )
            part = IntLinear(codes, part.scales, layer.bits, layer.dtype, part.zeros, order.to(torch.int32))
        parts.append(part)
        first += size
    return joined(parts)
