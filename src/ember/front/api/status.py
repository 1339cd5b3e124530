"""What a worker says of itself: is it alive, ready, what is it, and how did it boot.

/health, /ping and /version answer whatever the engine's state, before there are any `Services`, so they take the engine
alone; both faces come here for them.
"""

from __future__ import annotations

from ember import __version__
from ember.front.api.exchange import Response
from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.front.link.client import Engine

STATUS_METHODS = {"/health": ("GET", "HEAD"), "/ping": ("GET", "HEAD", "POST"), "/version": ("GET", "HEAD")}


def status(engine: Engine, method: str, path: str) -> Response | None:
    """The answer of one of these paths, None for another path. Raises ApiError 405.

    /health is 200 when requests are answered, 503 while loading and when the engine is dead. /ping, as load balancers
    of serverless platforms ask, is 204 while loading: initialising, not ill.
    """
    path = plain_path(path)
    allowed = STATUS_METHODS.get(path)
    if allowed is None:
        return None
    if method.upper() not in allowed:
        raise not_allowed(allowed)
    if path == "/version":
        return Response(200, {"version": __version__})
    if engine.is_dead:
        return Response(503)
    if engine.is_ready:
        return Response(200)
    return Response(204 if path == "/ping" else 503)


def boot(services: Services) -> Response:
    """The boot timeline of both processes, as `ember boot-report` reads it."""
    return Response(200, services.timeline.report())


def plain_path(path: str) -> str:
    """Without a query and slashes at the end."""
    return path.partition("?")[0].rstrip("/")


def not_allowed(allowed: tuple[str, ...]) -> ApiError:
    headers = {"Allow": ", ".join(allowed)}
    return ApiError(405, "Method Not Allowed", type="Method Not Allowed", headers=headers)
