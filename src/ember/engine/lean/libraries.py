"""Load torch's shared libraries in a thread while Python modules are imported.

An import holds the interpreter lock during the dynamic loader's work: 0.2 s for torch's libraries, 0.3 s for those of a
CUDA build. A call through ctypes releases the lock. This module has no other imports, so that it can start first.
"""

from __future__ import annotations

import os
import sys
import threading
import time

# The libraries with the flags that torch uses: only the first one with global symbols. The last one depends on
# libtorch_cpu.so and, in CUDA builds, on libtorch_cuda.so and NVIDIA's libraries. torch's Python library is left to the
# import, since it needs the interpreter lock.
_LIBRARIES = (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", 0))

_thread: threading.Thread | None = None
_times = [0.0, 0.0]  # start and end on the clock of ember.boot.now(), which is not imported here


def start_loading() -> None:
    """Start to load the libraries of the torch on `sys.path`. A library that cannot be loaded is left to the import."""
    global _thread
    directory = next((found for entry in sys.path if os.path.isdir(found := os.path.join(entry, "torch", "lib"))), None)
    if directory is None or sys.platform != "linux":
        return
    _thread = threading.Thread(target=_load, args=(directory,), name="libraries", daemon=True)
    _thread.start()


def wait() -> tuple[float, float] | None:
    """Wait until the libraries are loaded. Returns the start and end of the loading; None if there was none. The wait
    releases the interpreter lock."""
    if _thread is None:
        return None
    _thread.join()
    return _times[0], _times[1]


def _load(directory: str) -> None:
    _times[0] = _now()
    try:
        _open_all(directory)
    finally:
        _times[1] = _now()


def _now() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _open_all(directory: str) -> None:
    import ctypes

    try:
        dlopen = ctypes.CDLL(None).dlopen
    except (OSError, AttributeError):
        return
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    for name, flags in _LIBRARIES:
        if not dlopen(os.fsencode(os.path.join(directory, name)), os.RTLD_NOW | flags):
            return
