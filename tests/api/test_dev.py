"""The operator's routes: what they answer, what they do to requests, and what they refuse."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ember.front.api.exchange import Request, Response
from ember.front.api.routes import ROUTER, ROUTES
from ember.front.errors import ApiError
from ember.front.worker.inputs import parse_input
from tests.api.fakes import Deployment

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def deployment(deploy: Any) -> Deployment:
    made: Deployment = deploy(server_dev_mode=True, enable_sleep_mode=True)
    return made


async def call(deployment: Deployment, method: str, path: str, body: Any = None, **query: str) -> Any:
    answer = await ROUTER.dispatch(deployment.services, Request(method, path, body, query=query))
    assert isinstance(answer, Response) and answer.status == 200
    return answer.body


@pytest.mark.parametrize(
    ("level", "told"), [("0", ["abort", "reset"]), ("1", ["abort", "stop"]), ("2", ["abort", "stop"])]
)
def test_requests_wait_while_the_engine_is_asleep(deployment: Deployment, level: str, told: list[str]) -> None:
    async def run() -> None:
        assert await call(deployment, "POST", "/sleep", level=level) is None
        assert await call(deployment, "GET", "/is_sleeping") == {"is_sleeping": True}
        assert await call(deployment, "GET", "/is_paused") == {"is_paused": True}
        assert ROUTER.find("GET", "/health").route.status(deployment.engine).status == 200  # type: ignore[misc]
        assert ROUTER.find("GET", "/ping").route.status(deployment.engine).status == 204  # type: ignore[misc]
        asked = asyncio.create_task(call(deployment, "POST", CHAT, {"messages": USER}))
        await asyncio.sleep(0.05)
        assert not asked.done() and deployment.engine.told == told
        await call(deployment, "POST", "/wake_up", tags="weights")
        assert await call(deployment, "GET", "/is_sleeping") == {"is_sleeping": True}
        await call(deployment, "POST", "/wake_up", tags="kv_cache")
        assert (await asked)["choices"][0]["message"]["content"] == "hello world"
        assert await call(deployment, "GET", "/is_sleeping") == {"is_sleeping": False}
        assert deployment.engine.told == [*told, *(["start"] if level != "0" else [])]
        await call(deployment, "POST", "/wake_up")  # it is awake

    asyncio.run(run())


def test_a_pause_and_a_sleep_end_apart(deployment: Deployment) -> None:
    async def run() -> None:
        assert await call(deployment, "POST", "/pause", mode="keep") == {"status": "paused"}
        await call(deployment, "POST", "/sleep", level="0", mode="wait")
        assert await call(deployment, "POST", "/resume") == {"status": "resumed", "is_sleeping": True}
        assert await call(deployment, "GET", "/is_paused") == {"is_paused": True}
        await call(deployment, "POST", "/wake_up")
        assert deployment.engine.told == ["pause steps", "go on", "reset"]
        assert deployment.engine.is_ready
        await call(deployment, "POST", "/pause", wait_for_inflight_requests="true", clear_cache="false")
        assert deployment.engine.told[3:] == []

    asyncio.run(run())


def test_a_change_that_fails_or_whose_caller_leaves_stops_nobody_for_good(deployment: Deployment) -> None:
    async def run() -> None:
        async def broken() -> None:
            raise ApiError(503, "The model is being loaded; try again in a moment.")

        reset, deployment.engine.reset_prefix_cache = deployment.engine.reset_prefix_cache, broken  # type: ignore[method-assign]
        with pytest.raises(ApiError, match="being loaded"):
            await call(deployment, "POST", "/pause")
        assert deployment.engine.is_ready
        deployment.engine.reset_prefix_cache = reset  # type: ignore[method-assign]

        deployment.engine.num_others = 1
        leaving = asyncio.create_task(call(deployment, "POST", "/sleep", mode="wait"))
        await asyncio.sleep(0.05)
        leaving.cancel()
        waking = asyncio.create_task(call(deployment, "POST", "/wake_up"))
        await asyncio.sleep(0.05)
        assert not waking.done() and not deployment.engine.gate.is_open and not deployment.engine.told[1:]
        deployment.engine.num_others = 0
        await waking
        assert deployment.engine.told == ["abort", "stop", "start"]
        await call(deployment, "POST", CHAT, {"messages": USER})

    asyncio.run(run())


def test_the_state_while_a_pause_waits_and_while_the_engine_wakes_up(deployment: Deployment) -> None:
    engine = deployment.engine

    def statuses() -> list[int]:
        return [ROUTER.find("GET", path).route.status(engine).status for path in ("/health", "/ping")]  # type: ignore[misc]

    async def run() -> None:
        engine.num_others = 1
        pausing = asyncio.create_task(call(deployment, "POST", "/pause", mode="wait"))
        await asyncio.sleep(0.01)
        assert statuses() == [200, 204]
        assert await call(deployment, "GET", "/is_paused") == {"is_paused": True}
        assert await call(deployment, "POST", "/resume") == {"status": "resumed"}
        with pytest.raises(ApiError, match="ended by /resume") as caught:
            await pausing
        assert caught.value.status == 409 and statuses() == [200, 200]
        engine.num_others = 0
        await call(deployment, "POST", "/sleep")
        engine.state = "loading"  # as in the boot of a wake-up
        assert statuses() == [200, 204]

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/sleep", "/pause"])
def test_a_second_change_ends_what_the_first_waits_for(deployment: Deployment, path: str) -> None:
    engine = deployment.engine

    async def run() -> None:
        engine.num_others = 1

        def abort_all() -> None:
            engine.told.append("abort")
            engine.num_others = 0

        engine.abort_all = abort_all  # type: ignore[method-assign]
        first = asyncio.create_task(call(deployment, "POST", "/sleep", mode="wait"))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="mode 'abort'") as caught:
            await call(deployment, "POST", "/pause", mode="keep")
        assert caught.value.status == 409 and not engine.told
        async with asyncio.timeout(60):
            await call(deployment, "POST", path)
            await first
        assert engine.told[:2] == ["abort", "stop"]

    asyncio.run(run())


@pytest.mark.parametrize("ids", [["mine"], ["chatcmpl-mine"], None])
def test_a_request_that_waits_for_a_sleep_counts_and_can_be_aborted(deployment: Deployment, ids: Any) -> None:
    async def figures() -> tuple[int, bool]:
        page = await call(deployment, "GET", "/metrics")
        line = next(line for line in page.splitlines() if line.startswith("vllm:num_requests_waiting{"))
        return (await call(deployment, "GET", "/load"))["server_load"], line.endswith(" 1.0")

    async def run() -> None:
        await call(deployment, "POST", "/sleep")
        assert (await call(deployment, "POST", "/tokenize", {"prompt": "hi"}))["count"]
        assert (await call(deployment, "POST", "/detokenize", {"tokens": [1]}))["prompt"]
        count = {"messages": USER, "model": "org/tiny"}
        assert (await call(deployment, "POST", "/v1/messages/count_tokens", count))["input_tokens"]
        request = Request("POST", CHAT, {"messages": USER}, {"x-request-id": "mine"})
        asked = asyncio.create_task(ROUTER.dispatch(deployment.services, request))
        await asyncio.sleep(0.01)
        assert await figures() == (1, True)
        for names, number in (({"request_ids": ["other"]}, 0), (ids and {"request_ids": ids}, 1)):
            assert (await call(deployment, "POST", "/abort_requests", names))["aborted"] == number
        with pytest.raises(ApiError, match="was aborted") as caught:
            await asked
        assert caught.value.status == 503 and await figures() == (0, False)

    asyncio.run(run())


def test_what_a_second_sleep_overtakes_waits_on_and_a_background_response_is_answered(deployment: Deployment) -> None:
    async def run() -> None:
        await call(deployment, "POST", "/sleep")
        asked = asyncio.create_task(call(deployment, "POST", CHAT, {"messages": USER}))
        async with asyncio.timeout(60):
            response = await call(deployment, "POST", "/v1/responses", {"input": "hi", "background": True})
            assert response["status"] == "queued"
            for _ in range(5):  # the gate opens for a moment, in which nobody has been tokenised
                await call(deployment, "POST", "/wake_up")
                await call(deployment, "POST", "/sleep", mode="wait")
            await call(deployment, "POST", "/wake_up")
            assert (await asked)["choices"][0]["message"]["content"] == "hello world"
            while response["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0.01)
                response = await call(deployment, "GET", f"/v1/responses/{response['id']}")
        assert response["status"] == "completed"

    asyncio.run(run())


def test_a_sleep_after_a_partial_wake_up_stops_the_engine_again(deployment: Deployment) -> None:
    async def run() -> None:
        for level in ("1", "2"):
            await call(deployment, "POST", "/sleep", level=level)
        await call(deployment, "POST", "/wake_up", tags="weights")
        await call(deployment, "POST", "/sleep", level="0")
        assert deployment.engine.told == ["abort", "stop", "start"]
        await call(deployment, "POST", "/sleep", level="1")
        assert deployment.engine.told[3:] == ["abort", "stop"]
        await call(deployment, "POST", "/wake_up", tags="kv_cache")
        assert deployment.engine.told[5:] == ["start"] and not deployment.engine.is_ready
        await call(deployment, "POST", "/wake_up", tags="weights")
        assert deployment.engine.told[6:] == [] and deployment.engine.is_ready

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["wait", "abort"])
def test_a_pause_lets_a_beam_search_end_or_ends_it(deployment: Deployment, mode: str) -> None:
    async def run() -> None:
        deployment.says("a")
        deployment.engine.delay = 0.001
        body = {"prompt": "hi", "use_beam_search": True, "max_tokens": 40, "n": 2, "ignore_eos": True}
        asked = asyncio.create_task(call(deployment, "POST", "/v1/completions", body))
        while len(deployment.engine.calls) < 2:
            await asyncio.sleep(0)
        await call(deployment, "POST", "/pause", mode=mode)
        assert asked.done() or not deployment.engine.gate.inside
        answer = await asked
        reason, most = ("length", 80) if mode == "wait" else ("abort", 79)
        assert [choice["finish_reason"] for choice in answer["choices"]] == [reason, reason]
        assert 0 < answer["usage"]["completion_tokens"] <= most
        assert deployment.engine.is_busy is False

    asyncio.run(run())


def test_a_pooling_request_is_aborted_by_its_id(deployment: Deployment) -> None:
    async def run() -> None:
        deployment.pools("embed")
        deployment.engine.delay = 60.0
        request = Request("POST", "/v1/embeddings", {"input": "a"}, {"x-request-id": "mine"})
        asked = asyncio.create_task(ROUTER.dispatch(deployment.services, request))
        while not deployment.engine.pooled:
            await asyncio.sleep(0)
        for ids, count in ((["other"], 0), (["mine"], 1)):
            answer = await call(deployment, "POST", "/abort_requests", {"request_ids": ids})
            assert answer == {"status": "aborted", "aborted": count}
        with pytest.raises(ApiError, match="was aborted") as caught:
            await asked
        assert caught.value.status == 503
        assert not deployment.services.running and not deployment.engine.is_busy

    asyncio.run(run())


def test_an_engine_that_does_not_wake_up(deployment: Deployment) -> None:
    async def run() -> None:
        await call(deployment, "POST", "/sleep")
        deployment.engine.state = "dead"
        with pytest.raises(ApiError, match="the GPU is gone") as caught:
            await call(deployment, "POST", "/wake_up")
        assert caught.value.status == 500
        with pytest.raises(ApiError, match="too small"):
            await call(deployment, "POST", CHAT, {"messages": USER})

    asyncio.run(run())


@pytest.mark.parametrize("ids", [["chatcmpl-mine"], ["mine", "x"], [], None])
def test_requests_are_aborted(deployment: Deployment, ids: Any) -> None:
    async def run() -> None:
        deployment.engine.delay = 0.02
        headers = {"x-request-id": "mine"}
        body = {"messages": USER, "ignore_eos": True}
        asked = asyncio.create_task(ROUTER.dispatch(deployment.services, Request("POST", CHAT, body, headers)))
        while not deployment.engine.generations:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert await call(deployment, "POST", "/abort_requests", {"request_ids": ["other"]}) == {
            "status": "aborted",
            "aborted": 0,
        }
        named = None if ids is None else {"request_ids": ids}
        assert (await call(deployment, "POST", "/abort_requests", named))["aborted"] == 1
        answer = await asked
        assert isinstance(answer, Response)
        assert answer.body["choices"][0]["finish_reason"] == "abort"
        assert not deployment.services.running

    asyncio.run(run())


def test_caches_and_information(deploy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hidden-key")
    monkeypatch.setenv("VLLM_USE_V1", "1")
    deployment = deploy(server_dev_mode=True, admin_api_key="of-the-admin", hf_token="hf_of-the-hub")

    async def run() -> None:
        await call(deployment, "POST", "/reset_prefix_cache", reset_running_requests="true")
        assert deployment.engine.told == ["reset"]
        await call(deployment, "POST", "/reset_mm_cache")
        assert await call(deployment, "GET", "/get_world_size") == {"world_size": 1}
        for form, kind in (("text", str), ("json", dict)):
            info = await call(deployment, "GET", "/server_info", config_format=form)
            assert isinstance(info["vllm_config"], kind) and "model_name" in info["vllm_config"]
            text = json.dumps(info)
            assert info["vllm_env"] == {"VLLM_USE_V1": "1"} and info["system_env"]["device"] == "cpu"
            assert not any(secret in text for secret in ("hidden-key", "of-the-admin", "hf_of", "***"))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "query", "param"),
    [
        ("POST", "/sleep", {"level": "3"}, "query.level"),
        ("POST", "/sleep", {"level": "-1"}, "query.level"),
        ("POST", "/sleep", {"levle": "2"}, "levle"),
        ("POST", "/resume", {"level": "2"}, "level"),
        ("POST", "/sleep", {"level": "one"}, "query.level"),
        ("POST", "/sleep", {"mode": "soon"}, "query.mode"),
        ("POST", "/sleep", {"mode": "keep"}, "query.mode"),
        ("POST", "/wake_up", {"tags": "weights,all"}, "query.tags"),
        ("POST", "/pause", {"mode": ""}, "query.mode"),
        ("POST", "/pause", {"clear_cache": "maybe"}, "query.clear_cache"),
        ("POST", "/reset_prefix_cache", {"reset_external": "2"}, "query.reset_external"),
        ("GET", "/server_info", {"config_format": "xml"}, "query.config_format"),
    ],
)
def test_bad_input_is_named(deployment: Deployment, method: str, path: str, query: Any, param: str) -> None:
    with pytest.raises(ApiError, match=f"`?{param.removeprefix('query.')}") as caught:
        asyncio.run(call(deployment, method, path, **query))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert deployment.engine.is_ready and not deployment.engine.told


def test_they_are_for_the_operator_alone(deploy: Any) -> None:
    for route in ROUTES:
        if not route.is_admin:
            continue
        with pytest.raises(ApiError, match="set SERVER_DEV_MODE to true"):
            asyncio.run(call(deploy(), route.methods[0], route.path))
        shape = {"openai_route": route.path} if route.methods[0] == "GET" else {"route": route.path, "method": "POST"}
        job = parse_input(shape, ROUTER, model="org/tiny").request
        with pytest.raises(ApiError, match="for the operator") as caught:
            asyncio.run(ROUTER.dispatch(deploy(server_dev_mode=True).services, job))
        assert (caught.value.status, caught.value.type) == (403, "PermissionDeniedError")
    with pytest.raises(ApiError, match="ENABLE_SLEEP_MODE"):
        asyncio.run(call(deploy(server_dev_mode=True), "POST", "/sleep"))
