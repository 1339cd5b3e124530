"""The C library's influence on dtype and weights. torch is not imported, since both are chosen during its import."""

from __future__ import annotations

import sys

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.operator_sets import LOOP, NATIVE, native_sizes
from ember_cpu.variants import VARIANTS

SMALL_ALIGNMENT = 128  # row lengths of quantised matrices are multiples of it


def is_whole(config: DecoderConfig) -> bool:
    """Whether the library computes a step of few rows in one call: it computes all operations, in its own loop."""
    return not NATIVE.lacking(config) and not (LOOP | {"experts"}) & config.features().keys()


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


def refusal(config: DecoderConfig, dtype: str, weights: str) -> str | None:
    """Why matrices cannot be quantised to `weights` (int8, int4) on this machine; None if they can."""
    if config.quantization:
        method = shown(str(config.quantization.get("quant_method")))[1:-1]
        return f"CPU_WEIGHTS={weights} quantises plain weights, and the model's are {method} already: leave it at auto"
    if dtype != "bfloat16":
        return f"CPU_WEIGHTS={weights} needs DTYPE=bfloat16 or auto, and it is {dtype}"
    missing = library_fault()
    if missing is not None:
        return f"CPU_WEIGHTS={weights} needs the C library for CPUs: {missing}; or leave CPU_WEIGHTS at auto"
    sizes = {name: size for name, size in native_sizes(config).items() if size % SMALL_ALIGNMENT}
    fault = NATIVE.lacking(config).get("linear")
    if sizes:
        fault = f"{', '.join(f'{name}={size}' for name, size in sizes.items())} is no multiple of {SMALL_ALIGNMENT}"
    if fault is not None:
        return f"CPU_WEIGHTS={weights} does not fit this {config.architecture}, whose {fault}: leave it at auto"
    return None
