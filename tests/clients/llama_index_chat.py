"""What LlamaIndex's adapter for OpenAI-like servers does: python -m tests.clients.llama_index_chat BASE_URL."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import APIError, APIStatusError
from pydantic import BaseModel, ConfigDict

from tests.clients.common import Place, weather_in


class Weather(BaseModel):
    """Get the weather in a city"""

    model_config = ConfigDict(title="get_weather")

    city: str


def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return weather_in(city)


def errors(llm: OpenAILike) -> None:
    """Over HTTP an error has its own status. Through a queue a failed job is a 500 with the same body."""
    status = 500 if "/v2/" in str(llm.api_base) else 400
    for fields, says in (({"top_p": 3}, "top_p"), ({"response_format": {"type": "nonsense"}}, "response_format")):
        for ask in (llm.chat, lambda messages, **fields: list(llm.stream_chat(messages, **fields))):
            try:
                ask([ChatMessage("Hello")], **fields)
            except APIError as error:
                assert says in str(error), error
                # A stream through the queue has begun when its job fails: its error has no status.
                assert not isinstance(error, APIStatusError) or error.status_code == status, error
            else:
                raise AssertionError(f"no error for {fields}")


def main(base_url: str) -> None:
    llm = OpenAILike(
        model="demo",
        api_base=base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
        max_tokens=200,
        max_retries=0,
    )
    question = [ChatMessage("What is the capital of France?")]
    whole = llm.chat(question).message.content
    assert whole and "".join(piece.delta or "" for piece in llm.stream_chat(question)) == whole
    assert llm.complete("What is the capital of France?").text

    tool = FunctionTool.from_defaults(get_weather)
    history: list[ChatMessage] = []
    for city in ("Paris", "Rome", "Oslo"):
        history.append(ChatMessage(f"What is the weather in {city}?"))
        answer = llm.chat_with_tools([tool], chat_history=history)
        (call,) = llm.get_tool_calls_from_response(answer)
        assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": city}), call
        result = str(tool(**call.tool_kwargs).content)
        history += [
            answer.message,
            ChatMessage(role="tool", content=result, additional_kwargs={"tool_call_id": call.tool_id}),
        ]
        told = llm.chat_with_tools([tool], chat_history=history).message
        assert told.content, told
        history.append(told)
    assert "21 degrees" in str(llm.predict_and_call([tool], "What is the weather in Oslo?"))

    place = llm.structured_predict(Place, PromptTemplate("What is the capital of {country}?"), country="France")
    assert isinstance(place, Place)
    assert isinstance(llm.as_structured_llm(Place).chat(question).raw, Place)
    # Streamed, LlamaIndex leaves it to the model whether to call the tool that stands for the class.
    streamed = list(llm.as_structured_llm(Weather).stream_chat([ChatMessage("What is the weather in Paris?")]))
    assert streamed[-1].raw == Weather(city="Paris"), streamed[-1]
    errors(llm)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
