"""What LiteLLM does with /v1/responses and /v1/messages: python -m tests.clients.litellm_agents BASE_URL."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a price list otherwise

import litellm
import openai

from tests.clients.common import ANTHROPIC_TOOL, CITIES, QUESTION, RESPONSES_TOOL, Place, is_queue, raised, weather_in


def responses(base_url: str) -> None:
    def ask(content: Any, **fields: Any) -> Any:
        options: Any = {"temperature": 0, "max_output_tokens": 200, "num_retries": 0, **fields}
        return litellm.responses(input=content, model="openai/demo", api_base=base_url, api_key="none", **options)

    whole = ask(QUESTION)
    assert whole.status == "completed" and whole.output_text and whole.usage.total_tokens > 0, whole
    events = list(ask(QUESTION, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed", events[-1]
    Place.model_validate_json(ask(QUESTION, text_format=Place).output_text)

    history: list[Any] = []
    for city in CITIES:
        history.append({"role": "user", "content": f"What is the weather in {city}?"})
        answer = ask(history, tools=[RESPONSES_TOOL])
        (call,) = (item for item in answer.output if item.type == "function_call")
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": city}), call
        history += [item.model_dump(exclude_none=True) for item in answer.output]
        history.append({"type": "function_call_output", "call_id": call.call_id, "output": weather_in(city)})
        told = ask(history, tools=[RESPONSES_TOOL])
        assert told.output_text, told
        history += [item.model_dump(exclude_none=True) for item in told.output]
    if not is_queue(base_url):  # jobs keep nothing: the next may come to another worker
        after = ask("What is the weather in Paris?", previous_response_id=whole.id)
        assert after.usage.input_tokens > whole.usage.input_tokens, after
        kept = litellm.get_responses(whole.id, custom_llm_provider="openai", api_base=base_url, api_key="none")
        assert kept.output_text == whole.output_text, kept
        litellm.delete_responses(whole.id, custom_llm_provider="openai", api_base=base_url, api_key="none")
    kind = litellm.InternalServerError if is_queue(base_url) else litellm.BadRequestError
    raised(kind, lambda: ask(QUESTION, temperature=-1), "temperature")
    raised(openai.APIError, lambda: list(ask(QUESTION, temperature=-1, stream=True)), "temperature")


async def messages(base_url: str) -> None:
    async def ask(content: Any, **fields: Any) -> Any:
        history = [{"role": "user", "content": content}] if isinstance(content, str) else content
        options: Any = {"max_tokens": 200, "temperature": 0, "num_retries": 0, **fields}
        return await litellm.anthropic.messages.acreate(
            model="anthropic/demo",
            messages=history,
            api_base=base_url.removesuffix("/v1"),
            api_key="none",
            **options,
        )

    whole = await ask(QUESTION)
    text = whole["content"][0]["text"]
    assert text and whole["stop_reason"] == "end_turn", whole
    lines = b"".join([piece async for piece in await ask(QUESTION, stream=True)]).decode().splitlines()
    events = [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]
    assert "".join(event["delta"].get("text", "") for event in events if "delta" in event) == text, events
    assert events[-1]["type"] == "message_stop", events[-1]

    history: list[Any] = []
    for city in CITIES:
        history.append({"role": "user", "content": f"What is the weather in {city}?"})
        called = await ask(history, tools=[ANTHROPIC_TOOL])
        use = called["content"][-1]
        assert called["stop_reason"] == "tool_use" and use["input"] == {"city": city}, called
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": weather_in(city)}
        history += [{"role": "assistant", "content": called["content"]}, {"role": "user", "content": [result]}]
        told = await ask(history, tools=[ANTHROPIC_TOOL])
        assert told["stop_reason"] == "end_turn" and told["content"][0]["text"], told
        history.append({"role": "assistant", "content": told["content"]})
    raised_by = litellm.InternalServerError if is_queue(base_url) else litellm.BadRequestError
    try:
        await ask(QUESTION, temperature=-1)
    except Exception as error:
        assert isinstance(error, raised_by) and "temperature" in str(error), repr(error)
    else:
        raise AssertionError("a temperature of -1 was taken")


if __name__ == "__main__":
    responses(sys.argv[1])
    asyncio.run(messages(sys.argv[1]))
    print("ok")
