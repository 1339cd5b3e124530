"""The device beside its kernels: asynchronous copies, events in its stream, and CUDA graphs.

On a CPU, where the tests run the kernels in Triton's interpreter, everything is synchronous and a graph is its body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ember.engine.core.threads import usable_cores

FEW_CORES = 2  # up to here a wait for the device sleeps; with more it spins, which wakes some microseconds earlier


class Accelerator:
    """One device and the stream that the engine uses: the current one of its thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._waits_asleep = usable_cores() <= FEW_CORES
        self._pool: Any = None  # handle of the graphs' memory pool
        self._side: torch.cuda.Stream | None = None

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Pinned host memory, for asynchronous copies."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.is_cuda)

    def upload(self, values: np.ndarray | list[int]) -> Tensor:
        """Copy to the device in the stream's order, without waiting."""
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_cuda else tensor.clone()

    def download(self, tensor: Tensor) -> Tensor:
        """Copy to the host. The copy may be read after a later event (`mark`)."""
        if not self.is_cuda:
            return tensor.clone()
        return self.pinned(*tensor.shape, dtype=tensor.dtype).copy_(tensor, non_blocking=True)

    def mark(self) -> Callable[[], None]:
        """Record an event. The returned function waits until everything launched before it is done."""
        if not self.is_cuda:
            return _nothing
        event = torch.cuda.Event(blocking=self._waits_asleep)
        event.record()
        return event.synchronize

    def rehearse(self, body: Callable[[], None]) -> None:
        """Run `body` once on the stream in which it will be recorded, so that libraries and kernels are loaded."""
        if not self.is_cuda:
            body()
            return
        with self._aside():
            body()

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record the launches of `body` as a CUDA graph without running them. The returned function launches the graph.

        All graphs share one memory pool, so no graph may rely on another's intermediate results. Other threads may use
        the device during the recording.
        """
        if not self.is_cuda:
            return body
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with self._aside():
            # `torch.cuda.graph` is not used: it synchronises the device and empties the allocator's cache.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                body()
            finally:
                graph.capture_end()
        return graph.replay

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Use a side stream: after the current stream's earlier work, and before its later work."""
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        main = torch.cuda.current_stream(self.device)
        self._side.wait_stream(main)
        try:
            with torch.cuda.stream(self._side):
                yield
        finally:
            main.wait_stream(self._side)


def _nothing() -> None:
    """An event of a synchronous device, which has always happened."""
