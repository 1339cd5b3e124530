"""What LangChain's OpenAI adapter does with a server: python -m tests.clients.langchain_chat BASE_URL."""

import asyncio
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import APIError, APIStatusError

from tests.clients.common import Place, weather_in


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return weather_in(city)


@tool
def get_time(city: str) -> str:
    """Get the time in a city"""
    return f"noon in {city}"


def tool_loop(model: Any) -> None:
    """Three questions in one history, each with a call, its result and the answer; the second call is streamed."""
    messages: list[Any] = [SystemMessage("You are a helpful assistant.")]
    for city, streams in (("Paris", False), ("Rome", True), ("Oslo", False)):
        messages.append(HumanMessage(f"What is the weather in {city}?"))
        if streams:
            called: Any = None
            for chunk in model.stream(messages):
                called = chunk if called is None else called + chunk
        else:
            called = model.invoke(messages)
        (call,) = called.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": city}), called
        messages += [called, get_weather.invoke(call)]  # invoked with a call, a tool answers with a ToolMessage
        assert isinstance(messages[-1], ToolMessage)
        answer = model.invoke(messages)
        assert answer.content and not answer.tool_calls, answer
        messages.append(answer)


def errors(options: dict[str, Any]) -> None:
    """Over HTTP an error has its own status. Through a queue a failed job is a 500 with the same body."""
    is_queue = "/v2/" in options["base_url"]
    refused: list[tuple[dict[str, Any], int, str]] = [
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 100_000}, 400, "max_"),
        ({"model": "another"}, 404, "another"),
    ]
    for fields, status, says in refused:
        chat = ChatOpenAI(**{**options, **fields})
        try:
            chat.invoke("Hello")
        except APIStatusError as error:
            assert error.status_code == (500 if is_queue else status) and says in str(error.body), error
        else:
            raise AssertionError(f"no error for {fields}")
        try:
            list(chat.stream("Hello"))
        except APIError as error:
            assert says in str(error), error
        else:
            raise AssertionError(f"no error for a stream with {fields}")


async def together(chat: ChatOpenAI, text: str) -> None:
    answers = await chat.abatch(["What is the capital of France?"] * 6)
    assert {answer.content for answer in answers} == {text}, answers


def main(base_url: str) -> None:
    options: dict[str, Any] = {"base_url": base_url, "api_key": "none", "model": "demo", "max_retries": 0}
    chat = ChatOpenAI(**options, temperature=0, max_tokens=120)

    whole = chat.invoke("What is the capital of France?")
    streamed = "".join(str(chunk.content) for chunk in chat.stream("What is the capital of France?"))
    assert whole.content and streamed == whole.content, (whole, streamed)

    with_tools = chat.bind_tools([get_weather, get_time])
    messages: list[Any] = [HumanMessage("What is the weather in Paris?")]
    called: Any = with_tools.invoke(messages)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"city": "Paris"})], called
    gathered: Any = None
    for chunk in with_tools.stream(messages):
        gathered = chunk if gathered is None else gathered + chunk
    assert [(call["name"], call["args"]) for call in gathered.tool_calls] == [("get_weather", {"city": "Paris"})]

    tool_loop(with_tools)
    forced: Any = chat.bind_tools([get_weather, get_time], tool_choice="get_time").invoke("Hello")
    assert [call["name"] for call in forced.tool_calls] == ["get_time"], forced

    schema = {
        "title": "place",
        "description": "A place",
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    for method in ("function_calling", "json_schema"):
        shaped: Any = chat.with_structured_output(schema, method=method).invoke("What is the capital of France?")
        assert set(shaped) == {"city"}, (method, shaped)
        typed: Any = chat.with_structured_output(Place, method=method)
        assert isinstance(typed.invoke("What is the capital of France?"), Place), method
        assert isinstance(list(typed.stream("What is the capital of France?"))[-1], Place), method
    loose: Any = chat.with_structured_output(None, method="json_mode")
    assert isinstance(loose.invoke("What is the capital of France? Answer in JSON."), dict)
    errors(options)
    asyncio.run(together(chat, str(whole.content)))
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
