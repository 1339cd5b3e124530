"""An engine that falls silent while requests are in flight is ended; one that is slow, idle or booting is not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from ember import wire
from ember.boot import Timeline
from ember.front.errors import ApiError
from ember.front.link import silence
from ember.front.link.client import EngineClient
from tests.front.test_client import READY, SAMPLING, ScriptedEngine, engines, output, soon  # noqa: F401

PATIENCE_S = 20.0
TIMEOUT_S = 0.3
LIMIT_S = 0.4  # with the grace


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "POLL_S", 0.02)
    monkeypatch.setattr(silence, "ASK_AFTER_S", 0.05)
    monkeypatch.setattr(silence, "GRACE_S", LIMIT_S - TIMEOUT_S)


pytestmark = pytest.mark.anyio


async def begin(engine: ScriptedEngine, timeout: float = TIMEOUT_S, ready: bool = True) -> EngineClient:
    configure = wire.Configure("model", step_timeout=timeout)
    client = EngineClient(engine.handle, configure, Timeline("test"), restarts=1)
    await client.start()
    assert await engine.read() == configure
    if ready:
        engine.write(READY)
        await client.wait_ready()
    return client


async def answering(engine: ScriptedEngine) -> AsyncIterator[wire.FrontMessage]:
    """Answers what it is asked, as an engine does between two steps; everything else comes out here."""
    while True:
        message = await engine.read()
        if message == wire.GetStats():
            engine.write(wire.Stats(1, 0, 4, 4, 0, 0, 0, 0, 0, 0))
        else:
            yield message


async def test_a_silent_engine_is_ended_and_started_again(engines, caplog):  # noqa: F811
    client = await begin(engines[0])
    first, second = client.generate([1], SAMPLING), client.generate([2], SAMPLING)
    stats = asyncio.create_task(client.stats())
    async with asyncio.timeout(PATIENCE_S):
        for waiting in (anext(first), anext(second), stats):
            with pytest.raises(ApiError, match="engine hangs.*STEP_TIMEOUT=0.3 seconds") as caught:
                await waiting
            assert caught.value.status == 500
        while len(engines) < 2:
            await asyncio.sleep(0.01)
        assert engines[0].process.wait(10) == -signal.SIGKILL
        assert isinstance(await engines[1].read(), wire.Configure)
        await asyncio.sleep(2 * LIMIT_S)  # a boot is not watched
        engines[1].write(READY)
        await client.wait_ready()
        generation = client.generate([5], SAMPLING)
        request = await engines[1].read()
        engines[1].write(wire.Outputs([output(request.request_id, [6], finish="stop")]))
        assert [o.token_ids for o in await anext(generation)] == [[6]]
    assert "the engine is being restarted" in caplog.text
    await client.close()


async def test_an_engine_that_answers_between_its_steps_may_take_its_time(engines):  # noqa: F811
    client = await begin(engines[0])
    generation = client.generate([1], SAMPLING)
    messages = answering(engines[0])
    request = await anext(messages)
    rest = asyncio.create_task(anext(messages))
    await asyncio.sleep(4 * LIMIT_S)
    assert client.is_ready
    engines[0].write(wire.Outputs([output(request.request_id, [6], finish="stop")]))
    assert [o.token_ids for o in await anext(generation)] == [[6]]
    rest.cancel()
    await client.close()


@pytest.mark.parametrize(
    ("timeout", "ready", "busy"), [(TIMEOUT_S, True, False), (TIMEOUT_S, False, False), (0, True, True)]
)
async def test_silence_that_means_nothing(engines, timeout, ready, busy):  # noqa: F811
    client = await begin(engines[0], timeout, ready)
    if busy:
        client.generate([1], SAMPLING)
    elif ready:
        client.generate([1], SAMPLING).abort()
    await asyncio.sleep(4 * LIMIT_S)
    assert engines[0].process.poll() is None and len(engines) == 1
    assert client.is_ready is ready
    await client.close()


async def test_time_in_which_the_front_did_not_run_is_not_the_engines(engines):  # noqa: F811
    client = await begin(engines[0])
    generation = client.generate([1], SAMPLING)
    request = await engines[0].read()
    await asyncio.sleep(0)
    time.sleep(3 * LIMIT_S)  # as a process that is stopped: the loop has no turn
    await asyncio.sleep(0.05)
    engines[0].write(wire.Outputs([output(request.request_id, [6], finish="stop")]))
    assert [o.token_ids for o in await anext(generation)] == [[6]]
    await client.close()


async def test_a_stopped_engine_is_not_ready_until_it_goes_on(engines):  # noqa: F811
    client = await begin(engines[0], timeout=0)
    os.kill(engines[0].process.pid, signal.SIGSTOP)
    assert soon(lambda: not client.is_ready) and not client.is_dead
    client.generate([1], SAMPLING)  # it may wait
    os.kill(engines[0].process.pid, signal.SIGCONT)
    assert soon(lambda: client.is_ready)
    await client.close()
