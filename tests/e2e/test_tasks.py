"""The front's client and a real engine process: a task that the model does not do is refused, and nothing else ends."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from ember import wire
from ember.boot import Timeline
from ember.front.errors import ApiError
from ember.front.link.client import EngineClient
from ember.front.link.spawn import spawn
from tests.e2e.conftest import BOOT_SECONDS

PROMPT = list(range(40, 60))
SAMPLING = wire.SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)


async def generated(client: EngineClient) -> list[int]:
    async with client.generate(PROMPT, SAMPLING) as generation:
        return [token_id async for outputs in generation for output in outputs for token_id in output.token_ids]


async def refused(client: EngineClient, task: wire.PoolingTask) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await client.pool(PROMPT, task)
    return caught.value


async def ask_for_every_task() -> None:
    client = EngineClient(spawn(), wire.Configure("demo", device="cpu"), Timeline("test"))
    await client.start()
    try:
        ready = await asyncio.wait_for(client.wait_ready(), BOOT_SECONDS)
        assert ready.tasks == ("generate",)
        alone = await generated(client)
        beside = [asyncio.create_task(generated(client)) for _ in range(2)]
        tasks = get_args(wire.PoolingTask)
        errors = await asyncio.gather(*(refused(client, task) for task in tasks))
        for task, error in zip(tasks, errors, strict=True):
            assert (error.status, error.type, error.param) == (400, "BadRequestError", "model")
            assert error.message.startswith("This model generates; it does not ")
            assert task.split("_")[-1] in error.message
        async with client.generate(PROMPT, SAMPLING, adapter="sql") as generation:
            (output,) = await anext(generation)
        assert output.error == "The adapter 'sql' is not loaded."
        assert await asyncio.gather(*beside) == [alone, alone]
        assert len(alone) == SAMPLING.max_tokens
        assert await generated(client) == alone
        stats = await client.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
    finally:
        await client.close()


def test_a_model_refuses_the_tasks_that_it_does_not_do() -> None:
    asyncio.run(ask_for_every_task())
