"""Whether this host can serve at all: memory, disk, and the driver of its GPU.

The platform's SDK has such checks, which end a worker on a host without 4 GB of free memory or on a disk that is 90 %
full. These are for our own queue client, with the SDK's variables and reports. Without the variables they fail only
where nothing could be served; the boot of the engine is the test that counts. `RUNPOD_SKIP_AUTO_SYSTEM_CHECKS=false`
asks for the SDK's own thresholds.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
# Thresholds of the host's memory in GiB, of its disk in percent, and of CUDA: ours, and the SDK's.
_DEFAULTS = {
    "RUNPOD_MIN_MEMORY_GB": (0.25, 4.0),
    "RUNPOD_MIN_DISK_PERCENT": (0.5, 10.0),
    "RUNPOD_MIN_CUDA_VERSION": (11.8, 11.8),
}
_LARGEST = {"RUNPOD_MIN_MEMORY_GB": 2**20, "RUNPOD_MIN_DISK_PERCENT": 100, "RUNPOD_MIN_CUDA_VERSION": 100}


@dataclass(frozen=True, slots=True)
class Unfit:
    """A check that failed, and why, in one line."""

    check: str
    reason: str


@dataclass(frozen=True, slots=True)
class Host:
    """The facts about a host that `unfit` checks. A fact that is None is unknown, and its check passes."""

    free_memory: int | None = None  # bytes
    free_disk: float | None = None  # percent
    has_gpu: bool = False
    driver_version: float | None = None  # the newest CUDA that the driver knows

    @classmethod
    def here(cls) -> Host:
        gpus = any(Path("/dev").glob("nvidia[0-9]*"))
        return cls(_free_memory(), _free_disk(), gpus, _driver_version() if gpus else None)


def unfit(environ: Mapping[str, str], host: Host | None = None, *, uses_gpu: bool = True) -> Unfit | None:
    """The first check that this host fails, or None. `environ` has the variables that set the thresholds. The GPU and
    its driver are checked only where `uses_gpu`. Raises ValueError for a threshold that is no number."""
    asked = environ.get("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "").strip().lower()
    if asked == "true":
        return None
    least = {name: _number(environ, name, usual[asked == "false"]) for name, usual in _DEFAULTS.items()}
    host = host or Host.here()
    memory, disk, cuda = least.values()
    if host.free_memory is not None and host.free_memory < memory * GIB:
        reason = f"{host.free_memory / GIB:.2f} GiB of memory are free, less than RUNPOD_MIN_MEMORY_GB={memory:g}"
        return Unfit("memory", reason)
    if host.free_disk is not None and host.free_disk < disk:
        reason = f"{host.free_disk:.1f} % of the disk are free, less than RUNPOD_MIN_DISK_PERCENT={disk:g}"
        return Unfit("disk", reason)
    skips_gpu = not uses_gpu or environ.get("RUNPOD_SKIP_GPU_CHECK", "").strip().lower() == "true"
    if skips_gpu or not host.has_gpu:
        return None
    if host.driver_version is None:
        return Unfit("gpu", "the host has a GPU, but its driver (libcuda.so.1) cannot be used")
    if host.driver_version < cuda:
        reason = f"the GPU's driver knows CUDA {host.driver_version:g}, less than RUNPOD_MIN_CUDA_VERSION={cuda:g}"
        return Unfit("cuda_version", reason)
    return None


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    given = environ.get(name, "").strip()
    if not given:
        return default
    most = _LARGEST[name]
    try:
        number = float(given)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise ValueError(f"{name}={given[:40]} must be a number from 0 to {most}")
    return number


def _free_memory() -> int | None:
    """What the kernel could give to a process without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _free_disk() -> float | None:
    try:
        usage = shutil.disk_usage("/")
    except OSError:
        return None
    return 100 * usage.free / usage.total if usage.total else None


def _driver_version() -> float | None:
    """12.8 for a driver that knows CUDA 12.8. The call makes no context on a device."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000 + number.value % 1000 / 100
