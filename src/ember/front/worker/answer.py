"""From a request to the api's answer, for the queue face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.router import dispatch
from ember.front.worker.handler import Answer

if TYPE_CHECKING:
    from ember.front.start import Worker


def answer_with(worker: Worker) -> Answer:
    """Answers requests with this worker's services. Runs on the loop that owns the worker, after its boot.

    A job that was taken while a crashed engine is started again waits for it: the queue has no use for a 503.
    """

    async def answer(request: Request) -> Response | EventStream:
        await worker.services.ready()
        return await dispatch(worker.services, request)

    return answer
