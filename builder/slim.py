"""Remove files that a worker never opens from an environment: `python -m builder.slim SITE_PACKAGES`.

These are static libraries, C headers, Triton's profiler and torch's tools for building extensions. Files that the
dynamic linker or an import could need stay.
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
    """Remove the files. Returns the number of freed bytes."""
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
