"""Load torch's shared libraries in a thread while Python modules are imported.

An import holds the interpreter lock during the dynamic loader's work: 0.2 s for torch's libraries, 0.3 s for those of a
CUDA build. A call through ctypes releases the lock. This module has no other imports, so that it can start first.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module

# The libraries with the flags that torch uses: only the first one with global symbols. The last one depends on
# libtorch_cpu.so and, in CUDA builds, on libtorch_cuda.so and NVIDIA's libraries. torch's Python library is left to the
# import, since it needs the interpreter lock.
_LIBRARIES = (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", 0))

# Modules that are shared libraries themselves and that the engine imports before torch. The dynamic loader has one
# lock: an import of one of them would wait until torch's libraries are loaded, and all later imports with it.
EXTENSIONS = (
    *("math", "select", "array", "mmap", "zlib", "_bz2", "_lzma", "_heapq", "_queue", "_socket", "_struct", "_json"),
    *("_contextvars", "_hashlib", "_blake2", "_typing", "_datetime", "_opcode", "_uuid", "_decimal", "msgspec"),
)

_thread: threading.Thread | None = None
_times = [0.0, 0.0]  # start and end on the clock of ember.boot.now(), which is not imported here


def start_loading() -> None:
    """Start to load the libraries of the torch on `sys.path`, after the EXTENSIONS. A library that cannot be loaded is
    left to the import."""
    global _thread
    for name in EXTENSIONS:
        with suppress(ImportError):  # some Pythons lack one; whoever needs it says so
            import_module(name)
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
