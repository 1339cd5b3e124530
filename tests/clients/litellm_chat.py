"""What LiteLLM's OpenAI adapter does with a server: python -m tests.clients.litellm_chat BASE_URL."""

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a price list otherwise

import litellm
import openai

from tests.clients.common import CHAT_TOOLS, Place, is_queue, weather_in


def main(base_url: str) -> None:
    def complete(content: str, adapter: str = "openai", **fields: Any) -> Any:
        return litellm.completion(
            model=f"{adapter}/demo",
            api_base=base_url,
            api_key="none",
            messages=fields.pop("messages", [{"role": "user", "content": content}]),
            max_tokens=200,
            temperature=0,
            num_retries=0,
            **fields,
        )

    question = "What is the capital of France?"
    for adapter in ("openai", "hosted_vllm"):
        whole = complete(question, adapter)
        text = whole.choices[0].message.content
        assert text, whole
        chunks = complete(question, adapter, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text

        called = complete("What is the weather in Paris?", adapter, tools=CHAT_TOOLS)
        message = called.choices[0].message
        assert called.choices[0].finish_reason == "tool_calls"
        (call,) = message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
        pieces = list(complete("What is the weather in Paris?", adapter, tools=CHAT_TOOLS, stream=True))
        built = litellm.stream_chunk_builder(pieces)
        assert built is not None
        (again,) = built.choices[0].message.tool_calls
        assert (again.function.name, json.loads(again.function.arguments)) == ("get_weather", {"city": "Paris"})

        history: list[Any] = []
        for city in ("Paris", "Rome", "Oslo"):
            history.append({"role": "user", "content": f"What is the weather in {city}?"})
            message = complete("", adapter, messages=history, tools=CHAT_TOOLS).choices[0].message
            (call,) = message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": city})
            result = {"role": "tool", "tool_call_id": call.id, "content": weather_in(city)}
            history += [message.model_dump(exclude_none=True), result]
            told = complete("", adapter, messages=history, tools=CHAT_TOOLS).choices[0].message
            assert told.content and not told.tool_calls, told
            history.append(told)

        schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": Place.model_json_schema()}}
        for shape in (Place, schema):
            Place.model_validate_json(complete(question, adapter, response_format=shape).choices[0].message.content)
            shaped = complete(question, adapter, response_format=shape, stream=True)
            Place.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in shaped))
        loose = complete(
            "What is the capital of France? Answer in JSON.", adapter, response_format={"type": "json_object"}
        )
        assert isinstance(json.loads(loose.choices[0].message.content), dict)

        # Over HTTP an error has its own status. Through a queue a failed job is a 500 with the same body.
        refused: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"top_p": 3}, litellm.BadRequestError, "top_p"),
            ({"messages": []}, litellm.BadRequestError, "messages"),
            ({"response_format": {"type": "nonsense"}}, litellm.BadRequestError, "response_format"),
        ]
        for fields, kind, says in refused:
            for streams in (False, True):
                try:
                    answer = complete(question, adapter, stream=streams, **fields)
                    assert streams, f"no error for {fields}"
                    list(answer)
                except openai.APIError as error:
                    assert says in str(error), error
                    expected = litellm.InternalServerError if is_queue(base_url) else kind
                    assert streams or isinstance(error, expected), error
                else:
                    raise AssertionError(f"no error for a stream with {fields}")

        thinking = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
        reasoned = complete(question, adapter, **thinking).choices[0].message
        assert reasoned.reasoning_content and reasoned.content, reasoned
        deltas = [chunk.choices[0].delta for chunk in complete(question, adapter, stream=True, **thinking)]
        joined = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert joined == reasoned.reasoning_content, (joined, reasoned)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
