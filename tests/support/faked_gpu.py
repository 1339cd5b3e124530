"""A plugin for pytest: the tests that need a GPU ask for their binaries as on a GPU, and nothing is computed.

    PYTHONOPTIMIZE=1 python -m pytest -m gpu --assert=plain -p tests.support.faked_gpu tests/kernels tests/device_step

compiles what the tests will launch, or finds it in Triton's cache. Results are whatever lies in memory, so asserts are
off, and an error after a launch says nothing; how a test ends is not looked at. At the end each process adds a line to
the file that EMBER_FAKED_GPU_MISSES names for every binary that it had to compile.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

CAPABILITY = 90
os.environ["EMBER_FAKED_GPU"] = "1"
os.environ.pop("TRITON_INTERPRET", None)

_stack = ExitStack()
_misses: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    import torch

    from ember_kernels.compile import cache_misses, compile_only

    global _misses
    _stack.enter_context(compile_only(CAPABILITY, launchers=True))
    _misses = _stack.enter_context(cache_misses())
    torch.testing.assert_close = lambda *arguments, **options: None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    if report.outcome == "failed" and not hasattr(report, "wasxfail"):
        report.outcome = "passed"
    return report


def pytest_unconfigure() -> None:
    _stack.close()
    if (name := os.environ.get("EMBER_FAKED_GPU_MISSES")) and _misses:
        with Path(name).open("a") as file:
            file.writelines(f"{miss}\n" for miss in _misses)
