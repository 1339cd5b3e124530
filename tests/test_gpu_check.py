"""gpu-check where there is no GPU: its parts, limits and rows, with the demo model and a faked device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton")
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import environment
from benchmarks.gpu_check.parts import CALLS, LIMITS_S, PARTS, Choice, Job, jobs
from benchmarks.gpu_check.table import HEAD, table
from benchmarks.rows import RowFile

ROOT = Path(__file__).resolve().parent.parent


def _gpu_check(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "TRITON_CACHE_DIR": str(out / "cache")}
    variables.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments, "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


@pytest.mark.timeout(600)  # 20 seconds of a core, of which a busy machine may give little
def test_a_dry_run_measures_the_engine_and_a_kernel_and_counts_what_the_cache_lacks(tmp_path: Path) -> None:
    arguments = ["second", "--dry", "--parts", "engine", "kernels", "profile", "--kernels", "activation"]
    done = _gpu_check(tmp_path, *arguments)
    rows = RowFile(tmp_path / "rows.jsonl").read()
    assert {"environment", "ceilings", "first", "decode", "prefill", "workload", "kernels", "profile"} <= {
        r["part"] for r in rows
    }
    assert (done.returncode, "binaries were not in the cache" in done.stdout) == (1, True)
    assert HEAD.splitlines()[0] in (tmp_path / "table.md").read_text()
    (tmp_path / "misses.txt").unlink()
    again = _gpu_check(tmp_path, *arguments[:2], "--parts", "kernels", "--kernels", "activation")
    assert (again.returncode, "0 binaries were not in the cache" in again.stdout) == (0, True)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = _gpu_check(tmp_path, "first")
    assert (done.returncode, "found none" in done.stdout) == (1, True)


def test_missing_modules_are_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MODULES", ("numpy", "no_such_module"))
    with (tmp_path / "log.txt").open("w") as log:
        assert not gpu_check._check(RowFile(None), log, True)
    assert "no_such_module" in (tmp_path / "log.txt").read_text()


def test_a_cache_of_another_triton_is_told_of(tmp_path: Path) -> None:
    here = {"triton": "3.6.0", "triton_key": "a", "cache": "/c", "ptxas": ""}
    manifest = tmp_path / "manifest.json"
    assert environment.fits(here, manifest) == []
    manifest.write_text(json.dumps(here))
    assert environment.fits(here, manifest) == []
    assert "triton_key is b" in environment.fits({**here, "triton_key": "b"}, manifest)[0]
    assert "TRITON_PTXAS_PATH" in environment.fits({**here, "ptxas": "/ptxas"}, manifest)[0]


@pytest.mark.timeout(60)
def test_a_part_that_takes_too_long_ends_with_all_it_started_and_keeps_its_rows(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "print('a row', flush=True)\n"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    )
    start = time.monotonic()
    with (tmp_path / "log.txt").open("w") as log:
        assert not gpu_check._run(Job("slow", [sys.executable, "-c", script], 3), log, start + 600)
        assert not gpu_check._run(Job("late", [sys.executable, "-c", "print('ran')"], 3), log, start)
        assert gpu_check._run(Job("quick", [sys.executable, "-c", "print('done')"], 60), log, start + 600)
    text = (tmp_path / "log.txt").read_text()
    assert "a row" in text and "slow: its time was over" in text and "late: no time is left" in text
    assert "ran" not in text.split("late")[1].split("quick")[0].replace("no time is left", "")


def test_every_part_of_a_call_has_jobs_and_a_limit(tmp_path: Path) -> None:
    for call in CALLS.values():
        for part in call.parts:
            assert jobs(part, Choice(call.models), tmp_path / "rows.jsonl", tmp_path)
    assert {part for call in CALLS.values() for part in call.parts} == set(PARTS) == set(LIMITS_S)
    assert sum(call.seconds for call in CALLS.values()) <= 800  # of 15 minutes on a machine, with two starts


def test_tests_that_need_no_device_are_left_out() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "gpu", "tests/kernels/test_compile.py"]
    done = subprocess.run([*command, "tests/kernels/test_norm.py"], cwd=ROOT, capture_output=True, text=True)
    assert "test_norm.py" in done.stdout and "test_compile" not in done.stdout, done.stdout[-2000:]


@pytest.mark.timeout(120)
def test_with_a_faked_gpu_tests_ask_for_the_binaries_of_a_gpu(tmp_path: Path) -> None:
    misses = tmp_path / "misses.txt"
    variables = {**os.environ, "PYTHONOPTIMIZE": "1", "EMBER_FAKED_GPU_MISSES": str(misses)}
    variables |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--assert=plain", "-p", "tests.support.faked_gpu"]
    command += ["tests/kernels/test_norm.py", "-k", "test_layer_norm and False-False"]
    assert subprocess.run(command, cwd=ROOT, env=variables, capture_output=True).returncode == 0
    assert misses.read_text().count("norm_kernel") > 1
    misses.unlink()
    assert subprocess.run(command, cwd=ROOT, env=variables, capture_output=True).returncode == 0
    assert not misses.exists()


def test_a_failing_test_is_written_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    variables = {**inherited, "EMBER_TEST_ROWS": str(tmp_path / "rows.jsonl"), "PYTHONPATH": str(ROOT)}
    variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # those of other packages take seconds to import
    plugins = ["-p", "xdist", "-p", "benchmarks.gpu_check.report"]
    command = [sys.executable, "-m", "pytest", *plugins, "-n", "2", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    failure, counts = RowFile(tmp_path / "rows.jsonl").read()
    assert failure["name"] == "test_it.py::test_bad" and "assert 1 == 2" in failure["text"]
    assert counts == {"part": "tests", "passed": 1, "failed": 1, "skipped": 0}


def test_figures_stand_beside_what_was_expected() -> None:
    row = {"part": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 1024, "tokens_per_second": 200.0}
    line = table([{**row, "limit": 285.0}]).splitlines()[-1]
    assert "200 tokens/s | 70 % of the memory limit | 195-205 tokens/s" in line
    assert table([{"part": "environment"}]) == HEAD
