"""POST /score and /rerank: how well texts fit each other, by a cross-encoder, by the cosine of two embeddings, or by
the late interaction of their tokens' vectors."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.exchange import Request, Response
from ember.front.api.pooling.call import PoolingCall, activation_of, open_pooling_call, written
from ember.front.api.pooling.late_interaction import late_scores
from ember.front.api.pooling.pairs import PairLimits, pair_limits, pair_texts, side_texts
from ember.front.api.pooling.routes import SIDES
from ember.front.api.pooling.schemas import PairRequest, RerankRequest, ScoreRequest
from ember.front.api.pooling.texts import plain_texts
from ember.front.api.pooling.vectors import values_of
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.errors import ApiError, bad_request
from ember.front.link.pooling import PoolText
from ember.wire import Pooled


async def create_score(services: Services, raw_request: Request) -> Response:
    """Score pairs of texts: 1:1, 1:N or N:N. Raises ApiError."""
    info = await services.ready()
    request = await parse_body(ScoreRequest, raw_request.body)
    call = open_pooling_call(raw_request, request, services, info, "score")
    first, second = _sides(request)
    queries = plain_texts(getattr(request, first), first)
    documents = plain_texts(getattr(request, second), second)
    _check_counts(queries, documents, first, second)
    limits = pair_limits(request, services, info, (first, second))
    scores = [score for _, score in await scored_texts(call, request, queries, documents, limits)]
    body = {
        "id": call.id,
        "object": "list",
        "created": call.created,
        "model": services.model_name,
        "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)],
        "usage": call.usage(),
    }
    return Response(200, body, call.headers)


async def create_rerank(services: Services, raw_request: Request) -> Response:
    """Sort documents by how well they answer a query, in Jina's form and that of Cohere's first API. The answer has the
    documents unless `return_documents` is false. Raises ApiError."""
    return await _rerank(services, raw_request, is_cohere=False)


async def create_cohere_rerank(services: Services, raw_request: Request) -> Response:
    """The same in the form of Cohere's second API: without documents unless `return_documents` is true, and with a
    limit for documents that may be longer than the context. Raises ApiError."""
    return await _rerank(services, raw_request, is_cohere=True)


async def _rerank(services: Services, raw_request: Request, *, is_cohere: bool) -> Response:
    info = await services.ready()
    request = await parse_body(RerankRequest, raw_request.body)
    call = open_pooling_call(raw_request, request, services, info, "rerank")
    (query,) = plain_texts(request.query, "query")
    documents = plain_texts(request.documents, "documents")
    if not documents:
        raise bad_request("documents must have at least one document.", "documents")
    fits_documents = is_cohere and bool(request.max_tokens_per_doc)
    if is_cohere and request.max_tokens_per_doc:
        request.max_tokens_per_doc = min(request.max_tokens_per_doc, info.max_model_len - 1)
    limits = pair_limits(request, services, info, ("query", "documents"), fits_documents)
    scores = [score for _, score in await scored_texts(call, request, [query], documents, limits)]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    with_documents = is_cohere is False if request.return_documents is None else request.return_documents
    results = []
    for index in order[: request.top_n or None]:
        result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if with_documents:
            result["document"] = {"text": documents[index], "multi_modal": None}
        results.append(result)
    usage = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens}
    body = {"id": call.id, "model": services.model_name, "usage": usage, "results": results}
    if is_cohere:
        body["meta"] = cohere_meta(call)
    return Response(200, body, call.headers)


def cohere_meta(call: PoolingCall, version: str = "2") -> dict[str, Any]:
    return {
        "api_version": {"version": version},
        "billed_units": {"input_tokens": call.prompt_tokens},
        "tokens": {"input_tokens": call.prompt_tokens},
    }


async def scored_texts(
    call: PoolingCall, request: PairRequest, queries: Sequence[str], documents: Sequence[str], limits: PairLimits
) -> list[tuple[PoolText, float]]:
    """Each document as the model read it, with its query where the model reads pairs, and its score. Raises
    ApiError."""
    services = call.services
    if "score" in call.info.tasks:
        pairs = await in_thread(request, pair_texts, queries, documents, request, services, limits)
        pooled = await call.run(pairs, "score", use_activation=activation_of(request))
        return list(zip(pairs, [_single(each) for each in pooled], strict=True))
    texts, count = await in_thread(request, side_texts, queries, documents, services, limits), len(queries)
    if "embed" in call.info.tasks:
        pooled = await call.run(texts, "embed")
        scores = await written(pooled, lambda: _cosines(pooled[:count], pooled[count:]))
    else:
        scores = await late_scores(call, texts[:count], texts[count:], activation_of(request))
    return list(zip(texts[count:], scores, strict=True))


def _single(pooled: Pooled) -> float:
    values = values_of(pooled)
    if len(values) != 1:
        raise ApiError(500, f"The model's score has {len(values)} values; one is expected.")
    return values[0]


def _cosines(queries: Sequence[Pooled], documents: Sequence[Pooled]) -> list[float]:
    """The cosine of each document with its query, or with the only one. That of a vector of zeros is 0. Rounding makes
    none larger than 1."""
    left = [_unit(values_of(query)) for query in queries]
    if len(left) == 1:
        left *= len(documents)
    return [
        max(-1.0, min(1.0, sum(map(operator.mul, vector, _unit(values_of(document))))))
        for vector, document in zip(left, documents, strict=True)
    ]


def _unit(values: list[float]) -> list[float]:
    norm = math.sqrt(sum(map(operator.mul, values, values)))
    return [value / norm for value in values] if norm else values


def _sides(request: ScoreRequest) -> tuple[str, str]:
    """The names of the two sides in the body. Raises ApiError 400."""
    for first, second in SIDES:
        if getattr(request, first) is not None and getattr(request, second) is not None:
            return first, second
    names = " or ".join(f"`{first}` and `{second}`" for first, second in SIDES)
    raise bad_request(f"The texts to score are missing: give {names}.", "body")


def _check_counts(queries: Sequence[str], documents: Sequence[str], first: str, second: str) -> None:
    for texts, name in ((queries, first), (documents, second)):
        if not texts:
            raise bad_request(f"At least one text must be given in {name}.", name)
    if len(queries) > 1 and len(queries) != len(documents):
        message = (
            f"Input lengths must be either 1:1, 1:N or N:N; {first} has {len(queries)} texts and {second} "
            f"{len(documents)}."
        )
        raise bad_request(message, second)
