"""torch's shared libraries, loaded in a thread while Python modules are being imported.

An import holds the interpreter's lock while the dynamic loader works: 0.2 s for torch's libraries, and 0.3 s for those
of a build for CUDA. A call through ctypes releases it. Kept free of other imports, so that it starts first.
"""

from __future__ import annotations

import os
import sys
import threading
import time

# As torch opens them itself: the first with its symbols for everybody, the others not. The last one has libtorch_cpu.so
# and, in builds for CUDA, libtorch_cuda.so with all that NVIDIA's packages bring. torch's library for Python stays for
# the import, which has the interpreter's lock.
_LIBRARIES = (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", 0))

_thread: threading.Thread | None = None
_times = [0.0, 0.0]  # begin and end, on the clock of ember.boot.now(), which would be one more import here


def start_loading() -> None:
    """Begin to load the libraries of the torch on `sys.path`. What cannot be loaded is left to torch's import."""
    global _thread
    directory = next((found for entry in sys.path if os.path.isdir(found := os.path.join(entry, "torch", "lib"))), None)
    if directory is None or sys.platform != "linux":
        return
    _thread = threading.Thread(target=_load, args=(directory,), name="libraries", daemon=True)
    _thread.start()


def wait() -> tuple[float, float] | None:
    """Wait until the thread is done, so that `import torch` finds them loaded. Returns when it began and ended; None
    where nothing was loaded ahead. Other threads run meanwhile."""
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
