"""POST /v1/chat/completions/batch: many conversations with the same options, one choice for each."""

from __future__ import annotations

import asyncio
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.chat import create_chat_completion
from ember.front.api.exchange import Request, Response
from ember.front.api.schemas import BatchChatRequest
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request

_NOT_HERE = ("stream", "stream_options", "tools", "functions", "use_beam_search")
_OF_PROMPT = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "metrics")


async def create_chat_batch(services: Services, raw_request: Request) -> Response:
    """Choice i answers conversation i. All run at once, and one that fails ends them all. Raises ApiError."""
    request = await parse_body(BatchChatRequest, raw_request.body)
    services.check_model(request.model)
    for name in _NOT_HERE:
        if raw_request.body.get(name):
            raise bad_request(f"`{name}` is not supported by /v1/chat/completions/batch.", name)
    if request.n not in (None, 1):
        raise bad_request(f"n must be 1 in /v1/chat/completions/batch, got {request.n}.", "n")
    tasks = [
        asyncio.create_task(_answer(services, raw_request, {**raw_request.body, "messages": conversation}, index))
        for index, conversation in enumerate(raw_request.body["messages"])
    ]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Response(200, _joined([answer.body for answer in answers]), answers[0].headers)


async def _answer(services: Services, raw_request: Request, body: dict[str, Any], index: int) -> Response:
    """Raises ApiError, whose `param` says in which conversation the fault is."""
    try:
        answer = await create_chat_completion(services, Request("POST", raw_request.path, body, raw_request.headers))
    except ApiError as error:
        if error.param is not None and error.param.partition(".")[0] == "messages":
            error.param = f"messages.{index}{error.param.removeprefix('messages')}"
        raise
    assert isinstance(answer, Response)
    return answer


def _joined(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """One answer with a choice of each; what belongs to a prompt moves into its choice."""
    choices = []
    for index, body in enumerate(bodies):
        (choice,) = body["choices"]
        own = {name: body[name] for name in _OF_PROMPT if body.get(name) is not None}
        choices.append({**choice, **own, "index": index})
    whole = {name: value for name, value in bodies[0].items() if name not in _OF_PROMPT}
    return {**whole, "choices": choices, "usage": _sum([body["usage"] for body in bodies])}


def _sum(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of usage objects: numbers are added up, also those in the details; what nobody has stays null."""
    total: dict[str, Any] = {}
    for name in parts[0]:
        values = [part[name] for part in parts if part.get(name) is not None]
        if not values:
            total[name] = None
        elif isinstance(values[0], dict):
            total[name] = _sum(values)
        else:
            total[name] = sum(values)
    return total
