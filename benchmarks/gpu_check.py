"""Everything that needs a GPU, in one call: `make gpu-check`, or parts of it with --parts.

    python benchmarks/gpu_check.py [--parts tests kernels engine] [--models qwen3-0.6b llama-3.1-8b]

tests: the kernel tests and the engine's parity with transformers through the kernels, on the device. kernels: every
kernel's benchmark beside the ceilings measured in the same run. engine: prefill and decode of random-weight models of
real shapes, beside the memory limit and transformers on the same weights. Ends with a table and writes
benchmarks/results/<gpu>-<date>.json. Each part has its own time limit, and one that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("tests", "kernels", "engine")
LIMITS_S = {"tests": 180, "kernels": 120, "engine": 110}  # the last one for each model
BATCHES = {"qwen3-0.6b": [1, 8, 64, 256], "llama-3.1-8b": [1, 8, 64, 256], "qwen3-32b": [1, 8, 64]}
CONTEXT, OUTPUT = 1024, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=list(BATCHES), default=["qwen3-0.6b", "llama-3.1-8b"])
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA GPU that torch can use, and found none", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name()
    report: dict[str, Any] = {"gpu": name, "date": str(datetime.date.today()), "torch": str(torch.__version__)}
    failed = []
    if "tests" in options.parts and not _run("tests", [sys.executable, "-m", "pytest", "-q", "tests/kernels"]):
        failed.append("tests")
    if "kernels" in options.parts and not _run("kernels", [sys.executable, "-m", "benchmarks.kernels"]):
        failed.append("kernels")
    if "engine" in options.parts:
        report["engine"] = []
        for model in options.models:
            rows = _engine(model)
            report["engine"] += rows
            if not rows:
                failed.append(f"engine {model}")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name.lower().replace(' ', '-')}-{report['date']}.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    _print(report)
    print(f"written to {file.relative_to(ROOT)}; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


def _run(part: str, command: list[str]) -> bool:
    print(f"--- {part}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    try:
        status = subprocess.run(command, cwd=ROOT, env=environment, timeout=LIMITS_S[part], check=False).returncode
    except subprocess.TimeoutExpired:
        status = -1
        print(f"{part} took more than {LIMITS_S[part]} s")
    print(f"--- {part}: {'ok' if status == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
    return status == 0


def _engine(model: str) -> list[dict[str, Any]]:
    """The rows of benchmarks/throughput.py for one shape; none when it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        command = [sys.executable, "benchmarks/throughput.py", "--model", model, "--device", "cuda"]
        command += ["--batches", *map(str, BATCHES[model]), "--prompt", str(CONTEXT), "--output", str(OUTPUT)]
        _run("engine", [*command, "--rounds", "2", "--json", str(file)])
        rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        return rows


def _print(report: dict[str, Any]) -> None:
    print(f"\n{report['gpu']}, {report['date']}, torch {report['torch']}\n")
    print("| model | batch | decode tok/s | % of memory limit | x transformers | prefill tok/s |")
    print("|---|---|---|---|---|---|")
    for row in report.get("engine", []):
        ratio = row["decode"] / row["transformers_decode"] if "transformers_decode" in row else float("nan")
        share = 100 * row["decode"] / row["decode_limit"]
        print(
            f"| {row['model']} | {row['batch']} | {row['decode']:.0f} | {share:.0f} | {ratio:.2f} "
            f"| {row['prefill']:.0f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
