"""The steps that are recorded as CUDA graphs: their kinds, and the sizes of each. Data, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of recorded steps, and the sizes in which they are recorded.

    Padding up to `small` is nearly free, since such a step takes as long as it takes to read the weights. Above it a
    step runs only in a graph that is at most `stretch` times as large.
    """

    name: str
    unit: str
    sizes: tuple[int, ...]
    small: int
    stretch: float

    def sizes_up_to(self, largest: int) -> list[int]:
        """The sizes for steps of at most `largest`, which is one of them unless it is above them all."""
        sizes = [size for size in self.sizes if size < largest]
        return [*sizes, largest] if 0 < largest <= self.sizes[-1] else sizes


DECODE = Kind(
    "decode steps",
    "rows",
    sizes=(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    small=64,
    stretch=2.0,
)
# Steps with prompt chunks. Larger ones are not recorded: for more than 1,024 tokens the device takes longer, even with
# the smallest models, than the host takes to launch the kernels.
MIXED = Kind(
    "steps with prompt chunks",
    "tokens",
    sizes=(32, 64, 128, 192, 256, 384, 512, 768, 1024),
    small=128,
    stretch=1.5,
)
# The most prompt chunks in a recorded step. Attention launches a program per head for each that is missing, so a step
# of more chunks, as after a burst of requests, is launched kernel by kernel.
MAX_CHUNKS = 16
