"""One table of routes and one way in, for both faces."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from ember.front.api.batch import create_chat_batch
from ember.front.api.chat import create_chat_completion
from ember.front.api.completions import create_completion
from ember.front.api.exchange import REQUEST_ID_HEADER, EventStream, Request, Response, request_id
from ember.front.api.invocations import invoke
from ember.front.api.load import FORMAT_HEADER, load, load_headers
from ember.front.api.meter import log_refusal
from ember.front.api.models import get_model, list_models
from ember.front.api.services import Services
from ember.front.api.status import STATUS_METHODS, boot, not_allowed, plain_path, status
from ember.front.api.tokenize import detokenize, tokenize
from ember.front.api.tokenizer_info import tokenizer_info
from ember.front.errors import ApiError, internal_error
from ember.front.tracing import TRACEPARENT
from ember.logs import REQUEST_ID

__all__ = ["EventStream", "Request", "Response", "dispatch"]

log = logging.getLogger(__name__)

Route = Callable[[Services, Request], Awaitable[Response | EventStream]]

_MODEL_PATH = "/v1/models/"
_CHAT, _BATCH, _COMPLETIONS = "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions"
_INVOCATIONS = "/invocations"
_GENERATING = frozenset({_CHAT, _BATCH, _COMPLETIONS, _INVOCATIONS})


async def dispatch(services: Services, raw_request: Request) -> Response | EventStream:
    """Answers a request. Raises ApiError for every failure before the first token, and nothing else."""
    own = status(services.engine, raw_request.method, raw_request.path)
    if own is not None:
        return own
    REQUEST_ID.set(request_id(raw_request.headers.get(REQUEST_ID_HEADER.lower())))
    TRACEPARENT.set(raw_request.headers.get("traceparent"))
    try:
        answer = await _find(raw_request)(services, raw_request)
        if FORMAT_HEADER in raw_request.headers and plain_path(raw_request.path) in _GENERATING:
            await _tell_load(services, answer, raw_request.headers[FORMAT_HEADER])
    except ApiError as error:
        _note_error(services, raw_request, error)
        raise
    except Exception as error:
        log.exception("%r %r failed", raw_request.method[:20], raw_request.path[:200])
        failure = internal_error()
        _note_error(services, raw_request, failure)
        raise failure from error
    _count(services, raw_request, answer.status if isinstance(answer, Response) else 200)
    return answer


async def _tell_load(services: Services, answer: Response | EventStream, form: str) -> None:
    """Adds the load to the answer's headers. A stream has begun by then: it ends here if this is cancelled."""
    try:
        answer.headers = {**answer.headers, **await load_headers(services, form)}
    except BaseException:
        if isinstance(answer, EventStream):
            await answer.events.aclose()
        raise


def _count(services: Services, raw_request: Request, status: int) -> None:
    method = raw_request.method.upper()
    methods = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
    key = (_route_name(raw_request), method if method in methods else "other", f"{status // 100}xx")
    services.metrics.requests[key] += 1


def _note_error(services: Services, raw_request: Request, error: ApiError) -> None:
    _count(services, raw_request, error.status)
    if error.limit is not None:
        services.metrics.refused[error.limit] += 1
    if not error.is_logged:
        name = REQUEST_ID.get() or ""
        log_refusal(name, _route_name(raw_request), error.status, error.type, time.monotonic() - raw_request.arrived)


def _route_name(raw_request: Request) -> str:
    """The route as the table has it: what clients make up must not make new time series."""
    path = plain_path(raw_request.path)
    if path.startswith(_MODEL_PATH):
        return _MODEL_PATH + "{model}"
    return path if path in _ROUTES else "none"


def _find(raw_request: Request) -> Route:
    path = plain_path(raw_request.path)
    by_method = _ROUTES.get(path)
    if by_method is None and path.startswith(_MODEL_PATH):
        by_method = {"GET": _get_model}
    if by_method is None:
        raise ApiError(404, "Not Found", type="Not Found")
    route = by_method.get(raw_request.method.upper())
    if route is None:
        raise not_allowed(tuple(by_method))
    return route


def _at_once(answer: Callable[[Services], Response]) -> Route:
    """A route that looks at the services alone."""

    async def route(services: Services, raw_request: Request) -> Response:
        return answer(services)

    return route


async def _get_model(services: Services, raw_request: Request) -> Response:
    return get_model(services, unquote(plain_path(raw_request.path)[len(_MODEL_PATH) :]))


async def _metrics(services: Services, raw_request: Request) -> Response:
    from ember.front.api.metrics_page import metrics_page  # the library behind it takes 60 ms of the boot

    return await metrics_page(services)


async def _openapi(services: Services, raw_request: Request) -> Response:
    from ember.front.api.openapi import openapi_page  # its models and their schemas are for this page alone

    return await openapi_page(services, routes())


def routes() -> dict[str, tuple[str, ...]]:
    """Every path with its methods; a parameter is in braces."""
    found = {path: tuple(by_method) for path, by_method in _ROUTES.items()}
    return {**found, _MODEL_PATH + "{model}": ("GET",), **STATUS_METHODS}


_ROUTES: dict[str, dict[str, Route]] = {
    _CHAT: {"POST": create_chat_completion},
    _BATCH: {"POST": create_chat_batch},
    _COMPLETIONS: {"POST": create_completion},
    _INVOCATIONS: {"POST": invoke},
    "/tokenize": {"POST": tokenize},
    "/detokenize": {"POST": detokenize},
    "/tokenizer_info": {"GET": tokenizer_info},
    "/load": {"GET": _at_once(load)},
    "/v1/models": {"GET": _at_once(list_models)},
    "/boot": {"GET": _at_once(boot)},
    "/metrics": {"GET": _metrics},
    "/openapi.json": {"GET": _openapi},
}
