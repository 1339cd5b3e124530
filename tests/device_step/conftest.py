"""The GPU's runner: on the GPU where there is one, in Triton's interpreter where there is none.

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
    # Triton is needed on GPUs alone; a CPU installation has no such runner to test.
    collect_ignore.extend(name for name in os.listdir(os.path.dirname(__file__)) if name.startswith("test_"))
else:
    from tests.device_step.engines import draw_as_the_kernels_do
    from tests.support.interpreter import prepare

    if not HAS_GPU:
        prepare()

    @pytest.fixture(autouse=True)
    def same_draws(monkeypatch):
        """The reference engine draws with the noise of the kernels."""
        draw_as_the_kernels_do(monkeypatch)
