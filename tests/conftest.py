"""What holds for the whole suite: its processes share the machine's cores, and torch is imported as the engine does."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from ember.engine.lean import lean_import

# As in the engine's process (`front/link/spawn.py`); before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The files that take longest. Processes begin them first: one that is begun last is all that runs in the end.
LONGEST = (
    *("kernels/test_compile.py", "kernels/test_triton_ops.py", "engine_core/test_parity.py", "attack/test_attack.py"),
    *("faces/test_queue_contract.py", "device_step/test_running_ahead.py", "tests/test_gpu_check.py"),
    *("e2e/test_queue.py", "e2e/test_boot_errors.py", "engine_models/test_parity.py", "device_step/test_windows.py"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run on a GPU where there is one: all of the GPU's runner, and those kernels' that ask for a
    device. `-m gpu` leaves out what needs none. Tests that take longest come first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONGEST)))
    for item in items:
        folder = item.path.parent.name
        if folder == "device_step" or (folder == "kernels" and "device" in getattr(item, "fixturenames", ())):
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def _remove_log_handlers() -> Iterator[None]:
    """Remove what a test that sets up logging has left: its handler writes to a stream that is closed with the test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            root.removeHandler(handler)
            root.setLevel(level)


def pytest_configure() -> None:
    _keep_to_own_cores()
    _import_torch()


def _keep_to_own_cores() -> None:
    """Keep a worker of pytest-xdist, and what it starts, on its own share of the cores.

    Each library with threads of its own (torch, the C library, tokenizers) asks how many cores there are. Two workers
    that both use all of them wait for each other at every barrier.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if count <= len(cores):
        index = int(worker.removeprefix("gw"))
        os.sched_setaffinity(0, set(cores[index::count]))


def _import_torch() -> None:
    """Import torch without what the engine does not need. A test that needs more of it completes the import."""
    lean = lean_import.prepare()
    if lean is not None:
        import torch  # noqa: F401

        lean.finish()
