"""Measures one request. The figures go into `Metrics` and into one line of the log.

Times are taken where the front reads the engine's outputs, which is when a client can have them. The cost is one clock
reading for each batch of outputs of a request and one histogram entry for each sample in it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ember.front.api.clock import Clock
from ember.front.api.run import Run
from ember.front.errors import ApiError
from ember.front.metrics import Metrics

log = logging.getLogger("ember.requests")

_REQUEST_METRICS = (
    "time_to_first_token_ms",
    "generation_time_ms",
    "queue_time_ms",
    "mean_itl_ms",
    "tokens_per_second",
)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Meter:
    """Measures one request from its arrival to its end. `arrived` is a reading of `time.monotonic()`."""

    def __init__(self, metrics: Metrics, request_id: str, arrived: float) -> None:
        self.metrics = metrics
        self._request_id = request_id
        self._arrived = arrived

    def finish(self, runs: Sequence[Run], failure: BaseException | None) -> None:
        """Record the end of the request, which `failure` may have caused. This is called once. A request that the
        engine refused for a fault of its own, such as an invalid schema, is logged as refused and not counted as
        finished."""
        is_refused = isinstance(failure, ApiError) and failure.status < 500
        if is_refused and not any(sample.num_tokens for run in runs for sample in run.samples):
            return
        now = time.monotonic()
        unfinished = "error" if isinstance(failure, Exception) else "abort"
        reasons: Counter[str] = Counter()
        for run in runs:
            self.metrics.n.observe(run.spec.n)
            self.metrics.max_tokens.observe(run.spec.sampling.max_tokens)
            self.metrics.cached_tokens += run.num_cached_tokens
            for sample in run.samples:
                reason = sample.finish_reason or unfinished
                reasons[reason if reason in FINISH_REASONS else "stop"] += 1
                self._observe(run.clocks[sample], len(run.spec.prompt.token_ids), sample.num_tokens, now)
        if not is_refused:
            self.metrics.finished.update(reasons)
        if isinstance(failure, ApiError):
            failure.is_logged = True
        log_finished(self._line(runs, reasons, now), self.metrics)

    def _observe(self, clock: Clock, num_prompt_tokens: int, num_tokens: int, now: float) -> None:
        metrics = self.metrics
        metrics.prompt_tokens.observe(num_prompt_tokens)
        metrics.generation_tokens.observe(num_tokens)
        metrics.whole.observe(now - self._arrived)
        metrics.preemptions.observe(clock.num_preemptions)
        if clock.first is None:
            return
        metrics.first_token.observe(clock.first - self._arrived)
        metrics.queue.observe(clock.queue)
        decode = clock.last - clock.first
        prefill = clock.prefill(self._arrived)
        metrics.prefill.observe(prefill)
        metrics.decode.observe(decode)
        metrics.inference.observe(prefill + decode)
        if clock.gaps:
            metrics.per_output_token.observe(decode / len(clock.gaps))

    def _line(self, runs: Sequence[Run], reasons: Counter[str], now: float) -> dict[str, Any]:
        clocks = [clock for run in runs for clock in run.clocks.values()]
        firsts = [clock.first for clock in clocks if clock.first is not None]
        gaps = sorted(gap for clock in clocks for gap in clock.gaps)
        return {
            "request_id": self._request_id,
            "finish_reason": ",".join(sorted(reasons)),
            "prompt_tokens": sum(len(run.spec.prompt.token_ids) for run in runs),
            "cached_tokens": sum(run.num_cached_tokens for run in runs),
            "completion_tokens": sum(sample.num_tokens for run in runs for sample in run.samples),
            "queue_ms": _ms(max((clock.queue for clock in clocks), default=0.0)),
            "ttft_ms": _ms(min(firsts) - self._arrived) if firsts else None,
            "itl_p50_ms": _ms(percentile(gaps, 0.5)) if gaps else None,
            "itl_p99_ms": _ms(percentile(gaps, 0.99)) if gaps else None,
            "total_ms": _ms(now - self._arrived),
        }


def request_metrics(clock: Clock, num_tokens: int, arrived: float) -> dict[str, float | None]:
    """The times of one sample under vLLM's names: `time_to_first_token_ms` is without the time in the queue."""
    if clock.first is None:
        return dict.fromkeys(_REQUEST_METRICS)
    prefill, decode = clock.prefill(arrived), clock.last - clock.first
    busy = prefill + decode
    values = (
        _ms(prefill),
        _ms(decode),
        _ms(clock.queue),
        _ms(decode / (num_tokens - 1)) if num_tokens > 1 else None,
        round(num_tokens / busy, 2) if busy > 0 else None,
    )
    return dict(zip(_REQUEST_METRICS, values, strict=True))


def log_finished(line: dict[str, Any], metrics: Metrics) -> None:
    """Log a request that the engine worked on, in one line, and hand the line to the tracer."""
    log.info("finished: %s", _as_text(line.items()), extra={"fields": line})
    if metrics.tracer is not None:
        metrics.tracer.record(line)


def log_refusal(request_id: str, route: str, status: int, kind: str, seconds: float) -> None:
    """Log a request that was answered with an error, in one line. The error's message may quote the prompt, so it is
    left out."""
    line = {"request_id": request_id, "route": route, "status": status, "error": kind, "total_ms": _ms(seconds)}
    log.info("refused: %s", _as_text(line.items()), extra={"fields": line})


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted `values` that at least `share` of them do not exceed."""
    return values[max(0, -int(-share * len(values) // 1) - 1)]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _as_text(fields: Iterable[tuple[str, Any]]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields if value is not None)
