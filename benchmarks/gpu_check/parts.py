"""The parts of gpu-check: what each runs, for how long at most, and which belong to a call."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

PARTS = ("tests", "engine", "sweep", "boot", "kernels", "profile")
# How many sequences decode at a time, by model.
BATCHES = {"qwen3-0.6b": (1, 8, 64, 256), "llama-3.1-8b": (1, 8, 64, 256), "qwen3-32b": (1, 8, 64)}
PROFILED_BATCHES = (1, 64)
ENGINE_PARTS = ("first", "decode", "mixed", "prefill", "workload", "peer")
TESTS = ("tests/kernels", "tests/device_step")
LIMITS_S = {"tests": 150, "engine": 150, "sweep": 90, "boot": 75, "kernels": 110, "profile": 45}
DRY_FACTOR = 40  # of a dry run's limits: without a device most of it is the compiler's time, on two cores perhaps
MISSES = "misses.txt"
SWEEPS = ("sweep_decode", "sweep_prefill")


@dataclass(frozen=True)
class Call:
    """What the time on a machine is spent on, in order of worth."""

    parts: tuple[str, ...]
    models: tuple[str, ...]
    seconds: int


CALLS = {
    "first": Call(("tests", "engine"), ("qwen3-0.6b",), 300),
    "second": Call(("sweep", "engine", "boot", "kernels", "profile"), ("llama-3.1-8b",), 400),
}


def _workers(cores: int) -> int:
    """How many tests run at a time: a large machine has something left for the driver's threads."""
    return cores if cores <= 4 else min(12, cores - 2)


@dataclass(frozen=True)
class Choice:
    """What was asked for on the command line."""

    models: tuple[str, ...]
    engine_parts: tuple[str, ...] = ENGINE_PARTS[:-1]  # a peer's warm-up costs more than it tells
    kernels: tuple[str, ...] = ()
    workers: int = field(default_factory=lambda: _workers(os.cpu_count() or 1))
    is_dry: bool = False


@dataclass(frozen=True)
class Job:
    """One process: its name, its command, its limit in seconds, and variables of its own."""

    name: str
    command: list[str]
    seconds: int
    variables: dict[str, str] = field(default_factory=dict)


def jobs(part: str, choice: Choice, rows: Path, checkpoints: Path) -> list[Job]:
    """The processes of a part."""
    seconds = LIMITS_S[part] * (DRY_FACTOR if choice.is_dry else 1)
    end = ["--rows", str(rows), *(["--dry"] if choice.is_dry else [])]
    if part == "tests":
        return [_tests(choice, rows, seconds)]
    if part in ("sweep", "kernels"):
        names = SWEEPS if part == "sweep" else choice.kernels
        command = [sys.executable, "-m", "benchmarks.kernels", *names, *end]
        return [Job(part, command, seconds, {"EMBER_FAKED_GPU_MISSES": str(rows.with_name(MISSES))})]
    script = f"benchmarks/gpu_{'boot' if part == 'boot' else 'engine'}.py"
    made = []
    for model in choice.models:
        command = [sys.executable, script, "--model", model, "--checkpoints", str(checkpoints)]
        if part == "engine":
            command += ["--parts", *choice.engine_parts, "--batches", *map(str, BATCHES[model])]
        elif part == "profile":
            command += ["--parts", "profile", "--batches", *map(str, PROFILED_BATCHES)]
        made.append(Job(f"{part} {model}", [*command, *end], seconds))
    return made


def _tests(choice: Choice, rows: Path, seconds: int) -> Job:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--tb=short", "-p", "benchmarks.gpu_check.report"]
    command += ["-n", str(choice.workers), *TESTS]
    variables = {"EMBER_TEST_ROWS": str(rows)}
    if choice.is_dry:
        command += ["--assert=plain", "-p", "tests.support.faked_gpu"]
        variables |= {"PYTHONOPTIMIZE": "1", "EMBER_FAKED_GPU_MISSES": str(rows.with_name(MISSES))}
    return Job("tests", command, seconds, variables)
