"""POST /v2/embed and /v1/embed: embeddings in the forms of Cohere's two APIs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.exchange import Request, Response
from ember.front.api.pooling import vectors
from ember.front.api.pooling.call import open_pooling_call, prompt_of, written
from ember.front.api.pooling.embeddings import check_bits, check_dimensions
from ember.front.api.pooling.schemas import CohereEmbedRequest
from ember.front.api.pooling.score import cohere_meta
from ember.front.api.pooling.texts import Limits, joined, text_tokens
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.api.unsupported import later
from ember.front.errors import bad_request
from ember.wire import Pooled, Ready

# Cohere's types of inputs, each with the names that models give to a prompt for it.
_PROMPT_NAMES = {
    "search_query": ("search_query", "query"),
    "search_document": ("search_document", "document", "passage", "text"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}


async def create_cohere_embeddings(services: Services, raw_request: Request) -> Response:
    """Embed `texts`, or the texts in `inputs`. Raises ApiError."""
    return await _embed(services, raw_request, "2")


async def create_first_cohere_embeddings(services: Services, raw_request: Request) -> Response:
    """Embed texts in the form of Cohere's first API: without `embedding_types` the vectors stand alone. Raises
    ApiError."""
    return await _embed(services, raw_request, "1")


async def _embed(services: Services, raw_request: Request, version: str) -> Response:
    info = await services.ready()
    request = await parse_body(CohereEmbedRequest, raw_request.body)
    call = open_pooling_call(raw_request, request, services, info, "embd")
    check_dimensions(request.output_dimension, "output_dimension", services, info)
    texts = _texts(request)
    prompt = prompt_of(None, services) if request.input_type is None else _prompt(request.input_type, services)
    pool_texts = await in_thread(request, text_tokens, texts, services, _limits(request, info), True, "texts", prompt)
    if request.truncate == "NONE" and request.max_tokens is not None:
        _check_max_tokens(request.max_tokens, max(len(text.token_ids) for text in pool_texts))
    pooled = await call.run(pool_texts, "embed", dimensions=request.output_dimension)
    kinds = list(dict.fromkeys(request.embedding_types or ["float"]))
    for kind in kinds:
        if kind in ("binary", "ubinary"):
            check_bits(pooled, "embedding_types")
    echo = None if request.texts is None else texts

    def write() -> Response:
        embeddings: Any = {kind: [_WRITERS[kind](each) for each in pooled] for kind in kinds}
        form = "embeddings_by_type"
        if version == "1" and not request.embedding_types:
            embeddings, form = embeddings["float"], "embeddings_floats"
        body: dict[str, Any] = {
            "id": call.id,
            "embeddings": embeddings,
            "meta": cohere_meta(call, version),
            "response_type": form,
        }
        if echo is not None:
            body["texts"] = echo
        return Response(200, body, call.headers)

    return await written(pooled, write)


_WRITERS: dict[str, Callable[[Pooled], Any]] = {
    "float": vectors.as_json,
    "base64": vectors.as_base64,
    "int8": lambda pooled: vectors.as_int8(pooled, signed=True),
    "uint8": lambda pooled: vectors.as_int8(pooled, signed=False),
    "binary": lambda pooled: vectors.as_bits(pooled, signed=True),
    "ubinary": lambda pooled: vectors.as_bits(pooled, signed=False),
}


def _texts(request: CohereEmbedRequest) -> list[str]:
    if request.images:
        raise later("images")
    if request.texts and request.inputs:
        raise bad_request("Give `texts` or `inputs`, not both.", "texts")
    texts = request.texts or [joined(each.content, "inputs") for each in request.inputs or ()]
    if not texts:
        raise bad_request("`texts` is missing or empty: give a list of texts in `texts` or `inputs`.", "texts")
    return texts


def _limits(request: CohereEmbedRequest, info: Ready) -> Limits:
    most = info.max_model_len
    if request.truncate == "NONE":
        return Limits(info, most, None)
    side = "left" if request.truncate == "START" else "right"
    return Limits(info, most if request.max_tokens is None else min(most, request.max_tokens), side)


def _check_max_tokens(allowed: int, found: int) -> None:
    if found > allowed:
        message = (
            f"Input of {found} tokens exceeds max_tokens={allowed} with truncate=NONE. Set truncate to END or START to "
            "allow truncation."
        )
        raise bad_request(message, "max_tokens")


def _prompt(input_type: str, services: Services) -> str:
    """The prompt of the model for a type of input: one of this name, or of a name that means the same. Cohere's types
    need none. Raises ApiError 400 for another type."""
    prompts = services.sentences.prompts
    for name in _PROMPT_NAMES.get(input_type, (input_type,)):
        if name in prompts:
            return prompts[name]
    if input_type not in _PROMPT_NAMES:
        allowed = ", ".join([*_PROMPT_NAMES, *sorted(prompts.keys() - _PROMPT_NAMES.keys())])
        raise bad_request(f"Unsupported input_type {ascii(input_type)[:80]}. Supported values: {allowed}", "input_type")
    return ""
