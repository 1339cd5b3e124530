"""A weight format whose modules may be stored in different ways: each has a scheme. No torch is imported.

A linear layer's outputs may be of several modules (query, key and value), and only some of them may be quantised.
Consecutive outputs of one scheme become one layer, and the layers are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from ember.engine.description.weights import LinearSpec, Spec, Stored, TensorSpec
from ember.engine.quantization import held
from ember.engine.quantization.base import BIAS, Source, bias_sources
from ember.engine.quantization.held import Held
from ember.engine.quantization.plain import Plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear


class Scheme(Protocol):
    """How the matrices of some modules are stored. Equal schemes are one object, or compare equal."""

    def sources(self, spec: LinearSpec) -> list[Source]:
        """The stored tensors of the matrix, without its bias."""

    def held(self, spec: LinearSpec) -> Held:
        """How the matrix lies on the device, without its bias."""

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        """The layer of these outputs, without its bias. As `base.WeightFormat.assemble`."""


class Mixed:
    """A format that gives each stored matrix its scheme; None: the matrix is plain."""

    def __init__(self, name: str, scheme_of: Callable[[Stored], Scheme | None], unused: tuple[str, ...] = ()) -> None:
        self.name = name
        self.unused = unused
        self._scheme_of = scheme_of
        self._plain = Plain()
        self._schemes: dict[Stored, Scheme | None] = {}

    def sources(self, spec: Spec) -> list[Source]:
        if isinstance(spec, TensorSpec):
            return self._plain.sources(spec)
        parts = self._parts(spec)
        found = []
        for number, (scheme, part) in enumerate(parts):
            sources = self._plain.sources(part) if scheme is None else scheme.sources(part)
            found += [source._replace(part=f"{number}.{source.part}") for source in sources]
        return found + bias_sources(spec)

    def held(self, spec: Spec, element_size: int) -> Held:
        if isinstance(spec, TensorSpec):
            return held.plain(spec, element_size)
        parts = (
            held.plain(part, element_size) if scheme is None else scheme.held(part)
            for scheme, part in self._parts(spec)
        )
        return held.together(parts, spec, element_size)

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear | Tensor:
        if isinstance(spec, TensorSpec):
            return self._plain.assemble(spec, tensors, dtype)
        from ember.engine.layers.joined import joined
        from ember.engine.layers.linear import Linear

        layers: list[Linear] = []
        for number, (scheme, part) in enumerate(self._parts(spec)):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): read for name, read in tensors.items() if name.startswith(prefix)}
            made = self._plain.assemble(part, own, dtype) if scheme is None else scheme.assemble(part, own, dtype)
            assert isinstance(made, Linear)
            layers.append(made)
        return joined(layers, tensors[BIAS][0] if spec.bias else None)

    def _parts(self, spec: LinearSpec) -> list[tuple[Scheme | None, LinearSpec]]:
        """The consecutive outputs of one scheme, as layers without a bias."""
        groups = groupby(spec.outputs, lambda output: self._scheme(output.stored))
        return [(scheme, spec._replace(outputs=tuple(outputs), bias=False)) for scheme, outputs in groups]

    def _scheme(self, stored: Stored) -> Scheme | None:
        if stored not in self._schemes:
            self._schemes[stored] = self._scheme_of(stored)
        return self._schemes[stored]
