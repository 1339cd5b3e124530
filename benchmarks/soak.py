"""A soak test: a worker under mixed load for a long time, whose memory, files and threads must not grow.

    python benchmarks/soak.py [--minutes 5 | --hour | --jobs 10000] [--concurrency 32] [--client runpod|direct]

`handler.py` with the demo model takes jobs of random kinds and sizes from a local queue: native and OpenAI form,
streamed and not, scored, constrained, refused and cancelled. Each job's end is checked. The table has both processes by
the minute. The last lines compare the idle worker at the end with the idle worker after its first 3000 jobs, and check
that no page or row is in use. The exit status is 1 if a job ended wrongly or something was left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

from tests.support.fake_queue import FINAL, FakeQueue, JobRecord  # noqa: E402
from tests.support.processes import Process, children  # noqa: E402

HEAD = """| minute | jobs | latency p50, p99 (s) | memory MB | threads | files | sockets |
|---|---|---|---|---|---|---|"""
WARM_JOBS = 3000  # what caches and pools need to fill
CANCELLED = 0.15  # of all jobs
MEMORY_SLACK_MB = 48.0  # of both processes together, between the two idle moments
WORDS = ["what", "is", "the", "capital", "of", "France", "and", "seven", "story", "an", "old", "boat", "in", "JSON"]


@dataclass
class Kind:
    """One sort of job: how it is made, and what must be true of one that was not cancelled."""

    name: str
    make: Callable[[random.Random], dict[str, Any]]
    is_right: Callable[[JobRecord], bool]


def text(rng: random.Random) -> str:
    """1 to about 600 words, mostly few."""
    return " ".join(rng.choice(WORDS) for _ in range(round(10 ** rng.uniform(0, 2.8))))


def size(rng: random.Random) -> int:
    return round(10 ** rng.uniform(0, 2.2))


def chat(rng: random.Random, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text(rng)}]
    body = {"messages": messages, "max_tokens": size(rng), "temperature": rng.choice([0, 0.7, 1]), **body}
    return {"openai_route": "/v1/chat/completions", "openai_input": body}


def _is_whole(record: JobRecord) -> bool:
    usage = record.output[0]["usage"] if record.status == "COMPLETED" else {}
    return usage.get("completion_tokens", 0) > 0 or usage.get("total_tokens", 0) > 0


def _is_stream(record: JobRecord) -> bool:
    return record.status == "COMPLETED" and record.text.endswith("data: [DONE]\n\n") and "error" not in record.text


def _is_refused(record: JobRecord) -> bool:
    return "max_tokens" in str(record.error or record.output)


KINDS = [
    (30, Kind("chat", chat, _is_whole)),
    (30, Kind("chat, streamed", lambda rng: chat(rng, stream=True), _is_stream)),
    (
        15,
        Kind(
            "native",
            lambda rng: {"prompt": text(rng), "sampling_params": {"max_tokens": size(rng), "n": rng.choice([1, 1, 3])}},
            _is_whole,
        ),
    ),
    (
        8,
        Kind(
            "native, streamed",
            lambda rng: {"prompt": text(rng), "stream": True, "sampling_params": {"max_tokens": size(rng)}},
            lambda record: record.status == "COMPLETED" and len(record.pieces) > 0,
        ),
    ),
    (7, Kind("logprobs, n=2", lambda rng: chat(rng, n=2, temperature=1, logprobs=True, top_logprobs=5), _is_whole)),
    (
        5,
        Kind(
            "JSON, by a grammar",
            lambda rng: chat(rng, stream=rng.random() < 0.5, response_format={"type": "json_object"}),
            lambda record: (_is_stream if record.input["openai_input"]["stream"] else _is_whole)(record),
        ),
    ),
    (5, Kind("refused", lambda rng: chat(rng, max_tokens=-1), _is_refused)),
]


@dataclass
class Picture:
    """What both processes of the worker hold."""

    memory_mb: float
    threads: int
    files: int
    sockets: int


def picture(pid: int) -> Picture:
    memory, threads, files, sockets = 0.0, 0, 0, 0
    for process in [pid, *children(pid)]:
        try:
            status = Path(f"/proc/{process}/status").read_text()
            links = [os.readlink(entry) for entry in Path(f"/proc/{process}/fd").iterdir()]
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines())
        memory += int(fields["RssAnon"].split()[0]) / 1024 if "RssAnon" in fields else 0.0
        threads += int(fields["Threads"])
        files += len(links)
        sockets += sum(link.startswith("socket:") for link in links)
    return Picture(memory, threads, files, sockets)


class Soak:
    """Keeps `concurrency` jobs on the way and checks each at its end."""

    def __init__(self, queue: FakeQueue, seed: int, concurrency: int) -> None:
        self.queue = queue
        self.concurrency = concurrency
        self.rng = random.Random(seed)
        self.active: dict[str, tuple[Kind, float | None]] = {}  # with the moment at which it is cancelled
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.latencies: list[float] = []

    @property
    def num_ended(self) -> int:
        return sum(self.ended.values())

    def run(self, is_over: Callable[[], bool], each_minute: Callable[[], None]) -> None:
        """Submit until it is over; then wait for the rest."""
        next_minute = time.monotonic() + 60
        while not is_over() or self.active:
            while not is_over() and len(self.active) < self.concurrency:
                self._submit()
            self._collect()
            if time.monotonic() > next_minute:
                next_minute += 60
                each_minute()
            time.sleep(0.01)

    def _submit(self) -> None:
        (kind,) = self.rng.choices([kind for _, kind in KINDS], [weight for weight, _ in KINDS])
        job_id = self.queue.submit(kind.make(self.rng))
        is_cancelled = self.rng.random() < CANCELLED
        self.active[job_id] = kind, time.monotonic() + self.rng.uniform(0, 0.5) if is_cancelled else None

    def _collect(self) -> None:
        now = time.monotonic()
        for job_id, (kind, cancel_at) in list(self.active.items()):
            record = self.queue.jobs[job_id]
            if record.status in FINAL:
                del self.active[job_id]
                self.ended[f"{kind.name}{' (cancelled)' if record.status == 'CANCELLED' else ''}"] += 1
                if record.status == "CANCELLED":
                    continue
                self.latencies.append((record.done or now) - record.submitted)
                if not kind.is_right(record):
                    self.wrong.append(f"{kind.name}: {record.status} {str(record.error or record.output)[:300]}")
                del self.queue.jobs[job_id]
            elif cancel_at is not None and now > cancel_at:
                self.queue.cancel(job_id)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--hour", action="store_true", help="the same as --minutes 60")
    parser.add_argument("--jobs", type=int, default=None, help="end after so many jobs instead")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--client", default="runpod", choices=["runpod", "direct"])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # A cache that the first jobs fill: pages that were never touched before take memory when they are.
    env = {"MODEL_NAME": "demo", "QUEUE_CLIENT": options.client, "KV_CACHE_MEMORY_BYTES": "128M"}
    seconds = 3600.0 if options.hour else options.minutes * 60
    with FakeQueue() as queue, Process("handler.py", env={**queue.env(), **env}, stdout=subprocess.DEVNULL) as worker:
        queue.wait(queue.submit({"prompt": "Hello", "sampling_params": {"max_tokens": 1}}), 120)
        soak = Soak(queue, options.seed, options.concurrency)
        soak.run(lambda: soak.num_ended >= WARM_JOBS, lambda: None)
        time.sleep(2)
        before, num_warm = picture(worker.popen.pid), soak.num_ended
        soak.latencies.clear()
        began = time.monotonic()

        def is_over() -> bool:
            if options.jobs is not None:
                return soak.num_ended >= options.jobs
            return time.monotonic() - began > seconds

        print(HEAD)
        soak.run(is_over, lambda: _print_row((time.monotonic() - began) / 60, soak, picture(worker.popen.pid)))
        took, num_jobs = time.monotonic() - began, soak.num_ended - num_warm
        time.sleep(2)
        left = _left_behind(before, picture(worker.popen.pid), queue)
    print(f"\n{num_jobs} jobs in {took:.0f} s ({num_jobs / took:.1f}/s); {dict(soak.ended)}")
    for line in soak.wrong[:20]:
        print("WRONG:", line)
    for line in left:
        print("LEFT BEHIND:", line)
    print(f"{len(soak.wrong)} wrong ends, {len(left)} things left behind")
    return 1 if soak.wrong or left else 0


def _print_row(minutes: float, soak: Soak, now: Picture) -> None:
    times = sorted(soak.latencies) or [0.0]
    soak.latencies = []
    latency = f"{statistics.median(times):.2f}, {times[int(len(times) * 0.99)]:.2f}"
    held = f"{now.memory_mb:.0f} | {now.threads} | {now.files} | {now.sockets}"
    print(f"| {minutes:.1f} | {soak.num_ended} | {latency} | {held} |", flush=True)


def _left_behind(before: Picture, after: Picture, queue: FakeQueue) -> list[str]:
    """Prints the comparison."""
    print(f"\nidle after {WARM_JOBS} jobs: {before}\nidle at the end:     {after}")
    grown = {name: getattr(after, name) - getattr(before, name) for name in ("threads", "files", "sockets")}
    left = [f"{count} {name}" for name, count in grown.items() if count > 2]
    if after.memory_mb > before.memory_mb + MEMORY_SLACK_MB:
        left.append(f"{after.memory_mb - before.memory_mb:.0f} MB of memory")
    metrics = queue.wait(queue.submit({"openai_route": "/metrics"}))
    text = str(metrics.output[0] if isinstance(metrics.output, list) else metrics.output)
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name + "{")]
        print(f"{name}: {', '.join(values) or 'missing'}")
        if [float(value) for value in values] != [0.0]:
            left.append(f"{name} is {values}")
    return left


if __name__ == "__main__":
    sys.exit(main())
