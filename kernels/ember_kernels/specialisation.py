"""What a kernel module says of the binaries that a boot needs (`compile` makes them ahead), and of the device.

Every kernel module imports this one, so it has few imports of its own.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import Any

import torch

# Triton 3.10 changes the default to off. The option is part of the cache key and of the numerics, so it is set here.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # part of the key; a binary without them is a third as large

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
    "u8": torch.uint8,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "i1": torch.bool,
}


@dataclass(frozen=True)
class Specialisation:
    """One binary that a boot needs: a kernel with types, constants and launch options.

    signature: {argument: type} of the arguments that are neither tl.constexpr nor given in `constants`, for example
        {"out_ptr": "*bf16", "num_tokens": "i32", "scale": "fp32"}; "*fp8e4nv" and "*u8" are float8_e4m3fn and uint8.
    constants: every tl.constexpr argument without a default, and plain arguments that the launch passes as None or 1.
    divisible: the arguments that will be multiples of 16 at every launch (pointers: of 16 bytes, as torch allocates).
    typical: a boot of a typical model needs it, so the tests compile it; the others are compiled for the image alone.
    options: further launch options as the launch passes them, such as {"launch_pdl": True}.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
    typical: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@functools.cache
def device_capability(device: torch.device) -> int:
    """The compute capability that launch tables are keyed by: 90 for 9.0. In the interpreter, on CPU tensors, 90."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
