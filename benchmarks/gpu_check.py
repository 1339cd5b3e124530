"""Everything that needs a GPU, in one call: `make gpu-check`, or parts of it with --parts.

    python benchmarks/gpu_check.py [--parts tests kernels engine] [--models qwen3-0.6b llama-3.1-8b] [--without peer]

tests: the kernel tests, the GPU's runner beside the plain one, and the engine's parity with transformers through the
kernels, on the device. kernels: every kernel's benchmark beside the ceilings measured in the same run. engine: decode,
prefill, first token and nano-vllm's workload on random-weight models of real shapes (`gpu_engine.py`), beside what the
device allows and transformers on the same weights. Ends with a table and writes benchmarks/results/<gpu>-<date>.json.
Each part has its own time limit, the sum of which is below nine minutes, and one that fails does not stop the others.
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
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("tests", "kernels", "engine")
LIMITS_S = {"tests": 170, "kernels": 110, "engine": 125}  # the last one for each model
BATCHES = {"qwen3-0.6b": [1, 8, 64, 256], "llama-3.1-8b": [1, 8, 64, 256], "qwen3-32b": [1, 8, 64]}
ENGINE_PARTS = ("decode", "prefill", "first", "workload", "peer")
TESTS = ("tests/kernels", "tests/device_step")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=list(BATCHES), default=["qwen3-0.6b", "llama-3.1-8b"])
    parser.add_argument("--without", nargs="+", choices=ENGINE_PARTS, default=[], help="parts of the engine's")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA GPU that torch can use, and found none", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name()
    report: dict[str, Any] = {"gpu": name, "date": str(datetime.date.today()), "torch": str(torch.__version__)}
    failed = []
    if "tests" in options.parts and not _run("tests", [sys.executable, "-m", "pytest", "-q", *TESTS]):
        failed.append("tests")
    if "kernels" in options.parts and not _run("kernels", [sys.executable, "-m", "benchmarks.kernels"]):
        failed.append("kernels")
    if "engine" in options.parts:
        report["engine"] = []
        for model in options.models:
            rows = _engine(model, [part for part in ENGINE_PARTS if part not in options.without])
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


def _engine(model: str, parts: list[str]) -> list[dict[str, Any]]:
    """The rows of benchmarks/gpu_engine.py for one shape: as many as it came to."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        command = [sys.executable, "benchmarks/gpu_engine.py", "--model", model, "--parts", *parts]
        command += ["--batches", *map(str, BATCHES[model]), "--json", str(file)]
        _run("engine", command)
        rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        return rows


def _print(report: dict[str, Any]) -> None:
    print(f"\n{report['gpu']}, {report['date']}, torch {report['torch']}\n")
    print("| model | what | figure | beside it |")
    print("|---|---|---|---|")
    rows: list[dict[str, Any]] = report.get("engine", [])
    peers = {row["model"]: row["tokens_per_second"] for row in rows if row["part"] == "peer"}
    for row in rows:
        what, figure, beside = _cells(row, peers)
        print(f"| {row['model']} | {what} | {figure} | {beside} |")


def _cells(row: dict[str, Any], peers: dict[str, float]) -> tuple[str, str, str]:
    """What was measured, the figure, and what it is to be read beside."""
    rate = f"{row.get('tokens_per_second', 0):.0f} tokens/s"
    match row["part"]:
        case "decode":
            beside = f"{100 * row['tokens_per_second'] / row['limit']:.0f} % of the memory limit"
            if "device_waits" in row:
                beside += f"; the device waits {100 * row['device_waits']:.0f} % of a step"
            return f"decode, batch {row['batch']}, context {row['context']}", rate, beside
        case "prefill":
            share = 100 * row["share_of_matmul_rate"]
            return f"prefill, prompts of {row['prompt']}", rate, f"{share:.0f} % of the matmul rate"
        case "first":
            return f"first token, prompt of {row['prompt']}", f"{1000 * row['seconds']:.1f} ms", ""
        case "workload":
            peer = peers.get(row["model"])
            return "nano-vllm's workload", rate, f"{row['tokens_per_second'] / peer:.2f}x transformers" if peer else ""
    return f"{row['part']}: transformers, continuous batching", rate, ""


if __name__ == "__main__":
    sys.exit(main())
