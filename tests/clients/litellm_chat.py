"""What LiteLLM's OpenAI adapter does with a server: python litellm_chat.py BASE_URL. Run by test_adapters.py."""

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a price list otherwise

import litellm

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name, description in (
        ("get_weather", "Get the weather in a city"),
        ("get_time", "Get the time in a city"),
    )
]


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

        called = complete("What is the weather in Paris?", adapter, tools=TOOLS)
        message = called.choices[0].message
        assert called.choices[0].finish_reason == "tool_calls"
        (call,) = message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
        pieces = list(complete("What is the weather in Paris?", adapter, tools=TOOLS, stream=True))
        built = litellm.stream_chunk_builder(pieces)
        assert built is not None
        (again,) = built.choices[0].message.tool_calls
        assert (again.function.name, json.loads(again.function.arguments)) == ("get_weather", {"city": "Paris"})

        history = [
            {"role": "user", "content": "What is the weather in Paris?"},
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "21 degrees and clear"},
        ]
        assert complete("", adapter, messages=history, tools=TOOLS).choices[0].message.content

        thinking = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
        reasoned = complete(question, adapter, **thinking).choices[0].message
        assert reasoned.reasoning_content and reasoned.content, reasoned
        deltas = [chunk.choices[0].delta for chunk in complete(question, adapter, stream=True, **thinking)]
        joined = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert joined == reasoned.reasoning_content, (joined, reasoned)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
