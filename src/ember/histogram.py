"""Counts of observations in buckets, cheap enough for every token: one binary search and three additions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # bounds for the tokens of one step


class Histogram:
    """`counts[i]` observations are at most `bounds[i]` and more than the bound before; the last count is beyond all."""

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
        """Observations at or below each bound, and all of them at the end, as Prometheus writes histograms."""
        total = 0
        totals = []
        for count in self.counts:
            total += count
            totals.append(total)
        return totals


def up_to(largest: int) -> list[float]:
    """1, 2, 5, 10, 20, 50 ... below `largest`, and `largest` itself: bounds for counts of tokens."""
    bounds: list[float] = []
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= largest:
                return [*bounds, largest]
            bounds.append(digit * power)
        power *= 10
