"""`ember serve` with the demo model, as the OpenAI SDK sees it."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.e2e.conftest import BOOT_SECONDS
from tests.support.processes import Process, url_of

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]


@pytest.fixture
def client(server_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server_url + "/v1", api_key="none", max_retries=0, timeout=120)


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=16)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="demo", prompt="The capital of", temperature=0, max_tokens=8)
    stream = client.completions.create(model="demo", prompt="The capital of", temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole.choices[0].text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/model")


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="demo", messages=MESSAGES, temperature=99)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=MESSAGES, temperature=99, stream=True)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="another", messages=MESSAGES)
    assert unknown.value.param == "model"


def test_many_streams_at_once(server_url: str) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model="demo", messages=MESSAGES, temperature=0, max_tokens=24, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server_url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(30)))

    texts = asyncio.run(all_of_them())
    assert len(set(texts)) == 1
    assert texts[0]


def test_leaving_a_stream_frees_the_engine(client: openai.OpenAI) -> None:
    for _ in range(5):
        stream = client.chat.completions.create(
            model="demo", messages=MESSAGES, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=4).choices


def test_keys_and_sigterm() -> None:
    with Process("-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0", "--api-key", "right") as server:
        url = url_of(server, BOOT_SECONDS) + "/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=url, api_key="right", timeout=120).models.list().data
        server.terminate()
        assert server.wait(20) == 0


def test_boot_failure_is_one_line() -> None:
    with Process("-m", "ember", "serve", "/no/such/model", "--host", "127.0.0.1", "--port", "0") as server:
        assert server.wait(60) == 1
        assert "/no/such/model" in server.log()
        assert "Traceback" not in server.log()
