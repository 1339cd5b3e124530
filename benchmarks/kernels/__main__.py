"""Runs every kernel benchmark on the GPU and prints a table, each kernel's rows when they are measured.

python -m benchmarks.kernels [NAME ...]
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

from benchmarks.kernels.common import head, line, measure_ceilings, require_gpu


def main() -> None:
    here = [str(Path(__file__).parent)]
    known = [module.name for module in pkgutil.iter_modules(here) if module.name not in ("common", "__main__")]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=", ".join(known))
    names = parser.parse_args().names or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    require_gpu()
    ceilings = measure_ceilings()
    print(head(ceilings), flush=True)
    failures = []
    for name in names:
        try:  # a time limit costs only the kernels whose turn has not come
            for row in importlib.import_module(f"benchmarks.kernels.{name}").run(ceilings):
                print(line(row, ceilings), flush=True)
        except Exception as error:  # one kernel that does not run here must not cost the others' figures
            failures.append(f"{name}: {type(error).__name__}: {error}")
            print(failures[-1], flush=True)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
