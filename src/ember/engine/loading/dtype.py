"""The choice of the model's dtype. This module does not import torch."""

from __future__ import annotations

from ember.engine.errors import ModelError
from ember_cpu.variants import cpu_has_bfloat16

DTYPES = ("bfloat16", "float16", "float32")


def choose_dtype_name(requested: str, checkpoint_dtype: str, device: str) -> str:
    """The name of the dtype. `requested`: auto or a dtype's name. `device`: a torch device's type or name.

    auto means on a GPU the checkpoint's dtype, but bfloat16 for float32, which is only slower there. On a CPU it means
    bfloat16 if the checkpoint has 16 bits and the CPU has bfloat16 instructions, otherwise float32. Raises ModelError.
    """
    if requested in DTYPES:
        return requested
    if requested != "auto":
        raise ModelError(f"dtype {requested!r} is not supported; use auto, {', '.join(DTYPES)}")
    if device.split(":")[0] == "cpu":
        return "bfloat16" if checkpoint_dtype in ("bfloat16", "float16") and cpu_has_bfloat16() else "float32"
    return checkpoint_dtype if checkpoint_dtype in ("bfloat16", "float16") else "bfloat16"
