"""The job loop's waits, and a stop that comes at an awkward moment."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future
from typing import Any

import pytest

from ember.front.api.routes import ROUTER
from ember.front.worker import waits
from ember.front.worker.handler import Handling, ThisLoop
from ember.front.worker.sdk import import_sdk


@pytest.fixture(autouse=True)
def sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    import_sdk()


def unless(work: Any, stop_after: float, grace: float = 0.0) -> Any:
    async def scenario() -> Any:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(stop_after, stop.set)
        return await waits.unless(stop, work(), grace)

    return asyncio.run(scenario())


async def late() -> str:
    await asyncio.sleep(0.1)
    return "job"


async def unstoppable() -> str:
    """As `asyncio.wait_for` in Python 3.11 when the answer arrives in the turn in which it is cancelled."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "job"
    return "late"


async def failing() -> str:
    try:
        await asyncio.sleep(60)
    finally:
        raise OSError("connection lost")


def test_what_was_delivered_is_not_dropped() -> None:
    assert unless(unstoppable, 0.01) == "job"
    assert unless(late, 0.01, grace=5) == "job"
    assert unless(late, 0.01, grace=0.02) is None
    assert unless(late, 0.01) is None
    assert unless(failing, 0.01) is None
    assert unless(late, 60) == "job"


def test_a_stop_before_the_loop_runs() -> None:
    from ember.front.worker.scaler import Scaler

    polls = []

    async def fetch(session: Any, count: int) -> list[Any]:
        polls.append(count)
        return []

    async def answer(request: Any) -> Any:
        raise AssertionError

    handling = Handling(ThisLoop(), answer, ROUTER, model="m")
    scaler = Scaler({"concurrency_modifier": lambda _: 1, "handler": None}, handling, Future, 1.0)
    scaler.jobs_fetcher = fetch
    scaler.handle_shutdown(15, None)
    asyncio.run(asyncio.wait_for(scaler.run(), 5))
    assert not polls
    scaler.kill_worker()  # a second signal, when the loop is closed already


def test_the_time_to_drain_counts_from_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes between, such as the moment in which a job may still be delivered, is no extra."""
    monkeypatch.setattr(waits.time, "monotonic", lambda: 103.0)
    assert waits.time_left(None, 30.0) == 30.0
    assert waits.time_left(100.0, 30.0) == 27.0
    assert waits.time_left(10.0, 30.0) == 0.0
