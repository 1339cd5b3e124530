"""Counts the launches of the GPU runner's steps and the host's CPU time for them, without a GPU.

    python benchmarks/host_time.py [--layers 32] [--steps 40] [--mixer attention|latent|delta]

The C function that launches a kernel is replaced by nothing, after everything in Python up to it, and so are the launch
of a graph and torch's matrix products. The other operators of torch run on a CPU over few bytes. What C code and the
driver need for launches and products (some microseconds each) is therefore missing, and the rest is the engine's own:
scheduling, packing, arguments and outputs of kernels, the tokens' handling. Times are CPU times of the thread, the
median of the steps. Everything is measured twice: with launches by Triton's own launcher, and by ours
(`ember_kernels.launch`). `--mixer`: latent attention, as DeepSeek's models have
it, or the gated delta rule, in all layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

import torch
import torch.nn.functional as F
from triton.runtime.jit import JITFunction

from ember.engine.core.chores import Chores
from ember.engine.core.engine import Engine
from ember.engine.core.grammars.workers import GrammarWorkers
from ember.engine.core.limits import EngineLimits
from ember.engine.description.config import DecoderConfig, LatentConfig, Mixer
from ember.engine.description.mixers import DeltaConfig, DeltaNames
from ember.engine.description.rope_config import RopeConfig
from ember.engine.description.weight_names import WeightNames
from ember.wire import Generate, SamplingParams
from ember_kernels import compile as kernels
from ember_kernels.launch import Direct
from tests.support.empty_models import empty_launcher, empty_runner, no_products

NAMES = WeightNames(
    layer="layers.{}.",
    embed_tokens="embed_tokens",
    final_norm="norm",
    lm_head="lm_head",
    attention_norm="attention_norm",
    mlp_norm="mlp_norm",
    query="q",
    key="k",
    value="v",
    output="o",
    gate="gate",
    up="up",
    down="down",
)
LATENT: dict[str, Any] = {
    "names": replace(
        NAMES,
        query_down="query_down",
        query_down_norm="query_norm",
        query_up="query_up",
        kv_down="kv_down",
        kv_down_norm="kv_norm",
        kv_up="kv_up",
    ),
    "latent": LatentConfig(kv_rank=32, rotary_dim=16, plain_dim=16, value_dim=16, query_rank=32),
    "head_dim": 48,  # what the cache has of a token
    "attention_scale": 0.2,
}
DELTA: dict[str, Any] = {
    "names": replace(
        NAMES,
        delta=DeltaNames(
            conv="conv", dt_bias="dt", decay="decay", norm="norm", output="output", qkv_gate="qkvz", beta_alpha="ba"
        ),
    ),
    "delta": DeltaConfig(key_heads=1, value_heads=8, key_dim=16, value_dim=16, kernel=4),
}
FIELDS: dict[Mixer, dict[str, Any]] = {"attention": {}, "latent": LATENT, "delta": DELTA}
CONTEXT = 64  # tokens of each prompt


class Counter:
    launches = 0


@contextmanager
def empty_launches(counter: Counter) -> Iterator[None]:
    """Let a launch do everything except calling the driver."""

    def launch(*arguments: Any) -> None:
        counter.launches += 1

    def pretend(self: Any, key: Any, signature: Any, device: int, *rest: Any) -> Any:
        kernel = SimpleNamespace(run=run, launch_metadata=lambda *a: None, function=0, packed_metadata=())
        self.device_caches[device][0][key] = kernel
        return kernel

    run = empty_launcher(launch)
    compiling = JITFunction._do_compile
    capability = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    JITFunction._do_compile = pretend
    try:
        with kernels._active(kernels._Driver(90)):
            yield
    finally:
        JITFunction._do_compile = compiling
        torch.cuda.get_device_capability = capability


@contextmanager
def no_time_for_products() -> Iterator[None]:
    """Let torch's products return memory that is there already, of a product with the same weight and rows."""
    with no_products():
        outputs: dict[tuple[int, int], torch.Tensor] = {}
        allocate = F.linear

        def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            key = len(x), id(weight)
            output = outputs.get(key)
            if output is None:
                output = outputs[key] = allocate(x, weight, bias)
            return output

        F.linear = product  # type: ignore[assignment]
        yield


@contextmanager
def launcher(is_ours: bool) -> Iterator[None]:
    """Launch kernels by our launcher or by Triton's."""
    ours = Direct.__getitem__
    if not is_ours:
        Direct.__getitem__ = lambda self, grid: self.kernel[grid]  # type: ignore[method-assign]
    try:
        yield
    finally:
        Direct.__getitem__ = ours  # type: ignore[method-assign]


def make_engine(num_layers: int, max_num_seqs: int, mixer: Mixer) -> Engine:
    config = DecoderConfig(
        architecture="LlamaForCausalLM",
        vocab_size=448,
        hidden_size=32,
        intermediate_size=64,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        names=NAMES,
        rope=RopeConfig(rotary_dim=16, theta=10000.0),
        eos_token_ids=[2],
    )
    config = replace(config, layer_mixers=(mixer,) * num_layers, **FIELDS[mixer])
    limits = EngineLimits(
        block_size=16, num_blocks=8192, max_num_seqs=max_num_seqs, max_num_batched_tokens=8192, max_model_len=8192
    )
    scheduler, runner = empty_runner(config, torch.bfloat16, limits)
    downloads: Any = runner.accelerator
    downloads.download = lambda tensor: torch.full(tensor.shape, 5, dtype=tensor.dtype)
    grammars = GrammarWorkers(Path(), config.vocab_size, config.eos_token_ids)
    engine = Engine(runner, scheduler, grammars, limits, 0, Chores([]))
    engine.is_cold = False
    return engine


def add(engine: Engine, number: int, max_tokens: int = 4000) -> None:
    prompt = [3 + number % 400, 3 + number // 400, *([7] * (CONTEXT - 2))]
    engine.add(Generate(number, prompt, sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True)))


def measure(step: Callable[[], Any], counter: Counter, steps: int) -> tuple[int, float]:
    """The launches of a step, and its median microseconds of CPU time, after some steps."""
    for _ in range(4):
        step()
    times, counted = [], counter.launches
    for _ in range(steps):
        before = time.thread_time_ns()
        step()
        times.append((time.thread_time_ns() - before) / 1000)
    return (counter.launches - counted) // steps, statistics.median(times)


def rows(num_layers: int, steps: int, counter: Counter, mixer: Mixer) -> Iterator[tuple[str, int, float]]:
    """The name, the launches and the microseconds of every kind of step."""
    with empty_launches(counter), no_time_for_products(), torch.inference_mode():
        engine = filled(num_layers, 64, mixer)
        yield "64 decodes, kernel by kernel", *measure(engine.step, counter, steps)
        numbers = iter(range(1000, 10_000))

        def mixed() -> None:
            add(engine, next(numbers), max_tokens=1)
            engine.step()

        yield "64 decodes and a prompt, kernel by kernel", *measure(mixed, counter, steps)
        engine = filled(num_layers, 64, mixer)
        record(engine, counter)
        yield "64 decodes and a prompt, a graph", *measure(mixed, counter, steps)
        for num_rows in (1, 64, 256):
            engine = filled(num_layers, num_rows, mixer)
            record(engine, counter)
            yield f"{num_rows} decodes, a graph", *measure(engine.step, counter, steps)


def filled(num_layers: int, num_rows: int, mixer: Mixer) -> Engine:
    """An engine that decodes so many sequences."""
    engine = make_engine(num_layers, num_rows + 8, mixer)
    for number in range(num_rows):
        add(engine, number)
    return engine


def record(engine: Engine, counter: Counter) -> None:
    """Let the engine record its graphs. To launch one is counted, and nothing else."""

    def replay() -> None:
        counter.launches += 1

    runner: Any = engine.runner
    runner.accelerator.record = lambda body: replay
    while runner.record_next(is_idle=True):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--mixer", choices=FIELDS, default="attention")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counter = Counter()
    for is_ours in (False, True):
        name = "our launcher" if is_ours else "Triton's launcher"
        print(f"{name:<44} {'launches':>8} {'us a step':>10} {'us a layer':>10}")
        with launcher(is_ours):
            for name, launches, microseconds in rows(options.layers, options.steps, counter, options.mixer):
                per_layer = microseconds / options.layers
                print(f"{name:<44} {launches:>8} {microseconds:>10.0f} {per_layer:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
