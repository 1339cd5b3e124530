"""What Anthropic's SDK does with /v1/messages: python -m tests.clients.anthropic_python BASE_URL."""

import sys
from typing import Any

from anthropic import Anthropic, BadRequestError, InternalServerError, beta_tool

from tests.clients.common import ANTHROPIC_TOOL, QUESTION, is_queue, weather_in

asked: list[str] = []


@beta_tool
def get_weather(city: str) -> str:
    """Get the weather in a city

    Args:
        city: The city.
    """
    asked.append(city)
    return weather_in(city)


def main(base_url: str) -> None:
    client = Anthropic(base_url=base_url.removesuffix("/v1"), api_key="none", max_retries=0)
    options: Any = {"model": "demo", "max_tokens": 200, "extra_body": {"temperature": 0}}

    def says(*contents: Any) -> Any:
        return [{"role": "user" if i % 2 == 0 else "assistant", "content": c} for i, c in enumerate(contents)]

    whole = client.messages.create(messages=says(QUESTION), **options)
    assert whole.content[0].type == "text" and whole.stop_reason == "end_turn", whole
    with client.messages.stream(messages=says(QUESTION), **options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text and final.stop_reason == whole.stop_reason, (text, final)
    assert final.usage.output_tokens == whole.usage.output_tokens, final.usage
    counted = client.messages.count_tokens(model="demo", messages=says(QUESTION)).input_tokens
    assert counted == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0), (counted, whole.usage)

    history: list[Any] = []
    for city, streams in (("Paris", False), ("Rome", True)):
        history.append({"role": "user", "content": f"What is the weather in {city}?"})
        if streams:
            with client.messages.stream(messages=history, tools=[ANTHROPIC_TOOL], **options) as stream:
                answer: Any = stream.get_final_message()
        else:
            answer = client.messages.create(messages=history, tools=[ANTHROPIC_TOOL], **options)
        assert answer.stop_reason == "tool_use", answer
        use = answer.content[-1]
        assert (use.name, use.input) == ("get_weather", {"city": city}), use
        result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "21 degrees"}]}
        history += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        answer = client.messages.create(messages=history, tools=[ANTHROPIC_TOOL], **options)
        assert answer.stop_reason == "end_turn" and answer.content[0].text, answer
        history.append({"role": "assistant", "content": answer.content})

    runner = client.beta.messages.tool_runner(
        messages=says("What is the weather in Oslo?"), tools=[get_weather], **options
    )
    assert runner.until_done().stop_reason == "end_turn" and asked == ["Oslo"], asked
    forced = client.messages.create(
        messages=says("Hello"), tools=[ANTHROPIC_TOOL], tool_choice={"type": "any"}, **options
    )
    assert forced.stop_reason == "tool_use", forced
    try:
        client.messages.create(messages=says(QUESTION), **{**options, "extra_body": {"temperature": -1}})
    except (BadRequestError, InternalServerError) as error:
        assert isinstance(error, InternalServerError) == is_queue(base_url), error
        assert "temperature" in str(error), error
    else:
        raise AssertionError("a temperature of -1 was taken")
    print("ok")


main(sys.argv[1])
