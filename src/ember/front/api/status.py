"""GET /health, /ping, /version and /boot: is this worker alive, ready, what is it, and how did it boot."""

from __future__ import annotations

from ember import __version__
from ember.front.api.exchange import Response
from ember.front.api.services import Services


def health(services: Services) -> Response:
    """200 when requests are answered; 503 while loading and when the engine is dead."""
    return Response(200 if services.engine.is_ready and not services.engine.is_dead else 503)


def ping(services: Services) -> Response:
    """As load balancers of serverless platforms ask: 204 while loading, 200 ready, 503 dead."""
    if services.engine.is_dead:
        return Response(503)
    return Response(200 if services.engine.is_ready else 204)


def version(services: Services) -> Response:
    return Response(200, {"version": __version__})


def boot(services: Services) -> Response:
    """The boot timeline of both processes, as `ember boot-report` reads it."""
    return Response(200, services.timeline.report())
