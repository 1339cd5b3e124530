"""POST /generative_scoring: how likely a generative model finds some tokens after a query and an item."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ember.front.api.body import parse_body
from ember.front.api.completions import open_completion
from ember.front.api.exchange import Request, Response
from ember.front.api.prompt import encode
from ember.front.api.schemas import MAX_PROMPTS, CompletionRequest, Int64, Items, OpenModel, TokenIds
from ember.front.api.services import Services
from ember.front.api.tokenize import MAX_CHARS
from ember.front.api.usage import usage_body
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import ApiError, bad_request, encodable
from ember.wire import Ready, TokenLogprobs


class GenerativeScoringRequest(OpenModel):
    """POST /generative_scoring."""

    model: str | None = None
    query: str | TokenIds
    items: Items[str] | Items[TokenIds]
    label_token_ids: TokenIds
    apply_softmax: bool | None = None
    item_first: bool | None = None
    add_special_tokens: bool | None = None
    priority: Int64 | None = None
    cache_salt: str | None = None
    request_id: Annotated[str, Field(max_length=256)] | None = None


async def score_labels(services: Services, raw_request: Request) -> Response:
    """The probability of the first label after each prompt, among the labels or (without `apply_softmax`) among all
    tokens. Raises ApiError."""
    request = await parse_body(GenerativeScoringRequest, raw_request.body)
    services.check_model(request.model)
    info = await services.ready()
    _check(request, info)
    prompts = await asyncio.to_thread(_prompts, request, services, info)
    options = CompletionRequest(
        model=request.model,
        prompt=prompts,
        max_tokens=1,
        temperature=0.0,
        logprobs=0,
        logprob_token_ids=request.label_token_ids,
        priority=request.priority,
        cache_salt=request.cache_salt,
        request_id=request.request_id,
    )
    try:
        call = await open_completion(services, raw_request, options)
    except ApiError as error:
        error.param = {"logprob_token_ids": "label_token_ids", "prompt": "items"}.get(error.param or "", error.param)
        raise
    async with call.runs() as runs:
        choices = await runs.collect()
    runs.check_not_aborted()
    is_relative = request.apply_softmax is not False
    body = {
        "id": f"generative-scoring-{call.id.removeprefix('cmpl-')}",
        "object": "list",
        "created": call.created,
        "model": services.model_name,
        "data": [
            {"index": piece.choice, "object": "score", "score": _score(piece.logprobs, request, is_relative)}
            for piece in choices
        ],
        "usage": usage_body(runs.prompt_tokens(), runs.completion_tokens(), None),
    }
    return Response(200, body, call.headers)


def _check(request: GenerativeScoringRequest, info: Ready) -> None:
    """Raises ApiError 400."""
    for token_id in request.label_token_ids:
        if not 0 <= token_id < info.vocab_size:
            message = (
                f"label_token_id {token_id} is out of vocabulary range [0, {info.vocab_size}). Please provide valid "
                "token IDs."
            )
            raise bad_request(message, "label_token_ids")
    if not request.label_token_ids:
        raise bad_request("label_token_ids must contain at least one token ID.", "label_token_ids")
    if not request.items:
        raise bad_request("items must contain at least one item.", "items")
    if len(request.items) > MAX_PROMPTS:
        raise bad_request(f"items must have at most {MAX_PROMPTS} entries, got {len(request.items)}.", "items")


def _prompts(request: GenerativeScoringRequest, services: Services, info: Ready) -> list[list[int]]:
    """Query and item of each prompt, cut to leave a place for one token. Raises ApiError 400."""
    adds_special = request.add_special_tokens is not False
    query = _tokens(request.query, services, info, adds_special, "query")
    prompts = []
    items: Sequence[str | list[int]] = request.items
    for number, item in enumerate(items):
        own = _tokens(item, services, info, False, f"items.{number}")
        prompt = (own + query if request.item_first else query + own)[: max(1, info.max_model_len - 1)]
        if not prompt:
            raise bad_request(f"`query` and `items.{number}` must not both be empty.", f"items.{number}")
        prompts.append(prompt)
    return prompts


def _tokens(given: str | list[int], services: Services, info: Ready, adds_special: bool, param: str) -> list[int]:
    if isinstance(given, str):
        if len(given) > MAX_CHARS:
            raise bad_request(f"`{param}` must have at most {MAX_CHARS} characters, it has {len(given)}.", param)
        given = encode(services.tokenizer, encodable(given), adds_special, param)
    check_token_ids(given, info, param)
    return given


def _score(logprobs: Sequence[TokenLogprobs], request: GenerativeScoringRequest, is_relative: bool) -> float:
    """Raises ApiError 500 where the engine sent no log probabilities."""
    if not logprobs:
        raise ApiError(500, "The model has generated no token to score.")
    of_label = dict(zip(logprobs[0].asked_ids, logprobs[0].asked_logprobs, strict=True))
    first = of_label[request.label_token_ids[0]]
    if not is_relative:
        return math.exp(first)
    highest = max(of_label.values())
    if highest == -math.inf:
        return 1 / len(of_label)
    return math.exp(first - highest) / sum(math.exp(value - highest) for value in of_label.values())
