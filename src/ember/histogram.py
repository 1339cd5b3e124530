"""A histogram, cheap enough for every token: an observation takes one binary search and three additions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # bounds for the tokens of one step


class Histogram:
    """`counts[i]`: observations in (bounds[i - 1], bounds[i]]. The last count: observations above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[int]:
        """The number of observations at or below each bound, then of all of them, as in Prometheus' format."""
        total = 0
        totals = []
        for count in self.counts:
            total += count
            totals.append(total)
        return totals


def up_to(largest: int) -> list[float]:
    """Bounds for counts of tokens: 1, 2, 5, 10, 20, 50 ... below `largest`, and `largest` itself."""
    bounds: list[float] = []
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= largest:
                return [*bounds, largest]
            bounds.append(digit * power)
        power *= 10
