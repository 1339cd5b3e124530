"""Which dtype the model runs in. No torch at import."""

from __future__ import annotations

from ember.engine.errors import ModelError
from ember_cpu.variants import cpu_has_bfloat16

DTYPES = ("bfloat16", "float16", "float32")


def choose_dtype_name(requested: str, checkpoint_dtype: str, device: str) -> str:
    """`requested` is auto or a dtype's name, `device` a torch device type or name; returns the dtype's name.

    auto: on a GPU the checkpoint's own (float32 becomes bfloat16, as 32 bits only cost speed there); on a CPU bfloat16
    where the checkpoint has 16 bits and the CPU multiplies bfloat16, otherwise float32. Raises ModelError.
    """
    if requested in DTYPES:
        return requested
    if requested != "auto":
        raise ModelError(f"dtype {requested!r} is not supported; use auto, {', '.join(DTYPES)}")
    if device.split(":")[0] == "cpu":
        return "bfloat16" if checkpoint_dtype in ("bfloat16", "float16") and cpu_has_bfloat16() else "float32"
    return checkpoint_dtype if checkpoint_dtype in ("bfloat16", "float16") else "bfloat16"
