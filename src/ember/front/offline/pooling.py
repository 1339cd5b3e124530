"""Offline texts for pooling: several at a time are opened and run as the pooling routes open and run theirs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from ember.front.api.body import parse_body
from ember.front.api.exchange import Request
from ember.front.api.pooling.call import open_pooling_call
from ember.front.api.pooling.embeddings import check_dimensions
from ember.front.api.pooling.pairs import pair_limits
from ember.front.api.pooling.routes import SCORING
from ember.front.api.pooling.schemas import PoolRequest, ScoreRequest
from ember.front.api.pooling.score import scored_texts
from ember.front.api.pooling.texts import read_texts
from ember.front.api.pooling.vectors import values_of
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request
from ember.front.link.pooling import PoolText
from ember.front.offline.errors import raise_for
from ember.front.offline.params import PoolingParams
from ember.front.offline.session import Progress, Session
from ember.wire import Pooled, PoolingTask, Ready

Output = TypeVar("Output")

CHUNK = 64  # texts of one call
WINDOW = 4  # calls under way at a time
_PLACE = re.compile(r" It is \w+\.\d+\.$")  # of a text in its call


@dataclass(frozen=True, slots=True)
class Chunk:
    """Texts of one call, of which the first is the prompt `start`. They are of one type, and `fields` are those of
    their body."""

    start: int
    items: list[Any]
    fields: dict[str, Any]


def fields_of_each(
    params: PoolingParams | Sequence[PoolingParams] | None, count: int, task: str
) -> list[dict[str, Any]]:
    """The parameters of each prompt, as fields of a body. Raises ValueError for another number of them, and for a task
    that is another one than that of the call."""
    each = params if isinstance(params, Sequence) else [params] * count
    if len(each) != count:
        raise ValueError(f"pooling_params must have one entry for each of the {count} prompts, got {len(each)}.")
    for given in each:
        if given is not None and given.task not in (None, task):
            raise ValueError(f"The task of pooling_params is {given.task!r}, but this call is for {task!r}.")
    return [{} if given is None else given.body() for given in each]


def chunks(items: Sequence[Any], fields: Sequence[dict[str, Any]]) -> Iterator[Chunk]:
    """The items, in their order, with the fields of each."""
    start = 0
    for end in range(1, len(items) + 1):
        if (
            end == len(items)
            or end - start == CHUNK
            or type(items[end]) is not type(items[start])
            or fields[end] != fields[start]
        ):
            yield Chunk(start, list(items[start:end]), fields[start])
            start = end


def run_chunks(
    session: Session,
    given: Sequence[Chunk],
    call: Callable[[Chunk], Awaitable[list[Output]]],
    use_tqdm: Any,
    description: str,
) -> list[Output]:
    """The outputs of `call` for all items. Raises PromptError for the first item at fault, which is found by running
    the items of its call one by one, and RuntimeError."""
    count = sum(len(chunk.items) for chunk in given)
    outputs: list[Any] = [None] * count
    progress = Progress(count, use_tqdm, description)

    async def work(_: int, chunk: Chunk) -> None:
        end = chunk.start + len(chunk.items)
        try:
            outputs[chunk.start : end] = await call(chunk)
        except ApiError as error:
            if error.status >= 500:
                raise
            for place, item in enumerate(chunk.items, chunk.start):
                outputs[place] = await alone(Chunk(place, [item], chunk.fields))
        progress.num_done += len(chunk.items) - 1  # `run` counts one

    async def alone(chunk: Chunk) -> Output:
        try:
            return (await call(chunk))[0]
        except ApiError as error:
            error.message = _PLACE.sub("", error.message)
            raise_for(error, chunk.start, count, outputs)

    session.run(given, work, progress, WINDOW)
    return outputs


async def pool(
    services: Services, texts: list[str] | list[list[int]], task: str, fields: dict[str, Any]
) -> list[tuple[PoolText, Pooled]]:
    """What the model makes of each text. `fields` are those of a body for /pooling. Raises ApiError."""
    info = await services.ready()
    request = await parse_body(PoolRequest, {**fields, "input": texts})
    call = open_pooling_call(Request("POST", ""), request, services, info, "pool")
    known = next((name for name in get_args(PoolingTask) if name == task and name in info.tasks), None)
    if known is None:
        raise _not_done(task, services, info)
    check_dimensions(request.dimensions, "dimensions", services, info)
    pool_texts = await read_texts(request, services, info, "")
    pooled = await call.run(pool_texts, known, dimensions=request.dimensions, use_activation=request.use_activation)
    return list(zip(pool_texts, pooled, strict=True))


def _not_done(task: str, services: Services, info: Ready) -> ApiError:
    return bad_request(f"The model `{services.model_name}` does {', '.join(info.tasks)}, and not {task!r:.40}.", "task")


async def score(
    services: Services, queries: Sequence[str], documents: Sequence[str], fields: dict[str, Any]
) -> list[tuple[PoolText, float]]:
    """The score of each document with its query, or with the only one. Raises ApiError."""
    info = await services.ready()
    if not set(SCORING).intersection(info.tasks):
        raise _not_done("score", services, info)
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
