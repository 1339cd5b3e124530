"""OpenTelemetry traces: one span for each request, sent to the collector at OTLP_TRACES_ENDPOINT.

A span is made when its request has ended, from the figures of the log line. A thread of the library sends it.
Attributes have the names of OpenTelemetry's conventions for generative AI and of vLLM. Prompts and answers are left
out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)  # W3C header of the current request

_SEND_S = 2.0  # time limit of sending, with all attempts
_FLUSH_MS = 2000
_ATTRIBUTES = {
    "request_id": "gen_ai.request.id",
    "prompt_tokens": "gen_ai.usage.prompt_tokens",
    "completion_tokens": "gen_ai.usage.completion_tokens",
    "cached_tokens": "gen_ai.usage.cached_tokens",
    "finish_reason": "gen_ai.response.finish_reasons",
}
_SECONDS = {
    "queue_ms": "gen_ai.latency.time_in_queue",
    "ttft_ms": "gen_ai.latency.time_to_first_token",
    "total_ms": "gen_ai.latency.e2e",
}


class TracingError(Exception):
    """Traces cannot be sent. The message is one line."""


class Tracer:
    """Sends spans to one collector by OTLP over HTTP. Raises TracingError if the library is missing."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(
                f"OTLP_TRACES_ENDPOINT is set, but {error.name} is not installed: pip install 'worker-ember[otel]'"
            ) from None
        self._model_name = model_name
        self._provider = TracerProvider(resource=Resource.create({"service.name": "ember"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_S)))
        self._tracer = self._provider.get_tracer("ember")

    def record(self, line: Mapping[str, Any]) -> None:
        """Send the span of a request that has ended. `fields`: those of its log line."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end = time.time_ns()
        given = TRACEPARENT.get()
        parent = TraceContextTextMapPropagator().extract({"traceparent": given}) if given else None
        attributes: dict[str, Any] = {"gen_ai.response.model": self._model_name}
        attributes |= {name: line[key] for key, name in _ATTRIBUTES.items() if line.get(key) is not None}
        attributes |= {name: line[key] / 1000 for key, name in _SECONDS.items() if line.get(key) is not None}
        span = self._tracer.start_span(
            "llm_request",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=end - round(line["total_ms"] * 1e6),
        )
        if "error" in str(line.get("finish_reason")).split(","):
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Send the pending spans, for two seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()
