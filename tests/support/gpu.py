"""Which device the tests of kernels have: a GPU, Triton's interpreter, or one that is faked.

With a GPU, kernels run on it. Without one they run in Triton's interpreter. A run with `-p tests.support.faked_gpu`
has neither: kernels are compiled as for a GPU, at the sizes of a GPU, and not run. The variable for the interpreter has
to be set before triton is first imported, so this module is imported at the top of a conftest.
"""

from __future__ import annotations

import os

import torch

HAS_GPU = torch.cuda.is_available()
IS_FAKED = os.environ.get("EMBER_FAKED_GPU") == "1"
DEVICE = "cuda" if HAS_GPU else "cpu"

if not (HAS_GPU or IS_FAKED):
    os.environ["TRITON_INTERPRET"] = "1"


def has_triton() -> bool:
    """Whether kernels can be tested; a CPU installation has no triton. Prepares the interpreter if it is used."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.support.interpreter import prepare

        prepare()
    return True
