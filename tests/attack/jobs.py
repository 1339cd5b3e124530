"""Attacks on the platform and its worker: odd jobs, odd ids, cancels at every moment, and workers that lie."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import urllib.parse
from typing import Any

import aiohttp

from tests.attack.report import Report, chat, time_left
from tests.attack.requests import hostile_value
from tests.attack.server import CHAT, ENDPOINT, KEY, Server

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


def _input(rng: random.Random) -> str:
    """JSON text of one job's input: sound, refused, or odd."""
    sound: list[Any] = [
        {"prompt": "Hello", "sampling_params": {"max_tokens": rng.choice([1, 20, 400])}, "stream": rng.random() < 0.5},
        {"openai_route": CHAT, "openai_input": chat(stream=rng.random() < 0.5)},
        {"route": "/v1/completions", "body": {"prompt": "Hello", "max_tokens": 5}},
        {"openai_route": "/v1/models"},
        {"openai_route": CHAT, "openai_input": chat(max_tokens=-1)},
        {"messages": [{"role": "user", "content": "x" * 100_000}]},
        {"openai_route": "/../../etc/passwd"},
        {"prompt": ["a", 1, None]},
    ]
    return json.dumps(rng.choice(sound)) if rng.random() < 0.6 else hostile_value(rng)


def _odd_id(rng: random.Random) -> str:
    odd = rng.choice(
        ["..", "../health", "a/b", "a?b", "a#b", "\n", "\x00", "a" * 5000, "%2e%2e", "ü🦊", " ", "-1", "{}"]
    )
    return urllib.parse.quote(odd, safe="")


async def jobs(server: Server, rng: random.Random, seconds: float) -> Report:
    """Hundreds of jobs, a third of them odd, a third cancelled: each that was accepted comes to an end."""
    report = Report()
    began = time.monotonic()
    accepted: list[str] = []

    async def one() -> None:
        extra = rng.choice(["", "", "", f', "webhook": {hostile_value(rng)}', f', "policy": {hostile_value(rng)}'])
        data = f'{{"input": {_input(rng)}{extra}}}'
        status, text = await server.post(data.encode("utf-8", "replace"), f"{ENDPOINT}/run")
        report.check_answer(data[:150], status, text)
        if status != 200:
            return
        job_id = json.loads(text)["id"]
        accepted.append(job_id)
        if rng.random() < 0.3:
            await asyncio.sleep(rng.uniform(0, 0.3))
            status, text = await server.post("", f"{ENDPOINT}/cancel/{job_id}")
            report.check_answer("cancel", status, text)

    async def odd() -> None:
        call = rng.choice(["status", "stream", "cancel", "retry", "nothing", "job-done", "job-stream"])
        status, text = await server.post(hostile_value(rng), f"{ENDPOINT}/{call}/{_odd_id(rng)}")
        report.check_answer(call, status, text)

    while time_left(began, seconds):
        await asyncio.gather(*(one() for _ in range(8)), odd())
    deadline = time.monotonic() + 120
    for job_id in accepted:
        while True:
            async with server.client.get(f"{ENDPOINT}/status/{job_id}") as response:
                status, record = response.status, await response.json()
            if status == 404 or record.get("status") in FINAL:
                report.outcomes[str(record.get("status", status))] += 1
                break
            if time.monotonic() > deadline:
                report.wrong.append(f"job {job_id} is {record.get('status')}")
                break
            await asyncio.sleep(0.1)
    return report


async def lying_workers(server: Server, rng: random.Random, seconds: float) -> Report:
    """Workers that take jobs and report nonsense, too much, or nothing."""
    report = Report()
    began = time.monotonic()

    async def lie(worker: aiohttp.ClientSession) -> None:
        path = rng.choice(
            ["job-take/w", "job-take-batch/w?batch_size=3", *["job-done/w/x", "job-stream/w/x", "ping/w"] * 4]
        )
        data = rng.choice([hostile_value(rng), json.dumps({"output": "x" * 100_000}), "[", "\x1b[31m\r\nFAKE LINE"])
        method = rng.choice(["GET", "POST"])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                query = {"reason": data[:300]} if "ping" in path and rng.random() < 0.5 else None
                sent = data.encode("utf-8", "replace")
                async with worker.request(
                    method, f"{ENDPOINT}/{path}", data=sent, params=query, headers={"Content-Type": "application/json"}
                ) as response:
                    text = (await response.read()).decode("utf-8", "replace")
                report.check_answer((path, data[:100]), response.status, text)
                if "job-take" in path and response.status == 200:
                    await _give_back(worker, json.loads(text))

    async with aiohttp.ClientSession(server.base, headers={"Authorization": f"Bearer {KEY}"}) as worker:
        while time_left(began, seconds):
            await asyncio.gather(*(lie(worker) for _ in range(10)))
    if "\nFAKE LINE" in server.process.log() or "\x1b" in server.process.log():
        report.wrong.append("the log has a line or an escape sequence that a worker made up")
    return report


async def _give_back(worker: aiohttp.ClientSession, taken: Any) -> None:
    """A job that was taken from the real worker is failed, so that it comes to an end."""
    for job in taken if isinstance(taken, list) else [taken]:
        async with worker.post(f"{ENDPOINT}/job-done/w/{job['id']}", json={"error": "taken by a liar"}):
            pass
