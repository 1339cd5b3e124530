"""Parameters as tensors, and the staging memory for parameters that are not mapped."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.engine.layers.linear import Linear
from ember.engine.loading.mapped import Mapped
from ember.engine.loading.plan import DTYPES, LoadPlan, Parameter
from ember.engine.loading.reader import Chunk, read_chunk

_TILE_ROWS = 32  # stored rows that are transposed at a time on a CPU

Tensors = dict[str, tuple[Tensor, ...]]  # by the parameters' names; a matrix may have several, in row order


def assemble(plan: LoadPlan, tensors: Tensors) -> dict[str, Linear | Tensor]:
    """The weights by name, each assembled by the plan's format. `tensors` is emptied."""
    parts: dict[str, dict[str, tuple[Tensor, ...]]] = {spec.name: {} for spec in plan.specs}
    for parameter in plan.parameters:
        parts[parameter.spec][parameter.part] = tensors.pop(parameter.name)
    dtype = getattr(torch, plan.dtype)
    return {spec.name: plan.weight_format.assemble(spec, parts.pop(spec.name), dtype) for spec in plan.specs}


def mapped_tensors(plan: LoadPlan, mapped: Mapped) -> Tensors:
    """The mapped parameters, which keep their mappings alive."""
    tensors: Tensors = {}
    for parameter in plan.parameters:
        places = mapped.places.pop(parameter.name)
        rows = [parameter.rows] if len(places) == 1 else [piece.rows.total for piece in parameter.pieces]
        shapes = [(count, *parameter.shape[1:]) for count in rows]
        tensors[parameter.name] = tuple(
            torch.frombuffer(memory, dtype=_dtype(parameter), count=math.prod(shape), offset=offset).view(shape)
            for (memory, offset), shape in zip(places, shapes, strict=True)
        )
    return tensors


def empty_tensors(plan: LoadPlan, device: torch.device) -> Tensors:
    """Uninitialised parameters, one allocation each, so that each can be replaced and freed by itself.

    They use small pages: filling huge pages takes twice as long on virtual machines, and a boot waits for it.
    """
    return {
        parameter.name: (torch.empty(parameter.shape, dtype=_dtype(parameter), device=device),)
        for parameter in plan.parameters
    }


def _dtype(parameter: Parameter) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, parameter.dtype)
    return dtype


class Arena:
    """The memory of all buffers of a load as one allocation, since the driver pins memory in turn for all threads. It
    is pinned for a GPU. Each thread gets two buffers."""

    def __init__(self, num_threads: int, chunk_bytes: int, device: torch.device) -> None:
        memory = torch.empty(2 * num_threads * chunk_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._free = list(memory.split(chunk_bytes))

    def buffers(self) -> list[Tensor]:
        return [self._free.pop(), self._free.pop()]  # list.pop is atomic


def release_pinned() -> None:
    """Return pinned memory that no tensor uses to the system. torch keeps it otherwise, for the process' life."""
    release = getattr(torch._C, "_host_emptyCache", None)  # in torch since 2.6
    if release is not None:
        release()


class Staging:
    """The sink of one thread. It alternates between two buffers, so that a copy to the device overlaps the next
    read."""

    def __init__(self, tensors: Mapping[str, tuple[Tensor, ...]], device: torch.device, arena: Arena) -> None:
        self._cuda = device.type == "cuda"
        self._tensors = {name: tensor for name, (tensor,) in tensors.items()}
        self._buffers = arena.buffers()
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._copied = [torch.cuda.Event() for _ in range(2)] if self._cuda else []
        self._turn = 0

    @torch.inference_mode()
    def fill(self, chunk: Chunk, descriptor: int) -> int:
        self._turn ^= 1
        if self._copied:
            self._copied[self._turn].synchronize()  # the copy that last used this buffer
        if chunk.nbytes > len(self._buffers[self._turn]):  # a single row may be larger
            self._buffers[self._turn] = self._buffer(chunk.nbytes)
        buffer = self._buffers[self._turn][: chunk.nbytes]
        read_chunk(descriptor, memoryview(buffer.numpy().data), chunk)
        stored = buffer.view(getattr(torch, DTYPES[chunk.piece.entry.dtype]))
        target = self._tensors[chunk.parameter.name]
        if self._stream is None:
            _put(target, stored, chunk)
            return chunk.nbytes
        with torch.cuda.stream(self._stream):
            _put(
                target, stored.to(target.device, non_blocking=True), chunk
            )  # converted on the device where dtypes differ
            self._copied[self._turn].record()
        return chunk.nbytes

    def close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._cuda)


def _put(target: Tensor, stored: Tensor, chunk: Chunk) -> None:
    """Copy the elements of a chunk, which are consecutive in `stored`, to their position in the parameter `target`."""
    piece, done = chunk.piece, slice(chunk.first, chunk.first + chunk.count)
    if piece.is_flat:
        target.view(-1)[done].copy_(stored)
        return
    filled = target.view(len(target), -1)[piece.row : piece.row + piece.rows.total]
    stored = stored.view(chunk.count, piece.matrix[1])
    if not piece.transposed:
        filled[done].copy_(stored[:, slice(*piece.columns)])
        return
    rows, (count, width) = piece.rows, stored.shape
    # On a CPU a tile of few stored rows stays in the cache while it is transposed, which is three times as fast.
    tile = _TILE_ROWS if target.device.type == "cpu" else count
    for first in range(0, count, tile):
        part = stored[first : first + tile]
        shape, strides = (rows.runs, rows.size, len(part)), (rows.step, 1, width)
        taken = part.as_strided(shape, strides, part.storage_offset() + rows.start)
        start = chunk.first + first
        filled[:, start : start + len(part)].unflatten(0, shape[:2]).copy_(taken)
