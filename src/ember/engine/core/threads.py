"""The number of compute threads on a CPU: one for each physical core that this process may use.

torch counts the machine's cores. A container with eight of 128 cores would run 64 threads on eight cores, and threads
that wait at a barrier would wait long.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def allowed_cpus() -> Collection[int]:
    """The CPUs of this process's affinity."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def usable_cores(root: Path = Path("/"), allowed: Collection[int] | None = None) -> int:
    """Physical cores among the CPUs of this process's affinity (`allowed`), within the quota of its cgroup; at least 1.

    `root`: the parent of /sys and /proc.
    """
    cores = {_siblings(root, cpu) for cpu in (allowed_cpus() if allowed is None else allowed)}
    quota = _quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _siblings(root: Path, cpu: int) -> str:
    """An identifier that the hyperthreads of one core share; on an unknown machine, the CPU itself."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (topology / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)


def _quota(root: Path) -> float | None:
    """The cgroup's quota in CPUs (v2: cpu.max, v1: cpu.cfs_quota_us); None if it has none."""
    cgroup = root / "sys/fs/cgroup"
    try:
        words = (cgroup / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [(cgroup / "cpu" / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        except OSError:
            return None
    try:
        quota, period = int(words[0]), int(words[1])  # "max", and -1 in the old form, mean none
    except (ValueError, IndexError):
        return None
    return quota / period if quota > 0 and period > 0 else None
