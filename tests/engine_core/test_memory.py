"""What memory there is for the cache: the machine's, and the container's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ember.engine.core.memory import available_host_bytes

GIB = 1 << 30


def machine(root: Path, available: int, **files: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available // 1024} kB\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name.replace("_", ".", 1)).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 20 * GIB),
        ({"memory_max": "max\n", "memory_current": f"{GIB}\n"}, 20 * GIB),
        ({"memory_max": f"{8 * GIB}\n", "memory_current": f"{3 * GIB}\n"}, 5 * GIB),
        (
            {
                "memory_max": f"{8 * GIB}\n",
                "memory_current": f"{5 * GIB}\n",
                "memory_stat": f"anon {GIB}\nactive_file {GIB}\ninactive_file {3 * GIB}\nfile_dirty {GIB}\n",
            },
            6 * GIB,  # all but what is anonymous, and what would have to be written first
        ),
        ({"memory_max": f"{90 * GIB}\n", "memory_current": "0\n", "memory_stat": "\n"}, 20 * GIB),
        ({"memory_max": "much\n", "memory_current": "0\n", "memory_stat": "\n"}, 20 * GIB),
    ],
)
def test_the_less_of_machine_and_container(tmp_path, files, expected):
    assert available_host_bytes(machine(tmp_path, 20 * GIB, **files)) == expected


def test_an_unknown_machine(tmp_path):
    assert available_host_bytes(tmp_path) > 0
