"""Prefill and decode tokens per second at several batch sizes, and those of transformers' generate on the same weights.

    python benchmarks/throughput.py [--model demo|qwen3-0.6b|DIRECTORY] [--batches 1 8 32] [--prompt 128] [--output 64]

Both run alternately in this process, on the same device with the same number of threads. The figures are medians. The
limit is the bytes of weights and KV cache that a decode step must read, divided by the memory bandwidth measured at the
start. Prompts are random token ids of equal length, sampled greedily without end tokens. `--json FILE` writes the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

from benchmarks.shapes import SHAPES, make_checkpoint  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from ember.engine.core.engine import Engine

    Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help=f"demo, {', '.join(SHAPES)} or a directory")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--cpu-weights", default="auto", choices=["auto", "int8", "int4"])
    parser.add_argument("--avx2", action="store_true", help="as on a CPU that has AVX2 and nothing newer")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of all threads, for ratios while the machine has other work"
    )
    parser.add_argument("--skip-transformers", action="store_true")
    options = parser.parse_args()
    # As the worker does for its engine process; OpenMP reads it when torch is imported, which is further down.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if options.avx2:
        _hide_newer_than_avx2()
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(os.environ.get("EMBER_BENCH_DIR", scratch))
        name = options.model
        directory = ROOT / "src/ember/demo" if name == "demo" else Path(name)
        if name in SHAPES:
            directory = make_checkpoint(name, cache)
        _run(directory, options)


def _run(directory: Path, options: argparse.Namespace) -> None:
    import torch

    from ember.engine.description.cache_groups import bytes_seen, cache_groups

    if options.threads:
        torch.set_num_threads(options.threads)
    engine = _engine(directory, options)
    model: Any = engine.runner.model
    peer = None if options.skip_transformers else _peer(directory, options)
    bandwidth = _bandwidth(options.device)
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = []
    dtype = getattr(torch, options.dtype)
    weights = options.dtype if options.cpu_weights == "auto" else options.cpu_weights
    groups = cache_groups(model.config, dtype.itemsize)
    print(
        f"\n{options.model}: {model.num_parameters / 1e6:.1f} M parameters, {weights}, prompt {options.prompt}, "
        f"output {options.output}, {_device_name(options.device)}, memory {bandwidth / 1e9:.1f} GB/s\n"
    )
    print("| batch | prefill tok/s | transformers | decode tok/s | GB/s | % of limit | transformers | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for batch in options.batches:
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for round_ in range(options.rounds + 1):
            prompts = _prompts(model.config.vocab_size, batch, options.prompt, seed=round_ + 1000 * batch)
            measured = _measure_ember(engine, prompts, options.output, clock)
            compared = _measure_peer(peer, prompts, options.output, clock) if peer is not None else None
            if round_ > 0:  # the first round warms up
                ours.append(measured)
                if compared:
                    theirs.append(compared)
        prefill, decode = (statistics.median(values) for values in zip(*ours, strict=True))
        context = options.prompt + options.output / 2
        step_bytes = model.bytes_read(batch) + batch * bytes_seen(groups, context)
        limit = bandwidth / step_bytes * batch
        line = f"| {batch} | {prefill:.0f} | "
        row = {
            "model": options.model,
            "weights": weights,
            "batch": batch,
            "prompt": options.prompt,
            "output": options.output,
        }
        row |= {"prefill": prefill, "decode": decode, "decode_limit": limit}
        if theirs:
            prefill_peer, decode_peer = (statistics.median(values) for values in zip(*theirs, strict=True))
            row |= {"transformers_prefill": prefill_peer, "transformers_decode": decode_peer}
            line += f"{prefill_peer:.0f} | "
        else:
            line += "- | "
        rows.append(row)
        line += f"{decode:.1f} | {decode / batch * step_bytes / 1e9:.1f} | {100 * decode / limit:.0f} | "
        line += f"{decode_peer:.1f} | {decode / decode_peer:.2f}x |" if theirs else "- | - |"
        print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _hide_newer_than_avx2() -> None:
    """Limit torch's operators, which read these variables at import, and the choice of the C library to AVX2."""
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    from ember_cpu import variants

    flags = frozenset(variants.VARIANTS[-1].flags)
    variants.cpu_flags = lambda: flags  # type: ignore[assignment]


def _engine(directory: Path, options: argparse.Namespace) -> Engine:
    from ember.boot import Timeline
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    from ember.wire import Configure

    configure = Configure(
        model=str(directory),
        dtype=options.dtype,
        cpu_weights=options.cpu_weights,
        device=options.device,
        max_model_len=min(2048, options.prompt + options.output + 16),
        max_num_seqs=max(options.batches),
        enable_prefix_caching=False,
        num_threads=options.threads,
    )
    timeline = Timeline("bench")
    engine, ready = assemble(configure, open_model(configure, timeline, lambda located: None), timeline)
    for warning in ready.warnings:
        print(warning)
    started = time.perf_counter()
    while engine.do_chore():  # settle the weights, or record decode steps
        pass
    print(f"deferred boot work done in {time.perf_counter() - started:.2f} s")
    return engine


def _peer(directory: Path, options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
    return model.eval().to(options.device)


def _prompts(vocab_size: int, batch: int, length: int, seed: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, vocab_size - 10, (batch, length), generator=generator).tolist()


def _measure_ember(engine: Engine, prompts: list[list[int]], num_output: int, clock: Clock) -> tuple[float, float]:
    """Returns (prefill tokens/s, decode tokens/s)."""
    from ember.wire import Generate, SamplingParams

    sampling = SamplingParams(max_tokens=num_output, temperature=0.0, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.add(Generate(i, prompt, sampling))
    start = clock()
    waiting = set(range(len(prompts)))
    while waiting:
        waiting -= {output.request_id for output in engine.step()}
    first = clock()
    produced = 0
    while engine.has_work:
        produced += len(engine.step())
    end = clock()
    return sum(map(len, prompts)) / (first - start), produced / (end - first)


def _measure_peer(model: Any, prompts: list[list[int]], num_output: int, clock: Clock) -> tuple[float, float]:
    import torch

    ids = torch.tensor(prompts, device=model.device)
    times = []
    for count in (1, num_output):
        start = clock()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        times.append(clock() - start)
    return ids.numel() / times[0], len(prompts) * (num_output - 1) / (times[1] - times[0])


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"


def _bandwidth(device: str) -> float:
    """Bytes per second read from memory: on a CPU by a sum over 1 GiB in all threads, the best of several; on a GPU by
    a copy, read and write counted."""
    import torch

    data = torch.ones(1 << 28, dtype=torch.float32, device=device)
    moved = data.numel() * 4 * (2 if device == "cuda" else 1)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        if device == "cuda":
            data.clone()
            torch.cuda.synchronize()
        else:
            data.sum()
        best = min(best, time.perf_counter() - start)
    return moved / best


if __name__ == "__main__":
    main()
