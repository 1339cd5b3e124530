"""Linear layers: the interface that every layout of a weight has, and the plain one, also packed for oneDNN on a CPU.

The layouts of quantised weights are subclasses, one file each in this room (`restored.RestoredLinear` is their base).
oneDNN reorders a plain weight at every call. A weight that is packed once is read at memory speed for small batches and
is at least as fast for large ones, in bfloat16 and float32. The operators are private to torch, so they are tested once
on a small case. If they are missing or wrong, layers stay plain.
"""

from __future__ import annotations

import mmap
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_HUGE_PAGE = 2 << 20
_PIECE = 16 << 20  # bytes copied at a time, during which a running request waits some hundredths of a second at most
_FUSED = {"gelu": "none", "gelu_tanh": "tanh", "relu": ""}  # activations in packed layers -> oneDNN's algorithm
_ROWS_HINT = 32  # rows of input for which the packed layout is chosen; it works for any number


class Pages(Protocol):
    """Memory that is mapped from a file."""

    def hold(self, address: int) -> bool:
        """Whether the address is in that memory."""

    def let_go(self, address: int, nbytes: int) -> None:
        """Allow the kernel to drop these bytes, which were copied."""


class Linear:
    """A linear layer, x @ weight.T + bias. `rows`: the weight [out, in], in one or more consecutive tensors.

    `packed`: the only tensor has oneDNN's own layout, which only `__call__` can use.
    """

    __slots__ = ("bias", "packed", "rows")

    def __init__(self, *rows: Tensor, bias: Tensor | None = None, packed: bool = False) -> None:
        self.rows = rows
        self.bias = bias  # [out]
        self.packed = packed

    @property
    def layout(self) -> str:
        """The name by which operator sets declare that they multiply it (`description.layouts`)."""
        return type(self).__name__

    @property
    def out_features(self) -> int:
        return sum(map(len, self.rows))

    @property
    def in_features(self) -> int:
        return self.rows[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight as it is multiplied, of inputs and of outputs."""
        return self.rows[0].dtype

    @property
    def device(self) -> torch.device:
        return next(self.tensors()).device

    @property
    def weight(self) -> Tensor:
        """The weight as one tensor [out, in] of `dtype`: a copy if it is not stored so."""
        return self.rows[0] if len(self.rows) == 1 else torch.cat(self.rows)

    def tensors(self) -> Iterator[Tensor]:
        """Every stored tensor, with the bias."""
        yield from self.rows
        if self.bias is not None:
            yield self.bias

    @property
    def nbytes(self) -> int:
        """The stored bytes, with the bias."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def num_parameters(self) -> int:
        """The number of weights, however they are stored, and of the bias's entries."""
        return self.out_features * self.in_features + (0 if self.bias is None else self.bias.numel())

    @property
    def scratch_elements(self) -> int:
        """The number of elements of the buffer that `__call__` restores the weight in (`scratch.scratch`)."""
        return 0

    def look_up(self, ids: Tensor) -> Tensor:
        """Rows of the weight, as of a table of embeddings: [T] -> [T, in]."""
        return F.embedding(ids, self.weight)

    def split(self, count: int) -> list[Linear]:
        """`count` linear layers of equal size, which follow each other in this one. Nothing is copied."""
        size = self.out_features // count
        biases = [None] * count if self.bias is None else self.bias.view(count, size).unbind()
        parts = ([self.rows[i][first:last] for i, first, last in part] for part in cut(map(len, self.rows), size))
        return [Linear(*rows, bias=bias) for rows, bias in zip(parts, biases, strict=True)]

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.rows[0], self.bias, "none", [], "")
        if len(self.rows) == 1:
            return F.linear(x, self.rows[0], self.bias)
        if self.bias is None:
            return torch.cat([F.linear(x, rows) for rows in self.rows], dim=-1)
        biases = self.bias.split([len(rows) for rows in self.rows])
        return torch.cat([F.linear(x, rows, bias) for rows, bias in zip(self.rows, biases, strict=True)], dim=-1)

    def activated(self, x: Tensor, activation: str) -> Tensor | None:
        """The activation of the layer's output, in one operation; None: the layer cannot."""
        algorithm = _FUSED.get(activation)
        if not self.packed or algorithm is None or x.dtype != torch.float32:  # 16 bits would be rounded elsewhere
            return None
        name = activation.partition("_")[0]
        return torch.ops.mkldnn._linear_pointwise(x, self.rows[0], self.bias, name, [], algorithm)

    def settle(self, packs: bool, pages: Pages | None) -> Iterator[None]:
        """Pack the weight if it `packs` and `can_pack` allows it; else copy it to memory of its own if it is mapped
        (`pages`). A generator: it yields between chunks so that requests can run."""
        if packs and not self.packed:
            self.rows = (torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS_HINT),)
            self.packed = True
        elif pages is not None and not packs and any(pages.hold(rows.data_ptr()) for rows in self.rows):
            own = yield from in_own_memory(pages, *self.rows)
            self.rows = (own,)


def cut(lengths: Iterable[int], size: int) -> list[list[tuple[int, int, int]]]:
    """Cut consecutive pieces of these lengths in parts of `size` rows. A part is a list of spans: the number of the
    piece, the first row in it, and the one after the last."""
    parts: list[list[tuple[int, int, int]]] = []
    left = 0
    for piece, length in enumerate(lengths):
        first = 0
        while first < length:
            if not left:
                parts.append([])
                left = size
            taken = min(left, length - first)
            parts[-1].append((piece, first, first + taken))
            first, left = first + taken, left - taken
    return parts


def in_own_memory(pages: Pages, *rows: Tensor) -> Generator[None, None, Tensor]:
    """Copy the rows to one tensor, in huge pages if the kernel has them: with small pages, reading gigabytes of weights
    spends much time in address translation. A generator: it yields between chunks.

    Copied bytes are dropped from their mapping (`pages`), so that they are not in memory twice.
    """
    first = rows[0]
    own = fresh_memory(sum(part.nbytes for part in rows), first.dtype).view(-1, *first.shape[1:])
    at = copied = 0
    for part in rows:
        for piece in part.split(max(1, _PIECE * len(part) // max(part.nbytes, 1))):
            if copied >= _PIECE:
                copied = 0
                yield
            own[at : at + len(piece)] = piece
            pages.let_go(piece.data_ptr(), piece.nbytes)
            at += len(piece)
            copied += piece.nbytes
    return own


def fresh_memory(nbytes: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised vector of `size` bytes, in huge pages if it fills some and the kernel has them."""
    if nbytes < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes // dtype.itemsize, dtype=dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # the kernel has no huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


@cache
def can_pack(device_type: str, dtype: torch.dtype) -> bool:
    """Whether packed linears work here, tested on a small case for one row and for many."""
    if device_type != "cpu" or dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = (torch.arange(64 * 96, dtype=torch.float32).reshape(64, 96) % 7 - 3).to(dtype)
        packed = Linear(torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT), packed=True)
        for rows in (1, 65):
            x = (torch.arange(rows * 96, dtype=torch.float32).reshape(rows, 96) % 5 - 2).to(dtype)
            plain = F.linear(x, weight)
            if not torch.equal(packed(x), plain):  # sums of small integers are exact in any order
                return False
            made = packed.activated(x, "gelu")
            if made is not None and not torch.allclose(made, F.gelu(plain), atol=1e-5):
                return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
