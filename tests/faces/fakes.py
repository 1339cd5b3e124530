"""A worker without an engine: it boots after a while, streams words at a pace, and notes what was aborted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.openai_forms import OPENAI_EVENTS
from ember.front.api.route import Handler
from ember.front.api.router import Router
from ember.front.api.routes import ROUTES
from ember.front.api.streaming import StartedEvents
from ember.front.errors import ApiError, bad_request
from ember.front.link.admission import Admission
from ember.front.metrics import Metrics
from ember.settings import load_settings

log = logging.getLogger(__name__)


class FakeWorker:
    """Has the face of `ember.front.start.Worker`. `boot` seconds pass until ready; `boot_error` makes it fail."""

    def __init__(
        self,
        boot: float = 0.0,
        boot_error: Exception | None = None,
        max_num_seqs: int = 64,
        admission: Admission | None = None,
    ) -> None:
        self.boot_seconds = boot
        self.boot_error = boot_error
        self.aborted: list[str] = []
        self.closed = False
        self.tasks: set[asyncio.Task[None]] = set()
        info = SimpleNamespace(max_num_seqs=max_num_seqs, tasks=("generate",))
        self.engine = SimpleNamespace(is_ready=False, is_dead=False, info=info, admission=admission or Admission())
        self.engine.tasks = info.tasks
        self.engine.control = SimpleNamespace(is_paused=False)

        async def ready() -> None:
            return None

        self.services: Any = SimpleNamespace(
            engine=self.engine, ready=ready, worker=self, metrics=Metrics(), settings=load_settings({"model_name": "m"})
        )

    async def start(self) -> None:
        self.dead = asyncio.Event()
        self.booting = asyncio.create_task(self._boot())

    async def _boot(self) -> None:
        log.info("the fake boots")
        await asyncio.sleep(self.boot_seconds)
        if self.boot_error is not None:
            raise self.boot_error
        self.engine.is_ready = True

    async def ready(self) -> Any:
        await asyncio.shield(self.booting)
        return self.services

    def note_abort(self, request: Request) -> None:
        self.aborted.append(request.headers.get("x-request-id", ""))
        log.info("aborted %s", self.aborted[-1])

    async def wait_dead(self) -> str:
        await self.dead.wait()
        return "it was killed"

    async def turn_away(self) -> None: ...

    async def close(self) -> None:
        self.closed = True
        log.info("the fake is closed")


def event(content: Any) -> Event:
    return Event(json.dumps({"text": content}, ensure_ascii=False))


def frame(content: Any) -> str:
    """The text of `event` in a stream."""
    return OPENAI_EVENTS.encode(event(content))


def fake_router(answer: Handler) -> Router:
    """The real table of routes, all of which are answered by `answer`."""
    return Router([route if route.answer is None else replace(route, answer=answer) for route in ROUTES])


async def fake_answer(services: Any, request: Request) -> Response | EventStream:
    """Body fields: `words`, `pace` (seconds between them), `stream`, `fail` (bad, crash, late), `die` (the engine) and
    `tokens` (of the prompt, which wait as long as the request)."""
    worker: FakeWorker = services.worker
    if request.path == "/v1/models":
        return Response(200, {"object": "list", "query": dict(request.query)})
    if request.path == "/metrics":
        return Response(200, "requests 1\n")
    if request.path not in ("/v1/chat/completions", "/v1/completions"):
        raise ApiError(404, "Not Found", type="Not Found")
    body = request.body or {}
    if body.get("tokens"):
        worker.engine.admission.enter(id(request), body["tokens"])
        try:
            return await fake_answer(services, replace(request, body={**body, "tokens": None}))
        finally:
            worker.engine.admission.leave(id(request))
    fail = body.get("fail")
    if fail == "bad":
        raise bad_request("temperature must be in [0, 2], got 3", "temperature")
    if fail == "crash":
        raise RuntimeError("a bug in /some/path.py")
    if body.get("stream"):
        events = _events(worker, request, body)
        return EventStream(StartedEvents(await anext(events), events), {"X-Test": "1"})
    try:
        await asyncio.sleep(body.get("pace", 0) * body.get("words", 1))
    except asyncio.CancelledError:
        worker.note_abort(request)
        raise
    if worker.engine.is_dead:
        raise ApiError(500, "the engine is gone", type="EngineDeadError")
    return Response(200, {"object": "chat.completion", "echo": body}, {"X-Test": "1"})


async def _events(worker: FakeWorker, request: Request, body: dict[str, Any]) -> AsyncGenerator[Event, None]:
    finished = False
    try:
        for number in range(body.get("words", 1)):
            if worker.engine.is_dead:
                raise ApiError(500, "the engine is gone", type="EngineDeadError")
            if body.get("fail") == "late" and number == 2:
                raise RuntimeError("a bug in /some/path.py")
            if body.get("die") and number == 2:
                worker.engine.is_dead = True
                worker.dead.set()
            yield event(body.get("word", "wört ") + str(number))
            await asyncio.sleep(body.get("pace", 0))
        finished = True
    finally:
        if not finished:
            worker.note_abort(request)


FAKE_ROUTER = fake_router(fake_answer)
