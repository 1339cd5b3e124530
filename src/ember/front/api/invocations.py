"""POST /invocations, the one route that SageMaker sends requests to: the body says which of the others is meant."""

from __future__ import annotations

from ember.front.api.body import parse_body
from ember.front.api.chat import create_chat_completion
from ember.front.api.completions import create_completion
from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.pooling.routes import invoked
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request


async def invoke(services: Services, raw_request: Request) -> Response | EventStream:
    """Answer a chat if the body has `messages`, or a completion if it has a `prompt`. With both it is a chat, if that
    is valid. With a pooling model the body is one of the pooling routes'. Raises ApiError."""
    given = raw_request.body if isinstance(raw_request.body, dict) else {}
    tasks = (await services.ready()).tasks
    if "generate" not in tasks:
        pooling = invoked(given, tasks)
        if pooling is None:
            message = (
                "Cannot find suitable handler for request. Expected `input`, `messages`, `texts`, `query` with "
                f"`documents`, or `text_1` with `text_2`: {services.model_name} does {', '.join(tasks)}."
            )
            raise bad_request(message, "body")
        return await pooling(services, raw_request)
    has_messages, has_prompt = (given.get(name) is not None for name in ("messages", "prompt"))
    if has_messages and has_prompt:
        has_messages = await _is_chat(raw_request)
    if has_messages:
        return await create_chat_completion(services, raw_request)
    if has_prompt:
        return await create_completion(services, raw_request)
    message = (
        "Cannot find suitable handler for request. Expected one of: ['ChatCompletionRequest', 'CompletionRequest'], "
        "which have `messages` or a `prompt`."
    )
    raise bad_request(message, "body")


async def _is_chat(raw_request: Request) -> bool:
    try:
        await parse_body(ChatRequest, raw_request.body)
    except ApiError:
        return False
    return True
