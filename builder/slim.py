"""Removes from an environment what a worker never opens: `python -m builder.slim SITE_PACKAGES`.

Static libraries, C headers, Triton's profiler and the tools that torch ships for building extensions. What the linker
or an import could still ask for stays.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

UNUSED = (
    "**/*.a",
    "nvidia/*/include",
    "nvidia/*/*/include",
    "torch/include",
    "torch/share/cmake",
    "torch/bin/protoc*",
    "torch/bin/test_*",
    "torch/test",
    "triton/_C/libproton*",
    "triton/backends/nvidia/lib/cupti",
    "triton/backends/nvidia/bin/nvdisasm",
    "triton/backends/nvidia/bin/cuobjdump",
    "*/tests",
)


def slim(site_packages: Path) -> int:
    """Returns the bytes that are gone."""
    freed = 0
    for pattern in UNUSED:
        for path in sorted(site_packages.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                freed += sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
                shutil.rmtree(path)
            elif path.is_symlink() or path.exists():
                freed += path.lstat().st_size
                path.unlink()
    return freed


def main() -> int:
    (directory,) = sys.argv[1:]
    print(f"{slim(Path(directory)) / 1e6:.0f} MB removed from {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
