"""The scheme of matrices in 4-bit floats (e2m1) with scales of blocks of inputs: nvfp4 and mxfp4. No torch is imported.

nvfp4 has a scale in e4m3 for 16 inputs, and one in float32 for the matrix. mxfp4 has a power of two for 32 inputs (OCP
Microscaling Formats 1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ember.engine.description.weights import LinearSpec
from ember.engine.errors import ModelError
from ember.engine.quantization import held
from ember.engine.quantization.base import Files, Source
from ember.engine.quantization.held import Held
from ember.engine.quantization.scales import in_order, row_numbers, scale_sources

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

CODES, SCALES, GLOBAL = "codes", "scales", "global"
_BY_ROW, _BY_MATRIX = (1, None), (None, None)


@dataclass(frozen=True, slots=True)
class Fp4:
    """weight = e2m1 number * scale of the block * scale of the matrix. The suffixes are ends of stored names."""

    name: str  # nvfp4, mxfp4
    codes: str
    scales: str
    matrix_scale: str | None = None
    is_inverse: bool = False  # whether the scale of the matrix is one to divide by
    files: Files = field(default_factory=dict, compare=False)

    @property
    def block(self) -> int:
        return 16 if self.name == "nvfp4" else 32

    def sources(self, spec: LinearSpec) -> list[Source]:
        if spec.inputs % self.block:
            raise ModelError(
                f"{spec.outputs[0].stored.name} has {spec.inputs} inputs, which are not blocks of {self.block}: "
                f"{self.name} cannot have them"
            )
        found = scale_sources(spec, CODES, self.codes, (1, 2), self.files, ("U8",), "uint8")
        kinds = ("F8_E4M3",) if self.name == "nvfp4" else ("U8", "F8_E8M0")
        kind = "float8_e4m3fn" if self.name == "nvfp4" else "uint8"
        found += scale_sources(spec, SCALES, self.scales, (1, self.block), self.files, kinds, kind)
        if self.matrix_scale is not None:
            found += scale_sources(spec, GLOBAL, self.matrix_scale, _BY_MATRIX, self.files)
        return found

    def held(self, spec: LinearSpec) -> Held:
        return held.table(spec, self.block, 1, factors=self.matrix_scale is not None)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        import torch

        from ember.engine.layers.table_linear import E2M1, TableLinear

        rows = row_numbers(spec, _BY_ROW)
        codes, scales = (
            in_order(read[0] if len(read) == 1 else torch.cat(read), rows) for read in (tensors[CODES], tensors[SCALES])
        )
        if self.name == "mxfp4":
            scales = scales.view(torch.float8_e8m0fnu)
        factors = None
        if self.matrix_scale is not None:
            stored = torch.cat(tensors[GLOBAL])[:, 0]
            factors = 1.0 / stored if self.is_inverse else stored
            if not bool(factors.isfinite().all()):
                name = spec.outputs[0].stored.name + self.matrix_scale
                what = ", or one beside it, has a scale by which weights are no numbers: download the model again"
                raise ModelError(f"{name}{what}")
            factors = factors[row_numbers(spec, _BY_MATRIX).to(stored.device)]
        table = torch.tensor(E2M1, device=codes.device)
        return TableLinear(codes, table, scales, dtype, factors, is_e2m1=True)
