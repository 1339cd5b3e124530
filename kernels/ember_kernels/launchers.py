"""Build the C launchers that Triton 3.6 needs, so that an image needs no compiler at run time.

Older versions of Triton (3.6, but not 3.9) compile a small C extension for each kernel signature, and one for the
driver, on first use, with the system's C compiler. They are stored in Triton's cache beside the kernels. Their key is a
hash of their source, the Python version and the machine. They link against libcuda, which a machine without a GPU
lacks, so an empty library of that name is used to build them. The build needs gcc or clang and Python's headers.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch


def needs_launchers() -> bool:
    """Whether this Triton compiles launchers."""
    from triton.backends.nvidia import driver

    return hasattr(driver, "make_launcher")


def build_launcher(src: Any, metadata: Any) -> None:
    """Put the launcher of a compiled kernel, and the driver's extension, into Triton's cache."""
    from triton.backends.nvidia import driver

    names = src.fn.arg_names
    constants = {(names.index(key),) if isinstance(key, str) else key: v for key, v in src.constants.items()}
    source = driver.make_launcher(constants, dict(src.signature), getattr(metadata, "tensordesc_meta", None))
    _build(source, "__triton_launcher")
    _build((Path(driver.__file__).parent / "driver.c").read_text(), "cuda_utils")


@functools.cache
def _build(source: str, name: str) -> None:
    from triton.backends.nvidia import driver
    from triton.runtime import build

    with tempfile.TemporaryDirectory() as directory:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise RuntimeError("Triton's launchers need a C compiler when the image is built: install gcc or clang")
        library = str(Path(directory, "libcuda.so.1"))
        subprocess.run([compiler, "-shared", "-x", "c", os.devnull, "-o", library], check=True)
        with patch.object(build, "_load_module_from_path", lambda name, path: None):  # that may need the GPU's driver
            driver.compile_module_from_src(
                src=source,
                name=name,
                library_dirs=[driver.libdevice_dir, directory],
                include_dirs=driver.include_dirs,
                libraries=driver.libraries,
            )
