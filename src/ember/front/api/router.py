"""From a request to the answer of its route: one way in for both faces. The table of routes is in `routes.py`."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from ember.front.api.exchange import REQUEST_ID_HEADER, EventStream, Request, Response, request_id
from ember.front.api.load import FORMAT_HEADER, load_headers
from ember.front.api.meter import log_refusal
from ember.front.api.route import NO_ROUTE, Route
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request, internal_error
from ember.front.tracing import TRACEPARENT
from ember.logs import REQUEST_ID
from ember.settings import Settings

log = logging.getLogger(__name__)

_COUNTED_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")


@dataclass(frozen=True, slots=True)
class Match:
    """What the table has for a method and a path. The forms of `route` answer in any case."""

    route: Route  # of the path, where there is one but not with this method; otherwise NO_ROUTE
    allowed: tuple[str, ...]  # the methods of the path; none where there is no such path
    is_allowed: bool
    parameters: Mapping[str, str]  # of the path, percent-decoded

    def check(self) -> None:
        """Raises ApiError 404 and 405."""
        if not self.allowed:
            raise ApiError(404, "Not Found", type="Not Found")
        if not self.is_allowed:
            headers = {"Allow": ", ".join(self.allowed)}
            raise ApiError(405, "Method Not Allowed", type="Method Not Allowed", headers=headers)


_NO_MATCH = Match(NO_ROUTE, (), False, {})


class Router:
    """A table of routes. `other_paths` are further names: from a path to that of a route."""

    def __init__(self, routes: Sequence[Route], other_paths: Mapping[str, str] | None = None) -> None:
        self.routes = tuple(routes)
        by_path: dict[str, list[Route]] = {}
        for route in routes:
            by_path.setdefault(plain_path(route.path), []).append(route)
        self._fixed = {path: found for path, found in by_path.items() if "{" not in path}
        self._patterns = [(_pattern(path), found) for path, found in by_path.items() if "{" in path]
        # The longer pattern has more text of its own and is tried first: /things/{id}/parts before /things/{id}.
        self._patterns.sort(key=lambda entry: -len(entry[0].pattern))
        for path, target in (other_paths or {}).items():
            self._fixed[plain_path(path)] = by_path[plain_path(target)]

    def of(self, settings: Settings) -> Router:
        """The same table, with the paths that settings give to routes."""
        other_paths = {
            getattr(settings, route.second_path): route.path for route in self.routes if route.second_path is not None
        }
        return Router(self.routes, other_paths)

    def find(self, method: str, path: str) -> Match:
        """`path` as it was sent: percent-encoded, with or without a query and slashes at its end."""
        found, parameters = self._at(plain_path(path)) if path else ((), {})
        if not found:
            return _NO_MATCH
        allowed = tuple(dict.fromkeys(each for route in found for each in route.methods))
        method = method.upper()
        of_method = next((route for route in found if method in route.methods), None)
        return Match(of_method or found[0], allowed, of_method is not None, parameters)

    def for_job_field(self, name: str) -> Route | None:
        """The route that a queue job with this field and without a route asks for."""
        return next((route for route in self.routes if route.job_field == name), None)

    def _at(self, path: str) -> tuple[Sequence[Route], dict[str, str]]:
        """The routes at a path, and the parameters in it."""
        found = self._fixed.get(path) or self._fixed.get(unquote(path))
        if found is not None:
            return found, {}
        for pattern, found in self._patterns:
            if (match := pattern.fullmatch(path)) is not None:
                return found, {name: unquote(value) for name, value in match.groupdict().items()}
        return (), {}

    async def dispatch(self, services: Services, raw_request: Request) -> Response | EventStream:
        """Answers a request. Raises ApiError for every failure before the first event, and nothing else."""
        match = self.find(raw_request.method, raw_request.path)
        route = match.route
        if route.status is not None:
            match.check()
            return route.status(services.engine)
        REQUEST_ID.set(raw_request.id or request_id(raw_request.headers.get(REQUEST_ID_HEADER.lower())))
        TRACEPARENT.set(raw_request.headers.get("traceparent"))
        try:
            match.check()
            check_enabled(route, services.settings)
            if route.is_admin and raw_request.is_job:
                message = f"{route.path} is for the operator of a worker, over HTTP; a job reaches any worker."
                raise ApiError(403, message, type="PermissionDeniedError")
            check_task(route, services)
            raw_request.parameters = match.parameters
            assert route.answer is not None
            answer = await route.answer(services, raw_request)
            if route.tasks and FORMAT_HEADER in raw_request.headers:
                await _tell_load(services, answer, raw_request.headers[FORMAT_HEADER])
        except ApiError as error:
            _note_error(services, raw_request, route, error)
            raise
        except Exception as error:
            log.exception("%r %r failed", raw_request.method[:20], raw_request.path[:200])
            failure = internal_error()
            _note_error(services, raw_request, route, failure)
            raise failure from error
        _count(services, raw_request, route, answer.status if isinstance(answer, Response) else 200)
        return answer


def plain_path(path: str) -> str:
    """Without a query and slashes at the end."""
    return path.partition("?")[0].rstrip("/")


def _pattern(path: str) -> re.Pattern[str]:
    """A parameter is one part of a path; at the end of it, all that is left."""
    parts = re.split(r"\{(\w+)\}", path)
    texts, names = parts[::2], parts[1::2]
    pattern = re.escape(texts[0])
    for name, text in zip(names, texts[1:], strict=True):
        pattern += f"(?P<{name}>{'[^/]+' if text else '.+'}){re.escape(text)}"
    return re.compile(pattern, re.DOTALL)


def check_enabled(route: Route, settings: Settings) -> None:
    """Raises ApiError 403 and 404 for a route that a setting turns on and this deployment has not."""
    if route.enabled_by is None or getattr(settings, route.enabled_by):
        return
    how = " to true" if isinstance(getattr(settings, route.enabled_by), bool) else ""
    hint = f"set {route.enabled_by.upper()}{how} for this route"
    if route.is_forbidden_without:
        raise ApiError(403, f"{route.path} is disabled: {hint}.", type="PermissionDeniedError")
    raise ApiError(404, f"Not Found: {hint}", type="Not Found")


def check_task(route: Route, services: Services) -> None:
    """Raises ApiError 400 for a route whose tasks the model does not do, once the engine has named its own."""
    if not route.tasks:
        return
    try:
        tasks = services.engine.info.tasks
    except ApiError:  # it is being started
        return
    if set(route.tasks).isdisjoint(tasks):
        message = (
            f"{route.path} needs a model that does {' or '.join(route.tasks)}. The model `{services.model_name}` does "
            f"{', '.join(tasks)}."
        )
        raise bad_request(message, "model")


async def _tell_load(services: Services, answer: Response | EventStream, form: str) -> None:
    """Adds the load to the answer's headers. A stream has begun by then: it ends here if this is cancelled."""
    try:
        answer.headers = {**answer.headers, **await load_headers(services, form)}
    except BaseException:
        if isinstance(answer, EventStream):
            await answer.events.aclose()
        raise


def _count(services: Services, raw_request: Request, route: Route, status: int) -> None:
    """Under the route's path as the table has it: what clients make up must not make new time series."""
    method = raw_request.method.upper()
    key = (route.path, method if method in _COUNTED_METHODS else "other", f"{status // 100}xx")
    services.metrics.requests[key] += 1


def _note_error(services: Services, raw_request: Request, route: Route, error: ApiError) -> None:
    _count(services, raw_request, route, error.status)
    if error.limit is not None:
        services.metrics.refused[error.limit] += 1
    if not error.is_logged:
        name = REQUEST_ID.get() or ""
        log_refusal(name, route.path, error.status, error.type, time.monotonic() - raw_request.arrived)
