"""What LangChain's OpenAI adapter does with /v1/responses: python -m tests.clients.langchain_responses BASE_URL."""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import APIStatusError

from tests.clients.common import CITIES, QUESTION, Place, is_queue, raised, status_of_refused
from tests.clients.langchain_chat import get_time, get_weather


def gathered(model: Any, messages: Any) -> Any:
    """The message of a stream."""
    whole: Any = None
    for chunk in model.stream(messages):
        whole = chunk if whole is None else whole + chunk
    return whole


def tool_loop(model: Any) -> None:
    """Three questions in one history, each with a call, its result and the answer; the second one is streamed."""
    messages: list[Any] = [SystemMessage("You are a helpful assistant.")]
    for city in CITIES:
        ask = model.invoke if city != "Rome" else lambda messages: gathered(model, messages)
        messages.append(HumanMessage(f"What is the weather in {city}?"))
        called = ask(messages)
        (call,) = called.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": city}), called
        messages += [called, get_weather.invoke(call)]
        answer = ask(messages)
        assert answer.text and not answer.tool_calls, answer
        messages.append(answer)


def reasoning(options: dict[str, Any]) -> None:
    """The reasoning is a block of its own, and is sent back encrypted."""
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    chat = ChatOpenAI(**options, include=["reasoning.encrypted_content"], extra_body=thinking, output_version="v1")
    whole = chat.invoke(QUESTION)
    kinds = [block["type"] for block in whole.content_blocks]
    assert kinds[0] == "reasoning" and whole.text, whole
    assert [block["type"] for block in gathered(chat, QUESTION).content_blocks] == kinds
    assert chat.invoke([HumanMessage(QUESTION), whole, HumanMessage("And of Italy?")]).text


def stored(options: dict[str, Any]) -> None:
    """The history is the server's: LangChain sends what comes after the last answer, and its id."""
    chat = ChatOpenAI(**options, use_previous_response_id=True)
    messages: list[Any] = [HumanMessage(QUESTION)]
    messages += [chat.invoke(messages), HumanMessage("What is the weather in Paris?")]
    alone = chat.invoke(messages[-1:]).usage_metadata
    after = chat.invoke(messages).usage_metadata
    assert after and alone and after["input_tokens"] > alone["input_tokens"], (alone, after)


def main(base_url: str) -> None:
    options: dict[str, Any] = {
        "base_url": base_url,
        "api_key": "none",
        "model": "demo",
        "max_retries": 0,
        "use_responses_api": True,
        "temperature": 0,
        "max_tokens": 200,
    }
    chat = ChatOpenAI(**options)
    whole = chat.invoke(QUESTION)
    assert whole.text and whole.usage_metadata and whole.response_metadata["status"] == "completed", whole
    streamed = gathered(chat, QUESTION)
    assert streamed.text == whole.text and streamed.usage_metadata["output_tokens"] > 0, streamed
    tool_loop(chat.bind_tools([get_weather, get_time]))
    tool_loop(chat.bind_tools([get_weather], strict=True))
    forced: Any = chat.bind_tools([get_weather, get_time], tool_choice="get_time").invoke("Hello")
    assert [call["name"] for call in forced.tool_calls] == ["get_time"], forced
    for method in ("function_calling", "json_schema"):
        typed: Any = chat.with_structured_output(Place, method=method)
        assert isinstance(typed.invoke(QUESTION), Place), method
        assert isinstance(list(typed.stream(QUESTION))[-1], Place), method
    loose: Any = chat.with_structured_output(None, method="json_mode")
    assert isinstance(loose.invoke(f"{QUESTION} Answer in JSON."), dict)
    reasoning(options)
    if not is_queue(base_url):  # jobs keep nothing: the next may come to another worker
        stored(options)
    for fields, status, says in (({"temperature": -1}, 400, "temperature"), ({"model": "another"}, 404, "another")):
        refused = ChatOpenAI(**{**options, **fields})
        error = raised(APIStatusError, lambda chat=refused: chat.invoke("Hello"), says)  # type: ignore[misc]
        assert error.status_code == status_of_refused(base_url, status), error
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
