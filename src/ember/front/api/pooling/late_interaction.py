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

MAX_TOKENS = 2**16  # of texts whose vectors are in memory at once, besides those of an only query
MAX_PRODUCTS = 2**24  # of a query's tokens with documents' tokens that are in memory at once


async def late_scores(
    call: PoolingCall, queries: Sequence[PoolText], documents: Sequence[PoolText], use_activation: bool | None
) -> list[float]:
    """The score of each document with its query, or with the only one. Raises ApiError."""
    pairs = [(document,) for document in documents] if len(queries) == 1 else list(zip(documents, queries, strict=True))
    sizes = [sum(len(text.token_ids) for text in pair) for pair in pairs]
    scores: list[float] = []
    with call.under_way():
        only = await call.run(queries, "token_embed", use_activation=use_activation) if len(queries) == 1 else []
        while len(scores) < len(pairs):
            first, end, num_tokens = len(scores), len(scores), 0
            while end < len(pairs) and (end == first or num_tokens + sizes[end] <= MAX_TOKENS):
                num_tokens += sizes[end]
                end += 1
            texts = [*documents[first:end], *([] if only else queries[first:end])]
            pooled = await call.run(texts, "token_embed", use_activation=use_activation)
            made, read = pooled[: end - first], only or pooled[end - first :]
            scores += await asyncio.to_thread(_largest_sums, read, made)
    return scores


def _largest_sums(queries: Sequence[Pooled], documents: Sequence[Pooled]) -> list[float]:
    """The scores of documents, each with its query, or all with the only one. Raises ApiError 500."""
    import numpy  # only these models need it, and the front starts without it

    if len(queries) < len(documents):
        starts = numpy.cumsum([0, *(document.shape[0] for document in documents[:-1])]).tolist()
        together = numpy.concatenate([_matrix(document) for document in documents])
        scores = _summed_maxima(_matrix(queries[0]), together, starts)
    else:
        pairs = zip(queries, documents, strict=True)
        scores = [score for left, right in pairs for score in _summed_maxima(_matrix(left), _matrix(right), [0])]
    check_finite(sum(scores))
    return scores


def _summed_maxima(query: ndarray, documents: ndarray, starts: list[int]) -> list[float]:
    """The query's score with each of the documents, which begin at these rows. The products are computed for as many
    tokens of the query at a time as `MAX_PRODUCTS` allows."""
    import numpy

    rows = max(1, MAX_PRODUCTS // len(documents))
    total = numpy.zeros(len(starts), numpy.float32)
    for first in range(0, len(query), rows):
        products = query[first : first + rows] @ documents.T
        total += numpy.maximum.reduceat(products, starts, axis=1).sum(axis=0)
    scores: list[float] = total.tolist()
    return scores


def _matrix(pooled: Pooled) -> ndarray:
    import numpy

    return numpy.frombuffer(pooled.data, "<f4").reshape(pooled.shape)
