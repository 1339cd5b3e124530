"""Compile `decoder.c` once for each variant, and `text/` once: `python -m ember_cpu.build [--compiler cc]`.

The library is optional. Without it, or without a compiler, the engine runs on torch's operators alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ember_cpu import vocabulary
from ember_cpu.variants import HERE, VARIANTS, Variant, library_file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--compiler", default=os.environ.get("CC", "cc"))
    parser.add_argument("--into", type=Path, default=HERE)
    options = parser.parse_args(arguments)
    if shutil.which(options.compiler) is not None:
        compile_vocabulary(options.compiler, options.into)
    if platform.machine() != "x86_64":
        print(f"no CPU kernels for {platform.machine()}: the engine uses torch's operators", file=sys.stderr)
        return 0
    if shutil.which(options.compiler) is None:
        print(f"no CPU kernels: the compiler {options.compiler!r} was not found", file=sys.stderr)
        return 1
    made = [compile_variant(options.compiler, variant, options.into) for variant in VARIANTS]
    return 0 if any(made) else 1


def compile_variant(compiler: str, variant: Variant, into: Path) -> bool:
    """Compile a variant unless its library is up to date. Returns whether the library exists now."""
    library = library_file(variant.name, into)
    return _compile(compiler, variant.options, (HERE / "decoder.c",), library, variant.build(), ("-lm",))


def compile_vocabulary(compiler: str, into: Path) -> bool:
    """Compile the functions for vocabularies unless it is up to date. Returns whether the library exists now."""
    library = vocabulary.library_file(into)
    return _compile(compiler, vocabulary.OPTIONS, vocabulary.SOURCES, library, vocabulary.build(), ())


def _compile(
    compiler: str,
    options: tuple[str, ...],
    sources: tuple[Path, ...],
    library: Path,
    build: str,
    libraries: tuple[str, ...],
) -> bool:
    if library.exists() and build.encode() in library.read_bytes():
        return True
    partial = library.with_suffix(f".{os.getpid()}")
    command = [compiler, *options, f'-DEMBER_BUILD="{build}"', *map(str, sources), "-o", str(partial), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{library.name} cannot be compiled: {done.stderr.strip()[-1000:]}", file=sys.stderr)
        partial.unlink(missing_ok=True)
        return False
    partial.replace(library)  # atomic: a worker may be starting
    return True


if __name__ == "__main__":
    sys.exit(main())
