"""Loading, dying, leaving early: nothing hangs and nothing keeps running."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ember.front.api.router import EventStream, Response
from ember.front.errors import ApiError
from tests.api.fakes import Deployment

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def test_requests_wait_while_the_model_is_loaded(deployment: Deployment) -> None:
    async def run() -> Any:
        deployment.engine.state = "loading"
        asking = asyncio.create_task(deployment.dispatch("POST", CHAT, {"messages": MESSAGES}))
        await asyncio.sleep(0.01)
        assert not asking.done()
        deployment.engine.state = "ready"
        return await asking

    answer = asyncio.run(run())
    assert isinstance(answer, Response)
    assert answer.body["choices"][0]["message"]["content"] == "hello world"


def test_what_is_wrong_with_the_body_is_said_at_once(deployment: Deployment) -> None:
    deployment.engine.state = "loading"
    with pytest.raises(ApiError, match="validation error"):
        deployment.request("POST", CHAT, {})
    with pytest.raises(ApiError, match="does not exist"):
        deployment.request("POST", COMPLETIONS, {"prompt": "x", "model": "other"})


def test_a_failed_boot_is_not_to_be_retried(deployment: Deployment) -> None:
    deployment.engine.state = "dead"
    with pytest.raises(ApiError, match="the GPU is too small for this model") as caught:
        deployment.complete()
    assert caught.value.status == 500
    assert caught.value.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize("prompt", ["hi", ["a", "b"]])
@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_request_aborts_it(deployment: Deployment, prompt: Any, stream: bool) -> None:
    deployment.engine.delay = 10.0

    async def run() -> None:
        body = {"prompt": prompt, "stream": stream}
        asking = asyncio.create_task(deployment.dispatch("POST", COMPLETIONS, body))
        while len(deployment.engine.generations) < (1 if isinstance(prompt, str) else 2):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        asking.cancel()
        done, _ = await asyncio.wait({asking}, timeout=5)
        assert done
        assert asking.cancelled()
        assert len(asyncio.all_tasks()) == 1, "no reader is left behind"

    asyncio.run(run())
    assert all(generation.aborted == [None] for generation in deployment.engine.generations)


@pytest.mark.parametrize("num_taken", [0, 1, 3])
@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "hi"}), (COMPLETIONS, {"prompt": ["a", "b"], "n": 2})],
)
def test_closing_a_stream_aborts_it(deployment: Deployment, path: str, body: Any, num_taken: int) -> None:
    async def run() -> None:
        answer = await deployment.dispatch("POST", path, {**body, "stream": True})
        assert isinstance(answer, EventStream)
        for _ in range(num_taken):
            await anext(answer.events)
        assert not any(generation.is_closed for generation in deployment.engine.generations)
        await answer.events.aclose()
        assert all(generation.is_closed for generation in deployment.engine.generations)
        assert all(generation.aborted == [None] for generation in deployment.engine.generations)
        with pytest.raises(StopAsyncIteration):
            await anext(answer.events)

    asyncio.run(run())


def test_an_error_thrown_into_a_stream_aborts_it(deployment: Deployment) -> None:
    async def run() -> None:
        answer = await deployment.dispatch("POST", CHAT, {"messages": MESSAGES, "stream": True})
        assert isinstance(answer, EventStream)
        with pytest.raises(KeyboardInterrupt):
            await answer.events.athrow(KeyboardInterrupt())
        assert deployment.engine.generations[0].aborted == [None]

    asyncio.run(run())


def test_a_finished_request_aborts_nothing(deployment: Deployment) -> None:
    deployment.stream_chat()
    deployment.complete(["a", "b"])
    assert all(generation.is_closed and not generation.aborted for generation in deployment.engine.generations)


def test_a_stream_begins_with_the_first_output_not_earlier(deployment: Deployment) -> None:
    deployment.engine.delay = 0.02

    async def run() -> None:
        asking = asyncio.create_task(deployment.dispatch("POST", CHAT, {"messages": MESSAGES, "stream": True}))
        await asyncio.sleep(0.01)
        assert not asking.done()
        answer = await asking
        assert isinstance(answer, EventStream)
        first = json.loads((await anext(answer.events)).data)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert len(deployment.engine.generations[0].steps) == 6, "one of seven steps was read"
        await answer.events.aclose()

    asyncio.run(run())


def test_what_gathers_while_a_chunk_is_sent_goes_out_as_one(deployment: Deployment) -> None:
    deployment.says("hello world", per_step=1)
    steps = list(deployment.engine.script([], deployment_sampling(deployment)))
    gathered = [steps[0], [output for step in steps[1:] if isinstance(step, list) for output in step]]
    deployment.engine.script = lambda prompt, sampling: gathered
    chunks = deployment.stream_chat()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:]]
    assert deltas == [{"content": "hello"}, {"content": " world"}]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def deployment_sampling(deployment: Deployment) -> Any:
    deployment.chat()
    return deployment.engine.sampling


def test_the_loop_goes_on_while_a_long_prompt_is_tokenised(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    encode = deployment.tokenizer.encode
    loop_went_on = threading.Event()

    def waiting(text: str, add_special_tokens: bool = True) -> list[int]:
        assert loop_went_on.wait(60), "nothing else ran meanwhile"
        return encode(text, add_special_tokens)

    monkeypatch.setattr(deployment.tokenizer, "encode", waiting)

    async def run() -> None:
        asking = asyncio.create_task(deployment.dispatch("POST", COMPLETIONS, {"prompt": "hi"}))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not asking.done()
        loop_went_on.set()
        await asking

    asyncio.run(run())
