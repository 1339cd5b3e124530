"""The plain format of checkpoints: weights in bfloat16, float16 or float32. torch is not imported with this module."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from ember.engine.description.weights import Rows, Spec, TensorSpec
from ember.engine.quantization import held
from ember.engine.quantization.base import BIAS, WEIGHT, Source, bias_sources, matrix_source
from ember.engine.quantization.held import Held

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear


class Plain:
    """The format of unquantised matrices, vectors and tables."""

    name = "plain"
    unused: tuple[str, ...] = ()

    def sources(self, spec: Spec) -> list[Source]:
        if isinstance(spec, TensorSpec):
            sizes = [size.extent for size in spec.shape] or [1]
            rows, columns = sizes[0], prod(sizes[1:])
            whole, is_vector = Rows(0, rows), len(sizes) == 1
            return [
                Source(
                    WEIGHT,
                    spec.source,
                    spec.shape,
                    (rows, columns),
                    whole,
                    (0, columns),
                    dtype=spec.dtype,
                    is_vector=is_vector,
                )
            ]
        return [matrix_source(output, spec.columns) for output in spec.outputs] + bias_sources(spec)

    def held(self, spec: Spec, element_size: int) -> Held:
        own = held.plain(spec, element_size)
        return own if isinstance(spec, TensorSpec) else held.together([own], spec, element_size)

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear | Tensor:
        if isinstance(spec, TensorSpec):
            tensor = tensors[WEIGHT][0].view([size.extent for size in spec.shape])
            return tensor if not spec.offset else (tensor.float() + spec.offset).to(tensor.dtype)
        from ember.engine.layers.linear import Linear

        return Linear(*tensors[WEIGHT], bias=tensors[BIAS][0] if spec.bias else None)
