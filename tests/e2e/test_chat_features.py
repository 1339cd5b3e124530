"""Tools and reasoning as the OpenAI SDK sees them, over HTTP and through the queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.e2e.conftest import BOOT_SECONDS
from tests.support.processes import Process, url_of


def tool(name: str, description: str, **extra: Any) -> Any:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema, **extra}}


WEATHER = tool("get_weather", "Get the weather in a city")
TIME = tool("get_time", "Get the time in a city")
ONE_CALL: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]
TWO_CALLS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module", params=["http", "queue"])
def client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    is_queue = request.param == "queue"
    arguments = ("platform", "demo") if is_queue else ("serve", "demo", "--host", "127.0.0.1")
    with Process("-m", "ember", *arguments, "--port", "0") as process:
        url = url_of(process, BOOT_SECONDS) + ("/v2/LOCAL/openai/v1" if is_queue else "/v1")
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=BOOT_SECONDS)
        client.chat.completions.create(model="demo", messages=HELLO, max_tokens=1)
        yield client


def arguments_of(call: Any) -> tuple[str, Any]:
    return call.function.name, json.loads(call.function.arguments)


def test_a_call_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="demo", messages=TWO_CALLS, tools=[WEATHER, TIME], temperature=0, max_tokens=120
    )
    choice = whole.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    expected = [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})]
    assert [arguments_of(call) for call in choice.message.tool_calls or ()] == expected

    with client.chat.completions.stream(
        model="demo", messages=TWO_CALLS, tools=[WEATHER, TIME], temperature=0, max_tokens=120
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert [arguments_of(call) for call in final.choices[0].message.tool_calls or ()] == expected
    assert final.choices[0].finish_reason == "tool_calls"
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert "tool_calls.function.arguments.delta" in kinds


def test_no_call_where_none_is_needed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO, tools=[WEATHER], temperature=0, max_tokens=60)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_a_whole_round(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model="demo", messages=ONE_CALL, tools=[WEATHER, TIME], temperature=0, max_tokens=120
    )
    message = first.choices[0].message
    assert message.tool_calls is not None
    messages: list[Any] = [
        *ONE_CALL,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"temperature": 21, "sky": "clear"}'},
    ]
    second = client.chat.completions.create(
        model="demo", messages=messages, tools=[WEATHER, TIME], temperature=0, max_tokens=120
    )
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls(client: openai.OpenAI, stream: bool) -> None:
    """At temperature 1 on a message that asks for no call: the grammar alone makes one, and makes it well."""
    named: Any = {"type": "function", "function": {"name": "get_time"}}
    choices: list[tuple[Any, str]] = [("required", "tool_calls"), (named, "stop")]
    for choice, reason in choices:
        options: dict[str, Any] = {
            "messages": HELLO,
            "tools": [WEATHER, TIME],
            "tool_choice": choice,
            "max_tokens": 300,
        }
        if stream:
            with client.chat.completions.stream(model="demo", parallel_tool_calls=False, **options) as events:
                completion: Any = events.get_final_completion()
        else:
            completion = client.chat.completions.create(model="demo", parallel_tool_calls=False, **options)
        (call,) = completion.choices[0].message.tool_calls
        name, arguments = arguments_of(call)
        assert name == "get_time" if choice is named else name in ("get_time", "get_weather")
        assert set(arguments) == {"city"}
        assert isinstance(arguments["city"], str)
        assert completion.choices[0].finish_reason == reason


def test_parse_with_pydantic_tools(client: openai.OpenAI) -> None:
    class set_light(BaseModel):  # the name of the tool
        """Turn a light on or off."""

        room: Literal["kitchen", "hall"]
        level: int

    answer = client.chat.completions.parse(
        model="demo",
        messages=HELLO,
        tools=[openai.pydantic_function_tool(set_light)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [type(call.function.parsed_arguments) for call in calls] == [set_light]


def test_tools_or_an_answer_in_a_form(client: openai.OpenAI) -> None:
    class Answer(BaseModel):
        city: str

    options: dict[str, Any] = {
        "model": "demo",
        "tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}],
        "response_format": Answer,
        "max_tokens": 200,
        "temperature": 0,
    }
    called = client.chat.completions.parse(messages=ONE_CALL, **options).choices[0]
    answered = client.chat.completions.parse(messages=QUESTION, **options).choices[0]
    for choice in (called, answered):
        if choice.message.tool_calls:
            assert arguments_of(choice.message.tool_calls[0])[0] == "get_weather"
        else:
            assert isinstance(choice.message.parsed, Answer)


def test_reasoning_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, max_tokens=200, extra_body=THINKING
    )
    message: Any = whole.choices[0].message
    assert message.reasoning == message.reasoning_content
    assert message.reasoning
    assert "think>" not in message.reasoning + message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert 0 < (whole.usage.completion_tokens_details.reasoning_tokens or 0) < whole.usage.completion_tokens
    reasoning, content = "", ""
    stream = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, max_tokens=200, extra_body=THINKING, stream=True
    )
    for chunk in stream:
        delta: Any = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        content += delta.content or ""
    assert (reasoning, content) == (message.reasoning, message.content)


def test_a_budget_ends_the_reasoning(client: openai.OpenAI) -> None:
    body = {**THINKING, "thinking_token_budget": 4}
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, max_tokens=200, extra_body=body
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) <= 4
    assert answer.choices[0].message.content


def test_a_call_after_reasoning(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=ONE_CALL,
        tools=[WEATHER, TIME],
        tool_choice="required",
        temperature=0,
        max_tokens=400,
        extra_body={**THINKING, "thinking_token_budget": 40},
    )
    message: Any = answer.choices[0].message
    assert message.reasoning
    assert {call.function.name for call in message.tool_calls} <= {"get_weather", "get_time"}
    assert answer.choices[0].finish_reason == "tool_calls"
