"""SqueezeLLM (arXiv 2306.07629): codes of 3 or 4 bits, a table for each output, and outliers as a sparse matrix.

    NAME.qweight       int32 [in * bits / 32, out]   codes from the lowest bit on, along the inputs
    NAME.lookup_table  [out, 2 ** bits]
    NAME.rows          int32 [out + 1]               where each output's outliers begin (CSR), if there are any
    NAME.cols          int32, NAME.vals floats       their inputs, and the numbers to add

torch is imported in functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from ember.engine.description import layouts
from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import Fields
from ember.engine.description.weights import LinearSpec, Output, Rows, Size, Stored
from ember.engine.errors import ModelError
from ember.engine.quantization.base import FLOATS, Files, Source
from ember.engine.quantization.held import Held
from ember.engine.quantization.mixed import Mixed
from ember.engine.quantization.packed import FIELDS, Module, as_codes, is_plain_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

UNUSED = (".startrows", ".bias")  # which rows each thread of its own kernels began with


@dataclass(frozen=True, slots=True)
class SqueezeLLMScheme:
    """How a module is stored. `outliers`: their number; None: it has no sparse matrix."""

    bits: int
    outliers: int | None = None

    def sources(self, spec: LinearSpec) -> list[Source]:
        found = []
        for number, output in enumerate(spec.outputs):
            module = Module(output, spec, f"wbits={self.bits}")
            entries = Size(1 << self.bits, f"wbits={self.bits}: {1 << self.bits}")
            found += [
                module.packed("codes", ".qweight", self.bits),
                module.by_row("table", ".lookup_table", entries, FLOATS, "float32"),
            ]
            if self.outliers is not None:
                rows, count = output.stored.rows.extent + 1, self.outliers
                found += [
                    _vector(module, f"rows{number}", ".rows", rows, ("I32",), "int32"),
                    _vector(module, f"cols{number}", ".cols", count, ("I32",), "int32"),
                    _vector(module, f"vals{number}", ".vals", count, FLOATS, "float32"),
                ]
        return found

    def held(self, spec: LinearSpec) -> Held:
        table = 4 * 16 + 4  # bytes of a row, with its scale of one
        dense = spec.num_rows * (spec.inputs // 2 + table)
        if self.outliers is None:
            return Held(frozenset({layouts.table(spec.inputs, spec.inputs)}), dense)
        sparse = 8 * spec.num_rows + len(spec.outputs) * 8 * self.outliers
        return Held(frozenset({"SparseTableLinear"}), dense + sparse)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        import torch

        from ember.engine.layers.joined import joined
        from ember.engine.layers.sparse_table_linear import SparseTableLinear
        from ember.engine.layers.table_linear import TableLinear

        codes, _ = as_codes(tensors["codes"], self.bits, False)
        table = torch.cat(tensors["table"])
        if self.bits == 3:
            table = torch.cat((table, torch.zeros_like(table)), dim=1)
        scales = torch.ones(len(codes), 1, device=codes.device)
        layer = TableLinear(codes, table, scales, dtype)
        if self.outliers is None:
            return layer
        parts: list[Linear] = []
        first = 0
        for number, output in enumerate(spec.outputs):
            part = layer.select(slice(first, first + output.rows.total))
            (begins,), (columns,), (values,) = (tensors[f"{name}{number}"] for name in ("rows", "cols", "vals"))
            taken = _numbers(output).to(begins.device)
            starts = begins.flatten()
            _check_outliers(output.stored.name, starts, columns, spec.inputs)
            counts = starts.diff()[taken]
            parts.append(SparseTableLinear(part, starts[:-1][taken], counts, columns.flatten(), values.flatten()))
            first += output.rows.total
        return joined(parts)


class SqueezeLLM(Mixed):
    """The format of `quant_method` squeezellm."""

    def __init__(self, config: DecoderConfig, files: Files) -> None:
        fields = Fields(config.quantization or {}, FIELDS)
        bits = fields.integer("wbits")
        if bits not in (3, 4):
            raise fields.error("wbits", "3 or 4")
        head = config.names.lm_head

        def scheme_of(stored: Stored) -> SqueezeLLMScheme | None:
            name = stored.name
            if is_plain_in(files, stored) or (name == head and f"{name}.qweight" not in files):
                return None
            if f"{name}.full_rows" in files:
                raise ModelError(
                    f"{name}.full_rows has whole inputs that are not quantized, which is not supported: choose a "
                    "checkpoint without them, whose outliers are in rows, cols and vals"
                )
            sparse = files.get(f"{name}.vals")
            return SqueezeLLMScheme(bits, None if sparse is None else prod(sparse.shape))

        super().__init__("squeezellm", scheme_of, UNUSED)


def _vector(module: Module, part: str, suffix: str, count: int, stored: tuple[str, ...], dtype: str) -> Source:
    size = Size(count, f"{module.field}: {count}")
    return Source(part, module.name + suffix, (size,), (1, count), Rows(0, 1), (0, count), stored=stored, dtype=dtype)


def _check_outliers(name: str, starts: Tensor, columns: Tensor, inputs: int) -> None:
    """Raise ModelError unless the sparse matrix is inside the dense one."""
    if starts[0] < 0 or (starts.diff() < 0).any() or starts[-1] > columns.numel():
        raise ModelError(
            f"{name}.rows is damaged: it must ascend from 0 to the {columns.numel()} numbers of {name}.cols"
        )
    if ((columns < 0) | (columns >= inputs)).any():
        raise ModelError(f"{name}.cols is damaged: it must have numbers of the {inputs} inputs")


def _numbers(output: Output) -> Tensor:
    """The numbers of the stored rows that are the output's."""
    import torch

    start, size, runs, step = output.rows
    return (start + torch.arange(runs)[:, None] * step + torch.arange(size)).flatten()
