"""The client against a scripted engine on the other end of a real socketpair."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ember import wire
from ember.boot import Timeline
from ember.front.errors import ApiError
from ember.front.link import client as client_module
from ember.front.link import outbox
from ember.front.link.admission import Admission
from ember.front.link.client import EngineClient
from ember.front.link.engine import EngineError
from ember.front.link.pooling import MIN_AHEAD, PoolOptions, PoolText
from ember.front.link.reap import reap
from ember.front.link.spawn import EngineProcess
from ember.front.link.suspects import fingerprint

READY = wire.Ready("Test", "cpu", "float32", 100, 64, 8, 16, 4, 32, [2], 1000, [], [])
SAMPLING = wire.SamplingParams(max_tokens=5)


class ScriptedEngine:
    """Plays the engine: a sleeping process for its life and death, and its end of the socket to read and write."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(5)
        self.process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        self.handle = EngineProcess(self.process, ours, 0.0)
        self.inbox: list[wire.FrontMessage] = []

    async def read(self) -> wire.FrontMessage:
        while not self.inbox:
            payload = await asyncio.to_thread(wire.recv_frame, self.socket)
            assert payload is not None
            self.inbox += wire.decode_front(payload)
        return self.inbox.pop(0)

    def write(self, message: wire.EngineMessage) -> None:
        self.socket.sendall(wire.encode_engine(message))

    def die(self) -> None:
        self.process.kill()
        self.socket.close()


@pytest.fixture
def engines(monkeypatch):
    """The engines in the order in which the client starts them."""
    made: list[ScriptedEngine] = []

    def spawn() -> EngineProcess:
        made.append(ScriptedEngine())
        return made[-1].handle

    monkeypatch.setattr(client_module, "spawn", spawn)
    spawn()
    yield made
    for engine in made:
        engine.die()
        engine.process.wait()


async def started(engines, restarts=0, ready=True) -> EngineClient:
    client = EngineClient(engines[0].handle, wire.Configure("model"), Timeline("test"), restarts)
    await client.start()
    assert isinstance(await engines[0].read(), wire.Configure)
    if ready:
        engines[0].write(READY)
        assert await client.wait_ready() == READY
    return client


def output(request_id, tokens, index=0, finish=None, **rest) -> wire.SequenceOutput:
    return wire.SequenceOutput(request_id, index, tokens, finish, **rest)


@pytest.fixture
def anyio_backend():
    return "asyncio"


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleep_ends_the_process_and_a_start_serves_what_waits(engines, level, tmp_path):
    client = await started(engines)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    engines[0].write(wire.Located(str(tmp_path), str(tmp_path)))
    await client.located
    running = client.generate([1], SAMPLING)
    await client.control.sleep(level, "abort")
    assert [outputs async for outputs in running] == [] and engines[0].process.poll() is not None
    assert not client.is_ready and not client.is_dead and not client.dead.is_set()
    with pytest.raises(ApiError, match="asleep") as caught:
        client.generate([2], SAMPLING)
    assert caught.value.status == 503
    waiting = asyncio.create_task(client.wait_ready())
    waking = asyncio.create_task(client.control.wake_up())
    while len(engines) < 2:
        await asyncio.sleep(0.01)
    assert isinstance(await engines[1].read(), wire.Configure)
    assert not waiting.done()
    engines[1].write(READY)
    await waking
    assert await waiting == READY and client.is_ready
    client.generate([2], SAMPLING)
    assert (await engines[1].read()).prompt_token_ids == [2]
    engines[1].die()
    await client.dead.wait()  # it does not restart: it sleeps no more


async def test_a_boot_that_fails_after_a_sleep_is_final(engines, tmp_path):
    client = await started(engines)
    engines[0].write(wire.Located(str(tmp_path), str(tmp_path)))
    await client.located
    await client.control.sleep(1, "wait")
    waking = asyncio.create_task(client.control.wake_up(["weights"]))
    while len(engines) < 2:
        await asyncio.sleep(0.01)
    assert isinstance(await engines[1].read(), wire.Configure)  # a socket closed before would lose the message
    engines[1].write(wire.Failed("the weights are gone", "boot"))
    engines[1].die()
    with pytest.raises(EngineError, match="the weights are gone"):
        await waking
    assert client.is_dead


async def located(client: EngineClient, engine: ScriptedEngine, directory: Path) -> None:
    engine.write(wire.Located(str(directory), str(directory)))
    await client.located


async def test_an_engine_that_crashes_as_it_is_put_to_sleep_starts_with_the_wake_up(engines, tmp_path, monkeypatch):
    client = await started(engines, restarts=1)
    await located(client, engines[0], tmp_path)
    running = client.generate([1], SAMPLING)
    may_end = asyncio.Event()

    async def reap_late(process: subprocess.Popen[bytes]) -> int | None:
        await may_end.wait()
        return await reap(process)

    monkeypatch.setattr(client_module, "reap", reap_late)
    async with asyncio.timeout(10):
        sleeping = asyncio.create_task(client.control.sleep(1, "wait"))
        await asyncio.sleep(0.01)
        engines[0].die()
        with pytest.raises(ApiError, match="failed while this request was running"):
            await anext(running)
        while not client._is_stopped:
            await asyncio.sleep(0.01)
        may_end.set()
        await sleeping
        assert len(engines) == 1 and not client.is_dead
        waking = asyncio.create_task(client.control.wake_up())
        while len(engines) < 2:
            await asyncio.sleep(0.01)
        engines[1].write(READY)
        await waking
        assert client.is_ready and len(engines) == 2
        engines[1].die()
        await client.dead.wait()  # the crash during the sleep was the only one that was allowed


async def test_an_engine_that_is_killed_as_it_wakes_up_is_started_again(engines, tmp_path):
    client = await started(engines, restarts=1)
    await located(client, engines[0], tmp_path)
    async with asyncio.timeout(10):
        await client.control.sleep(1, "wait")
        waking = asyncio.create_task(client.control.wake_up())
        for number in (1, 2):
            while len(engines) <= number:
                await asyncio.sleep(0.01)
            if number == 1:
                engines[1].die()
        engines[2].write(READY)
        await waking
    assert client.is_ready and not client.is_dead


async def test_a_worker_that_shuts_down_refuses_what_waits_for_a_sleep_or_a_boot(engines, tmp_path):
    client = await started(engines, restarts=1)
    await located(client, engines[0], tmp_path)
    async with asyncio.timeout(10):
        await client.control.sleep(1, "wait")
        asleep = asyncio.create_task(client.wait_ready())
        await asyncio.sleep(0.01)
        client.gate.end()  # as the server does at a signal
        with pytest.raises(ApiError, match="shutting down"):
            await asleep
        waking = asyncio.create_task(client.control.wake_up())
        while len(engines) < 2:
            await asyncio.sleep(0.01)
        await client.close()
        for late in (waking, client.wait_ready()):
            with pytest.raises(ApiError, match="shutting down") as caught:
                await late
            assert caught.value.status == 503
    assert not client.gate.is_open


async def test_an_engine_that_crashes_for_good_as_it_is_put_to_sleep_is_dead(engines, tmp_path):
    client = await started(engines)
    await located(client, engines[0], tmp_path)
    client.generate([1], SAMPLING)
    async with asyncio.timeout(10):
        sleeping = asyncio.create_task(client.control.sleep(1, "wait"))
        await asyncio.sleep(0.01)
        engines[0].die()
        with pytest.raises(ApiError, match="not running.*signal 9") as caught:
            await sleeping
    assert caught.value.status == 500 and client.is_dead and not client.control.is_sleeping


async def test_a_stop_during_a_restart_ends_the_new_process_and_loses_nobody_that_waits(engines):
    client = await started(engines, restarts=1)
    async with asyncio.timeout(10):
        engines[0].die()
        while len(engines) < 2:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(client.wait_ready())
        await asyncio.sleep(0.01)
        await client.stop_process()
        assert engines[1].process.poll() is not None and not waiting.done()
        starting = asyncio.create_task(client.start_process())
        while len(engines) < 3:
            await asyncio.sleep(0.01)
        engines[2].write(READY)
        await starting
        assert await waiting == READY
    await client.close()


async def test_a_stop_fails_what_waits_for_statistics_and_expects_no_answer(engines):
    client = await started(engines)
    asking = asyncio.create_task(client.stats())
    assert isinstance(await engines[0].read(), wire.GetStats)
    await client.stop_process()
    with pytest.raises(ApiError, match="put to sleep") as caught:
        await asyncio.wait_for(asking, 10)
    assert caught.value.status == 503 and not client._is_expecting()
    with pytest.raises(ApiError, match="asleep"):
        await client.stats()
    assert client.info == READY and client.tasks == READY.tasks
    await client.close()


async def test_a_pause_holds_the_engine_and_a_reset_is_awaited(engines):
    client = await started(engines)
    running = client.generate([1], SAMPLING)
    await engines[0].read()
    await client.control.pause("keep")
    assert await engines[0].read() == wire.Pause(True)
    await client.control.resume()
    assert await engines[0].read() == wire.Pause(False)
    running.abort()
    resetting = asyncio.create_task(client.reset_prefix_cache())
    assert [type(await engines[0].read()) for _ in range(3)] == [wire.Abort, wire.ResetPrefixCache, wire.GetStats]
    assert not resetting.done()
    engines[0].write(wire.Stats(0, 0, 8, 8, 0, 0, 0, 0, 0, 0))
    await resetting


async def test_outputs_reach_their_requests(engines):
    client = await started(engines)
    first, second = client.generate([1, 2], SAMPLING), client.generate([3], SAMPLING)
    messages = [await engines[0].read(), await engines[0].read()]
    assert [m.prompt_token_ids for m in messages] == [[1, 2], [3]]
    a, b = (m.request_id for m in messages)
    engines[0].write(wire.Outputs([output(a, [7]), output(b, [8])]))
    assert [o.token_ids for o in await anext(first)] == [[7]]
    assert [o.token_ids for o in await anext(second)] == [[8]]
    engines[0].write(wire.Outputs([output(b, [9])]))
    engines[0].write(wire.Outputs([output(b, [10], finish="stop")]))
    await asyncio.sleep(0.05)
    assert [o.token_ids for o in await anext(second)] == [[9], [10]]  # all that came meanwhile, at once
    with pytest.raises(StopAsyncIteration):
        await anext(second)
    await client.close()


async def test_requests_of_one_turn_leave_in_one_frame(engines):
    client = await started(engines)
    for _ in range(3):
        client.generate([1], SAMPLING)
    await engines[0].read()
    assert len(engines[0].inbox) == 2
    await client.close()


async def test_leaving_the_block_aborts_what_is_unfinished(engines):
    client = await started(engines)
    async with client.generate([1], wire.SamplingParams(max_tokens=5, n=2)) as generation:
        request = await engines[0].read()
        engines[0].write(wire.Outputs([output(request.request_id, [4], index=1, finish="stop")]))
        await anext(generation)
    assert await engines[0].read() == wire.Abort(request.request_id)
    assert not client.in_flight.handles
    async with client.generate([1], SAMPLING) as generation:
        request = await engines[0].read()
        engines[0].write(wire.Outputs([output(request.request_id, [4], finish="length")]))
        await anext(generation)
    client.generate([2], SAMPLING)
    assert isinstance(await engines[0].read(), wire.Generate)  # no abort for what was finished
    await client.close()


async def test_aborting_one_sample_drops_its_late_outputs(engines):
    client = await started(engines)
    generation = client.generate([1], wire.SamplingParams(max_tokens=5, n=2))
    request = await engines[0].read()
    generation.abort(0)
    assert await engines[0].read() == wire.Abort(request.request_id, 0)
    engines[0].write(wire.Outputs([output(request.request_id, [4], index=0), output(request.request_id, [5], index=1)]))
    assert [o.index for o in await anext(generation)] == [1]
    generation.abort(1)
    assert await engines[0].read() == wire.Abort(request.request_id)
    with pytest.raises(StopAsyncIteration):
        await anext(generation)
    await client.close()


async def test_stats(engines):
    client = await started(engines)
    task = asyncio.create_task(client.stats())
    assert isinstance(await engines[0].read(), wire.GetStats)
    stats = wire.Stats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    engines[0].write(stats)
    assert await task == stats
    await client.close()


async def test_a_dead_engine_fails_what_is_in_flight_and_is_final_without_restarts(engines):
    client = await started(engines)
    generation = client.generate([1], SAMPLING)
    request = await engines[0].read()
    engines[0].write(wire.Outputs([output(request.request_id, [4])]))
    await anext(generation)
    engines[0].die()
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(anext(generation), 2)
    assert caught.value.status == 500 and "engine" in caught.value.message
    await asyncio.wait_for(client.dead.wait(), 2)
    assert "signal 9" in client.error and client.is_dead and not client.is_ready
    with pytest.raises(EngineError, match="signal 9"):
        await client.wait_ready()
    with pytest.raises(ApiError) as caught:
        client.generate([1], SAMPLING)
    assert caught.value.status == 500
    await client.close()


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold, without a turn of the event loop: a signal that was sent is on its way for a moment."""
    deadline = time.monotonic() + 10.0
    while not holds() and time.monotonic() < deadline:
        pass
    return holds()


@pytest.mark.parametrize("restarts", [0, 1])
async def test_a_killed_engine_is_never_called_ready(engines, restarts):
    client = await started(engines, restarts=restarts)
    assert client.is_ready and not client.is_dead
    engines[0].process.kill()  # its socket is still open, and the loop has no turn in which to hear of anything
    assert soon(lambda: not client.is_ready)
    assert client.is_dead is (restarts == 0)
    engines[0].process.wait()
    assert soon(lambda: not client.is_ready)
    await client.close()


async def test_a_killed_engine_that_has_served_for_long_is_started_again(engines, monkeypatch):
    client = await started(engines, restarts=1)
    client._restarts_left = 0
    monkeypatch.setattr(client_module, "HEALTHY_S", -1.0)
    engines[0].process.kill()
    assert soon(lambda: not client.is_ready) and not client.is_dead
    await client.close()


async def test_a_crashed_engine_is_started_again(engines):
    client = await started(engines, restarts=1)
    generation = client.generate([1], SAMPLING)
    await engines[0].read()
    engines[0].write(wire.Failed("cuda is upset", "run"))
    engines[0].die()
    with pytest.raises(ApiError, match="cuda is upset"):
        await asyncio.wait_for(anext(generation), 2)
    with pytest.raises(ApiError) as caught:
        client.generate([1], SAMPLING)
    assert caught.value.status == 503 and "retry-after-ms" in caught.value.headers
    while len(engines) < 2:
        await asyncio.sleep(0.01)
    assert isinstance(await engines[1].read(), wire.Configure)
    engines[1].write(READY)
    await asyncio.wait_for(client.wait_ready(), 2)
    generation = client.generate([5], SAMPLING)
    request = await engines[1].read()
    engines[1].write(wire.Outputs([output(request.request_id, [6], finish="stop")]))
    assert [o.token_ids for o in await anext(generation)] == [[6]]
    engines[1].die()
    await asyncio.wait_for(client.dead.wait(), 2)
    await client.close()


async def test_the_tokenizers_end_tokens_reach_every_engine(engines):
    client = await started(engines, restarts=1)
    client.add_end_tokens([7, 2, 100])
    assert await engines[0].read() == wire.EndTokens([7]), "2 is known already, 100 has no row"
    assert client.info.eos_token_ids == [2, 7] == (await client.wait_ready()).eos_token_ids
    engines[0].die()
    while len(engines) < 2:
        await asyncio.sleep(0.01)
    assert isinstance(await engines[1].read(), wire.Configure)
    engines[1].write(READY)
    assert (await asyncio.wait_for(client.wait_ready(), 2)).eos_token_ids == [2, 7]
    client.generate([5], SAMPLING)
    assert await engines[1].read() == wire.EndTokens([7])
    assert isinstance(await engines[1].read(), wire.Generate)
    await client.close()


async def test_end_tokens_that_are_known_before_the_engine_is_ready(engines):
    client = await started(engines, ready=False)
    client.add_end_tokens([7])
    engines[0].write(READY)
    assert (await client.wait_ready()).eos_token_ids == [2, 7]
    assert await engines[0].read() == wire.EndTokens([7])
    await client.close()


async def test_a_failed_boot_is_final_and_says_why(engines):
    client = await started(engines, restarts=5, ready=False)
    engines[0].write(wire.Failed("MODEL_NAME=/nope does not exist", "boot"))
    engines[0].die()
    for waiting in (client.wait_ready(), client.located):
        with pytest.raises(EngineError, match="^MODEL_NAME=/nope does not exist$"):
            await asyncio.wait_for(waiting, 2)
    assert len(engines) == 1 and client.is_dead
    await client.close()


def test_frames_survive_any_cutting():
    frames = [wire.encode_engine(wire.Outputs([output(i, list(range(i)))])) for i in range(5)]
    data = b"".join(frames)
    for size in (1, 2, 3, 7, len(data)):
        buffer, found = wire.FrameBuffer(), []
        for i in range(0, len(data), size):
            found += buffer.feed(data[i : i + size])
        assert [wire.decode_engine(payload).outputs[0].request_id for payload in found] == list(range(5))
    with pytest.raises(ValueError, match="frame of"):
        wire.FrameBuffer().feed(b"\xff\xff\xff\xff")


async def test_a_value_that_cannot_be_encoded_fails_its_request_and_no_other(engines):
    client = await started(engines)
    for salt, sampling in (("\ud800", SAMPLING), (None, wire.SamplingParams(max_tokens=1, seed=1 << 70))):
        with pytest.raises(ApiError) as caught:
            client.generate([1], sampling, cache_salt=salt)
        assert caught.value.status == 400
    assert not client.in_flight.handles
    client.generate([7], SAMPLING)
    assert (await asyncio.wait_for(engines[0].read(), 2)).prompt_token_ids == [7]
    await client.close()


async def test_an_engine_that_cannot_be_started_again_is_dead(engines, monkeypatch):
    client = await started(engines, restarts=3)

    def spawn():
        raise OSError("too many open files")

    monkeypatch.setattr(client_module, "spawn", spawn)
    engines[0].die()
    await asyncio.wait_for(client.dead.wait(), 5)
    assert "too many open files" in client.error
    with pytest.raises(EngineError):
        await client.wait_ready()
    await client.close()


async def test_more_than_a_frame_holds_leaves_in_several(engines, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_FRAME_BYTES", 200)
    client = await started(engines)
    for i in range(5):
        client.generate([i] * 100, SAMPLING)
    for i in range(5):
        assert (await engines[0].read()).prompt_token_ids == [i] * 100
        assert len(engines[0].inbox) <= 1
    await client.close()


def test_any_number_of_messages_fits_one_frame():
    for count in (1, 15, 16, 70_000):
        (payload,) = wire.FrameBuffer().feed(wire.frame_front([wire.encode_front(wire.GetStats())] * count))
        assert len(wire.decode_front(payload)) == count


async def crash(engines, client, *prompts):
    """The newest engine dies with these prompts in flight; the next one is ready when this returns."""
    generations = [client.generate(prompt, SAMPLING) for prompt in prompts]
    for _ in prompts:
        await asyncio.wait_for(engines[-1].read(), 2)
    number = len(engines)
    engines[-1].die()
    for generation in generations:
        with pytest.raises(ApiError, match="The engine failed while"):
            await asyncio.wait_for(anext(generation), 5)
    while len(engines) == number:
        await asyncio.sleep(0.01)
    assert isinstance(await engines[-1].read(), wire.Configure)
    engines[-1].write(READY)
    await client.wait_ready()


async def test_the_request_that_ends_the_engine_twice_is_refused_and_its_neighbours_are_not(engines):
    client = await started(engines, restarts=3)
    await crash(engines, client, [1], [2], [3])
    first, second, third = (
        client.generate([1], SAMPLING),
        client.generate([2], SAMPLING),
        client.generate([3], SAMPLING),
    )
    fresh = client.generate([4], SAMPLING)
    requests = [await engines[1].read(), await engines[1].read()]
    assert [request.prompt_token_ids for request in requests] == [[1], [4]]  # one suspect at a time, all others at once
    for request in requests:
        engines[1].write(wire.Outputs([output(request.request_id, [7], finish="stop")]))
    assert [o.token_ids for o in await anext(first)] == [[7]]
    assert [o.token_ids for o in await anext(fresh)] == [[7]]
    assert (await asyncio.wait_for(engines[1].read(), 2)).prompt_token_ids == [2]
    engines[1].die()
    for generation in (second, third):
        with pytest.raises(ApiError, match="The engine failed while"):
            await asyncio.wait_for(anext(generation), 5)
    while len(engines) == 2:
        await asyncio.sleep(0.01)
    assert isinstance(await engines[2].read(), wire.Configure)
    engines[2].write(READY)
    await client.wait_ready()
    with pytest.raises(ApiError, match="crashed the engine twice") as caught:
        client.generate([2], SAMPLING)
    assert caught.value.status == 500 and caught.value.headers == {"x-should-retry": "false"}
    client.generate([1], SAMPLING)
    client.generate([3], SAMPLING)  # it was waiting when the engine ended the second time
    assert [(await engines[2].read()).prompt_token_ids for _ in range(2)] == [[1], [3]]
    await client.close()


async def test_equal_requests_of_one_crash_are_no_culprits(engines):
    client = await started(engines, restarts=3)
    await crash(engines, client, [1], [1], [1])
    generation = client.generate([1], SAMPLING)
    request = await engines[1].read()
    engines[1].write(wire.Outputs([output(request.request_id, [7], finish="stop")]))
    assert [o.token_ids for o in await anext(generation)] == [[7]]
    await client.close()


async def test_a_suspect_whose_client_is_gone_makes_room_for_the_next(engines):
    client = await started(engines, restarts=3)
    await crash(engines, client, [1], [2], [3])
    generations = [client.generate([i], SAMPLING) for i in (1, 2, 3)]
    running = await engines[1].read()
    generations[1].abort()  # the engine never heard of it
    generations[0].abort()
    assert await asyncio.wait_for(engines[1].read(), 2) == wire.Abort(running.request_id)
    assert (await asyncio.wait_for(engines[1].read(), 2)).prompt_token_ids == [3]
    assert list(client.in_flight.handles) == [generations[2].request.request_id]
    await client.close()


async def test_what_waits_for_its_first_token_is_bounded(engines):
    client = EngineClient(
        engines[0].handle, wire.Configure("model"), Timeline("test"), admission=Admission(max_requests=2)
    )
    await client.start()
    await engines[0].read()
    engines[0].write(READY)
    await client.wait_ready()
    generations = [client.generate([1], SAMPLING) for _ in range(2)]
    with pytest.raises(ApiError) as caught:
        client.generate([1], SAMPLING)
    assert caught.value.status == 503
    first = await engines[0].read()
    engines[0].write(wire.Outputs([output(first.request_id, [7])]))
    await anext(generations[0])  # it runs now, and makes room for one more
    generations.append(client.generate([1], SAMPLING))
    with pytest.raises(ApiError):
        client.generate([1], SAMPLING)
    generations[1].abort()
    client.generate([1], SAMPLING)
    await client.close()


async def test_a_client_that_is_closed_while_a_crash_is_cleared_up_starts_nothing(engines):
    client = await started(engines, restarts=3)
    engines[0].die()
    while client.is_ready:
        await asyncio.sleep(0)
    await client.close()  # before the dead process was waited for
    await asyncio.sleep(0.2)
    assert len(engines) == 1


async def test_a_pooling_request_returns_its_one_output(engines):
    client = await started(engines)
    shared = {"priority": 3, "cache_salt": "salt", "adapter": "sql"}
    options = {"token_type_ids": [0, 1], "dimensions": 2, "use_activation": False, **shared}
    pooling = asyncio.create_task(client.pool([4, 5], "embed", **options))
    request = await engines[0].read()
    assert request == wire.Pool(request.request_id, [4, 5], "embed", **options)
    pooled = wire.Pooled(struct.pack("<2f", 0.5, -1.0), [2])
    answer = msgspec.structs.replace(output(request.request_id, [], finish="stop"), pooled=pooled)
    engines[0].write(wire.Outputs([answer]))
    assert await asyncio.wait_for(pooling, 5) == answer
    assert not client.in_flight.handles and client.admission.num_requests == 0
    await client.close()


@pytest.mark.parametrize(("param", "status"), [("model", 400), (None, 500)])
async def test_a_pooling_request_that_the_engine_refuses_is_an_error(engines, param, status):
    client = await started(engines)
    pooling = asyncio.create_task(client.pool([4], "score"))
    request = await engines[0].read()
    answer = output(request.request_id, [], finish="error", error="It does not.", error_param=param)
    engines[0].write(wire.Outputs([answer]))
    with pytest.raises(ApiError, match="It does not") as caught:
        await asyncio.wait_for(pooling, 5)
    assert (caught.value.status, caught.value.param) == (status, param)
    await client.close()


async def test_a_pooling_request_that_is_cancelled_is_aborted(engines):
    client = await started(engines)
    pooling = asyncio.create_task(client.pool([4], "classify"))
    request = await engines[0].read()
    pooling.cancel()
    assert await asyncio.wait_for(engines[0].read(), 5) == wire.Abort(request.request_id)
    await client.close()


async def test_a_pooling_request_fails_with_the_engine(engines):
    client = await started(engines)
    pooling = asyncio.create_task(client.pool([4], "classify"))
    await engines[0].read()
    engines[0].die()
    with pytest.raises(ApiError, match="The engine failed while"):
        await asyncio.wait_for(pooling, 5)
    await client.close()


async def test_texts_of_one_request_are_sent_as_the_engine_has_room_and_come_back_in_order(engines):
    client = await started(engines)
    client.admission = Admission(max_requests=1, max_tokens=100)
    texts = [PoolText([position] * 8) for position in range(100)]  # a step has 32 tokens
    pooling = asyncio.create_task(client.pool_many(texts, PoolOptions("embed")))
    requests = [await engines[0].read()]
    assert len(engines[0].inbox) == MIN_AHEAD - 1
    with pytest.raises(ApiError, match="as many as MAX_NUM_QUEUED_REQS allows"):
        client.generate([1], SAMPLING)
    assert (client.admission.num_requests, client.admission.num_tokens) == (1, 800)
    while not pooling.done():
        requests += engines[0].inbox
        engines[0].inbox.clear()
        assert len(requests) <= MIN_AHEAD
        last = requests.pop()  # the engine may be done with them in any order
        answer = output(last.request_id, [], finish="stop", pooled=wire.Pooled(b"", last.prompt_token_ids[:1]))
        engines[0].write(wire.Outputs([answer]))
        await asyncio.sleep(0.002)
        if not requests and not pooling.done():
            requests.append(await engines[0].read())
    assert [answer.pooled.shape for answer in pooling.result()] == [[position] for position in range(100)]
    assert client.admission.num_requests == client.admission.num_tokens == 0 and not client.in_flight.handles
    await client.close()


async def test_texts_that_are_left_end_with_a_request_that_fails_or_is_cancelled(engines):
    client = await started(engines, restarts=1)
    texts = [PoolText([position]) for position in range(1000)]
    for error, end in (("broken", ApiError), (None, asyncio.CancelledError)):
        pooling = asyncio.create_task(client.pool_many(texts, PoolOptions("embed")))
        first = await engines[0].read()
        others = [message.request_id for message in engines[0].inbox]
        engines[0].inbox.clear()
        if error is None:
            pooling.cancel()
        else:
            engines[0].write(wire.Outputs([output(first.request_id, [], finish="error", error=error)]))
        with pytest.raises(end):
            await pooling
        await asyncio.sleep(0)
        await engines[0].read()
        aborted = {message.request_id for message in engines[0].inbox}
        assert aborted < {first.request_id, *others} and len(aborted) == len(others) - (error is not None)
        engines[0].inbox.clear()
        assert client.admission.num_requests == client.admission.num_tokens == 0 and not client.in_flight.handles
    pooling = asyncio.create_task(client.pool_many(texts, PoolOptions("embed")))
    await engines[0].read()
    engines[0].die()
    with pytest.raises(ApiError, match="The engine failed while this request was running"):
        await pooling
    assert client.admission.num_tokens == 0 and not client.in_flight.handles
    await client.close()


def test_suspects_are_told_apart_by_what_they_ask_for():
    requests = [
        wire.Generate(1, [1], SAMPLING),
        wire.Generate(1, [1], SAMPLING, adapter="sql"),
        wire.Generate(1, [1], wire.SamplingParams(max_tokens=6)),
        wire.Pool(1, [1], "embed"),
        wire.Pool(1, [1], "score"),
        wire.Pool(1, [2], "score"),
    ]
    assert len({fingerprint(request) for request in requests}) == len(requests)
    again = wire.Pool(7, [1], "embed", priority=2, cache_salt="salt")
    assert fingerprint(again) == fingerprint(requests[3])
