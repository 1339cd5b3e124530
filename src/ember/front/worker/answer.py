"""How this worker handles jobs: when it takes them, how many at a time, and how it answers them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.routes import ROUTER
from ember.front.worker.coalesce import BatchSizes
from ember.front.worker.handler import Answer, Handling, Submitter

if TYPE_CHECKING:
    from ember.front.start import Worker
    from ember.settings import Settings

log = logging.getLogger(__name__)


def answer_with(worker: Worker) -> Answer:
    """A function that answers requests with this worker's services. It runs on the worker's event loop, after its boot.

    A job that was taken while a crashed engine restarts waits for the restart. A 503 would end it.
    """

    async def answer(request: Request) -> Response | EventStream:
        await worker.services.ready()
        return await ROUTER.dispatch(worker.services, request)

    return answer


def gate(worker: Worker) -> Callable[[], Coroutine[None, None, None]]:
    """A function that waits until a job may be taken: the engine is ready, and its queue has room.

    A job that was taken is not refused for lack of room. It would fail, although another worker could have taken it.
    """
    admission = worker.engine.admission
    admission.refuses = False

    async def passed() -> None:
        await worker.services.ready()
        await admission.room()

    return passed


def concurrency(settings: Settings, max_num_seqs: int) -> int:
    """The most jobs that run at the same time. It is at most the number of requests that may wait for the engine."""
    wanted = settings.max_concurrency or max_num_seqs
    limit = settings.max_num_queued_reqs
    if limit is None or wanted <= limit:
        return wanted
    if settings.max_concurrency is not None:
        log.warning(
            "MAX_CONCURRENCY=%d is more than MAX_NUM_QUEUED_REQS=%d lets wait: %d jobs are taken at the same time",
            wanted,
            limit,
            limit,
        )
    return limit


def handling_for(settings: Settings, loop: Submitter, answer: Answer) -> Handling:
    """The handling of jobs for these settings. Their work runs on `loop`, which owns the engine's client."""
    sizes = BatchSizes(
        least=settings.min_batch_size or 1,
        growth=settings.batch_size_growth_factor or 1.0,
        most=settings.default_batch_size,
    )
    return Handling(
        loop,
        answer,
        ROUTER,
        model=settings.served_names[0],
        raw=settings.raw_openai_output,
        native_tokens=settings.native_output == "tokens",
        sizes=sizes,
    )
