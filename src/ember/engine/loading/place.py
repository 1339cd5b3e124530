"""Parameters as tensors, and the staging memory through which bytes reach them when they cannot be read in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ember.engine.loading.mapped import Mapped
from ember.engine.loading.plan import DTYPES, LoadPlan
from ember.engine.loading.reader import CHUNK_BYTES, Chunk, read_exactly


def wrap(plan: LoadPlan, mapped: Mapped, dtype: torch.dtype) -> dict[str, tuple[Tensor, ...]]:
    """The mapped tensors, which keep their mappings alive. A fused matrix is the tuple of its parts, in row order."""
    weights: dict[str, tuple[Tensor, ...]] = {}
    for parameter in plan.parameters:
        places = mapped.places.pop(parameter.name)
        shapes = [parameter.shape] if len(places) == 1 else [part.shape for part in parameter.parts]
        weights[parameter.name] = tuple(
            torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)
            for (memory, offset), shape in zip(places, shapes, strict=True)
        )
    return weights


def parameter_tensors(plan: LoadPlan, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[Tensor, ...]]:
    """Uninitialised parameters, one allocation each, so that each can be replaced and freed on its own."""
    return {
        parameter.name: (torch.empty(parameter.shape, dtype=dtype, device=device),) for parameter in plan.parameters
    }


class Staging:
    """One thread's sink: two buffers in turn, so that a copy to the device overlaps the next read."""

    def __init__(self, weights: dict[str, tuple[Tensor, ...]], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._flat = {name: weight.view(-1) for name, (weight,) in weights.items()}
        self._buffers = [torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=cuda) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._copied = [torch.cuda.Event() for _ in range(2)] if cuda else []
        self._turn = 0

    @torch.inference_mode()
    def fill(self, chunk: Chunk, descriptor: int) -> int:
        self._turn ^= 1
        if self._copied:
            self._copied[self._turn].synchronize()  # the copy that last used this buffer
        read_exactly(descriptor, memoryview(self._buffers[self._turn].numpy().data)[: chunk.nbytes], chunk)
        source = self._buffers[self._turn][: chunk.nbytes].view(getattr(torch, DTYPES[chunk.copy.entry.dtype]))
        target = self._flat[chunk.copy.parameter][chunk.element : chunk.element + chunk.count]
        if self._stream is None:
            target.copy_(source)
            return chunk.nbytes
        with torch.cuda.stream(self._stream):
            target.copy_(source.to(target.device, non_blocking=True))  # converted on the device where dtypes differ
            self._copied[self._turn].record()
        return chunk.nbytes

    def close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
