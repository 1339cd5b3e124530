"""What the OpenAI Agents SDK does with chat completions: python -m tests.clients.agents_sdk_chat BASE_URL."""

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import APIStatusError, AsyncOpenAI, BadRequestError, InternalServerError

from tests.clients.common import Place, is_queue, weather_in

asked: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """Get the weather in a city"""
    asked.append(city)
    return weather_in(city)


async def main(base_url: str) -> None:
    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel("demo", AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0))
    settings = ModelSettings(temperature=0, max_tokens=200)
    agent = Agent(name="weather", model=model, tools=[get_weather], model_settings=settings)
    first = await Runner.run(agent, "What is the weather in Paris?")
    assert asked == ["Paris"] and first.final_output, (asked, first.final_output)
    later = [*first.to_input_list(), {"role": "user", "content": "What is the weather in Rome?"}]
    second = await Runner.run(agent, later)
    assert asked == ["Paris", "Rome"] and second.final_output, asked

    streamed = Runner.run_streamed(agent, "What is the weather in Oslo?")
    kinds = {event.type async for event in streamed.stream_events()}
    assert asked[-1] == "Oslo" and streamed.final_output, asked
    assert {"raw_response_event", "run_item_stream_event"} <= kinds, kinds

    typed = Agent(name="places", model=model, output_type=Place, model_settings=settings)
    assert isinstance((await Runner.run(typed, "What is the capital of France?")).final_output, Place)
    try:
        await Runner.run(Agent(name="x", model=model, model_settings=ModelSettings(temperature=-1)), "Hello")
    except APIStatusError as error:
        # Through a queue a failed job is a 500 with the error as its body.
        assert type(error) is (InternalServerError if is_queue(base_url) else BadRequestError), error
        assert "temperature" in str(error), error
    else:
        raise AssertionError("a temperature of -1 was taken")
    print("ok")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
