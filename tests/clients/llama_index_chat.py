"""What LlamaIndex's adapter for OpenAI-like servers does: python llama_index_chat.py BASE_URL."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)


def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return f"21 degrees and clear in {city}"


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
    for city in ("Paris", "Rome"):
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
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
