"""What the step asks of the device beside kernels: copies that do not wait, marks in its stream, recorded graphs.

On a CPU, where the tests run the kernels in Triton's interpreter, all of it happens at once and a graph is its body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Accelerator:
    """One device and the stream that the engine uses: the current one of its thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._pool: Any = None  # a handle
        self._side: torch.cuda.Stream | None = None

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies from and to without the host's help."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.is_cuda)

    def upload(self, values: np.ndarray | list[int]) -> Tensor:
        """A copy on the device, in the stream's order; the host does not wait."""
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_cuda else tensor.clone()

    def download(self, tensor: Tensor) -> Tensor:
        """A copy on the host, to be read after a mark that follows it."""
        if not self.is_cuda:
            return tensor.clone()
        return self.pinned(*tensor.shape, dtype=tensor.dtype).copy_(tensor, non_blocking=True)

    def mark(self) -> Callable[[], None]:
        """What it returns waits until all that was launched before this call is done."""
        if not self.is_cuda:
            return _nothing
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def rehearse(self, body: Callable[[], None]) -> None:
        """Run what is to be recorded once where it will be recorded: libraries and kernels load what they need."""
        if not self.is_cuda:
            body()
            return
        with self._aside():
            body()

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record the launches of `body` without running them. What it returns launches them all at once.

        All graphs share one pool of memory, so none may rely on what another left in memory of its own. Other threads
        may go on using the device meanwhile.
        """
        if not self.is_cuda:
            return body
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with self._aside():
            # Not `torch.cuda.graph`, which waits for the device and empties the allocator's cache.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                body()
            finally:
                graph.capture_end()
        return graph.replay

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Work on a stream beside the current one: after what that was given before, before what it is given next."""
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
    """The mark of a device that is always done."""
