"""Counters and histograms of the worker's requests since its start.

They are plain numbers, updated on the event loop that owns the engine's client. `front/api/metrics_page.py` writes them
as Prometheus text on request. Names and bounds of the buckets are vLLM's, so that its dashboards work.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ember.front.tracing import Tracer
from ember.histogram import Histogram, up_to

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_LARGEST = 1_000_000  # tokens; the largest bound of histograms of tokens


def _seconds() -> Histogram:
    return Histogram(_LATENCY)


def _tokens() -> Histogram:
    return Histogram(up_to(_LARGEST))


@dataclass(slots=True)
class Metrics:
    """Times in seconds, with one observation for each sample of a request. token_gap: one for each token but the
    first."""

    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by route, method and `2xx`, `4xx` ...
    finished: Counter[str] = field(default_factory=Counter)  # samples by finish reason
    refused: Counter[str] = field(default_factory=Counter)  # requests that were not admitted, by reason
    first_token: Histogram = field(default_factory=lambda: Histogram((*_TTFT, 2560)))
    token_gap: Histogram = field(default_factory=lambda: Histogram(_TOKEN))
    per_output_token: Histogram = field(default_factory=lambda: Histogram(_TOKEN))  # the mean gap of a sample
    whole: Histogram = field(default_factory=_seconds)
    queue: Histogram = field(default_factory=_seconds)
    prefill: Histogram = field(default_factory=_seconds)
    decode: Histogram = field(default_factory=_seconds)
    inference: Histogram = field(default_factory=_seconds)
    prompt_tokens: Histogram = field(default_factory=_tokens)
    generation_tokens: Histogram = field(default_factory=_tokens)
    max_tokens: Histogram = field(default_factory=_tokens)
    preemptions: Histogram = field(default_factory=lambda: Histogram((1, 2, 3, 4, 5, 10, 20)))
    n: Histogram = field(default_factory=lambda: Histogram((1, 2, 5, 10, 20)))
    in_flight: int = 0  # requests in the engine, or about to be submitted
    waiting: int = 0  # requests in front of an engine that is paused, asleep or being restarted
    cached_tokens: int = 0  # prompt tokens found in the prefix cache
    tracer: Tracer | None = None  # None: traces are off
