"""Creation of the GPU's context before torch is imported, through the driver's library.

The context takes 0.2 to 0.8 s. torch uses each device's primary context, so it uses this one. Errors are left for torch
to report.
"""

from __future__ import annotations

import ctypes
from typing import Any

_SUCCESS = 0


def create_context(library: Any = None) -> bool:
    """Create the primary context of the first visible device. Returns whether this succeeded.

    `library`: the CUDA driver API (CUDA Driver API reference, "Primary Context Management"), by default libcuda.so.1.
    """
    if library is None:
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    try:
        return (
            library.cuInit(0) == _SUCCESS
            and library.cuDeviceGet(ctypes.byref(device), 0) == _SUCCESS
            and library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == _SUCCESS
        )
    except AttributeError:  # the library is not the CUDA driver
        return False
