"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ember.front.api.anthropic.schemas import CountTokensRequest, MessagesRequest
from ember.front.api.anthropic.translate import FIELD_NAMES, chat_body, own_error
from ember.front.api.blocks import (
    Block,
    BlockDelta,
    BlockEvent,
    BlockReader,
    BlockStart,
    arguments_of,
    is_cut,
    whole_blocks,
)
from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall
from ember.front.api.chat import open_chat
from ember.front.api.chat_translation import count_chat_tokens
from ember.front.api.exchange import Event, EventStream, Request, Response, new_id
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.api.streaming import json_text, start_stream
from ember.front.errors import ApiError, aborted


async def create_message(services: Services, raw_request: Request) -> Response | EventStream:
    """Raises ApiError for every failure before the first token."""
    request = await parse_body(MessagesRequest, raw_request.body)
    services.check_model(request.model)
    body, ignored = chat_body(request, services)
    # Clients have to send a limit and do not know the context: a larger one means what the context leaves.
    body["max_tokens"] = min(request.max_tokens, (await services.ready()).max_model_len)
    try:
        with FIELD_NAMES.in_errors():
            call = await open_chat(services, raw_request, await parse_body(ChatRequest, body), "msg_", ignored)
    except ApiError as error:
        raise own_error(error) from None
    call.id = new_id("msg_")
    if request.stream:
        return EventStream(await start_stream(call, _Events(call)), call.headers)
    async with call.runs() as runs:
        (piece,) = await runs.collect()
    runs.check_not_aborted()
    blocks = whole_blocks(piece)
    message = {
        **_head(call),
        "content": [_whole_block(block) for block in blocks],
        **_stop(piece, blocks),
        "usage": _usage(runs),
    }
    return Response(200, message, call.headers)


async def count_tokens(services: Services, raw_request: Request) -> Response:
    """Count the tokens of a conversation without running it. Raises ApiError."""
    request = await parse_body(CountTokensRequest, raw_request.body)
    services.check_model(request.model)
    await services.described()
    body, ignored = chat_body(request, services)
    with FIELD_NAMES.in_errors():
        count, headers = await count_chat_tokens(body, ignored, services)
    return Response(200, {"input_tokens": count}, headers)


def _head(call: ApiCall) -> dict[str, Any]:
    return {"id": call.id, "type": "message", "role": "assistant", "model": call.services.model_name}


def _stop(piece: Piece, blocks: Sequence[Block]) -> dict[str, Any]:
    """`stop_reason` and `stop_sequence` of a finished sample."""
    was_cut = is_cut(piece, blocks)
    by_string = isinstance(piece.stop_reason, str) and piece.finish_reason != "repetition"
    if by_string and (piece.finish_reason == "stop" or was_cut):
        return {"stop_reason": "stop_sequence", "stop_sequence": piece.stop_reason}
    if was_cut:
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    has_calls = any(block.kind == "call" for block in blocks)
    return {"stop_reason": "tool_use" if has_calls else "end_turn", "stop_sequence": None}


def _usage(runs: Runs) -> dict[str, Any]:
    """Tokens of the prompt that the prefix cache had are counted apart, as Anthropic counts them."""
    cached = runs.cached_tokens()
    return {
        "input_tokens": runs.prompt_tokens() - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": runs.completion_tokens(),
    }


def _signature(block: Block) -> str:
    """What proves a block of thinking. It is read by nobody here: a client sends it back with the block."""
    return hashlib.sha256(block.text.encode("utf-8", "replace")).hexdigest()


def _whole_block(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": _signature(block)}
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": arguments_of(block) or {}}


class _Events:
    """Writes the events of one stream. Each has its type as its name."""

    def __init__(self, call: ApiCall) -> None:
        self._call = call
        self._reader = BlockReader()
        self._last: Piece | None = None

    def opening(self, runs: Runs) -> Sequence[Event]:
        runs.check_not_aborted()
        usage = {**_usage(runs), "output_tokens": 0}
        message = {**_head(self._call), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return (_event("message_start", message=message), _event("ping"))

    def deltas(self, piece: Piece, runs: Runs) -> Sequence[Event]:
        if piece.finish_reason == "abort":  # before its blocks end: a client would take a call that was cut for whole
            raise aborted()
        self._last = piece
        return [event for found in self._reader.push(piece) for event in self._of(found)]

    def closing(self, runs: Runs) -> Sequence[Event]:
        assert self._last is not None
        stop = _stop(self._last, self._reader.blocks)
        return (_event("message_delta", delta=stop, usage=_usage(runs)), _event("message_stop"))

    def _of(self, found: BlockEvent) -> list[Event]:
        index = found.block.index
        if isinstance(found, BlockStart):
            return [_event("content_block_start", index=index, content_block=_empty_block(found.block))]
        if isinstance(found, BlockDelta):
            return [_event("content_block_delta", index=index, delta=_delta(found.block, found.text))]
        ending = [_event("content_block_stop", index=index)]
        if found.block.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": _signature(found.block)}
            ending.insert(0, _event("content_block_delta", index=index, delta=delta))
        return ending


def _empty_block(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": ""}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _delta(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    if block.kind == "text":
        return {"type": "text_delta", "text": text}
    return {"type": "input_json_delta", "partial_json": text}


def _event(kind: str, **fields: Any) -> Event:
    return Event(json_text({"type": kind, **fields}), kind)
