"""What OpenAI's own Python SDK does with a server: python -m tests.clients.openai_python BASE_URL."""

import asyncio
import json
import sys
from typing import Any, Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.clients.common import CHAT_TOOLS, weather_in

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)
    size: Literal["small", "large"]


class GetWeather(BaseModel):
    """Get the weather in a city"""

    city: str


def tool_loop(client: OpenAI) -> None:
    """Three turns: two calls with their results between them, whole and streamed."""
    messages: list[Any] = []
    for city, streams in (("Paris", False), ("Rome", True)):
        messages.append({"role": "user", "content": f"What is the weather in {city}?"})
        if streams:
            with client.chat.completions.stream(
                model="demo", messages=messages, tools=CHAT_TOOLS, temperature=0
            ) as stream:
                message: Any = stream.get_final_completion().choices[0].message
        else:
            answer = client.chat.completions.create(model="demo", messages=messages, tools=CHAT_TOOLS, temperature=0)
            assert answer.choices[0].finish_reason == "tool_calls"
            message = answer.choices[0].message
        (call,) = message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": city}), message
        given = {
            "id": call.id,
            "type": "function",
            "function": {"name": "get_weather", "arguments": call.function.arguments},
        }
        messages.append({"role": "assistant", "content": None, "tool_calls": [given]})
        messages.append({"role": "tool", "tool_call_id": call.id, "content": weather_in(city)})
        answer = client.chat.completions.create(model="demo", messages=messages, tools=CHAT_TOOLS, temperature=0)
        assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls, answer
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})


def structured(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model="demo", messages=QUESTION, response_format=Place, temperature=1)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    with client.chat.completions.stream(
        model="demo", messages=QUESTION, response_format=Place, temperature=1
    ) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Place)
    assert {"content.delta", "content.done", "chunk"} <= kinds, kinds
    tool = openai.pydantic_function_tool(GetWeather)
    choice: Any = {"type": "function", "function": {"name": "GetWeather"}}
    called = client.chat.completions.parse(model="demo", messages=QUESTION, tools=[tool], tool_choice=choice)
    calls = called.choices[0].message.tool_calls
    assert calls and isinstance(calls[0].function.parsed_arguments, GetWeather)
    mode: Any = {"type": "json_object"}
    answer = client.chat.completions.create(model="demo", messages=QUESTION, response_format=mode, max_tokens=200)
    if answer.choices[0].finish_reason == "stop":
        json.loads(answer.choices[0].message.content or "")


def errors(client: OpenAI) -> None:
    """Over HTTP an error has its own status. Through a queue a failed job is a 500 with the same body."""
    is_queue = "/v2/" in str(client.base_url)
    refused: list[tuple[type[openai.APIStatusError], dict[str, Any], str]] = [
        (openai.BadRequestError, {"temperature": -1}, "temperature"),
        (openai.BadRequestError, {"messages": []}, "messages"),
        (openai.BadRequestError, {"response_format": {"type": "nonsense"}}, "response_format"),
        (openai.NotFoundError, {"model": "another"}, "another"),
    ]
    for error, fields, says in refused:
        given: dict[str, Any] = {"model": "demo", "messages": QUESTION, **fields}
        try:
            client.chat.completions.create(**given)
        except openai.APIStatusError as raised:
            assert type(raised) is (openai.InternalServerError if is_queue else error), (fields, raised)
            assert says in str(raised.body), raised
        else:
            raise AssertionError(f"no error for {fields}")
        try:
            list(client.chat.completions.create(**given, stream=True))
        except openai.APIError as raised:
            assert says in str(raised), raised
        else:
            raise AssertionError(f"no error for a stream with {fields}")
    try:
        client.with_options(timeout=0.05).chat.completions.create(
            model="demo", messages=QUESTION, max_tokens=2000, extra_body={"ignore_eos": True}
        )
    except openai.APITimeoutError:
        pass
    else:
        raise AssertionError("2000 tokens came within 50 ms")


async def many(base_url: str, text: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:

        async def one() -> str:
            stream = await client.chat.completions.create(model="demo", messages=QUESTION, stream=True, temperature=0)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert set(await asyncio.gather(*(one() for _ in range(12)))) == {text}


def main(base_url: str) -> None:
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    assert client.models.list().data[0].id == "demo"
    whole = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3
    )
    text = whole.choices[0].message.content
    assert text and whole.usage and whole.choices[0].logprobs and whole.choices[0].logprobs.content
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
    several = client.chat.completions.create(model="demo", messages=QUESTION, n=3, seed=5, temperature=1)
    assert sorted(choice.index for choice in several.choices) == [0, 1, 2]
    usage = None
    options: Any = {"include_usage": True}
    for chunk in client.completions.create(
        model="demo", prompt="Hello", max_tokens=5, stream=True, stream_options=options
    ):
        usage = chunk.usage or usage
    assert usage and usage.completion_tokens == 5
    tool_loop(client)
    structured(client)
    errors(client)
    asyncio.run(many(base_url, text))
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
