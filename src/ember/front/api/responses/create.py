"""POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from ember.front.api.body import parse_body, shown
from ember.front.api.chat import open_chat
from ember.front.api.chat_translation import count_chat_tokens, required_string
from ember.front.api.exchange import Event, EventStream, Request, Response, new_id
from ember.front.api.logprob_options import checked_logprobs
from ember.front.api.responses.background import Running, background_of
from ember.front.api.responses.items import as_items
from ember.front.api.responses.output import Reply, ResponseEvents
from ember.front.api.responses.schemas import InputTokensRequest, ResponsesRequest
from ember.front.api.responses.store import UNFINISHED, Item, Store, Stored, store_of
from ember.front.api.responses.translate import FIELD_NAMES, chat_body
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.api.streaming import StartedEvents, start_stream
from ember.front.errors import ApiError, bad_request, internal_error

log = logging.getLogger(__name__)

_PREFIXES = {"function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}  # of the ids of items
MAX_METADATA = 16
MAX_CHAIN = 10_000  # responses that one continues, one after the other


async def create_response(services: Services, raw_request: Request) -> Response | EventStream:
    """Raises ApiError for every failure before the first token."""
    request = await parse_body(ResponsesRequest, raw_request.body)
    services.check_model(request.model)
    _check_metadata(request.metadata)
    background_of(services).trim()
    store = store_of(services, raw_request)
    keeps = store if request.store is not False else None
    if request.background and keeps is None:
        message = "background can only be used when `store` is true"
        message += "." if store is not None else ", and RESPONSES_STORE is off here."
        raise bad_request(message, "background")
    history, items = await conversation(request, store)
    body, ignored = chat_body(request, history, items, services)
    with FIELD_NAMES.in_errors():
        chat = await parse_body(ChatRequest, body)
        call = await open_chat(services, raw_request, chat, "resp_", ignored, waits=not request.background)
    checked_logprobs(request.top_logprobs, "sample", "top_logprobs", services.settings, call.info)
    call.id = new_id("resp_")  # it names a stored response, so another request with the same X-Request-Id needs another
    reply = Reply(call, request, is_stored=keeps is not None)
    if request.background:
        assert keeps is not None
        return await _in_background(services, reply, keeps, items)
    if request.stream:
        return EventStream(await _stream(reply, keeps, items), call.headers)
    async with call.runs() as runs:
        while (pieces := await runs.next()) is not None:
            for piece in pieces:
                reply.push(piece)
    answer = reply.finished(runs)
    await _keep(keeps, answer, items)
    return Response(200, answer, call.headers)


async def count_input_tokens(services: Services, raw_request: Request) -> Response:
    """Count the tokens of a response's prompt without running it. Raises ApiError."""
    request = await parse_body(InputTokensRequest, raw_request.body)
    services.check_model(request.model)
    await services.described()
    history, items = await conversation(request, store_of(services, raw_request))
    body, ignored = chat_body(request, history, items, services)
    with FIELD_NAMES.in_errors():
        count, headers = await count_chat_tokens(body, ignored, services)
    return Response(200, {"object": "response.input_tokens", "input_tokens": count}, headers)


def _check_metadata(metadata: dict[str, Any] | None) -> None:
    """Raises ApiError 400."""
    if metadata is None:
        return
    if len(metadata) > MAX_METADATA:
        raise bad_request(f"`metadata` must have at most {MAX_METADATA} keys, got {len(metadata)}.", "metadata")
    for name, value in metadata.items():
        if not isinstance(value, str) or len(value) > 512 or len(name) > 64:
            message = f"`metadata.{name[:64]}` must be a string of at most 512 characters under a key of at most 64, "
            message += f"got {shown(value)}."
            raise bad_request(message, "metadata")


async def conversation(request: InputTokensRequest, store: Store | None) -> tuple[list[Item], list[Item]]:
    """The items of the responses that this one continues, and its own, each with an id. Raises ApiError."""
    history = await _history(request.previous_response_id, store)
    items = []
    for index, item in enumerate(as_items(request.input or [])):
        if item.get("type") == "item_reference" or (item.keys() == {"id"}):
            item = await _referred(item, history, store, f"input.{index}")
        prefix = _PREFIXES.get(str(item.get("type")), "msg_")
        items.append({**item, "id": item["id"] if isinstance(item.get("id"), str) else new_id(prefix)})
    return history, items


async def _history(previous_id: str | None, store: Store | None) -> list[Item]:
    """Raises ApiError 400 and 404."""
    found: list[Stored] = []
    name, param = previous_id, "previous_response_id"
    while name is not None:
        if store is None:
            message = (
                "`previous_response_id` needs stored responses; RESPONSES_STORE is off here. Send the whole `input`."
            )
            raise bad_request(message, param)
        stored = await store.get(name)
        if stored is None:
            message = (
                f"Previous response with id {name[:100]!r} not found: it was not stored, was deleted or has expired."
            )
            if found:
                message += f" The response {found[-1].id!r} continues it."
            raise ApiError(404, message, param=param)
        if stored.body["status"] in UNFINISHED:
            raise bad_request(f"The response {name[:100]!r} is not finished.", param)
        found.append(stored)
        if len(found) > MAX_CHAIN:
            raise bad_request(f"At most {MAX_CHAIN} responses can follow each other.", param)
        name = stored.previous_id
    return [item for stored in reversed(found) for item in stored.all_items]


async def _referred(reference: Item, history: list[Item], store: Store | None, place: str) -> Item:
    """The item of a reference. Raises ApiError 400 and 404."""
    item_id = required_string(reference, "id", place)
    item = next((item for item in history if item.get("id") == item_id), None)
    if item is None and store is not None:
        item = await store.item(item_id)
    if item is None:
        message = f"`{place}`: item with id {item_id[:100]!r} not found: its response was not stored, or has expired."
        raise ApiError(404, message, param=place)
    return item


async def _keep(store: Store | None, body: dict[str, Any], items: list[Item]) -> None:
    if store is not None:
        await store.put(Stored(body, items))


# ------------------------------------------------------------------------------------------------------------ stream


async def _stream(reply: Reply, store: Store | None, items: list[Item]) -> StartedEvents:
    """The events of a response. An error before the first token is raised. Raises ApiError."""
    writer = ResponseEvents(reply)
    started = await start_stream(reply.call, writer)
    events = _events(started, writer, store, items)
    return StartedEvents(await anext(events, None), events)


async def _events(
    started: StartedEvents, writer: ResponseEvents, store: Store | None, items: list[Item]
) -> AsyncGenerator[Event, None]:
    """The events of a response. An error in the middle is `response.failed`. The response is stored before its last
    event is sent, so that the next request can name it."""
    try:
        async for event in started:
            if writer.body is not None:
                await _keep(store, writer.body, items)
            yield event
    except ApiError as error:
        failed = writer.failed(error)
        assert writer.body is not None
        await _keep(store, writer.body, items)
        yield failed
    finally:
        await started.aclose()


# -------------------------------------------------------------------------------------------------------- background


async def _in_background(services: Services, reply: Reply, store: Store, items: list[Item]) -> Response | EventStream:
    """Start the response and answer at once. Raises ApiError 500 where it cannot be stored."""
    running = Running(reply.body("queued"))
    await store.heartbeat([reply.call.id])
    await store.put(Stored(running.body, items))
    running.task = asyncio.create_task(_work(running, reply, store, items))
    services.tasks.add(running.task)
    running.task.add_done_callback(services.tasks.discard)
    await asyncio.sleep(0)  # the task begins: from here on it handles its being cancelled
    background_of(services).add(reply.call.id, running, store)
    if reply.request.stream:
        return EventStream(running.follow(0), reply.call.headers)
    return Response(200, {**running.body, "status": "queued"}, reply.call.headers)


async def _work(running: Running, reply: Reply, store: Store, items: list[Item]) -> None:
    """Make a response to its end, whatever that is, and store it."""
    writer = ResponseEvents(reply)
    body = reply.body("failed", error=internal_error())
    running.add(writer.created("queued"))
    try:
        running.body = reply.body("in_progress")
        started = await start_stream(reply.call, writer)
        async for event in _events(started, writer, None, items):
            running.add(event)
        assert writer.body is not None
        body = writer.body
    except asyncio.CancelledError:
        running.add(writer.cancelled())
        assert writer.body is not None
        body = writer.body
    except ApiError as error:  # before the first token
        running.add(writer.failed(error))
        assert writer.body is not None
        body = writer.body
    except Exception:
        log.exception("a response in the background failed")
    running.is_ending = True
    try:
        commands = await store.heartbeat([reply.call.id])
        if not running.is_deleted and commands.get(reply.call.id) != "delete":
            await _keep(store, body, items)
    except ApiError as error:
        log.error("a response in the background was not stored: %s", error.message)
    running.end(body)
    background_of(reply.call.services).trim()
