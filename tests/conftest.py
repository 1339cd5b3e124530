"""What holds for the whole suite: its processes share the machine's cores instead of all using all of them."""

from __future__ import annotations

import os


def pytest_configure() -> None:
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
