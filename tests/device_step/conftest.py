"""The GPU's runner: on the GPU where there is one, in Triton's interpreter where there is none."""

from __future__ import annotations

import os

import pytest

from tests.support.gpu import has_triton

collect_ignore: list[str] = []
if not has_triton():
    collect_ignore.extend(name for name in os.listdir(os.path.dirname(__file__)) if name.startswith("test_"))
else:
    from tests.device_step.engines import draw_as_the_kernels_do

    @pytest.fixture(autouse=True)
    def same_draws(monkeypatch):
        """The reference engine draws with the noise of the kernels."""
        draw_as_the_kernels_do(monkeypatch)
