"""One table of routes and one way in, for both faces."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from ember.front.api.chat import create_chat_completion
from ember.front.api.completions import create_completion
from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.models import get_model, list_models
from ember.front.api.services import Services
from ember.front.api.status import boot, not_allowed, plain_path, status
from ember.front.errors import ApiError, internal_error

__all__ = ["EventStream", "Request", "Response", "dispatch"]

log = logging.getLogger(__name__)

Route = Callable[[Services, Request], Awaitable[Response | EventStream]]

_MODEL_PATH = "/v1/models/"


async def dispatch(services: Services, request: Request) -> Response | EventStream:
    """Answers a request. Raises ApiError for every failure before the first token, and nothing else."""
    answer = status(services.engine, request.method, request.path)
    if answer is not None:
        return answer
    route = _find(request)
    try:
        return await route(services, request)
    except ApiError:
        raise
    except Exception as error:
        log.exception("%r %r failed", request.method[:20], request.path[:200])
        raise internal_error() from error


def _find(request: Request) -> Route:
    path = plain_path(request.path)
    by_method = _ROUTES.get(path)
    if by_method is None and path.startswith(_MODEL_PATH):
        by_method = {"GET": _get_model}
    if by_method is None:
        raise ApiError(404, "Not Found", type="Not Found")
    route = by_method.get(request.method.upper())
    if route is None:
        raise not_allowed(tuple(by_method))
    return route


def _at_once(answer: Callable[[Services], Response]) -> Route:
    """A route that looks at the services alone."""

    async def route(services: Services, request: Request) -> Response:
        return answer(services)

    return route


async def _get_model(services: Services, request: Request) -> Response:
    return get_model(services, unquote(plain_path(request.path)[len(_MODEL_PATH) :]))


_ROUTES: dict[str, dict[str, Route]] = {
    "/v1/chat/completions": {"POST": create_chat_completion},
    "/v1/completions": {"POST": create_completion},
    "/v1/models": {"GET": _at_once(list_models)},
    "/boot": {"GET": _at_once(boot)},
}
