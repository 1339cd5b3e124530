"""Our own queue client where the SDK has no counterpart: addresses, odd answers, jobs that come twice."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.routes import ROUTER
from ember.front.worker import queue as queue_module
from ember.front.worker import queue_api as queue_api_module
from ember.front.worker.handler import Handling, ThisLoop
from ember.front.worker.queue import Queue
from ember.front.worker.queue_api import Addresses, QueueApi, QueueError, Refused, TooManyRequests, make_session
from ember.front.worker.waits import Backoff
from tests.faces.fakes import event, frame
from tests.support.fake_queue import FakeQueue
from tests.support.processes import Process


@pytest.fixture
def queue() -> Iterator[FakeQueue]:
    with FakeQueue() as queue:
        yield queue


ENVIRONMENT = {
    "RUNPOD_WEBHOOK_GET_JOB": "https://api.example/v2/ep/job-take/$ID?gpu=NVIDIA+GeForce+RTX+4090",
    "RUNPOD_WEBHOOK_POST_OUTPUT": "https://api.example/v2/ep/job-done/$RUNPOD_POD_ID/$ID?gpu=X",
    "RUNPOD_WEBHOOK_POST_STREAM": "https://api.example/v2/ep/job-stream/$RUNPOD_POD_ID/$ID?gpu=X",
    "RUNPOD_WEBHOOK_PING": "https://api.example/v2/ep/ping/$RUNPOD_POD_ID",
    "RUNPOD_POD_ID": "pod-1",
    "RUNPOD_AI_API_KEY": "key",
}


def test_addresses_from_the_environment() -> None:
    addresses = Addresses.from_environment(ENVIRONMENT)
    assert addresses.take == "https://api.example/v2/ep/job-take/pod-1?gpu=NVIDIA+GeForce+RTX+4090"
    assert addresses.take_batch == addresses.take.replace("job-take", "job-take-batch")
    assert addresses.stop == addresses.take.replace("job-take", "job-stop")
    assert addresses.stream == "https://api.example/v2/ep/job-stream/pod-1/$ID?gpu=X&isStream=false"
    assert addresses.done == "https://api.example/v2/ep/job-done/pod-1/$ID?gpu=X&isStream=true"
    assert addresses.ping == "https://api.example/v2/ep/ping/pod-1"
    assert addresses.ping_seconds == 10
    assert Addresses.from_environment({**ENVIRONMENT, "RUNPOD_PING_INTERVAL": "0"}).ping_seconds > 0


def test_without_its_own_paths_there_are_neither_batches_nor_stop_signals() -> None:
    addresses = Addresses.from_environment({**ENVIRONMENT, "RUNPOD_WEBHOOK_GET_JOB": "http://q/jobs/$ID"})
    assert addresses.take == "http://q/jobs/pod-1"
    assert addresses.take_batch is None
    assert addresses.stop is None


@pytest.mark.parametrize("name", ["GET_JOB", "POST_OUTPUT", "POST_STREAM"])
def test_a_missing_address_is_named(name: str) -> None:
    with pytest.raises(QueueError, match=f"RUNPOD_WEBHOOK_{name}="):
        Addresses.from_environment({**ENVIRONMENT, f"RUNPOD_WEBHOOK_{name}": "JOB_URL"})


def test_waits_grow_to_their_bound_and_start_anew() -> None:
    backoff = Backoff(0.1, 2.0)
    waits = [backoff.next() for _ in range(20)]
    assert waits[0] <= 0.1 < waits[3] < 1.0 < waits[10] <= 2.0
    assert max(waits) <= 2.0
    backoff.reset()
    assert backoff.next() <= 0.1


async def _with_calls(queue: FakeQueue, use: Any, patience: float = 300.0) -> Any:
    addresses = Addresses.from_environment(queue.env())
    async with make_session(addresses.key) as session:
        return await asyncio.wait_for(use(QueueApi(addresses, session, patience)), 30)


def test_odd_answers_of_the_queue(queue: FakeQueue) -> None:
    async def take(queue_api: QueueApi) -> list[Any]:
        return await queue_api.read_jobs(await queue_api.ask_for_jobs(2, is_busy=False))

    async def use(queue_api: QueueApi) -> None:
        queue.fail = lambda call, number: 429
        with pytest.raises(TooManyRequests):
            await take(queue_api)
        queue.fail = lambda call, number: 400
        assert await take(queue_api) == []
        queue.fail = lambda call, number: 200  # a text
        assert await take(queue_api) == []
        queue.fail = lambda call, number: 500
        with pytest.raises(QueueError, match="HTTP 500"):
            await take(queue_api)
        with pytest.raises(QueueError, match="HTTP 500"):
            await queue_api.stopped_jobs()
        with pytest.raises(QueueError, match="HTTP 500"):
            await queue_api.ping(["a", "b"])
        queue.is_down = True
        with pytest.raises(QueueError, match="Disconnected"):
            await take(queue_api)

    asyncio.run(_with_calls(queue, use))


def test_pieces_are_tried_again_but_not_for_ever(queue: FakeQueue) -> None:
    async def use(queue_api: QueueApi) -> None:
        job = queue.submit({})
        queue.fail = lambda call, number: (503, 408)[number % 2] if number < 4 else None
        await queue_api.send_piece(job, "text")
        assert queue.jobs[job].streamed == ["text"]
        queue.fail = lambda call, number: 404
        with pytest.raises(Refused) as caught:
            await queue_api.send_result(job, {"output": []})
        assert caught.value.status == 404
        before = queue.calls["job-done"]
        queue.fail = lambda call, number: 500
        with pytest.raises(QueueError, match="not delivered within 1 s: HTTP 500"):
            await queue_api.send_result(job, {"output": []})
        assert queue.calls["job-done"] - before > 2

    asyncio.run(_with_calls(queue, use, patience=1.0))


class Engine:
    """Answers with a stream that goes on until `release` is set."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.release = asyncio.Event()

    async def answer(self, request: Request) -> Response | EventStream:
        self.started.append(request.headers["x-request-id"])

        async def events() -> AsyncGenerator[Event, None]:
            yield event("a")
            await self.release.wait()

        return EventStream(events())


def test_a_job_that_comes_twice_runs_once_and_junk_is_passed_over(queue: FakeQueue) -> None:
    async def use(queue_api: QueueApi) -> None:
        engine = Engine()

        async def ready() -> None:
            return None

        loop = Queue(queue_api, Handling(ThisLoop(), engine.answer, ROUTER, model="m"), 8, ready, 5.0)
        serving = asyncio.create_task(loop.run())
        await asyncio.to_thread(queue.wait_for, lambda: queue.calls["job-take-batch"], 5, "a poll")
        for junk in (None, 5, {"no": "id"}, {"id": 7}, {"id": ""}):
            loop._begin(junk)
        assert loop.job_ids == []
        job = queue.submit({"prompt": "a", "stream": True})
        await asyncio.to_thread(queue.wait_pieces, job, 1)
        loop._begin({"id": job, "input": {"prompt": "a", "stream": True}})
        await asyncio.sleep(0.05)
        assert engine.started == loop.job_ids == [job]
        engine.release.set()
        await asyncio.to_thread(queue.wait, job)
        loop.stop()
        await serving
        assert loop.job_ids == []

    asyncio.run(_with_calls(queue, use))


SPEED = 20.0  # of the worker's clock, in the test below


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds are short."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        select = selector.select
        selector.select = lambda timeout=None: select(timeout and timeout / SPEED)  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return super().time() * SPEED


def test_a_queue_that_is_away_for_a_minute(queue: FakeQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was generated meanwhile arrives, once; the queue is asked now and then, and jobs are taken afterwards."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() * SPEED)
    for module in (queue_api_module, queue_module):
        monkeypatch.setattr(module, "time", clock)

    async def use(queue_api: QueueApi) -> None:
        engine = Engine()

        async def ready() -> None:
            return None

        loop = Queue(queue_api, Handling(ThisLoop(), engine.answer, ROUTER, model="m"), 8, ready, 5.0)
        serving = asyncio.create_task(loop.run())
        streamed = queue.submit({"prompt": "a", "stream": True})
        await asyncio.to_thread(queue.wait_pieces, streamed, 1)
        queue.is_down = True
        queue.submit({"prompt": "lost"})  # ends the open poll: it goes down with the connection
        engine.release.set()
        before = queue.calls.total()
        await asyncio.sleep(60)
        tries = queue.calls.total() - before
        queue.is_down = False
        later = queue.submit({"prompt": "b", "stream": True})
        for job in (streamed, later):
            record = await asyncio.to_thread(queue.wait, job)
            assert (record.status, record.text) == ("COMPLETED", frame("a") + "data: [DONE]\n\n")
        assert 3 < tries < 100
        loop.stop()
        await serving

    addresses = Addresses.from_environment(queue.env())

    async def run() -> None:
        async with make_session(addresses.key) as session:
            await use(QueueApi(addresses, session))

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(run())


def test_no_job_is_taken_while_the_engine_is_started_again(queue: FakeQueue) -> None:
    is_ready = threading.Event()

    async def use(queue_api: QueueApi) -> None:
        engine = Engine()
        engine.release.set()

        async def ready() -> None:
            while not is_ready.is_set():
                await asyncio.sleep(0.01)

        loop = Queue(queue_api, Handling(ThisLoop(), engine.answer, ROUTER, model="m"), 8, ready, 5.0)
        serving = asyncio.create_task(loop.run())
        job = queue.submit({"prompt": "a", "stream": True})
        await asyncio.sleep(0.3)
        assert queue.jobs[job].taken is None
        is_ready.set()
        await asyncio.to_thread(queue.wait, job)
        is_ready.clear()
        loop.stop()
        await serving

    asyncio.run(_with_calls(queue, use))


def test_the_sdk_stays_out() -> None:
    code = "import sys, ember.front.worker.direct, ember.front.worker.queue; print('runpod' in sys.modules)"
    with Process("-c", code) as process:
        assert process.output() == "False\n"


def test_the_key_is_not_shown() -> None:
    addresses = Addresses.from_environment({**ENVIRONMENT, "RUNPOD_AI_API_KEY": "planted"})
    assert addresses.key == "planted"
    assert "planted" not in repr(addresses)
