"""The times of one sample's tokens, taken where the front reads the engine's outputs."""

from __future__ import annotations

from array import array

from ember.front.metrics import Metrics


class Clock:
    """The times at which the tokens of one sample arrived, from `time.monotonic()`."""

    __slots__ = ("first", "gaps", "last", "num_preemptions", "queue")

    def __init__(self) -> None:
        self.queue = 0.0  # seconds in the engine before its first step
        self.num_preemptions = 0
        self.first: float | None = None
        self.last = 0.0
        self.gaps = array("d")  # seconds before each token after the first

    def prefill(self, arrived: float) -> float:
        """Seconds from the first step to the first token. The front's own work on the request counts here too."""
        return 0.0 if self.first is None else max(self.first - arrived - self.queue, 0.0)

    def push(self, num_tokens: int, now: float, metrics: Metrics) -> None:
        """Note tokens that arrived together. They share the time since the previous ones."""
        if self.first is None:
            self.first = self.last = now
            num_tokens -= 1
        if num_tokens == 1:  # nearly always
            gap = now - self.last
            metrics.token_gap.observe(gap)
            self.gaps.append(gap)
            self.last = now
        elif num_tokens > 1:
            gap = (now - self.last) / num_tokens
            metrics.token_gap.observe(gap, num_tokens)
            self.gaps.extend([gap] * num_tokens)
            self.last = now
