"""What LangChain's OpenAI adapter does with a server: python langchain_chat.py BASE_URL. Run by test_adapters.py."""

import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return f"21 degrees and clear in {city}"


@tool
def get_time(city: str) -> str:
    """Get the time in a city"""
    return f"noon in {city}"


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

    call = called.tool_calls[0]
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    answer = with_tools.invoke([*messages, called, result])
    assert answer.content and not answer.tool_calls, answer

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
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
