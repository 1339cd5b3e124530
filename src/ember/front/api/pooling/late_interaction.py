"""The late interaction of two texts (ColBERT, arXiv 2004.12832): the sum, over the tokens of the query, of the largest
product with a token of the document."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ember.front.api.pooling.call import PoolingCall
from ember.front.api.pooling.vectors import check_finite
from ember.front.link.pooling import PoolText
from ember.wire import Pooled

if TYPE_CHECKING:
    from numpy import ndarray

MAX_TOKENS = 2**16  # of documents whose vectors are here at once


async def late_scores(
    call: PoolingCall, queries: Sequence[PoolText], documents: Sequence[PoolText], use_activation: bool | None
) -> list[float]:
    """The score of each document with its query, or with the only one. Raises ApiError."""
    made = await call.run(queries, "token_embed", use_activation=use_activation)
    scores: list[float] = []
    while len(scores) < len(documents):
        first, end, num_tokens = len(scores), len(scores), 0
        while end < len(documents) and (end == first or num_tokens + len(documents[end].token_ids) <= MAX_TOKENS):
            num_tokens += len(documents[end].token_ids)
            end += 1
        pooled = await call.run(documents[first:end], "token_embed", use_activation=use_activation)
        scores += await asyncio.to_thread(_largest_sums, made[first:end] if len(made) > 1 else made, pooled)
    return scores


def _largest_sums(queries: Sequence[Pooled], documents: Sequence[Pooled]) -> list[float]:
    """The scores of documents, each with its query, or all with the only one. Raises ApiError 500."""
    import numpy  # only these models need it, and the front starts without it

    if len(queries) < len(documents):
        query = _matrix(queries[0])
        starts = numpy.cumsum([0, *(document.shape[0] for document in documents[:-1])])
        products = query @ numpy.concatenate([_matrix(document) for document in documents]).T
        found = numpy.maximum.reduceat(products, starts, axis=1).sum(axis=0)
    else:
        pairs = zip(queries, documents, strict=True)
        found = numpy.array([(_matrix(left) @ _matrix(right).T).max(axis=1).sum() for left, right in pairs])
    scores: list[float] = found.tolist()
    check_finite(sum(scores))
    return scores


def _matrix(pooled: Pooled) -> ndarray:
    import numpy

    return numpy.frombuffer(pooled.data, "<f4").reshape(pooled.shape)
