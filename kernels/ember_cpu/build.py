"""Compiles `decoder.c` beside itself, once for each kind of CPU: `python -m ember_cpu.build [--compiler cc]`.

Nothing breaks where this is not done or there is no compiler: the engine then runs on torch's operators alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ember_cpu.library import HERE, VARIANTS

_OPTIONS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-Wall", "-Wextra"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--compiler", default=os.environ.get("CC", "cc"))
    parser.add_argument("--into", type=Path, default=HERE)
    options = parser.parse_args(arguments)
    if platform.machine() != "x86_64":
        print(f"no CPU kernels for {platform.machine()}: torch's operators serve it", file=sys.stderr)
        return 0
    if shutil.which(options.compiler) is None:
        print(f"no CPU kernels: there is no compiler {options.compiler!r}", file=sys.stderr)
        return 1
    for variant in VARIANTS:
        if not compile_variant(options.compiler, variant.name, variant.options, options.into):
            return 1
    return 0


def compile_variant(compiler: str, name: str, machine: tuple[str, ...], into: Path) -> bool:
    """Whether the library is there and younger than its source."""
    source, library = HERE / "decoder.c", into / f"decoder_{name}.so"
    if library.exists() and library.stat().st_mtime >= source.stat().st_mtime:
        return True
    partial = library.with_suffix(f".{os.getpid()}")
    command = [compiler, *_OPTIONS, *machine, str(source), "-o", str(partial), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"no CPU kernels for {name}: {done.stderr.strip()[-1000:]}", file=sys.stderr)
        partial.unlink(missing_ok=True)
        return False
    partial.replace(library)  # at once: a worker may be starting
    return True


if __name__ == "__main__":
    sys.exit(main())
