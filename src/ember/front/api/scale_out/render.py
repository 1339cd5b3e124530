"""POST /v1/chat/completions/render and its like for completions, Anthropic's messages and Responses: the token ids and
sampling parameters that a request would be run with, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ember.front.api.anthropic.schemas import MessagesRequest
from ember.front.api.anthropic.translate import FIELD_NAMES as ANTHROPIC_NAMES
from ember.front.api.anthropic.translate import chat_body as anthropic_chat_body
from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall
from ember.front.api.chat import open_chat
from ember.front.api.completions import open_completion
from ember.front.api.exchange import Request, Response, new_id
from ember.front.api.responses.create import conversation
from ember.front.api.responses.schemas import ResponsesRequest
from ember.front.api.responses.store import store_of
from ember.front.api.responses.translate import FIELD_NAMES as RESPONSES_NAMES
from ember.front.api.responses.translate import chat_body as responses_chat_body
from ember.front.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.errors import bad_request
from ember.wire import Grammar, SamplingParams

# Fields of `wire.SamplingParams` that vLLM has under the same names.
_SAME = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "max_tokens", "min_tokens", "ignore_eos", "stop_token_ids", "logprobs", "prompt_logprobs"),
    *("allowed_token_ids",),
)
_GRAMMAR_FIELDS = {"json_schema": "json", "regex": "regex"}  # of the kinds that are no `grammar`


async def render_chat(services: Services, raw_request: Request) -> Response:
    """Raises ApiError."""
    request = await parse_body(ChatRequest, raw_request.body)
    services.check_model(request.model)
    _check(request)
    call = await open_chat(services, raw_request, request, "chatcmpl-")
    (rendered,) = _rendered(call, request, "chatcmpl-")
    text = call.specs[0].prompt.text
    if request.return_token_offsets and text is not None:
        args = (text, request.add_special_tokens is True, rendered["token_ids"])
        rendered["token_offsets"] = await in_thread(request, _offsets, services, *args)
    return Response(200, rendered, call.headers)


async def render_completion(services: Services, raw_request: Request) -> Response:
    """Raises ApiError."""
    request = await parse_body(CompletionRequest, raw_request.body)
    services.check_model(request.model)
    _check(request)
    call = await open_completion(services, raw_request, request)
    rendered = _rendered(call, request, "cmpl-")
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt or []
    if request.return_token_offsets:
        for text, entry in zip(texts, rendered, strict=False):
            if isinstance(text, str):
                args = (text, request.add_special_tokens is not False, entry["token_ids"])
                entry["token_offsets"] = await in_thread(request, _offsets, services, *args)
    return Response(200, rendered, call.headers)


async def render_message(services: Services, raw_request: Request) -> Response:
    """Raises ApiError."""
    message = await parse_body(MessagesRequest, raw_request.body)
    services.check_model(message.model)
    body, ignored = anthropic_chat_body(message, services)
    body["max_tokens"] = min(message.max_tokens, (await services.ready()).max_model_len)
    with ANTHROPIC_NAMES.in_errors():
        request = await parse_body(ChatRequest, body)
        call = await open_chat(services, raw_request, request, "msg_", ignored)
    return Response(200, _rendered(call, request, "msg-")[0], call.headers)


async def render_response(services: Services, raw_request: Request) -> Response:
    """Raises ApiError."""
    asked = await parse_body(ResponsesRequest, raw_request.body)
    services.check_model(asked.model)
    history, items = await conversation(asked, store_of(services, raw_request))
    body, ignored = responses_chat_body(asked, history, items, services)
    with RESPONSES_NAMES.in_errors():
        request = await parse_body(ChatRequest, body)
        call = await open_chat(services, raw_request, request, "resp_", ignored)
    return Response(200, _rendered(call, request, "resp_")[0], call.headers)


def _check(request: GenerationRequest) -> None:
    if request.use_beam_search:
        raise bad_request("Beam search is not supported by the render endpoint", "use_beam_search")


def _rendered(call: ApiCall, request: GenerationRequest, prefix: str) -> list[dict[str, Any]]:
    """A body for /inference/v1/generate of each prompt."""
    return [
        {
            "request_id": new_id(prefix),
            "token_ids": spec.prompt.token_ids,
            "token_offsets": None,
            "features": None,
            "sampling_params": _sampling(call, spec.sampling, request),
            "model": request.model,
            "stream": bool(request.stream),
            "stream_options": _dumped(request.stream_options) if request.stream else None,
            "cache_salt": spec.cache_salt,
            "priority": spec.priority,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
        }
        for spec in call.specs
    ]


def _offsets(
    services: Services, text: str, add_special_tokens: bool, token_ids: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Where the tokens of a prompt are in its text. None where they are not all of the text's, nor its first or last
    ones."""
    all_ids, offsets = services.tokenizer.encode_with_offsets(text, add_special_tokens)
    count = len(token_ids)
    if not count:
        return None
    if list(token_ids) == all_ids[-count:]:
        return offsets[-count:]
    return offsets[:count] if list(token_ids) == all_ids[:count] else None


def _sampling(call: ApiCall, sampling: SamplingParams, request: GenerationRequest) -> dict[str, Any]:
    text = call.specs[0].text
    made = {name: getattr(sampling, name) for name in _SAME}
    return {
        **made,
        "n": request.n or 1,
        "best_of": request.best_of,
        "logprob_token_ids": sampling.logprob_token_ids or None,
        "logit_bias": {str(token_id): value for token_id, value in sampling.logit_bias.items()} or None,
        "bad_words": request.bad_words or [],
        "stop": list(text.stop),
        "include_stop_str_in_output": text.include_stop,
        "skip_special_tokens": text.skip_special_tokens,
        "spaces_between_special_tokens": text.spaces_between_special_tokens,
        "repetition_detection": _dumped(request.repetition_detection),
        "structured_outputs": _constraint(sampling.grammar),
    }


def _constraint(grammar: Grammar | None) -> dict[str, Any] | None:
    """The grammar as the one constraint of `structured_outputs`. A JSON schema is a Lark grammar by now."""
    if grammar is None:
        return None
    field = _GRAMMAR_FIELDS.get(grammar.kind, "grammar")
    return {field: msgspec.json.decode(grammar.text) if field == "json" else grammar.text}


def _dumped(given: Any) -> dict[str, Any] | None:
    return None if given is None else given.model_dump(exclude_none=True)
