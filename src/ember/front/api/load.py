"""How busy the worker is: GET /load, and the header in which load balancers ask for it with a request (ORCA).

A request with `endpoint-load-metrics-format: TEXT` or `JSON` gets `endpoint-load-metrics` beside its answer, with the
names and in the forms that vLLM has for them.
"""

from __future__ import annotations

from typing import Any

import orjson

from ember.front.api.exchange import Response
from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.wire import Stats

FORMAT_HEADER = "endpoint-load-metrics-format"
LOAD_HEADER = "endpoint-load-metrics"


def load(services: Services) -> Response:
    """The number of requests that run in the engine or wait for it. Each conversation of a batch counts as one."""
    return Response(200, {"server_load": services.metrics.in_flight + services.metrics.waiting})


def kv_cache_usage(stats: Stats) -> float:
    """The share of the KV cache's pages in use, from 0 to 1."""
    return 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0


async def load_headers(services: Services, wanted: str | None) -> dict[str, str]:
    """The load header in the `wanted` format. It is left out for no or an unknown format, and when the engine cannot
    tell its load: the answer itself matters more."""
    form = (wanted or "").strip().upper()
    if form not in ("TEXT", "JSON"):
        return {}
    try:
        stats = await services.engine.stats()
    except ApiError:
        return {}
    named: dict[str, Any] = {
        "kv_cache_usage_perc": kv_cache_usage(stats),
        "num_requests_running": float(stats.num_running),
        "num_requests_waiting": float(stats.num_waiting + services.metrics.waiting),
    }
    if form == "JSON":
        return {LOAD_HEADER: f"JSON {orjson.dumps({'named_metrics': named}).decode()}"}
    return {LOAD_HEADER: "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in named.items())}
