"""Threads of a CPU's engine: physical cores, the process's affinity, the container's quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from ember.engine.core.threads import usable_cores


def machine(root: Path, siblings: list[str], **files: str) -> Path:
    for cpu, text in enumerate(siblings):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{text}\n")
    cgroup = root / "sys/fs/cgroup"
    (cgroup / "cpu").mkdir(parents=True)
    for name, text in files.items():
        (cgroup / name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")).write_text(text)
    return root


HYPERTHREADED = ["0,4", "1,5", "2,6", "3,7"] * 2


def test_hyperthreads_share_a_core(tmp_path):
    root = machine(tmp_path, HYPERTHREADED)
    assert usable_cores(root, range(8)) == 4
    assert usable_cores(root, {0, 4, 1}) == 2  # an affinity of two cores, one of them whole


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu_max": "200000 100000\n"}, 2),
        ({"cpu_max": "250000 100000\n"}, 2),
        ({"cpu_max": "50000 100000\n"}, 1),
        ({"cpu_max": "max 100000\n"}, 4),
        ({"cpu_max": "what is this"}, 4),
        ({"cpu__cpu_cfs_quota_us": "300000\n", "cpu__cpu_cfs_period_us": "100000\n"}, 3),
        ({"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_container_may_use_less(tmp_path, files, cores):
    assert usable_cores(machine(tmp_path, HYPERTHREADED, **files), range(8)) == cores


def test_an_unknown_machine(tmp_path):
    assert usable_cores(tmp_path, range(3)) == 3
    assert usable_cores() >= 1
