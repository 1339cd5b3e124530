"""Spans as a collector receives them, decoded by OpenTelemetry's own messages."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ember.front.errors import ApiError
from ember.front.tracing import Tracer, TracingError
from tests.api.fakes import Deployment

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *given: Any) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def test_one_span_for_each_request(deployment: Deployment, collector: Collector) -> None:
    tracer = deployment.services.metrics.tracer = Tracer(collector.url, "org/tiny")
    begun = time.time_ns()
    body = {"messages": [{"role": "user", "content": "a secret of mine"}], "max_tokens": 3}
    deployment.request("POST", "/v1/chat/completions", body, x_request_id="mine", traceparent=f"00-{TRACE}-{PARENT}-01")
    deployment.chat(max_tokens=2, n=2)
    deployment.engine.script = lambda prompt, sampling: [ApiError(500, "The engine failed.")]
    with pytest.raises(ApiError):
        deployment.chat()
    ended = time.time_ns()
    tracer.close()
    first, second, third = collector.spans()
    attributes = {each.key: each.value for each in first.attributes}
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes["gen_ai.request.id"].string_value == "chatcmpl-mine"
    assert attributes["gen_ai.usage.completion_tokens"].int_value == 3
    assert attributes["gen_ai.usage.prompt_tokens"].int_value == len(deployment.engine.calls[0][0])
    assert attributes["gen_ai.response.model"].string_value == "org/tiny"
    assert attributes["gen_ai.latency.time_to_first_token"].double_value > 0
    assert begun - 1_000_000 <= first.start_time_unix_nano <= first.end_time_unix_nano <= ended
    assert second.trace_id.hex() != TRACE and not second.parent_span_id
    assert [span.status.code for span in (first, second, third)] == [0, 0, 2]
    assert b"secret" not in b"".join(collector.bodies)


def test_a_collector_that_is_not_there_hurts_nobody(deployment: Deployment) -> None:
    tracer = deployment.services.metrics.tracer = Tracer("http://127.0.0.1:9/v1/traces", "org/tiny")
    assert deployment.chat(max_tokens=2)["choices"]
    tracer.close()


def test_without_the_library_the_boot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingError, match=r"worker-ember\[otel\]"):
        Tracer("http://127.0.0.1:9", "m")
