"""Runs every kernel benchmark on the GPU and prints a table, each kernel's rows when they are measured.

python -m benchmarks.kernels [NAME ...] [--rows FILE] [--dry]
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faked_gpu import faked_gpu
from benchmarks.kernels.common import Ceilings, Row, head, line, measure_ceilings, require_gpu
from benchmarks.rows import RowFile

FIRST = ("early_launch", "small_gemm")  # they end with an entry of a table, and a time limit must not cost it


def main() -> None:
    here = [str(Path(__file__).parent)]
    known = [module.name for module in pkgutil.iter_modules(here) if module.name not in ("common", "sweep", "__main__")]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"{', '.join(known)}; without names all but the sweeps")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="each row is added to it, as a line of JSON")
    parser.add_argument("--dry", action="store_true", help="without a device: compile and launch nothing")
    options = parser.parse_args()
    others = [name for name in known if name not in FIRST and not name.startswith("sweep_")]
    names = options.names or [*FIRST, *others]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    with faked_gpu() if options.dry else nullcontext():
        failures = _run(names, RowFile(options.rows))
    if failures:
        raise SystemExit("\n".join(failures))


def _run(names: list[str], file: RowFile) -> list[str]:
    """Run these benchmarks. Returns what failed."""
    require_gpu()
    ceilings = measure_ceilings()
    print(head(ceilings), flush=True)
    file.add({"part": "ceilings", **asdict(ceilings)})
    failures = []
    for name in names:
        try:  # a time limit costs only the kernels whose turn has not come
            for row in importlib.import_module(f"benchmarks.kernels.{name}").run(ceilings):
                print(line(row, ceilings), flush=True)
                file.add(_as_json(row, ceilings))
        except Exception as error:  # one kernel that does not run here must not cost the others' figures
            failures.append(f"{name}: {type(error).__name__}: {error}")
            print(failures[-1], flush=True)
    return failures


def _as_json(row: Row, ceilings: Ceilings) -> dict[str, Any]:
    return {"part": "kernels", **asdict(row), "share_of_bound": row.bound(ceilings) / row.seconds}


if __name__ == "__main__":
    main()
