"""POST /invocations, the one route that SageMaker sends requests to: the body says which of the others is meant."""

from __future__ import annotations

from collections.abc import Sequence

from ember.front.api.body import parse_body
from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.route import Handler, Route
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request


def invoker(routes: Sequence[Route]) -> Handler:
    """The handler that answers with one of `routes`: with the one of the model's tasks of which the body has the most
    fields (`Route.identifying_fields`), the first of equal ones. It raises ApiError."""

    async def invoke(services: Services, raw_request: Request) -> Response | EventStream:
        tasks = (await services.ready()).tasks
        possible = [route for route in routes if not set(tasks).isdisjoint(route.tasks)]
        body = raw_request.body if isinstance(raw_request.body, dict) else {}
        given = {name for name, value in body.items() if value is not None}
        told = {
            route: max((len(group) for group in route.identifying_fields if given.issuperset(group)), default=0)
            for route in possible
        }
        found = sorted((route for route in possible if told[route]), key=lambda route: -told[route])
        if not found:
            raise bad_request(_nothing_known(possible, services, tasks), "body")
        chosen = found[0]
        if found[1:] and "ChatRequest" in chosen.about.body and not await _is_chat(raw_request):
            chosen = found[1]  # a completion
        assert chosen.answer is not None
        return await chosen.answer(services, raw_request)

    return invoke


def _nothing_known(possible: Sequence[Route], services: Services, tasks: Sequence[str]) -> str:
    start = "Cannot find suitable handler for request. Expected"
    if "generate" in tasks:
        return (
            f"{start} one of: ['ChatCompletionRequest', 'CompletionRequest'], which have `messages` or a `prompt`. The "
            f"model `{services.model_name}` does {', '.join(tasks)}."
        )
    groups = dict.fromkeys(
        " with ".join(f"`{name}`" for name in group) for route in possible for group in route.identifying_fields
    )
    return f"{start} one of: {', '.join(groups)}. The model `{services.model_name}` does {', '.join(tasks)}."


async def _is_chat(raw_request: Request) -> bool:
    try:
        await parse_body(ChatRequest, raw_request.body)
    except ApiError:
        return False
    return True
