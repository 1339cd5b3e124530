"""Any request whatever, on an engine with few pages: an answer or an error that is the client's, and nothing left over.

The fields are those of the schemas as they are, so a new one is tried from the day it is there; `bodies.LIKELY` says
what is worth trying in each, and everything else is tried in all of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember.front.api.openai_forms import openai_error
from ember.front.api.router import EventStream, Response
from ember.front.api.schemas import ChatRequest, CompletionRequest
from ember.front.errors import ApiError
from ember.front.text.reasoning import choose_reasoning_format
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import choose_tool_format
from tests.api.fakes import EOS, VOCAB_SIZE, Deployment, make_tokenizer
from tests.engine_models.tiny import make_tiny
from tests.fuzz.bodies import CALLS, CONTEXT, TEMPLATES, body_of, junk, one_form, text, token_ids
from tests.support.inline_engine import InlineEngine

PATIENCE_S = 60.0  # more than any of these takes; a request that never ends must fail here and not in the suite's limit
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

FUZZ = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A random model of one small layer with few pages. Its tokenizer is that of the api's tests
    and has tokens for reasoning and calls, which come up by chance as any other."""
    directory = tmp_path_factory.mktemp("fuzz")
    make_tokenizer(directory)
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.add_special_tokens(MARKERS)
    backend.save(str(directory / "tokenizer.json"))
    tokenizer = Tokenizer.load(directory)
    shape: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_tiny("llama", directory, vocab_size=VOCAB_SIZE, eos_token_id=tokenizer.token_id(EOS), **shape)
    deployment = Deployment(tokenizer, trust_request_chat_template=True)
    engine = InlineEngine(
        directory, max_model_len=CONTEXT, num_blocks=36, max_num_seqs=6, max_num_batched_tokens=32, block_size=8
    )
    deployment.engine = engine  # type: ignore[assignment]
    deployment.services.engine = engine  # type: ignore[assignment]
    return deployment


def read_with(deployment: Deployment, reasoning: str | None, tools: str | None) -> None:
    """From now on the model's output is read in these formats."""
    services = deployment.services
    services.reasoning_format = services.tool_format = None
    if reasoning is not None:
        services.reasoning_format, _ = choose_reasoning_format("", None, "", reasoning)
    if tools is not None:
        services.tool_format, _ = choose_tool_format("", None, "", tools)


# -------------------------------------------------------------------------------------------------------- the runs


def check(deployment: Deployment, path: str, body: Any, take: int | None, leave_after: int | None) -> None:
    """Sends it and reads `take` events of a stream (None: all of them); `leave_after` turns of the loop it is given
    up. Raises AssertionError for what must not be, and TimeoutError for a hang."""
    engine = deployment.services.engine
    assert isinstance(engine, InlineEngine)

    async def talk() -> None:
        try:
            answer = await deployment.dispatch("POST", path, body)
        except ApiError as error:
            check_error(openai_error(error))
            return
        if isinstance(answer, Response):
            assert answer.status == 200
            json.dumps(answer.body, allow_nan=False)
            return
        assert isinstance(answer, EventStream)
        num_events = 0
        try:
            async for event in answer.events:
                json.loads(event.data, parse_constant=refuse_constant)
                num_events += 1
                if num_events == take:
                    return
        except ApiError as error:
            check_error(openai_error(error))
        finally:
            await answer.events.aclose()
        assert num_events

    async def run() -> None:
        task = asyncio.create_task(talk())
        for _ in range(leave_after or 0):
            await asyncio.sleep(0)
        if leave_after is not None:
            task.cancel()
        try:
            await asyncio.wait_for(asyncio.shield(task), PATIENCE_S)
        except asyncio.CancelledError:
            assert leave_after is not None
        for _ in range(3):
            await asyncio.sleep(0)
        engine.check_empty()

    asyncio.run(run())


def check_error(body: dict[str, Any]) -> None:
    error = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["code"] in (400, 404, 422), f"not the client's fault: {error}"
    assert error["message"] and "Traceback" not in error["message"]


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


takes = st.one_of(st.none(), st.none(), st.integers(1, 6))
leaves = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 30))


@settings(FUZZ, max_examples=110)
@given(
    body=body_of(ChatRequest, "messages"),
    take=takes,
    leave=leaves,
)
def test_chat(deployment: Deployment, body: dict[str, Any], take: int | None, leave: int | None) -> None:
    check(deployment, CHAT, body, take, leave)


@settings(FUZZ, max_examples=110)
@given(body=body_of(CompletionRequest, "prompt"), take=takes, leave=leaves)
def test_completions(deployment: Deployment, body: dict[str, Any], take: int | None, leave: int | None) -> None:
    check(deployment, COMPLETIONS, body, take, leave)


def likely_tokens(deployment: Deployment, texts: list[str]) -> dict[str, float]:
    """A bias by which the model says little else."""
    return {str(deployment.tokenizer.token_id(text)): 30.0 for text in texts}


@settings(FUZZ, max_examples=80)
@given(
    body=body_of(ChatRequest, "messages", CALLS),
    take=takes,
    leave=leaves,
    reasoning=st.sampled_from([None, "qwen3", "deepseek_r1"]),
    says=st.lists(st.sampled_from([*MARKERS, "a", "{", "}", '"', ":"]), max_size=6),
)
def test_calls_and_reasoning(
    deployment: Deployment,
    body: dict[str, Any],
    take: int | None,
    leave: int | None,
    reasoning: str | None,
    says: list[str],
) -> None:
    read_with(deployment, reasoning, "hermes")
    try:
        check(deployment, CHAT, {"logit_bias": likely_tokens(deployment, says), **body}, take, leave)
    finally:
        read_with(deployment, None, None)


@settings(FUZZ, max_examples=60)
@given(
    body=body_of(CompletionRequest, "prompt", {"max_tokens": st.integers(1, 30)}),
    form=one_form,
    take=takes,
    leave=leaves,
)
def test_forms(
    deployment: Deployment, body: dict[str, Any], form: dict[str, Any], take: int | None, leave: int | None
) -> None:
    check(deployment, COMPLETIONS, {**body, **form}, take, leave)


@settings(FUZZ, max_examples=50)
@given(
    path=st.sampled_from([f"{CHAT}/batch", "/tokenize", "/detokenize"]),
    body=st.one_of(
        body_of(ChatRequest, "messages"),
        body_of(ChatRequest, "messages").map(lambda body: {**body, "messages": [body["messages"]] * 2}),
        st.fixed_dictionaries({}, optional={"prompt": st.one_of(text, junk), "tokens": st.one_of(token_ids, junk)}),
    ),
)
def test_other_routes(deployment: Deployment, path: str, body: dict[str, Any]) -> None:
    check(deployment, path, body, None, None)


@settings(FUZZ, max_examples=40)
@given(path=st.sampled_from([CHAT, COMPLETIONS, "/tokenize", "/detokenize"]), body=junk)
def test_no_object_at_all(deployment: Deployment, path: str, body: Any) -> None:
    check(deployment, path, body, None, None)


@settings(FUZZ, max_examples=8)
@given(bodies=st.lists(body_of(CompletionRequest, "prompt"), min_size=2, max_size=5))
def test_many_at_once(deployment: Deployment, bodies: list[dict[str, Any]]) -> None:
    """More than fit into the pages, so that they wait for and preempt each other."""
    engine = deployment.services.engine
    assert isinstance(engine, InlineEngine)

    async def ask(body: dict[str, Any]) -> None:
        try:
            answer = await deployment.dispatch("POST", COMPLETIONS, {**body, "max_tokens": 40})
        except ApiError as error:
            check_error(openai_error(error))
            return
        if isinstance(answer, EventStream):
            assert [event async for event in answer.events]

    async def run() -> None:
        await asyncio.wait_for(asyncio.gather(*(ask(body) for body in bodies)), PATIENCE_S)
        await asyncio.sleep(0)
        engine.check_empty()

    asyncio.run(run())


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_of_requests(deployment: Deployment, source: str) -> None:
    for content in ("hi", [{"type": "text", "text": "a"}], None):
        body = {"messages": [{"role": "user", "content": content}], "chat_template": source, "max_tokens": 3}
        check(deployment, CHAT, body, None, None)


def test_the_checks_can_fail(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is held, and an error that is ours."""
    engine = deployment.services.engine
    assert isinstance(engine, InlineEngine)
    block = engine.core.scheduler.pool.allocate()
    with pytest.raises(AssertionError, match="a page is still held"):
        check(deployment, COMPLETIONS, {"prompt": "x"}, None, None)
    engine.core.scheduler.pool.release([block])

    def broken(*arguments: Any, **keywords: Any) -> Callable[[], None]:
        raise RuntimeError("oops")

    monkeypatch.setattr(deployment.tokenizer, "encode", broken)
    with pytest.raises(AssertionError, match="not the client's fault"):
        check(deployment, COMPLETIONS, {"prompt": "x"}, None, None)
