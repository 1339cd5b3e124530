"""Attacks on the processes: killed, or standing still, while requests are in flight."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

import aiohttp

from tests.attack.report import Report, chat, time_left
from tests.attack.server import QUESTION, Server
from tests.support.processes import children

_SEEDS = itertools.count(1)


async def _in_flight(server: Server, report: Report, during: Callable[[], Awaitable[None]]) -> None:
    """Run something while requests are in flight; each of them must come to an end, in an answer or in an error. No two
    are equal: a request that was in flight when the engine ended twice is refused."""

    async def one(stream: bool) -> None:
        data = json.dumps(chat(max_tokens=800, ignore_eos=True, stream=stream, seed=next(_SEEDS)))
        try:
            status, text = await server.post(data)
        except aiohttp.ClientError as error:
            report.count(type(error).__name__)
            return
        report.check_answer("in flight", status, text, allowed=(500, 503))

    tasks = [asyncio.create_task(one(stream)) for stream in (False, True) * 4]
    await asyncio.sleep(0.2)
    await during()
    await asyncio.gather(*tasks)


async def killed_engine(server: Server, rng: random.Random, seconds: float) -> Report:
    """The engine's process ends in the middle of requests: they end in errors, and a new engine serves."""
    report = Report()
    began = time.monotonic()
    while time_left(began, seconds) or not report.attempts:

        async def kill() -> None:
            os.kill(server.engine_pid, rng.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGTERM, signal.SIGSEGV]))

        await _in_flight(server, report, kill)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, AssertionError):
                await server.ask(QUESTION)
                break
            await asyncio.sleep(0.2)
    return report


async def stopped(server: Server, rng: random.Random, seconds: float) -> Report:
    """The engine, the front or both stand still for a while and go on: no request is lost."""
    report = Report()
    began = time.monotonic()
    while time_left(began, seconds) or not report.attempts:

        async def stop() -> None:
            pids = rng.choice([[server.engine_pid], [server.process.popen.pid], [*children(server.process.popen.pid)]])
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(rng.uniform(0.1, 1.5))
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        fresh = Report()
        await _in_flight(server, fresh, stop)
        report.attempts += fresh.attempts
        report.outcomes += fresh.outcomes
        if fresh.outcomes["200"] != fresh.attempts:
            report.wrong.append(f"requests were lost while a process stood still: {fresh.outcomes} {fresh.wrong}")
    return report
