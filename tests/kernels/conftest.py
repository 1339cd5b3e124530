"""Kernels run on the GPU where there is one and in Triton's interpreter where there is none.

The variable must be set before triton is first imported, hence at the top of this file.
"""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

collect_ignore: list[str] = []
try:
    import triton  # noqa: F401
except ImportError:
    # Triton is needed on GPUs alone; a CPU installation has no kernels to test.
    collect_ignore.extend(name for name in os.listdir(os.path.dirname(__file__)) if name.startswith("test_"))
else:
    from tests.support.interpreter import prepare

    if not HAS_GPU:
        prepare()


@pytest.fixture
def device() -> str:
    return "cuda" if HAS_GPU else "cpu"


@pytest.fixture
def has_gpu() -> bool:
    """Whether real shapes may be run; the interpreter needs minutes for them."""
    return HAS_GPU


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
