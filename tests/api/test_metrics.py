"""/metrics read by Prometheus' own parser, and the log line of each request."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ember import wire
from ember.front.api.meter import percentile
from ember.front.api.router import EventStream
from ember.front.errors import ApiError
from ember.front.link.admission import Admission
from ember.histogram import STEP_TOKENS, Histogram, up_to
from ember.logs import Formatter
from tests.api.fakes import Deployment, logprob_of

# What the dashboards that ship with vLLM ask for.
DASHBOARD = """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:prompt_tokens_total
vllm:generation_tokens_total vllm:request_success_total vllm:time_to_first_token_seconds_bucket
vllm:inter_token_latency_seconds_bucket vllm:request_time_per_output_token_seconds_bucket
vllm:e2e_request_latency_seconds_bucket vllm:request_queue_time_seconds_sum vllm:request_prefill_time_seconds_sum
vllm:request_decode_time_seconds_sum vllm:request_inference_time_seconds_bucket vllm:request_prompt_tokens_bucket
vllm:request_generation_tokens_bucket vllm:request_max_num_generation_tokens_bucket vllm:iteration_tokens_total_count
vllm:gpu_cache_usage_perc vllm:time_per_output_token_seconds_sum vllm:num_requests_swapped
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:num_preemptions_total vllm:cache_config_info
vllm:num_requests_waiting_by_reason vllm:request_num_preemptions_bucket
"""
STATS = wire.Stats(
    num_running=2,
    num_waiting=1,
    num_blocks=64,
    num_free_blocks=48,
    prompt_tokens=100,
    generation_tokens=50,
    prefix_cache_queries=90,
    prefix_cache_hits=32,
    num_preemptions=3,
    num_steps=7,
    step_tokens=70,
    step_token_counts=[1, 2, 4] + [0] * (len(STEP_TOKENS) - 2),
)


async def stats() -> wire.Stats:
    return STATS


def read(deployment: Deployment) -> dict[str, list[Any]]:
    """Every sample of /metrics by its name."""
    deployment.engine.stats = stats  # type: ignore[method-assign]
    answer = deployment.request("GET", "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(answer.body):
        keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(keys) == len(set(keys)), f"{family.name} has a sample twice"
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def value(samples: dict[str, list[Any]], name: str, **labels: str) -> float:
    (sample,) = [sample for sample in samples[name] if labels.items() <= sample.labels.items()]
    number: float = sample.value
    return number


def test_names_of_the_dashboards(deployment: Deployment) -> None:
    samples = read(deployment)
    assert not [name for name in DASHBOARD.split() if name not in samples]
    for name in DASHBOARD.split():
        assert {"engine"} <= set(samples[name][0].labels)
    assert value(samples, "vllm:kv_cache_usage_perc", model_name="org/tiny", engine="0") == 0.25
    assert value(samples, "vllm:iteration_tokens_total_bucket", le="16.0") == 7
    assert value(samples, "vllm:iteration_tokens_total_bucket", le="8.0") == 3
    assert value(samples, "vllm:iteration_tokens_total_sum") == 70
    assert value(samples, "vllm:cache_config_info", block_size="16", num_gpu_blocks="64") == 1
    assert value(samples, "vllm:cache_config_info", kv_cache_size_tokens="1024", kv_cache_max_concurrency="4.0") == 1
    assert value(samples, "vllm:num_requests_waiting_by_reason", reason="capacity") == 1
    assert value(samples, "vllm:num_requests_waiting_by_reason", reason="deferred") == 0
    for reason in ("stop", "length", "abort", "error", "repetition"):
        assert value(samples, "vllm:request_success_total", finished_reason=reason) == 0


def test_a_grammar_that_cannot_be_used_is_no_failure_of_a_generation(deployment: Deployment) -> None:
    for param, status in (("response_format", 400), (None, 500)):
        output = wire.SequenceOutput(1, 0, [], "error", error="it cannot be used", error_param=param)
        deployment.engine.script = functools.partial(lambda made, prompt, sampling: [[made]], output)
        with pytest.raises(ApiError) as caught:
            deployment.chat(response_format={"type": "json_object"})
        assert caught.value.status == status
        failed = value(read(deployment), "vllm:request_success_total", finished_reason="error")
        assert failed == (1 if status == 500 else 0)


def test_requests_are_counted(deployment: Deployment) -> None:
    deployment.chat(max_tokens=50)
    deployment.chat(max_tokens=2, n=2)
    deployment.stream_chat(max_tokens=50)
    with pytest.raises(ApiError):
        deployment.chat(temperature=99)
    with pytest.raises(ApiError):
        deployment.request("GET", "/made/up")
    samples = read(deployment)
    assert value(samples, "vllm:request_success_total", finished_reason="stop") == 2
    assert value(samples, "vllm:request_success_total", finished_reason="length") == 2
    tokens = len(deployment.tokenizer.encode("hello world", add_special_tokens=False)) + 1
    assert value(samples, "vllm:request_generation_tokens_sum") == 2 * tokens + 2 * 2
    assert value(samples, "vllm:time_to_first_token_seconds_count") == 4
    assert value(samples, "vllm:inter_token_latency_seconds_count") == 2 * (tokens - 1) + 2
    assert value(samples, "vllm:request_params_n_sum") == 4
    assert value(samples, "vllm:prompt_tokens_cached_total") == 9
    assert value(samples, "http_requests_total", handler="/v1/chat/completions", method="POST", status="2xx") == 3
    assert value(samples, "http_requests_total", handler="/v1/chat/completions", method="POST", status="4xx") == 1
    assert value(samples, "http_requests_total", handler="none", method="GET", status="4xx") == 1
    largest = [float(sample.labels["le"]) for sample in samples["vllm:request_prompt_tokens_bucket"]]
    assert largest[-2] == 500  # the bucket that holds the longest context of 256, and none beyond


def test_preemptions_are_counted_for_each_sample(deployment: Deployment) -> None:
    outputs = [wire.SequenceOutput(1, 0, [5]), wire.SequenceOutput(1, 0, [6], "length", num_preemptions=2)]
    deployment.engine.script = lambda prompt, sampling: [[output] for output in outputs]
    deployment.chat()
    samples = read(deployment)
    assert value(samples, "vllm:request_num_preemptions_sum") == 2
    assert value(samples, "vllm:request_num_preemptions_bucket", le="1.0") == 0
    assert value(samples, "vllm:request_num_preemptions_bucket", le="2.0") == 1


def test_times(deployment: Deployment) -> None:
    """Against a clock of our own: 5 ms between two outputs of the engine."""
    deployment.engine.delay = 0.005
    begun = time.monotonic()
    deployment.chat(max_tokens=50)
    took = time.monotonic() - begun
    samples = read(deployment)
    tokens = value(samples, "vllm:request_generation_tokens_sum")
    whole = value(samples, "vllm:e2e_request_latency_seconds_sum")
    first = value(samples, "vllm:time_to_first_token_seconds_sum")
    decode = value(samples, "vllm:request_decode_time_seconds_sum")
    assert 0.005 * tokens < whole <= took
    assert first >= 0.005
    assert 0.005 * (tokens - 1) <= decode <= whole - first
    assert value(samples, "vllm:inter_token_latency_seconds_sum") == pytest.approx(decode)
    mean = value(samples, "vllm:request_time_per_output_token_seconds_sum")
    assert mean == pytest.approx(decode / (tokens - 1))


def test_time_in_the_engines_queue(deployment: Deployment) -> None:
    token = deployment.tokenizer.encode("h", add_special_tokens=False)[0]
    deployment.engine.script = lambda prompt, sampling: [
        [wire.SequenceOutput(1, 0, [token], queue_seconds=0.75)],
        [wire.SequenceOutput(1, 0, [token], finish_reason="length", logprobs=[logprob_of(token, 0)])],
    ]
    deployment.chat(max_tokens=2)
    assert value(read(deployment), "vllm:request_queue_time_seconds_sum") == 0.75


def test_requests_that_are_not_admitted(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    admission = Admission(max_requests=1)
    admission.enter(1, 5)

    def generate(*given: Any, **more: Any) -> Any:
        admission.enter(2, 5)

    monkeypatch.setattr(deployment.engine, "generate", generate)
    with pytest.raises(ApiError):
        deployment.chat()
    assert value(read(deployment), "vllm:admission_rejections_total", reason="requests") == 1


def test_an_engine_that_is_being_started_again(deployment: Deployment) -> None:
    async def fails() -> wire.Stats:
        raise ApiError(500, "The engine failed.")

    deployment.services.timeline.mark("ready")
    deployment.services.timeline.add("weights", 1.0, 3.0, bytes=1000)
    deployment.services.timeline.add("weights", 3.0, 4.0, bytes=500)
    samples = read(deployment)
    assert value(samples, "ember_engine_up") == 1
    assert value(samples, "ember_boot_phase_seconds", phase="weights", process="front") == 3
    assert value(samples, "ember_boot_phase_bytes", phase="weights") == 1500
    assert value(samples, "ember_boot_seconds", mark="ready") > 0
    deployment.engine.stats = fails  # type: ignore[method-assign]
    text = deployment.request("GET", "/metrics").body
    assert "ember_engine_up" in text and "vllm:num_requests_running" not in text
    assert "vllm:request_success_total" in text


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of requests, as LOG_FORMAT=json writes them."""
    formatter = Formatter(as_json=True)
    return [json.loads(formatter.format(record)) for record in caplog.records if record.name == "ember.requests"]


def test_one_line_for_each_request(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    deployment.request(
        "POST",
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a secret of mine"}], "max_tokens": 3},
        x_request_id="mine",
    )
    with pytest.raises(ApiError):
        deployment.complete("another secret", temperature=99)
    finished, refused = lines(caplog)
    assert finished["request_id"] == "chatcmpl-mine"
    assert (finished["completion_tokens"], finished["cached_tokens"]) == (3, 3)
    assert finished["prompt_tokens"] == len(deployment.engine.prompt)
    assert finished["finish_reason"] == "length"
    assert finished["itl_p50_ms"] <= finished["itl_p99_ms"] <= finished["total_ms"]
    assert (refused["status"], refused["error"], refused["route"]) == (400, "BadRequestError", "/v1/completions")
    assert "secret" not in caplog.text


def test_a_request_that_fails_in_the_engine_has_one_line(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deployment.engine.script = lambda prompt, sampling: [ApiError(500, "The engine failed.")]
    with pytest.raises(ApiError):
        deployment.chat()
    (line,) = lines(caplog)
    assert line["finish_reason"] == "error"
    assert value(read(deployment), "vllm:request_success_total", finished_reason="error") == 1


def test_a_request_that_the_engine_refuses_is_not_among_the_finished(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deployment.engine.script = lambda prompt, sampling: [ApiError(400, "No such grammar.", param="structured_outputs")]
    with pytest.raises(ApiError):
        deployment.chat(n=3)
    (line,) = lines(caplog)
    assert (line["status"], "finish_reason" in line) == (400, False)
    assert value(read(deployment), "vllm:request_success_total", finished_reason="error") == 0


def test_a_client_that_leaves_is_an_abort(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def leave() -> None:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        answer = await deployment.dispatch("POST", "/v1/chat/completions", body)
        assert isinstance(answer, EventStream)
        await anext(answer.events)
        await answer.events.aclose()

    asyncio.run(leave())
    (line,) = lines(caplog)
    assert line["finish_reason"] == "abort"


def test_ids_in_other_lines_of_the_request(deploy: Callable[..., Deployment], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    deployment = deploy()
    seen = []
    formatter = Formatter(as_json=True)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(json.loads(formatter.format(record)))

    def script(prompt: list[int], sampling: wire.SamplingParams) -> Any:
        logging.getLogger("ember.somewhere").warning("said while %s runs", "it")
        return [ApiError(500, "The engine failed.")]

    handler = Handler()
    logging.getLogger("ember.somewhere").addHandler(handler)
    try:
        deployment.engine.script = script
        with pytest.raises(ApiError):
            deployment.request("POST", "/v1/completions", {"prompt": "x"}, x_request_id="abc")
    finally:
        logging.getLogger("ember.somewhere").removeHandler(handler)
    assert (seen[0]["request_id"], seen[0]["level"], seen[0]["message"]) == ("abc", "warning", "said while it runs")


def test_formatter_hides_secrets_in_messages_and_tracebacks() -> None:
    formatter = Formatter(secrets=["sk-planted-key", "ab"])
    try:
        raise ValueError("refused: sk-planted-key")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "a cab with sk-planted-key", (), None)
        record.exc_info = (type(error), error, error.__traceback__)
    text = formatter.format(record)
    assert "planted" not in text
    assert "a cab with (hidden)" in text  # two letters are no secret
    assert "Traceback" in text


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([1.0], 0.5, 1), ([1, 2, 3, 4], 0.5, 2), ([1, 2, 3, 4], 0.99, 4), (list(range(1, 101)), 0.99, 99), ([5, 6], 0, 5)],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_histogram() -> None:
    histogram = Histogram((1, 10))
    for number in (0.5, 1, 1.5, 10, 11):
        histogram.observe(number)
    histogram.observe(2, times=3)
    assert histogram.cumulative() == [2, 7, 8]
    assert (histogram.count, histogram.sum) == (8, 30)
    assert up_to(300) == [1, 2, 5, 10, 20, 50, 100, 200, 300]
    assert up_to(1) == [1]


def test_the_dashboard_asks_for_what_is_there(deployment: Deployment) -> None:
    deployment.services.timeline.mark("ready")
    deployment.services.timeline.add("weights", 0.0, 1.0)
    deployment.chat()
    deployment.services.metrics.refused["queue_full"] += 1
    samples = read(deployment)
    dashboard = json.loads((Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text())
    asked = {
        (name, label)
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"(?:vllm:|ember_|http_)\w+", target["expr"])
        for label in [*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]), ""]
    }
    assert len(asked) > 20
    for name, label in asked:
        assert name in samples, name
        assert label in ("", "instance") or label in samples[name][0].labels, (name, label)
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(places) == len(set(places))
