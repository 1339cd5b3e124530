"""POST /v1/chat/completions/derender and /v1/completions/derender: from generated token ids to the answer of a chat or
completion, as this server would have given it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ember.front.api.body import parse_body
from ember.front.api.chat import open_chat
from ember.front.api.chat_message import message_fields
from ember.front.api.chat_prompt import response_role
from ember.front.api.completions import open_completion
from ember.front.api.exchange import Request, Response, new_id
from ember.front.api.logprobs import CompletionLogprobs, TokenNames, chat_logprobs
from ember.front.api.samples import Piece, Sample, TextOptions
from ember.front.api.scale_out.schemas import (
    DerenderChatRequest,
    DerenderCompletionRequest,
    Generated,
    GeneratedChoice,
)
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.api.usage import usage_body
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import ApiError, bad_request
from ember.wire import Ready, SequenceOutput, TokenLogprobs

Body = TypeVar("Body", DerenderChatRequest, DerenderCompletionRequest)
Value = TypeVar("Value")
_STREAM = "`stream` must be false: send a whole answer of /inference/v1/generate."


async def derender_chat(services: Services, raw_request: Request) -> Response:
    """Answer with the chat completion that generated token ids make. Raises ApiError."""
    request, info = await _opened(services, raw_request, DerenderChatRequest)
    generated = request.generate_response
    text, role, as_ids = _plain_text(services, info), services.settings.response_role, False
    prompt = request.prompt_token_ids or generated.prompt_token_ids
    headers: dict[str, str] = {}
    chat = request.chat_request
    if chat is not None:
        with _in_field("chat_request"):
            services.check_model(chat.model)
            call = await open_chat(services, raw_request, chat, "chatcmpl-")
        text, role, headers = call.specs[0].text, response_role(chat, services), call.headers
        prompt, as_ids = prompt or call.specs[0].prompt.token_ids, bool(chat.return_tokens_as_token_ids)
    elif services.reasoning_format is not None or services.tool_format is not None:
        message = (
            "`chat_request` is required: this model's outputs are read for reasoning or tool calls, which need it."
        )
        raise bad_request(message, "chat_request")
    prompt = prompt or []
    _check(generated, prompt, info, "generate_response")
    pieces = await in_thread(request, _pieces, services, text, generated, prompt)
    num_top = None if chat is None or not chat.logprobs else chat.top_logprobs or 0
    names = TokenNames(services.tokenizer, as_ids)
    choices = [
        {
            "index": choice.index,
            "message": {"role": role, **message_fields(piece, bool(chat is not None and chat.functions))},
            "logprobs": _chat_logprobs(choice, num_top, names),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
            "token_ids": choice.token_ids if chat is not None and chat.return_token_ids else None,
            "routed_experts": None,
            "weight_versions": None,
        }
        for choice, piece in zip(generated.choices, pieces, strict=True)
    ]
    num_prompt = request.prompt_tokens if request.prompt_tokens is not None else len(prompt)
    body = {
        **_head(services, info, generated, "chatcmpl-", "chat.completion"),
        "choices": choices,
        "usage": usage_body(num_prompt, _num_tokens([generated]), None),
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "metrics": None,
    }
    return Response(200, body, headers)


async def derender_completion(services: Services, raw_request: Request) -> Response:
    """Answer with the completion that generated token ids make. Raises ApiError."""
    request, info = await _opened(services, raw_request, DerenderCompletionRequest)
    all_generated = request.generate_responses
    given_prompts = _one_each(request.prompt_token_ids, "prompt_token_ids", len(all_generated))
    counts = _one_each(request.prompt_tokens, "prompt_tokens", len(all_generated))
    text, num_top, as_ids, with_ids = _plain_text(services, info), None, False, False
    headers: dict[str, str] = {}
    asked = request.completion_request
    if asked is not None:
        with _in_field("completion_request"):
            services.check_model(asked.model)
            call = await open_completion(services, raw_request, asked)
        text, headers, num_top = call.specs[0].text, call.headers, asked.logprobs
        as_ids, with_ids = bool(asked.return_tokens_as_token_ids), bool(asked.return_token_ids)
    names = TokenNames(services.tokenizer, as_ids)
    choices: list[dict[str, Any]] = []
    num_prompt = 0
    for position, (generated, count, given_prompt) in enumerate(zip(all_generated, counts, given_prompts, strict=True)):
        prompt = given_prompt or generated.prompt_token_ids or []
        _check(generated, prompt, info, f"generate_responses.{position}")
        num_prompt += len(prompt) if count is None else count
        pieces = await in_thread(request, _pieces, services, text, generated, prompt)
        for choice, piece in zip(generated.choices, pieces, strict=True):
            columns = _completion_logprobs(services, choice, num_top, names, text, prompt)
            choices.append(
                {
                    "index": len(choices),
                    "text": piece.text,
                    "logprobs": columns,
                    "finish_reason": piece.finish_reason,
                    "stop_reason": piece.stop_reason,
                    "token_ids": choice.token_ids if with_ids else None,
                    "prompt_logprobs": None,
                    "prompt_token_ids": None,
                    "routed_experts": None,
                    "weight_versions": None,
                }
            )
    body = {
        **_head(services, info, all_generated[0], "cmpl-", "text_completion"),
        "choices": choices,
        "usage": usage_body(num_prompt, _num_tokens(all_generated), None),
        "metrics": None,
    }
    return Response(200, body, headers)


async def _opened(services: Services, raw_request: Request, schema: type[Body]) -> tuple[Body, Ready]:
    """The body of a request, and the engine's description of itself. Raises ApiError."""
    if isinstance(raw_request.body, dict) and raw_request.body.get("stream"):
        raise bad_request(_STREAM, "stream")
    request = await parse_body(schema, raw_request.body)
    services.check_model(request.model)
    return request, await services.ready()


@contextmanager
def _in_field(name: str) -> Iterator[None]:
    """Let the errors of a request inside this one name the field that it is in."""
    try:
        yield
    except ApiError as error:
        error.param = None if error.param is None else f"{name}.{error.param.removeprefix('body.')}"
        raise


def _one_each(given: Sequence[Value] | None, name: str, count: int) -> Sequence[Value | None]:
    """A list with one entry for each of the answers, which are None without it. Raises ApiError 400 for another
    length."""
    if given and len(given) != count:
        raise bad_request(f"{name} length ({len(given)}) must equal generate_responses length ({count})", name)
    return given or [None] * count


def _plain_text(services: Services, info: Ready) -> TextOptions:
    """How an output becomes text where no request says so."""
    skips = services.generation_defaults.get("skip_special_tokens") is not False
    return TextOptions(skip_special_tokens=skips, end_token_ids=frozenset(info.eos_token_ids))


def _check(generated: Generated, prompt: Sequence[int], info: Ready, place: str) -> None:
    """Raises ApiError 400 for tokens that the model does not have, and for log probabilities of other tokens."""
    check_token_ids(prompt, info, "prompt_token_ids")
    for number, choice in enumerate(generated.choices):
        where = f"{place}.choices.{number}"
        token_ids = choice.token_ids or []
        check_token_ids(token_ids, info, f"{where}.token_ids")
        if choice.finish_reason == "error":
            raise bad_request(f"`{where}` is not an answer: its finish_reason is 'error'.", f"{where}.finish_reason")
        entries = choice.logprobs.content if choice.logprobs is not None else None
        if entries is None:
            continue
        if [entry.token_id for entry in entries] != token_ids:
            message = f"`{where}.logprobs.content` must have one entry for each of `token_ids`, with the same tokens."
            raise bad_request(message, f"{where}.logprobs")
        others = [other.token_id for entry in entries for other in entry.top_logprobs or ()]
        check_token_ids(others, info, f"{where}.logprobs")


def _pieces(services: Services, text: TextOptions, generated: Generated, prompt: Sequence[int]) -> list[Piece]:
    """The output of each choice, read to its end."""
    pieces = []
    for choice in generated.choices:
        sample = Sample(choice.index, services.tokenizer, prompt, text)
        piece = Piece(choice.index)
        token_ids = list(choice.token_ids or [])
        reason = choice.finish_reason
        ended_by = token_ids[-1] if reason == "stop" and token_ids and token_ids[-1] in text.end_token_ids else None
        engine_reason = "stop" if reason == "tool_calls" else reason or "stop"
        sample.push(SequenceOutput(1, 0, token_ids, engine_reason, stop_reason=ended_by), piece)
        pieces.append(piece)
    return pieces


def _entries(choice: GeneratedChoice) -> list[TokenLogprobs]:
    content = (choice.logprobs.content if choice.logprobs is not None else None) or []
    return [
        TokenLogprobs(
            entry.token_id,
            entry.logprob,
            entry.rank or 0,
            [other.token_id for other in entry.top_logprobs or ()],
            [other.logprob for other in entry.top_logprobs or ()],
        )
        for entry in content
    ]


def _chat_logprobs(choice: GeneratedChoice, num_top: int | None, names: TokenNames) -> dict[str, Any] | None:
    if num_top is None or choice.logprobs is None or not choice.logprobs.content:
        return None
    return chat_logprobs(_entries(choice), num_top, names)


def _completion_logprobs(
    services: Services,
    choice: GeneratedChoice,
    num_top: int | None,
    names: TokenNames,
    text: TextOptions,
    prompt: Sequence[int],
) -> dict[str, Any] | None:
    if num_top is None or choice.logprobs is None or not choice.logprobs.content:
        return None
    writer = CompletionLogprobs(num_top, names, text.detokenizer(services.tokenizer, prompt))
    return writer.take(choice.token_ids or [], _entries(choice))


def _num_tokens(all_generated: Sequence[Generated]) -> int:
    return sum(len(choice.token_ids or []) for generated in all_generated for choice in generated.choices)


def _head(services: Services, info: Ready, generated: Generated, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": generated.request_id or new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": services.model_name,
        "service_tier": None,
        "system_fingerprint": services.fingerprint(info),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
    }
