"""The scheme of matrices in float8_e4m3fn, whichever program made them. No torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ember.engine.description.weights import LinearSpec, Stored
from ember.engine.quantization import held
from ember.engine.quantization.base import WEIGHT, Files, Source, matrix_source
from ember.engine.quantization.held import Held
from ember.engine.quantization.scales import Block, block_of, row_numbers, scale_sources

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

SCALES = "scales"
# What the names of scales end with, where that of the matrix ends with .weight, or with the name of a stack.
SUFFIXES = (".weight_scale_inv", ".weight_scale", "_scale_inv", "_scale")
UNUSED = (".input_scale", ".activation_scale", ".act_scale", ".input_scale_ub", "_input_scale", "_activation_scale")
"""Ends of the names of scales of inputs. Inputs are not rounded, or with a scale of each row, which is as exact."""


@dataclass(frozen=True, slots=True)
class Float8:
    """weight = codes * scale. `block`: what a scale belongs to."""

    suffix: str  # of the scale's name
    block: Block
    quantises_inputs: bool
    files: Files = field(default_factory=dict, compare=False)

    def sources(self, spec: LinearSpec) -> list[Source]:
        codes = [
            matrix_source(output, spec.columns, stored=("F8_E4M3",), dtype="float8_e4m3fn") for output in spec.outputs
        ]
        return codes + scale_sources(spec, SCALES, self.suffix, self.block, self.files)

    def held(self, spec: LinearSpec) -> Held:
        return held.float8(spec, self.block)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        import torch

        from ember.engine.layers.float8_linear import Float8Linear, spread

        codes, stored = tensors[WEIGHT], torch.cat(tensors[SCALES])
        numbers = row_numbers(spec, self.block).to(stored.device)
        scales, block = spread(stored, numbers, self.block[0] or 1, self.block[1] or spec.inputs)
        whole = codes[0] if len(codes) == 1 else torch.cat(codes)
        return Float8Linear(whole, scales.contiguous(), block, dtype, quantises_inputs=self.quantises_inputs)


def is_float8(stored: Stored, files: Files) -> bool:
    """Whether the files have the matrix in float8."""
    entry = files.get(stored.name + stored.suffix)
    return entry is not None and entry.dtype.startswith("F8_E")


def float8_of(
    stored: Stored, files: Files, blocks: tuple[int, int] | None, by_row: bool = False, quantises_inputs: bool = True
) -> Float8:
    """The scheme of a stored matrix, with the scales that the files have. `blocks`: of config.json, if it has some;
    `by_row`: whether a scale belongs to a row where neither the files nor `blocks` tell."""
    usual = SUFFIXES[:2] if stored.suffix else SUFFIXES[2:]
    for suffix in usual:
        entry = files.get(stored.name + suffix)
        if entry is not None:
            block = block_of(stored, entry.shape, blocks)
            if block is not None:
                return Float8(suffix, block, quantises_inputs, files)
            break
    else:
        suffix = usual[0 if blocks else 1]
    return Float8(suffix, blocks or (1 if by_row else None, None), quantises_inputs, files)
