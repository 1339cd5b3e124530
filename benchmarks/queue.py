"""The cost of the queue clients: many streamed jobs at once through a local queue, with our client and with the SDK.

    python benchmarks/queue.py [--jobs 64] [--tokens 200] [--pace-ms 10] [--post-ms 0 50] [--rounds 3]

The worker is the real one with a simulated engine, which makes a token with a time stamp for every job each `pace`. The
queue is the tests' own, in this process, and takes `post` for each chunk. Both clients join the tokens made during a
POST; `SDK, a POST per token` is the SDK without joining, as most workers use it. Added latency is the time from the
making of a token to its arrival at the queue. Stream time is the time from a job's first token to the end of its
result, divided by the time in which its tokens were made. CPU time is that of the worker and its children. The figures
are medians over the rounds, in which the clients alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # and not this directory: its queue.py is not the library's

from tests.support.fake_queue import FakeQueue, JobRecord  # noqa: E402
from tests.support.processes import Process, children  # noqa: E402

CLIENTS: dict[str, dict[str, Any]] = {
    "direct": {"queue_client": "direct"},
    "SDK": {"queue_client": "runpod"},
    "SDK, a POST per token": {"queue_client": "runpod", "default_batch_size": 1},
}
COLUMNS = (
    "POST",
    "client",
    "first chunk ms",
    "added latency ms, p50",
    "p99",
    "stream time / generation",
    "pieces/s",
    "CPU s per 1,000 tokens",
)
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(_worker(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pace-ms", type=float, default=10)
    parser.add_argument("--post-ms", type=float, nargs="+", default=[0, 50])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"\n{options.jobs} jobs of {options.tokens} tokens at once, one token each {options.pace_ms:g} ms\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for post in options.post_ms:
        rounds = [{name: _run(name, post, options) for name in CLIENTS} for _ in range(options.rounds)]
        for name in CLIENTS:
            columns = zip(*(each[name] for each in rounds), strict=True)
            first, p50, p99, ratio, pieces, cpu = (statistics.median(column) for column in columns)
            figures = f"{first:.0f} | {p50:.1f} | {p99:.0f} | {ratio:.2f}x | {pieces:.0f} | {cpu:.2f}"
            print(f"| {post:g} ms | {name} | {figures} |", flush=True)


def _run(client: str, post: float, options: argparse.Namespace) -> tuple[float, ...]:
    """One round: first chunk, added latency p50 and p99 (ms), stream time ratio, pieces/s, CPU s per 1,000 tokens."""
    settings = {"model_name": "m", "max_concurrency": options.jobs, **CLIENTS[client]}
    arguments = json.dumps({"pace": options.pace_ms / 1000, "settings": settings})
    body = {"messages": [], "stream": True, "max_tokens": options.tokens}
    with FakeQueue() as queue, Process(__file__, "--worker", arguments, env=queue.env()) as worker:
        warm = {"openai_input": {**body, "max_tokens": 2}}
        queue.wait_all([queue.submit(warm) for _ in range(options.jobs)])  # the connections are there
        queue.stream_delay = post / 1000
        cpu = _cpu_seconds(worker.popen.pid)
        records = queue.wait_all([queue.submit({"openai_input": body}) for _ in range(options.jobs)], 600)
        cpu = _cpu_seconds(worker.popen.pid) - cpu
        worker.terminate()
        worker.wait()
    first = [record.pieces[0][0] - record.submitted for record in records]
    latencies = [arrival - made for record in records for arrival, made in _tokens(record)]
    assert len(latencies) == options.jobs * options.tokens, "tokens are missing"
    generation = options.tokens * options.pace_ms / 1000
    ratios = [((record.done or 0) - _tokens(record)[0][1]) / generation for record in records]
    seconds = max(record.done or 0 for record in records) - min(record.submitted for record in records)
    percentiles = statistics.quantiles(latencies, n=100)
    return (
        1000 * statistics.median(first),
        1000 * percentiles[49],
        1000 * percentiles[98],
        statistics.median(ratios),
        sum(len(record.pieces) for record in records) / seconds,
        cpu / (options.jobs * options.tokens / 1000),
    )


def _tokens(record: JobRecord) -> list[tuple[float, float]]:
    """When each token arrived at the queue, and when it was made."""
    made = []
    for arrival, piece in record.pieces:
        lines = [line.removeprefix("data: ") for line in piece.splitlines() if line.startswith("data: {")]
        made += [(arrival, json.loads(line)["made"]) for line in lines]
    return made


def _cpu_seconds(pid: int) -> float:
    """Of a process and those below it."""
    ticks = 0
    for each in (pid, *children(pid)):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / CLOCK_TICKS


# ------------------------------------------------------------------------------------------------------ the worker


class Clock:
    """Steps of an engine: everybody who waits goes on with each of them."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._step: asyncio.Future[float] | None = None

    async def step(self) -> float:
        """Wait for the next step. Returns its time, which is not later for a loop that was busy then."""
        if self._step is None:
            loop = asyncio.get_running_loop()
            due = (loop.time() // self._pace + 1) * self._pace
            self._step = loop.create_future()
            loop.call_at(due, self._end, self._step, due)
        return await asyncio.shield(self._step)

    def _end(self, step: asyncio.Future[float], due: float) -> None:
        self._step = None
        step.set_result(due)


def _worker(options: dict[str, Any]) -> int:
    """A worker whose engine makes a token for every request in every step. Returns its exit code."""
    from ember.front.api import routes
    from ember.front.api.exchange import Event, EventStream, Request
    from ember.settings import load_settings
    from tests.faces.fakes import FakeWorker, fake_router

    logging.basicConfig(level="WARNING", stream=sys.stderr)
    clock = Clock(options["pace"])

    async def answer(services: Any, request: Request) -> EventStream:
        async def events() -> AsyncGenerator[Event, None]:
            count = request.body["max_tokens"]
            made, last = 0, await clock.step()
            while made < count:
                yield Event(f'{{"made": {last:.6f}}}')
                made += 1
                if made < count:
                    now = await clock.step()
                    while made < count - 1 and now - last > 1.5 * options["pace"]:  # steps that a busy loop has missed
                        last += options["pace"]
                        yield Event(f'{{"made": {last:.6f}}}')
                        made += 1
                    last = now

        return EventStream(events())

    routes.ROUTER = fake_router(answer)  # the faces' one door to the api; they are imported below
    worker: Any = FakeWorker()
    settings = load_settings(options["settings"])
    if settings.queue_client == "direct":
        from ember.front.worker import direct

        return direct.run(settings, worker)
    from ember.front.worker import sdk

    return sdk.run(settings, worker)


if __name__ == "__main__":
    main()
