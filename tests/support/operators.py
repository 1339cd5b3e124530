"""Operator sets for the models of tests: as a boot chooses them, or one by name on whatever device there is."""

from __future__ import annotations

from ember.engine.description.operator_sets import NATIVE, TRITON, Lacking
from ember.engine.models.decoder import Decoder
from ember.engine.operators.choose import Choice, choose
from ember.engine.operators.native_ops import NativeOperators
from ember.engine.operators.torch_ops import TorchOperators
from ember_cpu import library as native


def choose_for(model: Decoder, weights: str = "auto", activations: str = "auto") -> Choice:
    """What a boot would choose for the model, which goes on with what it has."""
    return choose(model.config, model.parts, model.dtype, model.device, weights, activations)


def use_triton(model: Decoder, lacking: Lacking | None = None) -> None:
    """Let the model run in kernels: on a GPU, or in Triton's interpreter. Torch computes `lacking` too."""
    from ember.engine.operators.triton_ops import TritonOperators

    torch_ops = TorchOperators(model.config, model.parts, model.dtype, model.device)
    model.ops = TritonOperators(torch_ops, TRITON.lacking(model.config) | (lacking or {}))


def use_native(model: Decoder, lacking: Lacking | None = None) -> NativeOperators:
    """Let the model run in the C library, which must be built. Torch computes `lacking` too."""
    library = native.load()
    assert library is not None
    torch_ops = TorchOperators(model.config, model.parts, model.dtype, model.device)
    ops = NativeOperators(torch_ops, model.parts, library, NATIVE.lacking(model.config) | (lacking or {}))
    model.ops = ops
    return ops
