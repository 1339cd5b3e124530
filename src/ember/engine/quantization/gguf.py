"""The weights of GGUF files: blocks that are used as they lie in the file. torch is not imported with this module."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.weights import LinearSpec, Output, Rows, Size, Spec, TensorSpec
from ember.engine.errors import ModelError
from ember.engine.quantization import held
from ember.engine.quantization.base import BIAS, WEIGHT, Files, Source, bias_sources, matrix_source
from ember.engine.quantization.held import Held
from ember.engine.quantization.packed import FIELDS
from ember.engine.quantization.plain import Plain
from ember.gguf.types import BLOCKS, GgmlType

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear


_TABLES = ("embed_tokens", "layer_table")  # of which a step restores single rows; the others are small


class Gguf:
    """Matrices of GGUF's types, each in its own. A weight whose stored matrices have several types (query and key in
    Q4_K, value in Q6_K) has a part for each run of one type.

    Norms are stored as they are multiplied, whatever the family's own checkpoints store, and the rates of decay of
    states as they are used: -exp of what the checkpoints have. The metadata has the numbers of some activations.
    """

    name = "gguf"
    unused: tuple[str, ...] = ()

    def __init__(self, config: DecoderConfig, files: Files) -> None:
        self._plain = Plain()
        types = (config.quantization or {}).get("types", {})
        if not isinstance(types, Mapping) or not all(
            isinstance(kind, str) and kind in BLOCKS for kind in types.values()
        ):
            raise ModelError(f"{FIELDS}types is {shown(types)}, which is not read from config.json: name a GGUF file")
        self._types: Mapping[str, str] = types
        self._numbers: Mapping[str, float] = (config.quantization or {}).get("numbers", {})

    def sources(self, spec: Spec) -> list[Source]:
        if isinstance(spec, TensorSpec):
            if spec.source in self._numbers:
                return []
            sources = self._plain.sources(spec)
            kind = self._types.get(spec.source)
            return sources if kind is None else [_in_bytes(source, BLOCKS[kind], WEIGHT) for source in sources]
        found: list[Source] = []
        for number, (kind, outputs) in enumerate(self._runs(spec)):
            part = f"{WEIGHT}.{number}"
            sources = [matrix_source(output, spec.columns, part) for output in outputs]
            if kind is not None:
                turned = [_turned(source) if spec.is_restored and source.transposed else source for source in sources]
                sources = [_in_bytes(source, BLOCKS[kind], part) for source in turned]
            found += sources
        return [*found, *bias_sources(spec)]

    def held(self, spec: Spec, element_size: int) -> Held:
        if isinstance(spec, TensorSpec):
            kind = self._types.get(spec.source)
            if kind is None:
                return self._plain.held(spec, element_size)
            rows, columns = (size.extent for size in spec.shape)
            return held.blocks(rows, columns, BLOCKS[kind]) if spec.name in _TABLES else held.plain(spec, element_size)
        parts = []
        for kind, outputs in self._runs(spec):
            part = spec._replace(outputs=tuple(outputs))
            own = held.plain(part, element_size)
            parts.append(own if kind is None else held.blocks(part.num_rows, spec.inputs, BLOCKS[kind]))
        return held.together(parts, spec, element_size)

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear | Tensor:
        import torch

        from ember.engine.layers.block_linear import BlockLinear
        from ember.engine.layers.joined import joined
        from ember.engine.layers.linear import Linear

        if isinstance(spec, TensorSpec):
            kind = self._types.get(spec.source)
            if spec.source in self._numbers:
                return torch.full([size.extent for size in spec.shape], self._numbers[spec.source], dtype=dtype)
            if kind is None:
                made = self._plain.assemble(spec._replace(offset=0.0), tensors, dtype)
                return made.neg().log() if isinstance(made, torch.Tensor) and spec.name.endswith(".decay") else made
            table = BlockLinear(*tensors[WEIGHT], type=kind, dtype=dtype)
            return table if spec.name in _TABLES else table.weight
        parts: list[Linear] = []
        for number, (kind, outputs) in enumerate(self._runs(spec)):
            rows = tensors[f"{WEIGHT}.{number}"]
            made = Linear(*rows) if kind is None else BlockLinear(*rows, type=kind, dtype=dtype)
            turned = kind is not None and spec.is_restored and outputs[0].stored.transposed
            parts.append(Linear(made.weight.t().contiguous()) if turned else made)
        return joined(parts, tensors[BIAS][0] if spec.bias else None)

    def _runs(self, spec: LinearSpec) -> list[tuple[str | None, list[Output]]]:
        """Consecutive outputs of one type: a quantised one, or None for numbers."""

        def kind(output: Output) -> tuple[str | None, bool]:
            name = self._types.get(output.stored.name + output.stored.suffix)
            return name, name is not None and output.stored.transposed

        return [(name, list(outputs)) for (name, _), outputs in groupby(spec.outputs, kind)]


def _turned(source: Source) -> Source:
    """The source of a transposed matrix, of which the rows are read as they are stored. Only a whole matrix is."""
    rows, columns = source.matrix
    return source._replace(
        transposed=False,
        matrix=(rows * (source.stack_index + 1), columns),
        rows=Rows(rows * source.stack_index, rows),
        columns=(0, columns),
        stack_index=0,
    )


def _in_bytes(source: Source, kind: GgmlType, part: str) -> Source:
    """The source where rows are bytes of blocks. Raises ModelError if it is not made of whole rows of blocks."""
    columns = source.shape[-1]
    if source.transposed or source.columns != (0, columns.extent) or columns.extent % kind.elements:
        raise ModelError(
            f"{source.name} has the type {kind.name}, of blocks of {kind.elements}, which {columns.says} does not fit"
        )
    width = kind.row_bytes(columns.extent)
    return source._replace(
        part=part,
        shape=(*source.shape[:-1], Size(width, f"{columns.says} in {kind.name}")),
        matrix=(source.matrix[0], width),
        columns=(0, width),
        stored=("U8",),
        dtype="uint8",
    )
