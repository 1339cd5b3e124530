"""Builds the C launchers that Triton 3.6 wants, so that an image needs no compiler at run time.

Up to some version (3.6 has it, 3.9 no longer) Triton compiles a small C extension for each kernel signature, and one
for its driver, on first use, with the system's C compiler, and keeps them in its cache beside the kernels. Their key is
their source and the Python and machine they are for. They link against libcuda, which a machine without a GPU lacks: an
empty library of that name serves to build them. Needs gcc or clang and Python's headers at image time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def needs_launchers() -> bool:
    """Whether this Triton compiles launchers."""
    from triton.backends.nvidia import driver

    return hasattr(driver, "make_launcher")


def build_launcher(binary: Any) -> None:
    """Put the launcher of a compiled kernel, and the driver's extension, into Triton's cache."""
    from triton.backends.nvidia import driver

    names = binary.src.fn.arg_names
    constants = {(names.index(key),) if isinstance(key, str) else key: v for key, v in binary.src.constants.items()}
    source = driver.make_launcher(
        constants, dict(binary.src.signature), getattr(binary.metadata, "tensordesc_meta", None)
    )
    _build(source, "__triton_launcher")
    _build((Path(driver.__file__).parent / "driver.c").read_text(), "cuda_utils")


@functools.cache
def _build(source: str, name: str) -> None:
    from triton.backends.nvidia import driver

    with tempfile.TemporaryDirectory() as directory:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise RuntimeError("Triton's launchers need a C compiler at image time and there is none")
        library = str(Path(directory, "libcuda.so.1"))
        subprocess.run([compiler, "-shared", "-x", "c", os.devnull, "-o", library], check=True)
        with contextlib.suppress(ImportError):  # built and stored; loading it may take a driver
            driver.compile_module_from_src(
                src=source,
                name=name,
                library_dirs=[driver.libdevice_dir, directory],
                include_dirs=driver.include_dirs,
                libraries=driver.libraries,
            )
