"""How this worker handles jobs: from a request to the api's answer, with what the settings say about the form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.router import dispatch
from ember.front.worker.coalesce import BatchSizes
from ember.front.worker.handler import Answer, Handling, Submitter

if TYPE_CHECKING:
    from ember.front.start import Worker
    from ember.settings import Settings


def answer_with(worker: Worker) -> Answer:
    """Answers requests with this worker's services. Runs on the loop that owns the worker, after its boot.

    A job that was taken while a crashed engine is started again waits for it: the queue has no use for a 503.
    """

    async def answer(request: Request) -> Response | EventStream:
        await worker.services.ready()
        return await dispatch(worker.services, request)

    return answer


def handling_for(settings: Settings, loop: Submitter, answer: Answer) -> Handling:
    """The handling of jobs as the settings want it; their work is done on `loop`, which owns the engine."""
    sizes = BatchSizes(
        least=settings.min_batch_size or 1,
        growth=settings.batch_size_growth_factor or 1.0,
        most=settings.default_batch_size,
    )
    return Handling(
        loop,
        answer,
        model=settings.served_names[0],
        raw=settings.raw_openai_output,
        native_tokens=settings.native_output == "tokens",
        sizes=sizes,
    )
