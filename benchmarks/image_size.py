"""The size of a set of wheels in an image, unpacked and slimmed: `python benchmarks/image_size.py DIRECTORY`.

    python -m pip download --only-binary=:all: -d DIRECTORY torch==2.13.0

fills the directory. The sizes are those in the wheels' tables of contents; nothing is unpacked. The files that
`builder.slim` would remove are found by its patterns.
"""

from __future__ import annotations

import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this directory: its queue.py is not the library's

from builder.slim import UNUSED  # noqa: E402


def is_slimmed(name: str) -> bool:
    """Whether slim() would remove a file of this name: it, or a directory above it, matches a pattern."""
    parts = name.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(_matches(path, pattern) for path in above for pattern in UNUSED)


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(path.rpartition("/")[2], pattern[3:])
    words, wanted = path.split("/"), pattern.split("/")
    return len(words) == len(wanted) and all(fnmatch(word, part) for word, part in zip(words, wanted, strict=True))


def main() -> int:
    (directory,) = sys.argv[1:]
    rows = []
    for wheel in sorted(Path(directory).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        slimmed = sum(size for name, size in sizes.items() if is_slimmed(name))
        name, version = wheel.name.split("-")[:2]
        rows.append((sum(sizes.values()), slimmed, wheel.stat().st_size, f"{name} {version}"))
    rows.sort(reverse=True)
    print(f"{'package':40} {'unpacked MB':>11} {'slimmed MB':>10} {'wheel MB':>9}")
    for unpacked, slimmed, packed, label in [*rows[:20], *([_sum(rows[20:], "the others")] if rows[20:] else [])]:
        print(f"{label:40} {unpacked / 1e6:11.1f} {(unpacked - slimmed) / 1e6:10.1f} {packed / 1e6:9.1f}")
    unpacked, slimmed, packed, label = _sum(rows, "all")
    print(f"{label:40} {unpacked / 1e6:11.1f} {(unpacked - slimmed) / 1e6:10.1f} {packed / 1e6:9.1f}")
    return 0


def _sum(rows: list[tuple[int, int, int, str]], label: str) -> tuple[int, int, int, str]:
    return sum(row[0] for row in rows), sum(row[1] for row in rows), sum(row[2] for row in rows), label


if __name__ == "__main__":
    sys.exit(main())
