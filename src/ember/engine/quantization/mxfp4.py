"""gpt-oss as it is published: its experts in mxfp4 (`quant_method` mxfp4). No torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.weights import LinearSpec, Stored
from ember.engine.quantization.base import Files, Source
from ember.engine.quantization.fp4 import Fp4
from ember.engine.quantization.held import Held
from ember.engine.quantization.ignored import Ignored
from ember.engine.quantization.mixed import Mixed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

BLOCKS, SCALES = "_blocks", "_scales"


class _AsRows:
    """The scheme of matrices whose rows are stored as [out, in], whatever the plain ones of the family are."""

    def __init__(self, scheme: Fp4) -> None:
        self._scheme = scheme

    def sources(self, spec: LinearSpec) -> list[Source]:
        return self._scheme.sources(_as_rows(spec))

    def held(self, spec: LinearSpec) -> Held:
        return self._scheme.held(spec)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        return self._scheme.assemble(_as_rows(spec), tensors, dtype)


def mxfp4(config: DecoderConfig, files: Files) -> Mixed:
    """`NAME_blocks` [experts, out, in / 32, 16] and `NAME_scales` [experts, out, in / 32], both of bytes."""
    fields: Mapping[str, Any] = config.quantization or {}
    ignored = Ignored(fields.get("modules_to_not_convert"), "quantization_config.modules_to_not_convert")
    scheme = _AsRows(Fp4("mxfp4", BLOCKS, SCALES, files=files))

    def scheme_of(stored: Stored) -> _AsRows | None:
        is_quantised = stored.name + BLOCKS in files if files else stored.stack is not None
        return scheme if is_quantised and (files or stored.name not in ignored) else None

    return Mixed("mxfp4", scheme_of)


def _as_rows(spec: LinearSpec) -> LinearSpec:
    outputs = (output._replace(stored=output.stored._replace(transposed=False)) for output in spec.outputs)
    return spec._replace(outputs=tuple(outputs))
