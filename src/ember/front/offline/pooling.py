"""Offline texts for pooling: several at a time are opened and run as the pooling routes open and run theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from ember.front.api.body import parse_body
from ember.front.api.exchange import Request
from ember.front.api.pooling.call import open_pooling_call
from ember.front.api.pooling.embeddings import check_dimensions
from ember.front.api.pooling.pairs import pair_limits
from ember.front.api.pooling.schemas import PoolRequest, ScoreRequest
from ember.front.api.pooling.score import scored_texts
from ember.front.api.pooling.texts import read_texts
from ember.front.api.pooling.vectors import values_of
from ember.front.api.services import Services
from ember.front.errors import bad_request
from ember.front.link.pooling import PoolText
from ember.front.offline.prompts import GivenPrompt
from ember.wire import Pooled, PoolingTask

CHUNK = 64  # texts of one call
WINDOW = 4  # calls under way at a time


def chunks(prompts: Sequence[GivenPrompt]) -> Iterator[list[str] | list[list[int]]]:
    """The prompts in lists of one form, texts or token ids, in their order."""
    chunk: list[Any] = []
    for content in (prompt.content for prompt in prompts):
        if chunk and (len(chunk) == CHUNK or type(content) is not type(chunk[0])):
            yield chunk
            chunk = []
        chunk.append(content)
    if chunk:
        yield chunk


async def pool(
    services: Services, texts: list[str] | list[list[int]], task: str, fields: dict[str, Any]
) -> list[tuple[PoolText, Pooled]]:
    """What the model makes of each text. `fields` are those of a body for /pooling. Raises ApiError."""
    info = await services.ready()
    request = await parse_body(PoolRequest, {**fields, "input": texts})
    call = open_pooling_call(Request("POST", ""), request, services, info, "pool")
    known = next((name for name in get_args(PoolingTask) if name == task and name in info.tasks), None)
    if known is None:
        message = f"The model `{services.model_name}` does {', '.join(info.tasks)}, and not {task!r:.40}."
        raise bad_request(message, "task")
    check_dimensions(request.dimensions, "dimensions", services, info)
    pool_texts = await read_texts(request, services, info, "")
    pooled = await call.run(pool_texts, known, dimensions=request.dimensions, use_activation=request.use_activation)
    return list(zip(pool_texts, pooled, strict=True))


async def score(
    services: Services, queries: Sequence[str], documents: Sequence[str], fields: dict[str, Any]
) -> list[tuple[PoolText, float]]:
    """The score of each document with its query, or with the only one. Raises ApiError."""
    info = await services.ready()
    request = await parse_body(ScoreRequest, {**fields, "queries": list(queries), "documents": list(documents)})
    call = open_pooling_call(Request("POST", ""), request, services, info, "score")
    limits = pair_limits(request, services, info, ("data_1", "data_2"))
    return await scored_texts(call, request, queries, documents, limits)


def numbers(pooled: Pooled) -> list[Any]:
    """A list of numbers, or one for each row."""
    values = values_of(pooled)
    if len(pooled.shape) == 1:
        return values
    width = pooled.shape[-1]
    return [values[start : start + width] for start in range(0, len(values), width)]
