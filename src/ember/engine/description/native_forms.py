"""Which decoders the C library for CPUs serves. No torch here: the dtype is chosen while torch is being imported."""

from __future__ import annotations

import sys

from ember.engine.description.config import DecoderConfig
from ember_cpu.variants import VARIANTS

ALIGNMENT = 32  # elements: rows of matrices and heads are whole registers
MAX_HEAD_DIM = 256
MAX_SIZE = 1 << 17  # elements of a row: some are kept on a thread's stack
SMALL_ALIGNMENT = 128  # of weights of fewer bits


def serves(config: DecoderConfig, alignment: int = ALIGNMENT) -> bool:
    """RMSNorm before, rotary heads, gated SiLU, and sizes that are multiples of `alignment`, heads of ALIGNMENT."""
    rope = config.rope
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    return (
        config.norm == "rms"
        and config.norm_first
        and config.final_norm
        and rope is not None
        and config.gated_mlp
        and config.activation == "silu"
        and not config.embed_dim
        and config.head_dim <= MAX_HEAD_DIM
        and config.head_dim % ALIGNMENT == 0
        and all(width % alignment == 0 and width <= MAX_SIZE for width in widths)
        and rope.rotary_dim % 2 == 0
        and rope.rotary_dim <= config.head_dim
    )


def runs_in_bfloat16(config: DecoderConfig) -> bool:
    """Whether bfloat16 is the fast format here though the CPU does not multiply it: the library is built and serves."""
    return serves(config) and library_fault() is None


def library_fault() -> str | None:
    """Why there is no library here, and what to do; None where there is one."""
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
    """Why matrices cannot become `weights` (int8, int4) here, for who asked for them; None where they can."""
    if dtype != "bfloat16":
        return f"CPU_WEIGHTS={weights} needs DTYPE=bfloat16 or auto, and it is {dtype}"
    missing = library_fault()
    if missing is not None:
        return f"CPU_WEIGHTS={weights} needs the C library for CPUs: {missing}; or leave CPU_WEIGHTS at auto"
    if not serves(config, SMALL_ALIGNMENT):
        return (
            f"CPU_WEIGHTS={weights} is for decoders with RMSNorm, rotary positions and gated SiLU whose hidden size, "
            f"intermediate size and heads together are multiples of {SMALL_ALIGNMENT}, and each head of {ALIGNMENT} "
            f"(up to {MAX_HEAD_DIM}); this {config.architecture} has {config.hidden_size}, {config.intermediate_size} "
            f"and {config.num_heads} heads of {config.head_dim}: leave it at auto"
        )
    return None
