"""A text that makes the tokenizers library panic (which raises what is no Exception) costs its request alone: a prompt
that cannot be encoded is a 400, an answer that cannot be decoded a 500.

The tokenizers are real: one whose regular expression gives up on some texts, one whose decoder fails on some tokens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers

from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from ember.front.http.app import make_app
from ember.front.text.tokenizer import Tokenizer, TokenizerPanic
from ember.front.worker.handler import Handling, ThisLoop, make_handler
from tests.api.fakes import Deployment, make_tokenizer
from tests.support.http_server import client_of

WORST = "x" * 40 + "z"
ANSWERED = "/v1/completions", "/v1/chat/completions", "/tokenize"


def changed(directory: Path, change: Callable[[tokenizers.Tokenizer], None]) -> Tokenizer:
    make_tokenizer(directory)
    file = str(directory / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(file)
    change(backend)
    backend.save(file)
    return Tokenizer.load(directory)


@pytest.fixture
def encoding_fails(tmp_path: Path) -> Deployment:
    def change(backend: tokenizers.Tokenizer) -> None:
        slow = pre_tokenizers.Split(tokenizers.Regex("(x+x+)+y"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([slow, pre_tokenizers.ByteLevel(add_prefix_space=False)])

    return Deployment(changed(tmp_path, change))


@pytest.fixture
def decoding_fails(tmp_path: Path) -> Deployment:
    def change(backend: tokenizers.Tokenizer) -> None:
        backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip("x", 0, 5)])

    return Deployment(changed(tmp_path, change))


def body_of(path: str, text: str, **fields: Any) -> dict[str, Any]:
    if "chat" in path:
        return {"messages": [{"role": "user", "content": text}], **fields}
    return {"prompt": text, **fields}


def test_a_panic_is_an_exception(encoding_fails: Deployment, decoding_fails: Deployment) -> None:
    assert issubclass(TokenizerPanic, Exception)
    with pytest.raises(TokenizerPanic) as caught:
        encoding_fails.tokenizer.encode(WORST)
    assert "xxx" not in str(caught.value)
    token = decoding_fails.tokenizer.token_id("x")
    assert token is not None
    for decode in (decoding_fails.tokenizer.decode, decoding_fails.tokenizer.decode_exact):
        with pytest.raises(TokenizerPanic):
            decode([token])
    with pytest.raises(OverflowError):
        decoding_fails.tokenizer.decode([2**40])


def test_a_word_that_cannot_be_encoded(encoding_fails: Deployment) -> None:
    with pytest.raises(ApiError, match="cannot encode") as caught:
        encoding_fails.complete(bad_words=[WORST])
    assert caught.value.status == 400 and caught.value.param == "bad_words"


@pytest.mark.parametrize("path", ANSWERED)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_cannot_be_encoded(encoding_fails: Deployment, path: str, stream: bool) -> None:
    with pytest.raises(ApiError, match="tokenizer cannot encode a text") as caught:
        encoding_fails.request("POST", path, body_of(path, WORST, stream=stream))
    assert caught.value.status == 400 and caught.value.param == ("messages" if "chat" in path else "prompt")
    assert encoding_fails.request("POST", path, body_of(path, "hello")).status == 200


def test_an_answer_that_cannot_be_decoded(decoding_fails: Deployment) -> None:
    token = decoding_fails.tokenizer.token_id("x")
    decoding_fails.says("xx")
    for path, body in (("/v1/completions", {"prompt": [token]}), ("/detokenize", {"tokens": [token]})):
        with pytest.raises(ApiError, match="Internal server error") as caught:
            decoding_fails.request("POST", path, body)
        assert caught.value.status == 500
    decoding_fails.says("hello")
    assert decoding_fails.complete()["choices"][0]["text"] == "hello"
    assert all(generation.is_closed for generation in decoding_fails.engine.generations)


@pytest.mark.parametrize("path", ANSWERED)
@pytest.mark.parametrize("stream", [False, True])
def test_over_the_queue(encoding_fails: Deployment, path: str, stream: bool) -> None:
    async def answer(request: Any) -> Any:
        return await ROUTER.dispatch(encoding_fails.services, request)

    async def outputs(text: str) -> list[Any]:
        handler = make_handler(Handling(ThisLoop(), answer, ROUTER, model="org/tiny"))
        job_input = {"openai_route": path, "openai_input": body_of(path, text, stream=stream)}
        return [output async for output in handler({"id": "j", "input": job_input})]

    async def run() -> tuple[list[Any], list[Any]]:
        return await asyncio.wait_for(outputs(WORST), 20), await asyncio.wait_for(outputs("hello"), 20)

    failed, next_one = asyncio.run(run())
    streams = isinstance(failed[0], str)  # a route without streams answers in one piece
    said = json.loads(failed[0].split("\n")[0].removeprefix("data: "))["error"] if streams else failed[0]["error"]
    assert (said if streams else json.loads(said))["code"] == 400
    assert next_one and "Internal server error" not in json.dumps(next_one)


def test_over_http(encoding_fails: Deployment) -> None:
    async def ready() -> Any:
        return encoding_fails.services

    backend: Any = SimpleNamespace(engine=encoding_fails.engine, ready=ready)

    async def run() -> None:
        app = make_app(encoding_fails.services.settings, backend, ROUTER)
        async with client_of(app) as client:
            for path in ANSWERED:
                response = await client.post(path, json=body_of(path, WORST))
                assert response.status == 400
                assert (await response.json())["error"]["type"] == "BadRequestError"
                assert (await client.post(path, json=body_of(path, "hello"))).status == 200

    asyncio.run(run())
