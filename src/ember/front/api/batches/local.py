"""Answers a batch's requests with the routes of this worker."""

from __future__ import annotations

from ember.front.api.batches.lines import BatchLine
from ember.front.api.batches.results import Answer
from ember.front.api.batches.run import GaveUp, Reply
from ember.front.api.exchange import EventStream, Request, request_id
from ember.front.api.route import Route
from ember.front.api.router import check_enabled
from ember.front.api.routes import ROUTER
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request
from ember.settings import Settings

_NOT_IN_A_BATCH = ("/v1/batches", "/v1/files", "/generate_stream")


def batch_route(url: str, settings: Settings) -> Route:
    """The route of a request in a batch. Raises ApiError for a path that no batch of this deployment can use."""
    found = ROUTER.find("POST", url)
    route = found.route
    names_kept = "{" in route.path  # it names what an earlier request has kept, and requests of a batch keep nothing
    if not found.is_allowed or route.answer is None:
        raise bad_request(f"No route answers a POST of {url[:100]!r}.", "url")
    if route.is_admin or names_kept or route.path.startswith(_NOT_IN_A_BATCH):
        raise bad_request(f"{route.path} cannot be used in a batch.", "url")
    check_enabled(route, settings)
    return route


async def ask(services: Services, line: BatchLine) -> Reply:
    """Answer one request. It is no request over HTTP: what routes keep for later requests is not kept."""
    name = request_id()
    route = ROUTER.find("POST", line.url).route
    request = Request("POST", line.url, line.body, is_job=True, id=name)
    try:
        batch_route(line.url, services.settings)
        await services.ready()
        answer = await ROUTER.dispatch(services, request)
    except ApiError as error:
        if error.status >= 500 and services.engine.is_dead:  # the request has no answer, and no other will have one
            raise GaveUp(error.message) from None
        after = error.headers.get("retry-after")
        may_retry = error.headers.get("x-should-retry") != "false"
        return Reply(Answer(error.status, name, route.errors.body(error)), may_retry, float(after) if after else None)
    if isinstance(answer, EventStream):
        await answer.events.aclose()
        refusal = bad_request("An answer in a batch cannot be a stream.", "stream")
        return Reply(Answer(refusal.status, name, route.errors.body(refusal)))
    return Reply(Answer(answer.status, name, answer.body))
