"""The GPU before torch is imported, through the driver's library: its properties, and creation of its context.

The context takes 0.2 to 0.8 s. torch uses each device's primary context, so it uses this one. Errors are left for torch
to report.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

_SUCCESS = 0
_MAX_NAME = 100  # bytes of a device's name


class Device(NamedTuple):
    """A GPU. `total`: its memory in bytes."""

    name: str
    total: int


def find_device(library: Any = None) -> Device | None:
    """The first visible device, without creating its context; None if there is none. `library`: as `create_context`
    has it."""
    library = library or _driver()
    device, total, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(_MAX_NAME)
    try:
        is_found = (
            library is not None
            and library.cuInit(0) == _SUCCESS
            and library.cuDeviceGet(ctypes.byref(device), 0) == _SUCCESS
            and library.cuDeviceGetName(name, _MAX_NAME, device) == _SUCCESS
            and library.cuDeviceTotalMem_v2(ctypes.byref(total), device) == _SUCCESS
        )
    except AttributeError:  # the library is not the CUDA driver
        return None
    return Device(name.value.decode("ascii", "replace"), total.value) if is_found else None


def create_context(library: Any = None) -> bool:
    """Create the primary context of the first visible device. Returns whether this succeeded.

    `library`: the CUDA driver API (CUDA Driver API reference, "Primary Context Management"), by default libcuda.so.1.
    """
    library = library or _driver()
    if library is None:
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


def _driver() -> Any:
    """The CUDA driver API's library; None if it is not installed."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
