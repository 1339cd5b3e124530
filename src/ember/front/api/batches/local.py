"""Answers a batch's requests with the routes of this worker."""

from __future__ import annotations

from ember.front.api.batches.lines import BatchLine
from ember.front.api.batches.results import Answer
from ember.front.api.batches.run import GaveUp, Reply
from ember.front.api.exchange import EventStream, Request, request_id
from ember.front.api.routes import ROUTER
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request

_NOT_IN_A_BATCH = ("/v1/batches", "/v1/files")


async def ask(services: Services, line: BatchLine) -> Reply:
    """Answer one request. It is no request over HTTP: what routes keep for later requests is not kept."""
    name = request_id()
    route = ROUTER.find("POST", line.url).route
    request = Request("POST", line.url, line.body, is_job=True, id=name)
    try:
        if route.is_admin or route.path.startswith(_NOT_IN_A_BATCH):
            raise bad_request(f"{route.path} cannot be used in a batch.", "url")
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
