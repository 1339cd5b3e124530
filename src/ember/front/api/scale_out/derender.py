"""POST /v1/chat/completions/derender and /v1/completions/derender: from generated token ids to the answer of a chat or
completion, as this server would have given it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

from ember.front.api.body import parse_body
from ember.front.api.chat_message import message_fields
from ember.front.api.exchange import Request, Response, new_id
from ember.front.api.samples import Piece, Sample
from ember.front.api.scale_out.derender_stream import derender_chat_chunk, derender_completion_chunk
from ember.front.api.scale_out.generated import Reading
from ember.front.api.scale_out.schemas import DerenderChatRequest, DerenderCompletionRequest, Generated
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.api.usage import usage_body
from ember.front.errors import bad_request
from ember.wire import SequenceOutput

Value = TypeVar("Value")


async def derender_chat(services: Services, raw_request: Request) -> Response:
    """Answer with the chat completion that generated token ids make. Raises ApiError."""
    if _is_stream(raw_request):
        return await derender_chat_chunk(services, raw_request)
    request = await parse_body(DerenderChatRequest, raw_request.body)
    services.check_model(request.model)
    reading = Reading(services, await services.ready())
    await reading.of_chat(raw_request, request.chat_request)
    generated = request.generate_response
    prompt = request.prompt_token_ids or generated.prompt_token_ids or reading.prompt_token_ids
    _check(generated, prompt, reading, "generate_response")
    pieces = await in_thread(request, _pieces, reading, generated, prompt)
    choices = [
        {
            "index": choice.index,
            "message": {"role": reading.role, **message_fields(piece, reading.is_legacy)},
            "logprobs": reading.chat_logprobs(choice),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
            "token_ids": choice.token_ids if reading.shows_token_ids else None,
            "routed_experts": None,
            "weight_versions": None,
        }
        for choice, piece in zip(generated.choices, pieces, strict=True)
    ]
    num_prompt = request.prompt_tokens if request.prompt_tokens is not None else len(prompt)
    body = {
        **_head(reading, generated, "chatcmpl-", "chat.completion"),
        "choices": choices,
        "usage": usage_body(num_prompt, _num_tokens([generated]), None),
        "prompt_logprobs": generated.prompt_logprobs,
        "prompt_token_ids": None,
        "prompt_text": None,
        "metrics": generated.metrics,
    }
    return Response(200, body, reading.headers)


async def derender_completion(services: Services, raw_request: Request) -> Response:
    """Answer with the completion that generated token ids make. Raises ApiError."""
    if _is_stream(raw_request):
        return await derender_completion_chunk(services, raw_request)
    request = await parse_body(DerenderCompletionRequest, raw_request.body)
    services.check_model(request.model)
    reading = Reading(services, await services.ready())
    all_generated = request.generate_responses
    given_prompts = _one_each(request.prompt_token_ids, "prompt_token_ids", len(all_generated))
    counts = _one_each(request.prompt_tokens, "prompt_tokens", len(all_generated))
    await reading.of_completion(raw_request, request.completion_request)
    choices: list[dict[str, Any]] = []
    num_prompt = 0
    for position, (generated, count, given_prompt) in enumerate(zip(all_generated, counts, given_prompts, strict=True)):
        prompt = given_prompt or generated.prompt_token_ids or []
        _check(generated, prompt, reading, f"generate_responses.{position}")
        num_prompt += len(prompt) if count is None else count
        pieces = await in_thread(request, _pieces, reading, generated, prompt)
        for choice, piece in zip(generated.choices, pieces, strict=True):
            choices.append(
                {
                    "index": len(choices),
                    "text": piece.text,
                    "logprobs": reading.completion_logprobs(choice, prompt),
                    "finish_reason": piece.finish_reason,
                    "stop_reason": piece.stop_reason,
                    "token_ids": choice.token_ids if reading.shows_token_ids else None,
                    "prompt_logprobs": generated.prompt_logprobs,
                    "prompt_token_ids": None,
                    "routed_experts": None,
                    "weight_versions": None,
                }
            )
    body = {
        **_head(reading, all_generated[0], "cmpl-", "text_completion"),
        "choices": choices,
        "usage": usage_body(num_prompt, _num_tokens(all_generated), None),
        "metrics": all_generated[0].metrics,
    }
    return Response(200, body, reading.headers)


def _is_stream(raw_request: Request) -> bool:
    return isinstance(raw_request.body, dict) and bool(raw_request.body.get("stream"))


def _one_each(given: Sequence[Value] | None, name: str, count: int) -> Sequence[Value | None]:
    """A list with one entry for each of the answers, which are None without it. Raises ApiError 400 for another
    length."""
    if given and len(given) != count:
        raise bad_request(f"{name} length ({len(given)}) must equal generate_responses length ({count})", name)
    return given or [None] * count


def _check(generated: Generated, prompt: Sequence[int], reading: Reading, place: str) -> None:
    """Raises ApiError 400."""
    reading.check_prompt(prompt)
    for number, choice in enumerate(generated.choices):
        where = f"{place}.choices.{number}"
        if not choice.token_ids and choice.finish_reason != "abort":
            raise bad_request(f"`{where}.token_ids` must be a non-empty list.", f"{where}.token_ids")
        reading.check_choice(choice, where)


def _pieces(reading: Reading, generated: Generated, prompt: Sequence[int]) -> list[Piece]:
    """The output of each choice, read to its end."""
    pieces = []
    for choice in generated.choices:
        sample = Sample(choice.index, reading.services.tokenizer, prompt, reading.text)
        piece = Piece(choice.index)
        reason, ended_by = reading.end_of(choice)
        output = SequenceOutput(1, 0, choice.token_ids or [], reason or "stop", stop_reason=ended_by)
        sample.push(output, piece)
        pieces.append(piece)
    return pieces


def _num_tokens(all_generated: Sequence[Generated]) -> int:
    return sum(len(choice.token_ids or []) for generated in all_generated for choice in generated.choices)


def _head(reading: Reading, generated: Generated, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": generated.request_id or new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": reading.services.model_name,
        "service_tier": None,
        "system_fingerprint": reading.services.fingerprint(reading.info),
        "kv_transfer_params": generated.kv_transfer_params,
        "ec_transfer_params": generated.ec_transfer_params,
    }
