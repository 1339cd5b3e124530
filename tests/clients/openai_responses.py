"""What OpenAI's SDK and its Agents SDK do with /v1/responses: python -m tests.clients.openai_responses BASE_URL."""

import asyncio
import json
import sys
import time
from typing import Any

from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI, BadRequestError, InternalServerError, OpenAI

from tests.clients.common import QUESTION, RESPONSES_TOOL, Place, is_queue, weather_in

asked: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """Get the weather in a city"""
    asked.append(city)
    return weather_in(city)


def sdk(client: OpenAI) -> None:
    options: Any = {"model": "demo", "temperature": 0, "max_output_tokens": 200}
    whole = client.responses.create(input=QUESTION, **options)
    assert whole.output_text and whole.status == "completed", whole
    with client.responses.stream(input=QUESTION, **options) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == whole.output_text == stream.get_final_response().output_text
    assert whole.usage is not None and whole.usage.total_tokens > 0
    assert isinstance(client.responses.parse(input=QUESTION, text_format=Place, **options).output_parsed, Place)

    history: list[Any] = []
    for city in ("Paris", "Rome"):
        history.append({"role": "user", "content": f"What is the weather in {city}?"})
        answer = client.responses.create(input=history, tools=[RESPONSES_TOOL], **options)
        (call,) = (item for item in answer.output if item.type == "function_call")
        assert json.loads(call.arguments) == {"city": city}, call
        history += answer.output
        history.append({"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"})
        answer = client.responses.create(input=history, tools=[RESPONSES_TOOL], **options)
        assert answer.output_text, answer
        history += answer.output
    cut = client.responses.create(input=QUESTION, **{**options, "max_output_tokens": 2})
    assert cut.incomplete_details is not None and cut.incomplete_details.reason == "max_output_tokens"


def stored(client: OpenAI) -> None:
    options: Any = {"model": "demo", "temperature": 0, "max_output_tokens": 200}
    first = client.responses.create(input="What is the weather in Oslo?", tools=[RESPONSES_TOOL], **options)
    call: Any = first.output[-1]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    second = client.responses.create(input=[result], previous_response_id=first.id, tools=[RESPONSES_TOOL], **options)
    assert second.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    assert len(client.responses.input_items.list(second.id).data) == 3
    waiting = client.responses.create(input=QUESTION, background=True, **options)
    while waiting.status in ("queued", "in_progress"):
        time.sleep(0.05)
        waiting = client.responses.retrieve(waiting.id)
    assert waiting.status == "completed" and waiting.output_text, waiting
    client.responses.delete(waiting.id)


async def agents(base_url: str) -> None:
    set_tracing_disabled(True)
    model = OpenAIResponsesModel("demo", AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0))
    settings = ModelSettings(temperature=0, max_tokens=200)
    agent = Agent(name="weather", model=model, tools=[get_weather], model_settings=settings)
    first = await Runner.run(agent, "What is the weather in Paris?")
    assert asked == ["Paris"] and first.final_output, (asked, first.final_output)
    later = [*first.to_input_list(), {"role": "user", "content": "What is the weather in Rome?"}]
    assert (await Runner.run(agent, later)).final_output and asked == ["Paris", "Rome"], asked
    streamed = Runner.run_streamed(agent, "What is the weather in Oslo?")
    kinds = {event.type async for event in streamed.stream_events()}
    assert asked[-1] == "Oslo" and streamed.final_output, asked
    assert {"raw_response_event", "run_item_stream_event"} <= kinds, kinds
    typed = Agent(name="places", model=model, output_type=Place, model_settings=settings)
    assert isinstance((await Runner.run(typed, QUESTION)).final_output, Place)


def main(base_url: str) -> None:
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    sdk(client)
    if not is_queue(base_url):  # jobs keep nothing: the next may come to another worker
        stored(client)
    asyncio.run(agents(base_url))
    try:
        client.responses.create(model="demo", input=QUESTION, temperature=-1)
    except (BadRequestError, InternalServerError) as error:
        assert isinstance(error, InternalServerError) == is_queue(base_url), error
        assert "temperature" in str(error), error
    else:
        raise AssertionError("a temperature of -1 was taken")
    print("ok")


main(sys.argv[1])
