"""Kernels run on the GPU where there is one and in Triton's interpreter where there is none."""

from __future__ import annotations

import os

import pytest
import torch

from tests.support.gpu import DEVICE, HAS_GPU, IS_FAKED, has_triton

collect_ignore: list[str] = []
if not has_triton():
    collect_ignore.extend(name for name in os.listdir(os.path.dirname(__file__)) if name.startswith("test_"))


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def has_gpu() -> bool:
    """Whether real shapes may be run; the interpreter needs minutes for them."""
    return HAS_GPU or IS_FAKED


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
