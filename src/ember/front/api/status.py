"""The state of a worker: whether it is alive and ready, its version, and its boot.

/health, /ping and /version answer whatever the engine's state, before there are any `Services`, so they take the engine
alone.
"""

from __future__ import annotations

from ember import __version__
from ember.front.api.exchange import Response
from ember.front.api.services import Services
from ember.front.link.engine import Engine

TASKS_HEADER = "X-Ember-Tasks"


def health(engine: Engine) -> Response:
    """200 when requests are answered, with what the model does in a header. Also 200 while they wait for the end of a
    pause or a sleep, from its beginning until the engine serves again. 503 while loading and when the engine is
    dead."""
    if engine.is_dead or not (engine.is_ready or engine.control.is_paused):
        return Response(503)
    return Response(200, headers={TASKS_HEADER: ", ".join(engine.tasks)})


def ping(engine: Engine) -> Response:
    """The health check of a serverless platform's load balancer. It is `health` with a 204 while the model loads, which
    means initialising, or is paused or asleep, so that it gets no requests."""
    if engine.is_dead:
        return Response(503)
    return Response(200 if engine.is_ready else 204)


def version(engine: Engine) -> Response:
    """The version of Ember, whatever the engine's state."""
    return Response(200, {"version": __version__})


def boot(services: Services) -> Response:
    """The boot timeline of both processes, as `ember boot-report` reads it."""
    return Response(200, services.timeline.report())
