"""/v1/chat/completions/batch: one choice for each conversation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ember import wire
from ember.front.errors import ApiError
from tests.api.fakes import MAX_MODEL_LEN, Deployment, Step, refused

BATCH = "/v1/chat/completions/batch"


def conversations(*texts: str) -> list[Any]:
    return [[{"role": "user", "content": text}] for text in texts]


def batch(deployment: Deployment, *texts: str, **fields: Any) -> Any:
    return deployment.request("POST", BATCH, {"messages": conversations(*texts), **fields})


def echo(deployment: Deployment) -> None:
    """The engine repeats the prompt."""

    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        return [[wire.SequenceOutput(1, 0, prompt[1:-1], "length", num_cached_tokens=len(prompt) - 1)]]

    deployment.engine.script = script


def test_choice_i_answers_conversation_i(deploy) -> None:
    deployment = deploy(enable_prompt_tokens_details=True)
    echo(deployment)
    answer = batch(deployment, "one", "two words", "x", request_id="mine", unknown=1, return_token_ids=True)
    body = answer.body
    assert (body["id"], body["object"], body["model"]) == ("chatcmpl-mine", "chat.completion", "org/tiny")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["one", "two words", "x"]
    prompts = [choice["prompt_token_ids"] for choice in body["choices"]]
    assert sorted(prompts) == sorted(call[0] for call in deployment.engine.calls)
    assert "prompt_token_ids" not in body
    total = sum(len(prompt) for prompt in prompts)
    assert body["usage"]["prompt_tokens"] == total
    assert body["usage"]["completion_tokens"] == total - 6
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == total - 3
    assert answer.headers["X-Ember-Ignored-Fields"] == "unknown"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"stream": True}, "stream", "`stream` is not supported by /v1/chat/completions/batch."),
        ({"tools": [{"type": "function"}]}, "tools", "`tools` is not supported by"),
        ({"use_beam_search": True}, "use_beam_search", "`use_beam_search` is not supported by"),
        ({"n": 2}, "n", "n must be 1 in /v1/chat/completions/batch, got 2."),
        ({"temperature": 3}, "temperature", "temperature must be in [0, 2], got 3."),
        ({"messages": []}, "body.messages", "1 validation error"),
        ({"messages": [{"role": "user", "content": "a"}]}, "body.messages.0", "1 validation error"),
        ({"messages": [[{"role": "user"}], [{"content": "a"}]]}, "body.messages.1.0.role", "1 validation error"),
        ({"messages": conversations("x" * MAX_MODEL_LEN)}, "input_tokens", "This model's maximum context length is"),
    ],
)
def test_what_is_refused(deployment: Deployment, fields: dict[str, Any], param: str, message: str) -> None:
    error = refused(deployment, BATCH, {"messages": conversations("a"), **fields})
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(message)


def test_one_that_fails_ends_them_all(deployment: Deployment) -> None:
    bad = deployment.tokenizer.encode("bad", False)

    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        if prompt[1 : 1 + len(bad)] == bad:
            return [ApiError(500, "The engine failed.")]
        return [[wire.SequenceOutput(1, 0, [5])] for _ in range(1000)]

    deployment.engine.script = script
    deployment.engine.delay = 0.001

    async def run() -> None:
        with pytest.raises(ApiError, match="The engine failed"):
            await deployment.dispatch("POST", BATCH, {"messages": conversations("a", "bad", "c")})
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    assert all(generation.is_closed for generation in deployment.engine.generations)
