"""GET /metrics: engine and front as Prometheus text under vLLM's names, the boot as `ember_boot_*`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ember import __version__, wire
from ember.boot import Timeline
from ember.front.api.exchange import Response
from ember.front.api.load import kv_cache_usage
from ember.front.api.meter import FINISH_REASONS
from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.front.metrics import Metrics
from ember.histogram import STEP_TOKENS, Histogram


async def metrics_page(services: Services) -> Response:
    """The page that a Prometheus server reads. It lacks the engine's figures while the engine restarts."""
    engine = services.engine
    stats: wire.Stats | None = None
    info: wire.Ready | None = None
    if engine.is_ready:
        try:
            info, stats = engine.info, await engine.stats()
        except ApiError:
            info = stats = None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(services, info, stats))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return Response(200, generate_latest(registry).decode(), {"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


class _Page(Collector):
    """All figures, collected once."""

    def __init__(self, services: Services, info: wire.Ready | None, stats: wire.Stats | None) -> None:
        self._services = services
        self._info = info
        self._stats = stats
        self._labels = {"model_name": services.model_name, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        metrics = self._services.metrics
        yield self._gauge("ember_engine_up", "1 while the engine answers requests.", float(self._stats is not None))
        yield self._sleep()
        in_engine = 0 if self._stats is None else self._stats.num_waiting
        reasons = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Those of vllm:num_requests_waiting that wait for the batch (capacity) or for the engine (deferred).",
            labels=[*self._labels, "reason"],
        )
        for reason, count in (("capacity", in_engine), ("deferred", metrics.waiting)):
            reasons.add_metric([*self._labels.values(), reason], count)
        yield reasons
        yield self._gauge(
            "vllm:num_requests_waiting",
            "Samples that wait for the batch, and requests that wait for a paused, sleeping or restarting engine.",
            in_engine + metrics.waiting,
        )
        if self._stats is not None and self._info is not None:
            yield from self._engine(self._stats, self._info)
        yield from self._requests(metrics)
        yield from _http(metrics)
        yield from _boot(self._services.timeline)
        build = GaugeMetricFamily("ember_build_info", "1; the version is a label.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _engine(self, stats: wire.Stats, info: wire.Ready) -> Iterator[Metric]:
        usage = kv_cache_usage(stats)
        for name, text, value in (
            ("vllm:num_requests_running", "Samples in the batch.", stats.num_running),
            ("vllm:num_requests_swapped", "Always 0: what is preempted is computed again.", 0),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache's pages in use, 0 to 1.", usage),
            ("vllm:gpu_cache_usage_perc", "The older name of vllm:kv_cache_usage_perc.", usage),
        ):
            yield self._gauge(name, text, value)
        for name, text, count in (
            ("vllm:prompt_tokens", "Prompt tokens taken in.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens sampled.", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("vllm:gpu_prefix_cache_queries", "The older name.", stats.prefix_cache_queries),
            ("vllm:gpu_prefix_cache_hits", "The older name.", stats.prefix_cache_hits),
            ("vllm:num_preemptions", "Sequences that lost their pages for a while.", stats.num_preemptions),
            ("ember:steps", "Steps of the engine.", stats.num_steps),
        ):
            yield self._counter(name, text, count)
        if stats.step_token_counts:
            steps = Histogram(STEP_TOKENS)
            steps.counts, steps.sum = stats.step_token_counts, float(stats.step_tokens)
            yield self._histogram(
                "vllm:iteration_tokens_total", "Prompt tokens computed and tokens generated in a step.", steps
            )
        settings = self._services.settings
        config = {
            "block_size": info.block_size,
            "num_gpu_blocks": info.num_blocks,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enable_prefix_caching": settings.enable_prefix_caching,
            "cache_dtype": settings.kv_cache_dtype,
            "device": info.device,
            "kv_cache_size_tokens": info.num_blocks * info.block_size,
            "kv_cache_max_concurrency": round(info.num_blocks * info.block_size / info.max_model_len, 2),
        }
        labels = {**{name: str(value) for name, value in config.items()}, "engine": "0"}
        cache = GaugeMetricFamily("vllm:cache_config_info", "1; the KV cache as labels.", labels=list(labels))
        cache.add_metric(list(labels.values()), 1)
        yield cache

    def _sleep(self) -> Metric:
        level = self._services.engine.control.level
        state = GaugeMetricFamily(
            "vllm:engine_sleep_state", "1 for the state of the engine.", labels=[*self._labels, "sleep_state"]
        )
        for name, levels in (("awake", (None, 0)), ("weights_offloaded", (1,)), ("discard_all", (2,))):
            state.add_metric([*self._labels.values(), name], float(level in levels))
        return state

    def _requests(self, metrics: Metrics) -> Iterator[Metric]:
        labels = [*self._labels, "finished_reason"]
        finished = CounterMetricFamily("vllm:request_success", "Samples that have ended, by reason.", labels=labels)
        for reason in FINISH_REASONS:
            finished.add_metric([*self._labels.values(), reason], metrics.finished[reason])
        yield finished
        rejected = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused because too many wait.", labels=[*self._labels, "reason"]
        )
        for reason, count in sorted(metrics.refused.items()):
            rejected.add_metric([*self._labels.values(), reason], count)
        yield rejected
        yield self._counter(
            "vllm:prompt_tokens_cached", "Prompt tokens that were not computed again.", metrics.cached_tokens
        )
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From arrival to the first token.", metrics.first_token),
            ("inter_token_latency_seconds", "Between two tokens of a sample.", metrics.token_gap),
            ("time_per_output_token_seconds", "The older name of inter_token_latency.", metrics.token_gap),
            ("request_time_per_output_token_seconds", "A sample's mean time per token.", metrics.per_output_token),
            ("e2e_request_latency_seconds", "From arrival to the end.", metrics.whole),
            ("request_queue_time_seconds", "In the engine, before the first step.", metrics.queue),
            ("request_prefill_time_seconds", "From then to the first token.", metrics.prefill),
            ("request_decode_time_seconds", "From the first to the last token.", metrics.decode),
            ("request_inference_time_seconds", "From the first step to the last token.", metrics.inference),
        ):
            yield self._histogram(f"vllm:{name}", text, histogram)
        longest = self._info.max_model_len if self._info is not None else None
        for name, text, histogram in (
            ("request_prompt_tokens", "Tokens of the prompt.", metrics.prompt_tokens),
            ("request_generation_tokens", "Tokens of the answer.", metrics.generation_tokens),
            ("request_max_num_generation_tokens", "Tokens the answer might have had.", metrics.max_tokens),
            ("request_params_max_tokens", "max_tokens of the request.", metrics.max_tokens),
        ):
            yield self._histogram(f"vllm:{name}", text, histogram, longest)
        yield self._histogram("vllm:request_params_n", "n of the request.", metrics.n)
        yield self._histogram(
            "vllm:request_num_preemptions", "How often a sample lost its pages for a while.", metrics.preemptions
        )

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram, largest: float | None = None) -> Metric:
        """`largest` is the greatest possible value. Buckets beyond the one that holds it are left out."""
        family = HistogramMetricFamily(name, text, labels=list(self._labels))
        totals = histogram.cumulative()
        buckets = [
            (_bound(bound), total)
            for i, (bound, total) in enumerate(zip(histogram.bounds, totals, strict=False))
            if largest is None or i == 0 or histogram.bounds[i - 1] < largest
        ]
        family.add_metric(list(self._labels.values()), [*buckets, ("+Inf", totals[-1])], histogram.sum)
        return family


def _http(metrics: Metrics) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "http_requests", "Requests by route, method and status.", labels=["handler", "method", "status"]
    )
    for (route, method, status), count in sorted(metrics.requests.items()):
        family.add_metric([route, method, status], count)
    yield family


def _boot(timeline: Timeline) -> Iterator[Metric]:
    marks = GaugeMetricFamily(
        "ember_boot_seconds", "From the start of the worker's process to this moment of its boot.", labels=["mark"]
    )
    for name, at in timeline.marks.items():
        marks.add_metric([name], at)
    yield marks
    phases: dict[tuple[str, str], float] = {}
    sizes: dict[tuple[str, str], float] = {}
    for phase in timeline.phases:
        key = (phase.process, phase.name)
        phases[key] = phases.get(key, 0.0) + phase.end - phase.start
        size: Any = phase.detail.get("bytes")
        if isinstance(size, (int, float)):
            sizes[key] = sizes.get(key, 0.0) + size
    labels = ["process", "phase"]
    seconds = GaugeMetricFamily("ember_boot_phase_seconds", "Time in this phase of the boot.", labels=labels)
    read = GaugeMetricFamily("ember_boot_phase_bytes", "Bytes that this phase of the boot handled.", labels=labels)
    for key, value in phases.items():
        seconds.add_metric(list(key), value)
    for key, value in sizes.items():
        read.add_metric(list(key), value)
    yield seconds
    if sizes:
        yield read
    uptime = GaugeMetricFamily("ember_uptime_seconds", "Since the worker's process was started.")
    uptime.add_metric([], timeline.elapsed())
    yield uptime


def _bound(bound: float) -> str:
    return str(float(bound))
