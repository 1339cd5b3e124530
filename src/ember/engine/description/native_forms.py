"""The C library's influence on dtype and weights. torch is not imported, since both are chosen during its import."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import prod

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.operator_sets import LOOP, NATIVE, NATIVE_LOOP
from ember.engine.description.weights import Spec, TensorSpec
from ember.gguf.types import BY_NAME
from ember_cpu.variants import VARIANTS

CPU_WEIGHTS = {"int8": "Q8_0", "int4": "Q4_0"}
"""The type of blocks that each form of CPU_WEIGHTS has (`gguf.types`)."""


def is_whole(config: DecoderConfig) -> bool:
    """Whether the library computes a step of few rows in one call: it computes all operations, in its own loop."""
    more = (LOOP | NATIVE.features["experts"]) - NATIVE_LOOP & config.features().keys()
    return not NATIVE.lacking(config) and not more and config.latent is None


def runs_in_bfloat16(config: DecoderConfig) -> bool:
    """Whether bfloat16 is fast on a CPU without bfloat16 instructions: the library exists, and computes all
    operations of the decoder."""
    return not NATIVE.lacking(config) and library_fault() is None


def library_fault() -> str | None:
    """Why the library cannot be used on this machine, with advice; None if it can."""
    faults = []
    for variant in VARIANTS:
        if variant.is_runnable():
            fault = variant.fault()
            if fault is None:
                return None
            faults.append(fault)
    if not faults:
        return "it is for x86-64 with AVX2, which this CPU is not"
    return f"{', '.join(faults)} (`{sys.executable} -m ember_cpu.build` compiles it)"


def quantised_bytes(specs: Iterable[Spec], weights: str) -> int:
    """The bytes of a decoder's weights whose matrices are quantised to `weights` (int8, int4) on a CPU."""
    return sum(_quantised_bytes(spec, weights) for spec in specs)


def _quantised_bytes(spec: Spec, weights: str) -> int:
    """The bytes of one weight. The embedding and the head are int8; vectors, tables of positions, routers and
    projections of the embedding are not quantised."""
    if isinstance(spec, TensorSpec):
        rows, columns = prod(size.extent for size in spec.shape[:1]), prod(size.extent for size in spec.shape[1:])
        if spec.name != "embed_tokens":
            return rows * columns * (4 if spec.dtype == "float32" else 2)
        return rows * BY_NAME[CPU_WEIGHTS["int8"]].row_bytes(columns)
    rows, columns = spec.num_rows, spec.inputs
    name = spec.name.rpartition(".")[2]
    if name not in ("qkv", "query_up", "gate", "output", "inputs", "up", "down", "lm_head"):
        return rows * (columns + spec.bias) * 2
    kind = BY_NAME[CPU_WEIGHTS["int8" if name == "lm_head" else weights]]
    return rows * (kind.row_bytes(columns) + 2 * spec.bias)


def refusal(config: DecoderConfig, dtype: str, weights: str) -> str | None:
    """Why matrices cannot be quantised to `weights` (int8, int4) on this machine; None if they can."""
    if config.quantization:
        method = shown(str(config.quantization.get("quant_method")))[1:-1]
        if method == "gguf":
            return f"CPU_WEIGHTS={weights}: matrices of GGUF files are used as they are stored: leave it at auto"
        return f"CPU_WEIGHTS={weights} quantises plain weights, and the model's are {method} already: leave it at auto"
    if dtype != "bfloat16":
        return f"CPU_WEIGHTS={weights} needs DTYPE=bfloat16 or auto, and it is {dtype}"
    missing = library_fault()
    if missing is not None:
        return f"CPU_WEIGHTS={weights} needs the C library for CPUs: {missing}; or leave CPU_WEIGHTS at auto"
    fault = NATIVE.lacking(config).get("linear")
    if fault is not None:
        return f"CPU_WEIGHTS={weights} does not fit this {config.architecture}, whose {fault}: leave it at auto"
    return None
