"""The platform's side of the queue, as the runpod SDK meets it: a job goes in by `submit`, what became of it comes out.

    with FakeQueue() as queue:
        subprocess.Popen([...], env={**os.environ, **queue.env()})
        record = queue.wait(queue.submit({"prompt": "hi"}))

Served from a thread of its own on a free port, so that tests may be synchronous. Times are `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

WORKER_ID = "worker-1"
FINAL = ("COMPLETED", "FAILED", "CANCELLED")


@dataclass
class JobRecord:
    """One job's life. `pieces` are the streamed outputs with the times they arrived at."""

    id: str
    input: Any
    submitted: float
    status: str = "IN_QUEUE"
    taken: float | None = None
    done: float | None = None
    output: Any = None
    error: Any = None
    element: str | None = None  # the text of the job in a job-take's answer, where it is no ordinary one
    pieces: list[tuple[float, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The streamed SSE text."""
        return "".join(piece for _, piece in self.pieces)

    @property
    def streamed(self) -> list[Any]:
        """The streamed outputs."""
        return [piece for _, piece in self.pieces]

    def events(self) -> list[Any]:
        """The JSON documents of the streamed SSE text."""
        lines = [line.removeprefix("data: ") for line in self.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


class FakeQueue:
    """`poll_seconds` is how long an empty job-take or job-stop is held; `stream_delay` slows every streamed piece.

    `deliver_delay` is the time from handing a job out to the worker's having it, `body_delay` the part of that between
    the headers of the answer and its body. `fail(call, number)` may give a status to answer the call's number-th
    request with; nothing comes of that request. While `is_down`, every connection is cut. A result of more than
    `max_result_bytes` is refused with a 400.
    """

    def __init__(self, poll_seconds: float = 20.0, stream_delay: float = 0.0) -> None:
        self.poll_seconds = poll_seconds
        self.stream_delay = stream_delay
        self.deliver_delay = 0.0
        self.body_delay = 0.0
        self.fail: Callable[[str, int], int | None] = lambda call, number: None
        self.is_down = False
        self.max_result_bytes = 20_000_000
        self.calls: Counter[str] = Counter()
        self.wrong_headers: list[str] = []  # of calls for a job that did not carry its id, or not the key
        self.jobs: dict[str, JobRecord] = {}
        self.pings: list[dict[str, str]] = []
        self.takes = 0
        self.port = 0
        self._waiting: deque[str] = deque()
        self._to_stop: list[str] = []
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fake-queue", daemon=True)

    # ------------------------------------------------------------------ for the tests

    def __enter__(self) -> FakeQueue:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def env(self) -> dict[str, str]:
        """The variables with which the platform starts a worker."""
        base = f"http://127.0.0.1:{self.port}/v2/testep"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=TEST",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=TEST",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=TEST",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=TEST",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": WORKER_ID,
            "RUNPOD_AI_API_KEY": "test-key",
            "RUNPOD_ENDPOINT_ID": "testep",
        }

    def submit(self, job_input: Any, job_id: str | None = None, element: str | None = None) -> str:
        return self.submit_all([(job_input, job_id, element)])[0]

    def submit_all(self, jobs: list[tuple[Any, str | None, str | None]]) -> list[str]:
        """Jobs that one job-take can deliver together: each an input, an id or None, and its text where it is odd."""
        ids = []
        with self._changed:
            for job_input, job_id, element in jobs:
                self._count += 1
                job_id = job_id or f"job-{self._count}"
                self.jobs[job_id] = JobRecord(job_id, job_input, time.monotonic(), element=element)
                self._waiting.append(job_id)
                ids.append(job_id)
        self._wake()
        return ids

    def cancel(self, job_id: str) -> None:
        """As /cancel does: the job is CANCELLED at once and the worker is told."""
        with self._changed:
            record = self.jobs[job_id]
            record.status = "CANCELLED"
            if record.taken is not None:
                self._to_stop.append(job_id)
            else:
                self._waiting.remove(job_id)
            self._changed.notify_all()
        self._wake()

    def wait(self, job_id: str, timeout: float = 30.0) -> JobRecord:
        """The record once the job has ended. Raises TimeoutError."""
        self.wait_for(lambda: self.jobs[job_id].status in FINAL, timeout, f"the end of {job_id}")
        return self.jobs[job_id]

    def wait_all(self, job_ids: list[str], timeout: float = 60.0) -> list[JobRecord]:
        deadline = time.monotonic() + timeout
        return [self.wait(job_id, deadline - time.monotonic()) for job_id in job_ids]

    def wait_pieces(self, job_id: str, count: int, timeout: float = 30.0) -> JobRecord:
        """The record once that many pieces were streamed. Raises TimeoutError."""
        self.wait_for(lambda: len(self.jobs[job_id].pieces) >= count, timeout, f"{count} pieces of {job_id}")
        return self.jobs[job_id]

    def wait_taken(self, job_id: str, timeout: float = 30.0) -> JobRecord:
        """The record once the job was handed out. Raises TimeoutError."""
        self.wait_for(lambda: self.jobs[job_id].taken is not None, timeout, f"the taking of {job_id}")
        return self.jobs[job_id]

    def wait_for(self, condition: Any, timeout: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(f"{what} did not come in {timeout:.1f} s; jobs: {self.summary()}")

    def summary(self) -> str:
        return ", ".join(f"{record.id} {record.status} {record.error or ''}" for record in self.jobs.values())

    # ------------------------------------------------------------------ for the worker

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._news = asyncio.Condition()
        app = web.Application(client_max_size=64 * 2**20, middlewares=[self._fault])
        base = "/v2/testep"
        app.router.add_get(base + "/job-take/{worker}", self._take)
        app.router.add_get(base + "/job-take-batch/{worker}", self._take_batch)
        app.router.add_get(base + "/job-stop/{worker}", self._stop_signals)
        app.router.add_post(base + "/job-stream/{worker}/{job}", self._stream)
        app.router.add_post(base + "/job-done/{worker}/{job}", self._done)
        app.router.add_get(base + "/ping/{worker}", self._ping)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _fault(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        call = request.path.split("/")[3]
        with self._changed:
            self.calls[call] += 1
            job = request.match_info.get("job")
            if request.headers.get("Authorization") != "test-key" or (
                job and unquote(request.headers["X-Request-ID"]) != job
            ):
                self.wrong_headers.append(f"{call} {job}: {request.headers.get('X-Request-ID')}")
            status = self.fail(call, self.calls[call])
            self._changed.notify_all()
        if self.is_down and request.transport is not None:
            request.transport.abort()
            return web.Response(status=503)  # nobody gets it
        if status is not None:
            return web.Response(status=status, text="no")
        return await handler(request)

    def _wake(self) -> None:
        async def notify() -> None:
            async with self._news:
                self._news.notify_all()

        asyncio.run_coroutine_threadsafe(notify(), self._loop)

    async def _hold(self, has_news: Any) -> None:
        """Hold a long poll until there is something to answer."""
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(has_news), self.poll_seconds)
            except TimeoutError:
                return

    def _hand_out(self, count: int) -> list[str]:
        jobs: list[str] = []
        with self._changed:
            self.takes += 1
            while self._waiting and len(jobs) < count:
                record = self.jobs[self._waiting.popleft()]
                record.status = "IN_PROGRESS"
                record.taken = time.monotonic()
                jobs.append(record.element or json.dumps({"id": record.id, "input": record.input}))
            self._changed.notify_all()
        return jobs

    async def _take(self, request: web.Request) -> web.StreamResponse:
        await self._hold(lambda: self._waiting)
        jobs = self._hand_out(1)
        return await self._deliver(request, jobs[0] if jobs else None)

    async def _take_batch(self, request: web.Request) -> web.StreamResponse:
        await self._hold(lambda: self._waiting)
        jobs = self._hand_out(int(request.query["batch_size"]))
        return await self._deliver(request, f"[{','.join(jobs)}]" if jobs else None)

    async def _deliver(self, request: web.Request, content: str | None) -> web.StreamResponse:
        await asyncio.sleep(max(0.0, self.deliver_delay - self.body_delay))
        if content is None:
            return web.Response(status=204)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if self.body_delay:
            await response.write(b" ")
            await asyncio.sleep(self.body_delay)
        await response.write(content.encode())
        return response

    async def _stop_signals(self, request: web.Request) -> web.Response:
        await self._hold(lambda: self._to_stop)
        with self._changed:
            stopped, self._to_stop = self._to_stop, []
        return web.json_response({"jobsToStop": stopped}) if stopped else web.Response(status=204)

    async def _stream(self, request: web.Request) -> web.Response:
        content = json.loads(await request.text())
        with self._changed:
            record = self.jobs[request.match_info["job"]]
            record.pieces.append((time.monotonic(), content["output"]))
            self._changed.notify_all()
        await asyncio.sleep(self.stream_delay)
        return web.Response(text="ok")

    async def _done(self, request: web.Request) -> web.Response:
        body = await request.read()
        if len(body) > self.max_result_bytes:
            return web.Response(status=400, text="too large")
        content = json.loads(body)
        with self._changed:
            record = self.jobs[request.match_info["job"]]
            record.done = time.monotonic()
            record.output = content.get("output")
            record.error = content.get("error")
            if record.status != "CANCELLED":
                record.status = "FAILED" if record.error else "COMPLETED"
            self._changed.notify_all()
        return web.Response(text="ok")

    async def _ping(self, request: web.Request) -> web.Response:
        with self._changed:
            self.pings.append(dict(request.query))
            self._changed.notify_all()
        return web.Response(text="ok")
