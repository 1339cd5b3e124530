"""The chunks of a streamed answer from those of generated token ids: `/derender` with `stream`.

Each chunk is a request of its own, and the server keeps nothing between them. The client sends back the state that it
got with the last chunk: the tokens so far and the ids of the calls. They are read again, token by token, so that the
answer is the same whatever the sizes of the chunks are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.chat_message import delta_fields
from ember.front.api.exchange import Request, Response, new_id
from ember.front.api.samples import Piece, Sample
from ember.front.api.scale_out.generated import Reading
from ember.front.api.scale_out.schemas import (
    DerenderChatChunkRequest,
    DerenderCompletionChunkRequest,
    GeneratedPart,
    StreamState,
)
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.errors import bad_request
from ember.front.text.output import ToolCallStart
from ember.wire import SequenceOutput

ChunkRequest = DerenderChatChunkRequest | DerenderCompletionChunkRequest


async def derender_chat_chunk(services: Services, raw_request: Request) -> Response:
    """Answer with the chunk of a chat, and the state for the next one. Raises ApiError."""
    request = await parse_body(DerenderChatChunkRequest, raw_request.body)
    services.check_model(request.model)
    reading = Reading(services, await services.ready())
    await reading.of_chat(raw_request, request.chat_request)
    if reading.text.reader is not None:
        reading.text = replace(reading.text, reader=replace(reading.text.reader, is_whole=False))
    state = _state(request, "chatcmpl-")
    part = _part(request, reading, state)
    choices = []
    if part is not None:
        piece = await in_thread(request, _read, reading, part, state, request.prompt_token_ids)
        choice = {
            "index": part.index,
            "delta": {**({} if state.has_begun else {"role": reading.role}), **delta_fields(piece, reading.is_legacy)},
            "logprobs": reading.chat_logprobs(part),
            "finish_reason": piece.finish_reason,
        }
        choices.append(_ended(choice, part, piece, reading))
        state = _next(state, part)
    return _answer(request, reading, state, "chat.completion.chunk", choices)


async def derender_completion_chunk(services: Services, raw_request: Request) -> Response:
    """Answer with the chunk of a completion, and the state for the next one. Raises ApiError."""
    request = await parse_body(DerenderCompletionChunkRequest, raw_request.body)
    services.check_model(request.model)
    reading = Reading(services, await services.ready())
    await reading.of_completion(raw_request, request.completion_request)
    state = _state(request, "cmpl-")
    part = _part(request, reading, state)
    choices = []
    if part is not None:
        piece = await in_thread(request, _read, reading, part, state, request.prompt_token_ids)
        prompt = request.prompt_token_ids or []
        choice = {
            "index": part.index,
            "text": piece.text,
            "logprobs": reading.completion_logprobs(part, prompt, state.output_token_ids),
            "finish_reason": piece.finish_reason,
            "stop_reason": None,
        }
        choices.append(_ended(choice, part, piece, reading))
        state = _next(state, part)
    return _answer(request, reading, state, "text_completion", choices)


def _state(request: ChunkRequest, prefix: str) -> StreamState:
    state = request.stream_state or StreamState()
    return state.model_copy(
        update={"request_id": request.generate_chunk.request_id or state.request_id or new_id(prefix)}
    )


def _part(request: ChunkRequest, reading: Reading, state: StreamState) -> GeneratedPart | None:
    """The one choice of the chunk. A chunk that only has usage has none. Raises ApiError 400."""
    reading.check_prompt(request.prompt_token_ids or ())
    choices = request.generate_chunk.choices
    if len(choices) > 1:
        message = (
            f"A chunk may have at most one choice, got {len(choices)}: each choice is a stream with its own state."
        )
        raise bad_request(message, "generate_chunk.choices")
    if not choices:
        return None
    check = GeneratedPart(index=0, token_ids=state.output_token_ids)
    reading.check_choice(check, "stream_state.output")
    reading.check_choice(choices[0], "generate_chunk.choices.0", state.output_token_ids)
    return choices[0]


def _read(reading: Reading, part: GeneratedPart, state: StreamState, given_prompt: Sequence[int] | None) -> Piece:
    """What the tokens of the chunk add to those of the state. Calls that have begun get an id, in the state's list."""
    sample = Sample(part.index, reading.services.tokenizer, given_prompt or reading.prompt_token_ids, reading.text)
    earlier, piece = Piece(part.index), Piece(part.index)
    for token_id in state.output_token_ids:
        sample.push(SequenceOutput(1, 0, [token_id]), earlier)
    token_ids = part.token_ids or []
    reason, ended_by = reading.end_of(part)
    last = token_ids[-1:] if reason is not None else []
    for token_id in token_ids[: len(token_ids) - len(last)]:
        sample.push(SequenceOutput(1, 0, [token_id]), piece)
    if reason is not None:
        sample.push(SequenceOutput(1, 0, last, reason, stop_reason=ended_by), piece)
    for read in (earlier, piece):
        for position, delta in enumerate(read.deltas):
            if isinstance(delta, ToolCallStart):
                if delta.index == len(state.tool_call_ids):
                    state.tool_call_ids.append(delta.id or "")
                call_id = state.tool_call_ids[delta.index] if delta.index < len(state.tool_call_ids) else delta.id
                read.deltas[position] = replace(delta, id=call_id)
    return piece


def _ended(choice: dict[str, Any], part: GeneratedPart, piece: Piece, reading: Reading) -> dict[str, Any]:
    if piece.finish_reason is not None:
        choice["stop_reason"] = piece.stop_reason
    if reading.shows_token_ids:
        choice["token_ids"] = part.token_ids or []
    return choice


def _next(state: StreamState, part: GeneratedPart) -> StreamState:
    token_ids = [*state.output_token_ids, *(part.token_ids or ())]
    return state.model_copy(update={"has_begun": True, "output_token_ids": token_ids})


def _answer(
    request: ChunkRequest, reading: Reading, state: StreamState, kind: str, choices: list[dict[str, Any]]
) -> Response:
    chunk: dict[str, Any] = {
        "id": state.request_id,
        "object": kind,
        "created": int(time.time()),
        "model": reading.services.model_name,
        "choices": choices,
    }
    if request.generate_chunk.usage is not None:
        chunk["usage"] = _usage(request.generate_chunk.usage, request.prompt_tokens)
    return Response(200, {"chunk": chunk, "stream_state": state.model_dump()}, reading.headers)


def _usage(given: dict[str, Any], prompt_tokens: int | None) -> dict[str, Any]:
    completion_tokens = given.get("completion_tokens")
    if prompt_tokens is None or type(completion_tokens) is not int:
        return given
    return {**given, "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + completion_tokens}
