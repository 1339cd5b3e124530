"""Plain checkpoints whose matrices are rounded while they load (QUANTIZATION names the layout). No torch is imported.

Matrices of attention, MLPs and experts are rounded. Embedding, head and routers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from typing import TYPE_CHECKING

from ember.engine.description.config import DecoderConfig
from ember.engine.description.weights import LinearSpec, Spec
from ember.engine.quantization import held
from ember.engine.quantization.base import Files, Source
from ember.engine.quantization.held import Held
from ember.engine.quantization.plain import Plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear


class Online:
    """The plain format, with `rounded` for the matrices in blocks."""

    unused: tuple[str, ...] = ()

    def __init__(
        self, name: str, rounded: Callable[[Linear], Linear], rounded_held: Callable[[LinearSpec], Held]
    ) -> None:
        """`rounded_held`: how a rounded matrix lies on the device."""
        self.name = name
        self._rounded = rounded
        self._rounded_held = rounded_held
        self._plain = Plain()

    def sources(self, spec: Spec) -> list[Source]:
        return self._plain.sources(spec)

    def held(self, spec: Spec, element_size: int) -> Held:
        if isinstance(spec, LinearSpec) and spec.is_in_block:
            return held.together([self._rounded_held(spec)], spec, element_size)
        return self._plain.held(spec, element_size)

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear | Tensor:
        from ember.engine.layers.linear import Linear

        made = self._plain.assemble(spec, tensors, dtype)
        is_rounded = isinstance(spec, LinearSpec) and spec.is_in_block
        return self._rounded(made) if is_rounded and isinstance(made, Linear) else made


def fp8(config: DecoderConfig, files: Files) -> Online:
    """float8 with a scale for each row."""

    def rounded(linear: Linear) -> Linear:
        from ember.engine.quantization.rounding import float8_linear

        return float8_linear(linear)

    return Online("fp8", rounded, lambda spec: held.float8(spec, (1, None)))


def nf4(config: DecoderConfig, files: Files) -> Online:
    """nf4 with a scale for each block of 64 inputs."""

    def rounded(linear: Linear) -> Linear:
        from ember.engine.quantization.rounding import nf4_linear

        return nf4_linear(linear)

    return Online("bitsandbytes", rounded, lambda spec: held.table(spec, gcd(spec.inputs, 64), 4))
