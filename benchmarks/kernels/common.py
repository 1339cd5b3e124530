"""Timing on the device, the ceilings of the device, and the table.

Every kernel benchmark has `run(ceilings) -> Iterator[Row]`; `python -m benchmarks.kernels` runs them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

L2_FLUSH_BYTES = 256 << 20  # more than the level-2 cache of any GPU


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches, measured in the same run, in a large copy (read and write counted) and matmul."""

    device: str
    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Row:
    """One measurement. `bytes` and `flops` are what the operation must move and compute, not what the kernel does."""

    kernel: str
    case: str
    seconds: float
    bytes: float = 0.0
    flops: float = 0.0
    peer: str = ""
    peer_seconds: float = 0.0

    def bound(self, ceilings: Ceilings) -> float:
        """The least seconds that the ceilings allow."""
        return max(self.bytes / ceilings.bytes_per_second, self.flops / ceilings.flops_per_second)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that kernels see."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    layers: int

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


SHAPES = (
    Shape("qwen3-0.6b", 1024, 3072, 16, 8, 128, 151936, 28),
    Shape("llama-3.1-8b", 4096, 14336, 32, 8, 128, 128256, 32),
    Shape("qwen3-32b", 5120, 25600, 64, 8, 128, 151936, 64),
)


def require_gpu() -> None:
    """End the program with one line where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("kernel benchmarks need a CUDA GPU and found none; tests/kernels checks results without one")


def measure(function: Callable[[], Any], repeats: int = 30, warmup: int = 5) -> float:
    """Median seconds of one call on the device, each after the level-2 cache was overwritten.

    A call that the host needs longer to launch than the device to run would show the host's time; the flush before it
    (about 0.1 ms) hides the launch of one or two kernels. Use `measure_graph` for several.
    """
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(warmup):
        function()
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    for start, end in zip(starts, ends, strict=True):
        flush.zero_()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)) / 1000


def measure_graph(function: Callable[[], Any], repeats: int = 30) -> float:
    """As `measure`, of the function captured in a CUDA graph, as a decode step runs it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return measure(graph.replay, repeats)


def measure_peer(function: Callable[[], Any], timer: Callable[[Callable[[], Any]], float] = measure) -> float:
    """The time of a peer that a row is compared with, as `measure` gives it. A peer that does not run on this device
    gives 0.0, and a printed line says why."""
    try:
        return timer(function)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        print(f"a peer does not run here: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True)
        return 0.0


def measure_ceilings() -> Ceilings:
    """Copy bandwidth of 1 GiB and the rate of an 8192 x 8192 x 8192 bfloat16 matmul."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    copy = measure(lambda: source.clone())
    size = 8192
    a = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    out = torch.empty_like(a)
    matmul = measure(lambda: torch.mm(a, b, out=out))
    return Ceilings(torch.cuda.get_device_name(), 2 * (1 << 30) / copy, 2 * size**3 / matmul)


def head(ceilings: Ceilings) -> str:
    """The ceilings, and the names of the columns."""
    return (
        f"{ceilings.device}: copy {ceilings.bytes_per_second / 1e9:.0f} GB/s, "
        f"bfloat16 matmul {ceilings.flops_per_second / 1e12:.0f} TFLOP/s (measured in this run)\n"
        f"{'kernel':<26} {'case':<46} {'us':>9} {'GB/s':>7} {'TFLOP/s':>7} {'% bound':>7} {'peer':<16} {'times':>6}"
    )


def line(row: Row, ceilings: Ceilings) -> str:
    """A row as text: time, rates, percent of the bound by the ceilings, and how many times as fast as the peer."""
    rate = f"{row.bytes / row.seconds / 1e9:.0f}" if row.bytes else ""
    flops = f"{row.flops / row.seconds / 1e12:.1f}" if row.flops else ""
    times = f"{row.peer_seconds / row.seconds:.2f}" if row.peer_seconds else ""
    return (
        f"{row.kernel:<26} {row.case:<46} {row.seconds * 1e6:>9.1f} {rate:>7} {flops:>7} "
        f"{100 * row.bound(ceilings) / row.seconds:>7.0f} {row.peer:<16} {times:>6}"
    )


def main(run: Callable[[Ceilings], Iterable[Row]]) -> None:
    """`python -m benchmarks.kernels.NAME`: one benchmark alone."""
    require_gpu()
    ceilings = measure_ceilings()
    print(head(ceilings))
    for row in run(ceilings):
        print(line(row, ceilings), flush=True)
