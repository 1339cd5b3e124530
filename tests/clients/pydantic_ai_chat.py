"""What pydantic-ai's agents do with a server: python -m tests.clients.pydantic_ai_chat BASE_URL."""

import asyncio
import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.common import QUESTION, weather_in

SETTINGS = ModelSettings(temperature=0, max_tokens=300)
Name = Annotated[str, Field(max_length=20)]


class Place(BaseModel):
    """A place."""

    city: Name
    population: int = Field(ge=0, le=99)


class Sized(BaseModel):
    """How large a place is. For strict tools pydantic-ai sends no bounds of strings and numbers."""

    size: Literal["small", "large"]
    capital: bool


class Tagged(BaseModel):
    """A place with tags. The set is uniqueItems, which no grammar can hold: a tool's schema need not be enforceable."""

    city: Name
    tags: set[Name] = Field(max_length=2)


async def tools(model: Model) -> None:
    """Three questions in one history, the last one streamed; the tool refuses its first call."""
    asked: list[str] = []

    def get_weather(city: str) -> str:
        """Get the weather in a city"""
        asked.append(city)
        if len(asked) == 1:
            raise ModelRetry("The station is busy, call it again.")
        return weather_in(city)

    agent = Agent(model, tools=[get_weather], model_settings=SETTINGS, retries=3)
    first = await agent.run("What is the weather in Paris?")
    assert set(asked) == {"Paris"} and first.output, (asked, first.output)
    second = await agent.run("What is the weather in Rome?", message_history=first.all_messages())
    assert asked[-1] == "Rome" and second.output, asked
    async with agent.run_stream("What is the weather in Oslo?", message_history=second.all_messages()) as stream:
        text = "".join([piece async for piece in stream.stream_text(delta=True)])
    assert asked[-1] == "Oslo" and text, (asked, text)


async def typed(model: OpenAIChatModel) -> None:
    settings = ModelSettings(temperature=1, max_tokens=400)
    outputs: list[tuple[Any, type[BaseModel]]] = [
        (ToolOutput(Place), Place),
        (ToolOutput(Sized, strict=True), Sized),
        (NativeOutput(Place), Place),
        (ToolOutput(Tagged), Tagged),
    ]
    for output, kind in outputs:
        agent: Agent[None, Any] = Agent(model, output_type=output, model_settings=settings, retries=3)
        assert isinstance((await agent.run(QUESTION)).output, kind), output
        async with agent.run_stream(QUESTION) as stream:
            assert isinstance(await stream.get_output(), kind), output


async def errors(model: OpenAIChatModel) -> None:
    """Over HTTP an error has its own status. Through a queue a failed job is a 500 with the same body."""
    status = 500 if "/v2/" in model.base_url else 400
    refused: list[tuple[Agent[None, Any], str]] = [
        (Agent(model, model_settings=ModelSettings(temperature=-1)), "temperature"),
        (Agent(model, output_type=NativeOutput(Tagged)), "uniqueItems"),
    ]
    for agent, says in refused:
        try:
            await agent.run("Hello")
        except ModelHTTPError as error:
            assert error.status_code == status and says in str(error.body), error
        else:
            raise AssertionError(f"{says} was taken")


async def main(base_url: str) -> None:
    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=base_url, api_key="none"))
    whole = await Agent(model, model_settings=SETTINGS).run(QUESTION)
    async with Agent(model, model_settings=SETTINGS).run_stream(QUESTION) as stream:
        assert await stream.get_output() == whole.output
    for session in (tools, typed, errors):
        await session(model)
    print("ok")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
