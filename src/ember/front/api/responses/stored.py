"""The routes of stored responses: GET and DELETE /v1/responses/{id}, its input items, and cancelling it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.query import flag, whole_number
from ember.front.api.responses.background import Running, background_of
from ember.front.api.responses.store import HEARTBEAT_TIMEOUT, UNFINISHED, Item, Store, Stored, store_of
from ember.front.api.responses.translate import checked_include
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request

MAX_LISTED = 100
_FLAGS = {"true": True, "1": True, "false": False, "0": False, "": False}


async def get_response(services: Services, raw_request: Request) -> Response | EventStream:
    """The response, or with `stream=true` the events of one in the background. Raises ApiError."""
    name = raw_request.parameters["response_id"]
    running = background_of(services).get(name)
    query = raw_request.query
    flag(query, "include_obfuscation", _FLAGS)
    for field in ("include", "include[]"):
        if field in query:
            checked_include(query[field].split(","))
    if flag(query, "stream", _FLAGS):
        if running is None:
            await _stored(services, raw_request, name)
            raise bad_request(
                "Only a response that was made in the background, lately, can be streamed again.", "stream"
            )
        after = query.get("starting_after")
        most = max(running.num_events - 1, 0)
        return EventStream(running.follow(0 if after is None else _number("starting_after", after, 0, most) + 1))
    if running is not None:
        return Response(200, running.body)
    _, stored = await _stored(services, raw_request, name)
    return Response(200, stored.body)


async def delete_response(services: Services, raw_request: Request) -> Response:
    """Raises ApiError."""
    name = raw_request.parameters["response_id"]
    background = background_of(services)
    running = background.get(name)
    if running is not None:
        await _stopped(running)
        background.forget(name)
    store, stored = await _stored(services, raw_request, name)
    if stored.body["status"] in UNFINISHED:
        await store.send_command(name, "delete")
    await store.delete(name)
    return Response(200, {"id": name, "object": "response", "deleted": True})


async def cancel_response(services: Services, raw_request: Request) -> Response:
    """Stop a response in the background. One that is finished stays as it is. Raises ApiError."""
    name = raw_request.parameters["response_id"]
    running = background_of(services).get(name)
    if running is None:
        store, stored = await _stored(services, raw_request, name)
        if not stored.body["background"]:
            message = "Cannot cancel a synchronous response. Only one that was made with `background` can be cancelled."
            raise bad_request(message, "response_id")
        if stored.body["status"] in UNFINISHED and await store.send_command(name, "cancel"):
            stored = await _ended(store, stored)
        return Response(200, stored.body)
    await _stopped(running)
    return Response(200, running.body)


async def list_input_items(services: Services, raw_request: Request) -> Response:
    """The items of the response's input, with those of the responses before it, newest first. Raises ApiError."""
    query = raw_request.query
    store, stored = await _stored(services, raw_request, raw_request.parameters["response_id"])
    items: list[Item] = list(stored.items)
    while (previous := stored.previous_id) is not None:
        found = await store.get(previous)
        if found is None:
            break
        stored = found
        items = [*stored.all_items, *items]
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_request(f"`order` must be 'asc' or 'desc', got {order[:64]!r}.", "order")
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    for name in ("after", "before"):
        if name in query and query[name] not in ids:
            raise bad_request(f"`{name}`: the response has no item {query[name][:100]!r}.", name)
    if "before" in query:
        items = items[: ids.index(query["before"])]
    if "after" in query:
        items = items[ids.index(query["after"]) + 1 :]
    limit = _number("limit", query.get("limit", "20"), 1, MAX_LISTED)
    shown = items[:limit]
    return Response(
        200,
        {
            "object": "list",
            "data": [_shown(item) for item in shown],
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(items) > limit,
        },
    )


async def _stopped(running: Running) -> None:
    if running.task is not None and not running.is_over:
        running.cancel()
        await asyncio.wait([running.task])


async def _ended(store: Store, stored: Stored) -> Stored:
    """The response when the worker that makes it has ended it, or as it is after a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HEARTBEAT_TIMEOUT):
            while stored.body["status"] in UNFINISHED:
                await asyncio.sleep(0.1)
                stored = await store.get(stored.id) or stored
    return stored


def _shown(item: Item) -> dict[str, Any]:
    """The item as OpenAI lists it: a message has its type, and parts in place of a text."""
    if item.get("type", "message") != "message":
        return item
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return {"status": "completed", **item, "type": "message", "content": content}


async def _stored(services: Services, raw_request: Request, name: str) -> tuple[Store, Stored]:
    """Raises ApiError 404."""
    store = store_of(services, raw_request)
    stored = await store.get(name) if store is not None else None
    if store is None or stored is None:
        why = "RESPONSES_STORE is off" if store is None else "it was not stored, or has expired"
        raise ApiError(404, f"Response with id {name[:100]!r} not found: {why}.", param="response_id")
    return store, stored


def _number(name: str, given: str, least: int, most: int) -> int:
    number = whole_number(given, least, most)
    if number is None:
        raise bad_request(f"`{name}` must be a whole number from {least} to {most}, got {given[:64]!r}.", name)
    return number
