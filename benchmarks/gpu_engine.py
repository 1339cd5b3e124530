"""One model on one GPU, beside what the device allows and beside transformers' continuous batching on the same weights.

    python benchmarks/gpu_engine.py --model qwen3-0.6b|llama-3.1-8b|qwen3-32b|DIRECTORY [--parts decode prefill ...]

decode: tokens/s at several batch sizes after prompts of 1k, the share of what reading weights and cache allows, and how
much of a step the device waits for the host. prefill: tokens/s at 1k and 8k, the share of the measured matmul rate.
first: time to the first token of one prompt of 1k. mixed: what the host needs to launch steps of decodes and a prompt,
kernel by kernel and from a graph. workload: nano-vllm's (256 requests, 100 to 1024 tokens in and out,
temperature 0.6, no end token). profile: the kernels that take most of a decode step and of a prompt's. peer: the
workload in transformers. Ceilings, a copy of 1 GiB and a bfloat16 matmul of 8192^3, are measured in the same run. Rows
are printed when they are known; `--rows FILE` adds them to a file.
`--dry` runs all of it in small on the CPU, with made-up ceilings; figures mean nothing then.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

from benchmarks.rows import Row, RowFile  # noqa: E402
from benchmarks.shapes import SHAPES, make_checkpoint  # noqa: E402

if TYPE_CHECKING:
    import torch

    from benchmarks.kernels.common import Ceilings
    from ember.engine.core.engine import Engine
    from ember.engine.models.decoder import Decoder
    from ember.wire import SamplingParams

PARTS = ("decode", "prefill", "first", "mixed", "workload", "profile", "peer")
REPEATS = 3
PROFILED_STEPS, PROFILED_KERNELS = 8, 12


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `requests`, `shortest` and `longest` are of nano-vllm's workload."""

    context: int = 1024
    output: int = 96
    prefills: tuple[int, ...] = (1024, 8192)
    most_prompts: int = 1 << 10  # at a time
    batches: tuple[int, ...] = (1, 8, 64, 256)
    requests: int = 256
    shortest: int = 100
    longest: int = 1024
    mixed: int = 64  # sequences that decode, and tokens of the prompt beside them
    mixed_steps: int = 24


DRY = Sizes(
    context=24,
    output=8,
    prefills=(24, 96),
    most_prompts=2,
    batches=(1, 4),
    requests=6,
    shortest=4,
    longest=24,
    mixed=4,
    mixed_steps=3,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="qwen3-0.6b", help=f"{', '.join(SHAPES)} or a directory")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batches", type=int, nargs="+", help=" ".join(map(str, Sizes.batches)))
    parser.add_argument("--checkpoints", type=Path, default=None, help="where checkpoints are kept; else they are not")
    parser.add_argument("--rows", type=Path, default=None, metavar="FILE")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    sizes = DRY if options.dry else Sizes()
    if options.batches and not options.dry:
        sizes = replace(sizes, batches=tuple(options.batches))
    file = RowFile(options.rows)
    ceilings = _ceilings(options.dry)
    file.add({"part": "ceilings", **asdict(ceilings)})
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(options.model)
        if options.dry:
            directory = ROOT / "src/ember/demo"
        elif options.model in SHAPES:
            directory = make_checkpoint(options.model, options.checkpoints or Path(scratch))
        for row in measure(directory, options.parts, sizes, ceilings, "cpu" if options.dry else "cuda"):
            print(json.dumps(row), flush=True)
            file.add({"model": options.model, **row})


def _ceilings(is_dry: bool) -> Ceilings:
    from benchmarks.kernels.common import Ceilings, measure_ceilings, require_gpu

    if is_dry:
        return Ceilings("no device", 1e12, 1e15)
    require_gpu()
    return measure_ceilings()


def measure(directory: Path, parts: list[str], sizes: Sizes, ceilings: Ceilings, device: str) -> Iterator[Row]:
    """A row for each figure, each when it is known: a time limit does not cost what was measured."""
    import torch

    if set(parts) - {"peer"}:
        yield from _measure_engine(_engine(directory, sizes, device), parts, sizes, ceilings, device)
    gc.collect()  # the engine is gone, and with it its memory
    if device == "cuda":
        torch.cuda.empty_cache()
    if "peer" in parts:
        yield _peer(directory, sizes, device)


def _measure_engine(engine: Engine, parts: list[str], sizes: Sizes, ceilings: Ceilings, device: str) -> Iterator[Row]:
    if "first" in parts:
        yield _first(engine, sizes)
    if "decode" in parts:
        for batch in sizes.batches:
            yield _decode(engine, batch, sizes, ceilings)
    if "prefill" in parts:
        for length in sizes.prefills:
            yield _prefill(engine, length, sizes, ceilings)
    if "mixed" in parts:
        for from_graph in (False, True):
            yield _mixed(engine, sizes, from_graph)
    if "workload" in parts:
        yield _workload(engine, sizes)
    if "profile" in parts:
        for batch in sizes.batches:
            yield from _profile(engine, batch, sizes, device == "cuda")


def _engine(directory: Path, sizes: Sizes, device: str) -> Engine:
    """As the worker builds it, with every decode step recorded."""
    from ember.boot import Timeline
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    from ember.engine.core.warmup import warm_up
    from ember.wire import Configure

    configure = Configure(
        model=str(directory),
        dtype="bfloat16",
        device=device,
        max_model_len=max(*sizes.prefills, 2 * sizes.longest, sizes.context + sizes.output) + 64,
        max_num_seqs=max(*sizes.batches, sizes.requests),
        enable_prefix_caching=False,
        seed=0,
    )
    timeline = Timeline("bench")
    engine, ready = assemble(configure, open_model(configure, timeline, lambda located: None), timeline)
    for warning in ready.warnings:
        print(warning)
    started = time.perf_counter()
    warm_up(engine, "full")
    print(f"warmed up, graphs included, in {time.perf_counter() - started:.2f} s", flush=True)
    return engine


def _greedy(max_tokens: int) -> SamplingParams:
    from ember.wire import SamplingParams

    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def _prompts(engine: Engine, lengths: list[int], seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    vocabulary = engine.runner.model.config.vocab_size
    return [[draw.randrange(10, vocabulary - 10) for _ in range(length)] for length in lengths]


def _first(engine: Engine, sizes: Sizes) -> Row:
    """Seconds from a prompt of 1k to its first token, on an idle engine."""
    from ember.wire import Generate

    seconds = []
    for i in range(REPEATS + 1):
        (prompt,) = _prompts(engine, [sizes.context], seed=i)
        started = time.perf_counter()
        engine.add(Generate(i, prompt, _greedy(2)))
        while not engine.step():
            pass
        seconds.append(time.perf_counter() - started)
        while engine.has_work:
            engine.step()
    return {"part": "first", "prompt": sizes.context, "seconds": statistics.median(seconds[1:])}


def _decode(engine: Engine, batch: int, sizes: Sizes, ceilings: Ceilings) -> Row:
    """Decode rate of a full batch, all prompts through, and what the device and the memory would allow."""
    from ember.engine.description.cache_groups import bytes_seen, cache_groups
    from ember.wire import Generate

    for i, prompt in enumerate(_prompts(engine, [sizes.context] * batch, seed=batch)):
        engine.add(Generate(i, prompt, _greedy(sizes.output)))
    waiting = set(range(batch))
    steps: list[float] = []
    with _graph_launches(engine) as launches:
        while engine.has_work:
            started = time.perf_counter()
            outputs = engine.step()
            if not waiting and len(outputs) == batch:
                steps.append(time.perf_counter() - started)
            waiting -= {output.request_id for output in outputs}
    step = statistics.median(steps)
    model: Any = engine.runner.model
    context = sizes.context + sizes.output / 2
    seen = bytes_seen(cache_groups(model.config, model.dtype.itemsize), context)
    step_bytes = model.weight_bytes - _unread_bytes(model) + batch * seen
    row = {"part": "decode", "batch": batch, "context": sizes.context, "tokens_per_second": batch / step}
    row |= {"bytes_per_second": step_bytes / step, "limit": ceilings.bytes_per_second / step_bytes * batch}
    device = [launch.seconds() for launch in launches if launch.size >= batch]
    if device:
        busy = statistics.median(device)
        row |= {"step_seconds": step, "device_seconds": busy, "device_waits": max(0.0, 1 - busy / step)}
    return row


def _mixed(engine: Engine, sizes: Sizes, from_graph: bool) -> Row:
    """The host's time to launch a step of decodes and a prompt of as many tokens, until the last launch is done."""
    from ember.engine.core.gpu.device_runner import DeviceRunner
    from ember.wire import Generate

    runner: Any = engine.runner
    seconds: list[float] = []
    launch = runner.launch

    def timed(step: Any) -> Any:
        started = time.perf_counter()
        launched = launch(step)
        seconds.append(time.perf_counter() - started)
        return launched

    count = sizes.mixed
    prompts = _prompts(engine, [count] * (count + sizes.mixed_steps), seed=1)
    for i, prompt in enumerate(prompts[:count]):
        engine.add(Generate(i, prompt, _greedy(sizes.mixed_steps + 8)))
    while engine.scheduler.waiting:
        engine.step()
    runner.launch = timed
    if not from_graph and isinstance(runner, DeviceRunner):
        runner.mixed_graphs.size_for = lambda step: None  # type: ignore[method-assign]
    try:
        for i, prompt in enumerate(prompts[count:], count):
            engine.add(Generate(i, prompt, _greedy(1)))
            engine.step()
    finally:
        del runner.launch
        vars(getattr(runner, "mixed_graphs", runner)).pop("size_for", None)
    while engine.has_work:
        engine.step()
    step = statistics.median(seconds)
    a_layer = 1e6 * step / engine.runner.model.config.num_layers
    return {
        "part": "mixed",
        "decodes": count,
        "from_graph": from_graph,
        "seconds": step,
        "microseconds_a_layer": a_layer,
    }


def _unread_bytes(model: Decoder) -> int:
    """Bytes of the weights that a step does not read: a token embedding of its own, of which it looks up few rows."""
    config = model.config
    if config.tie_word_embeddings:
        return 0
    return config.vocab_size * (config.embed_dim or config.hidden_size) * model.dtype.itemsize


@dataclass(frozen=True)
class _Launch:
    """A recorded step as the device ran it, between two events of its stream."""

    size: int
    start: torch.cuda.Event
    end: torch.cuda.Event

    def seconds(self) -> float:
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


@contextmanager
def _graph_launches(engine: Engine) -> Iterator[list[_Launch]]:
    """The recorded steps that are launched inside the block; none where the engine records none."""
    import torch

    from ember.engine.core.gpu.device_runner import DeviceRunner

    launches: list[_Launch] = []
    if not isinstance(engine.runner, DeviceRunner):
        yield launches
        return
    graphs = engine.runner.decode_graphs
    launch = graphs.launch

    def timed(size: int) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch(size)
        end.record()
        launches.append(_Launch(size, start, end))

    graphs.launch = timed  # type: ignore[method-assign]
    try:
        yield launches
    finally:
        del graphs.launch


def _prefill(engine: Engine, length: int, sizes: Sizes, ceilings: Ceilings) -> Row:
    """Prompt tokens per second with the engine full of prompts of one length."""
    from ember.wire import Generate

    budget = engine.limits.max_num_batched_tokens
    count = min(max(1, 2 * budget // length), sizes.most_prompts)
    rates = []
    for repeat in range(REPEATS + 1):
        for i, prompt in enumerate(_prompts(engine, [length] * count, seed=repeat)):
            engine.add(Generate(i, prompt, _greedy(1)))
        started = time.perf_counter()
        while engine.has_work:
            engine.step()
        rates.append(count * length / (time.perf_counter() - started))
    rate = statistics.median(rates[1:])
    model: Any = engine.runner.model
    config = model.config
    attention = 2 * 2 * config.num_layers * config.num_heads * config.head_dim * length / 2  # causal: half of it
    tables = 1 if config.tie_word_embeddings else 2  # the embedding, and the head, which sees few tokens of a step
    flops = 2 * (model.num_parameters - tables * config.vocab_size * config.hidden_size) + attention  # a token
    share = rate * flops / ceilings.flops_per_second
    return {"part": "prefill", "prompt": length, "tokens_per_second": rate, "share_of_matmul_rate": share}


def _profile(engine: Engine, batch: int, sizes: Sizes, on_gpu: bool) -> Iterator[Row]:
    """Microseconds of a step by kernel, the longest first, over the prompts' steps and over decode steps."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from ember.wire import Generate

    prompts = _prompts(engine, [sizes.context] * batch, seed=batch)
    waiting = {i for i, _ in enumerate(prompts)}
    for i, prompt in enumerate(prompts):
        engine.add(Generate(i, prompt, _greedy(sizes.output)))

    def prefill() -> bool:
        waiting.difference_update(output.request_id for output in engine.step())
        return bool(waiting)

    def decode() -> bool:
        engine.step()
        return True

    for name, step, most in (("prefill", prefill, 1 << 20), ("decode", decode, PROFILED_STEPS)):
        count = 0
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            while count < most and engine.has_work:
                count += 1
                if not step():
                    break
            if on_gpu:
                torch.cuda.synchronize()
        events = [(e.self_device_time_total if on_gpu else e.self_cpu_time_total, e) for e in profiler.key_averages()]
        total = sum(microseconds for microseconds, _ in events) or 1.0
        for microseconds, event in sorted(events, key=lambda pair: -pair[0])[:PROFILED_KERNELS]:
            row = {
                "part": "profile",
                "step": name,
                "batch": batch,
                "kernel": event.key[:80],
                "share": microseconds / total,
            }
            yield row | {"microseconds": microseconds / count, "launches": event.count / count}
    while engine.has_work:
        engine.step()


def _requests(vocabulary: int, sizes: Sizes) -> tuple[list[list[int]], list[int]]:
    """nano-vllm's workload: prompts and output lengths."""
    draw = random.Random(0)
    prompts = [
        [draw.randrange(10, min(10_000, vocabulary)) for _ in range(draw.randint(sizes.shortest, sizes.longest))]
        for _ in range(sizes.requests)
    ]
    return prompts, [draw.randint(sizes.shortest, sizes.longest) for _ in range(sizes.requests)]


def _workload(engine: Engine, sizes: Sizes) -> Row:
    from ember.wire import Generate, SamplingParams

    prompts, lengths = _requests(engine.runner.model.config.vocab_size, sizes)
    started = time.perf_counter()
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        engine.add(Generate(i, prompt, SamplingParams(max_tokens=length, temperature=0.6, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - started
    return {"part": "workload", "seconds": seconds, "tokens_per_second": sum(lengths) / seconds}


def _peer(directory: Path, sizes: Sizes, device: str) -> Row:
    """The workload in transformers. Its requests have one output length in common: the mean of ours."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa")
    model = model.eval().to(device)
    prompts, lengths = _requests(model.config.vocab_size, sizes)
    length = round(statistics.mean(lengths))
    config = GenerationConfig(
        max_new_tokens=length, do_sample=True, temperature=0.6, top_k=0, eos_token_id=-1, pad_token_id=0
    )
    short = GenerationConfig(**{**config.to_diff_dict(), "max_new_tokens": 4})
    model.generate_batch(inputs=prompts[:16], generation_config=short, progress_bar=False)  # its graphs, untimed
    started = time.perf_counter()
    outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    seconds = time.perf_counter() - started
    produced = sum(len(output.generated_tokens) for output in outputs.values())
    return {"part": "peer", "seconds": seconds, "tokens_per_second": produced / seconds}


if __name__ == "__main__":
    main()
