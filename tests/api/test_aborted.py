"""What each dialect answers to a request that the operator ends: no answer may look whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ember.front.api.exchange import EventStream
from ember.front.errors import ApiError
from tests.api.fakes import Deployment, say
from tests.api.talking import ADD, CALL_ADD, talking

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "hi"}]
CUT_CALL = len('<tool_call>\n{"name": "add", "arguments": {"a": 1') - 9  # tokens
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER, "tools": [ADD]},
    RESPONSES: {"input": "hi", "tools": [{"type": "function", **ADD["function"]}]},
    MESSAGES: {
        "messages": USER,
        "max_tokens": 100,
        "tools": [{"name": "add", "input_schema": ADD["function"]["parameters"]}],
    },
}


def aborted_after(num_tokens: int, text: str = CALL_ADD) -> Deployment:
    deployment = talking()
    deployment.engine.script = lambda prompt, sampling: say(deployment.tokenizer, text)(prompt, sampling)[:num_tokens]
    return deployment


async def events_of(deployment: Deployment, path: str, body: Any) -> tuple[list[Any], ApiError | None]:
    """The events of a stream, and the error that ends it."""
    documents: list[Any] = []
    try:
        answer = await deployment.dispatch("POST", path, body)
        assert isinstance(answer, EventStream)
        async for event in answer.events:
            documents += [json.loads(event.data)]
    except ApiError as error:
        return documents, error
    else:
        return documents, None


@pytest.mark.parametrize("num_tokens", [0, CUT_CALL])
def test_a_chat_says_so(num_tokens: int) -> None:
    deployment = aborted_after(num_tokens)
    choice = deployment.chat(tools=[ADD])["choices"][0]
    assert (choice["finish_reason"], "tool_calls" in choice["message"]) == ("abort", num_tokens > 0)
    assert deployment.stream_chat(tools=[ADD])[-1]["choices"][0]["finish_reason"] == "abort"
    for options in ({"logprobs": 1}, {"echo": True, "logprobs": 0}, {"prompt_logprobs": 1}):
        assert deployment.complete(max_tokens=100, **options)["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize("num_tokens", [0, CUT_CALL])
def test_a_response_has_failed(num_tokens: int) -> None:
    deployment = aborted_after(num_tokens)
    answer = deployment.request("POST", RESPONSES, BODIES[RESPONSES]).body
    documents, error = asyncio.run(events_of(deployment, RESPONSES, {**BODIES[RESPONSES], "stream": True}))
    assert error is None and documents[-1]["type"] == "response.failed"
    for response in (answer, documents[-1]["response"], deployment.request("GET", f"{RESPONSES}/{answer['id']}").body):
        assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
        assert [item["status"] for item in response["output"]] == ["incomplete"] * (num_tokens > 0)
    done = [document["item"]["status"] for document in documents if document["type"] == "response.output_item.done"]
    assert done == ["incomplete"] * (num_tokens > 0)


@pytest.mark.parametrize(("path", "body"), [(MESSAGES, BODIES[MESSAGES]), ("/generate", {"inputs": "hi"})])
@pytest.mark.parametrize("num_tokens", [0, CUT_CALL])
def test_others_answer_with_an_error(path: str, body: Any, num_tokens: int) -> None:
    deployment = aborted_after(num_tokens)
    with pytest.raises(ApiError, match="was aborted") as caught:
        deployment.request("POST", path, body)
    assert caught.value.status == 503
    streamed = "/generate_stream" if path == "/generate" else path
    documents, error = asyncio.run(events_of(deployment, streamed, {**body, "stream": True}))
    assert error is not None and error.status == 503
    assert bool(documents) is (num_tokens > 0)
    kinds = {document.get("type") for document in documents}
    assert kinds.isdisjoint({"content_block_stop", "message_delta", "message_stop"})
    assert not any(document.get("details") for document in documents)


def test_a_stop_sequence_in_a_call_makes_no_tool_use() -> None:
    deployment = talking()
    deployment.says(CALL_ADD)
    answer = deployment.request("POST", MESSAGES, {**BODIES[MESSAGES], "stop_sequences": [', "b"']}).body
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", ', "b"')
